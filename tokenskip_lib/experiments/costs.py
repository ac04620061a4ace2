"""The parameters, bytes and FLOPs of a model, and how many bytes and FLOPs a second a card gives.

All numbers come from formulas and data sheets. A model's shape comes from its config; no weight is loaded.
Launches, kernels and padding take more time, which is not counted here.
"""

import re
import time
import warnings
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from typing import Any

import torch
from transformers import PreTrainedConfig

from tokenskip_lib.core.profiles import nearest
from tokenskip_lib.core.records import InputError
from tokenskip_lib.core.settings import TrainingSettings
from tokenskip_lib.models.loading import pick_dtype
from tokenskip_lib.training.lora import lora_config

COMPUTE_SHARE = 0.4  # assumed share of the peak FLOP/s that matrix products reach
BANDWIDTH_SHARE = 0.6  # assumed share of the memory bandwidth that a decoding step reaches


@dataclass(frozen=True)
class Card:
    """A GPU, or this CPU: dense 16-bit FLOP/s, memory bandwidth in bytes/s, memory in bytes."""

    name: str
    flops: float
    bandwidth: float
    memory: float
    source: str = "data sheet"


# From NVIDIA's data sheets: bfloat16 (float16 for the T4) without sparsity; with sparsity some print twice as much.
# H100, H200 and A100 are the SXM boards. The RTX 4090's FLOP/s are those with float32 accumulation (Ada whitepaper).
CARDS = {
    card.name: card
    for card in (
        Card("H100", 989e12, 3.35e12, 80e9),
        Card("H200", 989e12, 4.8e12, 141e9),
        Card("A100-80GB", 312e12, 2.039e12, 80e9),
        Card("L40S", 362e12, 0.864e12, 48e9),
        Card("RTX-4090", 165e12, 1.008e12, 24e9),
        Card("T4", 65e12, 0.32e12, 16e9),
    )
}


@dataclass(frozen=True)
class Shape:
    """The numbers of a model that the formulas read.

    Attributes:
        parameters: all of them, tied ones once.
        body: parameters that every token passes: all but the embedding table and the output layer.
        output: parameters of the output layer.
        layers: blocks.
        hidden: width of a block's input.
        query: heads x head size of the queries.
        cache: heads x head size of the keys, or values, in the KV cache.
        trainable: parameters of the adapter.
        stored: bytes of a parameter in the checkpoint.
    """

    parameters: int
    body: int
    output: int
    layers: int
    hidden: int
    query: int
    cache: int
    trainable: int
    stored: int


def read_shape(auto_class: Any, config: PreTrainedConfig, training: TrainingSettings | None = None) -> Shape:
    """Count the parameters of a model and of its LoRA adapter, on torch's meta device: shapes without numbers.

    Args:
        auto_class: the transformers class that builds the model from its config.
        training: the adapter's settings; None: no adapter.
    """
    from peft import get_peft_model

    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by a name that is going out
        model = auto_class.from_config(config)
        stored = model.dtype.itemsize
        parameters = sum(parameter.numel() for parameter in model.parameters())
        table, output = model.get_input_embeddings().weight, model.get_output_embeddings()
        tied = output is None or output.weight is table
        body = parameters - table.numel() - (0 if tied else output.weight.numel())
        trainable = get_peft_model(model, lora_config(training)).get_nb_trainable_parameters()[0] if training else 0
    text = config.get_text_config()
    heads = text.num_attention_heads
    head = getattr(text, "head_dim", None) or text.hidden_size // heads
    return Shape(
        parameters=parameters,
        body=body,
        output=0 if output is None else output.weight.numel(),
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        query=heads * head,
        cache=(getattr(text, "num_key_value_heads", None) or heads) * head,
        trainable=trainable,
        stored=stored,
    )


def kv_cache_bytes(shape: Shape, rows: float, length: float, itemsize: int) -> float:
    """Bytes of the keys and values of every block. A model with window attention needs less."""
    return 2 * shape.layers * shape.cache * rows * length * itemsize


