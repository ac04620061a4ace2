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
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from tokenskip_lib.prompts import encode_prompt


@dataclass(frozen=True)
class Request:
    """One prompt and the most tokens its answer may have.

    `expected_tokens` is a guess at the answer's length, where there is one: a batch runs until its
    longest answer ends, so answers of like length should share one.
    """

    id: str
    prompt: str
    max_new_tokens: int
    expected_tokens: int = 0


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

    Requests are sorted by budget, expected length and prompt length, left-padded and decoded in fixed batches. The
    batches depend on the requests alone, never on what is already done, so a resumed run meets the
    same batches and writes the same text (bfloat16 results depend on a batch's composition).
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int):
        self.model = model
        self.tokenizer = tokenizer
        self.batch_size = batch_size

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
        ordered = sorted(requests, key=lambda r: (r.max_new_tokens, r.expected_tokens, len(encoded[r.id]), r.id))
        with tqdm(total=len(ordered), desc=label, unit="problem") as bar:
            for start in range(0, len(ordered), self.batch_size):
                batch = ordered[start : start + self.batch_size]
                if not all(is_done(request.id) for request in batch):
                    yield self._decode(batch, [encoded[request.id] for request in batch])
                bar.update(len(batch))

    @torch.inference_mode()
    def _decode(self, batch: list[Request], prompts: list[list[int]]) -> list[Generation]:
        start = time.perf_counter()
        budget = max(request.max_new_tokens for request in batch)
        inputs = self.tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
        inputs = inputs.to(self.model.device)
        width = inputs["input_ids"].shape[1]
        # A static cache spares the concatenation at every step; compiling it does not pay on a CPU.
        config = GenerationConfig(
            do_sample=False,
            max_new_tokens=budget,
            cache_implementation="static",
            disable_compile=True,
            eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        new = self.model.generate(**inputs, generation_config=config)[:, width:].tolist()
        seconds = (time.perf_counter() - start) / len(batch)
        generations = []
        for request, ids in zip(batch, new, strict=True):
            ended = ids.index(self.tokenizer.eos_token_id) if self.tokenizer.eos_token_id in ids else None
            ids = ids[: request.max_new_tokens if ended is None else min(ended, request.max_new_tokens)]
            generations.append(
                Generation(
                    id=request.id,
                    text=self.tokenizer.decode(ids, skip_special_tokens=True),
                    tokens=len(ids),
                    cut_off=ended is None or ended > request.max_new_tokens,
                    seconds=seconds,
                )
            )
        return generations
