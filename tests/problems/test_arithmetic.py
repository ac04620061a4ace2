"""One number grammar and one equation parser: what they read, and that their readers agree."""

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
)

any_text = st.text(alphabet="0123456789 .,+-*/×÷()$%=abx\\{}\n", max_size=40)

TEXT = "She pays 2 * $1,250 = $2,500.50 in 3 weeks, so (4+6)/2=5 are left; 7 = seven, x=9."


def test_numbers_and_equations_are_read_as_they_stand():
    assert numbers(TEXT) == ["2", "1250", "2500.50", "3", "4", "6", "2", "5", "7", "9"]
    assert equations(TEXT) == ["2*1250=2500.50", "(4+6)/2=5"]
    assert numbers("none") == equations("none") == []
    assert numbers("1{,}000 and 2,500") == ["1000", "2500"]


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


a_number = st.integers(0, 10_000) | st.decimals(0, 1000, places=2)


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


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("1,2,3", ["1", "2", "3"]),
        ("1,250 and 12,345,678.5", ["1250", "12345678.5"]),
        ("1,2345 or 1,23", ["1", "2345", "1", "23"]),
        ("3, 400 more", ["3", "400"]),
        (".5 of 2.50.", [".5", "2.50"]),
        ("2.5.1", ["2.5", "1"]),
        (r"\$1{,}000 of 2\,500", ["1000", "2500"]),
        (r"3\frac{1}{2} times", ["3", "1", "2"]),
        ("3x4", ["3", "4"]),
    ],
)
def test_a_comma_groups_thousands_only_before_three_digits(text, read):
    assert numbers(text) == read
    assert numbers_in(text) == [float(number) for number in read]


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
    "part",
    ["1", "1,", "1,234", "1.", "(", ")", " ", "1 ", "+", "1+", "=", "1=", "1+1=", "x", "1x", "\\frac{", "%", "."],
)
def test_long_texts_are_read_in_time_that_grows_with_their_length(part):
    start = time.perf_counter()
    check_equations(part * 20_000 + "=1")
    equations("1+1=" + part * 20_000)
    numbers(part * 20_000)
    assert time.perf_counter() - start < 5
