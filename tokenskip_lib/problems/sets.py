"""Problem sets: gsm_symbolic (generated here, no network), those of the hub, or your own JSONL.

Every loader returns problems with a question, a checkable gold answer and, where the set has one, a
worked solution. This file knows nothing about models.
"""

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from string import ascii_uppercase

from tokenskip_lib.core.paths import resolve_path
from tokenskip_lib.core.plugins import need
from tokenskip_lib.core.profiles import Profile, nearest
from tokenskip_lib.core.records import InputError, Problem
from tokenskip_lib.core.store import parse_record, read_json_rows
from tokenskip_lib.problems.gsm_symbolic import LoadedProblems, _gsm_symbolic, _normalise

# Hub data set and the name of its split, for each of ours.
HUB_SETS = {
    "gsm8k": ("openai/gsm8k", "main", {"train": "train", "test": "test"}),
    "math": ("DigitalLearningGmbH/MATH-lighteval", "default", {"train": "train", "test": "test"}),
    "math500": ("HuggingFaceH4/MATH-500", "default", {"test": "test"}),
    "mmlu-stem": ("cais/mmlu", "all", {"test": "test"}),
    # Its own test split has no answers.
    "commonsense-qa": ("tau/commonsense_qa", "default", {"train": "train", "test": "validation"}),
}
MMLU_STEM = [
    "abstract_algebra", "astronomy", "college_biology", "college_chemistry", "college_computer_science",
    "college_mathematics", "college_physics", "computer_security", "conceptual_physics", "electrical_engineering",
    "elementary_mathematics", "high_school_biology", "high_school_chemistry", "high_school_computer_science",
    "high_school_mathematics", "high_school_physics", "high_school_statistics", "machine_learning",
]  # fmt: skip
PROBLEM_SETS = ["gsm_symbolic", *HUB_SETS]


def load_problems(profile: Profile, split: str) -> LoadedProblems:
    """The problems of one split under a profile.

    Args:
        split: "train" (the chains TokenSkip learns from), "test" (never trained on), "target" (what
            `prepare-target` teaches the base model) or "validation" (what settings are chosen by).
            Of a published training set the questions that the test set has as well are left out.

    Raises:
        InputError: unknown set or split, or a file row without question or answer.
    """
    settings = profile.problems
    if split == "target":
        if profile.target_training is None:
            raise InputError(f"profile '{profile.name}' has no target_training section: its model needs no preparing")
        return load_problem_set(settings.train, split, profile.target_training.rows, profile)
    source = getattr(settings, split) or settings.train
    if split == "validation" and settings.validation is None and source != "gsm_symbolic":
        raise InputError(
            "problems.validation: name a JSONL file of problems to choose settings by; "
            "of the problem sets only gsm_symbolic has a validation split"
        )
    size, tested = getattr(settings, f"{split}_size"), settings.test or settings.train
    if split == "train" and source in HUB_SETS and tested != "gsm_symbolic":
        asked = load_problem_set(tested, "test", None, profile).problems
        apart = leave_out(load_problem_set(source, split, None, profile), asked, "question of a test problem")
        return LoadedProblems(_take(apart.problems, size).problems, apart.dropped)
    return load_problem_set(source, split, size, profile)


def leave_out(loaded: LoadedProblems, others: Iterable[Problem], reason: str) -> LoadedProblems:
    """Problems without those whose question others ask, counted by a reason: nobody can mend a published set."""
    asked = {_normalise(problem.question) for problem in others}
    apart = [problem for problem in loaded.problems if _normalise(problem.question) not in asked]
    return LoadedProblems(apart, loaded.dropped + Counter({reason: len(loaded.problems) - len(apart)}))


def load_problem_set(source: str, split: str, size: int | None, profile: Profile) -> LoadedProblems:
    """One problem set by name or path; `size` None takes all there are."""
    if source == "gsm_symbolic":
        return _gsm_symbolic(split, size, profile)
    if source in HUB_SETS:
        return _take(_hub_problems(source, split), size)
    if source.endswith(".jsonl"):
        return _take(read_problems(resolve_path(source)), size)
    raise InputError(f"unknown problem set '{source}'{nearest(source, PROBLEM_SETS)}; or the path of a .jsonl file")


def refuse_shared_questions(train: list[Problem], test: list[Problem]) -> None:
    """Raise InputError if a question is in both: accuracy on it would measure memory."""
    trained = {_normalise(problem.question): problem.id for problem in train}
    for problem in test:
        if (twin := trained.get(_normalise(problem.question))) is not None:
            raise InputError(f"test problem '{problem.id}' is also training problem '{twin}': remove one of them")


