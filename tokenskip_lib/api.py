"""The library in five functions: load a model, score chains, prune them, train an adapter, generate.

Each function is a few lines around the functions that the command line and the notebooks call, so
all three give the same results. Paths are of the working directory.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenskip_lib.core.inputs import Given, changed, given_ratios, rows_of
from tokenskip_lib.core.paths import local_folder
from tokenskip_lib.core.profiles import is_how, load_profile, names_profile
from tokenskip_lib.core.records import ChainText, InputError, PredictionKey, ScoredChain
from tokenskip_lib.core.settings import (
    ImportanceSettings,
    PromptSettings,
    PruningSettings,
    TargetSettings,
    TrainingSettings,
)
from tokenskip_lib.core.windows import windows
from tokenskip_lib.evaluation.answers import Answers, to_answer
from tokenskip_lib.pruning.results import PrunedChains, ScoredChains
from tokenskip_lib.training.adapter import Adapter, open_training

if TYPE_CHECKING:
    from tokenskip_lib.evaluation.methods import Method
    from tokenskip_lib.models.loading import TargetModel
    from tokenskip_lib.pruning.controls import ScoreFunction, Scorer


def load(source: str | os.PathLike[str], *, prompts: PromptSettings | None = None, **settings: Any) -> TargetModel:
    """Find a target model. Its weights are loaded when a function first needs them.

    Args:
        source: a name on the Hugging Face hub, a folder, or the name (or YAML file) of a profile. A profile
            gives its target model with the profile's adapter and prompts.
        prompts: how the model is asked. The default is the model's own chat template.
        settings: fields of `TargetSettings`, for example device="cuda", dtype="bfloat16" or adapter="FOLDER".

    Raises:
        InputError: the model or its adapter is not there, or a setting is unknown.
    """
    from tokenskip_lib.models.adapters import find_adapter
    from tokenskip_lib.models.loading import TargetModel

    name = os.fspath(source)
    if names_profile(name):
        profile = load_profile(name)
        target, prompts = profile.target, prompts or profile.prompts
    else:
        target = TargetSettings(model=local_folder(name))
    if settings.get("adapter") is not None:
        settings["adapter"] = local_folder(os.fspath(settings["adapter"]))
    model = TargetModel(changed(target, settings, "load"), prompts or PromptSettings())
    if model.settings.adapter is not None:
        find_adapter(model.settings.adapter)
    _ = model.tokenizer  # a name that does not exist is refused here, not at the first use
    return model


def score(
    chains: Given,
    model: TargetModel,
    *,
    scorer: str | ScoreFunction = "selective_context",
    seed: int = 0,
    **settings: Any,
) -> ScoredChains:
    """Give every word, number and symbol of chains of thought an importance score.

    Args:
        chains: texts; dicts or DataFrame rows with `chain` (or a model's whole `output`, which is split by the
            model's `prompts.layout`), and with `id`, `question` and `answer` where known; or records. Training needs
            question and answer, and so do the scorers that read them; of bare texts `selective_context` scores the
            chain without its question.
        model: the target model, from `load`.
        scorer: a scorer's name (`tokenskip score --help` lists them), your own as "mypackage.module:function",
            or a function: chains -> one list of scores a chain, one score for each span of `segment(chain.chain)`.
        seed: of the scorer `random`.
        settings: fields of `ImportanceSettings`, for example whole_latex=True or classifier="FOLDER".

    Returns:
        One ScoredChain a chain, in order: text, spans (character positions) and importance (higher is kept).

    Raises:
        InputError: no chain, an unknown scorer, or a chain that is empty or lacks what the scorer reads.
    """
    from tqdm.auto import tqdm

    from tokenskip_lib.pruning.controls import FunctionScorer
    from tokenskip_lib.pruning.own_rows import given_chains
    from tokenskip_lib.pruning.registry import build_scorer, find_scorer
    from tokenskip_lib.pruning.spans import segment

    if settings.get("classifier") is not None:
        settings["classifier"] = local_folder(os.fspath(settings["classifier"]))
    importance = changed(ImportanceSettings(), settings, "score")
    reads = find_scorer(scorer).reads if isinstance(scorer, str) else ()
    given = given_chains(chains, reads, model.prompts.layout, model.prompts.answer_phrases)
    built: Scorer
    if isinstance(scorer, str):
        built = build_scorer(scorer, model, importance, seed=seed)
    else:
        name = getattr(scorer, "__name__", type(scorer).__name__)
        built = FunctionScorer(name, scorer, segmenter=partial(segment, whole_latex=importance.whole_latex))
    scored: list[ScoredChain] = []
    with tqdm(total=len(given), unit="chain", desc=f"importance: {built.name}") as bar:
        for window in windows(given):
            scored += built.score(window)
            bar.update(len(window))
    return ScoredChains(scored, {chain.id: chain for chain in given})


def prune(
    scored: ScoredChains | Iterable[ScoredChain],
    *,
    model: TargetModel,
    ratios: float | Sequence[float] = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
    **keep: Any,
) -> PrunedChains:
    """Keep the most important part of every chain, at every ratio, in the original order.

    Args:
        scored: what `score` returned.
        model: the target model; the ratio is a fraction of its tokens.
        ratios: fractions of the tokens that stay, each above 0 and at most 1; in any order.
        keep: fields of `PruningSettings`, all off by default; docs/own-chains.md explains each. For example
            keep_digits=True: every number stays, and a chain may become longer than its ratio asks. mode="steps"
            keeps whole steps, mode="threshold" what is above one score in all chains.

    Returns:
        One PrunedChain for each chain and ratio, ratios ascending: text, kept (indices of spans), tokens,
        actual_ratio; and output, for a chain that came in a whole output.

    Raises:
        InputError: a ratio outside (0, 1], no ratio, an unknown setting, no chain, chains without scores, or two with
            one id.
    """
    from tqdm.auto import tqdm

    from tokenskip_lib.pruning.own_rows import in_outputs
    from tokenskip_lib.pruning.registry import build_pruner

    settings = changed(PruningSettings(ratios=sorted(given_ratios(ratios, "prune"))), keep, "prune")
    if settings.mode == "llmlingua":
        raise InputError("prune: mode llmlingua scores by itself; use `tokenskip prune CHAINS.jsonl`")
    if not isinstance(scored, ScoredChains):
        scored = list(scored)
        if not all(isinstance(chain, ScoredChain) for chain in scored):
            raise InputError("prune takes what `score` returned: chains with an importance for every span")
        scored = ScoredChains(scored)
    if not scored:
        raise InputError("prune: there are no chains; give at least one")
    prune_window = build_pruner(model, settings, ImportanceSettings())
    pruned = []
    with tqdm(total=len(scored), unit="chain", desc="pruning") as bar:
        for window in windows(scored):
            pruned += in_outputs(prune_window(window), scored.chains)
            bar.update(len(window))
    return PrunedChains(pruned, scored)


def train(pruned: PrunedChains, model: TargetModel, folder: str | os.PathLike[str], **recipe: Any) -> Adapter:
    """Train a LoRA adapter that reads the ratio, on rows of mixed ratios.

    A row is a question with a ratio's marker, then the chain pruned at that ratio and its answer. A training that
    was killed continues at its last checkpoint; one that has ended is not repeated. The weights are loaded
    anew, so that `model` stays as it is.

    Args:
        pruned: what `prune` returned. Every chain needs its question and answer.
        model: the target model.
        folder: receives the adapter, training_log.jsonl, settings.json and summary.json.
        recipe: fields of `TrainingSettings`; the defaults are the paper's recipe. For example epochs=1, or
            ratios_a_problem="all" for a row at every ratio in place of one at a drawn ratio.

    Returns:
        The adapter: `os.fspath` gives its folder, `summary` its rows, steps, losses and seconds.

    Raises:
        InputError: a chain without question or answer, an unknown setting, or a folder that holds another training.

    Source: TokenSkip (arXiv:2502.12067), section 3.3.
    """
    from tokenskip_lib.models.loading import weights_note
    from tokenskip_lib.training.card import model_card
    from tokenskip_lib.training.lora import train_adapter
    from tokenskip_lib.training.rows import own_rows
    from tokenskip_lib.training.start import model_to_train

    if recipe.get("start_from") is not None:
        recipe["start_from"] = local_folder(os.fspath(recipe["start_from"]))
    settings, folder = changed(TrainingSettings(), recipe, "train"), Path(folder).expanduser()
    seed = settings.seed or 0
    chains = [_trainable(pruned, chain_id) for chain_id in dict.fromkeys(chain.id for chain in pruned)]
    rows = own_rows(chains, pruned, model.tokenizer, model.prompts, settings, seed=seed)
    made_with = {
        "model": model.settings.model,
        "adapter": model.settings.adapter,
        **{name: value for name, value in settings.model_dump().items() if not is_how(f"training.{name}")},
        "seed": seed,
        "rows_sha256": hashlib.sha256("".join(row.model_dump_json() for row in rows).encode()).hexdigest(),
    }
    done = open_training(folder, made_with)
    if done is not None:
        return done
    pruned_by = ", ".join(f"`{name}`" for name in sorted({chain.scorer for chain in pruned}))
    summary = train_adapter(
        model_to_train(model.settings, settings),
        model.tokenizer,
        rows,
        settings,
        folder,
        base_name=model.settings.model,
        seed=seed,
        target=model.settings.adapter,
        prompts=model.prompts,
        card=partial(
            model_card,
            model.settings.model,
            model.tokenizer,
            model.prompts,
            data=f"The rows are {len(chains):,} chains of thought, pruned by the scores of {pruned_by}.",
            ratios=sorted({chain.ratio for chain in pruned}),
            weights=weights_note(model.settings.model),
        ),
    )
    return Adapter(folder, summary)


def generate(
    questions: Given,
    model: TargetModel,
    *,
    adapter: str | os.PathLike[str] | None = None,
    ratio: float | Sequence[float] = 1.0,
    method: str | Method | None = None,
    max_new_tokens: int = 512,
    batch_size: int = 16,
) -> Answers:
    """Let the model answer questions, with its chain of thought at a ratio. Decoding is greedy.

    Args:
        questions: texts; dicts or DataFrame rows with `question`, and with `id` and `answer` (the gold answer)
            where known; or Problem records.
        model: the target model.
        adapter: what `train` returned, a folder or a hub name.
        ratio: the fraction of the chain to keep, one or several; 1.0 asks for the whole chain.
        method: how the model is asked. The default is "tokenskip" with an adapter and "original" without; the
            prompt-only baselines, such as "be_concise", take no adapter. Your own is a `Method`, or the name
            "mypackage.module:METHOD" of one.
        max_new_tokens: the most tokens an answer may have; `cut_off` tells which answers needed more.
        batch_size: questions decoded together.

    Returns:
        One Answer for each question and ratio: text, chain, answer, tokens, and is_correct where the gold answer
        is known.

    Raises:
        InputError: no question, one without text, no such adapter or method, a ratio outside (0, 1] or for a
            method that takes none.
    """
    from tokenskip_lib.evaluation.predictions import predict_all
    from tokenskip_lib.inference.engine import TransformersEngine
    from tokenskip_lib.models.loading import load_model
    from tokenskip_lib.problems.sets import check_problems

    ratios = given_ratios(ratio, "generate")
    name = _method_for(method, adapter is not None, ratios)
    problems = check_problems(rows_of(questions, name="questions", text="question"))
    settings = model.settings
    loaded = model.model if adapter is None else load_model(settings, adapter=local_folder(os.fspath(adapter)))
    engine = TransformersEngine(
        loaded, model.tokenizer, batch_size, batch_tokens=settings.batch_tokens, compiled=settings.compile
    )
    plan = [(name, float(ratio), max_new_tokens) for ratio in ratios]
    batches = predict_all(engine, model.tokenizer, problems, model.prompts, plan, label="answers")
    found = {prediction.key: prediction for batch in batches for prediction in batch}
    return Answers(
        to_answer(found[PredictionKey(problem.id, name, wanted)], problem)
        for problem in problems
        for _, wanted, _ in plan
    )


def _trainable(pruned: PrunedChains, chain_id: str) -> ChainText:
    """The chain as it was given to `score`, if it has what a training row needs."""
    chain = pruned.scored.chains.get(chain_id)
    if chain is None or not chain.question or not chain.answer:
        raise InputError(
            f"train: chain '{chain_id}' has no question or no answer; give `score` both with every chain, for example "
            "{'question': ..., 'answer': ..., 'chain': ...}"
        )
    return chain


def _method_for(method: str | Method | None, adapted: bool, ratios: Sequence[float]) -> str:
    """The name of the method that `generate` asks by, if it goes with the adapter and the ratios given."""
    from tokenskip_lib.evaluation.methods import Method, find_method, register_method

    if isinstance(method, Method):
        register_method(method)
        method = method.name
    found = find_method(method or ("tokenskip" if adapted else "original"))
    if found.follows_original or found.first_request or found.scales_adapter:
        needs = "the original's answers" if found.follows_original else "two calls, or strengths of the adapter"
        raise InputError(f"generate: method '{found.name}' needs {needs}; use a profile")
    if found.uses_adapter != adapted:
        verb = "needs an adapter" if found.uses_adapter else "takes no adapter"
        raise InputError(f"generate: method '{found.name}' {verb}")
    if not found.takes_ratio and list(ratios) != [1.0]:
        raise InputError(f"generate: method '{found.name}' takes no ratio; give adapter=... of `train`, or a folder")
    return found.name
