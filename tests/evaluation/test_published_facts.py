"""The profiles, the prompts and the ledger of published rows agree with published_facts.yaml."""

from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml

from tokenskip_lib.core.profiles import load_profile, profile_names
from tokenskip_lib.core.settings import PromptSettings
from tokenskip_lib.evaluation.method import Known
from tokenskip_lib.evaluation.methods import METHODS, answer_budget
from tokenskip_lib.evaluation.published import published_changes, read_published
from tokenskip_lib.models.prompts import INSTRUCTION, RECOVERY, answer_tail, ratio_marker

FACTS = yaml.safe_load((Path(__file__).parent / "published_facts.yaml").read_text(encoding="utf-8"))
PAPERS = [name for name in profile_names() if name.startswith(("qwen", "llama", "published"))]


@pytest.mark.parametrize("name", PAPERS)
def test_the_papers_profiles_keep_to_its_recipe(name):
    profile = load_profile(name)
    recipe = profile.training.model_dump()
    assert {setting: recipe[setting] for setting in FACTS["recipe"]} == FACTS["recipe"]
    assert profile.importance.scorer == "llmlingua2" and profile.prompts.baseline_place == FACTS["baseline_place"]
    pruning, family = profile.pruning.model_dump(), "llama" if "llama" in name else "qwen"
    assert pruning["mode"] == "llmlingua" and pruning["ratios"] == FACTS["ratios"]
    assert {option: pruning[option] for option in FACTS["llmlingua"][family]} == FACTS["llmlingua"][family]
    assert profile.prompts.system == FACTS["system"]
    if name.startswith("published"):
        assert profile.prompts.format == "reference_qwen"
        assert profile.evaluation.adapter == f"hemingkx/TokenSkip-{profile.target.model.split('/')[1]}-GSM8K"
    else:
        assert profile.chains.max_chain_tokens == FACTS["max_chain_tokens"]


@pytest.mark.parametrize("name", PAPERS)
def test_the_papers_profiles_have_its_budgets_and_never_scale_gsm8ks(name):
    profile = load_profile(name)
    evaluation, budget = profile.evaluation, FACTS["budgets"][profile.problems.test]
    assert {setting: getattr(evaluation, setting) for setting in budget} == budget
    share = 0.5 if profile.problems.test == "math500" else 1
    assert answer_budget(evaluation, "tokenskip", 0.5) == share * budget["max_new_tokens"]
    assert answer_budget(evaluation, "original", 1.0) == budget["max_new_tokens"]


def test_every_prompt_is_the_published_one_to_the_letter():
    prompts = FACTS["prompts"]
    assert prompts["instruction"] == INSTRUCTION and prompts["tail"] == answer_tail("18")
    published = {name: METHODS[name].sentence(0.5) for name in prompts["methods"]}
    assert published == prompts["methods"]
    asked = RECOVERY.format(question="QUESTION", chain="CHAIN")
    assert asked == prompts["recovery"]
    known = Known(original_tokens=[100], original_words=[100])
    assert {name: METHODS[name].sentence(0.5, known) for name in prompts["limits"]} == prompts["limits"]


def test_requests_in_words_of_their_own_are_the_published_ones_to_the_letter():
    prompts, draft, tale = FACTS["prompts"], METHODS["chain_of_draft"], METHODS["tale_ep"]
    assert {"system": draft.system, "request": draft.request.format(question="QUESTION")} == prompts["chain_of_draft"]
    made = {"first": tale.first_request, "second": tale.budget_request, "without_budget": tale.request}
    made = {name: text.replace("{question}", "QUESTION").replace("{budget}", "12") for name, text in made.items()}
    assert made == prompts["tale_ep"]


@pytest.mark.parametrize("name", PAPERS)
def test_the_papers_profiles_ask_by_every_prompt_at_every_level(name):
    asked = load_profile(name).evaluation.methods
    prompted = [method for method in METHODS.values() if method.prompt or method.request]
    levels = FACTS["ratios"][:-1]  # 1.0 asks for nothing
    assert {m.name: asked[m.name] for m in prompted} == {m.name: levels if m.level else [] for m in prompted}


