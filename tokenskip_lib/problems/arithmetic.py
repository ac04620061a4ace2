"""Numbers, expressions and equations in a text: one grammar of numbers and one parser of equations.

The grammar:
- A number has digits and at most one decimal point. A comma groups thousands only before exactly three digits.
- An expression has numbers, + - * / × ÷ ( ) and percentages. Currency signs and spaces are left out; units are not
  understood. The letter x is a sign of multiplication only between two numbers.
- An equation has an expression on each side of an equals sign, both in one line.
- LaTeX's signs of arithmetic are read as those of plain text.
"""

import ast
import itertools
import math
import operator
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_NUMBER = r"(?:[0-9]+(?:,[0-9]{3}(?![0-9]))*(?:\.[0-9]+)?|(?<![0-9.])\.[0-9]+)"
_TOKEN = re.compile(rf"{_NUMBER}|[-+*/×÷()%.,]")
_EXPRESSION_CHARACTERS = "0123456789 \t.,+-*/×÷()$€£¥%"
TIMES_AS_LETTER = re.compile(r"(?<=[\d)%])[ \t]*[xX](?=[ \t]*[$€£¥]?[\d(.])", re.ASCII)  # 3 x 4, (1+2)x$5
_LATEX_FRACTION = re.compile(r"([/÷]\s*)?\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}")
# LaTeX's signs of arithmetic, as plain text has them.
_LATEX = {
    r"\{,\}": ",",
    r"\\(?:times|cdot)(?![A-Za-z])": "×",
    r"\\div(?![A-Za-z])": "÷",
    r"\\[,!;()\[\]]|\\(?=[$%])|\\(?:left|right)(?=[()])": "",
}


def numbers(text: str) -> list[str]:
    """The numbers of a text in their order, as written but without commas.

    Example:
        >>> numbers("She pays $1,250.50 for 1,2 and 3 of them")
        ['1250.50', '1', '2', '3']
    """
    return [number.replace(",", "") for number in re.findall(_NUMBER, _plain(text))]


def numbers_in(text: str) -> list[float]:
    """The values of the numbers of a text, in their order.

    Example:
        >>> numbers_in("1,2,3 and 1{,}000")
        [1.0, 2.0, 3.0, 1000.0]
    """
    return [float(number) for number in numbers(text)]


@dataclass(frozen=True)
class Equation:
    """The two sides of one equals sign, without spaces, currency signs and commas of thousands.

    A side that is not arithmetic may be empty or hold what cannot be evaluated.
    `follows` says that an equation before it in the same line shares a side with it: in `2+3=10/2=5` the second does.
    """

    left: str
    right: str
    follows: bool = False

    @property
    def has_step(self) -> bool:
        """Whether the left side calculates something."""
        return re.search(r"[\d)%][-+*/×÷]|%", self.left) is not None

    def holds(self) -> bool:
        """Whether both sides have the same value, up to a millionth of it.

        Raises:
            ValueError: a side is not arithmetic, or divides by zero.
        """
        value, stated = evaluate_arithmetic(_computable(self.left)), evaluate_arithmetic(_computable(self.right))
        return abs(value - stated) <= 1e-6 * max(1.0, abs(value))


def parse_equations(text: str) -> Iterator[Equation]:
    """One equation for each equals sign of a text, line by line; sides that are not arithmetic included."""
    for line in _plain(text).splitlines():
        for position, (left, right) in enumerate(itertools.pairwise(line.split("="))):
            before = left[len(left.rstrip(_EXPRESSION_CHARACTERS)) :]
            after = right[: len(right) - len(right.lstrip(_EXPRESSION_CHARACTERS))]
            yield Equation(_sentences(before)[-1], _sentences(after)[0], follows=position > 0)


def equations(text: str) -> list[str]:
    """The arithmetic equations of a text, right or wrong, without spaces, currency signs and commas of thousands.

    Example:
        >>> equations(r"She pays 2 x $1,250 = $2,500, so \\(\\frac{6}{2} = 3\\) are left and x = 5.")
        ['2×1250=2500', '6/2=3']
    """
    kept = []
    for equation in parse_equations(text):
        try:
            equation.holds()
        except ValueError:
            continue
        if equation.has_step:
            kept.append(f"{equation.left}={equation.right}")
    return kept


