"""A few questions at several ratios, answered by a run's model; chains that its adapter has not seen; and the one
problem that the notebooks follow from its chain to its answers at every ratio."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from tokenskip_lib.core.records import (
    Chain,
    ChainText,
    IdKey,
    InputError,
    Problem,
    PrunedChain,
    ScoredChain,
    ScoredKey,
    SFTRow,
)
from tokenskip_lib.evaluation.methods import answer_budget
from tokenskip_lib.evaluation.predictions import build_requests, predict_all
from tokenskip_lib.experiments.chains import graded_chain
from tokenskip_lib.experiments.run import Run, writes
from tokenskip_lib.experiments.steps import CHAINS, FOLLOWED, FOLLOWED_SCORES, SFT_ROWS
from tokenskip_lib.inference.build import build_engine
from tokenskip_lib.inference.engine import TransformersEngine
from tokenskip_lib.models.loading import TargetModel, load_model, load_tokenizer
from tokenskip_lib.models.tokens import token_counter
from tokenskip_lib.problems.sets import load_problems
from tokenskip_lib.pruning.registry import build_pruner, build_scorer
from tokenskip_lib.training.rows import build_sft_rows, own_tails


def ask_at_ratios(
    run: Run, asked: Sequence[Problem | ChainText], ratios: Sequence[float], *, adapter: Path | str | None
) -> pd.DataFrame:
    """Ask a few questions at several ratios each; nothing is written.

    Args:
        asked: problems, or chains with their question and answer.
        ratios: fractions of tokens kept, 0 < ratio <= 1.
        adapter: TokenSkip's; None for the target model without one.

    Returns:
        Columns id, ratio, chain_tokens, prediction, is_correct, output; rows in the order of `asked`, then of `ratios`.
    """
    problems = [Problem(id=item.id, question=item.question, answer=item.answer) for item in asked]
    profile, tokenizer = run.profile, load_tokenizer(run.profile.target)
    model = load_model(profile.target, adapter=adapter)
    engine = TransformersEngine(
        model, tokenizer, profile.evaluation.batch_size, batch_tokens=profile.target.batch_tokens
    )
    plan = [("tokenskip", ratio, answer_budget(profile.evaluation, "tokenskip", ratio)) for ratio in ratios]
    batches = predict_all(engine, tokenizer, problems, profile.prompts, plan, label="questions")
    columns = ["id", "ratio", "chain_tokens", "prediction", "is_correct", "output"]
    rows = [prediction.model_dump(include={*columns}) for batch in batches for prediction in batch]
    answers = pd.DataFrame(rows, columns=columns)
    order = [(problem.id, ratio) for problem in problems for ratio in ratios]
    return answers.set_index(["id", "ratio"]).loc[order].reset_index()[columns]


def untrained_chains(run: Run, size: int) -> list[Chain]:
    """The first kept chains whose problems the run's adapter was not trained on, at most `size`."""
    trained = {row.id for row in run.need(SFT_ROWS, SFTRow, "prune") if not row.held_out}
    kept = run.in_problem_order(chain for chain in run.need(CHAINS, Chain, "generate") if chain.dropped is None)
    return [chain for chain in kept if chain.id not in trained][:size]


@writes
def followed_chain(run: Run) -> Chain:
    """The target model's own answer to the first test problem, which the notebooks follow.

    No training row comes from a test problem. The answer is kept in 01_followed.jsonl.

    Raises:
        InputError: a server did not answer, or the answer has no chain of thought.
    """
    profile, store = run.profile, run.store(FOLLOWED, Chain)
    problem = load_problems(profile, "test").problems[0]
    if IdKey(problem.id) not in store:
        tokenizer = load_tokenizer(profile.target)
        failed: dict[tuple, str] = {}
        engine = build_engine(profile, tokenizer, 1, failed=failed)
        requests = build_requests(
            [problem],
            tokenizer,
            profile.prompts,
            method="original",
            ratio=1.0,
            max_new_tokens=profile.chains.max_new_tokens,
        )
        count = token_counter(tokenizer)
        for batch in engine.generate(requests, is_done=lambda _: False, label="our problem"):
            store.append(graded_chain(problem, generation, count, profile) for generation in batch)
        if failed:
            raise InputError(f"{store.path}: the server did not answer problem '{problem.id}'; run this again")
    chain = next(chain for chain in store if chain.id == problem.id)
    if not chain.chain:
        raise InputError(f"{store.path}: the answer to problem '{problem.id}' has no chain of thought to follow")
    return chain


@writes
def followed_scores(run: Run) -> dict[str, ScoredChain]:
    """The followed chain, scored by the run's scorer and by those it is compared with; kept in 02_followed.jsonl."""
    profile, store, chain = run.profile, run.store(FOLLOWED_SCORES, ScoredChain), followed_chain(run)
    names = list(dict.fromkeys([profile.importance.scorer, *profile.importance.compare_with]))
    target = TargetModel(profile.target, profile.prompts)
    for name in names:
        if ScoredKey(chain.id, name) not in store:
            store.append(build_scorer(name, target, profile.importance, seed=profile.seed).score([chain]))
    scored = {(kept.id, kept.scorer): kept for kept in store}
    return {name: scored[chain.id, name] for name in names}


def followed_pruned(run: Run) -> list[PrunedChain]:
    """The followed chain at every ratio of the profile, pruned as stage 3 prunes; ratios ascending.

    In mode `threshold` it has a threshold of its own: stage 3 gives the chains of a window one in common.
    """
    profile = run.profile
    chain = followed_chain(run) if profile.pruning.mode == "llmlingua" else followed_scores(run)[profile.pruned_by]
    prune_window = build_pruner(TargetModel(profile.target, profile.prompts), profile.pruning, profile.importance)
    return sorted(prune_window([chain]), key=lambda pruned: pruned.ratio)


def followed_rows(run: Run) -> list[SFTRow]:
    """The followed chain as training rows, one for each ratio, ratios ascending. No training has these rows."""
    profile, chain = run.profile, followed_chain(run)
    return build_sft_rows(
        followed_pruned(run),
        {chain.id: Problem(id=chain.id, question=chain.question, answer=chain.answer)},
        load_tokenizer(profile.target),
        profile.prompts,
        held_out=0,
        seed=profile.training_seed,
        tails=own_tails([chain]) if profile.prompts.layout == "think" else None,
    )
