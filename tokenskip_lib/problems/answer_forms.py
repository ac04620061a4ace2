r"""Answers that need no algebra to be compared: choices, words, ranges and dates, numbers with their units.

Everything here reads the `plain` spelling of an answer.
"""

import re
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from tokenskip_lib.problems.answer_spelling import plain, rules

_UNDONE = re.compile(
    r"\b(?:not|wrong|incorrect|false|never|cannot|can't|isn't|impossible|neither|nor)\b", re.IGNORECASE
)
_RELATION = re.compile(r"\\(?:ge|le|ne) |\\n(?:leq|geq|less|gtr)|[<>]")
_BASE = re.compile(r"\(?(\d[\da-fA-F]*)\)?(?:_\{?\(?(?:base )?| ?\(?base )(\w+)\)?\}?\)?")
_BASE_NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
_MODULUS = re.compile(r"(.+?) ?(?:\\[pb]?mod|\(mod|\bmod) ?\{?(\d+|[a-z])\}?\)?")

# "B", "(B)", "B) twelve", "B - 12", "option B", "B is correct": one letter, and at most the choice's text after it.
_CHOICE = re.compile(
    r"(?:(?i:(?:the )?(?:(?:correct|right) )?(?:answer|option|choice)(?: is)?:?) )?\(?([A-Z])"
    r"(?:[).:]*\Z|[).:]+ (?!\W*(?:or|and)\b|\(?[A-Z]\W*\Z)(?:\d|..)|\)? -+ (?=.)| (?=\d)"
    r"|\)?[,;]? (?=(?:is|that|which|because|since|as|so)\b(?P<why>.*)))",
    re.DOTALL,
)
_GOLD_CHOICE = re.compile(r"\(?([A-Z])(?:\)?|(?:\)?[.:]|\)) ?(?=[\w$])([^=]+))")

# "10-20", "2024-01-15", "10:30 pm", "1/2/2024": numbers in a row that no one means to calculate with.
_ROW = re.compile(r"(\d+(?:\.\d+)?(?: ?(?:-{1,3}|[:/]|to\b) ?\d+(?:\.\d+)?)+)( ?[ap]\.?m\b\.?|(?: [A-Za-z]{2,})*)")
_CALCULATED = re.compile(r"[\d.]+ ?/ ?[\d.]+|(?!\d\d?:\d\d\Z)[\d.]+ ?: ?[\d.]+")  # a fraction, and a ratio

