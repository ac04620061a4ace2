"""Numbers, expressions and equations in a text: one grammar and one parser."""

import ast
import itertools
import math
import operator
import re
from collections import Counter
from collections.abc import Sequence

# LaTeX's signs of arithmetic, as plain text has them.
_LATEX = {
    r"\{,\}": ",",
    r"\\times|\\cdot": "×",
    r"\\div": "÷",
    r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}": r"\1/\2",
    r"\\[,!;()\[\]]|\\(?=[$%])": "",
}
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_EQUATION = re.compile(r"[\d(][\d., +\-*/×÷()$€£¥%]*+= *[$€£¥]?\d+(?:[.,]\d+)*")


def numbers(text: str) -> list[str]:
    """The numbers of a text, thousands without their commas."""
    return [re.sub(r",(?=\d{3})", "", match) for match in _NUMBER.findall(text.replace("{,}", ","))]


def equations(text: str) -> list[str]:
    """The arithmetic equations of a text, plain or LaTeX, without spaces, currency signs and commas of thousands."""
    for latex, plain in _LATEX.items():
        text = re.sub(latex, plain, text)
    found = [re.sub(r"[ $€£¥]|,(?=\d{3})", "", match) for match in _EQUATION.findall(text)]
    return [equation for equation in found if re.search(r"[+\-*/×÷].*=", equation)]


def found(wanted: Sequence[str], given: Sequence[str]) -> float | None:
    """The share of `wanted` that is among `given`, each as often as it is there; None where nothing is wanted."""
    if not wanted:
        return None
    return sum((Counter(wanted) & Counter(given)).values()) / len(wanted)


def check_equations(solution: str) -> str:
    """Whether every equation written in a solution holds: "clean", "wrong equation" or "uncheckable equation".

    Both sides of each `=` must be arithmetic on plain numbers (currency signs and percentages are
    understood, units are not), and the left side of the first must have an operator, since
    `48=48` shows no step. A solution without any equation is uncheckable.
    """
    checked = 0
    for line in solution.splitlines():
        sides = line.split("=")
        for position, (left, right) in enumerate(itertools.pairwise(sides)):
            left, right = _expression_before(left), _expression_after(right)
            if position == 0 and not re.search(r"[\d)]\s*[-+*/]", left):
                return "uncheckable equation"
            try:
                value, stated = evaluate_arithmetic(left), evaluate_arithmetic(right)
            except (ValueError, ZeroDivisionError):
                return "uncheckable equation"
            if abs(value - stated) > 1e-6 * max(1.0, abs(value)):
                return "wrong equation"
            checked += 1
    return "clean" if checked else "uncheckable equation"


_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}


def evaluate_arithmetic(expression: str) -> float:
    """The value of + - * / ( ) on numbers, by simpleeval with nothing else allowed.

    Raises:
        ValueError: the text is not such an expression.
    """
    from simpleeval import InvalidExpression, SimpleEval

    if not re.fullmatch(r"[\d\s.+\-*/()]{1,200}", expression) or "**" in expression or "//" in expression:
        raise ValueError(f"not arithmetic: {expression[:200]!r}")
    try:
        value = SimpleEval(operators=_OPERATORS, functions={}, names={}).eval(expression)
    except (InvalidExpression, SyntaxError, TypeError, KeyError, OverflowError) as error:
        raise ValueError(f"not arithmetic: {expression!r}") from error
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"not arithmetic: {expression!r}")
    return float(value)


_ARITHMETIC = r"[\d\s.,+\-*/×÷()$€£¥%]"


def _expression_before(text: str) -> str:
    return _plain(re.search(f"{_ARITHMETIC}*$", text).group())


def _expression_after(text: str) -> str:
    return _plain(re.match(f"{_ARITHMETIC}*", text).group())


def _plain(text: str) -> str:
    text = re.sub(r"[$€£¥]|(?<=\d),(?=\d{3})", "", text).replace("×", "*").replace("÷", "/")
    text = re.sub(r"(\d+(?:\.\d+)?)%", r"(\1/100)", text)
    # What hangs over from the sentence: a comma or full stop, an opening bracket, a dash.
    text = text.strip().lstrip(",.*/").rstrip(",.-+*/").strip()
    if text.count("(") > text.count(")"):
        text = text.rstrip("( ") if text.rstrip().endswith("(") else text.replace("(", "", 1)
    return text[:-1].strip() if text.count(")") > text.count("(") and text.endswith(")") else text


def numbers_in(text: str) -> list[float]:
    """The numbers of a text as they stand, thousands with or without their commas."""
    return [float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*(?:\.\d+)?", text)]
