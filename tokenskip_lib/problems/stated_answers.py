r"""Where a text states an answer: in boxes, or in words that announce one.

All functions take time linear in the text's length. Patterns that could take longer see a number of characters that
does not grow with the text: `TAIL` or `LONGEST` at most.
"""

import re
from functools import lru_cache
from typing import NamedTuple

from tokenskip_lib.problems.answer_forms import compare, read_number
from tokenskip_lib.problems.answer_spelling import plain

TAIL = 400  # characters at an output's end, and before a box, where an announcement is looked for
LONGEST = 1000  # characters of an answer: a longer text is none

# "The answer is", "Answer:", "the answer to the question would be", "Ans =", "the correct option is".
_VERB = r"(?:is|was|equals|becomes|(?:[a-z]+ ){1,2}be|(?:comes|turns|works) out to(?: be)?|comes to)\b"
_TOPIC = r"(?:,?\s(?:to|in|for|of|as|that|rounded|I|we (?:want|need|are))\s[^\n.:=?!\d$\\]{1,60}?)?"
_ANNOUNCED = (
    r"final\s+answer(?:\s+is\b)?|\bans\."
    r"|(?:answer|\bans\b|(?:correct|right)\s+(?:option|choice)|correction)[*_`]*"
    rf"{_TOPIC}(?:\s*[:=：→]|\s-\s|\s*\b{_VERB})"
)
_ANSWER_PHRASE = re.compile(_ANNOUNCED, re.IGNORECASE)
_SENTENCE_START = re.compile(r"\n|(?<=[.!?])\s+(?=[A-Z\\$*])|(?<=。)")
# The closing phrase, cut off before its answer was there.
_TORN_CLOSING = re.compile(
    r"\n\s*(?:the\s+)?final\s+answer(?:\s+is?)?:?\s*(?:the|an?|that|\$?\\?\w*\{[^\n]*|\$?(?:\\\w*)?)?\Z", re.IGNORECASE
)
_OPENING_DELIMITER = re.compile(r"(?:\\\[|\\\(|\$\$?|\*\*)\s*\Z")
# Before a stated answer: colons, Markdown, an opening delimiter, and words that state nothing.
_LEAD = re.compile(
    r"(?:[\s*_`:=：→]|\\\[|\\\(|\$\$|(?:therefore|thus|hence|then|simply|just|indeed|it (?:is|should be)),?\s)*",
    re.IGNORECASE,
)
# How an answer begins, rather than a sentence that goes on: a number, mathematics, a choice, yes or no.
_ANSWER_LIKE = re.compile(
    r"(?:[-+−–$€£¥₹({\[|\s]|\\[$({\[])*(?:\.?\d|√|\\[a-zA-Z]|[^\W\d_](?:\(\w\))?\s?[-=^+]|[A-HJ-Z](?![\w'’])"
    r"|(?i:yes|no|true|false)\b)"
)
_HEADING = re.compile(r"\d+[.):] +\S|\d+ +[A-Z*](?![A-Z])|[A-Z] +\S")  # or an item of a list: "1. First"
_REVOKED = re.compile(
    r"\b(?:wait|but|however|actually|wrong|incorrect|mistake|sorry|not (?:correct|right|true))\b", re.IGNORECASE
)

# A calculation between an answer phrase and the answer: "the answer is 3 * 4 = 12".
_CALCULATION = re.compile(
    r"[.,$€£%()]*\d[\d.,$€£%()]*+(?:\s*(?:[-+*/×÷]|\\times|\\cdot|\\div)\s*[.,$€£%()]*\d[\d.,$€£%()]*+)+\s*="
    r"\s*(?=[-+$€£]*\d|\\boxed|\$?\Z)"
)
_BOX = re.compile(
    r"\\(?:boxed|fbox)\s*\{|(?<!\\)[{}]"  # and a box without braces
    r"|\\boxed[ \t]*(?P<bare>-?\\?\$?\d[\w.,/]*|-?\\(?:[dt]?frac|sqrt|text)(?:\{[^{}\n]*\}){1,2}|[A-Z]\b)"
)
# Between boxes that are one answer: "\\boxed{3}, \\boxed{5} and \\boxed{7}".
_GAP = r"(?:[\s$]|\\q?quad|\\[ ,;()\[\]])*"
_JOINT = re.compile(rf"{_GAP}(?:[,;]|,?{_GAP}(?:\\text\{{)?\s*\b(?:and|or)\b\s*\}}?){_GAP}(?:[A-Za-z] ?= ?)?")