_INTEGER = r"(?:[1-9]\d{0,2}(?:(?:,|\{,\}| )\d{3})+(?!\d)|[1-9]\d?(?:,\d{2})+,\d{3}(?!\d)|\d+)"
_DECIMAL = rf"(?:{_INTEGER}(?:\.\d+)?|\.\d+)"
_FRACTION = rf"(?:{_DECIMAL} ?/ ?{_DECIMAL}|\\frac\{{-?{_DECIMAL}\}}\{{{_DECIMAL}\}})"
_SIGNS = "$€£¥₹₽₩₫฿₱₪₺₴¢"
_CURRENCY = rf"(?:(?:US|A|C|HK)?[{_SIGNS}]|(?:USD|EUR|GBP|INR|CHF|Rs\.?)(?![A-Za-z]))"
_NUMBER = re.compile(
    rf"(?:=|\\approx|\\sim)? ?(?P<before>(?:[-+]|{_CURRENCY}| )*)"
    rf"(?:(?P<whole>\d+)(?: |(?=\\))(?P<part>{_FRACTION})|(?P<fraction>{_FRACTION})|(?P<decimal>{_DECIMAL}))"
    r"(?: ?\\times ?10\^\{(?P<power>-?\d{1,3})\})?(?P<percent> ?%)?(?P<rest>.*)"
)
_TIMES = {  # words after a number, and what they multiply it by
    name: Fraction(value)
    for value, *names in map(
        str.split,
        (
            *("1/2 half halve", "1/3 third", "1/4 quarter fourth", "1/5 fifth", "1/6 sixth", "1/7 seventh"),
            *("1/8 eighth", "1/9 ninth", "1/10 tenth", "1/100 hundredth", "1/1000 thousandth", "12 dozen"),
            *("100 hundred", "1e3 thousand grand", "1e5 lakh lac", "1e6 million mn", "1e7 crore", "1e9 billion bn"),
            "1e12 trillion tn",
        ),
    )
    for name in names
}
_MAGNITUDE = re.compile(rf"[ -]?({'|'.join(sorted(_TIMES, key=len, reverse=True))})s?(?![A-Za-z])", re.IGNORECASE)
# Each character can be read in one way only: with `_CURRENCY` as a second way, the time would be exponential.
_WORDS = re.compile(rf"(?:[^\W\d_](?:\^\{{?[23]\}}?)?|[°'’./ {_SIGNS}-])*")
_SYMBOL = r"(?:[kcmμn]?m|[kmμ]?g|[mμn]?s|h|[kmc]?[lL]|° ?[CF]?|[kmM]?(?:[VWJN]|Hz|Pa)|A)(?:\^\{?[23]\}?)?"
_SYMBOLS = re.compile(rf"{_SYMBOL}(?:/{_SYMBOL})?")  # of a unit: case matters
_CHANGE = re.compile(  # words that change the number before them; a single letter is a variable
    r"\b(?:out of|or|too|at (?:least|most)|pi|squared|cubed|factorial|sqrt|ln|log|minus|plus|"
    r"alpha|beta|gamma|delta|epsilon|zeta|eta|theta|iota|kappa|lambda|mu|nu|xi|rho|sigma|tau|phi|chi|psi|omega|"
    r"zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|"
    r"(?:thir|four|fif|six|seven|eigh|nine)teen|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety|"
    r"half|halves|thirds?|quarters?|dozens?|hundreds?|thousands?|millions?|billions?|trillions?)\b"
    r"|(?<!['’])\b[b-z]\b(?!['’])",
    re.IGNORECASE,
)
_ASIDE = re.compile(r" ?\((?!.*\bor\b)[A-Za-z .'-]+\)\Z|,? (?:because|since|as|which|so|where)\b.*", re.DOTALL)
_LATEX_UNIT = re.compile(  # what LaTeX sets as text, or plain words after a number or a bracket
    r"(?:\\(?:text(?:bf|it|rm)?|mathrm)\s*\{[^{}]*\}(?:\s*\^\s*\{?\d\}?)?"
    r"|(?<=[\d})\]]) [A-Za-z]{2,}(?: [A-Za-z]+){0,3})\Z"
)
_UNIT_SPELLINGS = rules(
    (r"\b(?:square|sq\.?) (\w+)", r"\1^2"),
    (r"\b(?:cubic|cu\.?) (\w+)", r"\1^3"),
    (r"\bmph\b", "mi/h"),
    (r"\bk(?:p|mp)h\b", "km/h"),
    (r"\bin (?=[A-Za-z])", ""),
)
_NO_UNITS = {*("a", "an", "the", "of", "per", "in", "and", "is", "are", "it", "all", "total", "altogether", "each")} | {
    *("every", "more", "left", "only", "unit", "answer")
}
_MEASURES = {
    name: names.split()[0]
    for names in (
        *("m meter metre", "cm centimeter centimetre", "mm millimeter millimetre", "km kilometer kilometre"),
        *("in inch inche", "ft foot feet", "yd yard", "mi mile", "g gram", "kg kilogram kilo", "mg milligram"),
        *("lb pound £ GBP", "oz ounce", "l L liter litre", "ml mL milliliter millilitre", "gal gallon", "s sec second"),
        *("min minute", "h hr hour", "day", "week", "month", "year yr", "$ US$ USD dollar buck", "€ EUR euro"),
        *("¢ cent", "¥ yen", "₹ Rs INR rupee", "° deg degree", "rad radian", "% percent", "C celsius", "F fahrenheit"),
        *("A amp ampere", "V volt", "W watt", "N newton", "J joule", "Hz hertz", "kHz", "MHz", "kW", "kN"),
    )
    for name in names.split()
}


class Number(NamedTuple):
    """A number and what it counts; `value` is None where the words after the number change it ("2 pi")."""

    value: Fraction | None
    places: int | None  # digits after the decimal point; None: a fraction
    unit: str
    latex: str


