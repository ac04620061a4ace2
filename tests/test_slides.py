"""The slides of notebook 00: one folder, and nothing in it comes from a network."""

import importlib.util
import re

import pytest

pytest.importorskip("latex2mathml", reason="the extra `slides` is not installed")
pytest.importorskip("sphinx_revealjs", reason="the extra `slides` is not installed")


@pytest.fixture(scope="module")
def page(root, tmp_path_factory) -> str:
    spec = importlib.util.spec_from_file_location("slides_build", root / "docs" / "slides" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    built = module.build(tmp_path_factory.mktemp("slides"))
    html = built.read_text(encoding="utf-8")
    for name in re.findall(r'<(?:script|link|img)[^>]* (?:src|href)="(?!data:)([^"]+)"', html):
        assert (built.parent / name).is_file(), name
    return html


def test_nothing_is_loaded_from_a_network(page):
    assert not re.findall(r'<(?:script|link|img|iframe)[^>]* (?:src|href)="(?:https?:)?//[^"]+"', page)
    assert not re.search(r"@import url\(.?http|import .* from 'http", page)


def test_every_formula_is_drawn_without_a_script(page):
    assert page.count("<math") > 10 and "MathJax" not in page
    without_code = re.sub(r"<pre.*?</pre>|<script.*?</script>|<style.*?</style>", "", page, flags=re.DOTALL)
    assert "$$" not in without_code and r"\gamma" not in without_code


def test_cells_marked_skip_are_no_slides(page):
    assert "2 Importance by surprisal" in page and "Exercises" not in page
