"""Grading: nothing of an output is lost in the split, and only a stated, equal answer is right."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenskip_lib.grading import is_correct, last_boxed, split_output
from tokenskip_lib.problems import read_problems
from tokenskip_lib.prompts import answer_tail

symbols = [
    "\\boxed{",
    "\\fbox{",
    "{",
    "}",
    "\\{",
    "$",
    "\\[",
    "**",
    "\n",
    "\n\n",
    ". ",
    ": ",
    "  ",
    "18",
    "\\frac{1}{2}",
]
phrases = ["The final answer is", "answer is ", "Answer: ", "#### ", "So "]
pieces = st.sampled_from(symbols) | st.sampled_from(phrases)


@given(st.text(max_size=60) | st.lists(pieces, max_size=14).map("".join))
def test_chain_and_answer_together_are_the_output(output):
    parts = split_output(output)
    assert parts.chain + parts.answer == output
    assert parts.prediction is None or parts.answer


@given(
    st.text(alphabet="ab 1\n.$+=", max_size=60), st.sampled_from(["18", "-3", "\\frac{1}{2}", "\\{1, 2\\}", "(0, 1]"])
)
def test_the_tail_of_training_is_taken_off_exactly_and_read_back(chain, answer):
    parts = split_output(chain + answer_tail(answer))
    assert parts.prediction == answer
    assert parts.chain.rstrip() == chain.rstrip()
    assert parts.answer.startswith("The final answer is")


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("\\boxed{18}", "18"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed {5}", "5"),
        ("\\fbox{5}", "5"),
        ("\\boxed{1} and \\boxed{2}", "2"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{1} and \\boxed{2", "1"),
        ("\\boxed{}", ""),
    ],
)
def test_the_last_balanced_box_is_found(text, content):
    boxed = last_boxed(text)
    assert boxed.content == content
    assert text[boxed.start : boxed.end].endswith("}") and text[boxed.start] == "\\"


@pytest.mark.parametrize("text", ["", "18", "\\boxed{18", "\\boxed", "boxed{18}", "\\boxed{\\frac{1}{2}"])
def test_no_balanced_box_is_none(text):
    assert last_boxed(text) is None


@pytest.mark.parametrize(
    ("output", "chain", "prediction"),
    [
        ("3 + 4 = 7.\n\nThe final answer is: $\\boxed{7}$", "3 + 4 = 7.\n\n", "7"),
        ("3 + 4 = 7. The final answer is $\\boxed{7}$.", "3 + 4 = 7. ", "7"),
        ("3 + 4 = 7\nAnswer: 7", "3 + 4 = 7\n", "7"),
        ("3 + 4 = 7\n#### 7", "3 + 4 = 7\n", "7"),
        ("3 + 4 = 7. So the answer is $7.", "3 + 4 = 7. ", "7"),
        # Without an announcing sentence only the box is the answer: the calculation keeps its tokens.
        ("We get \\[3 + 4 = \\boxed{7}\\]", "We get \\[3 + 4 = ", "7"),
        ("We get $3 + 4$, hence $\\boxed{7}$ apples.", "We get $3 + 4$, hence ", "7"),
        ("Tom has **\\boxed{7}**", "Tom has ", "7"),
        ("Half of it is \\boxed{\\frac{1}{2}}", "Half of it is ", "\\frac{1}{2}"),
        # A box in the chain is no answer where a later one follows.
        ("First \\boxed{3}.\n\nThe final answer is: $\\boxed{7}$", "First \\boxed{3}.\n\n", "7"),
    ],
)
def test_an_output_is_split_where_its_answer_begins(output, chain, prediction):
    parts = split_output(output)
    assert (parts.chain, parts.prediction) == (chain, prediction)


@pytest.mark.parametrize(
    "output",
    [
        "",
        "Tom has 3 apples and buys 4 more, so he has 3 + 4 = 7",
        "First we add 3 and 4.\n\nThen we",
        "3 + 4 = 7.\n\nThe final answer is: $\\boxed{7",
        "3 + 4 = 7.\n\nThe final",
        "Add all.\n\n#### Total Distance Calculation:\n1. **Distance on day 1:** each train travels",
    ],
)
def test_an_output_that_was_cut_off_is_all_chain_and_predicts_nothing(output):
    assert split_output(output) == (output, "", None)


@pytest.mark.parametrize(
    ("prediction", "gold"),
    [
        ("18", "18"),
        ("18.0", "18"),
        ("$18", "18"),
        ("\\$18", "18"),
        ("1,000", "1000"),
        ("1000", "1,000"),
        ("1/2", "0.5"),
        ("\\frac{1}{2}", "0.5"),
        ("0.5", "\\frac{1}{2}"),
        ("\\frac{14}{3}", "14/3"),
        ("\\dfrac{14}{3}", "\\frac{14}{3}"),
        ("-3", "-3"),
        ("2\\sqrt{2}", "\\sqrt{8}"),
        ("(0, 1]", "(0,1]"),
        ("[0, \\infty)", "[0,\\infty)"),
        ("\\left( 3, \\frac{\\pi}{2} \\right)", "(3, \\frac{\\pi}{2})"),
        ("\\text{(A)}", "(A)"),
        (" 18 ", "18"),
    ],
)
def test_an_equal_answer_is_right(prediction, gold):
    assert is_correct(prediction, gold)


@pytest.mark.parametrize(
    ("prediction", "gold"),
    [
        (None, "18"),
        ("", "18"),
        ("  ", "18"),
        ("19", "18"),
        ("0.18", "18"),
        ("1800", "18"),
        ("-18", "18"),
        ("81", "18"),
        ("1 8", "18"),
        ("1 1/2", "11/2"),
        ("0.333", "\\frac{1}{3}"),
        ("\\frac{3}{14}", "\\frac{14}{3}"),
        ("(0, 1)", "(0,1]"),
        ("[0, 1)", "(0,1]"),
        ("(2, 1)", "(1,2)"),
        ("we add 3 and 4", "7"),
        ("\\text{(B)}", "(A)"),
    ],
)
def test_another_answer_is_wrong(prediction, gold):
    assert not is_correct(prediction, gold)


def test_the_verdict_does_not_depend_on_the_thread():
    from concurrent.futures import ThreadPoolExecutor

    cases = [("1/2", "0.5"), ("1,000", "1000"), ("1800", "18"), ("(0, 1)", "(0,1]")]
    with ThreadPoolExecutor(1) as pool:
        elsewhere = list(pool.map(lambda case: is_correct(*case), cases))
    assert elsewhere == [is_correct(*case) for case in cases] == [True, True, False, False]


def test_verdicts_agree_with_the_reference_on_a_real_models_outputs(data_folder):
    with (data_folder / "qwen2.5-7b_gsm8k_chains.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(next(file)) for _ in range(150)]
    agreeing = 0
    for row in rows:
        parts = split_output(row["output"])
        agreeing += is_correct(parts.prediction, row["answer"]) == row["reference_is_correct"]
        # The reference counts chain tokens up to this phrase, which this model always writes.
        assert parts.chain.rstrip() == row["output"].partition("\n\nThe final answer is:")[0].rstrip()
    assert agreeing >= 0.97 * len(rows)
    assert {row["reference_is_correct"] for row in rows} == {True, False}


def test_published_gold_answers_are_right_as_written_and_wrong_when_changed(data_folder):
    for problem in read_problems(data_folder / "gsm8k_test.jsonl")[:150]:
        gold = problem.answer
        assert split_output(problem.solution + answer_tail(gold)).prediction == gold
        assert is_correct(gold, gold) and is_correct(f"${gold}.00", gold), problem
        assert not is_correct(str(float(gold.replace(",", "")) + 1), gold), problem


def test_published_latex_answers_survive_the_split(data_folder):
    for problem in read_problems(data_folder / "math500_test.jsonl"):
        parts = split_output("Some chain." + answer_tail(problem.answer))
        assert (parts.chain, parts.prediction) == ("Some chain.\n\n", problem.answer)
        assert is_correct(parts.prediction, problem.answer)


def test_real_outputs_cut_anywhere_before_their_answer_are_all_chain(data_folder):
    with (data_folder / "qwen2.5-7b_gsm8k_chains.jsonl").open(encoding="utf-8") as file:
        outputs = [json.loads(line)["output"] for line in file]
    lost = []
    for output in outputs:
        for share in (0.3, 0.5, 0.7):
            cut = output[: round(share * len(output))]
            if last_boxed(cut) is None and split_output(cut).answer and "nswer" not in cut:
                lost.append(cut[-60:])
    assert lost == []


@pytest.mark.parametrize("opening", ["", "<think>\n"])
def test_in_the_think_layout_the_chain_is_the_thinking_alone(opening):
    parts = split_output(opening + "So \\boxed{4}? No, 5.\n</think>\n\nIt is \\boxed{5}.", "think")
    assert parts.chain == "So \\boxed{4}? No, 5.\n"
    assert parts.answer == "</think>\n\nIt is \\boxed{5}." and parts.prediction == "5"


def test_thinking_that_never_ends_is_all_chain_and_states_no_answer():
    parts = split_output("<think>\nSo \\boxed{4}", "think")
    assert parts == ("So \\boxed{4}", "", None)
