r"""One spelling for answers: `tidy` writes LaTeX that math-verify reads, `plain` drops what only sets type, too."""

import re
import unicodedata
from fractions import Fraction
from functools import lru_cache

# What is a LaTeX command to math-verify. NFKC has replaced other spaces, digits of full width and the like before.
_SYMBOLS = str.maketrans(
    dict.fromkeys("−–—‐‑", "-")
    | {"×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ", "÷": "/", "⁄": "/", "∕": "/", "∶": ":"}
    | {"∞": r"\infty ", "π": r"\pi ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "±": r"\pm "}
    | {"∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "°": r"^\circ ", "。": ".", "、": ","}
    | {"٫": ".", "٬": ","}
    | dict.fromkeys("\u200b\u2060\ufeff", "")
)
_NOT_ASCII = (  # what NFKC would make plain digits of
    (re.compile("[⁰¹²³⁴-⁹⁺⁻ⁿ]+"), "^{{{}}}"),
    (re.compile("[₀-₉]+"), "_{{{}}}"),
    (re.compile("[¼-¾⅐-⅞]"), r"\frac{{{}}}{{{}}}"),
)
_ROOT = re.compile(r"√\s*(?:\(([^()]*)\)|(\d+|[A-Za-z]))")
_REPEATING = re.compile(r"(\d*)\.(\d*)\\(?:overline|bar|dot)\s*\{(\d+)\}")
_TEXT = r"\\(?:text(?:bf|it|rm)?|mathrm)\s*\{([^{}]*)\}"


def rules(*pairs: tuple[str, str]) -> list[tuple[re.Pattern, str]]:
    """Patterns and what replaces them, in this order."""
    return [(re.compile(pattern), written) for pattern, written in pairs]


_TIDY = rules(
    # What only sets type: colours, fonts, sizes, spaces, Markdown.
    (r"\\(?:color|textcolor|colorbox|hspace|phantom)\s*\{[^{}]*\}|\\hfill(?![A-Za-z])", ""),
    (r"\\(?:math(?:bf|sf|it|tt)|boldsymbol|pmb|bm|underline|framebox|ensuremath)(?![A-Za-z])", ""),
    (r"\\(?:displaystyle|bf|[lL]arge|[hH]uge|small)(?![A-Za-z])", ""),
    (r"\\pounds(?![A-Za-z])", "£"),
    (r"\\(?:mbox|hbox|emph|text(?:sf|tt|normal))(?![A-Za-z])", r"\\text"),
    (r"(?<=\d)\\[,;](?=\d)|(?<!\\)\\!\s*|`", ""),
    (r"(?<!\\)(?:\\(?:[ ,:;]|q?quad(?![A-Za-z])|\Z)|~(?!=))", " "),
    (r"(?<![\w)}*])(\*\*?|__)(?=[^\s*])([^*]+)(?<=[^\s*])\1(?![\w({*\\])", r"\2"),
    # One name for each relation, and for a power of ten.
    (r"\\not\s*=|\\neq(?![A-Za-z])|(?<![\w)}!])!=", r"\\ne "),
    (r"\\geq(?:slant)?(?![A-Za-z])|>=", r"\\ge "),
    (r"\\leq(?:slant)?(?![A-Za-z])|<=", r"\\le "),
    (r"\\gt(?![A-Za-z])", ">"),
    (r"\\lt(?![A-Za-z])", "<"),
    (r"\\equiv(?![A-Za-z])", "="),
    (r"\\varnothing(?![A-Za-z])|\\\{\s*\\\}", r"\\emptyset "),
    (r"(?<![\w.])(\d+(?:\.\d+)?)[eE]\+?(-?\d{1,3})(?![\w.])", r"\1 \\times 10^{\2}"),
    (r"(?<=\d)\s*(?:[xX*]|\\cdot)\s*10\^", r" \\times 10^"),
    (r"(?<=10\^)(-?\d{1,3})", r"{\1}"),
    (r"(?<=[\w)}])\*\*(-?\w+)", r"^{\1}"),
)
_PLAIN = rules(
    (_TEXT, r"\1"),
    (_TEXT, r"\1"),  # one inside another
    (r"\$((?:[^$\\]|\\.)+)\$", r"\1"),
    (r"\\(?:left|right)(?![A-Za-z])\.?|\\[\[\]()]", ""),
    (r"\\(?=[$%])", ""),
    (r"\s*\b(?:percent(?:age)?|pct)\b", "%"),
    (r"\^\s*\{?\s*\\circ\s*\}?", "°"),
    (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
    (r"\\frac\s*(\d)(\d)", r"\\frac{\1}{\2}"),
    (r"\\frac\{([A-Za-z ]+)\}\{([A-Za-z ]+)\}", r"\1/\2"),
    (r"(?<![\w}\]^_\\])\{([^{},]*)\}", r"\1"),
    (r"\s+", " "),
)


@lru_cache(maxsize=4096)
def tidy(text: str) -> str:
    r"""An answer as LaTeX that math-verify reads.

    Example:
        >>> tidy("x²"), tidy("**18**"), tidy("1.2e6"), tidy(r"0.\overline{3}")
        ('x^{2}', '18', '1.2 \\times 10^{6}', '\\frac{1}{3}')
    """
    if not text.isascii():
        for found, form in _NOT_ASCII:
            for special in set(found.findall(text)):
                text = text.replace(special, form.format(*unicodedata.normalize("NFKC", special).split("⁄")))
        text = re.sub(r"\d", lambda m: str(unicodedata.decimal(m[0])), unicodedata.normalize("NFKC", text))
        text = _ROOT.sub(lambda m: rf"\sqrt{{{m[1] or m[2]}}}", text).translate(_SYMBOLS)
    text = _REPEATING.sub(_as_fraction, _replace(text, _TIDY))
    return text.strip().rstrip(".,;").strip()


@lru_cache(maxsize=4096)
def plain(text: str) -> str:
    r"""An answer without what only sets type.

    Example:
        >>> plain(r"\textbf{(B)}\ 12"), plain(r"$18$ dollars"), plain(r"60 \frac{\text{km}}{\text{h}}")
        ('(B) 12', '18 dollars', '60 km/h')
    """
    return _replace(tidy(text), _PLAIN).strip().rstrip(".,;").strip()


def _replace(text: str, pairs: list[tuple[re.Pattern, str]]) -> str:
    for pattern, written in pairs:
        text = pattern.sub(written, text)
    return text


def _as_fraction(repeating: re.Match) -> str:
    whole, fixed, repeated = repeating.groups()
    nines = (10 ** len(repeated) - 1) * 10 ** len(fixed)
    value = Fraction(int(f"{whole}{fixed}{repeated}") - int(f"0{whole}{fixed}"), nines)
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
