"""Who answers: a few questions at several ratios, with or without an adapter, and which chains are unseen."""

import pytest

from tokenskip_lib.core.records import Chain, InputError, SFTRow
from tokenskip_lib.experiments.questions import ask_at_ratios, untrained_chains
from tokenskip_lib.experiments.run import Run, find_trained
from tokenskip_lib.experiments.steps import CHAINS, SFT_ROWS

RATIOS = [1.0, 0.5]


@pytest.fixture
def run(tiny_profile):
    return Run.create(tiny_profile)


def test_questions_are_asked_at_every_ratio_in_their_order(run, problems, make_adapter):
    table = ask_at_ratios(run, problems[:3], RATIOS, adapter=None)
    assert list(table.columns) == ["id", "ratio", "chain_tokens", "prediction", "is_correct", "output"]
    assert list(zip(table["id"], table["ratio"], strict=True)) == [(p.id, r) for p in problems[:3] for r in RATIOS]
    assert table["output"].nunique() > 3
    adapted = ask_at_ratios(run, problems[:3], RATIOS, adapter=make_adapter(1))
    assert list(adapted["id"]) == list(table["id"]) and list(adapted["output"]) != list(table["output"])


def test_chains_are_asked_as_their_problems_are(run, problems, chain_of):
    chains = [chain_of(problem) for problem in problems[:2]]
    by_chain = ask_at_ratios(run, chains, RATIOS, adapter=None)
    assert by_chain.equals(ask_at_ratios(run, problems[:2], RATIOS, adapter=None))


def test_the_profiles_adapter_comes_before_the_runs_own(run):
    with pytest.raises(InputError, match="tokenskip_lib train"):
        find_trained(run)
    evaluation = run.profile.evaluation.model_copy(update={"adapter": "some/adapter"})
    assert find_trained(Run.create(run.profile.model_copy(update={"evaluation": evaluation}))) == "some/adapter"


def test_unseen_chains_are_kept_ones_that_no_trained_row_is_of(run, problems, chain_of):
    run.store(CHAINS, Chain).append([chain_of(p, dropped="wrong" if p.id == "p3" else None) for p in problems])
    rows = [SFTRow(id=f"p{n}", ratio=0.5, prompt="", completion="", held_out=n == 1) for n in (0, 1)]
    run.store(SFT_ROWS, SFTRow).append(rows)
    assert [chain.id for chain in untrained_chains(run, 9)] == ["p1", "p2", "p4"]
    assert [chain.id for chain in untrained_chains(run, 2)] == ["p1", "p2"]
