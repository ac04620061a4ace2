"""Split an output into chain and answer, extract the answer, check it with math-verify.

Grading is strict: an answer counts only if the output states one (boxed, or after an answer phrase) and it equals
the gold answer. There is no fallback to the last number of the text. `is_correct_by_reference` is the more lenient
rule of the authors' code (github.com/hemingkx/TokenSkip), so that their published numbers can be compared with.
"""

import math
import multiprocessing
import re
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from typing import NamedTuple

_ANSWER_PHRASE = re.compile(r"(?:final\s+answer|answer\s*(?:is|:|=))", re.IGNORECASE)
# On the last line, and short: "#### 18", "The answer is 18 apples." A Markdown heading is neither.
_STATED_ANSWER = re.compile(
    r"(?:####[ \t]*([-+$€£]?\d[\d.,/% ]*)|answer\s*(?:is|:|=)[ \t]*:?[ \t]*([^\n]{1,60}))\s*\Z", re.IGNORECASE
)
_SENTENCE_START = re.compile(r"\n|(?<=[.!?])\s+(?=[A-Z\\$*])")
# The closing phrase, cut off before its box was closed.
_TORN_CLOSING = re.compile(r"\n\s*(?:the\s+)?final\s+answer(?:\s+is)?:?\s*(?:\$?\\?\w*(?:\{[^\n]*)?)?\Z", re.IGNORECASE)
_OPENING_DELIMITER = re.compile(r"(?:\\\[|\\\(|\$\$?|\*\*)\s*$")

# A calculation between an answer phrase and the answer: "the answer is 3 * 4 = 12".
_CALCULATION = re.compile(
    r"[.,$€£%()]*\d[\d.,$€£%()]*+(?:\s*(?:[-+*/×÷]|\\times|\\cdot|\\div)\s*[.,$€£%()]*\d[\d.,$€£%()]*+)+\s*="
    r"\s*(?=[-+$€£]*\d|\\boxed|\$?\Z)"
)

# "B", "(B)", "B) twelve", "option B", "\\text{(B)}": one letter, and at most the text of the choice after it.
_CHOICE = re.compile(
    r"(?:\$?\\(?:text|math)\w*\{)?(?:(?i:option|choice)\s)?\(?([A-Z])"
    r"(?:[).:}$]*\Z|[.):]+\s+(?!\W*(?:or|and)\b|\(?[A-Z]\W*\Z).{2,})",
    re.DOTALL,
)
# "18 dollars", "3/4 cup of milk", "18.5% a year": a number and what it counts, in words that do not change the number.
_BARE_NUMBER = re.compile(r"[-+]?(?:\\?[$€£])?-?(?:\d(?:[\d,]|\{,\}\d)*(?:\.\d+|/\d+)?|\.\d+)")
_PERCENT = r"(?:\s|\\ )*\\?%"
_NO_UNIT = (  # a single letter is a variable
    "out of|pi|half|halves|thirds?|quarters?|squared|cubed|factorial|sqrt|ln|log|[b-z]|dozens?|hundreds?|thousands?|"
    "millions?|billions?|trillions?|zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|"
    "fifteen|sixteen|seventeen|eighteen|nineteen|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety"
)
_SYMBOL = r"(?:[kcmµ]?m|[km]?g|[mµn]?s|h|L|[kmc]l|km/h|mph|m/s)(?:\^?\{?[23]\}?|[²³])?"  # of a unit: case matters
_NUMBER_WITH_UNIT = re.compile(
    rf"({_BARE_NUMBER.pattern})(?={_PERCENT}|\s)(?:{_PERCENT})?"
    rf"(?:\s+(?:{_SYMBOL}|(?i:(?!.*\b(?:{_NO_UNIT})\b)[A-Za-z]{{2,}}(?: [A-Za-z]+){{0,3}}\.?)))?"
)
_SPACED_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:(?: |~|\\ )\d{3})+(?!\d)")
_WRAPPED = re.compile(r"\\(?:text|mathrm)\{([^{}]*)\}|\$([^$]+)\$")  # the whole answer, or the number of "$18$ dollars"
# "\{1, 2\}" and "(1, 2)": one pair of brackets around a list of plain things.
_LIST = re.compile(r"(?:\\left)?\s*(\\\{|[\[(])[^()\[\]{}\\]*,[^()\[\]{}\\]*(?:\\right)?\s*(?:\\\}|[\])])")
_TAIL = 400  # characters at an output's end: where a stated or a torn answer is looked for

THINK_END = "</think>"
_OPENING_THINK = re.compile(r"\A\s*<think>\s*")


class Boxed(NamedTuple):
    """A `\\boxed{...}`: where it starts and ends (character offsets), and what is inside."""

    start: int
    end: int
    content: str