def check_equations(solution: str) -> str:
    """Whether every equation of a solution holds: "clean", "wrong equation" or "uncheckable equation".

    Both sides of each equals sign must be arithmetic, and the left side of a line's first equation must
    calculate something, since `48=48` shows no step. A solution without any equation is uncheckable.

    Example:
        >>> check_equations("3 x 4 = 12 eggs"), check_equations("3 x 4 = 13"), check_equations("x = 5")
        ('clean', 'wrong equation', 'uncheckable equation')
    """
    checked = 0
    for equation in parse_equations(solution):
        if not equation.follows and not equation.has_step:
            return "uncheckable equation"
        try:
            if not equation.holds():
                return "wrong equation"
        except ValueError:
            return "uncheckable equation"
        checked += 1
    return "clean" if checked else "uncheckable equation"


def found(wanted: Sequence[str], given: Sequence[str]) -> float | None:
    """The share of `wanted` that is among `given`, each counted as often as it is there; None if nothing is wanted.

    Example:
        >>> found(["3", "3", "4", "12"], ["3", "4", "5"])
        0.5
    """
    if not wanted:
        return None
    return sum((Counter(wanted) & Counter(given)).values()) / len(wanted)


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
        ValueError: the text is not such an expression, is longer than 200 characters, or divides by zero.

    Example:
        >>> evaluate_arithmetic("(3 + 4) * 2")
        14.0
    """
    from simpleeval import InvalidExpression, SimpleEval

    if not re.fullmatch(r"[\d\s.+\-*/()]{1,200}", expression) or "**" in expression or "//" in expression:
        raise ValueError(f"not arithmetic: {expression[:200]!r}")
    try:
        value = SimpleEval(operators=_OPERATORS, functions={}, names={}).eval(expression)
    except (InvalidExpression, SyntaxError, TypeError, KeyError, ArithmeticError) as error:
        raise ValueError(f"not arithmetic: {expression!r}") from error
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"not arithmetic: {expression!r}")
    return float(value)


def _plain(text: str) -> str:
    """A text with LaTeX's signs of arithmetic, and an x between two numbers, as plain text has them."""
    for latex, plain in _LATEX.items():
        text = re.sub(latex, plain, text)
    return TIMES_AS_LETTER.sub("×", _LATEX_FRACTION.sub(_fraction, text))


def _fraction(match: re.Match) -> str:
    """`\\frac{a}{b}` as a/b; with the brackets that a fraction bar makes needless."""
    divided, *parts = match.groups()
    above, below = (part if re.fullmatch(_NUMBER, part.strip()) else f"({part})" for part in parts)
    return f"{divided}({above}/{below})" if divided else f" {above}/{below}"  # a space: 3\frac{1}{2} is not 31/2


def _sentences(text: str) -> list[str]:
    """The expressions of a text of arithmetic characters, which full stops and commas of sentences part."""
    parts: list[str] = [""]
    for token in _TOKEN.findall(text):
        if token in ".,":
            parts.append("")
        else:
            apart = parts[-1][-1:].isdigit() and token[-1].isdigit()  # two numbers, as in 3 1/2, are not one
            parts[-1] += (" " if apart else "") + token.replace(",", "")
    return [_trimmed(part) for part in parts if part] or [""]


def _trimmed(expression: str) -> str:
    """An expression without what the sentence around it left: a bracket, a dash, a Markdown star."""
    expression = expression.lstrip("*/").rstrip("-+*/")
    if expression.count("(") > expression.count(")"):
        return expression.rstrip("(") if expression.endswith("(") else expression.replace("(", "", 1)
    one_closes = expression.count(")") > expression.count("(") and expression.endswith(")")
    return expression[:-1] if one_closes else expression


def _computable(expression: str) -> str:
    """An expression as Python writes it: * and / as signs, hundredths for percentages."""
    signs = expression.replace("×", "*").replace("÷", "/")
    return re.sub(rf"({_NUMBER})(%?)", lambda match: f"({match[1]}/100)" if match[2] else match[1], signs)