class Boxed(NamedTuple):
    """A `\\boxed{...}`: where it starts and ends (character offsets), and what is inside."""

    start: int
    end: int
    content: str


class Stated(NamedTuple):
    """Where an output's answer begins (a character offset), and what it is; None where it was cut off."""

    begin: int
    answer: str | None


def last_boxed(text: str) -> Boxed | None:
    r"""The last `\boxed{...}` whose braces balance, nested braces included; None if there is none.

    `\boxed 9`, without braces, is a box around a number, a fraction, a root or one letter.

    Example:
        >>> last_boxed(r"It is \boxed{\frac{1}{2}}.").content, last_boxed(r"$\boxed 9$").content
        ('\\frac{1}{2}', '9')
    """
    places = _box_places(text)
    return _boxed(text, places[-1]) if places else None


def answer_box(text: str) -> Boxed | None:
    r"""The last box, with the boxes before it that are one answer with it: their contents, equal neighbours once.

    Example:
        >>> answer_box(r"\boxed{3}, \boxed{5} and \boxed{7}").content, answer_box(r"\boxed{3} + \boxed{5}").content
        ('3, 5, 7', '5')
    """
    places = _box_places(text)
    if not places:
        return None
    first = len(places) - 1
    while (
        first and 0 < places[first][0] - places[first - 1][1] <= 40 and places[first][1] - places[first - 1][0] <= TAIL
    ):
        if not _JOINT.fullmatch(text, places[first - 1][1], places[first][0]):
            break
        first -= 1
    contents: list[str] = []
    for place in places[first:]:
        content = _boxed(text, place).content.strip()
        if contents and compare(plain(content), plain(contents[-1])):
            contents.pop()
        contents.append(content)
    return Boxed(places[first][0], places[-1][1], ", ".join(contents))


def _boxed(text: str, place: tuple[int, int, int, int]) -> Boxed:
    start, end, *inside = place
    return Boxed(start, end, text[slice(*inside)])


def _box_places(text: str) -> list[tuple[int, int, int, int]]:
    """Start and end of every box, and of its content, in the order of their starts."""
    opened: list[tuple[int, int] | None] = []  # an open box, or another open brace
    places = []
    first = re.search(r"\\(?:boxed|fbox)", text)
    for match in _BOX.finditer(text, first.start()) if first else ():
        if match["bare"]:
            end = match.start("bare") + len(match["bare"].rstrip(".,"))
            places.append((match.start(), end, match.start("bare"), end))
        elif match[0] != "}":
            opened.append(match.span() if len(match[0]) > 1 else None)
        elif opened and (box := opened.pop()):
            places.append((box[0], match.end(), box[1], match.start()))
    return sorted(places)


def stated_by_box(output: str, boxed: Boxed) -> Stated:
    """The answer that a box states: with its sentence if that announces it, and has no calculation in between."""
    before, sentence = output[: boxed.start], _sentence_start(output, boxed.start)
    phrase = _ANSWER_PHRASE.search(before, max(sentence, boxed.start - TAIL))
    if phrase and not _CALCULATION.search(before, phrase.end()):
        return Stated(sentence, boxed.content)
    delimiter = _OPENING_DELIMITER.search(before, max(0, boxed.start - TAIL))
    return Stated(delimiter.start() if delimiter else boxed.start, boxed.content)


