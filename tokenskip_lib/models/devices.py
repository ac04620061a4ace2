"""The device and the dtype that a model gets."""

import os
import time
from functools import cache

import torch

from tokenskip_lib.core.records import InputError

CPU = torch.device("cpu")


def pick_device(device: str) -> torch.device:
    """The device that a setting names; "auto" is CUDA if there is a GPU, and each launched process gets its own.

    Example:
        >>> pick_device("cpu")
        device(type='cpu')
    """
    if device == "auto":
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if torch.cuda.is_available() else CPU
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise InputError(f"target.device: unknown device '{device}' (auto, cpu, cuda, cuda:1, ...)") from None
    if chosen.type not in ("cpu", "cuda"):
        raise InputError(f"target.device is '{device}', but models run on a CPU or on CUDA here")
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"target.device is '{device}', but this machine has no CUDA device")
    if (chosen.index or 0) >= torch.cuda.device_count() and chosen.type == "cuda":
        raise InputError(f"target.device is '{device}', but this machine has {torch.cuda.device_count()} CUDA devices")
    return chosen


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The dtype that a setting names; "auto" is bfloat16 if the device is faster in it.

    A GPU without bfloat16 gets float16, and a CPU that is not faster in bfloat16 gets float32.
    """
    if dtype != "auto":
        return getattr(torch, dtype)
    if device.type == "cuda":
        with torch.cuda.device(device):  # the question is about the current device
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if _cpu_is_faster_in_bfloat16() else torch.float32


@cache
def _cpu_is_faster_in_bfloat16() -> bool:
    """Whether this CPU multiplies matrices faster in bfloat16.

    A CPU with matrix units does. With avx512_bf16 alone it depends on the processor, so one product is timed in both
    dtypes. bfloat16 must be 1.5 times as fast, so that noise seldom changes the choice.
    """
    if not hasattr(torch.cpu, "get_capabilities"):  # an older torch tells of Intel's matrix units alone
        return torch.cpu._is_amx_tile_supported()
    features = torch.cpu.get_capabilities()
    if any(features.get(name) for name in ("amx_bf16", "arm_bf16")):
        return True
    if not features.get("avx512_bf16"):
        return False
    return _product_seconds(torch.float32) > 1.5 * _product_seconds(torch.bfloat16)


def _product_seconds(dtype: torch.dtype) -> float:
    """Seconds of a product of two matrices as a small model has them: the fastest of several."""
    left, right = torch.ones(512, 576, dtype=dtype), torch.ones(576, 1536, dtype=dtype)

    def timed() -> float:
        began = time.perf_counter()
        left @ right
        return time.perf_counter() - began

    return min(timed() for _ in range(8))
