"""The five stages: records in, records out, in a run's folder.

Each function does what is not done yet, writes as it goes, and returns what its notebook shows.
Notebooks, the command line and any launcher call the same functions.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

from tokenskip_lib.core.executor import Work
from tokenskip_lib.core.paths import relative
from tokenskip_lib.core.processes import processes, rank
from tokenskip_lib.core.profiles import Profile
from tokenskip_lib.core.records import (
    Chain,
    IdKey,
    InputError,
    PredictionKey,
    Problem,
    PrunedChain,
    PrunedKey,
    Record,
    ScoredChain,
    ScoredKey,
    SFTRow,
    pruned_keys,
)
from tokenskip_lib.core.settings import ImportanceSettings
from tokenskip_lib.core.store import read_json, write_whole
from tokenskip_lib.core.windows import write_windows
from tokenskip_lib.evaluation.exact_importance import EXACT
from tokenskip_lib.evaluation.predictions import build_requests
from tokenskip_lib.experiments.chains import graded_chain, kept_chains, scored_chains
from tokenskip_lib.experiments.evaluate import asked_levels, earlier_problems, evaluate
from tokenskip_lib.experiments.failures import (
    LEFT_OUT,
    PROBLEMS_WITHOUT_ANSWER,
    note_failures,
    note_lost,
    refuse_silence,
)
from tokenskip_lib.experiments.release import adapter_card
from tokenskip_lib.experiments.run import Run, writes
from tokenskip_lib.experiments.steps import (
    ADAPTER,
    CHAINS,
    PRUNED,
    SCORED,
    SFT_ROWS,
    STAGES,
    TRAIN_PROBLEMS,
)
from tokenskip_lib.inference.build import build_engine
from tokenskip_lib.models.adapters import is_local
from tokenskip_lib.models.loading import TargetModel, load_tokenizer
from tokenskip_lib.models.tokens import token_counter
from tokenskip_lib.problems.sets import load_problems, refuse_shared_questions
from tokenskip_lib.pruning.registry import build_pruner, build_scorer, check_scorers, find_scorer
from tokenskip_lib.training.export import export_rows
from tokenskip_lib.training.lora import train_adapter
from tokenskip_lib.training.rows import build_sft_rows, choose_chains, own_tails
from tokenskip_lib.training.start import check_start, model_to_train

if TYPE_CHECKING:
    from tokenskip_lib.pruning.deletion import LeaveOneOutRestScorer


def check_names(profile: Profile) -> None:
    """Raise InputError for a method, scorer or adapter that is not there or cannot be used, before any stage runs."""
    for adapter in (profile.target.adapter, profile.evaluation.adapter):
        if adapter is not None:
            is_local(adapter)
    asked_levels(profile)
    check_scorers([profile.importance.scorer, *profile.importance.compare_with])


@writes
def generate(run: Run) -> list[Chain]:
    """Stage 1: the target model answers the training problems; every answer is graded.

    Writes 01_train_problems.jsonl and 01_chains.jsonl; a chain's `dropped` says why it is not used. A request that a
    server did not answer is noted (see `experiments.failures`), and its problem has no chain.
    """
    profile = run.profile
    train, test = load_problems(profile, "train"), load_problems(profile, "test")
    refuse_shared_questions(train.problems + earlier_problems(profile), test.problems)
    if not (run.folder / ADAPTER / "summary.json").exists():
        check_start(profile.training, profile.prompts)  # at once, and not after hours of answering
    store = run.store(CHAINS, Chain)
    problems = {problem.id: problem for problem in train.problems}
    failed: dict[tuple, str] = {}
    if not all(IdKey(problem_id) in store for problem_id in problems):
        tokenizer = load_tokenizer(profile.target)
        count = token_counter(tokenizer)
        engine = build_engine(profile, tokenizer, profile.chains.batch_size, failed=failed)
        requests = build_requests(
            train.problems,
            tokenizer,
            profile.prompts,
            method="original",
            ratio=1.0,
            max_new_tokens=profile.chains.max_new_tokens,
        )
        run.store(TRAIN_PROBLEMS, Problem).append(train.problems)

        def is_done(key: tuple) -> bool:
            return IdKey(cast(PredictionKey, key).id) in store

        for batch in engine.generate(requests, is_done=is_done, label="chains of thought"):
            store.append(graded_chain(problems[cast(PredictionKey, g.key).id], g, count, profile) for g in batch)
    chains = list(store)
    refuse_silence("generate", failed, answered=bool(chains))
    run.note(
        "generate",
        chains=len(chains),
        kept=sum(chain.dropped is None for chain in chains),
        dropped_chains=dict(Counter(chain.dropped for chain in chains if chain.dropped)),
        dropped_problems=dict(train.dropped),
    )
    note_failures(run, "generate", failed)
    return chains


@writes
def score(run: Run) -> list[ScoredChain]:
    """Stage 2: importance of every kept chain by the profile's scorer and those it is compared with."""
    profile = run.profile
    chains = kept_chains(run)
    compared = dict.fromkeys(profile.importance.compare_with, chains[: profile.importance.compare_size])
    scored_by = {**compared, profile.importance.scorer: chains}
    names = list(dict.fromkeys([profile.importance.scorer, *compared]))
    target = TargetModel(profile.target, profile.prompts)
    store, lost = run.store(SCORED, ScoredChain), dict[str, str]()
    for group in _scored_together(scored_by, names):
        todo, keys_of = scored_by[group[0]], partial(_scored_keys, group)
        if all(key in store for chain in todo for key in keys_of(chain)):
            continue
        build = partial(_build_scoring, group, target, profile.importance, profile.seed)
        label = f"importance: {' and '.join(group)}"
        where, size = profile.execution, find_scorer(group[0]).window
        lost |= write_windows(todo, store, build, keys_of, execution=where, total=len(todo), label=label, size=size)
    run.note("score", chains=len(chains), scorers=names)
    note_lost(run, "score", lost)
    return list(store)