def test_the_marker_is_that_of_the_authors_code():
    llama3 = SimpleNamespace(eos_token="<|eot_id|>")
    marker = FACTS["prompts"]["marker"]
    assert ratio_marker(llama3, 0.5, PromptSettings(format="reference_llama3")) == marker["llama"]
    assert ratio_marker(llama3, 0.5, PromptSettings(format="reference_qwen")) == marker["qwen"]


@pytest.fixture(scope="module")
def ledger() -> pd.DataFrame:
    return read_published()


@pytest.mark.parametrize("table", FACTS["rows"])
def test_the_papers_tables_are_whole_and_say_what_they_say(ledger, table):
    rows = ledger[ledger["source"] == f"TokenSkip paper (arXiv:2502.12067) {table}"]
    assert len(rows) == FACTS["rows"][table]
    assert rows["latency_seconds"].notna().sum() == FACTS["latencies"].get(table, 0)
    assert rows[["n", "accuracy", "chain_tokens", "actual_ratio"]].notna().all(axis=None)
    for *key, accuracy, tokens, actual, seconds in FACTS["figures"][table]:
        [row] = _find(rows, ["model", "trained_on", "tested_on", "method", "ratio"], key)
        assert (round(100 * row["accuracy"], 2), row["chain_tokens"], row["actual_ratio"]) == (accuracy, tokens, actual)
        assert row["latency_seconds"] == seconds or (seconds is None and pd.isna(row["latency_seconds"]))


def test_actual_ratios_are_as_printed_and_only_the_known_slips_differ_from_their_tokens(ledger):
    rows = ledger[ledger["actual_ratio"].notna()]
    original = rows[rows["method"] == "original"].drop_duplicates(["model", "tested_on"])
    whole = original.set_index(["model", "tested_on"])["chain_tokens"]
    lengths = whole.loc[list(zip(rows["model"], rows["tested_on"], strict=True))].to_numpy()
    computed = rows.assign(computed=rows["chain_tokens"] / lengths)
    # The printed ratios are rounded a hundredth off here and there.
    slips = computed[(computed["computed"] - computed["actual_ratio"]).abs() > 0.0135]
    shown = slips[["model", "tested_on", "ratio", "actual_ratio"]].to_numpy().tolist()
    assert shown == [slip[:4] for slip in FACTS["slips"]]
    assert slips["computed"].round(3).tolist() == [slip[4] for slip in FACTS["slips"]]


@pytest.mark.parametrize("fact", FACTS["others"])
def test_other_publications_are_in_the_ledger_and_say_where_they_come_from(ledger, fact):
    *key, accuracy, tokens = fact
    [row] = _find(ledger, ["publication", "model", "tested_on", "method", "ratio"], key)
    assert round(100 * row["accuracy"], 2) == pytest.approx(accuracy, abs=0.051)
    assert row["chain_tokens"] == pytest.approx(tokens, abs=0.51)
    assert "github.com/" in row["source"] or row["source"].endswith(" second-hand")


@pytest.mark.parametrize("fact", FACTS["changes"])
def test_changes_are_held_apart(root, fact):
    rows = pd.read_csv(root / "tokenskip_lib" / "evaluation" / "published_changes.csv", keep_default_na=False)
    tested_on, method, points, saved = fact
    found = rows[(rows["tested_on"] == tested_on) & (rows["method"] == method) & (rows["points"] == points)]
    assert found["tokens_saved_percent"].astype(str).tolist() == ["" if saved is None else str(saved)]
    assert rows["source"].str.contains("second-hand").all()
    assert published_changes("Qwen/Qwen2.5-7B-Instruct", "gsm8k")["points"].max() == -2.4
    assert published_changes("Qwen/Qwen2.5-14B-Instruct", "gsm8k").empty


def _find(rows: pd.DataFrame, columns: list[str], values: list) -> list[dict]:
    for column, value in zip(columns, values, strict=True):
        rows = rows[rows[column].isna() if value is None else rows[column] == value]
    return rows.to_dict("records")
