"""Packed rows: the tokens that rows begin with alike are computed once.

A problem's training rows differ in their ratio alone, and the versions of a chain are the same up to where a span
is left out. A packed sequence holds a shared token once, and each position counts from the beginning of its row.
Attention takes the rows apart again, each with its own beginning, so that no token sees another row. Losses,
gradients and log-probabilities are those of the rows one by one.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from tokenskip_lib.core.records import InputError
from tokenskip_lib.models.batching import shared_length

IGNORED = -100  # the label of a position whose prediction does not count in the loss
SHORT = 256  # tokens of a row: up to here, plain products are faster on a CPU than fused attention


@dataclass(frozen=True)
class EncodedRow:
    """Token ids of one row; what is predicted, and learnt, is the completion alone."""

    id: str
    prompt: list[int]
    completion: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


def pack_rows(rows: Sequence[EncodedRow]) -> dict[str, torch.Tensor]:
    """One sequence of N tokens that holds all rows, with the beginnings that prompts share once.

    The last token of a prompt is never shared, because it predicts the first response token of its own row.

    Returns:
        Arguments of a model's forward: input_ids and position_ids (1, N); logits_to_keep (R), the R
        positions that predict a response token; labels (1, N), the tokens that they predict; and for
        `packed_attention` paths (B, T), the positions of each of B rows, padded with the row's last one, and
        places (N), the first place of each position in the flattened paths.
    """
    ids: list[int] = []
    depths: list[int] = []
    labels: list[int] = []
    paths: list[list[int]] = []
    firsts: list[tuple[int, int]] = []
    before: EncodedRow | None = None
    for row in sorted(rows, key=lambda row: row.prompt):  # sorted, a row shares most with the one before it
        length = shared_length([before.prompt, row.prompt]) if before is not None else 0
        new = (row.prompt + row.completion)[length:-1]  # nothing is predicted after the end token
        firsts += [(len(paths), depth) for depth in range(length, length + len(new))]
        paths.append([*(paths[-1][:length] if paths else ()), *range(len(ids), len(ids) + len(new))])
        ids += new
        depths += range(length, length + len(new))
        labels += [IGNORED] * (len(row.prompt) - 1 - length) + row.completion  # a position's label is what follows it
        before = row
    width = max(map(len, paths))
    targets = torch.tensor(labels)
    return {
        "input_ids": torch.tensor([ids]),
        "position_ids": torch.tensor([depths]),
        "paths": torch.tensor([path + path[-1:] * (width - len(path)) for path in paths]),
        "places": torch.tensor([number * width + depth for number, depth in firsts]),
        "logits_to_keep": (targets != IGNORED).nonzero()[:, 0],
        "labels": targets[None],
    }


def attend_in_rows(model: PreTrainedModel) -> None:
    """Set a model's attention to that of packed sequences.

    Raises:
        InputError: a block of the model does not attend to everything before a token.
    """
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ()) - {"full_attention"}
    if kinds:
        raise InputError(f"packed rows need blocks of full attention, not {', '.join(sorted(kinds))}")
    AttentionInterface.register("packed", packed_attention)
    model.set_attn_implementation("packed")


@contextmanager
def attending_in_rows(model: PreTrainedModel) -> Iterator[None]:
    """A model whose attention is that of packed sequences while the context is open."""
    before = model.config._attn_implementation
    attend_in_rows(model)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    paths: torch.Tensor,
    places: torch.Tensor,
    **options,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each row of a packed sequence: (1, H, N, D) -> (1, N, H, D)."""

    def in_rows(states: torch.Tensor) -> torch.Tensor:
        flat = states[0].transpose(0, 1).flatten(1)  # (N, H x D); an embedding's gradient adds up what is shared
        return torch.nn.functional.embedding(paths, flat).unflatten(-1, states.shape[1::2]).transpose(1, 2)

    queries, keys, values = in_rows(query), in_rows(key), in_rows(value)
    plain = query.device.type == "cpu" and paths.shape[1] <= SHORT and not options.get("dropout")
    if plain:
        attended = _plain_attention(queries, keys, values, options["scaling"])
    else:
        attended, _ = sdpa_attention_forward(module, queries, keys, values, None, **options | {"is_causal": True})
    flat = torch.nn.functional.embedding(places, attended.flatten(0, 1).flatten(1))
    return flat.view(1, -1, *attended.shape[2:]), None


def _plain_attention(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float) -> torch.Tensor:
    """Causal attention by three operations: (B, H, T, D) -> (B, T, H, D).

    The query heads that share a key head are the rows of one product, so no key is written twice.
    """
    width, size = queries.shape[2:]
    together = queries.shape[1] // keys.shape[1]
    causal = queries.new_full((width, width), float("-inf")).triu(1).repeat(together, 1)
    rows, keys, values = queries.reshape(-1, together * width, size), keys.flatten(0, 1), values.flatten(0, 1)
    weights = torch.baddbmm(causal, rows, keys.transpose(1, 2), alpha=scaling).softmax(-1)
    return (weights @ values).view(queries.shape).transpose(1, 2)
