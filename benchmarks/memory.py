"""Peak memory of `prune` and `grade` on files: does it grow with the number of rows?

    python -m benchmarks.memory [--quick]

Each command works on a file of rows and on one ten times as long (100,000 and 1,000,000), in a process of its own.
What may grow is what a command must remember to refuse a repeated row and to continue after a kill: the key of each
row. The peer is the same command on the shorter file.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SHORT, QUICK, TIMES = 100_000, 2_000, 10


def write_rows(path: Path, count: int) -> None:
    """Rows that `prune` reads as chains and `grade` as predictions."""
    with path.open("w", encoding="utf-8") as file:
        for i in range(count):
            chain = f"He has {i} + {i % 9} = {i + i % 9} apples in all, and gives none away."
            output = f"{chain}\n\nThe final answer is: $\\boxed{{{i + i % 9}}}$"
            row = {"id": f"r{i}", "question": "How many?", "answer": str(i + i % 9), "chain": chain, "output": output}
            file.write(json.dumps(row) + "\n")


def peak_memory(words: list[str]) -> tuple[float, float]:
    """Mebibytes at most, and seconds, of a command of tokenskip in a process of its own."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "tokenskip_lib", *words]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with {process.returncode}")
    return used.ru_maxrss / 1024, time.perf_counter() - start  # Linux counts in KiB


def compare(name: str, options: list[str], short: int) -> str:
    """Print the peak of one command on both files; returns its summary line."""
    peaks = []
    with tempfile.TemporaryDirectory() as folder:
        for count in (short, TIMES * short):
            source, output = Path(folder, f"{count}.jsonl"), Path(folder, f"{count}.{name}.jsonl")
            write_rows(source, count)
            peak, seconds = peak_memory([name, str(source), "-o", str(output), *options])
            with output.open("rb") as file:
                made = sum(1 for _ in file)
            print(f"  {name}: {count:,} rows, {made:,} records, {peak:.0f} MiB, {seconds:.0f} s", flush=True)
            peaks.append(peak)
    added = (peaks[1] - peaks[0]) * 2**20 / ((TIMES - 1) * short)
    return (
        f"{name}: ratio: {peaks[1] / peaks[0]:.2f}x of the memory for {TIMES}x the rows, {added:.0f} bytes more a row"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help=f"{QUICK:,} and {TIMES * QUICK:,} rows: a minute")
    short = QUICK if parser.parse_args().quick else SHORT
    lines = [compare("prune", ["--scorer", "position", "--ratios", "0.5"], short), compare("grade", [], short)]
    print("\n".join(lines))


if __name__ == "__main__":
    main()
