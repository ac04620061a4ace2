"""Stage 5: every method at every ratio answers the test problems, and the answers become metrics.csv.

The methods are answered in passes. A pass is one use of the model, with the TokenSkip adapter at one strength or
without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from tokenskip_lib.core.paths import resolve_path
from tokenskip_lib.core.profiles import Profile, nearest
from tokenskip_lib.core.records import FirstCall, InputError, Prediction, PredictionKey, Problem
from tokenskip_lib.core.store import RecordStore
from tokenskip_lib.evaluation.method import Known
from tokenskip_lib.evaluation.methods import METHODS, answer_budget, method_ratios
from tokenskip_lib.evaluation.metrics import compute_metrics
from tokenskip_lib.evaluation.predictions import call_first, predict_all
from tokenskip_lib.experiments.failures import note_failures, refuse_silence, without_answer
from tokenskip_lib.experiments.release import add_figures
from tokenskip_lib.experiments.run import Run, find_trained, writes
from tokenskip_lib.experiments.steps import FIRST_CALLS, METRICS, PREDICTIONS, TEST_PROBLEMS, TRAIN_PROBLEMS
from tokenskip_lib.inference.build import build_engine
from tokenskip_lib.models.loading import load_tokenizer
from tokenskip_lib.problems.sets import LoadedProblems, is_published, leave_out, load_problems, refuse_shared_questions


@dataclass(frozen=True)
class Pass:
    """Methods that one engine answers together.

    Attributes:
        name: shown on the progress bar.
        pairs: (method, level) of each.
        adapter: the TokenSkip adapter in the model; None for the target model alone.
        strength: how strong the adapter is.
        attached: whether the adapter stays beside the weights, for the methods that use it; else it is merged.
    """

    name: str
    pairs: list[tuple[str, float]]
    adapter: Path | str | None
    strength: float = 1.0
    attached: bool = False


@writes
def evaluate(run: Run) -> pd.DataFrame:
    """Stage 5: every method and ratio answers the test problems; returns metrics.csv and writes it.

    A problem with a request that a server did not answer is left out of the metrics of every method, and noted (see
    `experiments.failures`).

    Raises:
        InputError: an earlier stage is missing, a test problem was trained on, or a method got no answer at all.
    """
    profile = run.profile
    pairs = asked_levels(profile)
    test = _test_problems(run)
    adapter = find_trained(run) if any(METHODS[method].strength(level) for method, level in pairs) else None
    run.store(TEST_PROBLEMS, Problem).append(test.problems)
    failed: dict[tuple, str] = {}
    store = _answer(run, plan_passes(profile, pairs, adapter), test.problems, failed)
    note_failures(run, "evaluate", failed)
    metrics = compute_metrics(compared(run), scorer=profile.pruned_by, seed=profile.training_seed)
    run.write_result(metrics, METRICS)
    add_figures(run, load_tokenizer(profile.target), metrics)
    run.note("evaluate", predictions=len(store), problems=len(test.problems), dropped_problems=dict(test.dropped))
    if calls := list(run.store(FIRST_CALLS, FirstCall)):
        silent = sum(call.budget is None for call in calls)
        run.note("evaluate", first_calls=len(calls), first_calls_without_a_budget=silent)
    return metrics


def compared(run: Run) -> list[Prediction]:
    """The predictions of a run, without the problems that some method got no answer to from a server."""
    left_out = without_answer(run, "evaluate")
    return [prediction for prediction in run.store(PREDICTIONS, Prediction) if prediction.id not in left_out]


def asked_levels(profile: Profile) -> list[tuple[str, float]]:
    """The (method, level) of each evaluation that a profile asks for, as `method_ratios` gives them.

    Raises:
        InputError: as `method_ratios`; or a method scales the adapter, and a server answers.
    """
    pairs = method_ratios(profile.evaluation)
    scaled = [method for method, level in pairs if METHODS[method].strength(level) not in (0, 1)]
    if scaled and profile.server is not None:
        raise InputError(
            f"evaluation.methods.{scaled[0]}: a server has the adapter as it was trained, at strength 1; leave the "
            "other strengths out of evaluation.methods, or --set server=null"
        )
    return pairs


def plan_passes(profile: Profile, pairs: Sequence[tuple[str, float]], adapter: Path | str | None) -> list[Pass]:
    """The passes of an evaluation, in order.

    The target model alone comes first, then the adapter as it was trained, then its other strengths. If the adapter
    is attached, one model answers for the first two. Within each, a method that follows the original comes last.

    Args:
        pairs: (method, level) of each, as `method_ratios` gives them.
        adapter: the TokenSkip adapter, if a method uses it.
    """
    attached = profile.evaluation.attach and profile.server is None and adapter is not None
    others = sorted({METHODS[method].strength(level) for method, level in pairs} - {0.0, 1.0})
    models = [(0.0, 1.0)] if attached else [(0.0,), (1.0,)]
    passes = []
    for strengths in [*models, *((strength,) for strength in others)]:
        for follows in (False, True):
            mine = [
                (method, level)
                for method, level in pairs
                if METHODS[method].strength(level) in strengths and METHODS[method].follows_original == follows
            ]
            if mine:
                names = list(dict.fromkeys(method for method, _ in mine))
                label = names[0] if len(names) == 1 else f"{len(names)} methods"
                strength = strengths[-1]
                passes.append(Pass(label, mine, adapter if strength else None, strength, len(strengths) > 1))
    return passes


def earlier_problems(profile: Profile) -> list[Problem]:
    """The problems of the training that `training.start_from` goes on from, if its run's records are beside it."""
    if profile.training.start_from is None:
        return []
    return list(RecordStore(resolve_path(profile.training.start_from).parent / TRAIN_PROBLEMS, Problem))


