r"""Numbers and equations in a text: one grammar and one parser for all that reads arithmetic.

A number has digits, marks that group its thousands, and a decimal point. An expression has numbers, percentages,
brackets, signs and operators: + - * / × ÷, and x between numbers. Currency signs are left out. LaTeX's signs
(\times, \cdot, \div, \frac) are read as the plain ones. All functions take time linear in the text's length.
"""

import ast
import itertools
import math
import operator
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

# What groups thousands, as a pattern: "1,234", "1{,}234", "1\,234", "1'234", and no-break, thin and narrow spaces.
# A plain space is not among these marks, because "5 100" may be two numbers; `pruning.spans` keeps the two together.
THOUSANDS = r",|\{,\}|\\[,!;]|['’\u00a0\u2009\u202f]"
# A mark groups thousands only before exactly three digits: "1,000" is one number, "1,2,3" are three.
_NUMBER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|(?<![\w.])\.[0-9]+"
_NUMBERS = re.compile(_NUMBER)
_TOKEN = re.compile(
    rf"(?P<number>(?:{_NUMBER})(?: ?%)?)|(?P<bold>\*\*)|(?P<operator>[-+−*/×÷^])|(?P<bracket>[()])|(?P<blank>\s+)"
    r"|(?P<stop>[.,])|(?P<word>[^\W\d]+|\})|(?P<other>.)",
    re.DOTALL,
)
_FRACTION = re.compile(r"((?:[÷/]|[0-9])\s*)?\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}")
# What is written another way, and its plain form; in this order.
_PLAIN = [
    (re.compile(pattern), plain)
    for pattern, plain in (
        (rf"(?<=[0-9])(?:{THOUSANDS})(?=[0-9]{{3}}(?![0-9]))", ","),
        (r"\\(?:times|cdot)(?![A-Za-z])", "×"),
        (r"\\div(?![A-Za-z])", "÷"),
        (r"\\(?:left|right)(?![A-Za-z])|\\[,!;()\[\]]|\\(?=[$%])|[$€£¥]", ""),
    )
]
_X = re.compile(r"(?<=[0-9)%])(\s*)x(?=\s*\(*\.?[0-9])")  # x is an operator between numbers, elsewhere a name
_PYTHON = str.maketrans("−×÷", "-*/")
_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
_NO_NUMBER = "?"  # replaces a word before an operator, so that the expression cannot be evaluated


def numbers(text: str) -> list[str]:
    """The numbers of a text as they are written, without the commas of thousands.

    Example:
        >>> numbers("1,250 of 2{,}500.50; 1,2,3; 1'250")
        ['1250', '2500.50', '1', '2', '3', '1250']
    """
    return [number.replace(",", "") for number in _NUMBERS.findall(_plain(text))]


def numbers_in(text: str) -> list[float]:
    """The values of the numbers of a text.

    Example:
        >>> numbers_in("She pays $1,250.50 for 3 tickets.")
        [1250.5, 3.0]
    """
    return [float(number) for number in numbers(text)]


def equations(text: str) -> list[str]:
    r"""The arithmetic equations of a text, without spaces, currency signs and the commas of thousands.

    Both sides are arithmetic on plain numbers, and the left side has an operator.

    Example:
        >>> equations(r"She pays 2 * $1,250 = $2,500, so x = 9 and \(3 \times 4 = 12\).")
        ['2*1250=2500', '3×4=12']
    """
    return [
        f"{left.written}={right.written}"
        for line in _plain(text).splitlines()
        for left, right in _sides(line)
        if left.has_operator and left.is_whole and right.is_whole and left.is_arithmetic() and right.is_arithmetic()
    ]


def writes_x(text: str) -> bool:
    """Whether a text multiplies by x, as in "3 x 4".

    Example:
        >>> writes_x("3 x 4 = 12"), writes_x("3 * x = 12")
        (True, False)
    """
    return _X.search(_without_latex(text)) is not None


def found(wanted: Sequence[str], given: Sequence[str]) -> float | None:
    """The share of `wanted` that is among `given`, each as often as it is there; None if nothing is wanted.

    Example:
        >>> found(["1", "1", "2"], ["1", "2", "3"])
        0.6666666666666666
    """
    if not wanted:
        return None
    return sum((Counter(wanted) & Counter(given)).values()) / len(wanted)


def check_equations(solution: str) -> str:
    """Whether every equation written in a solution holds: "clean", "wrong equation" or "uncheckable equation".

    Both sides of each `=` must be arithmetic on plain numbers (currency signs and percentages are understood, units
    are not), and the left side of a line's first must have an operator, since `48=48` shows no step. A solution
    without any equation is uncheckable.

    Example:
        >>> check_equations("She pays 2 * $5 = $10. Then 3 x 4 = 12.")
        'clean'
        >>> check_equations("0.88*40 = 35")
        'wrong equation'
        >>> check_equations("x = 5")
        'uncheckable equation'
    """
    checked = 0
    for line in _plain(solution).splitlines():
        for position, (left, right) in enumerate(_sides(line)):
            if not (left.is_alone and right.is_alone) or (position == 0 and not left.has_operator):
                return "uncheckable equation"
            try:
                value, stated = evaluate_arithmetic(left.python), evaluate_arithmetic(right.python)
            except (ValueError, ZeroDivisionError):
                return "uncheckable equation"
            if abs(value - stated) > 1e-6 * max(1.0, abs(value)):
                return "wrong equation"
            checked += 1
    return "clean" if checked else "uncheckable equation"


