"""Split an output into chain and answer, extract the answer, check it with math-verify.

Grading is strict: an answer counts only if the output states one (boxed, or after an answer phrase) and it equals
the gold answer. There is no fallback to the last number of the text. `is_correct_by_reference` is the more lenient
rule of the authors' code (github.com/hemingkx/TokenSkip), so that their published numbers can be compared with.
"""

import math
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from tokenskip_lib.problems.algebra import equal_by_algebra
from tokenskip_lib.problems.answer_forms import compare, other_unit, read_number, split_unit, without_suffix
from tokenskip_lib.problems.answer_spelling import plain, tidy
from tokenskip_lib.problems.stated_answers import LONGEST, answer_box, last_boxed, stated_by_box, stated_in_words

# "\{1, 2\}" and "(1, 2)": one pair of brackets around a list of plain things.
_LIST = re.compile(r"(?:\\left)?\s*(\\\{|[\[(])[^()\[\]{}\\,]*,[^()\[\]{}\\]*(?:\\right\s*)?(?:\\\}|[\])])")

THINK_START, THINK_END = "<think>", "</think>"
_OPENING_THINK = re.compile(r"\A\s*<think>\s*")


class SplitOutput(NamedTuple):
    """An output in two parts; `prediction` is None if the output states no answer.

    `chain + answer` is the output without an opening `<think>`.
    """

    chain: str
    answer: str
    prediction: str | None


def has_think_tags(text: str) -> bool:
    """Whether a text begins with `<think>` or holds `</think>`, as outputs of models that think in tags do.

    Example:
        >>> has_think_tags("<think>3 + 4 = 7</think>It is 7."), has_think_tags("It is 7.")
        (True, False)
    """
    return THINK_END in text or text.lstrip().startswith(THINK_START)


def split_output(output: str, layout: str = "answer", answer_phrases: Sequence[str] = ()) -> SplitOutput:
    r"""Split an output where its chain of thought ends and its answer begins.

    Layout "think": the chain is the text before `</think>`, without the opening `<think>`. The answer begins with
    that tag. Without the tag the model has not finished thinking, and states no answer.

    Layout "answer": words decide.
    - The answer is the last boxed expression; boxes joined by commas or "and" are one answer. If its sentence
      announces an answer ("The final answer is ..."), the whole sentence belongs to the answer. Otherwise, or if a
      calculation follows the announcement, only the box does, so that a calculation that ends in a box keeps its
      tokens.
    - Without a box, and after one where it says something else, the answer is what an "answer is ..." or "#### ..."
      near the end of the output states, by the same rule. It may be on the next line. Behind it only a remark may
      follow: text without any other number that takes nothing back.
    - Without either, the whole output is the chain and there is no prediction: the chain of a cut-off output is
      counted to its last token. So is a `<think>` that never closes, whatever is boxed in it.
    - A closing phrase that was cut off is not part of the chain. An answer that was boxed before it still counts.

    Args:
        output: what the model wrote.
        layout: "answer" or "think" (`prompts.layout`).
        answer_phrases: what announces an answer, beside the English phrases (`prompts.answer_phrases`).

    Example:
        >>> split_output("3 * 6 = 18.\nThe final answer is: $\\boxed{18}$")
        SplitOutput(chain='3 * 6 = 18.\n', answer='The final answer is: $\\boxed{18}$', prediction='18')
    """
    if layout == "think":
        thought = _OPENING_THINK.sub("", output)
        end = thought.find(THINK_END)
        if end < 0:
            return SplitOutput(thought, "", None)
        answer = thought[end:]
        return SplitOutput(thought[:end], answer, split_output(answer, answer_phrases=answer_phrases).prediction)
    if output.rfind(THINK_START) > output.rfind(THINK_END):
        return SplitOutput(output, "", None)
    boxed = answer_box(output)
    stated = stated_in_words(output, boxed, tuple(answer_phrases)) or (boxed and stated_by_box(output, boxed))
    if not stated:
        return SplitOutput(output, "", None)
    return SplitOutput(output[: stated.begin], output[stated.begin :], stated.answer)


@lru_cache(maxsize=65536)
def is_correct(prediction: str | None, gold: str) -> bool:
    """Whether a stated answer equals the gold answer.

    Both are brought to one spelling first. Letters, words, ranges, dates and numbers with units are then compared
    directly, and everything else by math-verify.
    - If the gold answer is a letter, it is a choice: the answer must state that letter. The text of the choice alone
      does not count.
    - Numbers are equal if their values are. A rounded one needs six decimals. A percent sign is a unit or a
      hundredth: 50% equals 50 and 0.5.
    - A unit, a base or a modulus may be missing; another one than the gold answer's is wrong.
    - A set is not a tuple.

    Args:
        prediction: the answer as extracted, LaTeX or plain. None is wrong. So is an answer that math-verify cannot
            settle in 2 seconds of processor time, reading and comparing together, and one of more than 1000
            characters. Both are right if they are the gold answer word for word.
        gold: the data set's answer.

    Example:
        >>> is_correct("18 dollars", "18"), is_correct("19", "18"), is_correct(None, "18")
        (True, False, False)
    """
    if prediction is None or not prediction.strip():
        return False
    if " ".join(prediction.split()) == " ".join(gold.split()):
        return True
    prediction, gold = (box.content if (box := answer_box(text)) else text for text in (prediction, gold))
    if max(len(prediction), len(gold)) > LONGEST:
        return False
    (stated, suffix), (wanted, gold_suffix) = without_suffix(plain(prediction)), without_suffix(plain(gold))
    if suffix not in (None, gold_suffix):
        return False
    if (verdict := compare(stated, wanted)) is not None:
        return verdict
    number = read_number(wanted)
    if suffix is None and gold_suffix is None:
        stated, wanted = tidy(prediction), tidy(gold)
    (stated, unit), (wanted, gold_unit) = split_unit(stated), split_unit(wanted)
    if other_unit(unit, gold_unit):
        return False
    lists = _LIST.fullmatch(stated), _LIST.fullmatch(wanted)
    if lists[0] and lists[1] and ("{" in lists[0][1]) != ("{" in lists[1][1]):
        return False
    return equal_by_algebra(stated, number.latex if number and number.value is not None else wanted)


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
    if output.endswith("boxed"):  # cut off before its box opened: the authors' code finds an empty box there
        return None
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