def _test_problems(run: Run) -> LoadedProblems:
    """The problems to evaluate on, without any that was trained on."""
    profile = run.profile
    test = load_problems(profile, profile.evaluation.split)
    if profile.evaluation.split == "validation" and profile.problems.validation is not None:
        refuse_shared_questions(test.problems, load_problems(profile, "test").problems)
    # An adapter that was trained elsewhere met problems that are not here to compare with.
    if profile.evaluation.adapter is None:
        trained = run.need(TRAIN_PROBLEMS, Problem, "generate") + earlier_problems(profile)
        if is_published(profile.problems.test or profile.problems.train):
            test = leave_out(test, trained, "question that was trained on")
        refuse_shared_questions(trained, test.problems)
    return test


def _answer(
    run: Run, passes: Sequence[Pass], problems: Sequence[Problem], failed: dict[tuple, str]
) -> RecordStore[Prediction]:
    """Answer what the run does not have yet, pass by pass. Passes of one adapter and strength share an engine.

    A request that a server does not answer goes into `failed`. Its problem will be left out, so it is not asked again.
    """
    profile, tokenizer = run.profile, load_tokenizer(run.profile.target)
    store, first = run.store(PREDICTIONS, Prediction), run.store(FIRST_CALLS, FirstCall)
    if strange := next((prediction for prediction in store if prediction.method not in METHODS), None):
        raise InputError(
            f"{store.path}: problem '{strange.id}' was answered by '{strange.method}', which is no method"
            f"{nearest(strange.method, list(METHODS))}; mend or remove the line"
        )
    engine, loaded = None, None
    for step in passes:
        problems = _answerable(problems, failed)
        keys = [PredictionKey(problem.id, method, level) for problem in problems for method, level in step.pairs]
        if all(key in store for key in keys):
            continue
        if engine is None or loaded != (step.adapter, step.strength, step.attached):
            engine = None  # its memory is free before the next model is loaded
            engine = build_engine(
                profile,
                tokenizer,
                profile.evaluation.batch_size,
                adapter=step.adapter,
                strength=step.strength,
                attached=step.attached,
                failed=failed,
            )
            loaded = (step.adapter, step.strength, step.attached)
        for calls in call_first(
            engine,
            tokenizer,
            problems,
            profile.prompts,
            step.pairs,
            max_new_tokens=profile.evaluation.max_new_tokens,
            is_done=first.__contains__,
            label=f"{step.name}, first calls",
        ):
            first.append(calls)
        problems = _answerable(problems, failed)
        known = _known(profile, store)
        budgets = [answer_budget(profile.evaluation, *pair, known.original_tokens) for pair in step.pairs]
        for batch in predict_all(
            engine,
            tokenizer,
            problems,
            profile.prompts,
            [(*pair, budget) for pair, budget in zip(step.pairs, budgets, strict=True)],
            is_done=store.__contains__,
            label=step.name,
            attached=step.attached,
            known=known,
            first={call.key: call for call in first},
        ):
            store.append(batch)
        answered = {(prediction.method, prediction.ratio) for prediction in store}
        for method, level in step.pairs:
            refuse_silence(f"evaluate, {method} {level:g}", failed, answered=(method, level) in answered)
    return store


def _answerable(problems: Sequence[Problem], failed: dict[tuple, str]) -> list[Problem]:
    """The problems without a failed request."""
    lost = {key[0] for key in failed}
    return [problem for problem in problems if problem.id not in lost]


def _known(profile: Profile, store: RecordStore[Prediction]) -> Known:
    """What the methods of a run may know of its adapter and of the original's answers so far."""
    original = [prediction for prediction in store if prediction.method == "original"]
    return Known(
        smallest_ratio=min(profile.pruning.ratios),
        original_tokens=[prediction.chain_tokens for prediction in original],
        original_words=[len(prediction.chain.split()) for prediction in original],
    )
