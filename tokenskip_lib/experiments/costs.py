"""What a model costs and what a card gives: parameters, bytes and FLOPs, and how many of them a second.

Formulas and data sheets alone: a model's shape comes from its config, no weight is loaded. What
launches, kernels and padding cost is not known here.
"""

import time
import warnings
from dataclasses import dataclass, replace
from difflib import SequenceMatcher

import torch
from transformers import PreTrainedConfig

from tokenskip_lib.core.profiles import nearest
from tokenskip_lib.core.records import InputError
from tokenskip_lib.core.settings import TrainingSettings
from tokenskip_lib.models.loading import pick_dtype
from tokenskip_lib.training.lora import lora_config

COMPUTE_SHARE = 0.4  # of the peak FLOP/s that matrix products reach: an assumption
BANDWIDTH_SHARE = 0.6  # of the memory bandwidth that a decoding step reaches: an assumption


@dataclass(frozen=True)
class Card:
    """Dense 16-bit FLOP/s, memory bandwidth in bytes/s, memory in bytes."""

    name: str
    flops: float
    bandwidth: float
    memory: float
    source: str = "data sheet"


# NVIDIA's data sheets: bfloat16 (float16 for the T4) without sparsity, which doubles what some of them print. H100,
# H200 and A100 are the SXM boards; the RTX 4090's FLOP/s are those with float32 accumulation, of the Ada whitepaper.
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
    """A model in the numbers that the formulas read.

    parameters: all of them, tied ones once. body: those that every token passes, which leaves out the
    embedding table and the output layer. output: those of the output layer. query, cache: heads x head
    size of the queries, and of the keys (or values) that a cache holds. trainable: the adapter's. stored:
    bytes of a parameter in the checkpoint.
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


def read_shape(auto_class: type, config: PreTrainedConfig, training: TrainingSettings | None = None) -> Shape:
    """Count a model's parameters, and its LoRA adapter's, on torch's meta device: shapes without numbers."""
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
    """Keys and values of every block; less where a model attends to a window only."""
    return 2 * shape.layers * shape.cache * rows * length * itemsize


def forward_flops(shape: Shape, tokens: float, context: float, predicted: float) -> float:
    """Two FLOPs a parameter and token, and attention over the whole context, as a padded batch computes it.

    Args:
        context: tokens that each token attends to.
        predicted: tokens that pass the output layer.

    Source: Kaplan et al. (arXiv:2001.08361), section 2.1; here the output layer is counted apart.
    """
    return 2 * (shape.body * tokens + shape.output * predicted) + 4 * shape.layers * shape.query * context * tokens


def reading_seconds(card: Card, flops: float) -> float:
    """Prefill, scoring and training: bound by arithmetic."""
    return flops / (card.flops * COMPUTE_SHARE)


def decoding_seconds(shape: Shape, card: Card, *, steps: float, rows: float, context: float, itemsize: int) -> float:
    """Steps that each read all weights and the cache of `rows` answers: bound by memory or by arithmetic."""
    moved = shape.parameters * itemsize + kv_cache_bytes(shape, rows, context, itemsize)
    arithmetic = reading_seconds(card, forward_flops(shape, rows, context, rows))
    return steps * max(moved / (card.bandwidth * BANDWIDTH_SHARE), arithmetic)


def find_card(name: str | None, dtype: str) -> tuple[Card, torch.dtype]:
    """A card by its name, or what is here where there is none; and the dtype that a setting means on it.

    Raises:
        InputError: no such card.
    """
    known = {card.lower(): card for card in (*CARDS, "cpu")}
    if name is None and torch.cuda.is_available():
        card = _card_here()
    elif (found := known.get((name or "cpu").strip().lower().replace(" ", "-"))) is None:
        raise InputError(f"unknown card '{name}'{nearest(name.upper(), list(known.values()))}")
    elif found == "cpu":
        weights = pick_dtype(dtype, torch.device("cpu"))
        return _measured_cpu(weights), weights
    else:
        card = CARDS[found]
    own = torch.float16 if card.name == "T4" else torch.bfloat16
    return card, own if dtype == "auto" else getattr(torch, dtype)


def _card_here() -> Card:
    """The card of the table whose name this machine's device has most of."""
    device = torch.cuda.get_device_name()

    def share(card: str) -> float:
        word = card.split("-")[0]
        return SequenceMatcher(None, word, device).find_longest_match().size / len(word)

    card = CARDS[max(CARDS, key=share)]
    return replace(card, source=f"{card.source}, as the nearest to {device}")


def _measured_cpu(dtype: torch.dtype) -> Card:
    """This machine: FLOP/s of a square matrix product, bytes/s of one row times a large matrix, each best of three."""
    import psutil

    def best(rows: torch.Tensor, weight: torch.Tensor) -> float:
        taken = []
        for _ in range(3):
            start = time.perf_counter()
            torch.nn.functional.linear(rows, weight)
            taken.append(time.perf_counter() - start)
        return min(taken)

    square, large = torch.ones(2048, 2048, dtype=dtype), torch.ones(8192, 8192, dtype=dtype)
    return Card(
        name="cpu",
        flops=2 * 2048**3 / best(square, square),
        bandwidth=large.nbytes / best(large[:1], large),
        memory=psutil.virtual_memory().total,
        source=f"measured here and now by matrix products, threads: {torch.get_num_threads()}",
    )
