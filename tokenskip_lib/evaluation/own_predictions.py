"""Your own predictions, from a file or a pipe: split, extracted and graded by both rules."""

import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TextIO, get_args

from tqdm import tqdm

from tokenskip_lib.core.outputs import note_path, open_output, open_stream
from tokenskip_lib.core.records import InputError
from tokenskip_lib.core.settings import OutputLayout
from tokenskip_lib.core.store import PIPE, file_errors, mend_end, open_input, read_json_rows
from tokenskip_lib.evaluation.input_forms import FORMS, GivenAnswer, read_answer, read_rows
from tokenskip_lib.problems.grading import is_correct, is_correct_by_reference, split_output


def grade_file(source: str, output: str, layout: str = "answer", answer_phrases: Sequence[str] = ()) -> Counter:
    """Add `prediction`, `is_correct` and `is_correct_by_reference` to every row; its other fields stay.

    Args:
        source: a file of predictions in one of the forms of `input_forms`, or "-" for standard input. Rows of one
            id differ in method, ratio or lm-eval's filter.
        output: the file to write, or "-". After a kill, the same call continues where it stopped.
            OUTPUT.settings.json says how the file was made.
        layout: where outputs state their answer, as in `split_output`: "answer" or "think".
        answer_phrases: what announces an answer in another language, as in `split_output`.

    Returns:
        Counts: rows (answers that are graded), correct, correct_by_reference, no_answer (no answer is stated); and
        what these leave out: filtered (rows that repeat an answer under another filter of lm-eval; they are
        written too) and further (samples beside the first, which are not graded).

    Raises:
        InputError: a row lacks its output or its gold answer or repeats an earlier row, the layout is unknown, a
            phrase is blank, or the file cannot be written or was not made by `grade` from this source.
    """
    check_stating(layout, answer_phrases)
    if source != PIPE:
        open_input(source).close()
    counts: Counter = Counter(rows=0)
    seen: dict[tuple, set[str]] = {}
    settings = {"command": "grade", "layout": layout, "answer_phrases": list(answer_phrases)}
    with _writing(source, output, settings) as (done, file):
        for where, row in tqdm(read_rows(source), unit="row", disable=None):  # no bar where nobody watches
            given = _read(row, seen, where)
            graded = next(done, None)
            if graded is None:
                graded = {**row, **_grade(given, layout, answer_phrases)}
                file.write(json.dumps(graded, ensure_ascii=False) + "\n")
            if len(seen[_key(row, given, where)]) > 1:
                counts["filtered"] += 1
                continue
            counts["rows"] += 1
            counts["further"] += given.further
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
        >>> shares(Counter(rows=1, correct=1, further=8)).rpartition("; ")[2]
        'not counted: 8 further samples'
    """
    words = {
        "correct": "correct",
        "correct_by_reference": "by the rule of the authors' code",
        "no_answer": "state no answer",
    }
    left_out = {"filtered": "rows that repeat an answer under another filter", "further": "further samples"}
    others = ", ".join(f"{counts[name]} {text}" for name, text in left_out.items() if counts[name])
    graded = ", ".join(f"{100 * counts[name] / counts['rows']:.1f}% {text}" for name, text in words.items())
    said = f"{counts['rows']} prediction{'s' * (counts['rows'] != 1)}: {graded}"
    return f"{said}; not counted: {others}" if others else said


def _read(row: dict, seen: dict[tuple, set[str]], where: str) -> GivenAnswer:
    given = read_answer(row)
    if isinstance(given, str):
        raise InputError(f"{where}: {given}; {FORMS}")
    filters = seen.setdefault(_key(row, given, where), set())
    if str(row.get("filter")) in filters:
        raise InputError(f"{where}: id '{given.id}' was there before; rows of one id must differ in method or ratio")
    filters.add(str(row.get("filter")))
    return given


def _key(row: dict, given: GivenAnswer, where: str) -> tuple:
    return given.id or where, str(row.get("method")), str(row.get("ratio"))


def _grade(given: GivenAnswer, layout: str, answer_phrases: Sequence[str]) -> dict:
    prediction = split_output(given.output, layout, answer_phrases).prediction
    return {
        "prediction": prediction,
        "is_correct": is_correct(prediction, given.gold),
        "is_correct_by_reference": is_correct_by_reference(given.output, given.gold),
    }


@contextmanager
def _writing(source: str, output: str, settings: dict) -> Iterator[tuple[Iterator[dict], TextIO]]:
    """The rows that an earlier, killed call wrote, and the open file for the rest.

    An output that this call began is removed if a row is refused: nothing half done is left.
    """
    stream = open_stream(output)
    if stream is not None:
        with file_errors(output), nullcontext(stream) if stream is sys.stdout else stream:
            yield iter(()), stream
            stream.flush()
        return
    with open_output(source, output, settings) as path, file_errors(output):
        continues = path.exists() and path.stat().st_size > 0
        try:
            with path.open("ab+") as file:
                mend_end(file)
            done = [row for _, row in read_json_rows(path)] if continues else []
            with path.open("a", encoding="utf-8") as file:
                yield iter(done), file
        except InputError:
            if not continues:
                path.unlink(missing_ok=True)
                note_path(path).unlink(missing_ok=True)
            raise
