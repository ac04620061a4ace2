"""A text cut into spans, and how it is written down without some of them."""

import re
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import regex

from tokenskip_lib.core.records import ScoredChain

_NUMBER = re.compile(r"\d(?:\W|\d)*")  # a span that is a number and nothing else: 3.5, 1 234, 1{,}234
_GROUPS_BEGIN, _GROUPS_GO_ON = re.compile(r"[1-9]\d{0,2}(?: \d{3})*"), re.compile(r"\d{3}(?!\d)")  # 6 and 432 in 6 432
_LINE_END = re.compile(r"\r\n|[\n\r\x85\u2028\u2029]")
# The end of a span and the begin of another that may not touch, because together they would be read as one word,
# number, command or sign.
_APART = regex.compile(
    r"""
    [[\p{L}\p{M}\p{N}]--[\p{Han}\p{Hiragana}\p{Katakana}ー\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]]{2}
    | \p{N} [.,{\\'’] | [.,;!}+\-'’] \p{N} | [eE] [+\-] | [\w.] \. \d  # 5.3  5,3  1{,}234  5e-3  x.5
    | [\p{L}\p{M}] ['’] | ['’] \p{L}                         # don't
    | \\ . | ([^\p{L}\p{M}\p{N}]) \1                         # \frac  ==
    | . [\p{M}\p{Cf}\p{RI}\p{EMod}] | \p{Cf} .               # 🇩🇪
    """,
    regex.VERBOSE | regex.DOTALL | regex.VERSION1,
)


class Layout:
    """A text cut into S spans, ready to be written down again without some of them."""

    def __init__(self, text: str, spans: Sequence[tuple[int, int]]):
        ends = [0, *(end for _, end in spans[:-1])]
        self.pieces = np.array([text[start:end] for start, end in spans], dtype=object)
        self.gaps = np.array([text[end:start] for (start, _), end in zip(spans, ends, strict=True)], dtype=object)
        line_ends = [_LINE_END.findall(gap) for gap in self.gaps]
        # Whitespace, line breaks and empty lines before each span, counted from the text's beginning.
        self.spaces = np.cumsum([gap != "" for gap in self.gaps])
        self.breaks = np.cumsum([len(found) > 0 for found in line_ends])
        self.empty_lines = np.cumsum([len(found) > 1 for found in line_ends])
        self.line_ends = np.array([found[0] for found in line_ends if found], dtype=object)  # of each line break
        self.numbers = np.array([_NUMBER.fullmatch(piece) is not None for piece in self.pieces])
        self.begin_groups = np.array([_GROUPS_BEGIN.fullmatch(piece) is not None for piece in self.pieces])
        self.go_on = np.array([_GROUPS_GO_ON.match(piece) is not None for piece in self.pieces])

    def join(self, kept: np.ndarray, closed: np.ndarray | None = None) -> str:
        """Write the kept spans down, "" if there are none. Spans that were apart stay apart.

        Neighbours keep what was between them, to the byte. If something was left out between two spans:
        - A line break of the gap stays one line break, of its own kind, and an empty line stays an empty line.
        - Where the gap had whitespace, it becomes a single space.
        - Where the gap had none, none is written, unless the two spans would be read as one. So numbers and words
          are never glued: "88/2" without its operator is "88 2".
        - Two numbers that one space would make a single number get two: "6 * 432" without its operator is "6  432".

        Args:
            kept: indices of spans, ascending.
            closed: indices of operators that are written without a space next to a number: "88/2".

        Example:
            >>> layout = Layout("88 / 2 = 44", [(0, 2), (3, 4), (5, 6), (7, 8), (9, 11)])
            >>> layout.join(np.array([0, 2, 3, 4])), layout.join(np.arange(5), closed=np.array([1]))
            ('88 2 = 44', '88/2 = 44')
        """
        if not len(kept):
            return ""
        before, after = kept[:-1], kept[1:]
        between = np.full(len(before), " ", dtype=object)
        between[self.begin_groups[before] & self.go_on[after]] = "  "
        broken = self.breaks[after] > self.breaks[before]
        empty_lines = self.empty_lines[after] > self.empty_lines[before]
        between[broken] = self.line_ends[self.breaks[before[broken]]] * (1 + empty_lines[broken])
        neighbours = after == before + 1
        between[neighbours] = self.gaps[after[neighbours]]
        for index in np.flatnonzero(~neighbours & (self.spaces[after] == self.spaces[before])):
            if _may_touch(self.pieces[before[index]][-1], self.pieces[after[index]][:2]):
                between[index] = ""
        if closed is not None:
            is_closed = np.isin(np.arange(len(self.pieces)), closed)
            beside = (is_closed[before] & self.numbers[after]) | (self.numbers[before] & is_closed[after])
            between[beside & ~broken] = ""
        written = np.empty(2 * len(kept) - 1, dtype=object)
        written[0::2] = self.pieces[kept]
        written[1::2] = between
        return "".join(written.tolist())


@lru_cache(maxsize=65536)
def _may_touch(left: str, right: str) -> bool:
    """Whether two spans stay two if the last character of one and the first two of the other stand side by side."""
    return _APART.match(left + right) is None


def listed_spans(chain: ScoredChain, tokens: Sequence[str]) -> np.ndarray:
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


def protected_spans(chain: ScoredChain, markers: Sequence[Sequence[str]]) -> np.ndarray:
    """Which spans are in a region between an opening and a closing marker, or in the markers themselves.

    A region ends at the first closing marker after its opening one. An opening marker that is never closed protects
    nothing.

    Example:
        >>> chain = ScoredChain(id="a", scorer="s", text="a <b>", spans=[(0, 1), (2, 5)], importance=[0, 0])
        >>> protected_spans(chain, [["<", ">"]]).tolist()
        [False, True]
    """
    starts, ends = np.asarray(chain.spans).T
    inside = np.zeros(len(starts), dtype=bool)
    for opening, closing in markers:
        start = chain.text.find(opening)
        while start >= 0 and (last := chain.text.find(closing, start + len(opening))) >= 0:
            end = last + len(closing)
            inside[np.searchsorted(ends, start, side="right") : np.searchsorted(starts, end, side="left")] = True
            start = chain.text.find(opening, end)
    return inside
