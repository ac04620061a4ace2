"""The GPU check: is a card right, and how fast is it? One script, no network, one card.

    python -m benchmarks.gpu [--minutes 8] [--device cuda:0] [-o FILE.json]
    python -m benchmarks.gpu --cpu

Each part works by itself. Its result is written before the next part begins, so a time limit leaves the parts before
it. With --cpu the same parts run in tiny sizes, and nothing is written unless -o names a file.
"""

import argparse
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.gpu import fast, right
from benchmarks.gpu.report import Report
from benchmarks.gpu.setting import Setting
from tokenskip_lib.core.records import InputError
from tokenskip_lib.models.adapters import first_line
from tokenskip_lib.models.devices import pick_device

OUTPUT = Path("data/results/gpu_check.json")
# Compilation takes longest. Continuous batching has threads of its own, so nothing comes after it.
PARTS = [*right.PARTS, *fast.PARTS, right.compiled, fast.answering_compiled, fast.continuous_batching]


class TimeUpError(BaseException):
    """The minutes are over. No `except Exception` on the way catches it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8, help="after so many, what is done is kept (8)")
    parser.add_argument("--cpu", action="store_true", help="tiny sizes on this CPU: does the check itself work?")
    parser.add_argument("--device", default="cuda", help="cuda (the default), cuda:1, ...")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE.json", help=f"{OUTPUT}; with --cpu nothing")
    given = parser.parse_args()
    try:
        device = torch.device("cpu")
        if not given.cpu:
            device = torch.device("cuda", pick_device(given.device).index or 0)
    except InputError as error:
        parser.error(f"{error}; --cpu checks the check itself")
    if given.cpu:
        torch.set_num_threads(1)  # threads that wait for each other would be most of the time in sizes so small
    output = given.output or (None if given.cpu else OUTPUT)
    with tempfile.TemporaryDirectory() as folder:
        report = check(Setting(device, Path(folder)), output, given.minutes)
    sys.exit(0 if report.right else 1)


def check(setting: Setting, output: Path | None, minutes: float) -> Report:
    """Run the parts in order until the time is up; a part that fails is reported, and the next begins."""
    cuda = setting.device.type == "cuda"
    name = torch.cuda.get_device_name(setting.device) if cuda else f"CPU, {torch.get_num_threads()} threads"
    report = Report(output, {"device": name, "small_model": setting.small_name, "large_model": setting.large_name})
    limit = _Limit()
    signal.signal(signal.SIGALRM, limit)
    signal.setitimer(signal.ITIMER_REAL, 60 * minutes)
    try:
        for part in PARTS:
            began = time.perf_counter()
            figures = _run(part, setting, limit)
            report.add(part.__name__, (part.__doc__ or "").splitlines()[0], figures, time.perf_counter() - began)
            if part is right.PARTS[-1]:
                setting.forget()  # the large model needs the room
            setting.clean()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return report


class _Limit:
    """What the alarm calls: it stops the part that runs, and no part begins after it."""

    over = inside = False

    def __call__(self, *_) -> None:
        self.over = True
        if self.inside:
            raise TimeUpError


def _run(part: Callable[[Setting], dict], setting: Setting, limit: _Limit) -> dict:
    """A part's figures, its error, or that the time was up before its end."""
    failed: Exception | None = None
    try:
        if not limit.over:
            limit.inside = True
            return part(setting)
    except TimeUpError:
        pass
    except Exception as error:
        failed = error
    finally:
        limit.inside = False
    if failed is None:
        return {"out_of_time": True}
    traceback.print_exception(failed)
    return {"error": f"{type(failed).__name__}: {first_line(failed)}"}


if __name__ == "__main__":
    main()