def _scored_together(scored_by: Mapping[str, Sequence[Chain]], names: Sequence[str]) -> list[tuple[str, ...]]:
    """The scorers one by one; only the two measurements share their forward passes, if they score the same chains."""
    shared = set(EXACT) <= set(names) and scored_by[EXACT[0]] == scored_by[EXACT[1]]
    groups = [EXACT if shared and name in EXACT else (name,) for name in names]
    return list(dict.fromkeys(groups))


def _build_scoring(
    group: tuple[str, ...], target: TargetModel, importance: ImportanceSettings, seed: int
) -> Work[Chain, ScoredChain]:
    scorer = build_scorer(group[-1], target, importance, seed=seed)
    return cast("LeaveOneOutRestScorer", scorer).score_both if len(group) > 1 else scorer.score


@writes
def prune(run: Run) -> list[SFTRow]:
    """Stage 3: every scored chain at every ratio, and the training rows: one a problem at a drawn ratio, or all."""
    profile = run.profile
    chains = kept_chains(run) if profile.pruning.mode == "llmlingua" else scored_chains(run)
    target = TargetModel(profile.target, profile.prompts)
    lost = _prune_chains(run, target, chains)
    pruned = run.store(PRUNED, PrunedChain)
    rows = _training_rows(run, target, list(pruned), [chain.id for chain in chains])
    _write_rows(run, rows)
    run.note("prune", pruned=len(pruned), sft_rows=len(rows), held_out=sum(row.held_out for row in rows))
    note_lost(run, "prune", lost)
    if cut := {chain.id: chain.tokens_cut for chain in pruned if chain.tokens_cut}:
        run.note("prune", tokens_cut_by_llmlingua=cut)
    return rows


def _prune_chains(run: Run, target: TargetModel, chains: Sequence[Chain] | Sequence[ScoredChain]) -> dict[str, str]:
    """Write every chain at every ratio that is not there already. Returns the chains that are left out, and why."""
    profile, store = run.profile, run.store(PRUNED, PrunedChain)

    def keys_of(chain: Record) -> list[PrunedKey]:
        return pruned_keys(chain, profile.pruned_by, profile.pruning.ratios)

    missing = {chain.id for chain in chains if any(key not in store for key in keys_of(chain))}
    if not missing:
        return {}
    if profile.pruning.mode == "threshold" and run.has_noted("prune"):
        lost = run.state["stages"]["prune"].get(LEFT_OUT, {})
        if missing <= set(lost):  # the others share a threshold without them
            return dict(lost)
        raise InputError(
            f"{run.folder / PRUNED}: there are more chains than were pruned, and in mode threshold chains share a "
            "threshold; `run --from 03` prunes all of them anew"
        )
    build = partial(build_pruner, target, profile.pruning, profile.importance)
    where = profile.execution
    return write_windows(chains, store, build, keys_of, execution=where, total=len(chains), label="pruning")


