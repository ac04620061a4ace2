"""Who answers: the model in this process or a server, with the TokenSkip adapter that a run uses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from tokenskip_lib.core.records import Chain, Problem, SFTRow
from tokenskip_lib.evaluation.methods import answer_budget
from tokenskip_lib.evaluation.predictions import predict_all
from tokenskip_lib.experiments.run import Run
from tokenskip_lib.experiments.steps import CHAINS, SFT_ROWS
from tokenskip_lib.inference.engine import TransformersEngine
from tokenskip_lib.models.loading import load_model, load_tokenizer

if TYPE_CHECKING:
    pass


def ask_at_ratios(
    run: Run, problems: Sequence[Problem | Chain], ratios: Sequence[float], *, adapter: Path | str | None
) -> pd.DataFrame:
    """A few questions, each at several ratios; nothing is written.

    Args:
        problems: anything with id, question and answer.
        adapter: TokenSkip's, or None for the target model without one.

    Returns:
        Columns id, ratio, chain_tokens, prediction, is_correct, output: problems in their order, ratios in theirs.
    """
    profile, tokenizer = run.profile, load_tokenizer(run.profile.target)
    model = load_model(profile.target, adapter=adapter)
    engine = TransformersEngine(
        model, tokenizer, profile.evaluation.batch_size, batch_tokens=profile.target.batch_tokens
    )
    plan = [("tokenskip", ratio, answer_budget(profile.evaluation, "tokenskip", ratio)) for ratio in ratios]
    batches = predict_all(engine, tokenizer, problems, profile.prompts, plan, label="questions")
    columns = ["id", "ratio", "chain_tokens", "prediction", "is_correct", "output"]
    answers = [prediction.model_dump(include={*columns}) for batch in batches for prediction in batch]
    answers = pd.DataFrame(answers, columns=columns)
    order = [(problem.id, ratio) for problem in problems for ratio in ratios]
    return answers.set_index(["id", "ratio"]).loc[order].reset_index()[columns]


def untrained_chains(run: Run, size: int) -> list[Chain]:
    """The first kept chains whose problems the run's adapter was not trained on, `size` at most."""
    trained = {row.id for row in run.need(SFT_ROWS, SFTRow, "prune") if not row.held_out}
    kept = run.in_problem_order(chain for chain in run.need(CHAINS, Chain, "generate") if chain.dropped is None)
    return [chain for chain in kept if chain.id not in trained][:size]