def compare(stated: str, wanted: str) -> bool | None:
    """Whether a stated answer equals the wanted one; None where that takes algebra.

    Example:
        >>> compare("18 dollars", "18"), compare("18 kg", "18 g"), compare("seat", "east"), compare("x + 1", "1 + x")
        (True, False, False, None)
    """
    if stated == wanted:
        return True
    if gold_choice := _GOLD_CHOICE.fullmatch(wanted):
        if choice := _CHOICE.match(stated):
            return choice[1] == gold_choice[1] and not _UNDONE.search(choice["why"] or "")
        if gold_choice[2]:
            return compare(stated, gold_choice[2])
    if _UNDONE.search(stated) and not _UNDONE.search(wanted):
        return False
    leading = [match and match[0] for match in map(_RELATION.match, (stated, wanted))]
    if leading[0] != leading[1]:
        return False
    if (row := _ROW.fullmatch(wanted)) and not _CALCULATED.fullmatch(row[1]):
        return _same_row(stated, row)
    if (words := _words(wanted)) and re.fullmatch(r"[A-Za-z][A-Za-z ,.'-]*", stated):
        return _words(stated) == words or re.sub(r"\W", "", stated).lower() == re.sub(r"\W", "", wanted).lower()
    number, gold = read_number(stated if "=" in wanted else stated.rpartition("=")[2].strip()), read_number(wanted)
    if number is None or gold is None or gold.value is None:
        return None
    return number.value is not None and not other_unit(number.unit, gold.unit) and _equal(number, gold)


def _same_row(stated: str, wanted: re.Match) -> bool:
    found = _ROW.fullmatch(re.sub(r"\\frac\{(\d+)\}\{(\d+)\}", r"\1/\2", stated))
    if found is None:
        return False
    numbers = [[Fraction(number) for number in re.findall(r"\d+(?:\.\d+)?", row[1])] for row in (found, wanted)]
    words = [re.sub(r"[^a-z]", "", row[2].lower()) for row in (found, wanted)]
    return numbers[0] == numbers[1] and ("" in words or words[0] == words[1])


