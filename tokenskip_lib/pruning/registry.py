"""Every importance score by its name, with what it reads and costs; your own scores; and what prunes.

A new scorer is one class in a module of its own and one `ScorerSpec` here. Models and their libraries are loaded when
a scorer is built.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from tokenskip_lib.core.plugins import is_own, load_own
from tokenskip_lib.core.profiles import nearest
from tokenskip_lib.core.records import InputError, PrunedChain
from tokenskip_lib.core.settings import ImportanceSettings, PruningSettings
from tokenskip_lib.models.tokens import batch_token_counter
from tokenskip_lib.pruning.controls import FunctionScorer, RandomScorer, ScoreFunction, Scorer, keep_first
from tokenskip_lib.pruning.prune import prune_many, prune_steps, prune_together
from tokenskip_lib.pruning.spans import Segmenter, segment

if TYPE_CHECKING:
    from tokenskip_lib.models.loading import TargetModel
    from tokenskip_lib.pruning.target_scorers import TargetScorer

BuildScorer = Callable[["TargetModel", ImportanceSettings, int], Scorer]  # target model, settings, seed


@dataclass(frozen=True)
class ScorerSpec:
    """A scorer: its name, and all that the rest of the library needs to know of it.

    Attributes:
        name: in profiles, on the command line and in records.
        description: completes the sentence "a token is important if ...", for --help and docs.
        reads: which of `question` and `answer` must be there, beside the chain.
        passes: forward passes of the target model a chain. A backward pass to the inputs counts as one more.
        deletes: whether these passes read the chain without each of its spans in turn, not the chain alone.
        classifier: whether it needs the LLMLingua-2 classifier of `importance.classifier`.
        build: target model, settings and seed -> the scorer, with the models it needs loaded.
    """

    name: str
    description: str
    reads: tuple[Literal["question", "answer"], ...]
    passes: int
    classifier: bool
    build: BuildScorer
    deletes: bool = False

    @property
    def window(self) -> int | None:
        """The number of chains that are written together: 8 if each takes seconds, else None, the usual number."""
        return 8 if self.deletes else None


def _segmenter(importance: ImportanceSettings) -> Segmenter:
    return partial(segment, whole_latex=importance.whole_latex)


def _target_scorer(
    scorer_class: Callable[..., TargetScorer], target: TargetModel, importance: ImportanceSettings
) -> TargetScorer:
    return scorer_class(
        target.model,
        target.tokenizer,
        target.prompts,
        batch_tokens=importance.batch_tokens,
        segmenter=_segmenter(importance),
    )


def _selective_context(target: TargetModel, importance: ImportanceSettings, seed: int) -> Scorer:
    from tokenskip_lib.pruning.target_scorers import SelectiveContextScorer

    return _target_scorer(SelectiveContextScorer, target, importance)


def _cts(target: TargetModel, importance: ImportanceSettings, seed: int) -> Scorer:
    from tokenskip_lib.pruning.target_scorers import CTSScorer

    return _target_scorer(CTSScorer, target, importance)


def _entropy(target: TargetModel, importance: ImportanceSettings, seed: int) -> Scorer:
    from tokenskip_lib.pruning.target_scorers import EntropyScorer

    return _target_scorer(EntropyScorer, target, importance)


def _gogi(target: TargetModel, importance: ImportanceSettings, seed: int) -> Scorer:
    from tokenskip_lib.pruning.gradient_scorers import GoGIScorer

    return _target_scorer(GoGIScorer, target, importance)


def _gogi_skip(target: TargetModel, importance: ImportanceSettings, seed: int) -> Scorer:
    from tokenskip_lib.pruning.gogi_skip_scorer import GoGISkipScorer

    return _target_scorer(GoGISkipScorer, target, importance)


def _mist(target: TargetModel, importance: ImportanceSettings, seed: int) -> Scorer:
    from tokenskip_lib.pruning.gradient_scorers import MISTScorer

    return _target_scorer(partial(MISTScorer, alpha=importance.alpha), target, importance)


def _leave_one_out(target: TargetModel, importance: ImportanceSettings, seed: int, *, rest: bool = False) -> Scorer:
    from tokenskip_lib.pruning.deletion import LeaveOneOutRestScorer, LeaveOneOutScorer

    return _target_scorer(LeaveOneOutRestScorer if rest else LeaveOneOutScorer, target, importance)


def _llmlingua2(target: TargetModel, importance: ImportanceSettings, seed: int) -> Scorer:
    from tokenskip_lib.pruning.llmlingua2_scorer import LLMLingua2Scorer, load_classifier

    model, tokenizer = load_classifier(importance, target.settings, importance.classifier_dtype)
    return LLMLingua2Scorer(model, tokenizer, batch_tokens=importance.batch_tokens, segmenter=_segmenter(importance))


def _random(target: TargetModel, importance: ImportanceSettings, seed: int) -> Scorer:
    return RandomScorer(seed, segmenter=_segmenter(importance))


def _function_spec(name: str, function: ScoreFunction, description: str) -> ScorerSpec:
    def build(target: TargetModel, importance: ImportanceSettings, seed: int) -> Scorer:
        return FunctionScorer(name, function, segmenter=_segmenter(importance))

    return ScorerSpec(name, description, reads=(), passes=0, classifier=False, build=build)


_BUILT_IN = [
    ScorerSpec(
        "llmlingua2",
        "a classifier distilled from GPT-4's compressions would keep it (TokenSkip's eq. 2, the paper's choice)",
        reads=(),
        passes=0,
        classifier=True,
        build=_llmlingua2,
    ),
    ScorerSpec(
        "selective_context",
        "the target model could not foresee it (TokenSkip's eq. 1)",
        reads=("question",),
        passes=1,
        classifier=False,
        build=_selective_context,
    ),
    ScorerSpec(
        "entropy",
        "the target model was uncertain what to write there (the sum over a span's tokens)",
        reads=("question",),
        passes=1,
        classifier=False,
        build=_entropy,
    ),
    ScorerSpec(
        "cts",
        "question and answer make it likelier",
        reads=("question", "answer"),
        passes=2,
        classifier=False,
        build=_cts,
    ),
    ScorerSpec(
        "gogi",
        "the answer's likelihood has a large gradient at it",
        reads=("question", "answer"),
        passes=1,
        classifier=False,
        build=_gogi,
    ),
    ScorerSpec(
        "gogi_skip",
        "the answer's gradient at it is among the chain's largest, or the target model was uncertain there (GoGI-Skip)",
        reads=("question", "answer"),
        passes=2,
        classifier=False,
        build=_gogi_skip,
    ),
    ScorerSpec(
        "mist",
        "taking its hidden states away, or giving them alone, changes the answer's likelihood",
        reads=("question", "answer"),
        passes=4,
        classifier=False,
        build=_mist,
    ),
    ScorerSpec(
        "leave_one_out",
        "the answer's likelihood drops without it (measured, a row a span)",
        reads=("question", "answer"),
        passes=1,
        classifier=False,
        build=_leave_one_out,
        deletes=True,
    ),
    ScorerSpec(
        "leave_one_out_rest",
        "the likelihood of all that follows drops without it, but for the very next token (measured, a row a span)",
        reads=("question", "answer"),
        passes=1,
        classifier=False,
        build=partial(_leave_one_out, rest=True),
        deletes=True,
    ),
    ScorerSpec("random", "a random number says so (a control)", (), passes=0, classifier=False, build=_random),
    _function_spec("position", keep_first, "it comes early (a control)"),
]
SCORERS: dict[str, ScorerSpec] = {spec.name: spec for spec in _BUILT_IN}
BUILT_IN = frozenset(SCORERS)
PRUNERS = {"spans": prune_many, "steps": prune_steps, "threshold": prune_together}  # of scored chains, by mode


def register_scorer(name: str, function: ScoreFunction, description: str = "your own function says so") -> None:
    """Make your own score available by name in this process.

    A name of the form "mypackage.module:function" needs no registration and works in other processes too: on the
    command line, in profiles and in notebooks that a run executes.

    Args:
        name: any name that is not one of the library's scorers.
        function: chains -> one list of scores a chain, a score for each span of `segment(chain.chain)`, high to keep.
        description: completes the sentence "a token is important if ...".

    Example:
        >>> register_scorer("longest", lambda chains: [[e - s for s, e in segment(c.chain)] for c in chains])
        >>> find_scorer("longest").passes
        0

    Raises:
        InputError: the name is that of a scorer of this library.
    """
    if name in BUILT_IN:
        raise InputError(f"'{name}' is a scorer of this library; choose another name")
    SCORERS[name] = _function_spec(name, function, description)


def find_scorer(name: str) -> ScorerSpec:
    """A scorer by its name, or your own function as "mypackage.module:function".

    Example:
        >>> find_scorer("cts").reads
        ('question', 'answer')

    Raises:
        InputError: no scorer of that name (the nearest one is named), or no such function.
    """
    if name in SCORERS:
        return SCORERS[name]
    if not is_own(name):
        raise InputError(
            f"unknown scorer '{name}'{nearest(name, list(SCORERS))}; your own is mypackage.module:function"
        )
    function = load_own(name, setting="importance.scorer")
    if not callable(function):
        raise InputError(
            f"importance.scorer '{name}': this is of type {type(function).__name__}, not a function of chains"
        )
    return _function_spec(name, function, "your own function says so")


def describe_scorers() -> str:
    """Every scorer with its description, as one line for --help."""
    return "; ".join(f"{name}, if {spec.description}" for name, spec in SCORERS.items())


def check_scorers(names: Iterable[str]) -> None:
    """Raise InputError for the first name that is no scorer."""
    for name in names:
        find_scorer(name)


def build_scorer(name: str, target: TargetModel, importance: ImportanceSettings, *, seed: int) -> Scorer:
    """A scorer by its name, with the models it needs loaded.

    Args:
        name: see `find_scorer`.
        target: the target model. Its prompts are those that target scorers put before a chain.
        importance: settings; their own `scorer` is not read.
        seed: of the scorer `random`.

    Raises:
        InputError: an unknown name, or a model that is not there.
    """
    return find_scorer(name).build(target, importance, seed)


def build_pruner(
    target: TargetModel, pruning: PruningSettings, importance: ImportanceSettings
) -> Callable[[Sequence], list[PrunedChain]]:
    """A function that prunes one window of chains at all ratios of `pruning`.

    Returns:
        Scored chains -> pruned chains. In `llmlingua` mode: chains that are not scored yet -> pruned chains.

    Raises:
        InputError: in `llmlingua` mode, a classifier that is not there.
    """
    count = batch_token_counter(target.tokenizer)
    if pruning.mode in PRUNERS:
        prune_window = PRUNERS[pruning.mode]
        return lambda scored: prune_window(scored, pruning.ratios, count_tokens=count, keep=pruning)
    from tokenskip_lib.pruning.llmlingua2_scorer import load_classifier
    from tokenskip_lib.pruning.llmlingua_mode import LLMLinguaPruner

    # llmlingua's own precision, unless the settings insist on another: in bfloat16 the bytes differ.
    dtype = "float32" if importance.classifier_dtype == "auto" else importance.classifier_dtype
    model, tokenizer = load_classifier(importance, target.settings, dtype)
    pruner = LLMLinguaPruner(
        model,
        tokenizer,
        force_tokens=pruning.keep_tokens,
        force_reserve_digit=pruning.keep_digits,
        drop_consecutive=pruning.drop_consecutive,
        batch_tokens=importance.batch_tokens,
    )
    return lambda chains: pruner.prune(chains, pruning.ratios, count_tokens=count)
