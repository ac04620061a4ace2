"""Split an output into chain and answer, extract the answer, check it with math-verify.

Strict: an answer counts only where the output states one (boxed, or after an answer phrase), and
only if it equals the gold answer. There is no fallback to the last number of the text.
"""

import re
import threading
from typing import NamedTuple

_ANSWER_PHRASE = re.compile(r"(?:final\s+answer|answer\s*(?:is|:|=))", re.IGNORECASE)
# On the last line, and short: "#### 18", "The answer is 18 apples." A Markdown heading is neither.
_STATED_ANSWER = re.compile(
    r"(?:####[ \t]*([-+$€£]?\d[\d.,/% ]*)|answer\s*(?:is|:|=)[ \t]*:?[ \t]*([^\n]{1,60}))\s*\Z", re.IGNORECASE
)
_SENTENCE_START = re.compile(r"\n|(?<=[.!?])\s+(?=[A-Z\\$*])")
_OPENING_DELIMITER = re.compile(r"(?:\\\[|\\\(|\$\$?|\*\*)\s*$")

THINK_END = "</think>"
_OPENING_THINK = re.compile(r"\A\s*<think>\s*")


class Boxed(NamedTuple):
    """A `\\boxed{...}`: where it starts and ends (character offsets), and what is inside."""

    start: int
    end: int
    content: str


class SplitOutput(NamedTuple):
    """An output in two parts; `prediction` is None where none is stated.

    `chain + answer` is the output, less an opening `<think>`.
    """

    chain: str
    answer: str
    prediction: str | None


def last_boxed(text: str) -> Boxed | None:
    """The last `\\boxed{...}` whose braces balance, nested braces included."""
    for match in reversed(list(re.finditer(r"\\(?:boxed|fbox)\s*\{", text))):
        depth = 0
        for position in range(match.end() - 1, len(text)):
            if text[position] in "{}" and text[position - 1] != "\\":
                depth += 1 if text[position] == "{" else -1
                if depth == 0:
                    return Boxed(match.start(), position + 1, text[match.end() : position])
    return None


def split_output(output: str, layout: str = "answer") -> SplitOutput:
    """Where the chain of thought ends and the answer begins, whatever words announce it.

    In the layout "think" the chain is what stands before `</think>`, without the opening `<think>`,
    and the answer begins with that tag; without the tag the model has not finished thinking.

    In the layout "answer" words decide:
    The answer is the last boxed expression. If its sentence announces an answer ("The final answer
    is ..."), the sentence belongs to the answer; otherwise only the box does, so that a calculation
    that ends in a box keeps its tokens. Without a box, an "answer is ..." or "#### ..." that ends
    the output is taken. Without either the whole output is the chain and nothing is predicted: a
    cut-off output is counted to its last token.
    """
    if layout == "think":
        thought = _OPENING_THINK.sub("", output)
        end = thought.find(THINK_END)
        if end < 0:
            return SplitOutput(thought, "", None)
        return SplitOutput(thought[:end], thought[end:], split_output(thought[end:]).prediction)
    boxed = last_boxed(output)
    if boxed is not None:
        before = output[: boxed.start]
        starts = [match.end() for match in _SENTENCE_START.finditer(before)]
        sentence = max(starts, default=0)
        if _ANSWER_PHRASE.search(before[sentence:]):
            start = sentence
        else:
            delimiter = _OPENING_DELIMITER.search(before)
            start = delimiter.start() if delimiter else boxed.start
        return SplitOutput(output[:start], output[start:], boxed.content.strip())
    stated = _STATED_ANSWER.search(output)
    if stated and "\\boxed" not in stated.group():  # a box that never closes was cut off
        prediction = (stated.group(1) or stated.group(2)).strip().rstrip(".").strip("$* ")
        line = max((m.end() for m in _SENTENCE_START.finditer(output[: stated.start()])), default=0)
        return SplitOutput(output[:line], output[line:], prediction or None)
    return SplitOutput(output, "", None)


def is_correct(prediction: str | None, gold: str) -> bool:
    """Whether a stated answer equals the gold answer, by math-verify.

    Args:
        prediction: the answer as extracted, LaTeX or plain; None is wrong.
        gold: the data set's answer.
    """
    if prediction is None or not prediction.strip():
        return False
    if " ".join(prediction.split()) == " ".join(gold.split()):
        return True
    from math_verify import parse, verify

    # math-verify's time limits use SIGALRM, which only the main thread may set.
    limit = 5 if threading.current_thread() is threading.main_thread() else None
    parsed_gold = parse(f"\\boxed{{{gold}}}", parsing_timeout=limit)
    parsed = parse(f"\\boxed{{{prediction}}}", parsing_timeout=limit)
    return bool(verify(parsed_gold, parsed, strict=True, timeout_seconds=limit))
