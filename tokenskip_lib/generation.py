"""Batched greedy decoding behind one protocol; transformers here.

An engine takes requests and yields generations batch by batch, so that a caller can write each
batch down before the next begins. It does not know what the prompts are about.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from tqdm import tqdm
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from tokenskip_lib.prompts import encode_prompt

LIVE_SHARE = 0.9  # below this share of unfinished rows, the finished ones leave the batch


@dataclass(frozen=True)
class Request:
    """One prompt and the most tokens its answer may have."""

    id: str
    prompt: str
    max_new_tokens: int


@dataclass(frozen=True)
class Generation:
    """One answer. `tokens` excludes the end token; `cut_off` means the budget ended it.

    `seconds` is the batch's wall time divided by its size: a throughput, not a latency.
    """

    id: str
    text: str
    tokens: int
    cut_off: bool
    seconds: float


class Engine(Protocol):
    """What every engine does: answer requests greedily, in batches."""

    def generate(
        self, requests: Sequence[Request], *, is_done: Callable[[str], bool], label: str
    ) -> Iterator[list[Generation]]: ...


class TransformersEngine:
    """Greedy decoding with `transformers`, on whatever device the model is on.

    Requests are sorted by budget and prompt length, left-padded and decoded in fixed batches; rows
    that have finished leave their batch. The batches depend on the requests alone, never on what is
    already done, so a resumed run meets the same batches and writes the same text (bfloat16 results
    depend on a batch's composition).
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int):
        self.model = model
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        # Chat models may end with more than one token; their generation settings list them.
        ends = model.generation_config.eos_token_id
        ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
        self.end_ids = torch.tensor(sorted({tokenizer.eos_token_id, *ends}), device=model.device)

    def generate(
        self, requests: Sequence[Request], *, is_done: Callable[[str], bool] = lambda _: False, label: str = "generate"
    ) -> Iterator[list[Generation]]:
        """Answer every request of a batch that is not wholly done.

        Args:
            requests: prompts with their budgets, ids unique.
            is_done: whether a request's answer is already on disk.
            label: shown on the progress bar.

        Yields:
            One list of generations a batch, at most `batch_size` long.
        """
        encoded = {request.id: encode_prompt(self.tokenizer, request.prompt) for request in requests}
        ordered = sorted(requests, key=lambda r: (r.max_new_tokens, len(encoded[r.id]), r.id))
        with tqdm(total=len(ordered), desc=label, unit="problem") as bar:
            for start in range(0, len(ordered), self.batch_size):
                batch = ordered[start : start + self.batch_size]
                if not all(is_done(request.id) for request in batch):
                    yield self._decode(batch, [encoded[request.id] for request in batch])
                bar.update(len(batch))

    @torch.inference_mode()
    def _decode(self, batch: list[Request], prompts: list[list[int]]) -> list[Generation]:
        start = time.perf_counter()
        device = self.model.device
        inputs = self.tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt").to(device)
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        limits = torch.tensor([request.max_new_tokens for request in batch], device=device)
        tokens = torch.full((len(batch), int(limits.max())), self.tokenizer.pad_token_id, device=device)
        lengths, ended = torch.zeros_like(limits), torch.zeros_like(limits, dtype=torch.bool)
        rows, live = torch.arange(len(batch), device=device), torch.ones_like(ended)
        cache = DynamicCache(config=self.model.config)
        for step in range(tokens.shape[1]):
            # A column by index, not by slice: a sliced (strided) input makes the output layer copy
            # its whole weight once a row, a third of the prefill's time on a CPU.
            last = torch.tensor([ids.shape[1] - 1], device=device)
            chosen = self.model(
                input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=last
            ).logits[:, -1].argmax(-1)  # fmt: skip
            at_end = torch.isin(chosen, self.end_ids)
            ended[rows[live & at_end]] = True
            live = live & ~at_end
            tokens[rows[live], step] = chosen[live]
            lengths[rows[live]] += 1
            live = live & (step + 1 < limits[rows])
            if not live.any():
                break
            if live.sum() <= LIVE_SHARE * len(rows):
                keep = live.nonzero()[:, 0]
                cache.batch_select_indices(keep)
                rows, live, mask, positions, chosen = (t[keep] for t in (rows, live, mask, positions, chosen))
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
            ids, positions = chosen[:, None], positions[:, -1:] + 1
        texts = [row[:length] for row, length in zip(tokens.tolist(), lengths.tolist(), strict=True)]
        seconds = (time.perf_counter() - start) / len(batch)
        return [
            Generation(
                id=request.id,
                text=self.tokenizer.decode(text, skip_special_tokens=True),
                tokens=len(text),
                cut_off=not done,
                seconds=seconds,
            )
            for request, text, done in zip(batch, texts, ended.tolist(), strict=True)
        ]
