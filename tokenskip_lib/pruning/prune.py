"""From importance to a shorter chain: which spans are kept at a ratio, and how they are written down.

Knows scores, spans and a token counter; does not know where the scores came from.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tokenskip_lib.core.records import PrunedChain, ScoredChain
from tokenskip_lib.core.settings import KeepSettings
from tokenskip_lib.models.tokens import CountTokens
from tokenskip_lib.pruning.spans import span_kind

_NUMBER = re.compile(r"\d[\d.,]*")
_FILLERS = 4  # spans tried at a time where a long one is in the way
NO_EXCEPTIONS = KeepSettings()
_SYMBOL = re.compile(r"[^\w\\]")
_SEPARATORS = np.array([" ", "\n", "\n\n"], dtype=object)


class Layout:
    """A text cut into S spans, ready to be written down again without some of them."""

    def __init__(self, text: str, spans: Sequence[tuple[int, int]]):
        ends = [0, *(end for _, end in spans[:-1])]
        self.pieces = np.array([text[start:end] for start, end in spans], dtype=object)
        self.gaps = np.array([text[end:start] for (start, _), end in zip(spans, ends, strict=True)], dtype=object)
        # Line breaks and empty lines before each span, counted from the text's beginning.
        self.breaks = np.cumsum(["\n" in gap for gap in self.gaps])
        self.empty_lines = np.cumsum([gap.count("\n") > 1 for gap in self.gaps])
        self.numbers = np.array([_NUMBER.fullmatch(piece) is not None for piece in self.pieces])

    def join(self, kept: np.ndarray, closed: np.ndarray | None = None) -> str:
        """Write kept spans down, so that what stood apart stays apart.

        Neighbours keep what was between them, to the byte. Where something was left out, a line
        break of the gap survives as one, any other gap becomes a single space: numbers are never
        glued ("88 / 2" without its operator is "88 2") and steps stay on lines of their own.

        Args:
            kept: indices of spans, ascending.
            closed: indices of operators that stand next to a number without a space: "88/2".
        """
        before, after = kept[:-1], kept[1:]
        broken = (self.breaks[after] > self.breaks[before]).astype(int)
        between = _SEPARATORS[broken + (self.empty_lines[after] > self.empty_lines[before])]
        neighbours = after == before + 1
        between[neighbours] = self.gaps[after[neighbours]]
        if closed is not None:
            is_closed = np.isin(np.arange(len(self.pieces)), closed)
            beside = (is_closed[before] & self.numbers[after]) | (self.numbers[before] & is_closed[after])
            between[beside & (broken == 0)] = ""
        written = np.empty(2 * len(kept) - 1, dtype=object)
        written[0::2] = self.pieces[kept]
        written[1::2] = between
        return "".join(written.tolist())


def prune(
    chain: ScoredChain, ratio: float, *, count_tokens: CountTokens, keep: KeepSettings = NO_EXCEPTIONS
) -> PrunedChain:
    """Keep the most important part of one chain of thought, in its original order.

    Spans are taken from the most important down, ties to the earlier span, until the target model
    would see round(ratio * T) tokens, T being the chain's own count. Where the next span would
    overshoot by more than a token, less important ones that fit fill the gap.

    Args:
        chain: text with S spans and S importance scores (float, higher is kept).
        ratio: fraction of target-model tokens kept, 0 < ratio <= 1 (TokenSkip's gamma).
        count_tokens: texts -> number of target-model tokens of each.
        keep: numbers and listed tokens stay whatever their score, and may take the chain over its ratio;
            operators come next, "=" the last of them, as far as the ratio has room. Where spaces may be
            skipped, those between operators and numbers go before any span, and operators stay as numbers do.

    Returns:
        The pruned chain; at ratio 1.0 its text is the original's to the byte.

    Raises:
        ValueError: ratio outside (0, 1], no span, or a score that is not finite.

    Source: TokenSkip (arXiv:2502.12067), eq. 3-4: the threshold is the (1 - ratio) quantile, so that
        the top `ratio` is kept. LLMLingua-2 thresholds words per chunk instead: see llmlingua_mode.
    """
    [pruned] = prune_many([chain], [ratio], count_tokens=count_tokens, keep=keep)
    return pruned


def prune_many(
    chains: Sequence[ScoredChain],
    ratios: Sequence[float],
    *,
    count_tokens: CountTokens,
    keep: KeepSettings = NO_EXCEPTIONS,
) -> list[PrunedChain]:
    """`prune` for many chains and ratios at once: token counts are asked for in a few large batches.

    Returns:
        Chains in order, ratios within each.
    """
    for ratio in ratios:
        if not 0 < ratio <= 1:
            raise ValueError(f"ratio must be in (0, 1], not {ratio}")
    layouts = [_Ranked(chain, keep) for chain in chains]
    originals = count_tokens([chain.text for chain in chains])
    costs = _piece_costs(layouts, count_tokens)
    searches = [
        _Search(layout, ratio, original, costs)
        for layout, original in zip(layouts, originals, strict=True)
        for ratio in ratios
        if ratio < 1
    ]
    open_searches = searches
    while open_searches:
        texts = [text for search in open_searches for text in search.texts]
        counts = iter(count_tokens(texts))
        for search in open_searches:
            search.learn([next(counts) for _ in search.texts])
        open_searches = [search for search in open_searches if search.texts]
    found = iter(searches)
    pruned = []
    for chain, original in zip(chains, originals, strict=True):
        for ratio in ratios:
            if ratio < 1:
                best = next(found).best
                kept, text, tokens = best.kept.tolist(), best.text, best.tokens
            else:
                kept, text, tokens = list(range(len(chain.spans))), chain.text, original
            pruned.append(
                PrunedChain(
                    id=chain.id,
                    scorer=chain.scorer,
                    ratio=ratio,
                    text=text,
                    kept=kept,
                    tokens=tokens,
                    original_tokens=original,
                )
            )
    return pruned


class _Ranked(Layout):
    """A scored chain's layout, its spans from the most to the least important: forced ones, operators, others."""

    def __init__(self, chain: ScoredChain, keep: KeepSettings):
        if not chain.spans:
            raise ValueError(f"chain '{chain.id}' is empty: nothing to prune")
        if len(chain.importance) != len(chain.spans):
            raise ValueError(f"chain '{chain.id}': {len(chain.spans)} spans, {len(chain.importance)} scores")
        scores = np.asarray(chain.importance, dtype=float)
        if not np.isfinite(scores).all():
            raise ValueError(f"chain '{chain.id}': an importance score is not finite")
        super().__init__(chain.text, chain.spans)
        listed = _occurrences(chain, keep.keep_tokens)
        operators = np.array([keep.keep_operators and span_kind(piece) == "operator" for piece in self.pieces])
        implied = operators & (self.pieces == "=")  # what is computed can be read without it
        forced = listed.copy()
        if keep.keep_digits:
            forced |= [any(character.isdigit() for character in piece) for piece in self.pieces]
        if keep.skip_spaces:  # an operator takes the place of a space between two numbers
            forced |= operators
        self.forced = int(forced.sum())
        # A stable sort puts the earlier of two equal spans first.
        self.ranked = np.lexsort((np.arange(len(scores)), -scores, implied, ~operators, ~forced))
        self.repeatable = listed if keep.drop_consecutive else None
        # With skip_spaces, operators that a number may touch; and, ranked behind all spans as number of
        # spans + index, those whose own spaces can be kept.
        self.symbols = np.array([], dtype=int)
        if keep.skip_spaces:
            self.symbols = np.flatnonzero(
                [span_kind(piece) == "operator" and _SYMBOL.match(piece) is not None for piece in self.pieces]
            )
        apart = np.array([gap != "" for gap in [*self.gaps, ""]])
        self.spaced = self.symbols[apart[self.symbols] | apart[self.symbols + 1]]
        self.ranked = np.append(self.ranked, len(scores) + self.spaced)

    def written(self, chosen: np.ndarray) -> tuple[np.ndarray, str]:
        """Chosen spans in order, of equal listed ones that come to stand side by side the first alone; their text."""
        is_span = chosen < len(self.pieces)
        kept = np.sort(chosen[is_span])
        if self.repeatable is not None:
            repeated = np.zeros(len(kept), dtype=bool)
            repeated[1:] = self.repeatable[kept[1:]] & (self.pieces[kept[1:]] == self.pieces[kept[:-1]])
            kept = kept[~repeated]
        if not len(self.symbols):
            return kept, self.join(kept)
        return kept, self.join(kept, np.setdiff1d(self.symbols, chosen[~is_span] - len(self.pieces)))


def _occurrences(chain: ScoredChain, tokens: Sequence[str]) -> np.ndarray:
    """Which spans lie in an occurrence of a listed text that begins and ends with whole spans."""
    starts, ends = np.asarray(chain.spans).T
    inside = np.zeros(len(starts), dtype=bool)
    for token in tokens:
        position = chain.text.find(token)
        while position >= 0:
            stop = position + len(token)
            first, last = np.searchsorted(starts, position), np.searchsorted(ends, stop)
            if first <= last < len(ends) and starts[first] == position and ends[last] == stop:
                inside[first : last + 1] = True
            position = chain.text.find(token, position + 1)
    return inside


def _piece_costs(layouts: Sequence[Layout], count_tokens: CountTokens) -> dict[str, int]:
    """Tokens of each distinct span by itself: where to begin looking, not the count that is reported."""
    distinct = sorted({piece for layout in layouts for piece in layout.pieces})
    return dict(zip(distinct, count_tokens([f" {piece}" for piece in distinct]), strict=True))


@dataclass(frozen=True)
class _Candidate:
    kept: np.ndarray
    text: str
    tokens: int


class _Search:
    """The choice of spans whose token count is nearest to the wanted one, for one chain and ratio.

    `texts` is what to count next, empty when the search is over; `learn` takes the counts.
    """

    def __init__(self, layout: _Ranked, ratio: float, original: int, costs: dict[str, int]):
        self.layout, self.wanted = layout, (wanted := round(ratio * original))
        ranked = [layout.pieces[item] for item in layout.ranked if item < len(layout.pieces)]
        self.expected = np.cumsum([costs[piece] for piece in ranked] + [2] * len(layout.spaced))
        # Numbers of top-ranked spans: `low` is known to be within the wanted count (or the least
        # there is), `high` known to be above it (or one more than all).
        self.low, self.high = max(1, layout.forced), len(layout.ranked) + 1
        self.below: _Candidate | None = None
        self.above: _Candidate | None = None
        self.best: _Candidate | None = None
        self.filling = False
        self._ask(int(np.searchsorted(self.expected, wanted * self.expected[-1] / original, side="right")))

    def _ask(self, number: int) -> None:
        """Look at the text of the `number` most important spans next."""
        self.number = min(max(number, self.low + (self.below is not None)), self.high - 1)
        self._ask_chosen([self.layout.ranked[: self.number]])

    def _ask_chosen(self, choices: Sequence[np.ndarray]) -> None:
        self.asked = [self.layout.written(chosen) for chosen in choices]
        self.texts = [text for _, text in self.asked]

    def learn(self, counts: Sequence[int]) -> None:
        found = [_Candidate(*asked, count) for asked, count in zip(self.asked, counts, strict=True)]
        if self.filling:
            self._fill_with(found)
            return
        [candidate] = found
        if candidate.tokens <= self.wanted:
            self.low, self.below = self.number, candidate
        else:
            self.high, self.above = self.number, candidate
        if candidate.tokens == self.wanted or self.high <= self.layout.forced:
            self._end(candidate)
        elif self.high == 1 or (self.below is not None and self.high - self.low == 1):
            self._bracketed()
        else:
            base = self.expected[self.number - 1] + self.wanted - candidate.tokens
            self._ask(int(np.searchsorted(self.expected, base, side="right")))

    def _bracketed(self) -> None:
        """The count jumps over the wanted one from `below` to `above`: a long span is in the way."""
        near = [c for c in (self.below, self.above) if c is not None and abs(c.tokens - self.wanted) <= 1]
        number = self.low if self.below is not None else 0
        self.chosen, self.rest = self.layout.ranked[:number], self.layout.ranked[number + 1 :]
        if near or not len(self.rest):
            self._end(*near or (self.below, self.above))
            return
        self.filling = True
        self._ask_fillers()

    def _ask_fillers(self) -> None:
        self._ask_chosen([np.append(self.chosen, span) for span in self.rest[:_FILLERS]])

    def _fill_with(self, found: Sequence[_Candidate]) -> None:
        """Take the most important of the remaining spans that fits, and go on below it."""
        tried, reached = len(found), self.below.tokens if self.below is not None else 0
        for index, candidate in enumerate(found):
            if reached < candidate.tokens <= self.wanted:
                self.below, tried, reached = candidate, index + 1, candidate.tokens
                self.chosen = np.append(self.chosen, self.rest[index])
                break
        self.rest = self.rest[tried:]
        if len(self.rest) and self.wanted - reached > 1:
            self._ask_fillers()
        else:
            self._end(self.below, self.above)

    def _end(self, *candidates: _Candidate | None) -> None:
        """The nearest wins; of two as near, the shorter."""
        self.best = min(
            (candidate for candidate in candidates if candidate is not None),
            key=lambda candidate: (abs(candidate.tokens - self.wanted), candidate.tokens),
        )
        self.texts = []