def read_problems(path: Path) -> list[Problem]:
    """Problems from a JSONL file: question (or problem) and answer; id and solution where there.

    A GSM8K-style answer ("... #### 18") is split into solution and answer. Where a row has `choices`, they
    follow the question by their letters, and the answer is a letter, or the place of one from 0.
    """
    problems = [
        _problem(row, f"{path.stem}-{number}", where=f"{path}:{number}") for number, row in read_json_rows(path)
    ]
    _refuse_repeated(problems, str(path))
    if not problems:
        raise InputError(f"{path}: no rows")
    return problems


def check_problems(rows: Iterable[tuple[str, dict]], *, needs_answer: bool = True) -> list[Problem]:
    """Rows with an id as problems, in the layouts that `read_problems` knows.

    Args:
        rows: (the place that an error names, the row).
        needs_answer: whether a row without a gold answer is refused; else its answer is "".

    Raises:
        InputError: a row without question, or two rows with one id.
    """
    problems = [_problem(row, str(row["id"]), where, needs_answer=needs_answer) for where, row in rows]
    _refuse_repeated(problems, "questions")
    return problems


def _refuse_repeated(problems: list[Problem], where: str) -> None:
    repeated = [problem_id for problem_id, count in Counter(p.id for p in problems).items() if count > 1]
    if repeated:
        raise InputError(f"{where}: id '{repeated[0]}' stands on more than one row; ids must differ")


def _hub_problems(name: str, split: str) -> list[Problem]:
    datasets = need("datasets", "demo")
    repository, config, splits = HUB_SETS[name]
    if split not in splits:
        raise InputError(f"problem set '{name}' has no {split} split; it has {', '.join(splits)}")
    try:
        rows = datasets.load_dataset(repository, config, split=splits[split])
    except (OSError, ConnectionError, ValueError) as error:
        raise InputError(
            f"problem set '{name}': cannot reach {repository} on the hub ({type(error).__name__}); "
            "give the path of a JSONL file with question and answer instead"
        ) from None
    if name == "mmlu-stem":
        rows = [row for row in rows if row["subject"] in MMLU_STEM]
    return [_problem(row, f"{name}-{split}-{index}", where=f"{repository}:{index}") for index, row in enumerate(rows)]


def _problem(row: dict, default_id: str, where: str, *, needs_answer: bool = True) -> Problem:
    """One row in any of the layouts in use: GSM8K's (`answer` ends in "#### 18"), MATH's, with choices, or plain."""
    if "choices" in row:
        row = {**row, **_with_choices(row, where)}
    question = row.get("question", row.get("problem"))
    answer = row.get("answer", _last_boxed_or_none(row.get("solution")))
    question, answer = (str("" if value is None else value).strip() for value in (question, answer))
    solution = str(row.get("solution") or row.get("cot") or "")
    if "####" in answer:
        solution, _, answer = answer.rpartition("####")
    for name, value in (("question", question), ("answer", answer)):
        if not value.strip() and (needs_answer or name == "question"):
            raise InputError(f"{where}: no {name}; every row needs a question{' and an answer' * needs_answer}")
    solution = re.sub(r"<<[^>]*>>", "", solution).strip()
    problem_id = str(row.get("id") or row.get("unique_id") or default_id)
    record = {"id": problem_id, "question": question, "answer": answer.strip(), "solution": solution}
    return parse_record(record, Problem, where)


def _with_choices(row: dict, where: str) -> dict[str, str]:
    """Question and answer of a multiple-choice row: MMLU's (a list, the answer's place) or CommonsenseQA's."""
    choices, answer = row["choices"], row.get("answerKey", row.get("answer"))
    texts = choices.get("text") if isinstance(choices, dict) else choices
    if not isinstance(texts, list) or not 2 <= len(texts) <= len(ascii_uppercase):
        raise InputError(f"{where}: choices: a list of at least two texts")
    letters = ascii_uppercase[: len(texts)]
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(letters):
        answer = letters[answer]
    if not isinstance(answer, str) or answer.strip() not in list(letters):
        raise InputError(f"{where}: answer: one of the letters {letters}, or a place from 0, not {answer!r}")
    if isinstance(choices, dict) and choices.get("label", list(letters)) != list(letters):
        raise InputError(f"{where}: choices: labels other than {letters}, in this order")
    listed = "\n".join(f"({letter}) {text}" for letter, text in zip(letters, texts, strict=True))
    return {"question": f"{row.get('question', row.get('problem', ''))}\n{listed}", "answer": answer.strip()}


def _last_boxed_or_none(solution: str | None) -> str | None:
    from tokenskip_lib.problems.grading import last_boxed

    boxed = last_boxed(solution or "")
    return boxed.content if boxed else None


def _take(problems: list[Problem], size: int | None) -> LoadedProblems:
    if size is not None and size > len(problems):
        raise InputError(f"{size} problems asked for, {len(problems)} there are")
    return LoadedProblems(problems[:size])
