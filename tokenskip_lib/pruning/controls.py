"""Importance: how much each part of a chain of thought matters. Every published score by its name.

The scores of models are in `target_scores` and `llmlingua2`; here are the controls, your own, and
the list of all. Scores live on character spans of the chain's text (`spans`).
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Protocol

import numpy as np
from tqdm import tqdm

from tokenskip_lib.config import Profile, nearest
from tokenskip_lib.llmlingua2 import LLMLingua2Scorer, load_classifier
from tokenskip_lib.models import Target
from tokenskip_lib.processes import processes, rank
from tokenskip_lib.records import ChainText, InputError, Record, RecordLog, ScoredChain
from tokenskip_lib.spans import Segmenter, average_over_spans, scored_chain, segment
from tokenskip_lib.target_scores import CTSScorer, GoGIScorer, MISTScorer, SelectiveContextScorer

WINDOW = 256  # chains scored together, sorted by length; what a stream holds in memory


class Scorer(Protocol):
    """What every scorer does: chains in, scored chains out, in the same order, higher is kept.

    `score` takes one window of chains; batches depend on that window alone, so the same chains get
    the same scores in a resumed run.
    """

    name: str
    reads: tuple[str, ...]  # which of "question" and "answer" it cannot do without

    def score(self, window: Sequence[ChainText]) -> list[ScoredChain]: ...


class RandomScorer:
    """The control: uniform scores in [0, 1), the same for the same chain id and seed."""

    name = "random"
    reads = ()

    def __init__(self, seed: int, *, segmenter: Segmenter = segment):
        self.seed = seed
        self.segment = segmenter

    def score(self, window: Sequence[ChainText]) -> list[ScoredChain]:
        scored = []
        for chain in window:
            spans = self.segment(chain.chain)
            digest = hashlib.sha256(f"{self.seed}:{chain.id}".encode()).digest()
            values = np.random.default_rng(int.from_bytes(digest[:8], "big")).random(len(spans))
            scored.append(scored_chain(chain, self.name, spans, values))
        return scored


class FunctionScorer:
    """Your own score: a function from chains to one list of scores a chain, one score a span.

    Args:
        function: chains -> scores, one for each span of `segment(chain.chain)`. Where the scorer's own
            spans are wider (importance.whole_latex), each takes the mean of those inside it.

    Raises:
        InputError: on scoring, where the function returns another number of lists or scores.
    """

    reads = ()

    def __init__(
        self,
        name: str,
        function: Callable[[Sequence[ChainText]], Sequence[Sequence[float]]],
        *,
        segmenter: Segmenter = segment,
    ):
        self.name = name
        self.function = function
        self.segment = segmenter

    def score(self, window: Sequence[ChainText]) -> list[ScoredChain]:
        values = list(self.function(window))
        if len(values) != len(window):
            raise InputError(f"scorer '{self.name}': {len(values)} lists of scores for {len(window)} chains")
        scored = []
        for chain, importance in zip(window, values, strict=True):
            parts, spans = segment(chain.chain), self.segment(chain.chain)
            if len(importance) != len(parts):
                raise InputError(
                    f"scorer '{self.name}', chain '{chain.id}': {len(importance)} scores for {len(parts)} spans; "
                    "give one score for each span of segment(chain.chain)"
                )
            importance = importance if spans == parts else average_over_spans(spans, parts, importance)
            scored.append(scored_chain(chain, self.name, spans, importance))
        return scored


def keep_first(window: Sequence[ChainText]) -> list[list[float]]:
    """The other control, `position`: the earlier, the more important (1 down to 0), so pruning cuts off the end."""
    return [np.linspace(1, 0, len(segment(chain.chain))).tolist() for chain in window]


def _target_scorer(scorer_class, target: Target, profile: Profile, segmenter: Segmenter) -> Scorer:
    return scorer_class(
        target.model,
        target.tokenizer,
        profile.prompts,
        batch_tokens=profile.importance.batch_tokens,
        segmenter=segmenter,
    )


def _llmlingua2(target: Target, profile: Profile, segmenter: Segmenter) -> Scorer:
    model, tokenizer = load_classifier(profile.importance, profile.target, profile.importance.classifier_dtype)
    return LLMLingua2Scorer(model, tokenizer, batch_tokens=profile.importance.batch_tokens, segmenter=segmenter)


# name -> (target model, profile, how a text is cut) -> scorer
SCORERS: dict[str, Callable[[Target, Profile, Segmenter], Scorer]] = {
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


def build_scorer(name: str, target: Target, profile: Profile) -> Scorer:
    """A scorer by its name in a profile; models are loaded as it needs them.

    Raises:
        InputError: unknown name, or a model that is nowhere to be found.
    """
    check_scorers([name])
    return SCORERS[name](target, profile, partial(segment, whole_latex=profile.importance.whole_latex))


def windows(chains: Iterable[ChainText]) -> Iterator[list[ChainText]]:
    """The chains in runs of WINDOW, in order; no more than one run is held."""
    chains = iter(chains)
    while window := list(islice(chains, WINDOW)):
        yield window


def write_windows(
    chains: Iterable[ChainText | ScoredChain],
    log: RecordLog,
    make: Callable[[Sequence], Iterable[Record]],
    keys: Callable[[ChainText | ScoredChain], list[tuple]],
    *,
    total: int | None,
    label: str,
) -> int:
    """Make records of each window of chains that is not wholly done, and write them down before the next.

    Launched processes take turns with the windows.

    Args:
        make: one window -> its records, whose keys `keys` gives for each chain.
        total: chains there are, if known, for the progress bar.

    Returns:
        How many chains there were.
    """
    with tqdm(total=total, unit="chain", desc=label) as bar:
        for number, window in enumerate(windows(chains)):
            mine = number % processes() == rank()
            if mine and not all(key in log for chain in window for key in keys(chain)):
                log.append(make(window))
            bar.update(len(window))
    return bar.n