def evaluate_arithmetic(expression: str) -> float:
    """The value of + - * / ( ) on numbers, by simpleeval with nothing else allowed.

    Raises:
        ValueError: the text is not such an expression, or has more than 200 characters.
        ZeroDivisionError: it divides by zero.

    Example:
        >>> evaluate_arithmetic("(1 + 2) * 3")
        9.0
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


@dataclass
class _Expression:
    """Arithmetic in a text, as its tokens. `is_alone`: no other number or bracket touches it without an operator."""

    tokens: list[str] = field(default_factory=list)
    is_alone: bool = True
    is_closed: bool = False  # a full stop, a comma or a bracket ended it
    depth: int = 0  # of open brackets

    @property
    def takes_operator(self) -> bool:
        return bool(self.tokens) and (self.tokens[-1] == ")" or self.tokens[-1][-1] in "0123456789%")

    @property
    def written(self) -> str:
        return "".join(self.tokens)

    @property
    def python(self) -> str:
        """The same as Python reads it."""
        return "".join(f"({token[:-1]}/100)" if token[-1] == "%" else token for token in self.tokens).translate(_PYTHON)

    @property
    def has_operator(self) -> bool:
        return re.search(r"[\d)%][-+−*/×÷]", self.written) is not None

    @property
    def is_whole(self) -> bool:
        """Whether it is all of what is written. In `5 (2 + 3)` the bracket is a factor; `3 1/2` is one number."""
        return self.is_alone or (self.tokens[:1] != ["("] and self.tokens[1:2] != ["/"])

    def is_arithmetic(self) -> bool:
        try:
            evaluate_arithmetic(self.python)
        except (ValueError, ZeroDivisionError):
            return False
        return True

    def trim(self) -> "_Expression":
        """Without what belongs to the sentence: operators at the end, and brackets that are not closed."""
        while self.tokens and self.tokens[-1] in ("(", "+", "-", "−", "*", "/", "×", "÷", "**"):
            self.tokens.pop()
        depth, kept = 0, []
        for token in reversed(self.tokens):
            depth += {")": 1, "(": -1}.get(token, 0)
            if depth < 0:
                depth = 0
            else:
                kept.append(token)
        self.tokens = kept[::-1]
        return self


def _plain(text: str) -> str:
    """A text with LaTeX's signs as plain ones, x between numbers as ×, and without currency signs."""
    return _X.sub(r"\1×", _without_latex(text))


def _without_latex(text: str) -> str:
    for pattern, plain in _PLAIN:
        text = pattern.sub(plain, text)
    return _FRACTION.sub(_fraction, text)


def _fraction(match: re.Match[str]) -> str:
    before, *parts = match.groups()
    over, under = (part if _NUMBERS.fullmatch(part) else f"({part})" for part in parts)
    return f"{over}/{under}" if before is None else f"{before} ({over}/{under})"


def _sides(line: str) -> Iterator[tuple[_Expression, _Expression]]:
    """What is left and right of each `=` of a line: without tokens if it is no arithmetic."""
    sides = (_expressions(side, begins_line=position == 0) for position, side in enumerate(line.split("=")))
    return ((left[-1], right[0]) for left, right in itertools.pairwise(sides))


def _expressions(side: str, *, begins_line: bool) -> list[_Expression]:
    """The expressions of one side in order. An empty one is first or last if words are there."""
    expressions, before, spaced = [_Expression()], "line" if begins_line else "=", False
    for match in _TOKEN.finditer(side):
        kind, token, current = str(match.lastgroup), match.group(), expressions[-1]
        if kind == "blank":
            spaced = True
            continue
        if kind in ("word", "other"):
            if before == "number" and not spaced:  # the 3 of "3x" is a factor
                current.is_alone = False
            if current.tokens or len(expressions) == 1:
                expressions.append(_Expression())
        elif kind == "stop" or (token == ")" and not (current.depth and current.takes_operator)):
            current.is_closed = bool(current.tokens)
            kind = kind if kind == "stop" else before  # "(3x) + 4": the + still follows a word
        else:
            if current.is_closed:
                current = _Expression()
                expressions.append(current)
            if current.takes_operator and (kind == "number" or token == "("):
                current.is_alone = False
                current = _Expression(is_alone=False)
                expressions.append(current)
            if current.tokens or kind in ("number", "bracket"):
                current.tokens.append(token.replace(",", "").replace(" ", ""))
                current.depth += {"(": 1, ")": -1}.get(token, 0)
            elif kind == "operator":
                # At an expression's beginning an operator is the number's sign, a bullet, or what follows a word.
                is_sign = token in "+-−" and (before == "=" or side[match.end() : match.end() + 1].strip())
                if before == "word" and not (is_sign and spaced):
                    current.tokens += [_NO_NUMBER, token]
                elif is_sign:
                    current.tokens.append(token)
        before, spaced = kind, False
    return [expression.trim() for expression in expressions]
