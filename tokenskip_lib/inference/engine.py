"""Batched greedy decoding: the protocol of all engines, and the engine that uses transformers.

An engine takes requests and yields answers batch by batch, so that a caller can write each batch to disk before
the next begins. It does not know what the prompts are about.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import StaticLayer

from tokenskip_lib.core.progress import Bar, advance
from tokenskip_lib.core.records import InputError
from tokenskip_lib.inference.kv_cache import GrowingLayer, fixed_size, new_cache
from tokenskip_lib.inference.sharing import common_beginning, shared_phases, siblings
from tokenskip_lib.models.prompts import encode_prompt

LIVE_SHARE = 0.9  # if the share of unfinished rows falls to this, the finished rows leave the batch
LOOK_EVERY = 8  # steps on CUDA between two looks at the tokens: each look waits for all work that is queued there


@dataclass(frozen=True)
class Request:
    """One prompt, the most tokens of its answer, and the name of the attached adapter (None: no adapter)."""

    key: tuple
    prompt: str
    max_new_tokens: int
    adapter: str | None = None


@dataclass(frozen=True)
class Generation:
    """One answer. `tokens` does not count the end token; `cut_off` says that the budget ended the answer.

    `seconds` adds up the answer's share of each step of its batch: it measures throughput, not latency.
    """

    key: tuple
    text: str
    tokens: int
    cut_off: bool
    seconds: float


class Engine(Protocol):
    """Every engine answers requests greedily, in batches."""

    def generate(
        self, requests: Sequence[Request], *, is_done: Callable[[tuple], bool] = lambda _: False, label: str = ""
    ) -> Iterator[list[Generation]]:
        """Answer the requests that are not done, and yield each batch of answers as soon as it is there."""
        ...


class TransformersEngine:
    """Greedy decoding with transformers, on the model's device.

    Requests are sorted by budget and prompt length, left-padded and decoded in fixed batches. The beginnings that
    the prompts of a batch share are computed once. Finished rows leave their batch. The batches depend on the
    requests alone and not on what is already done: a resumed run has the same batches and writes the same text,
    although bfloat16 results depend on a batch's composition.

    Args:
        model: with adapters attached (see `attach_adapters`) if requests name any. A request that names none is
            answered by the adapter called `target` if there is one, else by the model without adapters.
        batch_size: the most requests of a batch.
        batch_tokens: the most tokens of a batch, prompts and whole budgets together; None for any number.
        compiled: decode by a compiled step over a cache of fixed size; finished rows then stay in their batch.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int,
        *,
        batch_tokens: int | None = None,
        compiled: bool = False,
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.batch_tokens = batch_tokens or float("inf")
        self.step = torch.compile(model, dynamic=False) if compiled else None
        self.look_every = LOOK_EVERY if model.device.type == "cuda" else 1
        # Chat models may end with more than one token; their generation settings list them.
        ends = model.generation_config.eos_token_id
        ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
        self.end_ids = {tokenizer.eos_token_id, *ends}

    def generate(
        self,
        requests: Sequence[Request],
        *,
        is_done: Callable[[tuple], bool] = lambda _: False,
        label: str = "",
    ) -> Iterator[list[Generation]]:
        """Answer every request of a batch that is not wholly done.

        Args:
            requests: prompts with their budgets; keys are unique.
            is_done: whether a request's answer is already on disk.
            label: shown on the progress bar.

        Yields:
            One list of generations a batch, at most `batch_size` long.
        """
        encoded = {request.key: encode_prompt(self.tokenizer, request.prompt) for request in requests}
        with Bar(total=len(requests), desc=label, unit="answer") as bar:
            for batch in batches(requests, encoded, self.batch_size, self.batch_tokens):
                after = bar.n + len(batch)
                if not all(is_done(request.key) for request in batch):
                    yield from self._decode_or_halve(batch, encoded)
                bar.update(after - bar.n)  # those that were done before, and none twice after a lack of memory

    def answer(self, batch: list[Request]) -> list[Generation]:
        """The answers to one batch of `batches`."""
        encoded = {request.key: encode_prompt(self.tokenizer, request.prompt) for request in batch}
        return [answer for made in self._decode_or_halve(batch, encoded) for answer in made]

    def _decode_or_halve(self, batch: list[Request], encoded: dict) -> Iterator[list[Generation]]:
        """Decode a batch, or its halves if it does not fit the device's memory."""
        try:
            with self._adapter(batch[0].adapter):
                made = self._decode(batch, [encoded[request.key] for request in batch])
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise InputError(
                    f"a prompt of {len(encoded[batch[0].key])} tokens with {batch[0].max_new_tokens} new ones does not "
                    "fit the device's memory by itself; use a smaller model or budget"
                ) from None
            made = None
        if made is not None:
            yield made
            return
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        for half in (batch[: len(batch) // 2], batch[len(batch) // 2 :]):
            yield from self._decode_or_halve(half, encoded)

    def _adapter(self, name: str | None) -> AbstractContextManager:
        """The model with one of its attached adapters, or with none of them."""
        if not hasattr(self.model, "peft_config"):
            return nullcontext()
        if name is None and "target" in self.model.peft_config:
            name = "target"
        if name is None:
            return self.model.disable_adapter()  # type: ignore[operator]  # peft puts it there
        self.model.set_adapter(name)
        return nullcontext()

    @torch.inference_mode()
    def _decode(self, batch: list[Request], prompts: list[list[int]]) -> list[Generation]:
        clock = time.perf_counter()
        # The host keeps the books: to read the chosen tokens is all that it waits for the device here. Until it looks,
        # rows that have ended go on, and what they add is dropped.
        budgets = [request.max_new_tokens for request in batch]
        answers: list[list[int]] = [[] for _ in batch]
        ended, seconds = [False] * len(batch), [0.0] * len(batch)
        rows = list(range(len(batch)))  # the requests that the cache's rows belong to
        live = set(rows)
        cache, mask, logits, padded = self._prefill(prompts)
        if self.step is not None:
            cache = fixed_size(cache, max(budgets))
        unread: list[torch.Tensor] = []
        for step in range(1, max(budgets) + 1):
            chosen = logits.argmax(-1)
            unread.append(chosen)
            if step % self.look_every == 0 or step == max(budgets):
                unfinished = len(live)
                for tokens in _read(unread):
                    for row, token in zip(rows, tokens, strict=True):
                        if row not in live:
                            continue
                        if token in self.end_ids:
                            ended[row] = True
                        else:
                            answers[row].append(token)
                        if ended[row] or len(answers[row]) >= budgets[row]:
                            live.remove(row)
                advance(unfinished - len(live))
                # The time of the steps is shared by the rows that were in them.
                clock, before = time.perf_counter(), clock
                for row in rows:
                    seconds[row] += (clock - before) / len(rows)
                if not live:
                    break
                unread = []
                if self.step is None and len(live) <= LIVE_SHARE * len(rows):
                    keep = torch.tensor([place for place, row in enumerate(rows) if row in live], device=mask.device)
                    cache.batch_select_indices(keep)
                    rows, mask, chosen = [row for row in rows if row in live], mask[keep], chosen[keep]
            mask, logits = self._feed(chosen[:, None], mask.new_ones(len(rows), 1), mask, cache, padded)
        return [
            Generation(
                key=request.key,
                text=str(self.tokenizer.decode(answer, skip_special_tokens=True)),
                tokens=len(answer),
                cut_off=not done,
                seconds=spent,
            )
            for request, answer, done, spent in zip(batch, answers, ended, seconds, strict=True)
        ]

    def _prefill(self, prompts: list[list[int]]) -> tuple[Cache, torch.Tensor, torch.Tensor, bool]:
        """Keys and values of every prompt, its mask (B, T), the logits after it (B, V), and whether any row is padded.

        Beginnings that prompts share are computed once.
        """
        cache, padded = new_cache(self.model), False
        mask = torch.ones(1, 0, dtype=torch.long, device=self.model.device)
        for rows, parents in shared_phases(prompts):
            chosen = torch.tensor(parents, device=mask.device)
            mask = mask[chosen]
            if mask.shape[1]:
                cache.batch_select_indices(chosen)
            padded = padded or len({len(row) for row in rows}) > 1
            new = self.tokenizer.pad({"input_ids": rows}, padding_side="left", return_tensors="pt").to(mask.device)
            mask, logits = self._feed(new["input_ids"], new["attention_mask"], mask, cache, padded)
        return cache, mask, logits, padded

    def _feed(
        self, ids: torch.Tensor, new: torch.Tensor, mask: torch.Tensor, cache: Cache, padded: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One forward pass of (B, N) new tokens after the cached ones: the mask of all, the last column's logits.

        `padded`: whether the mask hides anything.
        """
        mask = torch.cat([mask, new], dim=1)
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        # A column by index, not by slice: a sliced (strided) input makes the output layer copy its
        # whole weight once a row, a third of the prefill's time on a CPU.
        last = torch.full((1,), ids.shape[1] - 1, device=ids.device)  # filled there: a copy would wait for the device
        model: Callable = self.model
        seen: torch.Tensor | None = mask
        if self.step is not None and isinstance(cache.layers[0], StaticLayer):
            model, room = self.step, cache.layers[0].max_cache_len - mask.shape[1]
            # One shape and one stride for every step, or each would be compiled anew.
            seen = torch.nn.functional.pad(mask, (0, room))[:, None, None].bool()
            positions = positions.clone(memory_format=torch.contiguous_format)
        elif self.look_every > 1 and ids.shape[1] == 1:
            # transformers reads a mask of two dimensions, to see if it hides anything: a wait for the device each step.
            if not padded:
                seen = None
            elif self.model.config._attn_implementation == "sdpa" and all(
                isinstance(layer, GrowingLayer) for layer in cache.layers
            ):
                seen = mask[:, None, None].bool()
        logits = model(
            input_ids=ids, attention_mask=seen, position_ids=positions, past_key_values=cache, logits_to_keep=last
        ).logits[:, -1]  # fmt: skip
        return mask, logits


def _read(columns: list[torch.Tensor]) -> list[list[int]]:
    """The tokens of each step, read from the device at once."""
    return torch.stack(columns).tolist()


def batches(
    requests: Sequence[Request], encoded: dict[tuple, list[int]], size: int, tokens: float
) -> Iterator[list[Request]]:
    """Batches of one adapter, by budget and prompt length; requests that share a question stay together.

    A batch holds at most `size` requests, and at most `tokens` with their whole budgets, padding included.
    """
    for adapter in dict.fromkeys(request.adapter for request in requests):
        yield from _alike([r for r in requests if r.adapter == adapter], encoded, size, tokens)


def _alike(
    requests: Sequence[Request], encoded: dict[tuple, list[int]], size: int, tokens: float
) -> Iterator[list[Request]]:
    batch: list[Request] = []
    for budget in sorted({request.max_new_tokens for request in requests}):
        alike = sorted((r for r in requests if r.max_new_tokens == budget), key=lambda r: (encoded[r.key], r.key))
        prompts = [encoded[request.key] for request in alike]
        remaining = iter(alike)
        groups = [[next(remaining) for _ in group] for group in siblings(prompts, common_beginning(prompts))]
        for group in sorted(groups, key=lambda members: (max(len(encoded[m.key]) for m in members), members[0].key)):
            longest = max(len(encoded[member.key]) for member in [*batch, *group]) + budget
            most = min(size, tokens // longest)
            if batch and len(batch) + len(group) > most:
                yield batch
                batch = []
            for request in group:
                if batch and len(batch) >= most:
                    yield batch
                    batch = []
                batch.append(request)
    if batch:
        yield batch