def stated_in_words(output: str, boxed: Boxed | None, phrases: tuple[str, ...] = ()) -> Stated | None:
    r"""The answer that words after the last box announce near the end of an output; None if none do.

    - An answer counts that looks like one, and is followed by a remark at most. After a box it must say something
      else than the box.
    - A closing phrase that was cut off states what was boxed before it.
    - Without a box, whatever follows the announcement counts if it is short and ends the output in the same line.

    Args:
        phrases: what announces an answer, beside the English phrases.

    Example:
        >>> stated_in_words("She has 18.\n\n**Final Answer**\n18 dollars.", None)
        Stated(begin=13, answer='18 dollars')
    """
    text = output.rstrip()
    tail = max(boxed.end if boxed else 0, len(text) - TAIL)
    announcements = list(_announcements(phrases).finditer(text, tail))
    for announcement in reversed(announcements):
        stated = _statement(text, announcement)
        if stated and stated.answer and (boxed is None or _corrects(stated.answer, boxed.content)):
            return stated
    if torn := _TORN_CLOSING.search(text, tail):
        return Stated(torn.start(), boxed.content if boxed else None)
    if boxed is None:
        for announcement in announcements:
            if stated := _statement(text, announcement, anything=True):
                return stated
    return None


@lru_cache(maxsize=8)
def _announcements(phrases: tuple[str, ...]) -> re.Pattern:
    own = "".join(f"{re.escape(phrase.strip())}|" for phrase in sorted(phrases, key=len, reverse=True))
    return re.compile(rf"{own}####(?!#)|^[#*_ \t]*answer[*_ \t]*$|{_ANNOUNCED}", re.IGNORECASE | re.MULTILINE)


def _statement(text: str, announcement: re.Match, anything: bool = False) -> Stated | None:
    """The answer that an announcement states, as the bullets of `stated_in_words` say; `anything`: by the last one."""
    lead = _LEAD.match(text, announcement.end())
    start = lead.end() if lead else announcement.end()
    sentence_end = None if anything else _SENTENCE_START.search(text, start)
    stop = sentence_end.start() if sentence_end else len(text)
    calculations = list(_CALCULATION.finditer(text, start, stop))
    calculated = bool(calculations) and calculations[0].start() == start
    if calculated:
        start = calculations[-1].end()
    answer = re.sub(r"(?:\\[\])]|\$\$)\s*\Z", "", text[start:stop].strip())
    answer = answer.strip("*_` \n").rstrip(".。!").strip("$*_` ").rstrip(".。").strip("$*_` ")
    if not answer or "\\boxed" in answer or "\\boxed".startswith(answer) or answer.count("{") > answer.count("}"):
        return None
    heading, remark = announcement[0] == "####", text[stop:]
    if anything and (heading or stop - start > 60 or "\n" in text[announcement.end() : stop]):
        return None
    if not anything:
        a_list = (heading or "\n" in text[announcement.end() : start]) and _HEADING.match(text, start)
        other_numbers = set(re.findall(r"\d+", remark)) - set(re.findall(r"\d+", answer))
        revoked = answer.endswith("?") or other_numbers or "\\boxed" in remark or _REVOKED.search(remark)
        if a_list or revoked or not _ANSWER_LIKE.match(answer):
            return None
    # A separator begins the answer itself: "21 - 15 = 6. #### 6" has its calculation in the chain.
    begin = announcement.start() if heading else _sentence_start(text, announcement.start())
    return Stated(start if calculated else begin, answer)


def _corrects(stated: str, boxed: str) -> bool:
    """Whether an answer in words corrects the box before it: it is mathematics or a number alone, and another one."""
    words = re.search(r"(?<![\\A-Za-z])[A-Za-z]{2,}", re.sub(r"\\text\w*\{[^{}]*\}", "", stated))
    number = read_number(plain(stated))
    if words and (number is None or number.value is None):
        return False
    return len(boxed) > LONGEST or not compare(plain(stated), plain(boxed))


def _sentence_start(text: str, position: int) -> int:
    """The start of the sentence that `position` is in. A sentence's start is recognised by the text around it."""
    return max((m.end() for m in _SENTENCE_START.finditer(text) if m.end() <= position), default=0)
