"""The mean of several adapters that went on from the same one: errors of single trainings partly cancel.

Each training ends a little beside the best weights, in a direction of its own. Source: Model soups, Wortsman et al.
(arXiv:2203.05482), whose uniform soup this is, applied to LoRA's A and B.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tokenskip_lib.core.records import InputError
from tokenskip_lib.models.adapters import WEIGHTS
from tokenskip_lib.models.standalone import Weights, included, plain_adapter, save_adapter

APART = 0.5  # an adapter's distance from the mean, over the mean's norm; of unrelated adapters it is 1 or more


def average_adapters(names: Sequence[Path | str], folder: Path) -> None:
    """Write the mean of adapters, which loads as each of them does.

    Args:
        names: folders or hub names, two or more. All were trained from the same adapter (`training.start_from`), or
            are that adapter. They may differ in alpha: what counts is how they change the model.
        folder: what to write; an empty or a new one.

    Raises:
        InputError: fewer than two adapters; they differ in rank, base model, target model or layers; they are too far
            apart to have gone on from the same one; or the folder has files.
    """
    from peft import LoraConfig

    if len(names) < 2:
        raise InputError("a mean needs two adapters or more")
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder}: has files already; write into another folder")
    first, config = plain_adapter(names[0])
    kind, weights = _kind(first, config), [_weights(first, config, config["lora_alpha"])]
    for name in names[1:]:
        other, other_config = plain_adapter(name)
        for what, value in _kind(other, other_config).items():
            if value != kind[what]:
                raise InputError(f"{other}: its {what} is another than that of {first}, so they have no mean")
        weights.append(_weights(other, other_config, config["lora_alpha"]))
    mean = {key: torch.stack([one[key] for one in weights]).mean(0) for key in weights[0]}
    for name, one in zip(names, weights, strict=True):
        if _distance(one, mean) > APART:
            raise InputError(f"{name}: too far from the others' mean; average adapters that went on from the same one")
    folder.mkdir(parents=True, exist_ok=True)
    short = {key: value.to(torch.bfloat16) for key, value in mean.items()}
    save_adapter(folder, LoraConfig.from_pretrained(str(first)), short, includes=included(first))


def _kind(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """What adapters with a mean have in common."""
    return {
        "rank": config["r"],
        "base model": config["base_model_name_or_path"],
        "target model's adapter": included(folder),
        "set of layers": sorted(load_file(folder / WEIGHTS)),
    }


def _weights(folder: Path, config: dict[str, Any], alpha: float) -> Weights:
    """A and B in float32, scaled alike so that with this alpha they change the model as they did."""
    scale = (config["lora_alpha"] / alpha) ** 0.5
    return {key: value.float() * scale for key, value in load_file(folder / WEIGHTS).items()}


def _distance(one: Weights, mean: Weights) -> float:
    """The norm of the difference over the mean's norm, all weights together."""
    apart = sum(float((one[key] - value).square().sum()) for key, value in mean.items())
    return (apart / sum(float(value.square().sum()) for value in mean.values())) ** 0.5
