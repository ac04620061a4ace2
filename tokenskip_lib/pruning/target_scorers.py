"""Importance from the target model itself: surprisal, conditional log-probability, answer gradients.

Every chain is one row (or a few overlapping ones, where it exceeds the model's context); rows of
similar length share a forward pass. Scores are per token of the target model, averaged over spans.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tokenskip_lib.core.records import ChainText, InputError, ScoredChain
from tokenskip_lib.core.settings import PromptSettings
from tokenskip_lib.models.batching import TokenBatches
from tokenskip_lib.models.prompts import answer_tail, build_prompt, encode_prompt
from tokenskip_lib.pruning.spans import Segmenter, average_over_spans, build_scored_chain, segment

_COLUMNS = 512  # positions whose log-probabilities over the vocabulary are held at once, in float32


@dataclass(frozen=True)
class _Row:
    """Token ids for one forward pass; ids[begin:end] are chain tokens first, first + 1, ...

    `answer` is where the answer's own tokens lie in ids, where the row ends with one.
    """

    ids: list[int]
    begin: int
    end: int
    first: int
    answer: tuple[int, int] = (0, 0)


class TargetScorer(ABC):
    """What the scorers below share: chains -> rows -> token scores -> span scores."""

    name: str
    reads: tuple[str, ...]

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: PromptSettings,
        *,
        batch_tokens: int | None = None,
        segmenter: Segmenter = segment,
    ):
        """`batch_tokens`: padded tokens a forward pass may hold, see TokenBatches."""
        self.model = model.requires_grad_(False)
        self.tokenizer = tokenizer
        self.prompts = prompts
        self.batches = TokenBatches(batch_tokens, model.device)
        self.segment = segmenter
        self.max_tokens = getattr(model.config, "max_position_embeddings", None) or 1 << 30

    def score(self, window: Sequence[ChainText]) -> list[ScoredChain]:
        if not window:
            return []
        encoded = [self.tokenizer(c.chain, add_special_tokens=False, return_offsets_mapping=True) for c in window]
        values = self.token_scores(window, [chain["input_ids"] for chain in encoded])
        scored = []
        for chain, tokens, scores in zip(window, encoded, values, strict=True):
            spans = self.segment(chain.chain)
            scored.append(
                build_scored_chain(chain, self.name, spans, average_over_spans(spans, tokens["offset_mapping"], scores))
            )
        return scored

    @abstractmethod
    def token_scores(self, window: Sequence[ChainText], chains: list[list[int]]) -> list[np.ndarray]:
        """One score for each token of each chain."""

    def _prompt(self, chain: ChainText) -> list[int]:
        return encode_prompt(self.tokenizer, build_prompt(self.tokenizer, chain.question, self.prompts))

    def _rows(self, chain: ChainText, before: list[int], ids: list[int], after: list[int]) -> list[_Row]:
        """One row, or rows that each score a part and see half a context of the chain before it."""
        room = self.max_tokens - len(before) - len(after)
        if room < 2:
            raise InputError(
                f"chain '{chain.id}': its question and answer alone fill the model's context of {self.max_tokens} "
                "tokens; use another scorer, or leave the chain out"
            )
        rows, first = [], 0
        while first < len(ids) or not rows:
            last = min(len(ids), first + (room if first == 0 else room - room // 2))
            seen = max(0, last - room)
            row = before + ids[seen:last] + after
            rows.append(_Row(row, len(before) + first - seen, len(before) + last - seen, first))
            first = last
        return rows

    def _run(self, rows: Sequence[Sequence[_Row]], run: Callable[[list[_Row]], list[np.ndarray]]) -> list[np.ndarray]:
        """Batch the rows of all chains, and put each chain's parts together again."""
        flat = [row for parts in rows for row in parts]
        values = iter(self.batches.map([len(row.ids) for row in flat], lambda batch: run([flat[i] for i in batch])))
        return [np.concatenate([next(values) for _ in parts]) for parts in rows]

    def _pad(self, rows: list[_Row]) -> dict[str, torch.Tensor]:
        padded = self.tokenizer.pad({"input_ids": [row.ids for row in rows]}, padding_side="right", return_tensors="pt")
        return dict(padded.to(self.model.device))

    @torch.inference_mode()
    def _log_probs(self, rows: list[_Row]) -> list[np.ndarray]:
        """log p of each scored token given all before it, in nats."""
        inputs = self._pad(rows)
        first = min(row.begin for row in rows) - 1
        columns = torch.arange(first, inputs["input_ids"].shape[1] - 1, device=self.model.device)
        logits = self.model(**inputs, logits_to_keep=columns, use_cache=False).logits
        return [
            _gather(logits[index, row.begin - 1 - first : row.end - 1 - first], row.ids[row.begin : row.end])
            .cpu()
            .double()
            .numpy()
            for index, row in enumerate(rows)
        ]


