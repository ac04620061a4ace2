"""Requests without an answer, and chains that end every worker: noted in the run, said on stderr, never counted.

The stage tries them again at its next start.
"""

import sys
from collections.abc import Mapping

from tokenskip_lib.core.records import InputError
from tokenskip_lib.core.windows import say_lost
from tokenskip_lib.experiments.run import Run, read_state
from tokenskip_lib.experiments.steps import CHAINS, SCORED

FAILED_REQUESTS, PROBLEMS_WITHOUT_ANSWER = "failed_requests", "problems_without_answer"  # of a stage's note
LEFT_OUT = "chains_left_out"  # of the note of score and of prune


def note_failures(run: Run, stage: str, failed: Mapping[tuple, str]) -> None:
    """Note how many requests of a stage failed, and why, by problem. Without failures an earlier note is cleared.

    Args:
        failed: key of a request, which begins with the problem's id -> why it failed.
    """
    reasons: dict[str, str] = {}
    for key, reason in failed.items():
        reasons.setdefault(key[0], reason)
    if failed or FAILED_REQUESTS in run.state["stages"].get(stage, {}):
        run.note(stage, **{FAILED_REQUESTS: len(failed), PROBLEMS_WITHOUT_ANSWER: reasons})
    if failed:
        print(f"{stage}: {say_failures(failed)}; `tokenskip {stage}` asks again", file=sys.stderr)


def note_lost(run: Run, stage: str, lost: Mapping[str, str]) -> None:
    """Note the chains that ended every worker, by id, and why. Without such chains an earlier note is cleared."""
    if lost or LEFT_OUT in run.state["stages"].get(stage, {}):
        run.note(stage, **{LEFT_OUT: dict(lost)})
    if lost:
        print(f"{stage}: {say_lost(lost)}; `tokenskip {stage}` tries again", file=sys.stderr)


def say_failures(failed: Mapping[tuple, str]) -> str:
    """How many requests failed, of how many problems, and why the first did.

    Example:
        >>> say_failures({("p3", "original", 1.0): "too long", ("p3", "be_concise", 1.0): "too long"})
        '2 requests failed, so 1 problem is left out (p3: too long)'
    """
    problems = {key[0] for key in failed}
    (first, *_), reason = next(iter(failed.items()))
    requests = "1 request" if len(failed) == 1 else f"{len(failed)} requests"
    left_out = "1 problem is" if len(problems) == 1 else f"{len(problems)} problems are"
    return f"{requests} failed, so {left_out} left out ({first}: {reason})"


def refuse_silence(what: str, failed: Mapping[tuple, str], *, answered: bool) -> None:
    """Raise InputError if nothing was answered, and requests failed."""
    if failed and not answered:
        raise InputError(f"{what}: no answer at all; {say_failures(failed)}; mend the server and run again")


def without_answer(run: Run, stage: str) -> set[str]:
    """The ids of problems that a stage got no answer to, by its note."""
    return _noted(run, stage, CHAINS if stage == "generate" else "", PROBLEMS_WITHOUT_ANSWER)


def without_scores(run: Run) -> set[str]:
    """The ids of chains that stage 2 left out, by its note."""
    return _noted(run, "score", SCORED, LEFT_OUT)


def _noted(run: Run, stage: str, records: str, name: str) -> set[str]:
    """What a stage noted. A study's variant has links to the records of its run; their note is in that run's folder."""
    folder = (run.folder / records).resolve().parent if records else run.folder
    state = read_state(folder)
    stages = state["stages"] if state is not None else {}
    return set(stages.get(stage, {}).get(name, {}))
