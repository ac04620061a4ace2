"""Training rows laid out so that what they share is computed once.

The rows of a problem differ in their ratio alone: the template, the question and the beginning of
the marker are the same tokens. A packed sequence is a tree of rows laid flat: a shared token stands in
it once, a position counts from its row's beginning, and a mask lets each token see the tokens before
it in its own row and no others. Losses and gradients are those of the rows one by one.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from tokenskip_lib.batching import shared_length
from tokenskip_lib.prompts import encode_completion, encode_prompt
from tokenskip_lib.records import SFTRow

IGNORED = -100  # the label of a position whose prediction is no part of the loss


@dataclass(frozen=True)
class EncodedRow:
    """Token ids of one training row; the loss is on the completion alone."""

    id: str
    prompt: list[int]
    completion: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


def encode_rows(
    rows: Iterable[SFTRow], tokenizer: PreTrainedTokenizerBase, max_tokens: int
) -> tuple[list[EncodedRow], int]:
    """Token ids of rows.

    Returns:
        The encoded rows, and how many were left out because they exceed `max_tokens`.
    """
    rows = list(rows)
    encoded = [
        EncodedRow(row.id, encode_prompt(tokenizer, row.prompt), encode_completion(tokenizer, row.completion))
        for row in rows
    ]
    kept = [row for row in encoded if len(row) <= max_tokens]
    return kept, len(rows) - len(kept)


def training_order(rows: Sequence[EncodedRow], epochs: float, seed: int) -> list[EncodedRow]:
    """Rows in the order they are trained on: problems shuffled anew each epoch, a problem's rows side by side.

    Args:
        epochs: passes over the rows; of the last one only a part where this is no whole number.
    """
    problems: dict[str, list[EncodedRow]] = {}
    for row in rows:
        problems.setdefault(row.id, []).append(row)
    generator, order, total = random.Random(seed), [], max(1, round(epochs * len(rows)))
    while len(order) < total:
        ids = list(problems)
        generator.shuffle(ids)
        order += [row for problem_id in ids for row in problems[problem_id]]
    return order[:total]


def pack_rows(rows: Sequence[EncodedRow]) -> dict[str, torch.Tensor]:
    """One sequence of N tokens that holds all rows, beginnings that prompts share once.

    The last token of a prompt is never shared: it predicts its own row's first response token.

    Returns:
        What a model's forward takes: input_ids and position_ids (1, N), attention_mask (1, 1, N, N),
        true where a token (row) sees another (column), logits_to_keep (R), the R positions that
        predict a response token, and labels (1, N), what each of them predicts.
    """
    ids: list[int] = []
    depths: list[int] = []
    labels: list[int] = []
    paths: list[list[int]] = []
    shared: list[int] = []
    before: EncodedRow | None = None
    for row in sorted(rows, key=lambda row: row.prompt):  # sorted, a row shares most with the one before it
        length = shared_length([before.prompt, row.prompt]) if before is not None else 0
        new = row.prompt[length:] + row.completion[:-1]  # nothing is predicted after the end token
        path = [*(paths[-1][:length] if paths else ()), *range(len(ids), len(ids) + len(new))]
        ids += new
        depths += range(length, len(row) - 1)
        labels += [IGNORED] * (len(row.prompt) - 1 - length) + row.completion  # a position's label is what follows it
        paths.append(path)
        shared.append(length)
        before = row
    mask = torch.zeros(len(ids), len(ids), dtype=torch.bool)
    for path, length in zip(paths, shared, strict=True):
        columns = torch.tensor(path)
        causal = torch.ones(len(path), len(path), dtype=torch.bool).tril()
        mask[columns[length:, None], columns] = causal[length:]
    targets = torch.tensor(labels)
    return {
        "input_ids": torch.tensor([ids]),
        "position_ids": torch.tensor([depths]),
        "attention_mask": mask[None, None],
        "logits_to_keep": (targets != IGNORED).nonzero()[:, 0],
        "labels": targets[None],
    }


def response_loss(logits: torch.Tensor, labels: torch.Tensor, tokens: torch.Tensor | int | None = None) -> torch.Tensor:
    """Cross-entropy of response tokens, nats: their mean, or their sum over `tokens`.

    Args:
        logits: (1, R, V), of the positions that `logits_to_keep` names.
        labels: (1, N), as `pack_rows` makes them.
    """
    targets = labels[labels != IGNORED]
    total = torch.nn.functional.cross_entropy(logits[0].float(), targets, reduction="sum")
    return total / (len(targets) if tokens is None else tokens)
