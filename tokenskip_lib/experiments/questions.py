"""A few questions at several ratios, answered by a run's model; and chains that its adapter has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from tokenskip_lib.core.records import Chain, ChainText, Problem, SFTRow
from tokenskip_lib.evaluation.methods import answer_budget
from tokenskip_lib.evaluation.predictions import predict_all
from tokenskip_lib.experiments.run import Run
from tokenskip_lib.experiments.steps import CHAINS, SFT_ROWS
from tokenskip_lib.inference.engine import TransformersEngine
from tokenskip_lib.models.loading import load_model, load_tokenizer


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
