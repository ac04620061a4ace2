"""The search for the spans whose text has the wanted number of tokens, for one ranking and ratio.

The count of a text is not the sum of its spans' counts, so the search asks for counts of whole texts. It does not
count by itself: many searches share each call of the token counter.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from tokenskip_lib.pruning.ranking import Ranking, Written

_FILLERS = 4  # items tried at a time if a long one is in the way


@dataclass(frozen=True)
class Candidate:
    """A choice of items: for each chain the spans that are kept, their text, and the text's tokens."""

    parts: Written
    counts: Sequence[int]
    tokens: int  # of all texts


class Search:
    """The choice of spans whose token count is nearest to the wanted one.

    First it looks for the number of top-ranked items at which the count passes the wanted one. If the count jumps
    there by more than a token, less important spans fill what is left, where the ranking allows that.

    Args:
        layout: the chain, or several chains that are ranked together.
        ratio: fraction of the tokens that is wanted.
        original: tokens of the whole chains.
        piece_tokens: tokens of each span by itself. They tell where to begin.

    Attributes:
        texts: what to count next; empty when the search is over. Give the counts to `learn`.
        best: the result, when the search is over.
    """

    def __init__(self, layout: Ranking, ratio: float, original: int, piece_tokens: Mapping[str, int]):
        self.layout = layout
        self.wanted = round(ratio * original)
        self.expected = np.cumsum(layout.costs(piece_tokens)[layout.ranked])
        # Numbers of top-ranked items. `low` is known to be within the wanted count (or is the least there is),
        # `high` is known to be above it (or is one more than all).
        self.low, self.high = max(1, layout.forced), len(layout.ranked) + 1
        self.below: Candidate | None = None
        self.above: Candidate | None = None
        self.best: Candidate | None = None
        self.filling = False
        self._ask(int(np.searchsorted(self.expected, self.wanted * self.expected[-1] / original, side="right")))

    def learn(self, counts: Sequence[int]) -> None:
        """Take the token counts of `texts`, and set the next ones."""
        remaining = iter(counts)
        found = []
        for parts in self.asked:
            own = list(islice(remaining, len(parts)))
            found.append(Candidate(parts, own, sum(own)))
        if self.filling:
            self._fill_with(found)
        else:
            self._narrow(*found)

    def _ask(self, number: int) -> None:
        """Ask for the text of the `number` most important items, as far as that number is still open."""
        self.number = min(max(number, self.low + (self.below is not None)), self.high - 1)
        self._ask_for([self.layout.ranked[: self.number]])

    def _ask_for(self, choices: Sequence[np.ndarray]) -> None:
        self.asked = [self.layout.written(items) for items in choices]
        self.texts = [text for parts in self.asked for _, text in parts]

    def _narrow(self, candidate: Candidate) -> None:
        """Move `low` or `high` to the number that was asked for."""
        if candidate.tokens <= self.wanted:
            self.low, self.below = self.number, candidate
        else:
            self.high, self.above = self.number, candidate
        if candidate.tokens == self.wanted or self.high <= self.layout.forced:
            self._end(candidate)
        elif self.high == 1 or (self.below is not None and self.high - self.low == 1):
            self._begin_filling()
        else:  # the number whose expected count differs from this one's by what is missing
            base = self.expected[self.number - 1] + self.wanted - candidate.tokens
            self._ask(int(np.searchsorted(self.expected, base, side="right")))

    def _begin_filling(self) -> None:
        """The count jumps over the wanted one from `below` to `above`, because a long span is in the way."""
        near = [c for c in (self.below, self.above) if c is not None and abs(c.tokens - self.wanted) <= 1]
        number = self.low if self.below is not None else 0
        self.chosen, self.rest = self.layout.ranked[:number], self.layout.ranked[number + 1 :]
        if near or not len(self.rest) or not self.layout.fills:
            self._end(*near or (self.below, self.above))
            return
        self.filling = True
        self._ask_fillers()

    def _ask_fillers(self) -> None:
        self._ask_for([np.append(self.chosen, item) for item in self.rest[:_FILLERS]])

    def _fill_with(self, found: Sequence[Candidate]) -> None:
        """Take the most important of the remaining items that fits, and go on below it."""
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

    def _end(self, *candidates: Candidate | None) -> None:
        """The nearest count wins; of two that are as near, the shorter."""
        self.best = min(
            (candidate for candidate in candidates if candidate is not None),
            key=lambda candidate: (abs(candidate.tokens - self.wanted), candidate.tokens),
        )
        self.texts = []
