"""What of a chain is kept first: its items in the order of their importance, and what stays at any ratio.

An item is a span, or the spaces around an operator. `search` takes items from the top until the ratio is met.
Three rankings differ in what competes with what: the spans of one chain (`RankedLayout`), the steps of one chain
(`StepLayout`), and the spans of many chains together (`Together`).
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from tokenskip_lib.core.records import ScoredChain
from tokenskip_lib.core.settings import KeepSettings
from tokenskip_lib.pruning.layout import Layout, listed_spans, protected_spans
from tokenskip_lib.pruning.spans import span_kinds

_SYMBOL = re.compile(r"[^\w\\]")
_SPACE_TOKENS = 2  # that keeping the spaces around an operator is expected to cost
_SENTENCE_ENDS = tuple(".!?。！？")

Written = list[tuple[np.ndarray, str]]  # for each chain: the spans that are kept, in order, and their text


class RankedLayout(Layout):
    """A scored chain's layout with its items from the most to the least important: forced spans, operators, others.

    Items 0 to S - 1 are the spans. With `skip_spaces` there are further items behind all spans, one for the spaces
    around each operator.

    Attributes:
        chains: the chain, in a list.
        keys: what items are ranked by, K x items; the last row counts first, and low values come first.
        ranked: all items, the most important first.
        forced: how many of them stay at any ratio.
        fills: whether less important items may fill what is left of the ratio.

    Raises:
        ValueError: no span.
    """

    fills = True

    def __init__(self, chain: ScoredChain, keep: KeepSettings):
        check_scored(chain)
        super().__init__(chain.text, chain.spans)
        self.chains = [chain]
        scores = np.asarray(chain.importance, dtype=float)

        # Which spans stay.
        listed, protected = listed_spans(chain, keep.keep_tokens), protected_spans(chain, keep.protect)
        is_operator = np.array([kind == "operator" for kind in span_kinds(self.pieces.tolist())])
        operators = is_operator & keep.keep_operators
        forced = listed | protected
        if keep.keep_digits:
            forced |= [any(character.isdigit() for character in piece) for piece in self.pieces]
        if keep.skip_spaces:  # an operator takes the place of a space between two numbers
            forced |= operators

        # With skip_spaces: the operators that a number may touch, and those of them that have a space to lose.
        is_symbol = np.array([_SYMBOL.match(piece) is not None for piece in self.pieces])
        self.symbols = np.flatnonzero(is_operator & is_symbol & ~protected & keep.skip_spaces)
        has_gap = np.array([gap != "" for gap in [*self.gaps, ""]])
        self.spaced = self.symbols[has_gap[self.symbols] | has_gap[self.symbols + 1]]

        # Which come next. Of two equal spans the earlier one comes first. Of the operators "=" comes last: the
        # result of a computation can be read without it.
        equals = operators & (self.pieces == "=")
        spans = np.array([-scores, equals, ~operators, ~forced, np.zeros(len(scores))], dtype=float)
        if keep.max_skipped is not None:
            spans[3] -= peaks(np.argsort(np.lexsort(spans)), keep.max_skipped) & ~forced
        self.keys = np.pad(spans, ((0, 0), (0, len(self.spaced))))
        self.keys[4, len(scores) :] = 1
        self.ranked = np.lexsort(self.keys)
        self.forced = int((spans[3] == 0).sum())
        self.repeatable = listed & ~protected if keep.drop_consecutive else None

    def costs(self, piece_tokens: Mapping[str, int]) -> np.ndarray:
        """The tokens that each item is expected to cost, from those of each span by itself."""
        return np.array([*(piece_tokens[piece] for piece in self.pieces), *[_SPACE_TOKENS] * len(self.spaced)])

    def written(self, items: np.ndarray) -> Written:
        """The spans among some items, in order, and their text.

        With `drop_consecutive`, equal listed spans that become neighbours are written once.
        """
        is_span = items < len(self.pieces)
        kept = np.sort(items[is_span])
        if self.repeatable is not None:
            repeated = np.zeros(len(kept), dtype=bool)
            repeated[1:] = self.repeatable[kept[1:]] & (self.pieces[kept[1:]] == self.pieces[kept[:-1]])
            kept = kept[~repeated]
        if not len(self.symbols):
            return [(kept, self.join(kept))]
        opened = self.spaced[items[~is_span] - len(self.pieces)]
        return [(kept, self.join(kept, closed=np.setdiff1d(self.symbols, opened)))]


class StepLayout(RankedLayout):
    """A scored chain's steps, ranked by the sum of their spans' importance. Steps are kept and left out as a whole.

    The widest breaks that a chain has are the borders of its steps: empty lines, or else line breaks, or else the
    ends of sentences.

    Source: Step entropy (arXiv:2508.03346), with the scorer `entropy`. The paper's steps are parted by empty lines,
        and its code writes `[SKIP]` for each step that is left out: here `skip_text` does, where it is set.
    """

    fills = False  # the steps with the lowest sums go, whatever their length

    def __init__(self, chain: ScoredChain, keep: KeepSettings):
        check_scored(chain)
        self.bounds = np.append(_step_begins(Layout(chain.text, chain.spans)), len(chain.spans))
        first, last = self.bounds[:-1], self.bounds[1:] - 1
        spans = [(chain.spans[a][0], chain.spans[b][1]) for a, b in zip(first, last, strict=True)]
        sums = np.add.reduceat(np.asarray(chain.importance, dtype=float), first)
        super().__init__(chain.model_copy(update={"spans": spans, "importance": sums.tolist()}), keep)
        self.chains = [chain]
        self.skip_text = keep.skip_text

    def written(self, items: np.ndarray) -> Written:
        [(steps, text)] = super().written(items)
        if self.skip_text:
            pieces = np.full(len(self.pieces), self.skip_text, dtype=object)
            pieces[steps] = self.pieces[steps]
            text = "".join((self.gaps + pieces).tolist()).removeprefix(self.gaps[0])
        spans = [np.arange(self.bounds[step], self.bounds[step + 1]) for step in steps]
        return [(np.concatenate(spans), text)]


class Together:
    """Several chains ranked as one: each keeps what is above a threshold that all of them share.

    The items of a chain are those of its own layout, shifted behind the items of the chains before it. A chain's most
    important item stays at any ratio, so that no chain is empty.

    Attributes:
        chains, keys, ranked, forced, fills: as in RankedLayout.
        pieces: the spans' texts of all chains.
    """

    fills = False

    def __init__(self, layouts: Sequence[RankedLayout]):
        self.layouts = layouts
        self.chains = [chain for layout in layouts for chain in layout.chains]
        self.pieces = np.concatenate([layout.pieces for layout in layouts])
        self.begins = np.cumsum([0, *(layout.keys.shape[1] for layout in layouts)])
        self.keys = np.concatenate([layout.keys for layout in layouts], axis=1)
        self.keys[3, self.begins[:-1] + [layout.ranked[0] for layout in layouts]] = 0
        self.ranked = np.lexsort(self.keys)
        self.forced = int(((self.keys[3] == 0) & (self.keys[4] == 0)).sum())

    def costs(self, piece_tokens: Mapping[str, int]) -> np.ndarray:
        return np.concatenate([layout.costs(piece_tokens) for layout in self.layouts])

    def written(self, items: np.ndarray) -> Written:
        items = np.sort(items)
        parts = np.split(items, np.searchsorted(items, self.begins[1:-1]))
        return [
            one
            for layout, begin, part in zip(self.layouts, self.begins, parts, strict=False)
            for one in layout.written(part - begin)
        ]


Ranking = RankedLayout | Together


def check_scored(chain: ScoredChain) -> None:
    """Raise ValueError if a chain has no span. That it has one finite score a span, the record sees to."""
    if not chain.spans:
        raise ValueError(f"chain '{chain.id}' is empty: nothing to prune")


def peaks(ranks: np.ndarray, longest: int) -> np.ndarray:
    """Which of S spans must stay so that at most `longest` neighbours are left out, the fewest by their ranks.

    If more neighbours would go, the most important of them stays, and the same holds on both sides of it. So a span
    must stay if it is the most important of more than `longest` spans around it. The answer does not depend on the
    ratio: what a lower ratio keeps, a higher one keeps as well.

    Args:
        ranks: S different ranks, 0 for the most important span.

    Example:
        >>> peaks(np.array([4, 0, 3, 1, 2]), 2).tolist()
        [False, True, False, True, False]
    """
    must = np.zeros(len(ranks), dtype=bool)
    begin: list[int] = []  # where the spans begin that the open one is the most important of
    open_spans: list[int] = []  # more and more important towards the left
    for index, rank in enumerate([*ranks.tolist(), -1]):
        first = index
        while open_spans and ranks[open_spans[-1]] > rank:
            first = begin.pop()
            must[open_spans.pop()] = index - first > longest
        begin.append(first)
        open_spans.append(index)
    return must


def _step_begins(layout: Layout) -> np.ndarray:
    """The spans that begin a step, the first among them."""
    for breaks in (layout.empty_lines, layout.breaks):
        begins = np.flatnonzero(np.diff(breaks)) + 1
        if len(begins):
            return np.append(0, begins)
    ends = [piece.endswith(_SENTENCE_ENDS) for piece in layout.pieces[:-1]]
    return np.append(0, np.flatnonzero(ends) + 1)
