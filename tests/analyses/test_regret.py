"""Regret, on a tiny random model: against the texts' own log-probabilities, and resumed."""

import pytest

from tokenskip_lib.analyses.regret import regret_table
from tokenskip_lib.core.records import Chain, DeletionCurve, Problem, ScoredChain
from tokenskip_lib.core.store import RecordStore
from tokenskip_lib.experiments import steps
from tokenskip_lib.experiments.run import Run
from tokenskip_lib.models.loading import TargetModel
from tokenskip_lib.models.tokens import batch_token_counter
from tokenskip_lib.pruning.prune import prune_many
from tokenskip_lib.pruning.registry import build_scorer

TEXTS = ["Tom has 3 + 4 = 7.", "60 - 8 = 52 pages", " ".join(str(n) for n in range(70))]
RATIOS = [0.5, 0.7]


@pytest.fixture
def run(tiny_profile, problems, chain_of) -> Run:
    compared = tiny_profile.importance.model_copy(update={"scorer": "position", "compare_with": ["random"]})
    run = Run.create(tiny_profile.model_copy(update={"importance": compared}))
    chains = [chain_of(problem, text) for problem, text in zip(problems, TEXTS, strict=False)]
    run.store(steps.TRAIN_PROBLEMS, Problem).append(problems[:3])
    run.store(steps.CHAINS, Chain).append(chains)
    for name in ("position", "random"):
        scorer = build_scorer(name, TargetModel(tiny_profile.target), tiny_profile.importance, seed=0)
        run.store(steps.SCORED, ScoredChain).append(scorer.score(chains))
    return run


def test_regret_is_the_oracles_log_probability_less_the_scorers(run):
    table = regret_table(run, 3)
    assert list(table["scorer"]) == ["position"] * 2 + ["random"] * 2 and list(table["ratio"]) == RATIOS * 2
    assert set(table["n"]) == {2} and run.state["stages"]["score"]["oracle_chains_too_long"] == 1
    target = TargetModel(run.profile.target, run.profile.prompts)
    measure = build_scorer("leave_one_out", target, run.profile.importance, seed=0)
    curves = {curve.id: curve for curve in RecordStore(run.folder / steps.ORACLE_CURVES, DeletionCurve)}
    chains = {c.id: c for c in run.store(steps.CHAINS, Chain) if c.id in curves}
    count, found = batch_token_counter(target.tokenizer), []
    for chain in run.store(steps.SCORED, ScoredChain):
        if chain.scorer == "position" and chain.id in curves:
            [pruned] = prune_many([chain], [0.5], count_tokens=count)
            own = measure.answer_log_probs(chains[chain.id], [pruned.text])[0]
            curve = curves[chain.id]
            lengths = count(curve.texts)
            best = max(v for v, n in zip(curve.answer_log_probs, lengths, strict=True) if n <= pruned.tokens)
            found.append(best - own)
    assert table["regret"][0] == pytest.approx(sum(found) / 2, abs=2e-3)
    assert (table["regret_low"] <= table["regret"]).all() and (table["regret"] <= table["regret_high"]).all()


def test_curves_that_are_there_are_not_made_again(run, monkeypatch):
    first = regret_table(run, 3)
    monkeypatch.setattr("tokenskip_lib.analyses.regret.greedy_deletion", lambda *_: pytest.fail("made again"))
    assert regret_table(run, 3).equals(first)


def test_where_every_chain_is_too_long_there_is_no_row_and_the_count_says_why(run):
    long = [chain for chain in run.store(steps.CHAINS, Chain) if chain.chain == TEXTS[2]]
    (run.folder / steps.SCORED).unlink()
    for name in ("position", "random"):
        scorer = build_scorer(name, TargetModel(run.profile.target), run.profile.importance, seed=0)
        run.store(steps.SCORED, ScoredChain).append(scorer.score(long))
    assert regret_table(run, 3).empty
    noted = run.state["stages"]["score"]
    assert (noted["oracle_chains"], noted["oracle_chains_too_long"]) == (0, 1)