class SelectiveContextScorer(TargetScorer):
    """The target model's own surprisal, I(x_i) = -log p(x_i | prompt, x_<i), in nats.

    A token that the model can predict is unimportant. The chain is scored where it was generated:
    after the prompt with the question (the paper's eq. 1 leaves the context of the first token
    open). One forward pass a chain.

    Source: Selective Context (arXiv:2310.06201); TokenSkip (arXiv:2502.12067), eq. 1.
    """

    name = "selective_context"
    reads = ("question",)

    def token_scores(self, window: Sequence[ChainText], chains: list[list[int]]) -> list[np.ndarray]:
        rows = [self._rows(chain, self._prompt(chain), ids, []) for chain, ids in zip(window, chains, strict=True)]
        return [-values for values in self._run(rows, self._log_probs)]


class CTSScorer(TargetScorer):
    """What question and answer add to a token: log p(x_i | c, x_<i) - log p(x_i | x_<i), in nats.

    A token that becomes likelier once the question and its answer are in view is one that leads
    there. Settled here: c is `question`, a blank line, `The final answer is: ...`, a blank line, as
    plain text without a chat template, both sides after the tokenizer's start token. The paper's
    c holds the answer; the authors' script hands LongLLMLingua's condition_compare one text that
    stands before the chain, apart by a blank line. The reference model here is the target model
    itself. Two forward passes a chain.

    Source: Conditional Token Selection (arXiv:2505.17827); LongLLMLingua (arXiv:2310.06839), eq. 5.
    """

    name = "cts"
    reads = ("question", "answer")

    def token_scores(self, window: Sequence[ChainText], chains: list[list[int]]) -> list[np.ndarray]:
        start = self.tokenizer.bos_token_id
        start = [self.tokenizer.eos_token_id if start is None else start]
        conditions = [f"{chain.question}\n\n{answer_tail(chain.answer).strip()}\n\n" for chain in window]
        conditions = self.tokenizer(conditions, add_special_tokens=False)["input_ids"]
        given = [self._rows(c, start + x, ids, []) for c, x, ids in zip(window, conditions, chains, strict=True)]
        alone = [self._rows(chain, start, ids, []) for chain, ids in zip(window, chains, strict=True)]
        values = self._run([*given, *alone], self._log_probs)
        return [a - b for a, b in zip(values[: len(window)], values[len(window) :], strict=True)]


class GoGIScorer(TargetScorer):
    """How much the answer hangs on a token: || d log p(answer | question, chain) / d h_i ||_1.

    h_i is the token's hidden state after block max(L - 2, 0) of L (counted from 0), the late layer
    that MIST's re-run names. The graph begins there, so a chain costs one forward pass and a
    backward pass through the last block. The likelihood is of the answer's own tokens inside the
    closing phrase.

    Source: Goal-Gradient Importance (arXiv:2505.08392).
    """

    name = "gogi"
    reads = ("question", "answer")

    def token_scores(self, window: Sequence[ChainText], chains: list[list[int]]) -> list[np.ndarray]:
        return self._run(self._answered_rows(window, chains), self._gradient_norms)

    def _answered_rows(self, window: Sequence[ChainText], chains: list[list[int]]) -> list[list[_Row]]:
        rows = []
        for chain, ids in zip(window, chains, strict=True):
            if not chain.answer.strip():
                raise InputError(
                    f"chain '{chain.id}' has no answer, and {self.name} scores what leads to it; "
                    "add it, or use another scorer"
                )
            tail = answer_tail(chain.answer)
            encoded = self.tokenizer(tail, add_special_tokens=False, return_offsets_mapping=True)
            start = tail.rindex(chain.answer)
            inside = [
                i
                for i, (a, b) in enumerate(encoded["offset_mapping"])
                if a < start + len(chain.answer) and b > max(a, start)
            ]
            after = len(encoded["input_ids"]) - inside[0], len(encoded["input_ids"]) - inside[-1] - 1
            rows.append(
                [
                    _Row(row.ids, row.begin, row.end, row.first, (len(row.ids) - after[0], len(row.ids) - after[1]))
                    for row in self._rows(chain, self._prompt(chain), ids, encoded["input_ids"])
                ]
            )
        return rows

    def _gradient_norms(self, rows: list[_Row]) -> list[np.ndarray]:
        layers = decoder_layers(self.model)
        _, [gradient] = self._gradients(rows, first_layer=max(len(layers) - 2, 0), layers=layers, only_first=True)
        norms = gradient.float().abs().sum(-1).cpu().double().numpy()
        return [norms[index, row.begin : row.end] for index, row in enumerate(rows)]

    def _gradients(
        self, rows: list[_Row], *, first_layer: int, layers: torch.nn.ModuleList, only_first: bool
    ) -> tuple[list[torch.Tensor], Sequence[torch.Tensor]]:
        """Hidden states after the blocks from `first_layer` on, and d log p(answer) / d each of them."""
        inputs = self._pad(rows)
        with torch.enable_grad(), recorded_outputs(layers, first_layer) as hidden:
            begin = min(row.answer[0] for row in rows) - 1
            columns = torch.arange(begin, inputs["input_ids"].shape[1] - 1, device=self.model.device)
            logits = self.model(**inputs, logits_to_keep=columns, use_cache=False).logits
            likelihood = sum(
                _gather(logits[i, row.answer[0] - 1 - begin : row.answer[1] - 1 - begin], row.ids[slice(*row.answer)])
                .sum()
                for i, row in enumerate(rows)
            )  # fmt: skip
            gradients = torch.autograd.grad(likelihood, hidden[:1] if only_first else hidden)
        return hidden, gradients


