"""Who answers: a few questions at several ratios, with or without an adapter, and which chains are unseen."""

import pytest

from tokenskip_lib.core.records import Chain, InputError, SFTRow
from tokenskip_lib.experiments.questions import (
    ask_at_ratios,
    followed_chain,
    followed_pruned,
    followed_rows,
    followed_scores,
    untrained_chains,
)
from tokenskip_lib.experiments.run import Run, find_trained, open_run
from tokenskip_lib.experiments.steps import CHAINS, FOLLOWED, FOLLOWED_SCORES, PRUNED, SFT_ROWS
from tokenskip_lib.problems.sets import load_problems

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


def test_the_followed_problem_is_answered_and_scored_once_and_is_no_training_problem(run):
    chain = followed_chain(run)
    assert chain.id == load_problems(run.profile, "test").problems[0].id
    assert chain.id not in {problem.id for problem in load_problems(run.profile, "train").problems}
    scores = followed_scores(run)
    assert list(scores) == list(dict.fromkeys([run.profile.importance.scorer, *run.profile.importance.compare_with]))
    assert {scored.text for scored in scores.values()} == {chain.chain}
    files = [run.folder / name for name in (FOLLOWED, FOLLOWED_SCORES)]
    before = [file.read_bytes() for file in files]
    assert followed_chain(run) == chain and followed_scores(run) == scores
    assert [file.read_bytes() for file in files] == before
    pruned, rows = followed_pruned(run), followed_rows(run)
    assert [chain.ratio for chain in pruned] == [row.ratio for row in rows] == sorted(run.profile.pruning.ratios)
    assert pruned[-1].text == chain.chain and all(row.id == chain.id and not row.held_out for row in rows)
    assert all(row.completion.startswith(chain.text) for row, chain in zip(rows, pruned, strict=True))


def test_opening_a_run_says_what_it_is_made_with(run, tmp_path, capsys):
    opened = open_run("smoke", {"run_dir": str(tmp_path / "smoke")})
    said = capsys.readouterr().out
    assert opened.profile.name == "smoke" and "profile smoke, seed 0" in said and "torch" in said and "SmolLM2" in said


def test_a_notebook_redoes_stages_with_the_line_that_opens_its_run(tmp_path):
    overrides = {"run_dir": str(tmp_path / "run")}
    written = open_run("smoke", overrides).folder / PRUNED
    written.write_text("{}\n")
    with pytest.raises(InputError, match="--from 03") as refused:
        open_run("smoke", {**overrides, "pruning.keep_digits": True})
    assert "`open_run(PROFILE, OVERRIDES, redo_from=3)`" in refused.value._render_traceback_()[0]
    open_run("smoke", {**overrides, "pruning.keep_digits": True}, redo_from=3)
    assert not written.exists()
