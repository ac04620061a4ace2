"""Arithmetic in a text: one number grammar, one equation parser, in time linear in the text."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenskip_lib.problems.arithmetic import (
    check_equations,
    equations,
    evaluate_arithmetic,
    found,
    numbers,
    numbers_in,
    writes_x,
)

any_text = st.text(alphabet="0123456789 .,+-*/×÷()$%=abx\\{}\n", max_size=40)
TEXT = "She pays 2 * $1,250 = $2,500.50 in 3 weeks, so (4+6)/2=5 are left; 7 = seven, x=9."


def test_numbers_and_equations_are_read_as_they_stand():
    assert numbers(TEXT) == ["2", "1250", "2500.50", "3", "4", "6", "2", "5", "7", "9"]
    assert equations(TEXT) == ["2*1250=2500.50", "(4+6)/2=5"]
    assert numbers("none") == equations("none") == []
    assert numbers("1{,}000 and 2,500") == ["1000", "2500"]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1,2,3", [1, 2, 3]),
        ("1,000", [1000]),
        ("1,000,000.5", [1_000_000.5]),
        ("1,0000", [1, 0]),
        ("1234,567", [1234, 567]),
        ("1,234,56", [1234, 56]),
        ("(1,000,2)", [1000, 2]),
        ("18. Then .5, not v.5", [18, 0.5, 5]),
        ("1.2.3", [1.2, 3]),
        ("3, 400 more", [3, 400]),
        (r"\$1{,}000 of 2\,500", [1000, 2500]),
        (r"3\frac{1}{2} times", [3, 1, 2]),
        ("3x4", [3, 4]),
        ("$1{,}250.50 or 50%", [1250.5, 50]),
    ],
)
def test_a_comma_groups_thousands_only_before_exactly_three_digits(text, values):
    assert numbers_in(text) == values
    assert [float(number) for number in numbers(text)] == values


@pytest.mark.parametrize(
    ("text", "listed"),
    [
        ("3 x 4 = 12", ["3×4=12"]),
        ("$3 x $4 = $12", ["3×4=12"]),
        ("50% x (2 + 4) = 3", ["50%×(2+4)=3"]),
        ("x = 5, 3 * x = 15, 3x = 15, 2x + 4 = 14", []),
        ("3 apples x 4 = 12", []),
        ("7 24*3=72", ["24*3=72"]),  # a pruned chain: its first number is another sentence's
        ("4*2=8 31-4-8=19", ["4*2=8", "31-4-8=19"]),
        ("Step 1. 3 + 4 = 7, 5 + 2 = 7", ["3+4=7", "5+2=7"]),
        ("- 3 + 4 = 7", ["3+4=7"]),
        ("* 3 - 4 = -1", ["3-4=-1"]),
        ("**3 + 4 = 7**", ["3+4=7"]),
        ("2 + 3 = 10 / 2 = 5", ["2+3=10/2", "10/2=5"]),
        ("so (2 + 3 = 5)", ["2+3=5"]),
        ("5 (2 + 3) = 25, 5(2 + 3) = 25, 2^3 + 1 = 9, 4 = 2x", []),
        (r"\frac{1+2}{3} + 1 = 2", ["(1+2)/3+1=2"]),
        (r"6 \div \frac{1}{2} = 12", ["6÷(1/2)=12"]),
        (r"\left(2 + 3\right) \times 2 = 10", ["(2+3)×2=10"]),
    ],
)
def test_equations_are_listed_as_they_are_written(text, listed):
    assert equations(text) == listed


@pytest.mark.parametrize(
    ("text", "equation", "verdict"),
    [
        ("3 x 4 = 12", "3×4=12", "clean"),
        ("$3x4=12$", "3×4=12", "clean"),
        ("She pays 4 x $16.25 = $65.", "4×16.25=65", "clean"),
        ("(1 + 2) x 4 = 13", "(1+2)×4=13", "wrong equation"),
        ("x = 5", None, "uncheckable equation"),
        ("2x = 10", None, "uncheckable equation"),
        ("3 + x = 5", None, "uncheckable equation"),
        (r"\(2 \times 3 = 6\)", "2×3=6", "clean"),
        (r"\frac{1 + 2}{3} = 1", "(1+2)/3=1", "clean"),
        (r"6 \div \frac{1}{2} = 12", "6÷(1/2)=12", "clean"),
        (r"1{,}000 \cdot 2 = 2{,}000", "1000×2=2000", "clean"),
        (r"3\frac{1}{2} = 3.5", None, "uncheckable equation"),
        ("3 1/2 + 1 = 4.5", None, "uncheckable equation"),
        ("She has 6. 4 + 5 = 9", "4+5=9", "clean"),
        ("Of 3, 4 + 5 = 9, 10 are", "4+5=9", "clean"),
        ("**3 + 4 = 7**", "3+4=7", "clean"),
        ("3 - 4 = -1", "3-4=-1", "clean"),
        ("50% * 10 = 5", "50%*10=5", "clean"),
        ("6 / 0 = 1", None, "uncheckable equation"),
    ],
)
def test_equations_are_read_and_checked_by_one_grammar(text, equation, verdict):
    assert equations(text) == ([equation] if equation else [])
    assert check_equations(text) == verdict


def test_x_is_a_sign_only_between_numbers():
    assert writes_x("3 x 4") and writes_x("$3 x $4") and writes_x("5% x (2 + 3)")
    assert not any(map(writes_x, ["x = 5", "3x = 15", "3 * x = 15", "max 4", "3 x", "x 4", "3 ax 4"]))


@pytest.mark.parametrize(
    ("text", "equation"),
    [
        (r"\(2 \times 3 = 6\)", "2×3=6"),
        (r"\[ 6 \div 2 = 3 \]", "6÷2=3"),
        (r"$\frac{6}{2} = 3$", "6/2=3"),
        (r"1{,}000 + 2 = 1{,}002", "1000+2=1002"),
        ("1+" * 5_000, None),
        ("3 = 3", None),
        (r"\$4 \cdot 2 = \$8", "4×2=8"),
    ],
)
def test_equations_in_latex_are_read_as_plain_ones(text, equation):
    assert equations(text) == ([equation] if equation else [])


@pytest.mark.parametrize(
    ("wanted", "given", "share"),
    [(["1", "2"], ["2"], 0.5), (["1", "1"], ["1"], 0.5), (["1"], ["1", "3"], 1), ([], ["1"], None)],
)
def test_each_is_found_as_often_as_it_is_there(wanted, given, share):
    assert found(wanted, given) == share


@pytest.mark.parametrize(
    ("solution", "verdict"),
    [
        ("72*0.25=18", "clean"),
        ("She pays 2 * $5 = $10, then.", "clean"),
        ("2 × 3 = 6 apples", "clean"),
        ("12 ÷ 4 = 3", "clean"),
        ("50% * 10 = 5", "clean"),
        ("1,000 * 2 = 2,000", "clean"),
        ("(3 + 4) * 2 = 14", "clean"),
        ("2 + 3 = 10 / 2 = 5", "clean"),
        ("He loses 3 - 4 = -1.", "clean"),
        ("2 * 3 = 6. Then 4 * 5 = 20.", "clean"),
        ("First 2 + 2 = 4\nThen 4 + 4 = 8", "clean"),
        ("0.88*40 = 35", "wrong equation"),
        ("2 + 3 = 5 = 6", "wrong equation"),
        ("2 + 2 = 4\n4 + 4 = 9", "wrong equation"),
        ("1 / 3 = 0.33", "wrong equation"),
        ("48=48", "uncheckable equation"),
        ("x = 3", "uncheckable equation"),
        ("3 x 4 = 12", "clean"),
        ("3 x 4 = 13", "wrong equation"),
        ("2x + 4 = 14", "uncheckable equation"),
        (r"2 \times 3 = 6", "clean"),
        (r"\frac{6}{2} = 4", "wrong equation"),
        (r"1{,}000 + 2 = 1{,}002", "clean"),
        (".5 * 4 = 2", "clean"),
        ("2 * 3 = 6, 4 * 5 = 20", "clean"),
        ("2 * 3 = 6, 4 * 5 = 21", "wrong equation"),
        ("7 24 * 3 = 72", "uncheckable equation"),
        ("2 * 3 = 6\n3 apples + 4 = 7", "uncheckable equation"),
        ("2 * 3 = 6\n5 (2 + 3) = 25", "uncheckable equation"),
        ("2 * 3 = 6\n2 * 3 = 6x", "uncheckable equation"),
        ("5 * 2 eggs = 10 eggs", "uncheckable equation"),
        ("3 apples + 4 = 7", "uncheckable equation"),
        ("2 * 3 = six", "uncheckable equation"),
        ("6 / 0 = 1", "uncheckable equation"),
        ("9 ** 9 ** 9 = 1", "uncheckable equation"),
        ("There is nothing to compute.", "uncheckable equation"),
        ("", "uncheckable equation"),
    ],
)
def test_equations_are_checked(solution, verdict):
    assert check_equations(solution) == verdict


# A product stays below a million: an equation may be off by a millionth of its value.
a_number = st.integers(0, 900) | st.decimals(0, 900, places=2)


@given(a_number, st.sampled_from("+-*"), a_number, st.integers(1, 50))
def test_a_right_equation_is_clean_and_any_other_result_is_wrong(left, symbol, right, off):
    from decimal import Decimal

    left, right = Decimal(left), Decimal(right)
    value = {"+": left + right, "-": left - right, "*": left * right}[symbol]
    assert check_equations(f"So {left} {symbol} {right} = {value:f} in all.") == "clean"
    assert check_equations(f"So {left} {symbol} {right} = {value + off:f} in all.") == "wrong equation"


@given(any_text)
def test_checking_any_text_gives_a_verdict(text):
    assert check_equations(text) in ("clean", "wrong equation", "uncheckable equation")


@pytest.mark.parametrize(
    ("expression", "value"), [("1+2*3", 7), ("(1+2)*3", 9), ("-4/8", -0.5), ("2.5*4", 10), ("--3", 3), ("007.5", 7.5)]
)
def test_arithmetic_has_its_value(expression, value):
    assert evaluate_arithmetic(expression) == value


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os')",
        "().__class__",
        "abs(1)",
        "x",
        "x+1",
        "'a'*3",
        "[1]*3",
        "True",
        "1<2",
        "1 if 1 else 2",
        "2**3",
        "9**9**9",
        "7//2",
        "7%2",
        "1<<60",
        "1,2",
        "1+",
        "",
        "lambda: 1",
        "9" * 400 + ".0",
        "9" * 200 + "*" + "9" * 200,
        "9" * 10_000,
        "(" * 300 + "1" + ")" * 300,
        "1+" * 5_000 + "1",
    ],
    ids=lambda expression: expression[:20] or "empty",
)
def test_what_is_not_plain_arithmetic_of_a_sane_size_is_refused(expression):
    with pytest.raises(ValueError):
        evaluate_arithmetic(expression)


@pytest.mark.parametrize("huge", ["9" * 400 + ".0", "9" * 200 + "*" + "9" * 200, "1+" * 5_000 + "1"], ids=len)
def test_an_equation_of_absurd_size_is_uncheckable(huge):
    assert check_equations(f"{huge}+1 = 5") == "uncheckable equation"


an_operand = st.integers(0, 10**7).map(str) | st.integers(0, 10**9).map("{:,}".format) | st.just("12.50")


@given(st.lists(an_operand, min_size=2, max_size=6), st.sampled_from("+-*×/"), st.sampled_from(["", " ", "$"]))
def test_numbers_equations_and_the_check_read_one_grammar(operands, sign, blank):
    left = f" {sign} ".join(f"{blank.strip()}{operand}" for operand in operands)
    text = f"So {left} = {operands[0]} is written."
    plain = [operand.replace(",", "") for operand in operands]
    assert numbers(text) == [*plain, plain[0]]
    assert numbers_in(text) == [float(number) for number in numbers(text)]
    assert equations(text) == ([f"{sign.join(plain)}={plain[0]}"] if sign != "/" or "0" not in plain[1:] else [])
    if equations(text):
        holds = evaluate_arithmetic(sign.join(plain).replace("×", "*")) == pytest.approx(float(plain[0]), rel=1e-6)
        assert check_equations(text) == ("clean" if holds else "wrong equation")


@given(st.text(alphabet="0123456789 .,+-*/×÷()$%=abx^\\{}\n", max_size=60))
def test_a_clean_text_has_its_equations_listed_and_every_number_of_them_is_a_number_of_the_text(text):
    listed = equations(text)
    assert check_equations(text) != "clean" or listed
    for number in numbers(" ".join(listed)):
        assert float(number) in numbers_in(text) or "frac" in text


@given(any_text)
def test_both_readers_of_equations_agree(text):
    verdict, read = check_equations(text), equations(text)
    if verdict != "uncheckable equation":
        assert read
    if verdict == "clean":
        assert {check_equations(equation) for equation in read} == {"clean"}
    if any(check_equations(equation) == "wrong equation" for equation in read):
        assert verdict != "clean"


@given(any_text)
def test_equations_and_numbers_are_read_the_same_from_what_was_read(text):
    assert [numbers(number) for number in numbers(text)] == [[number] for number in numbers(text)]
    assert [equations(equation) for equation in equations(text)] == [[equation] for equation in equations(text)]


@given(st.integers(0, 10**12))
def test_thousands_with_and_without_commas_are_one_number(number):
    assert numbers(f"{number:,}") == numbers(str(number)) == [str(number)]


@pytest.mark.parametrize(
    "unit",
    [
        "1+",
        "1 ",
        "1,000",
        "1,",
        ".",
        "x",
        "3 x ",
        "1(",
        ")",
        "=",
        "1=",
        "1+1=2 ",
        r"\frac{",
        r"\frac{1}{",
        "$",
        "a ",
        "-",
    ],
)
def test_time_is_linear_in_the_texts_length(unit):
    def seconds(length: int) -> float:
        text, start = unit * (length // len(unit)), time.perf_counter()
        check_equations(text), numbers_in(text), equations(text)
        return time.perf_counter() - start

    # Ten times the text: ten times the seconds, and a hundred times them if they were quadratic.
    assert min(seconds(40_000) for _ in range(3)) < 40 * min(seconds(4_000) for _ in range(3)) + 0.1