class MISTScorer(GoGIScorer):
    """Necessity and sufficiency of a token for the answer, 0.6 and 0.4 of a weighted sum.

    necessity_i = sum_l w_l <d log p(answer) / d h_i^l, h_i^l>: by first order, what the answer's
    log-probability loses without the state. sufficiency_i = sum_l w_l cos(h_i^l, h_last^l): how far
    the state already points where the state that predicts the answer points. Settled here: w_l
    grows linearly with depth, l = 1 .. L, and sums to 1; each part is scaled to [0, 1] within the
    chain before they are mixed. In a pre-norm model the last two blocks add nothing to necessity:
    the last has no path to the answer, and a norm ignores a state's length. One forward and one
    backward pass a chain.

    Source: MIST (arXiv:2608.31066) for the two parts and 0.6/0.4. Its own layer weights and scaling
        were not at hand, so this is not claimed to repeat its numbers.
    """

    name = "mist"

    def token_scores(self, window: Sequence[ChainText], chains: list[list[int]]) -> list[np.ndarray]:
        parts = self._run(self._answered_rows(window, chains), self._parts)  # (T, 2) a chain
        return [0.6 * _unit(part[:, 0]) + 0.4 * _unit(part[:, 1]) for part in parts]

    def _parts(self, rows: list[_Row]) -> list[np.ndarray]:
        layers = decoder_layers(self.model)
        hidden, gradients = self._gradients(rows, first_layer=0, layers=layers, only_first=False)
        last = torch.tensor([row.answer[0] - 1 for row in rows], device=self.model.device)
        necessity = sufficiency = 0.0
        for depth, (state, gradient) in enumerate(zip(hidden, gradients, strict=True), 1):
            state, gradient = state.detach().float(), gradient.float()
            weight = 2 * depth / (len(layers) * (len(layers) + 1))
            necessity = necessity + weight * (state * gradient).sum(-1)
            goal = state[torch.arange(len(rows), device=last.device), last][:, None]
            sufficiency = sufficiency + weight * torch.cosine_similarity(state, goal, dim=-1)
        both = torch.stack([necessity, sufficiency], -1).cpu().double().numpy()
        return [both[index, row.begin : row.end] for index, row in enumerate(rows)]


def decoder_layers(model: PreTrainedModel) -> torch.nn.ModuleList:
    """The model's blocks, first to last."""
    wanted = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == wanted:
            return module
    raise InputError(f"{type(model).__name__}: found no list of its {wanted} blocks; use another scorer")


@contextmanager
def recorded_outputs(layers: torch.nn.ModuleList, first: int) -> Iterator[list[torch.Tensor]]:
    """While open, the outputs of blocks `first`, first + 1, ... of each forward pass; gradients begin at the first."""
    outputs: list[torch.Tensor] = []

    def record(layer: torch.nn.Module, _, output: torch.Tensor | tuple) -> torch.Tensor | tuple:
        state = output[0] if isinstance(output, tuple) else output
        if layer is layers[first]:
            state = state.detach().requires_grad_()
        outputs.append(state)
        return (state, *output[1:]) if isinstance(output, tuple) else state

    hooks = [layer.register_forward_hook(record) for layer in layers[first:]]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def _gather(logits: torch.Tensor, ids: list[int]) -> torch.Tensor:
    """log-probability of ids[k] by logits[k], a few hundred rows at a time."""
    wanted = torch.tensor(ids, device=logits.device, dtype=torch.long)
    parts = [
        part.float().log_softmax(-1).gather(1, chosen[:, None])[:, 0]
        for part, chosen in zip(logits.split(_COLUMNS), wanted.split(_COLUMNS), strict=True)
    ]
    return torch.cat(parts) if parts else logits.new_zeros(0).float()


def _unit(values: np.ndarray) -> np.ndarray:
    low, high = values.min(initial=np.inf), values.max(initial=-np.inf)
    return (values - low) / (high - low) if high > low else np.zeros_like(values)
