"""Published rows: found by the profiles that repeat them or by model and set, and what is out of noise."""

import pandas as pd
import pytest

from tokenskip_lib.core.profiles import load_profile, profile_names
from tokenskip_lib.core.records import InputError
from tokenskip_lib.evaluation.published import (
    THE_PAPER,
    beside_the_paper,
    choose_published,
    find_published,
    published_rows,
    published_speedups,
    read_published,
)
from tokenskip_lib.problems.sets import PROBLEM_SETS

REPEATS = [
    name for name in profile_names() if name.startswith(("llama", "published", "qwen2.5-3", "qwen2.5-7", "qwen2.5-14"))
]
RUNS = ["model", "trained_on", "tested_on"]
PAPERS = read_published().query("publication == @THE_PAPER")[RUNS].drop_duplicates().to_numpy().tolist()


@pytest.mark.parametrize("name", REPEATS)
def test_a_profile_that_repeats_a_published_run_finds_its_rows(name):
    profile = load_profile(name)
    rows = published_rows(profile)
    asked = {(method, ratio) for method, ratios in profile.evaluation.methods.items() for ratio in ratios or [1.0]}
    published = set(zip(rows["method"], rows["ratio"], strict=True))
    tokenskip = {pair for pair in asked if pair[0] in ("original", "tokenskip")}
    assert tokenskip <= published <= asked
    prompted = {"original", "tokenskip", *(profile.evaluation.methods if name.startswith("llama") else ())}
    assert {method for method, _ in published} <= prompted
    assert set(rows["publication"]) == {THE_PAPER} and rows["accuracy"].between(0.05, 0.95).all()


@pytest.mark.parametrize(("model", "trained_on", "tested_on"), PAPERS)
def test_every_published_run_is_found_by_a_profile_of_it_from_the_hub_or_a_folder(model, trained_on, tested_on):
    ledger = read_published()
    keys = {"model": model, "trained_on": trained_on, "tested_on": tested_on, "publication": THE_PAPER}
    own = ledger[(ledger[list(keys)] == list(keys.values())).all(axis=1)]
    assert {trained_on, tested_on} <= set(PROBLEM_SETS)
    for place in (model, f"/somewhere/{model.split('/')[1].lower()}/"):
        changes = {"target.model": place, "problems.train": trained_on, "problems.test": tested_on}
        rows = published_rows(load_profile("qwen2.5-7b-gsm8k", changes))
        assert sorted(rows["source"]) == sorted(own["source"]) and set(rows["ratio"]) == set(own["ratio"])


def test_another_profile_repeats_none():
    assert published_rows(load_profile("smoke")).empty
    assert published_rows(load_profile("qwen2.5-0.5b-gsm8k")).empty
    assert published_rows(load_profile("qwen2.5-7b-gsm8k", {"evaluation.split": "validation"})).empty


def test_other_publications_are_beside_the_papers_rows_under_names_of_their_own():
    rows, model, tested_on = choose_published("qwen2.5-7b-gsm8k")
    assert (model, tested_on) == ("Qwen/Qwen2.5-7B-Instruct", "gsm8k")
    assert set(rows["label"]) == {
        "original, TokenSkip paper",
        "tokenskip, TokenSkip paper",
        "tokenskip, evanzhaodev",
        "tokenskip, zsq259",
        "lc_prompt, independent study",  # no adapter, so it is of any training set
    }
    assert choose_published("qwen2.5-7b-instruct/gsm8k")[1:] == (model, tested_on)


def test_curves_of_two_training_sets_have_two_names_and_the_original_is_one_row():
    rows = find_published("meta-llama/Llama-3.1-8B-Instruct", "gsm8k")
    labels = rows["label"].value_counts()
    assert labels["tokenskip trained on gsm8k, TokenSkip paper"] == 6
    assert labels["tokenskip trained on math, TokenSkip paper"] == 6
    assert labels["original, TokenSkip paper"] == 1


@pytest.mark.parametrize(
    ("against", "says"),
    [
        ("qwen2.5-7b-gsm9k", "Qwen2.5-7B-Instruct/gsm8k"),
        ("demo", "there is Llama-3.1-8B-Instruct/gsm8k"),
        ("Qwen2.5-7B-Instruct/math500", "nothing is published for it"),
    ],
)
def test_what_nobody_published_is_refused_with_what_there_is(against, says):
    with pytest.raises(InputError, match=says) as refused:
        choose_published(against)
    assert "\n" not in str(refused.value)


def test_the_papers_speedups_are_its_latencies_over_the_originals():
    speedups = published_speedups().set_index(["run", "ratio"])["speedup"]
    assert len(speedups) == 12
    assert speedups["Llama-3.1-8B-Instruct, gsm8k", 0.5] == pytest.approx(5.96 / 3.40)
    assert speedups["Llama-3.1-8B-Instruct, math500", 0.9] == pytest.approx(16.37 / 15.26)


def test_no_row_is_there_twice():
    rows = read_published()
    assert not rows.duplicated(["publication", *RUNS, "method", "ratio"]).any()


def test_differences_beyond_the_noise_of_two_samples_are_marked():
    published = pd.DataFrame(
        {"method": ["original", "tokenskip"], "ratio": [1.0, 0.5], "n": [1000] * 2, "accuracy": [0.9, 0.8]}
    ).assign(chain_tokens=100.0)
    here = {"accuracy": 0.0, "accuracy_by_reference": [0.91, 0.7], "chain_tokens": [90.0, 50.0]}
    metrics = published.assign(**here).iloc[::-1]  # the published accuracies are by the reference's rule
    table = beside_the_paper(metrics, published).set_index("method")
    assert table["points"].round(6).to_dict() == {"original": 1.0, "tokenskip": -10.0}
    assert table["tokens"].round(6).to_dict() == {"original": -0.1, "tokenskip": -0.5}
    assert table["out_of_noise"].to_dict() == {"original": False, "tokenskip": True}
