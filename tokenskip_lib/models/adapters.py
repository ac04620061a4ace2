"""LoRA adapters: found by folder or hub name, merged into a model's weights or attached beside them."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from tokenskip_lib.core.paths import need_checkout, resolve_path
from tokenskip_lib.core.records import InputError, few_of
from tokenskip_lib.core.store import read_json
from tokenskip_lib.models.hub import copy_without_network

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# What transformers and peft raise on files that are missing or damaged.
LOADING_ERRORS = (SafetensorError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)


def find_adapter(name: str) -> Path:
    """The folder of an adapter: a local folder, otherwise a copy of the hub's; weights in safetensors only.

    Raises:
        InputError: there is no such adapter, or it has no safetensors.
    """
    folder = resolve_path(name)
    if not is_local(name) and re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        from huggingface_hub import snapshot_download

        try:
            folder = copy_without_network(name) or Path(snapshot_download(name, allow_patterns=[CONFIG, WEIGHTS]))
        except (OSError, ValueError) as error:
            raise InputError(f"adapter '{name}': no such folder or reachable hub model ({first_line(error)})") from None
    for file in (WEIGHTS, CONFIG):
        if not (folder / file).is_file():
            raise InputError(f"{folder}: no adapter here ({file} is missing)")
    return folder


def is_local(name: str) -> bool:
    """Whether an adapter's name is a folder that is here; otherwise the hub may have it.

    Raises:
        InputError: it is one of the adapters that only a checkout has, and there is no checkout.
    """
    if resolve_path(name).exists():
        return True
    if name.startswith("data/") and not name.startswith("data/runs/"):  # where the repository has the demo's adapters
        need_checkout(f"the adapter {name} is")
    return False


def first_line(error: Exception) -> str:
    """The first line of what an error says, at most 200 characters; its name if it says nothing.

    Example:
        >>> first_line(OSError("no space")), first_line(KeyError())
        ('no space', 'KeyError')
    """
    said = str(error).strip().splitlines() or [type(error).__name__]
    return said[0][:200]


def merge_adapter(model: PreTrainedModel, name: Path | str, strength: float) -> PreTrainedModel:
    """The model with a share of an adapter's change added to its weights.

    Args:
        name: a folder, or the hub's name.
        strength: the share; 1 is the adapter as trained.

    Raises:
        InputError: there is no such adapter, or it does not fit the model.
    """
    from peft.helpers import rescale_adapter_scale

    adapted = _attach(model, name, "default")
    with rescale_adapter_scale(adapted, strength):
        return adapted.merge_and_unload()


def attach_adapters(model: PreTrainedModel, adapters: dict[str, Path | str]) -> PreTrainedModel:
    """The model with LoRA adapters beside its weights; a request to the engine names the adapter that it wants.

    Logits differ from those of a merged adapter in their last bits.

    Args:
        adapters: name -> folder, or the hub's name.

    Raises:
        InputError: there is no such adapter, or it does not fit the model.
    """
    adapted: Any = model
    for name, folder in adapters.items():
        adapted = _attach(adapted, folder, name)
    return adapted.eval()


def trainable_adapter(model: PreTrainedModel, name: Path | str, alpha: int) -> PeftModel:
    """The model with an adapter beside its weights that training goes on with, in float32.

    The adapter changes the model as before: A and B are scaled alike, so that their product with the new alpha is the
    product with the old one. A learning rate then means what it means for a fresh adapter of this alpha.

    Args:
        name: a folder, or the hub's name.
        alpha: the alpha that it is trained with.

    Raises:
        InputError: there is no such adapter, or it does not fit the model.
    """
    from peft.tuners.lora import LoraLayer

    adapted = _attach(model, name, "default")
    config = adapted.peft_config["default"]
    scale = (config.lora_alpha / alpha) ** 0.5
    config.inference_mode, config.lora_alpha = False, alpha
    config.base_model_name_or_path = model.name_or_path  # where peft looks for the vocabulary at each checkpoint
    for weight_name, weight in adapted.named_parameters():
        if "lora_" in weight_name:
            weight.data = weight.data.float() * scale
            weight.requires_grad = True
    for layer in adapted.modules():
        if isinstance(layer, LoraLayer):
            layer.lora_alpha["default"] = alpha
            layer.set_scale("default", 1)
    return adapted


def _attach(model: Any, name: Path | str, called: str) -> Any:
    """The model with an adapter under a name. Every weight of it must be there, and none but these.

    peft only warns of missing weights, which then change nothing, and is silent on those that belong to no layer.
    """
    from peft import PeftModel, get_peft_model_state_dict

    folder = find_adapter(str(name))
    read_json(folder / CONFIG, advice="train the adapter again, or give a whole copy")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Found missing adapter keys")
            if hasattr(model, "peft_config"):
                model.load_adapter(str(folder), adapter_name=called)
            else:
                model = PeftModel.from_pretrained(model, str(folder), adapter_name=called)
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            there = set(file.keys())
    except LOADING_ERRORS as error:
        said = " ".join(str(error).split())[:200]
        raise InputError(f"{folder}: damaged, or the adapter of another model or rank ({said})") from None
    wanted = set(get_peft_model_state_dict(model, adapter_name=called, save_embedding_layers=False))
    strangers = [key for key in there - wanted if "lora_" in key]
    for keys, what in ((wanted - there, "it lacks"), (strangers, "the model has no place for")):
        if keys:
            raise InputError(f"{folder}: damaged, or another model's adapter ({what} {few_of(sorted(keys))})")
    return model
