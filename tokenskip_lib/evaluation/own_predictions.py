"""Your own predictions, from a file or a pipe: split, extracted and graded by both rules."""

import hashlib
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import NamedTuple, TextIO, get_args

from tokenskip_lib.core.executor import Work
from tokenskip_lib.core.outputs import note_path, open_output, open_stream
from tokenskip_lib.core.records import InputError
from tokenskip_lib.core.settings import ExecutionSettings, OutputLayout, Settings
from tokenskip_lib.core.store import PIPE, file_errors, mend_end, open_input, read_json_rows
from tokenskip_lib.core.windows import say_lost, write_windows
from tokenskip_lib.evaluation.input_forms import FORMS, GivenAnswer, read_answer, read_rows
from tokenskip_lib.problems.grading import is_correct, is_correct_by_reference, split_output

_ADDED = {"prediction", "is_correct", "is_correct_by_reference"}


class OwnPredictionSettings(Settings):
    """Every setting that predictions can be graded with, beside the options of `grade`: where the work is done."""

    execution: ExecutionSettings = ExecutionSettings()


class _Prediction(NamedTuple):
    """A row, and what the counts need to know of it; once it is graded, the row has the fields in _ADDED.

    Attributes:
        id: its file and line. Rows may share their own id, or have none.
        again: whether it repeats an answer under another filter of lm-eval.
    """

    id: str
    row: dict
    given: GivenAnswer
    again: bool


class _Graded:
    """Where graded predictions go: their rows into a file, in order, and all of them into the counts."""

    def __init__(self, file: TextIO):
        self.file = file
        self.counts: Counter = Counter(rows=0)

    def __contains__(self, key: tuple, /) -> bool:
        return False  # what was done before is left out of the windows

    def append(self, graded: Iterable[_Prediction], /) -> None:
        for each in graded:
            self.file.write(json.dumps(each.row, ensure_ascii=False) + "\n")
            self.count(each)
        self.file.flush()

    def count(self, graded: _Prediction) -> None:
        if graded.again:
            self.counts["filtered"] += 1
            return
        self.counts["rows"] += 1
        self.counts["further"] += graded.given.further
        self.counts["correct"] += graded.row["is_correct"]
        self.counts["correct_by_reference"] += graded.row["is_correct_by_reference"]
        self.counts["no_answer"] += graded.row["prediction"] is None


def grade_file(
    source: str,
    output: str,
    layout: str = "answer",
    answer_phrases: Sequence[str] = (),
    *,
    execution: ExecutionSettings | None = None,
) -> Counter:
    """Add `prediction`, `is_correct` and `is_correct_by_reference` to every row; its other fields stay.

    Args:
        source: a file of predictions in one of the forms of `input_forms`, or "-" for standard input. Rows of one
            id differ in method, ratio or lm-eval's filter.
        output: the file to write, or "-". After a kill, the same call continues where it stopped.
            OUTPUT.settings.json says how the file was made.
        layout: where outputs state their answer, as in `split_output`: "answer" or "think".
        answer_phrases: what announces an answer in another language, as in `split_output`.
        execution: where the work is done; None: in this process. A row that ends its worker each time is left out.

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
    settings = {"command": "grade", "layout": layout, "answer_phrases": list(answer_phrases)}
    with _writing(source, output, settings) as (done, file):
        sink = _Graded(file)
        lost = write_windows(
            _not_done(source, done, sink),
            sink,
            partial(_build_grading, layout, tuple(answer_phrases)),
            lambda prediction: [(prediction.id,)],
            execution=execution or ExecutionSettings(),
            total=None,
            label="grading",
            unit="row",
        )
        if lost:
            print(f"grade: {say_lost(lost, 'row')}; the same command tries again", file=sys.stderr)
        if not sink.counts["rows"]:
            raise InputError(f"{source}: no rows{' that can be graded' if lost else ''}")
    return sink.counts


def _not_done(source: str, done: dict[bytes, list[dict]], sink: _Graded) -> Iterator[_Prediction]:
    """The predictions of a source that were not graded before. The others are counted."""
    seen: dict[tuple, set[str]] = {}
    for where, row in read_rows(source):
        prediction = _read(row, seen, where)
        if done and (before := done.get(_digest(row))):
            sink.count(prediction._replace(row=before.pop()))
        else:
            yield prediction


def _build_grading(layout: str, answer_phrases: Sequence[str]) -> Work[_Prediction, _Prediction]:
    """The function from predictions to the same, graded."""

    def grade(predictions: Sequence[_Prediction]) -> list[_Prediction]:
        return [each._replace(row={**each.row, **_grade(each.given, layout, answer_phrases)}) for each in predictions]

    return grade


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


def _read(row: dict, seen: dict[tuple, set[str]], where: str) -> _Prediction:
    given = read_answer(row)
    if isinstance(given, str):
        raise InputError(f"{where}: {given}; {FORMS}")
    filters = seen.setdefault((given.id or where, str(row.get("method")), str(row.get("ratio"))), set())
    if str(row.get("filter")) in filters:
        raise InputError(f"{where}: id '{given.id}' was there before; rows of one id must differ in method or ratio")
    filters.add(str(row.get("filter")))
    return _Prediction(where, row, given, again=len(filters) > 1)


def _grade(given: GivenAnswer, layout: str, answer_phrases: Sequence[str]) -> dict:
    prediction = split_output(given.output, layout, answer_phrases).prediction
    return {
        "prediction": prediction,
        "is_correct": is_correct(prediction, given.gold),
        "is_correct_by_reference": is_correct_by_reference(given.output, given.gold),
    }


def _digest(row: dict) -> bytes:
    """Tells rows apart by all that they have beside the verdicts."""
    return hashlib.sha256(json.dumps({k: v for k, v in row.items() if k not in _ADDED}).encode()).digest()


@contextmanager
def _writing(source: str, output: str, settings: dict) -> Iterator[tuple[dict[bytes, list[dict]], TextIO]]:
    """The verdicts that an earlier, killed call wrote, by the digest of their rows; and the open file for the rest.

    An output that this call began is removed if a row is refused: nothing half done is left.
    """
    stream = open_stream(output)
    if stream is not None:
        with file_errors(output), nullcontext(stream) if stream is sys.stdout else stream:
            yield {}, stream
            stream.flush()
        return
    with open_output(source, output, settings) as path, file_errors(output):
        continues = path.exists() and path.stat().st_size > 0
        try:
            with path.open("ab+") as file:
                mend_end(file)
            done = defaultdict(list)  # rows without an id may be the same
            for number, row in read_json_rows(path):
                if not row.keys() >= _ADDED:
                    raise InputError(f"{output}:{number}: a row without its verdicts; mend or remove the line")
                done[_digest(row)].append({name: row[name] for name in _ADDED})
            with path.open("a", encoding="utf-8") as file:
                yield done, file
        except InputError:
            if not continues:
                path.unlink(missing_ok=True)
                note_path(path).unlink(missing_ok=True)
            raise
