"""An adapter in 8-bit floats: half the file of bfloat16, and peft loads it as any other."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tokenskip_lib.core.records import InputError, few_of
from tokenskip_lib.core.store import write_json
from tokenskip_lib.models.adapters import CONFIG, WEIGHTS
from tokenskip_lib.models.standalone import Weights, plain_adapter


def round_adapter(name: Path | str, folder: Path) -> None:
    """Write an adapter's configuration and its weights in 8-bit floats into a folder.

    The written alpha is 1. So the numbers in the file are larger; 8-bit floats store very small ones less exactly.

    Args:
        name: a folder, or the hub's name.
        folder: is there already.

    Raises:
        InputError: there is no such adapter, it is more than low-rank changes of linear layers, or it is in 8-bit
            floats already.
    """
    adapter, config = plain_adapter(name)
    weights = load_file(adapter / WEIGHTS)
    if strangers := [key for key in weights if ".lora_A." not in key and ".lora_B." not in key]:
        raise InputError(f"{adapter}: cannot be rounded, it changes more than linear layers ({few_of(strangers)})")
    if all(value.dtype == torch.float8_e4m3fn for value in weights.values()):
        raise InputError(f"{adapter}: its weights are 8-bit floats already; export it with --format peft")
    with safe_open(adapter / WEIGHTS, framework="pt") as file:
        metadata = file.metadata()
    save_file(rounded(weights, config["lora_alpha"]), folder / WEIGHTS, metadata=metadata)
    write_json(folder / CONFIG, {**config, "lora_alpha": 1})
    shutil.copymode(folder / CONFIG, folder / WEIGHTS)  # safetensors lets nobody else read its file


def rounded(weights: Weights, alpha: float) -> Weights:
    """LoRA weights in 8-bit floats (e4m3). With an alpha of 1 they change the model as before, up to rounding.

    Each rank's row of A and column of B are scaled to the same largest number, so that neither is stored less exactly.

    Args:
        weights: by peft's names; A is (rank, inputs) and B is (outputs, rank).
        alpha: of the adapter.

    Example:
        >>> a, b = torch.tensor([[0.001, 0.002]]), torch.tensor([[2.0]])
        >>> made = rounded({"q.lora_A.weight": a, "q.lora_B.weight": b}, 4)
        >>> made["q.lora_B.weight"].float() @ made["q.lora_A.weight"].float()  # about 4 * 2 * (0.001, 0.002)
        tensor([[0.0078, 0.0156]])
    """
    made: Weights = {}
    for a_name in (name for name in weights if ".lora_A." in name):
        b_name = a_name.replace(".lora_A.", ".lora_B.")
        a, b = (weights[name].float() * alpha**0.5 for name in (a_name, b_name))
        largest_a, largest_b = a.abs().amax(1), b.abs().amax(0)
        scale = torch.where((largest_a > 0) & (largest_b > 0), (largest_b / largest_a).sqrt(), 1.0)
        made[a_name] = (a * scale[:, None]).to(torch.float8_e4m3fn)
        made[b_name] = (b / scale[None, :]).to(torch.float8_e4m3fn)
    return made
