r"""Whether two answers are equal by algebra: math-verify's verdict, from a process of its own.

Some answers (`\gcd(10^{9}!, 2)`) keep math-verify busy for hours, partly in C code that no exception interrupts. So
the operating system ends the process that checks such an answer, and another takes its place. The limit counts
processor time: the verdict is the same on a busy machine, and in any thread or process that asks.

This file is also the program of that process. It imports nothing of the library.
"""

import atexit
import json
import logging
import os
import resource
import signal
import subprocess
import sys
import threading
from functools import lru_cache
from typing import Any

SECONDS = 2  # of processor time for one pair of answers; the slowest of 3,600 pairs of real answers took 0.1
MEMORY = 2 * 1024**3  # bytes of the process; without a limit, 2 seconds are enough to fill several gigabytes


def equal_by_algebra(prediction: str, gold: str) -> bool:
    """Whether math-verify finds two LaTeX answers equal.

    Args:
        prediction, gold: one answer each, in the spelling of `answer_spelling.tidy`.

    Returns:
        math-verify's verdict. False if reading and comparing the two takes more than `SECONDS` together, needs
        more than `MEMORY`, or ends the process that does so.

    Raises:
        RuntimeError: the process does not start.
    """
    return _checker(os.getpid()).ask(prediction, gold)


@lru_cache(maxsize=1)
def _checker(owner: int) -> "_Checker":
    """The checker of this process (`owner` is its id): a fork must not read the replies to its parent."""
    return _Checker()


class _Checker:
    """A process that answers one question at a time, for all threads of this one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.process: subprocess.Popen[str] | None = None

    def ask(self, prediction: str, gold: str) -> bool:
        with self._lock:
            for _ in range(2):  # a process that somebody killed is replaced, once
                # It is put back after its reply. After Ctrl-C, a late reply must not answer the next question.
                process, self.process = self.process or self._start(), None
                assert process.stdin and process.stdout
                try:
                    process.stdin.write(f"{json.dumps([prediction, gold])}\n")
                    process.stdin.flush()
                    reply = process.stdout.readline()
                except BrokenPipeError:
                    reply = ""
                if reply:
                    self.process = process
                    return reply == "True\n"
                process.communicate()  # closes its pipes and waits for its end
                if process.returncode == -signal.SIGPROF:
                    return False
        return False

    def _start(self) -> subprocess.Popen[str]:
        pipe, program = subprocess.PIPE, [sys.executable, "-P", __file__]
        # In a session of its own: Ctrl-C in a terminal is for this process, which then ends the other.
        process = subprocess.Popen(program, stdin=pipe, stdout=pipe, text=True, start_new_session=True)
        atexit.register(process.kill)
        assert process.stdout
        if not process.stdout.readline():
            raise RuntimeError(f"the process that grades algebra did not start: {' '.join(program)}")
        return process


def _serve() -> None:
    """Reply `True` or `False` to each line `[prediction, gold]` of standard input."""
    logging.disable()  # math-verify warns that it keeps no time
    _verify("x", "x")  # loads math-verify before the first question's time runs
    replies, sys.stdout = sys.stdout, sys.stderr
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process
    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            verdict = _verify(*json.loads(line))
        except (ArithmeticError, MemoryError, RuntimeError, TypeError, ValueError):  # nothing shows that they are equal
            verdict = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(verdict, file=replies, flush=True)


def _verify(prediction: str, gold: str) -> bool:
    from math_verify import parse, verify

    parsed_gold, parsed = (parse(f"\\boxed{{{text}}}", parsing_timeout=None) for text in (gold, prediction))
    if not verify(parsed_gold, parsed, strict=True, timeout_seconds=None):
        return False
    return "%" in gold + prediction or _of_one_size(parsed_gold[0], parsed[0])


def _of_one_size(gold: Any, stated: Any) -> bool:
    """False for two numbers that differ, though not in their first decimals: math-verify rounds them to 0."""
    if not (getattr(gold, "is_number", False) and getattr(stated, "is_number", False)):
        return True
    size, other = gold.evalf(30), stated.evalf(30)
    if size == other:  # the infinite ones, too
        return True
    return bool(abs(size - other) <= abs(size) * 1e-5)


if __name__ == "__main__":
    _serve()
