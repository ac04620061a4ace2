"""A text cut into spans, and how it is written down without some of them."""

import re
from collections.abc import Sequence

import numpy as np

from tokenskip_lib.core.records import ScoredChain
from tokenskip_lib.core.settings import KeepSettings
from tokenskip_lib.pruning.spans import span_kinds

_NUMBER = re.compile(r"\d[\d.,]*")
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
        """Write the kept spans down. Spans that were apart stay apart.

        Neighbours keep what was between them, to the byte. If something was left out between two spans, a line
        break of the gap stays one line break, and any other gap becomes a single space. So numbers are never
        glued ("88 / 2" without its operator is "88 2"), and steps stay on lines of their own.

        Args:
            kept: indices of spans, ascending.
            closed: indices of operators that are written without a space next to a number: "88/2".

        Example:
            >>> layout = Layout("88 / 2 = 44", [(0, 2), (3, 4), (5, 6), (7, 8), (9, 11)])
            >>> layout.join(np.array([0, 2, 3, 4])), layout.join(np.arange(5), closed=np.array([1]))
            ('88 2 = 44', '88/2 = 44')
        """
        before, after = kept[:-1], kept[1:]
        # 0: no line break between the two spans, 1: a line break, 2: an empty line.
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


class RankedLayout(Layout):
    """A scored chain's layout with its items from the most to the least important: forced spans, operators, others.

    An item below S is a span. With `skip_spaces` there are further items behind all spans: S + i stands for the
    spaces around the operator i.

    Attributes:
        ranked: all items, the most important first.
        forced: how many of them stay at any ratio.

    Raises:
        ValueError: no span, a number of scores that is not S, or a score that is not finite.
    """

    def __init__(self, chain: ScoredChain, keep: KeepSettings):
        if not chain.spans:
            raise ValueError(f"chain '{chain.id}' is empty: nothing to prune")
        if len(chain.importance) != len(chain.spans):
            raise ValueError(f"chain '{chain.id}': {len(chain.spans)} spans, {len(chain.importance)} scores")
        scores = np.asarray(chain.importance, dtype=float)
        if not np.isfinite(scores).all():
            raise ValueError(f"chain '{chain.id}': an importance score is not finite")
        super().__init__(chain.text, chain.spans)

        # Which spans stay, and which come next.
        listed = _listed_spans(chain, keep.keep_tokens)
        is_operator = np.array([kind == "operator" for kind in span_kinds(self.pieces.tolist())])
        operators = is_operator & keep.keep_operators
        forced = listed.copy()
        if keep.keep_digits:
            forced |= [any(character.isdigit() for character in piece) for piece in self.pieces]
        if keep.skip_spaces:  # an operator takes the place of a space between two numbers
            forced |= operators
        self.forced = int(forced.sum())

        # The last key counts first. Of two equal spans the earlier one comes first. Of the operators "=" comes
        # last: the result of a computation can be read without it.
        equals = operators & (self.pieces == "=")
        spans = np.lexsort((np.arange(len(scores)), -scores, equals, ~operators, ~forced))

        # With skip_spaces: the operators that a number may touch, and those of them that have a space to lose.
        is_symbol = np.array([_SYMBOL.match(piece) is not None for piece in self.pieces])
        self.symbols = np.flatnonzero(is_operator & is_symbol & keep.skip_spaces)
        has_gap = np.array([gap != "" for gap in [*self.gaps, ""]])
        self.spaced = self.symbols[has_gap[self.symbols] | has_gap[self.symbols + 1]]
        self.ranked = np.append(spans, len(scores) + self.spaced)
        self.repeatable = listed if keep.drop_consecutive else None

    def written(self, items: np.ndarray) -> tuple[np.ndarray, str]:
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
            return kept, self.join(kept)
        return kept, self.join(kept, closed=np.setdiff1d(self.symbols, items[~is_span] - len(self.pieces)))


def _listed_spans(chain: ScoredChain, tokens: Sequence[str]) -> np.ndarray:
    """Which spans are in an occurrence of a listed text. An occurrence begins and ends with whole spans."""
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
