"""One adapter of the base model, made of two: the target model's adapter and the one trained on top of it.

Where a target model is a base model with an adapter merged in, an adapter that is trained on it changes the merged
weights. Two changes of rank r1 and r2 add up to one of rank r1 + r2. The file says which target's adapter it includes,
so that no adapter is ever added to a model that has this change already.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tokenskip_lib.core.records import InputError
from tokenskip_lib.core.store import read_json
from tokenskip_lib.models.adapters import CONFIG, LOADING_ERRORS, WEIGHTS, find_adapter, first_line

if TYPE_CHECKING:
    from peft import LoraConfig

INCLUDES = "target_adapter_sha256"  # in the metadata of the weights' file: the adapter that they include
Weights = dict[str, torch.Tensor]

# What two adapters must be to add up to a third: low-rank changes of linear layers, and nothing else.
_PLAIN: dict[str, Any] = {
    "peft_type": "LORA",
    "use_dora": False,
    "use_rslora": False,
    "bias": "none",
    "lora_bias": False,
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
    "trainable_token_indices": None,
}


def refuse_other_target(adapter: Path | str, target: Path | str) -> None:
    """Raise InputError for an adapter that does not include the target model's adapter.

    Args:
        adapter: a TokenSkip adapter, which is to be loaded on the base model; a folder or hub name.
        target: the adapter that makes the base model the target model.
    """
    includes = included(find_adapter(str(adapter)))
    if includes != digest(find_adapter(str(target))):
        what = "does not include" if includes is None else "includes another adapter than"
        raise InputError(
            f"{adapter}: it {what} the target.adapter {target}, so it cannot answer for this target model; train it "
            "again (`run --from 04`), or name another evaluation.adapter"
        )


def included(folder: Path) -> str | None:
    """The digest of the target model's adapter that an adapter includes; None: it includes none."""
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            return (file.metadata() or {}).get(INCLUDES)
    except LOADING_ERRORS as error:
        raise InputError(f"{folder}: damaged, or the adapter of another model or rank ({first_line(error)})") from None


def digest(folder: Path) -> str:
    """The sha256 of an adapter's weights."""
    return hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()


def plain_adapter(name: Path | str) -> tuple[Path, dict[str, Any]]:
    """The folder and configuration of an adapter that another one can be added to.

    Raises:
        InputError: there is no such adapter, or it is more than low-rank changes of linear layers.
    """
    folder = find_adapter(str(name))
    config = read_json(folder / CONFIG, advice="train the adapter again, or give a whole copy")
    for key, plain in _PLAIN.items():
        if (config.get(key) or plain) != plain:
            raise InputError(
                f"{folder}: {key} is {config[key]}, and only a plain LoRA adapter can be trained on, gone on from, "
                "averaged or rounded; merge it into the model (`export --format merged`), and name the merged model's "
                "folder in target.model"
            )
    return folder, config


def save_adapter(
    folder: Path, config: LoraConfig, weights: Weights, target: Path | str | None = None, includes: str | None = None
) -> None:
    """Write an adapter for its base model, in bfloat16 where that loses nothing.

    Args:
        config: of the adapter that was trained.
        weights: its weights, by peft's names.
        target: the adapter that was merged into the base model before the training; the written adapter includes it.
        includes: the digest of the target model's adapter, if the trained weights include it already.

    Raises:
        InputError: as in `plain_adapter`.
    """
    metadata = {"format": "pt"}
    if includes is not None:
        metadata[INCLUDES] = includes
    elif target is not None:
        first, first_config = plain_adapter(target)
        metadata[INCLUDES] = digest(first)
        scales = (first_config["lora_alpha"] / first_config["r"], config.lora_alpha / config.r)
        weights = concatenated(load_file(first / WEIGHTS), weights, scales)
        config.r = config.lora_alpha = first_config["r"] + config.r
        config.target_modules = [*{name.rpartition(".")[2] for name in _layers(weights)}]
    config.target_modules = sorted(config.target_modules or ())  # a set, which peft would write in any order
    config.inference_mode = True
    config.save_pretrained(str(folder))
    save_file({name: _short(value) for name, value in sorted(weights.items())}, folder / WEIGHTS, metadata=metadata)
    # safetensors lets nobody else read its file; whoever may read the configuration may read the weights.
    (folder / WEIGHTS).chmod((folder / CONFIG).stat().st_mode)


def concatenated(first: Weights, second: Weights, scales: tuple[float, float]) -> Weights:
    """Two LoRA adapters of one model as one: A stacked, B side by side, their scalings folded into B.

    Args:
        first, second: weights by peft's names; A is (rank, inputs) and B is (outputs, rank). A layer that one of them
            does not change gets zeros. What else the second has, embeddings of single tokens, stays as it is.
        scales: what each multiplies B A by, alpha / rank.

    Returns:
        Weights in float32, of rank r1 + r2, to be multiplied by 1.

    Example:
        >>> one, two = torch.tensor([[1.0]]), torch.tensor([[2.0]])
        >>> both = concatenated({"q.lora_A.weight": one, "q.lora_B.weight": one},
        ...                     {"q.lora_A.weight": two, "q.lora_B.weight": two}, (3.0, 1.0))
        >>> both["q.lora_B.weight"] @ both["q.lora_A.weight"]  # 3 * 1 * 1 + 1 * 2 * 2
        tensor([[7.]])
    """
    made = {name: value for name, value in second.items() if ".lora_" not in name}
    for layer in _layers({**first, **second}):
        (a1, b1), (a2, b2) = _half(first, second, layer), _half(second, first, layer)
        made[f"{layer}.lora_A.weight"] = torch.cat([a1.float(), a2.float()])
        made[f"{layer}.lora_B.weight"] = torch.cat([b1.float() * scales[0], b2.float() * scales[1]], dim=1)
    return made


def _layers(weights: Weights) -> list[str]:
    """The linear layers that an adapter changes."""
    return sorted({name.rpartition(".lora_")[0] for name in weights if ".lora_" in name})


def _half(weights: Weights, other: Weights, layer: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A and B of one adapter in a layer; zeros of its rank where only the other adapter changes the layer."""
    a, b = (f"{layer}.lora_{side}.weight" for side in "AB")
    if a in weights:
        return weights[a], weights[b]
    rank = next(len(value) for name, value in weights.items() if name.endswith("lora_A.weight"))
    return torch.zeros(rank, other[a].shape[1]), torch.zeros(other[b].shape[0], rank)


def _short(value: torch.Tensor) -> torch.Tensor:
    """The tensor in bfloat16, which published models are stored in, if it is the same numbers; else as it is."""
    half = value.to(torch.bfloat16)
    return (half if torch.equal(half.to(value.dtype), value) else value).contiguous()
