"""What Ray costs: the same scoring in this process, by one worker and by two; and how many records one driver takes.

    python -m benchmarks.cluster [--quick]

Needs `pip install '.[ray]'`. Ray starts on this machine alone. Every side has one thread, so that one worker
does what this process does. The seconds are those after the model is loaded. Records are compared byte for byte.

For the driver, workers do next to nothing: they give back the scored chains that they got. What is left is Ray, this
process and its disk, which is what limits a large cluster.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported

from tokenskip_lib.core.cluster import build_executor
from tokenskip_lib.core.executor import Executor, Work
from tokenskip_lib.core.profiles import load_profile
from tokenskip_lib.core.records import ChainText, Record, ScoredChain
from tokenskip_lib.core.settings import ExecutionSettings
from tokenskip_lib.core.store import RecordLog
from tokenskip_lib.core.windows import WINDOW, windows
from tokenskip_lib.models.loading import TargetModel
from tokenskip_lib.problems.sets import load_problems
from tokenskip_lib.pruning.controls import RandomScorer
from tokenskip_lib.pruning.registry import build_scorer

CHAINS, QUICK = 1024, 64
RECORDS, QUICK_RECORDS = 50_000, 5_000
SIDES = {
    "this process": ExecutionSettings(),
    "Ray, 1 worker": ExecutionSettings(kind="ray", workers=1),
    "Ray, 2 workers": ExecutionSettings(kind="ray", workers=2),
}


def score_with_model() -> Work[ChainText, ScoredChain]:
    """Selective context by the demo's model."""
    profile = load_profile("demo")
    target = TargetModel(profile.target, profile.prompts)
    return build_scorer("selective_context", target, profile.importance, seed=0).score


def give_back() -> Work[ScoredChain, ScoredChain]:
    return list


def seconds_of(executor: Executor, groups: Sequence[list], path: Path) -> float:
    """Write what is made of the groups; the seconds do not count the first group, which waits for the model."""
    log, start = RecordLog(path, ScoredChain), 0.0
    for number, done in enumerate(executor.map([groups[0], *groups])):
        log.append(done.made)
        if number == 0:
            start = time.perf_counter()
    return time.perf_counter() - start


def compare(what: str, build: Callable[[], Work], groups: Sequence[list[Record]]) -> None:
    """Print what each side needs for the groups, and whether it wrote the same bytes."""
    records, first = sum(map(len, groups)), None
    for name, settings in SIDES.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "scored.jsonl")
            seconds = seconds_of(build_executor(build, settings), groups, path)
            written = path.read_bytes()
        first = first or (seconds, written)
        same = "the same bytes" if written == first[1] else "OTHER BYTES"
        share = seconds / first[0]
        print(f"{what}, {name}: {records / seconds:,.0f} records/s, {share:.2f}x the seconds, {same}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few chains: a minute or two")
    quick = parser.parse_args().quick
    count, size = (QUICK, 8) if quick else (CHAINS, 32)  # groups small enough that two workers share them evenly
    sized = {"problems.train_size": count}
    problems = load_problems(load_profile("demo", sized), "train").problems
    chains = [ChainText(id=p.id, question=p.question, answer=p.answer, chain=p.solution) for p in problems]
    groups = [chains[at : at + size] for at in range(0, len(chains), size)]
    compare("scoring", score_with_model, groups)
    texts = [
        chains[n % len(chains)].model_copy(update={"id": f"r{n}"}) for n in range(QUICK_RECORDS if quick else RECORDS)
    ]
    compare("the driver", give_back, list(windows(RandomScorer(0).score(texts))))
    print(f"a group of the driver's has {WINDOW} records")


if __name__ == "__main__":
    main()
