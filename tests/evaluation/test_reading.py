"""Tables for readers: as many digits as they need, text that stays text, and wide tables that can be sorted."""

import pandas as pd
import pytest
from pandas.io.formats.style import Styler

from tokenskip_lib.core.live import WIDGET, Live
from tokenskip_lib.evaluation import reading
from tokenskip_lib.evaluation.reading import decimals, readable

WIDE = pd.DataFrame({f"column {number}": [number + 0.25, number / 3] for number in range(8)})


def test_columns_have_the_decimals_that_their_values_need():
    table = pd.DataFrame(
        {"n": [150, 51], "cut_off": [51.0, 0.0], "ratio": [0.5, 1.0], "p": [1.37552e-01, 0.5], "gone": [None, 0.25]}
    )
    assert decimals(table, digits=3) == {"cut_off": 0, "ratio": 1, "p": 3, "gone": 2}
    shown = readable(table)._repr_html_()
    assert ">51<" in shown and ">0.138<" in shown and ">1.0<" in shown and "nan" not in shown


def test_text_of_a_table_is_never_markup():
    table = pd.DataFrame({"method": ["<script>alert(1)</script>"], "<i>n": [1]})
    shown = readable(table)._repr_html_()
    assert "<script>alert" not in shown and "&lt;script&gt;" in shown and "<i>" not in shown


def test_text_of_a_table_that_can_be_sorted_is_never_markup():
    pytest.importorskip("itables", reason="itables is not installed (extra `notebooks`)")
    table = readable(WIDE.assign(**{"<i>method": "<script>alert(1)</script>"}))
    shown = table.widget._dt_args["table_html"]
    assert "<script>alert" not in shown and "&lt;script&gt;" in shown and "<i>" not in shown


def test_a_column_has_the_format_that_is_asked_for_also_where_it_can_be_sorted():
    pytest.importorskip("itables", reason="itables is not installed (extra `notebooks`)")
    table = readable(WIDE.assign(gone=[None, 0.5]), formats={"column 0": "{:+.1%}"})
    for shown in (table.picture, table.widget._dt_args["table_html"]):
        assert "+25.0%" in shown and "1.25" in shown and "nan" not in shown.lower()


def test_a_wide_table_can_be_sorted_and_its_picture_has_no_script():
    pytest.importorskip("itables", reason="itables is not installed (extra `notebooks`)")
    table = readable(WIDE)
    bundle = table._repr_mimebundle_()
    assert isinstance(table, Live) and bundle[WIDGET]["model_id"] == table.widget.model_id
    assert "<script" not in bundle["text/html"] and "2.333" in bundle["text/html"] and "2.333" in bundle["text/plain"]
    assert isinstance(readable(WIDE.iloc[:, :6]), Styler)


def test_without_itables_a_wide_table_is_its_picture(monkeypatch):
    monkeypatch.setattr(reading, "find_spec", lambda name: None)
    assert isinstance(readable(WIDE), Styler) and "2.333" in readable(WIDE)._repr_html_()
