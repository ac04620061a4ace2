"""Every importance score by its name, and your own."""

from collections.abc import Callable, Sequence
from functools import partial

from tokenskip_lib.core.profiles import Profile, nearest
from tokenskip_lib.core.records import (
    ChainText,
    InputError,
    PrunedChain,
)
from tokenskip_lib.models.loading import TargetModel
from tokenskip_lib.models.tokens import batch_token_counter
from tokenskip_lib.pruning.controls import FunctionScorer, RandomScorer, Scorer, keep_first
from tokenskip_lib.pruning.llmlingua2_scorer import LLMLingua2Scorer, load_classifier
from tokenskip_lib.pruning.llmlingua_mode import LLMLinguaPruner
from tokenskip_lib.pruning.prune import prune_many
from tokenskip_lib.pruning.spans import Segmenter, segment
from tokenskip_lib.pruning.target_scorers import CTSScorer, GoGIScorer, MISTScorer, SelectiveContextScorer


def build_pruner(target: TargetModel, profile: Profile) -> Callable[[Sequence], list[PrunedChain]]:
    """What prunes one window at all of a profile's ratios: scored chains, or in `llmlingua` mode chains it scores."""
    settings, count = profile.pruning, batch_token_counter(target.tokenizer)
    if settings.mode == "spans":
        return lambda scored: prune_many(scored, settings.ratios, count_tokens=count, keep=settings)
    dtype = profile.importance.classifier_dtype
    # llmlingua's own precision, unless the profile insists: in bfloat16 the bytes differ.
    model, tokenizer = load_classifier(profile.importance, profile.target, "float32" if dtype == "auto" else dtype)
    pruner = LLMLinguaPruner(
        model,
        tokenizer,
        force_tokens=settings.keep_tokens,
        force_reserve_digit=settings.keep_digits,
        drop_consecutive=settings.drop_consecutive,
        batch_tokens=profile.importance.batch_tokens,
    )
    return lambda chains: pruner.prune(chains, settings.ratios, count_tokens=count)


def _target_scorer(scorer_class, target: TargetModel, profile: Profile, segmenter: Segmenter) -> Scorer:
    return scorer_class(
        target.model,
        target.tokenizer,
        profile.prompts,
        batch_tokens=profile.importance.batch_tokens,
        segmenter=segmenter,
    )


def _llmlingua2(target: TargetModel, profile: Profile, segmenter: Segmenter) -> Scorer:
    model, tokenizer = load_classifier(profile.importance, profile.target, profile.importance.classifier_dtype)
    return LLMLingua2Scorer(model, tokenizer, batch_tokens=profile.importance.batch_tokens, segmenter=segmenter)


# name -> (target model, profile, how a text is cut) -> scorer
SCORERS: dict[str, Callable[[TargetModel, Profile, Segmenter], Scorer]] = {
    "llmlingua2": _llmlingua2,
    "selective_context": partial(_target_scorer, SelectiveContextScorer),
    "cts": partial(_target_scorer, CTSScorer),
    "gogi": partial(_target_scorer, GoGIScorer),
    "mist": partial(_target_scorer, MISTScorer),
    "random": lambda target, profile, segmenter: RandomScorer(profile.seed, segmenter=segmenter),
    "position": lambda target, profile, segmenter: FunctionScorer("position", keep_first, segmenter=segmenter),
}
BUILT_IN = frozenset(SCORERS)


def register_scorer(name: str, function: Callable[[Sequence[ChainText]], Sequence[Sequence[float]]]) -> None:
    """Make your own score available by name to this process: stages, profiles and explorer alike.

    Args:
        function: chains -> one list of scores a chain, one score for each span of
            `segment(chain.chain)`, higher is kept.

    Example:
        >>> from tokenskip_lib.spans import segment
        >>> register_scorer("longest", lambda chains: [[e - s for s, e in segment(c.chain)] for c in chains])

    Raises:
        InputError: the name is a published scorer's.
    """
    if name in BUILT_IN:
        raise InputError(f"'{name}' is a scorer of this library; choose another name")
    SCORERS[name] = lambda target, profile, segmenter: FunctionScorer(name, function, segmenter=segmenter)


def check_scorers(names: Sequence[str]) -> None:
    """Raise InputError for the first name that is no scorer."""
    for name in names:
        if name not in SCORERS:
            raise InputError(f"unknown scorer '{name}'{nearest(name, list(SCORERS))}")


def build_scorer(name: str, target: TargetModel, profile: Profile) -> Scorer:
    """A scorer by its name in a profile; models are loaded as it needs them.

    Raises:
        InputError: unknown name, or a model that is nowhere to be found.
    """
    check_scorers([name])
    return SCORERS[name](target, profile, partial(segment, whole_latex=profile.importance.whole_latex))