def _write_rows(run: Run, rows: Sequence[SFTRow]) -> None:
    """Write the training rows, in place of those there may be: with more chains, all ratios are drawn anew.

    Raises:
        InputError: an adapter was trained on other rows.
    """
    path = run.folder / SFT_ROWS
    if path.exists() and list(run.store(SFT_ROWS, SFTRow)) == rows:
        return
    if (run.folder / ADAPTER).exists():
        raise InputError(
            f"{path}: the adapter was trained on these rows, and they would be others now; `run --from 03` prunes and "
            "trains anew"
        )
    write_whole(path, "".join(row.model_dump_json() + "\n" for row in rows).encode())


def _training_rows(run: Run, target: TargetModel, pruned: list[PrunedChain], ids: list[str]) -> list[SFTRow]:
    """The training rows of pruned chains; `ids` are those of the chains, in the order that ratios are drawn in."""
    profile = run.profile
    chosen = choose_chains(
        run.in_problem_order(pruned), ids, profile.pruning.ratios, profile.training, seed=profile.training_seed
    )
    return build_sft_rows(
        chosen,
        {problem.id: problem for problem in run.need(TRAIN_PROBLEMS, Problem, "generate")},
        target.tokenizer,
        profile.prompts,
        held_out=profile.training.held_out,
        seed=profile.training_seed,
        tails=own_tails(run.need(CHAINS, Chain, "generate")) if profile.prompts.layout == "think" else None,
    )


def export(run: Run, style: str, folder: Path) -> list[Path]:
    """The training rows of stage 3 for another trainer; see training.export.export_rows."""
    rows = run.need(SFT_ROWS, SFTRow, "prune")
    problems = {problem.id: problem for problem in run.need(TRAIN_PROBLEMS, Problem, "generate")}
    return export_rows(rows, problems, load_tokenizer(run.profile.target), run.profile.prompts, style, folder)


@writes
def train(run: Run) -> dict:
    """Stage 4: the TokenSkip adapter, from the mixed-ratio rows; returns the training's summary."""
    profile = run.profile
    rows = run.need(SFT_ROWS, SFTRow, "prune")
    folder = run.folder / ADAPTER
    if not (folder / "summary.json").exists():
        tokenizer = load_tokenizer(profile.target)
        train_adapter(
            model_to_train(profile.target, profile.training),
            tokenizer,
            rows,
            profile.training,
            folder,
            base_name=profile.target.model,
            seed=profile.training_seed,
            target=profile.target.adapter,
            prompts=profile.prompts,
            card=partial(adapter_card, profile, tokenizer),
        )
    summary = read_json(folder / "summary.json", advice="put it back, or `run --from 04` redoes it")
    run.note("train", **summary)
    return summary


# In the order of STAGES.
STAGE_FUNCTIONS: dict[str, Callable[[Run], object]] = dict(
    zip(STAGES, (generate, score, prune, train, evaluate), strict=True)
)


def run_stage(profile: Profile, name: str) -> str:
    """Run one stage of a profile, and return the line that says what it noted; "" from any process but the first.

    Raises:
        InputError: several processes run a stage that one must run, or what the stage itself refuses.
    """
    if processes() > 1 and name != "train":
        raise InputError(f"{name} runs in one process; for several GPUs see docs/scale-out.md")
    check_names(profile)
    run = Run.create(profile)
    STAGE_FUNCTIONS[name](run)
    if name == "generate":
        kept_chains(run)  # without any there is no next stage
    if rank() != 0:
        return ""
    details = ("finished_by", PROBLEMS_WITHOUT_ANSWER, LEFT_OUT)
    counts = {key: value for key, value in run.state["stages"][name].items() if key not in details}
    return f"{relative(run.folder)}: {json.dumps(counts, ensure_ascii=False)}"


def _scored_keys(scorers: Sequence[str], chain: Record) -> list[ScoredKey]:
    return [ScoredKey(chain.id, scorer) for scorer in scorers]