def _words(text: str) -> list[str]:
    """The words of a text of letters alone, in alphabetical order. Letters without a vowel are a product, no word."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z ,.'-]*", text):
        return []
    words = [word for word in re.findall(r"[a-z]+", _ASIDE.sub("", text).lower()) if word not in ("and", "or")]
    return sorted(words) if any(len(word) > 1 and re.search("[aeiou]", word) for word in words) else []


def without_suffix(text: str) -> tuple[str, str | None]:
    r"""An answer without its base or modulus, and that.

    Example:
        >>> without_suffix("1011_{2}"), without_suffix("x = 1 \\pmod{3}"), without_suffix("13_{10}")
        (('1011', 'base 2'), ('x = 1', 'modulo 3'), ('13', None))
    """
    if base := _BASE.fullmatch(text):
        name = str(_BASE_NAMES.index(base[2])) if base[2] in _BASE_NAMES else base[2]
        return base[1], None if name == "10" else f"base {name}"
    if modulus := _MODULUS.fullmatch(text):
        return modulus[1], f"modulo {modulus[2]}"
    return text, None


@lru_cache(maxsize=4096)
def read_number(text: str) -> Number | None:
    """The number that an answer is, with its unit; None if it is anything else.

    Example:
        >>> read_number("3 1/2 cups").value, read_number("5 million").value, read_number("2 pi").value
        (Fraction(7, 2), Fraction(5000000, 1), None)
    """
    match = _NUMBER.fullmatch(_ASIDE.sub("", text))
    if match is None:
        return None
    places, decimal = None, re.sub(r"[^\d.]", "", match["decimal"] or "")
    if decimal:
        value, places = Fraction(decimal), len(decimal.partition(".")[2])
    else:
        written = re.findall(rf"-?{_DECIMAL}", match["part"] or match["fraction"])
        over, under = (Fraction(re.sub(r"[^\d.-]", "", part)) for part in written)
        if not under or (match["whole"] and not 0 < over < under):
            return None
        value = int(match["whole"] or 0) + over / under
    value *= (-1) ** match["before"].count("-") * Fraction(10) ** int(match["power"] or 0)
    rest = match["rest"]
    # A text may repeat them without end, and Python writes no number of more than 4300 digits.
    while (magnitude := _MAGNITUDE.match(rest)) and abs(value) < 10**2000:
        value, rest = value * _TIMES[magnitude[1].lower()], rest[magnitude.end() :]
    attached = re.match(r"[A-Za-zμ]+", rest)
    if not _WORDS.fullmatch(rest) or (attached and (len(attached[0]) == 1 or not _measure(attached[0]))):
        return None
    unit = rest.strip(" .-")
    changed = _changes(unit)
    latex = rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
    if decimal and abs(value) == Fraction(decimal):
        latex = f"{'-' * (value < 0)}{decimal}"
    unit = f"{re.sub('[-+ ]', '', match['before'])} {unit}{' %' * bool(match['percent'])}".strip()
    return Number(None if changed else value, places, unit, latex)


def _changes(words: str) -> bool:
    """Whether the words after a number change it, or go on for too long to be a unit."""
    return not _SYMBOLS.fullmatch(words) and bool(_CHANGE.search(words) or words.count(" ") > 11)


def other_unit(stated: str, wanted: str) -> bool:
    """Whether two units differ. What one side leaves out makes no other unit: "km" may be "km/h".

    Example:
        >>> other_unit("cm", "centimeters"), other_unit("cm", "m"), other_unit("apples", "oranges"), other_unit("", "m")
        (False, True, True, False)
    """
    (measures, words), (gold_measures, gold_words) = _names(stated), _names(wanted)
    if measures and gold_measures:
        return not (measures <= gold_measures or gold_measures <= measures)
    return bool((measures or words) and (gold_measures or gold_words) and not words & gold_words)


def split_unit(latex: str) -> tuple[str, str]:
    r"""A LaTeX answer without the unit at its end, and the unit.

    Example:
        >>> split_unit(r"2\sqrt{3}\text{ cm}^2"), split_unit("3, 5 meters"), split_unit("2 or more")
        (('2\\sqrt{3}', 'cm^2'), ('3, 5', 'meters'), ('2 or more', ''))
    """
    found = _LATEX_UNIT.search(latex)
    unit = plain(found[0]) if found else ""
    if found is None or not latex[: found.start()].strip() or _changes(unit):
        return latex, ""
    return latex[: found.start()].strip(), unit


def _names(unit: str) -> tuple[set[str], set[str]]:
    """The measures and the other words of a unit, each in one spelling."""
    for pattern, written in _UNIT_SPELLINGS:
        unit = pattern.sub(written, unit)
    measures, words = set(), set()
    for name, power in re.findall(rf"({_CURRENCY}|[^\W\d_]+|[°%])(?:\^\{{?([23])\}}?)?", unit):
        if measure := _measure(name):
            measures.add(measure + power)
        elif (word := name.lower().removesuffix("s")) not in _NO_UNITS:
            words.add(word)
    return measures, words


def _measure(name: str) -> str | None:
    singular = name.rstrip(".").removesuffix("s") if len(name) > 1 else name
    return next((_MEASURES[n] for n in (name, name.lower(), singular, singular.lower()) if n in _MEASURES), None)


def _equal(stated: Number, wanted: Number) -> bool:
    """Exactly, or rounded to six decimals at least. A percent sign is a unit or a hundredth."""
    assert stated.value is not None and wanted.value is not None
    values, percent = [stated.value], ["%" in number.unit for number in (stated, wanted)]
    if percent[0] != percent[1]:
        values.append(stated.value / 100 if percent[0] else stated.value * 100)
    gaps = [abs(value - wanted.value) for value in values]
    if min(gaps) <= abs(wanted.value) / 10**12:  # what floating point adds
        return True
    places = [number.places for number in (stated, wanted) if number.places is not None]
    digits = 6 if len(places) == 1 else min(places, default=0)
    return any(
        digits >= 6 and gap <= abs(wanted.value) / 10**5 and round(value, digits) == round(wanted.value, digits)
        for value, gap in zip(values, gaps, strict=True)
    )
