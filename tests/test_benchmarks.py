"""The benchmarks run, on fewer chains, and say what they claim: both sides' outputs agree."""

import re
import subprocess
import sys

import pytest

from tokenskip_lib.core.records import InputError


@pytest.mark.slow
@pytest.mark.parametrize(("name", "least"), [("pruning", 100), ("generation", 80), ("training", 100)])
def test_a_benchmark_ends_with_its_ratio_and_the_share_of_identical_outputs(root, name, least):
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", "--quick"], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    found = re.fullmatch(r"ratio: (\d+\.\d)x identical: (?:(\d+)/(\d+)|(\d+)%)", last)
    assert found, last
    share = int(found[4]) if found[4] else 100 * int(found[2]) / int(found[3])
    assert share >= least and float(found[1]) > 1


@pytest.mark.slow
def test_training_is_compared_with_itself_at_a_revision(root):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.training", "--quick", "--against", "HEAD"],
        cwd=root, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"ratio: \d+\.\d\dx identical: 100%", done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_memory_grows_by_little_more_than_the_key_of_a_row(root):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", "--quick"], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    added = [int(bytes) for bytes in re.findall(r"the memory, (-?\d+) bytes more a row", done.stdout)]
    assert len(added) == 2 and max(added) < 4000


def test_a_comparison_without_problems_is_refused_in_one_line():
    from benchmarks.training import compare

    with pytest.raises(InputError, match="0 problems are too few for 1 blocks"):
        compare("all ratios", [], every=True, blocks=1)
