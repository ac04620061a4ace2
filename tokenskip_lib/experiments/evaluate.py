"""Stage 5: every method at every ratio answers the test problems, and the answers become metrics.csv.

The methods are answered in passes. A pass is one use of the model, with or without the TokenSkip adapter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from tokenskip_lib.core.profiles import Profile
from tokenskip_lib.core.records import Prediction, PredictionKey, Problem
from tokenskip_lib.core.store import RecordStore
from tokenskip_lib.evaluation.methods import METHODS, answer_budget, method_ratios
from tokenskip_lib.evaluation.metrics import compute_metrics
from tokenskip_lib.evaluation.predictions import predict_all
from tokenskip_lib.experiments.run import Run, find_trained
from tokenskip_lib.experiments.steps import METRICS, PREDICTIONS, TEST_PROBLEMS, TRAIN_PROBLEMS
from tokenskip_lib.inference.build import build_engine
from tokenskip_lib.models.loading import load_tokenizer
from tokenskip_lib.problems.sets import LoadedProblems, is_published, leave_out, load_problems, refuse_shared_questions


@dataclass(frozen=True)
class Pass:
    """Methods that one engine answers together.

    Attributes:
        name: shown on the progress bar.
        pairs: (method, ratio) of each.
        adapter: the TokenSkip adapter in the model; None for the target model alone.
        attached: whether the adapter stays beside the weights, for the methods that use it; else it is merged.
    """

    name: str
    pairs: list[tuple[str, float]]
    adapter: Path | str | None
    attached: bool = False


def evaluate(run: Run) -> pd.DataFrame:
    """Stage 5: every method and ratio answers the test problems; returns metrics.csv and writes it.

    Raises:
        InputError: an earlier stage is missing, or a test problem was trained on.
    """
    profile = run.profile
    pairs = method_ratios(profile.evaluation)
    test = _test_problems(run)
    adapter = find_trained(run) if any(METHODS[method].uses_adapter for method, _ in pairs) else None
    run.store(TEST_PROBLEMS, Problem).append(test.problems)
    store = run.store(PREDICTIONS, Prediction)
    _answer(profile, plan_passes(profile, pairs, adapter), test.problems, store)
    metrics = compute_metrics(store, scorer=profile.pruned_by, seed=profile.training_seed)
    run.write_result(metrics, METRICS)
    run.note("evaluate", predictions=len(store), problems=len(test.problems), dropped_problems=dict(test.dropped))
    return metrics


def plan_passes(profile: Profile, pairs: Sequence[tuple[str, float]], adapter: Path | str | None) -> list[Pass]:
    """The passes of an evaluation, in order.

    The target model alone comes before the adapter. If the adapter is attached, one model answers for both.
    Within each, a method whose budget follows from the original's answers comes last.

    Args:
        pairs: (method, ratio) of each, as `method_ratios` gives them.
        adapter: the TokenSkip adapter, if a method uses it.
    """
    attached = profile.evaluation.attach and profile.server is None and adapter is not None
    uses = [(adapter, (False, True))] if attached else [(None, (False,)), (adapter, (True,))]
    passes = []
    for folder, adapted in uses:
        for follows in (False, True):
            mine = [
                (method, ratio)
                for method, ratio in pairs
                if METHODS[method].uses_adapter in adapted and METHODS[method].follows_original == follows
            ]
            if mine:
                names = list(dict.fromkeys(method for method, _ in mine))
                label = names[0] if len(names) == 1 else "the target model"
                passes.append(Pass(label, mine, folder, attached))
    return passes


def _test_problems(run: Run) -> LoadedProblems:
    """The problems to evaluate on, without any that was trained on."""
    profile = run.profile
    test = load_problems(profile, profile.evaluation.split)
    if profile.evaluation.split == "validation" and profile.problems.validation is not None:
        refuse_shared_questions(test.problems, load_problems(profile, "test").problems)
    # An adapter that was trained elsewhere met problems that are not here to compare with.
    if profile.evaluation.adapter is None:
        trained = run.need(TRAIN_PROBLEMS, Problem, "generate")
        if is_published(profile.problems.test or profile.problems.train):
            test = leave_out(test, trained, "question that was trained on")
        refuse_shared_questions(trained, test.problems)
    return test


def _answer(
    profile: Profile, passes: Sequence[Pass], problems: Sequence[Problem], store: RecordStore[Prediction]
) -> None:
    """Answer what the store does not have yet, pass by pass. Passes of one adapter share an engine."""
    tokenizer = load_tokenizer(profile.target)
    engine, loaded = None, None
    for step in passes:
        keys = [PredictionKey(problem.id, method, ratio) for problem in problems for method, ratio in step.pairs]
        if all(key in store for key in keys):
            continue
        if engine is None or loaded != step.adapter:
            engine = None  # its memory is free before the next model is loaded
            engine = build_engine(profile, tokenizer, profile.evaluation.batch_size, adapter=step.adapter)
            loaded = step.adapter
        original_tokens = [p.chain_tokens for p in store if p.method == "original"]
        plan = [(m, r, answer_budget(profile.evaluation, m, r, original_tokens)) for m, r in step.pairs]
        for batch in predict_all(
            engine,
            tokenizer,
            problems,
            profile.prompts,
            plan,
            is_done=store.__contains__,
            label=step.name,
            attached=step.attached,
        ):
            store.append(batch)
