"""Problem sets: gsm_symbolic (generated here, without a network), sets of the hub, or your own JSONL.

A problem has a question, a gold answer that can be checked and, if the set has one, a worked solution.
A new problem set is one entry of PROBLEM_SETS. This module knows nothing about models.
"""

import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import ascii_uppercase

from tokenskip_lib.core.inputs import text_of
from tokenskip_lib.core.paths import resolve_path
from tokenskip_lib.core.plugins import need
from tokenskip_lib.core.profiles import Profile, nearest
from tokenskip_lib.core.records import InputError, Problem, few_of, printable
from tokenskip_lib.core.store import parse_record, read_json_rows
from tokenskip_lib.problems.grading import last_boxed
from tokenskip_lib.problems.gsm_symbolic import SYMBOLIC_SPLITS, generate_problems, normalise_question

MMLU_STEM = (
    "abstract_algebra", "astronomy", "college_biology", "college_chemistry", "college_computer_science",
    "college_mathematics", "college_physics", "computer_security", "conceptual_physics", "electrical_engineering",
    "elementary_mathematics", "high_school_biology", "high_school_chemistry", "high_school_computer_science",
    "high_school_mathematics", "high_school_physics", "high_school_statistics", "machine_learning",
)  # fmt: skip

# What a row may call each part of a problem. The first of these names that the row has counts.
_FIELDS = {
    "id": ("id", "unique_id"),
    "question": ("question", "problem"),
    "choices": ("choices", "options"),
    "answer": ("answerKey", "answer"),
    "solution": ("solution", "cot"),
}
# A box without braces, as in two training solutions of MATH: "$\boxed 9$". The box holds all up to the formula's end.
_BARE_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])[\s~]*+(?!\{)(?:([^$\n]{1,80}?)(?:\$|\\\]|\\\))|([^$\s]+))")
# GSM8K's "<<3*4=12>>". What is not closed matches as well, and stays: looking for its end from each "<<" is quadratic.
_CALCULATOR = re.compile(r"<<[^>]*+(>>)?")


@dataclass(frozen=True)
class ProblemSet:
    """A problem set by name.

    Attributes:
        splits: what the set calls each split that it has of ours (train, test, validation, target).
        hub: its name on the Hugging Face hub; None if gsm_symbolic generates it.
        config: the hub data set's configuration.
        subjects: its rows of these subjects are taken; () takes all rows.
    """

    splits: Mapping[str, str]
    hub: str | None = None
    config: str = "default"
    subjects: Sequence[str] = ()


PROBLEM_SETS = {
    "gsm_symbolic": ProblemSet({split: split for split in SYMBOLIC_SPLITS}),
    "gsm8k": ProblemSet({"train": "train", "test": "test"}, "openai/gsm8k", "main"),
    "math": ProblemSet({"train": "train", "test": "test"}, "DigitalLearningGmbH/MATH-lighteval"),
    "math500": ProblemSet({"test": "test"}, "HuggingFaceH4/MATH-500"),
    "mmlu-stem": ProblemSet({"test": "test"}, "cais/mmlu", "all", MMLU_STEM),
    # The hub's test split has no answers.
    "commonsense-qa": ProblemSet({"train": "train", "test": "validation"}, "tau/commonsense_qa"),
}


@dataclass
class LoadedProblems:
    """Problems in a fixed order, and how many candidates were dropped, by reason.

    The reason names the first of the rows that have no answer.
    """

    problems: list[Problem]
    dropped: Counter[str] = field(default_factory=Counter)


def is_published(source: str) -> bool:
    """Whether a problem set comes from the hub, so that nobody here can mend a question that two splits share.

    Example:
        >>> is_published("gsm8k"), is_published("gsm_symbolic"), is_published("mine.jsonl")
        (True, False, False)
    """
    return source in PROBLEM_SETS and PROBLEM_SETS[source].hub is not None


def load_problems(profile: Profile, split: str) -> LoadedProblems:
    """The problems of one split under a profile.

    Args:
        split: "train" (TokenSkip learns from its chains), "test" (never trained on), "target" (the base model
            learns from it in `prepare-target`) or "validation" (settings are chosen by it).
            Questions of a published training set that the test set has too are left out.

    Raises:
        InputError: unknown set or split, a row without question, or no row with an answer.
    """
    settings = profile.problems
    if split == "target":
        if profile.target_training is None:
            raise InputError(f"profile '{profile.name}' has no target_training section: its model needs no preparing")
        return load_problem_set(settings.train, split, profile.target_training.rows, profile)
    source = getattr(settings, split) or settings.train
    if split == "validation" and settings.validation is None and not _has_split(source, split):
        raise InputError(
            "problems.validation: name a JSONL file of problems to choose settings by; "
            "of the problem sets only gsm_symbolic has a validation split"
        )
    size, tested = getattr(settings, f"{split}_size"), settings.test or settings.train
    if split == "train" and is_published(source) and tested != "gsm_symbolic":
        asked = load_problem_set(tested, "test", None, profile).problems
        apart = leave_out(load_problem_set(source, split, None, profile), asked, "question of a test problem")
        return _take(apart, size)
    return load_problem_set(source, split, size, profile)