def forward_flops(shape: Shape, tokens: float, context: float, predicted: float) -> float:
    """FLOPs of a forward pass: two a parameter and token, and attention over the whole context.

    Args:
        context: tokens that each token attends to.
        predicted: tokens that pass the output layer.

    Source: Kaplan et al. (arXiv:2001.08361), section 2.1; here the output layer is counted by itself.
    """
    return 2 * (shape.body * tokens + shape.output * predicted) + 4 * shape.layers * shape.query * context * tokens


def reading_seconds(card: Card, flops: float) -> float:
    """Seconds of prefill, scoring or training: arithmetic is their limit."""
    return flops / (card.flops * COMPUTE_SHARE)


def decoding_seconds(shape: Shape, card: Card, *, steps: float, rows: float, context: float, itemsize: int) -> float:
    """Seconds of decoding: memory or arithmetic is the limit of a step.

    Each step reads all weights and the KV cache of `rows` answers.
    """
    moved = shape.parameters * itemsize + kv_cache_bytes(shape, rows, context, itemsize)
    arithmetic = reading_seconds(card, forward_flops(shape, rows, context, rows))
    return steps * max(moved / (card.bandwidth * BANDWIDTH_SHARE), arithmetic)


def find_card(name: str | None, dtype: str) -> tuple[Card, torch.dtype]:
    """A card by its name, and the dtype that a setting means on it.

    Args:
        name: in CARDS, or "cpu", in any case and with spaces for hyphens; None: this machine's GPU, or its CPU
            without one.
        dtype: of the profile's setting `target.dtype`.

    Raises:
        InputError: there is no such card.
    """
    card = _card_named("cpu" if name is None else name)
    if name is None and torch.cuda.is_available():
        card = _card_here()
    if card is None:
        weights = pick_dtype(dtype, torch.device("cpu"))
        return _measured_cpu(weights), weights
    own = torch.float16 if card.name == "T4" else torch.bfloat16
    return card, own if dtype == "auto" else getattr(torch, dtype)


def _card_named(name: str) -> Card | None:
    """The card with this name in CARDS; None if the name is "cpu"."""
    known = {card.lower(): card for card in (*CARDS, "cpu")}
    asked = name.strip().lower().replace(" ", "-")
    if asked in known:
        return CARDS.get(known[asked])
    # First the names that begin with the word, then those that hold it: A100 is A100-80GB, and 4090 is RTX-4090.
    near = [card for lower, card in known.items() if asked and lower.startswith(asked)]
    near = near or [card for lower, card in known.items() if asked and asked in lower]
    meant = " or ".join(f"'{card}'" for card in near)
    hint = f" (did you mean {meant}?)" if near else nearest(name.upper(), list(known.values()))
    raise InputError(f"unknown card '{name}'{hint}")


def _card_here() -> Card:
    """The card of the table that is nearest to this machine's GPU by name.

    A model name that is a word of the GPU's name comes first ("L40S"), else the one with the longest common part.
    """
    device = torch.cuda.get_device_name()
    words = re.split(r"\W+", device)

    def likeness(card: str) -> tuple[bool, float]:
        model = card.removeprefix("RTX-").split("-")[0]
        return model in words, SequenceMatcher(None, model, device).find_longest_match().size / len(model)

    card = CARDS[max(CARDS, key=likeness)]
    return replace(card, source=f"{card.source}, as the nearest to {device}")


def matrix_product_flops(dtype: torch.dtype) -> float:
    """FLOP/s of a square matrix product on this machine's CPU; the best of three."""
    square = torch.ones(2048, 2048, dtype=dtype)
    return 2 * 2048**3 / _best_seconds(square, square)


def _best_seconds(rows: torch.Tensor, weight: torch.Tensor) -> float:
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        torch.nn.functional.linear(rows, weight)
        taken.append(time.perf_counter() - start)
    return min(taken)


def _measured_cpu(dtype: torch.dtype) -> Card:
    """This machine: FLOP/s of a square matrix product, bytes/s of one row times a large matrix; the best of three."""
    import psutil  # type: ignore[import-untyped]

    large = torch.ones(8192, 8192, dtype=dtype)
    return Card(
        name="cpu",
        flops=matrix_product_flops(dtype),
        bandwidth=large.nbytes / _best_seconds(large[:1], large),
        memory=psutil.virtual_memory().total,
        source=f"measured here and now by matrix products, threads: {torch.get_num_threads()}",
    )