class SplitOutput(NamedTuple):
    """An output in two parts; `prediction` is None if the output states no answer.

    `chain + answer` is the output without an opening `<think>`.
    """

    chain: str
    answer: str
    prediction: str | None


def last_boxed(text: str) -> Boxed | None:
    r"""The last `\boxed{...}` whose braces balance, nested braces included; None if there is none.

    Example:
        >>> last_boxed(r"It is \boxed{\frac{1}{2}}.").content
        '\\frac{1}{2}'
    """
    for match in reversed(list(re.finditer(r"\\(?:boxed|fbox)\s*\{", text))):
        depth = 0
        for position in range(match.end() - 1, len(text)):
            if text[position] in "{}" and text[position - 1] != "\\":
                depth += 1 if text[position] == "{" else -1
                if depth == 0:
                    return Boxed(match.start(), position + 1, text[match.end() : position])
    return None


def split_output(output: str, layout: str = "answer") -> SplitOutput:
    r"""Split an output where its chain of thought ends and its answer begins.

    Layout "think": the chain is the text before `</think>`, without the opening `<think>`. The answer begins with
    that tag. Without the tag the model has not finished thinking, and states no answer.

    Layout "answer": words decide.
    - The answer is the last boxed expression. If its sentence announces an answer ("The final answer is ..."), the
      whole sentence belongs to the answer. Otherwise, or if a calculation follows the announcement, only the box does,
      so that a calculation that ends in a box keeps its tokens.
    - Without a box, the answer is an "answer is ..." or "#### ..." that ends the output, by the same rule.
    - Without either, the whole output is the chain and there is no prediction: the chain of a cut-off output is
      counted to its last token.
    - A closing phrase that was cut off is not part of the chain. An answer that was boxed before it still counts.

    Args:
        output: what the model wrote.
        layout: "answer" or "think" (`prompts.layout`).

    Example:
        >>> split_output("3 * 6 = 18.\nThe final answer is: $\\boxed{18}$")
        SplitOutput(chain='3 * 6 = 18.\n', answer='The final answer is: $\\boxed{18}$', prediction='18')
    """
    if layout == "think":
        thought = _OPENING_THINK.sub("", output)
        end = thought.find(THINK_END)
        if end < 0:
            return SplitOutput(thought, "", None)
        return SplitOutput(thought[:end], thought[end:], split_output(thought[end:]).prediction)
    boxed, tail = last_boxed(output), max(0, len(output.rstrip()) - _TAIL)
    if boxed is not None:
        if torn := _TORN_CLOSING.search(output, max(boxed.end, tail)):
            # What was boxed in the chain was stated, too.
            return SplitOutput(output[: torn.start()], output[torn.start() :], boxed.content.strip())
        before, sentence = output[: boxed.start], _sentence_start(output, boxed.start)
        phrase = _ANSWER_PHRASE.search(before, sentence)
        if phrase and not _CALCULATION.search(before, phrase.end()):
            start = sentence
        else:
            delimiter = _OPENING_DELIMITER.search(before)
            start = delimiter.start() if delimiter else boxed.start
        return SplitOutput(output[:start], output[start:], boxed.content.strip())
    if torn := _TORN_CLOSING.search(output, tail):
        return SplitOutput(output[: torn.start()], output[torn.start() :], None)
    stated = _STATED_ANSWER.search(output, tail)
    if stated and "\\boxed" not in stated.group():  # a box that never closes was cut off
        group = stated.lastindex or 0
        start = stated.start(group)
        # A separator begins the answer itself: "21 - 15 = 6. #### 6" has its calculation in the chain.
        begin = stated.start() if group == 1 else _sentence_start(output, stated.start())
        if _CALCULATION.match(output, start):
            start = begin = max(match.end() for match in _CALCULATION.finditer(output, start))
        prediction = output[start : stated.end(group)].strip().rstrip(".").strip("$* ")
        return SplitOutput(output[:begin], output[begin:], prediction or None)
    return SplitOutput(output, "", None)


def _sentence_start(text: str, position: int) -> int:
    """The start of the sentence that `position` is in. A sentence's start is recognised by the text around it."""
    return max((m.end() for m in _SENTENCE_START.finditer(text) if m.end() <= position), default=0)


