"""Your own predictions, from a file or a pipe: split, extracted and graded by both rules."""

import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO, get_args

from tqdm import tqdm

from tokenskip_lib.core.records import InputError
from tokenskip_lib.core.settings import OutputLayout
from tokenskip_lib.core.store import PIPE, output_path
from tokenskip_lib.evaluation.input_forms import FORMS, read_answer, read_rows
from tokenskip_lib.problems.grading import is_correct, is_correct_by_reference, split_output


def grade_file(source: str, output: str, layout: str = "answer", answer_phrases: Sequence[str] = ()) -> Counter:
    """Add `prediction`, `is_correct` and `is_correct_by_reference` to every row; its other fields stay.

    Args:
        source: a file of predictions in one of the forms of `input_forms`, or "-" for standard input. Rows of one
            id differ in method, ratio or lm-eval's filter.
        output: the file to write, or "-". A file appears only when all rows are in it.
        layout: where outputs state their answer, as in `split_output`: "answer" or "think".
        answer_phrases: what announces an answer in another language, as in `split_output`.

    Returns:
        Counts: rows, correct, correct_by_reference, no_answer (no answer is stated).

    Raises:
        InputError: a row lacks its output or its gold answer or repeats an earlier row, the layout is unknown, a
            phrase is blank, or the file cannot be written.
    """
    check_stating(layout, answer_phrases)
    counts: Counter = Counter(rows=0)
    seen: set[tuple] = set()
    with _writing(source, output) as file:
        for where, row in tqdm(read_rows(source), unit="row"):
            graded = _grade(row, seen, where, layout, answer_phrases)
            file.write(json.dumps(graded, ensure_ascii=False) + "\n")
            counts["rows"] += 1
            counts["correct"] += graded["is_correct"]
            counts["correct_by_reference"] += graded["is_correct_by_reference"]
            counts["no_answer"] += graded["prediction"] is None
        if not counts["rows"]:
            raise InputError(f"{source}: no rows")
    return counts


def check_stating(layout: str, answer_phrases: Sequence[str]) -> None:
    """Raise InputError for an unknown layout or a blank phrase, as the options of `grade` and `place` may be."""
    if layout not in get_args(OutputLayout):
        raise InputError(f"--layout: '{layout}' is none of {', '.join(get_args(OutputLayout))}")
    if not all(phrase.strip() for phrase in answer_phrases):
        raise InputError("--answer-phrase: a blank phrase; give words that announce an answer, e.g. 'Die Antwort ist'")


def shares(counts: Counter) -> str:
    """What `grade_file` counted, as one line for people.

    Example:
        >>> shares(Counter(rows=4, correct=3, correct_by_reference=4))
        "4 predictions: 75.0% correct, 100.0% by the rule of the authors' code, 0.0% state no answer"
    """
    words = {
        "correct": "correct",
        "correct_by_reference": "by the rule of the authors' code",
        "no_answer": "state no answer",
    }
    return f"{counts['rows']} predictions: " + ", ".join(
        f"{100 * counts[name] / counts['rows']:.1f}% {text}" for name, text in words.items()
    )


def _grade(row: dict, seen: set[tuple], where: str, layout: str, answer_phrases: Sequence[str]) -> dict:
    given = read_answer(row)
    if isinstance(given, str):
        raise InputError(f"{where}: {given}; {FORMS}")
    key = (given.id or where, *(str(row.get(name)) for name in ("method", "ratio", "filter")))
    if key in seen:
        raise InputError(f"{where}: id '{key[0]}' was there before; rows of one id must differ in method or ratio")
    seen.add(key)
    prediction = split_output(given.output, layout, answer_phrases).prediction
    return {
        **row,
        "prediction": prediction,
        "is_correct": is_correct(prediction, given.gold),
        "is_correct_by_reference": is_correct_by_reference(given.output, given.gold),
    }


@contextmanager
def _writing(source: str, output: str) -> Iterator[TextIO]:
    if output == PIPE:
        yield sys.stdout
        return
    path = output_path(source, output)
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = partial.open("w", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{output}: cannot be written ({error.strerror})") from None
    try:
        with file:
            yield file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
