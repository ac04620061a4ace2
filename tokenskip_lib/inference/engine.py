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
from tqdm import tqdm
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import StaticLayer

from tokenskip_lib.core.records import InputError
from tokenskip_lib.inference.kv_cache import fixed_size, new_cache
from tokenskip_lib.models.batching import shared_length
from tokenskip_lib.models.prompts import encode_prompt

LIVE_SHARE = 0.9  # if the share of unfinished rows falls to this, the finished rows leave the batch
MIN_SHARED = 16  # a beginning that all prompts of a batch share is computed once if it has this many tokens
SIBLING_SHARE = 0.6  # neighbours that share this much of what follows have the same question at different ratios


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
        with tqdm(total=len(requests), desc=label, unit="answer") as bar:
            for batch in _batches(requests, encoded, self.batch_size, self.batch_tokens):
                if not all(is_done(request.key) for request in batch):
                    yield from self._decode_or_halve(batch, encoded)
                bar.update(len(batch))

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
        # The host keeps the books: to read the chosen tokens is all that a step here waits for the device.
        budgets = [request.max_new_tokens for request in batch]
        answers: list[list[int]] = [[] for _ in batch]
        ended, seconds = [False] * len(batch), [0.0] * len(batch)
        rows = list(range(len(batch)))  # the requests that the cache's rows belong to
        live = set(rows)
        cache, mask, logits = self._prefill(prompts)
        if self.step is not None:
            cache = fixed_size(cache, max(budgets))
        for _ in range(max(budgets)):
            chosen = logits.argmax(-1)
            for row, token in zip(rows, chosen.tolist(), strict=True):
                if row not in live:
                    continue
                if token in self.end_ids:
                    ended[row] = True
                else:
                    answers[row].append(token)
                if ended[row] or len(answers[row]) >= budgets[row]:
                    live.remove(row)
            # Each step's time is shared by the rows that were in it.
            clock, before = time.perf_counter(), clock
            for row in rows:
                seconds[row] += (clock - before) / len(rows)
            if not live:
                break
            if self.step is None and len(live) <= LIVE_SHARE * len(rows):
                keep = torch.tensor([place for place, row in enumerate(rows) if row in live], device=mask.device)
                cache.batch_select_indices(keep)
                rows, mask, chosen = [row for row in rows if row in live], mask[keep], chosen[keep]
            mask, logits = self._feed(chosen[:, None], mask.new_ones(len(rows), 1), mask, cache)
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

    def _prefill(self, prompts: list[list[int]]) -> tuple[Cache, torch.Tensor, torch.Tensor]:
        """Keys and values of every prompt, its mask (B, T) and the logits after it (B, V); shared beginnings once."""
        cache = new_cache(self.model)
        mask = torch.ones(1, 0, dtype=torch.long, device=self.model.device)
        for rows, parents in shared_phases(prompts):
            chosen = torch.tensor(parents, device=mask.device)
            mask = mask[chosen]
            if mask.shape[1]:
                cache.batch_select_indices(chosen)
            padded = self.tokenizer.pad({"input_ids": rows}, padding_side="left", return_tensors="pt").to(mask.device)
            mask, logits = self._feed(padded["input_ids"], padded["attention_mask"], mask, cache)
        return cache, mask, logits

    def _feed(
        self, ids: torch.Tensor, new: torch.Tensor, mask: torch.Tensor, cache: Cache
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One forward pass of (B, N) new tokens after the cached ones: the mask of all, the last column's logits."""
        mask = torch.cat([mask, new], dim=1)
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        # A column by index, not by slice: a sliced (strided) input makes the output layer copy its
        # whole weight once a row, a third of the prefill's time on a CPU.
        last = torch.full((1,), ids.shape[1] - 1, device=ids.device)  # filled there: a copy would wait for the device
        model: Callable = self.model
        seen = mask
        if self.step is not None and isinstance(cache.layers[0], StaticLayer):
            model, room = self.step, cache.layers[0].max_cache_len - mask.shape[1]
            # One shape and one stride for every step, or each would be compiled anew.
            seen = torch.nn.functional.pad(mask, (0, room))[:, None, None].bool()
            positions = positions.clone(memory_format=torch.contiguous_format)
        logits = model(
            input_ids=ids, attention_mask=seen, position_ids=positions, past_key_values=cache, logits_to_keep=last
        ).logits[:, -1]  # fmt: skip
        return mask, logits


def shared_phases(prompts: Sequence[list[int]]) -> list[tuple[list[list[int]], list[int]]]:
    """The passes that bring every prompt into the cache, with shared beginnings once.

    The first pass has the beginning of all prompts (a template). The second has what neighbours share (a question
    that is asked at several ratios). The last has the rest of each prompt, at least one token.

    Args:
        prompts: token ids; prompts that share much are neighbours.

    Returns:
        Phases: rows of token ids, and for each row its row in the phase before (0 in the first).
    """
    common = _common(prompts)
    groups = _siblings(prompts, common)
    phases = [([prompts[0][:common]], [0])] if common else []
    if len(groups) == len(prompts):
        return [*phases, ([prompt[common:] for prompt in prompts], [0] * len(prompts))]
    lengths = [shared_length(group) for group in groups]
    middles = [group[0][common:length] for group, length in zip(groups, lengths, strict=True)]
    ends = [(index, prompt[lengths[index] :]) for index, group in enumerate(groups) for prompt in group]
    return [*phases, (middles, [0] * len(groups)), ([end for _, end in ends], [index for index, _ in ends])]


def _batches(
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
        groups = [[next(remaining) for _ in group] for group in _siblings(prompts, _common(prompts))]
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


def _common(prompts: Sequence[list[int]]) -> int:
    """The number of tokens that all prompts begin with; 0 if they are too few for a pass of their own."""
    shared = shared_length(prompts) if len(prompts) > 1 else 0
    return shared if shared >= MIN_SHARED else 0


def _siblings(prompts: Sequence[list[int]], common: int) -> list[list[list[int]]]:
    """Runs of neighbours that share most of what follows the common beginning."""
    groups: list[list[list[int]]] = []
    for prompt in prompts:
        first = groups[-1][0] if groups else None
        longest = max(len(first or []), len(prompt)) - common
        if first is not None and shared_length([first, prompt]) - common >= SIBLING_SHARE * longest:
            groups[-1].append(prompt)
        else:
            groups.append([prompt])
    return groups
