"""Rows of own chains: bad ones are named, whole outputs are split, and a pruned chain goes back into its output."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenskip_lib.core.records import ChainText, InputError, OutputChain, PrunedChain
from tokenskip_lib.pruning.own_rows import Outputs, check_chains, given_chains, in_outputs, read_chains

THOUGHT = "<think>\nHe has 3 + 4 = 7 apples.\n\n</think>\n\nTom has \\boxed{7}."


def _check(*rows: dict, layout: str = "answer") -> tuple[list[ChainText], Outputs]:
    outputs = Outputs(layout)
    return list(check_chains((("rows", row) for row in rows), outputs=outputs)), outputs


def test_reading_does_not_run_ahead(tmp_path):
    path = tmp_path / "chains.jsonl"
    path.write_text('{"id": "a", "chain": "x"}\nbroken\n')
    chains = read_chains(str(path))
    assert next(chains).id == "a"
    with pytest.raises(InputError, match=r"chains\.jsonl:2: not JSON"):
        next(chains)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"id": "b"}', "no 'chain' and no 'output'"),
        ('{"id": "b", "chain": null, "output": null}', "no 'chain' and no 'output'"),
        ('{"chain": "x"}', "no 'id'"),
        ('{"id": "b", "chain": " \\n"}', "chain 'b' is empty"),
        ('{"id": "b", "chain": ""}', "chain 'b' is empty"),
        ('{"id": "b", "chain": "", "output": "x"}', "chain 'b' is empty"),
        ('{"id": "a", "chain": "x"}', "id 'a' was there before"),
        ('{"id": "a", "output": "x"}', "id 'a' was there before"),
        ('{"id": "b", "chain": ["x"]}', "chain: a text or a number, not list"),
        ('{"id": "b", "output": ["x"]}', "output: a text or a number, not list"),
        ('{"id": true, "chain": "x"}', "id: a text or a number, not bool"),
        ('{"id": "", "chain": "x"}', "no 'id'"),
        ('{"id": "b", "chain": "x \\ud800"}', "surrogate"),
        ('{"id": "b", "output": "x \\ud800"}', "surrogate"),
        ('{"id": "b", "chain": "x", "unread": "\\ud800"}', "surrogate"),
        ('{"id": "b", "chain": "x", "answer": NaN}', "NaN is no number in JSON"),
        ('{"id": "\\u001b[31mb\\n", "chain": " "}', r"chain '\x1b[31mb\n' is empty"),
        ("[1]", "expected an object"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path, line, says):
    path = tmp_path / "chains.jsonl"
    path.write_text(f'{{"id": "a", "chain": "x"}}\n{line}\n')
    with pytest.raises(InputError) as caught:
        list(read_chains(str(path)))
    assert f"{path}:2: " in str(caught.value) and says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["x \ud800", float("nan"), float("inf"), True, ["x"]])
def test_a_value_that_the_api_is_given_is_checked_as_one_of_a_file(value):
    with pytest.raises(InputError, match=r"^chains\[0\]: answer: .*\w"):
        list(check_chains([("chains[0]", {"id": "a", "chain": "x", "answer": value})]))


def test_numbers_may_stand_for_ids_and_answers():
    [chain], _ = _check({"id": 7, "answer": 12, "chain": "x"})
    assert (chain.id, chain.answer) == ("7", "12")


@pytest.mark.parametrize(
    ("layout", "output", "chain"),
    [
        ("think", THOUGHT, "He has 3 + 4 = 7 apples."),
        ("think", "3 + 4 = 7.\n</think>\nIt is 7.", "3 + 4 = 7."),  # the prompt opened the thought
        ("think", "<think>\nHe has 3 +", "He has 3 +"),
        ("answer", "3 + 4 = 7.\n\nThe final answer is: $\\boxed{7}$", "3 + 4 = 7."),
        ("answer", "He has 3 + 4 = 7 apples", "He has 3 + 4 = 7 apples"),
    ],
)
def test_a_whole_output_is_split_where_its_chain_ends(layout, output, chain):
    [found], outputs = _check({"id": "a", "question": "q", "answer": "7", "output": output}, layout=layout)
    assert found == OutputChain(id="a", question="q", answer="7", chain=chain, output=output)
    assert found.output_with(chain) == output and outputs.split == 1


@given(st.text(alphabet="ab7 \n<>/", max_size=30), st.sampled_from(["answer", "think"]), st.booleans())
def test_an_output_with_its_own_chain_is_the_output(text, layout, thinks):
    output = f"<think>\n{text}\n</think>\n\nSo \\boxed{{7}}." if thinks else f"{text} is \\boxed{{7}}."
    for chain in _check({"id": "a", "output": output}, layout=layout)[0]:
        assert chain.output_with(chain.chain) == output


def test_outputs_are_counted_and_those_to_look_at_are_named(capsys):
    rows = [
        {"id": "a", "output": THOUGHT},
        {"id": "b", "output": "<think>\nHe has"},
        {"id": "c", "output": "<think>\n\n</think>\n\nIt is \\boxed{7}."},
        {"id": "d", "output": ""},
        {"id": "e", "chain": "3 + 4 = 7"},
    ]
    chains, outputs = _check(*rows, layout="think")
    assert [chain.id for chain in chains] == ["a", "b", "e"]
    outputs.report()
    assert capsys.readouterr().err == (
        "4 outputs; 1 state no answer, and are used (b); 2 have no chain, and are left out (c, d)\n"
    )
    _check(rows[-1], layout="think")[1].report()
    assert capsys.readouterr().err == ""


def test_ids_are_printable_where_they_are_listed(capsys):
    _check({"id": "\x1b[31ma\n", "output": ""})[1].report()
    assert capsys.readouterr().err == "1 outputs; 1 have no chain, and are left out (\\x1b[31ma\\n)\n"


def test_a_chain_goes_before_an_output_that_the_row_has_too():
    [chain], outputs = _check({"id": "a", "chain": "3 + 4 = 7", "output": ["not", "read"]}, layout="think")
    assert chain == ChainText(id="a", chain="3 + 4 = 7") and outputs == Outputs("think")


def test_tags_in_a_chain_make_it_an_output_in_the_layout_think_and_are_told_of_in_the_other(capsys):
    row = {"id": "a", "chain": THOUGHT}
    assert _check(row, layout="think")[0] == _check({"id": "a", "output": THOUGHT}, layout="think")[0]
    [chain], outputs = _check(row)
    assert chain == ChainText(id="a", chain=THOUGHT)
    outputs.report()
    assert "1 have <think> tags" in (said := capsys.readouterr().err) and "(a)" in said


def test_a_pruned_chain_goes_back_into_its_output_and_no_field_is_written_without_one():
    chains, _ = _check({"id": "a", "output": THOUGHT}, {"id": "b", "chain": "3 + 4 = 7"}, layout="think")
    records = [
        PrunedChain(id=name, scorer="s", ratio=0.5, text="3 + 4", kept=None, tokens=3, original_tokens=6)
        for name in ("a", "b")
    ]
    first, second = in_outputs(records, {chain.id: chain for chain in chains})
    assert first.output == "<think>\n3 + 4\n\n</think>\n\nTom has \\boxed{7}."
    assert second == records[1] and "output" not in json.loads(second.model_dump_json())
    assert PrunedChain.model_validate_json(first.model_dump_json()) == first


def test_what_the_api_is_given_keeps_its_records_and_is_refused_if_no_output_has_a_chain():
    record = ChainText(id="x", chain="so 7", question="q")
    assert given_chains([record], (), "answer")[0] is record
    with pytest.raises(InputError, match="no output has a chain"):
        given_chains([{"output": "<think></think>7"}], (), "think")


def test_the_settings_phrases_split_a_whole_output():
    output = "3 + 4 = 7.\nDie Antwort ist 7."
    [whole], [split] = (
        given_chains([{"output": output}], (), "answer", phrases) for phrases in ((), ["Die Antwort ist"])
    )
    assert (whole.chain, split.chain) == (output, "3 + 4 = 7.")