@lru_cache(maxsize=65536)
def is_correct(prediction: str | None, gold: str) -> bool:
    """Whether a stated answer equals the gold answer, by math-verify.

    Rules that apply before math-verify is asked:
    - If the gold answer is a letter, it is a choice: the answer must state that letter. The text of the choice alone
      does not count.
    - A set is not a tuple.
    - If the gold answer is a plain number or a percentage, spaces between groups of three digits and what the number
      counts (a unit) are left out of the answer. A percent sign is a unit or a hundredth: 50% equals 50 and 0.5.

    Args:
        prediction: the answer as extracted, LaTeX or plain. None is wrong, and so is an answer that math-verify cannot
            settle in 5 seconds.
        gold: the data set's answer.

    Example:
        >>> is_correct("18 dollars", "18"), is_correct("19", "18"), is_correct(None, "18")
        (True, False, False)
    """
    if prediction is None or not prediction.strip():
        return False
    if " ".join(prediction.split()) == " ".join(gold.split()):
        return True
    if re.fullmatch(r"\(?[A-Z]\)?", gold.strip()) and (choice := _CHOICE.match(prediction.strip(" *"))):
        return choice.group(1) == gold.strip("() ")
    thin = r"(?<=\d)\\[,!;](?=\d)"  # spaces
    prediction = re.sub(thin, "", prediction).replace("−", "-").strip()
    stated, number = prediction, re.sub(f"(?<=\\d){_PERCENT}\\Z", "", gold.strip())
    if _BARE_NUMBER.fullmatch(number):
        plain = _WRAPPED.sub(lambda wrapped: wrapped.group(1) or wrapped.group(2) or "", stated).removesuffix(".")
        plain = _SPACED_THOUSANDS.sub(lambda digits: re.sub(r"\D", "", digits.group()), plain)
        if with_unit := _NUMBER_WITH_UNIT.fullmatch(plain):
            plain = with_unit.group(1)
        if _BARE_NUMBER.fullmatch(plain):
            if "%" in stated + gold and _checked(stated, gold):
                return True
            prediction, gold = re.sub(r"\\?[$€£]", "", plain), number
    stated_list, wanted_list = _LIST.fullmatch(prediction.strip()), _LIST.fullmatch(gold.strip())
    if stated_list and wanted_list and ("{" in stated_list.group(1)) != ("{" in wanted_list.group(1)):
        return False
    return _checked(prediction, gold)


def _checked(prediction: str, gold: str) -> bool:
    """`_verify`, from any thread.

    The library grades in the main thread. `is_correct` is public, though, and in the thread of a notebook widget or a
    web server math-verify could not set its time limits: there another process grades.
    """
    if threading.current_thread() is threading.main_thread():
        return _verify(prediction, gold)
    try:
        return _other_process().submit(_verify, prediction, gold).result()
    except BrokenProcessPool:  # it was killed: another takes its place, once
        _other_process.cache_clear()
        return _other_process().submit(_verify, prediction, gold).result()


def _verify(prediction: str, gold: str) -> bool:
    """math-verify's verdict. Its time limits use SIGALRM, which only a process's main thread may set."""
    from math_verify import parse, verify

    parsed_gold, parsed = (parse(f"\\boxed{{{text}}}", parsing_timeout=5) for text in (gold, prediction))
    return bool(verify(parsed_gold, parsed, strict=True, timeout_seconds=5))


@lru_cache(maxsize=1)
def _other_process() -> ProcessPoolExecutor:
    """A process whose main thread checks what this one's other threads ask."""
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


def is_correct_by_reference(output: str, gold: str) -> bool:
    r"""Whether the rule of the authors' code takes an output for right.

    The answer is the last box, else what follows "the answer is", else the last number of the whole text. Two numbers
    are equal if one is within 0.01% of the other, of its hundredth or of a hundred times it. An answer that is not a
    number is compared by `is_correct`.

    Source: github.com/hemingkx/TokenSkip, the rule as described there. Symbolic answers are compared by math-verify.

    Example:
        >>> is_correct_by_reference("That makes 1800 in all.", "18"), is_correct_by_reference("None.", "18")
        (True, False)
    """
    prediction = _reference_answer(output)
    stated, wanted = _plain_number(prediction), _plain_number(gold)
    if stated is None or wanted is None:
        return is_correct(prediction, gold)
    return any(math.isclose(stated, wanted * factor, rel_tol=1e-4) for factor in (0.01, 1, 100))


_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")


def _reference_answer(output: str) -> str | None:
    if (boxed := last_boxed(output)) is not None:
        return boxed.content.strip()
    _, phrase, after = output.rpartition("he answer is")
    if phrase:
        return after.strip().strip(":").strip().partition("\n")[0].rstrip(".").strip("$ ")
    numbers = _NUMBER.findall(output)
    return numbers[-1] if numbers else None


def _plain_number(text: str | None) -> float | None:
    cleaned = re.sub(r"[\s,$€£]|\\[$%!]|%$|\\(?:text|mathrm)\{[^{}]*\}", "", text or "").rstrip(".")
    try:
        value = float(cleaned)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