def _has_split(source: str, split: str) -> bool:
    return source in PROBLEM_SETS and split in PROBLEM_SETS[source].splits


def leave_out(loaded: LoadedProblems, others: Iterable[Problem], reason: str) -> LoadedProblems:
    """The problems whose question is not among the others'; the problems left out are counted under `reason`."""
    asked = {normalise_question(problem.question) for problem in others}
    apart = [problem for problem in loaded.problems if normalise_question(problem.question) not in asked]
    return LoadedProblems(apart, loaded.dropped + Counter({reason: len(loaded.problems) - len(apart)}))


def load_problem_set(source: str, split: str, size: int | None, profile: Profile) -> LoadedProblems:
    """One problem set by its name in PROBLEM_SETS, or by the path of a JSONL file; `size` None takes all of it.

    Raises:
        InputError: unknown set or split, or fewer problems than `size`.
    """
    if is_published(source):
        return _take(_hub_problems(source, split), size)
    if source in PROBLEM_SETS:
        rules, seed = profile.problems, profile.seed
        if split == "train" and rules.train_seed is not None:
            seed = rules.train_seed
        found = generate_problems(split, size, seed=seed, max_number=rules.max_number, max_words=rules.max_words)
        return LoadedProblems(*found)
    if source.endswith(".jsonl"):
        return _take(read_problems(resolve_path(source)), size)
    raise InputError(
        f"unknown problem set '{source}'{nearest(source, list(PROBLEM_SETS))}; or the path of a .jsonl file"
    )


def refuse_shared_questions(train: list[Problem], test: list[Problem]) -> None:
    """Raise InputError if a question is in both: accuracy on it would measure memory."""
    trained = {normalise_question(problem.question): problem.id for problem in train}
    for problem in test:
        if (twin := trained.get(normalise_question(problem.question))) is not None:
            raise InputError(f"test problem '{problem.id}' is also training problem '{twin}': remove one of them")


def read_problems(path: Path) -> LoadedProblems:
    """Problems from a JSONL file: question (or problem) and answer; id and solution may be there.

    A GSM8K-style answer ("... #### 18") is split into solution and answer. The `choices` (or `options`) of a row are
    added to the question, each with its letter; the answer is then a letter, or the position of a choice counted
    from 0. Without an answer field, the last box of the solution is the answer. Fields that are not read are named on
    stderr.

    Raises:
        InputError: a row without question, an id on two rows, or no row with an answer.
    """
    rows = [(f"{path}:{number}", f"{path.stem}-{number}", row) for number, row in read_json_rows(path)]
    if not rows:
        raise InputError(f"{path}: no rows")
    problems = [_problem(row, default_id, where) for where, default_id, row in rows]
    _refuse_repeated(problems, [where for where, _, _ in rows])
    _name_unread(str(path), [row for _, _, row in rows])
    return _with_answers(problems, str(path))


def check_problems(rows: Iterable[tuple[str, dict]]) -> list[Problem]:
    """Rows with an id as problems, in the layouts that `read_problems` knows. Without an answer, the answer is "".

    Args:
        rows: (the place that an error names, the row).

    Raises:
        InputError: a row without question, or two rows with one id.
    """
    rows = list(rows)
    problems = [_problem(row, "", where) for where, row in rows]
    _refuse_repeated(problems, [where for where, _ in rows])
    _name_unread("questions", [row for _, row in rows])
    return problems


def _with_answers(problems: list[Problem], source: str) -> LoadedProblems:
    """The problems that have an answer. The others are counted, and the reason names the first of them."""
    answered = [problem for problem in problems if problem.answer]
    without = [problem.id for problem in problems if not problem.answer]
    if not answered:
        raise InputError(f"{source}: no row has an answer; a row needs a question and an answer")
    reason = f"no answer given, and none boxed in the solution ({few_of(without)})"
    return LoadedProblems(answered, Counter({reason: len(without)} if without else {}))


def _name_unread(source: str, rows: Sequence[dict]) -> None:
    """Name the fields of rows that no problem was made of."""
    unread = {name for row in rows for name in set(row) - set(_fields_of(row).values()) if row[name] is not None}
    if unread:
        print(printable(f"{source}: fields that are not read: {', '.join(sorted(map(str, unread)))}"), file=sys.stderr)


