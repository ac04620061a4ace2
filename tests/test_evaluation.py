"""Evaluation: budgets, grading and metrics, against formulas written out here."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenskip_lib.evaluation import (
    METHODS,
    METRIC_COLUMNS,
    RATIO_METHODS,
    build_requests,
    compute_metrics,
    markdown_table,
    method_ratios,
    predict,
    truncation_budget,
)
from tokenskip_lib.generation import Generation
from tokenskip_lib.prompts import build_prompt
from tokenskip_lib.records import InputError, Prediction
from tokenskip_lib.settings import EvaluationSettings, PromptSettings


def _prediction(name, method="original", ratio=1.0, *, right=True, tokens=100, cut_off=False, seconds=1.0):
    return Prediction(
        id=name, method=method, ratio=ratio, answer="7", output="o", chain="c", prediction="7" if right else None,
        is_correct=right, chain_tokens=tokens, answer_tokens=9, max_new_tokens=256, cut_off=cut_off, seconds=seconds,
    )  # fmt: skip


def _settings(**methods) -> EvaluationSettings:
    return EvaluationSettings(methods={"original": [], **methods})


@given(
    st.lists(st.integers(1, 300), min_size=1, max_size=20), st.sampled_from([0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
)
def test_the_truncation_budget_is_the_smallest_that_spends_the_ratio(lengths, ratio):
    wanted = Fraction(str(ratio)) * sum(lengths)

    def spent(cap):
        return sum(min(length, cap) for length in lengths)

    cap = truncation_budget(lengths, ratio)
    assert spent(cap) >= wanted
    assert cap == 1 or spent(cap - 1) < wanted


def test_the_truncation_budget_lets_short_answers_finish():
    assert truncation_budget([10, 10, 100], 0.5) == 40  # 10 + 10 + 40 = half of 120
    assert truncation_budget([10, 10, 100], 1.0) == 100
    assert truncation_budget([8], 0.5) == 4


def test_methods_and_ratios_are_listed_original_first_ratios_descending():
    settings = _settings(tokenskip=[0.5, 1.0, 0.7], be_concise=[], truncation=[0.5])
    assert method_ratios(settings) == [
        ("original", 1.0),
        ("tokenskip", 1.0),
        ("tokenskip", 0.7),
        ("tokenskip", 0.5),
        ("be_concise", 1.0),
        ("truncation", 0.5),
    ]


def test_an_unknown_method_is_refused_with_the_nearest_name():
    with pytest.raises(InputError, match="did you mean 'tokenskip'"):
        method_ratios(_settings(tokenskp=[0.5]))


@pytest.mark.parametrize("method", sorted(RATIO_METHODS))
def test_a_method_that_reads_a_ratio_needs_one(method):
    with pytest.raises(InputError, match=f"{method} needs a list of ratios"):
        method_ratios(_settings(**{method: []}))


@pytest.mark.parametrize("method", sorted(set(METHODS) - RATIO_METHODS))
def test_a_method_that_reads_no_ratio_takes_none(method):
    with pytest.raises(InputError, match=f"{method} takes no ratios"):
        method_ratios(EvaluationSettings(methods={"original": [], method: [0.5]}))


def test_requests_differ_between_methods_in_their_prompt_alone(problems, tiny_tokenizer):
    for method, ratio in (("original", 1.0), ("tokenskip", 0.5), ("truncation", 0.5), ("lc_prompt", 0.7)):
        made = build_requests(problems, tiny_tokenizer, PromptSettings(), method=method, ratio=ratio, max_new_tokens=33)
        assert [(r.id, r.max_new_tokens) for r in made] == [((p.id, method, ratio), 33) for p in problems]
        assert [r.prompt for r in made] == [
            build_prompt(tiny_tokenizer, p.question, PromptSettings(), method=method, ratio=ratio) for p in problems
        ]


def test_a_prediction_counts_chain_and_answer_apart(problems):
    text = "3 + 4 = 7 apples.\n\nThe final answer is: $\\boxed{7}$"
    generation = Generation(id=("p0", "tokenskip", 0.5), text=text, tokens=15, cut_off=False, seconds=0.123456)
    made = predict(
        problems[0], generation, max_new_tokens=64, count_tokens=lambda texts: [len(t.split()) for t in texts]
    )
    assert (made.id, made.method, made.ratio, made.answer, made.output) == ("p0", "tokenskip", 0.5, "7", text)
    assert made.chain + "The final answer is: $\\boxed{7}$" == text
    assert (made.chain_tokens, made.answer_tokens, made.prediction, made.is_correct) == (6, 5, "7", True)
    assert (made.max_new_tokens, made.cut_off, made.seconds) == (64, False, 0.1235)


def test_a_cut_off_prediction_is_all_chain_and_wrong(problems):
    generation = Generation(id=("p0", "truncation", 0.5), text="He has 3 + 4 = 7", tokens=7, cut_off=True, seconds=0.1)
    made = predict(
        problems[0], generation, max_new_tokens=7, count_tokens=lambda texts: [len(t.split()) for t in texts],
    )  # fmt: skip
    assert (made.chain_tokens, made.answer_tokens, made.prediction, made.is_correct) == (7, 0, None, False)
    assert made.cut_off


def _wilson(correct: int, n: int) -> tuple[float, float]:
    z = 1.959963984540054
    middle = (correct + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(correct * (n - correct) / n + z * z / 4)
    return middle - half, middle + half


def test_metrics_are_those_of_the_definition():
    predictions = [
        *[_prediction(f"p{i}", right=i < 3, tokens=100 + 10 * i, seconds=2.0) for i in range(4)],
        *[_prediction(f"p{i}", "tokenskip", 0.5, right=i < 1, tokens=50, cut_off=i == 3) for i in range(4)],
        *[_prediction(f"p{i}", "tokenskip", 0.7, right=True, tokens=80 + i) for i in range(4)],
        *[_prediction(f"p{i}", "be_concise", right=False, tokens=115, seconds=i) for i in range(4)],
    ]
    table = compute_metrics(predictions, scorer="selective_context", seed=7)
    assert list(table.columns) == METRIC_COLUMNS
    rows = {(row["method"], row["ratio"]): row for row in table.to_dict("records")}
    assert list(rows) == [("original", 1.0), ("tokenskip", 0.7), ("tokenskip", 0.5), ("be_concise", 1.0)]
    expected = {
        ("original", 1.0): (3, 115.0, 1.0, 0, 2.0, ""),
        ("tokenskip", 0.5): (1, 50.0, 50 / 115, 1, 1.0, "selective_context"),
        ("tokenskip", 0.7): (4, 81.5, 81.5 / 115, 0, 1.0, "selective_context"),
        ("be_concise", 1.0): (0, 115.0, 1.0, 0, 1.5, ""),
    }
    for key, (correct, tokens, actual, cut_off, seconds, scorer) in expected.items():
        row, (low, high) = rows[key], _wilson(correct, 4)
        assert (row["n"], row["seed"], row["scorer"], row["cut_off"]) == (4, 7, scorer, cut_off)
        assert row["accuracy"] == correct / 4
        assert (row["accuracy_low"], row["accuracy_high"]) == pytest.approx((low, high), abs=1e-4)
        assert row["chain_tokens"] == pytest.approx(tokens, abs=0.01)
        assert row["actual_ratio"] == pytest.approx(actual, abs=1e-4)
        assert row["seconds_per_problem"] == pytest.approx(seconds)


@given(st.integers(1, 400), st.data())
def test_the_interval_is_wilsons_and_holds_the_accuracy(n, data):
    correct = data.draw(st.integers(0, n))
    [row] = compute_metrics([_prediction(f"p{i}", right=i < correct) for i in range(n)], scorer="", seed=0).to_dict(
        "records"
    )
    assert (row["accuracy_low"], row["accuracy_high"]) == pytest.approx(_wilson(correct, n), abs=1e-4)
    assert 0 <= row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"] <= 1


def test_metrics_do_not_depend_on_the_order_of_predictions_within_a_method():
    predictions = [_prediction(f"p{i}", right=i % 2 == 0, tokens=10 * i + 1) for i in range(6)]
    forward, backward = (compute_metrics(given, scorer="", seed=0) for given in (predictions, predictions[::-1]))
    assert forward.equals(backward)


def test_metrics_without_the_original_are_refused():
    with pytest.raises(InputError, match="original"):
        compute_metrics([_prediction("a", "tokenskip", 0.5)], scorer="s", seed=0)


def test_the_table_for_readers_has_one_line_a_row_and_ratios_only_where_they_are_read():
    predictions = [
        *[_prediction(f"p{i}", right=i < 3) for i in range(4)],
        *[_prediction(f"p{i}", "tokenskip", 0.5, tokens=50) for i in range(4)],
    ]
    lines = markdown_table(compute_metrics(predictions, scorer="s", seed=0)).splitlines()
    assert len(lines) == 4 and len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| original |  | 4 | 75.0 (") and "| 100.0 | 1.00 |" in lines[2]
    assert lines[3].startswith("| tokenskip | 0.5 | 4 | 100.0 (") and "| 50.0 | 0.50 |" in lines[3]
