"""Seconds and peak memory of work on a device."""

import resource
import sys
import time

import torch


class Clock:
    """Seconds between `start` and `stop` on a model's device."""

    def __init__(self, device: torch.device):
        self.cuda = device.type == "cuda"
        self.device = device

    def start(self) -> None:
        if self.cuda:
            torch.cuda.synchronize(self.device)
            self.events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            self.events[0].record(torch.cuda.current_stream(self.device))
        else:
            self.began = time.perf_counter()

    def stop(self) -> float:
        if not self.cuda:
            return time.perf_counter() - self.began
        self.events[1].record(torch.cuda.current_stream(self.device))
        torch.cuda.synchronize(self.device)
        return self.events[0].elapsed_time(self.events[1]) / 1000


def peak_memory(device: torch.device) -> float:
    """Peak memory in MB: of a GPU's tensors since the last reset; on a CPU, of the process since it began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes there, kilobytes elsewhere