def _refuse_repeated(problems: Sequence[Problem], places: Sequence[str]) -> None:
    seen: set[str] = set()
    for problem, where in zip(problems, places, strict=True):
        if problem.id in seen:
            raise InputError(f"{where}: id '{problem.id}' is on more than one row; ids must differ")
        seen.add(problem.id)


def _hub_problems(name: str, split: str) -> LoadedProblems:
    datasets, chosen = need("datasets", "demo"), PROBLEM_SETS[name]
    if split not in chosen.splits:
        raise InputError(f"problem set '{name}' has no {split} split; it has {', '.join(chosen.splits)}")
    try:
        rows = datasets.load_dataset(chosen.hub, chosen.config, split=chosen.splits[split])
    except (OSError, ConnectionError, ValueError) as error:
        raise InputError(
            f"problem set '{name}': cannot reach {chosen.hub} on the hub ({type(error).__name__}); "
            "give the path of a JSONL file with question and answer instead"
        ) from None
    if chosen.subjects:
        rows = [row for row in rows if row["subject"] in chosen.subjects]
    problems = [_problem(row, f"{name}-{split}-{index}", f"{chosen.hub}:{index}") for index, row in enumerate(rows)]
    return _with_answers(problems, name)


def _fields_of(row: dict) -> dict[str, str]:
    """Part of a problem -> the field that holds it, for the parts that the row has."""
    given = {name for name, value in row.items() if value is not None and not (isinstance(value, str) and value == "")}
    found = {part: next((name for name in names if name in given), None) for part, names in _FIELDS.items()}
    return {part: name for part, name in found.items() if name is not None}


def _problem(row: dict, default_id: str, where: str) -> Problem:
    """One row in any of the layouts in use: GSM8K's (`answer` ends in "#### 18"), MATH's, with choices, or plain.

    The answer of a row that states none is "".
    """
    given = {part: row[name] for part, name in _fields_of(row).items()}
    parts = {part: text_of(value, f"{where}: {part}") for part, value in given.items() if part != "choices"}
    if not parts.get("question", "").strip():
        raise InputError(f"{where}: no question; every row needs one")
    if "choices" in given:
        parts |= _with_choices(given, where)
    solution = parts.get("solution", "")
    answer = parts.get("answer", "").strip() or _boxed_answer(solution)
    if "####" in answer:
        solution, _, answer = answer.rpartition("####")
    record = {
        "id": parts.get("id", default_id),
        "question": parts["question"].strip(),
        "answer": answer.strip(),
        "solution": _CALCULATOR.sub(lambda match: "" if match[1] else match[0], solution).strip(),
    }
    return parse_record(record, Problem, where)


def _with_choices(parts: dict, where: str) -> dict[str, str]:
    """Question and answer of a multiple-choice row. Its choices are a list, CommonsenseQA's, or letter -> text."""
    choices, answer = parts["choices"], parts.get("answer", "")
    if isinstance(choices, dict) and "text" not in choices:
        choices = {"label": list(choices), "text": list(choices.values())}
    texts = choices["text"] if isinstance(choices, dict) else choices
    if not isinstance(texts, list) or not 2 <= len(texts) <= len(ascii_uppercase):
        raise InputError(f"{where}: choices (or options): a list of at least two texts")
    letters = ascii_uppercase[: len(texts)]
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(letters):
        answer = letters[answer]
    if not isinstance(answer, str) or answer.strip() not in ["", *letters]:
        raise InputError(f"{where}: answer: one of the letters {letters}, or a place from 0, not {answer!r}")
    if isinstance(choices, dict) and choices.get("label", list(letters)) != list(letters):
        raise InputError(f"{where}: choices (or options): labels other than {letters}, in this order")
    said = [text_of(text, f"{where}: choices (or options)") for text in texts]
    listed = "\n".join(f"({letter}) {text}" for letter, text in zip(letters, said, strict=True))
    return {"question": f"{parts['question']}\n{listed}", "answer": answer.strip()}


def _boxed_answer(solution: str) -> str:
    """What the last box of a worked solution holds, with braces or without; "" if it has no box."""
    boxed, bare = last_boxed(solution), list(_BARE_BOX.finditer(solution))
    if bare and (boxed is None or bare[-1].start() >= boxed.start):  # a formula ends here, in an output it may not
        return (bare[-1].group(1) or bare[-1].group(2)).strip(" .,")
    return boxed.content if boxed else ""


def _take(loaded: LoadedProblems, size: int | None) -> LoadedProblems:
    if size is not None and size > len(loaded.problems):
        raise InputError(f"{size} problems asked for, {len(loaded.problems)} there are")
    return LoadedProblems(loaded.problems[:size], loaded.dropped)
