"""Algebra is checked in a process of its own: one limit for an item, the same verdict wherever it is asked for."""

import multiprocessing
import os
import signal
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from resource import RUSAGE_CHILDREN, getrusage

import pytest

from tokenskip_lib.problems import algebra
from tokenskip_lib.problems.algebra import equal_by_algebra
from tokenskip_lib.problems.grading import is_correct

CASES = [("1/2", "0.5"), ("x + x", "2x"), ("1800", "18"), ("(0, 1)", "(0,1]"), ("x + x", "3x")]


def test_the_verdict_is_the_same_in_threads_and_processes():
    here = [is_correct(*case) for case in CASES]
    assert here == [True, True, False, False, False]
    with ThreadPoolExecutor(2) as pool:
        assert [future.result() for future in [pool.submit(equal_by_algebra, *case) for case in CASES]] == here
    # A fork has what its parent opened, and must not take the replies that its parent waits for.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        replies = [pool.submit(equal_by_algebra, *case) for case in CASES]
        assert [equal_by_algebra(*case) for case in CASES] == here
        assert [reply.result() for reply in replies] == here


def test_a_killed_checker_is_replaced():
    assert equal_by_algebra("x + x", "2x")
    os.kill(algebra._checker(os.getpid()).process.pid, signal.SIGKILL)
    assert equal_by_algebra("x + 2x", "3x")


def test_an_interrupted_question_leaves_no_reply_to_the_next(monkeypatch):
    assert equal_by_algebra("x + x", "2x")
    checker = algebra._checker(os.getpid())

    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(checker.process.stdout, "readline", interrupt)
    with pytest.raises(KeyboardInterrupt):
        equal_by_algebra("x + x", "2x")
    assert not equal_by_algebra("x + x", "3x")


def test_one_limit_covers_all_of_an_answer_that_cannot_be_settled():
    """By math-verify's own limits each of the two may be read for 5 seconds, and each of four pairs compared."""
    before = getrusage(RUSAGE_CHILDREN)
    assert not equal_by_algebra("9^{9^{9^{9}}}", "9^{9^{9^{8}}}")
    after = getrusage(RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert algebra.SECONDS <= used < algebra.SECONDS + 5  # what it took to start, too
    assert equal_by_algebra("x + x", "2x")


def test_an_answer_that_needs_all_the_memory_is_wrong_and_the_next_is_checked():
    assert not equal_by_algebra("\\gcd(10^{9}!, 2)", "7")
    assert equal_by_algebra("x + x", "2x")


def test_infinite_answers_are_compared_without_a_failure():
    assert is_correct("\\infty + 0", "\\infty") and not is_correct("5 + x - x", "\\infty")
