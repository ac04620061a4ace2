"""The parameters, bytes and FLOPs of a model, and how many bytes and FLOPs a second a card gives.

All numbers come from formulas and data sheets. A model's shape comes from its config; no weight is loaded.
Launches, kernels and padding take more time, which is not counted here.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedConfig

from tokenskip_lib.core.records import InputError
from tokenskip_lib.core.settings import TargetSettings, TrainingSettings
from tokenskip_lib.models.clock import Clock
from tokenskip_lib.models.devices import pick_device, pick_dtype
from tokenskip_lib.training.start import lora_config

COMPUTE_SHARE = 0.4  # assumed share of the peak FLOP/s that matrix products reach
BANDWIDTH_SHARE = 0.6  # assumed share of the memory bandwidth that a decoding step reaches


@dataclass(frozen=True)
class Card:
    """A GPU, or this CPU: dense 16-bit FLOP/s, memory bandwidth in bytes/s, memory in bytes, the 16-bit dtype."""

    name: str
    flops: float
    bandwidth: float
    memory: float
    dtype: torch.dtype = torch.bfloat16
    source: str = "data sheet"


# From NVIDIA's data sheets, without sparsity; with sparsity some print twice as much. T4 and V100 have no bfloat16.
# H100, H200, A100 and V100 are the SXM boards. The RTX 4090's FLOP/s are those with float32 accumulation (whitepaper).
CARDS = {
    card.name: card
    for card in (
        Card("H100", 989e12, 3.35e12, 80e9),
        Card("H200", 989e12, 4.8e12, 141e9),
        Card("A100-40GB", 312e12, 1.555e12, 40e9),
        Card("A100-80GB", 312e12, 2.039e12, 80e9),
        Card("L40S", 362e12, 0.864e12, 48e9),
        Card("RTX-4090", 165e12, 1.008e12, 24e9),
        Card("T4", 65e12, 0.32e12, 16e9, torch.float16),
        Card("V100-16GB", 125e12, 0.9e12, 16e9, torch.float16),
        Card("V100-32GB", 125e12, 0.9e12, 32e9, torch.float16),
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

    `accelerate.utils.calculate_maximum_sizes` would replace one line, the sum: it gives the bytes of the whole model,
    buffers included, and the seconds need the parameters of blocks, output layer and adapter apart.

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


def shape_of_size(parameters: float, training: TrainingSettings) -> Shape:
    """The shape of a decoder of which only the number of parameters is known.

    A block of width h has about 12 h^2 parameters. The assumptions: 128 times as wide as it has blocks, four heads of
    queries for a head of keys, a feed-forward part 8/3 as wide, 16-bit weights, and an output layer that is counted
    among the blocks. For Qwen2.5-7B they give 34 blocks of width 4320; it has 28 of width 3584.

    Example:
        >>> shape = shape_of_size(7.6e9, TrainingSettings(rank=8))
        >>> shape.layers, shape.hidden, round(shape.trainable / 1e6)
        (34, 4316, 21)

    Source of 12 h^2: Kaplan et al. (arXiv:2001.08361), table 1.
    """
    layers = max(1, round((parameters / (12 * 128**2)) ** (1 / 3)))
    hidden = round((parameters / (12 * layers)) ** 0.5)
    # Inputs and outputs of the seven matrices of a block: queries, keys, values and output; three of the feed-forward.
    ends = 2 + 2 * 1.25 + 2 + 3 * (1 + 8 / 3)
    return Shape(
        parameters=round(parameters),
        body=round(parameters),
        output=0,
        layers=layers,
        hidden=hidden,
        query=hidden,
        cache=hidden // 4,
        trainable=round(training.rank * layers * hidden * ends),
        stored=2,
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


def find_card(name: str | None, target: TargetSettings) -> tuple[Card, torch.dtype]:
    """A card by its exact name, or this machine's own; and the dtype that the target model gets on it.

    Args:
        name: in CARDS, or "cpu", in any case and with spaces for hyphens; None: the device that `target.device` means
            here. Its memory is read, and its speed is measured.
        target: its device and dtype are read.

    Raises:
        InputError: there is no such card.
    """
    if name is not None and (card := _card_named(name)) is not None:
        return card, card.dtype if target.dtype == "auto" else getattr(torch, target.dtype)
    device = torch.device("cpu") if name is not None else pick_device(target.device)
    dtype = pick_dtype(target.dtype, device)
    return _measured(device, dtype), dtype


def _card_named(name: str) -> Card | None:
    """The card with this name in CARDS; None if the name is "cpu"."""
    known = {card.lower(): card for card in (*CARDS, "cpu")}
    asked = name.strip().lower().replace(" ", "-")
    if asked in known:
        return CARDS.get(known[asked])
    # First the names that begin with the word, then those that hold it: A100 is A100-40GB or -80GB, and 4090 RTX-4090.
    near = [card for lower, card in known.items() if asked and lower.startswith(asked)]
    near = near or [card for lower, card in known.items() if asked and asked in lower]
    meant = f" (did you mean {' or '.join(near)}?)" if near else ""
    raise InputError(
        f"--card {name}: not one of {', '.join(known.values())}{meant}; on a machine that has the card, leave --card "
        "out"
    )


def matrix_product_flops(dtype: torch.dtype, device: torch.device | str = "cpu") -> float:
    """FLOP/s of a square matrix product on a device; the best of three."""
    side = 2048 if torch.device(device).type == "cpu" else 8192
    square = torch.ones(side, side, dtype=dtype, device=device)
    return 2 * side**3 / _best_seconds(square, square)


def _best_seconds(rows: torch.Tensor, weight: torch.Tensor) -> float:
    taken = []
    for _ in range(3):
        clock = Clock(weight.device)
        clock.start()
        torch.nn.functional.linear(rows, weight)
        taken.append(clock.stop())
    return min(taken)


def _measured(device: torch.device, dtype: torch.dtype) -> Card:
    """A device of this machine: FLOP/s of a square matrix product, bytes/s of one row times a large matrix."""
    import psutil  # type: ignore[import-untyped]

    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        name, memory = properties.name, properties.total_memory
    else:
        name, memory = "cpu", psutil.virtual_memory().total
    side = 8192 if device.type == "cpu" else 16384  # beyond a GPU's caches too
    large = torch.ones(side, side, dtype=dtype, device=device)
    return Card(
        name=name,
        flops=matrix_product_flops(dtype, device),
        bandwidth=large.nbytes / _best_seconds(large[:1], large),
        memory=memory,
        dtype=dtype,
        source="speed measured here and now by matrix products"
        + (f", threads: {torch.get_num_threads()}" if device.type == "cpu" else ""),
    )
