"""Importance from the target model's own likelihoods: surprisal, and conditional log-probability.

Every chain is one row of token ids. A chain that exceeds the model's context is a few overlapping rows. Rows of
similar length share a forward pass. Scores are per token of the target model, averaged over spans.
The scorers that use gradients are in `gradient_scorers`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tokenskip_lib.core.records import ChainText, InputError, ScoredChain
from tokenskip_lib.core.settings import PromptSettings
from tokenskip_lib.models.batching import TokenBatches
from tokenskip_lib.models.prompts import answer_tail, build_prompt, encode_prompt
from tokenskip_lib.pruning.spans import (
    Scores,
    Segmenter,
    Spans,
    average_over_spans,
    build_scored_chain,
    segment,
    sum_over_spans,
)

Measure = Callable[[torch.Tensor, list[int]], torch.Tensor]  # N x vocabulary logits, the N tokens' ids -> N numbers
_COLUMNS = 512  # positions whose log-probabilities over the vocabulary are held at once, in float32


@dataclass(frozen=True)
class Row:
    """Token ids for one forward pass; ids[begin:end] are the chain's tokens first, first + 1, ...

    `answer` is the place of the answer's own tokens in ids, if the row ends with an answer.
    """

    ids: list[int]
    begin: int
    end: int
    first: int
    answer: tuple[int, int] = (0, 0)


R = TypeVar("R", bound=Row)


class TargetScorer(ABC):
    """What the target model's scorers share: the model, its prompts, and what a chain ends with."""

    name: str

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
        spans = [self.segment(chain.chain) for chain in window]
        scores = self.span_scores(window, spans)
        return [
            build_scored_chain(chain, self.name, own, values)
            for chain, own, values in zip(window, spans, scores, strict=True)
        ]

    @abstractmethod
    def span_scores(self, window: Sequence[ChainText], spans: Sequence[Spans]) -> Sequence[Scores]:
        """One score for each span of each chain."""

    def prompt_ids(self, chain: ChainText) -> list[int]:
        """The tokens of the prompt that the chain answers."""
        return encode_prompt(self.tokenizer, build_prompt(self.tokenizer, chain.question, self.prompts))

    def closing(self, chain: ChainText) -> tuple[list[int], slice]:
        """The tokens of the closing phrase with the answer, and which of them are the answer's own.

        Raises:
            InputError: the chain has no answer.
        """
        if not chain.answer.strip():
            raise InputError(
                f"chain '{chain.id}' has no answer, and {self.name} scores what leads to it; "
                "add it, or use another scorer"
            )
        tail = answer_tail(chain.answer)
        encoded = self.tokenizer(tail, add_special_tokens=False, return_offsets_mapping=True)
        start = tail.rindex(chain.answer)
        stop = start + len(chain.answer)
        own = [index for index, (a, b) in enumerate(encoded["offset_mapping"]) if a < stop and b > max(a, start)]
        return encoded["input_ids"], slice(own[0], own[-1] + 1)


class TokenScorer(TargetScorer):
    """Scores of tokens that become scores of spans: chains -> rows -> token scores -> span scores."""

    over_spans = staticmethod(average_over_spans)  # how the tokens' scores become scores of spans

    def span_scores(self, window: Sequence[ChainText], spans: Sequence[Spans]) -> list[np.ndarray]:
        encoded = [self.tokenizer(c.chain, add_special_tokens=False, return_offsets_mapping=True) for c in window]
        values = self.token_scores(window, [chain["input_ids"] for chain in encoded])
        return [
            self.over_spans(own, tokens["offset_mapping"], scores)
            for own, tokens, scores in zip(spans, encoded, values, strict=True)
        ]

    @abstractmethod
    def token_scores(self, window: Sequence[ChainText], chains: list[list[int]]) -> list[np.ndarray]:
        """One score for each token of each chain."""

    def rows(self, chain: ChainText, before: list[int], ids: list[int], after: list[int]) -> list[Row]:
        """The row `before + ids + after` of one chain, or several rows if it exceeds the model's context.

        Each of several rows scores a part of the chain, and sees half a context of the chain before that part.

        Raises:
            InputError: `before` and `after` leave no room for the chain.
        """
        room = self.max_tokens - len(before) - len(after)
        if room < 2:
            raise InputError(
                f"chain '{chain.id}': its question and answer alone fill the model's context of {self.max_tokens} "
                "tokens; use another scorer, or leave the chain out"
            )
        rows: list[Row] = []
        first = 0
        while first < len(ids) or not rows:
            last = min(len(ids), first + (room if first == 0 else room - room // 2))  # tokens first to last are scored
            seen = max(0, last - room)  # tokens seen to last are in the row
            row = before + ids[seen:last] + after
            rows.append(Row(row, len(before) + first - seen, len(before) + last - seen, first))
            first = last
        return rows

    def run_rows(self, rows: Sequence[Sequence[R]], run: Callable[[list[R]], list[np.ndarray]]) -> list[np.ndarray]:
        """Call `run` on batches of the rows of all chains.

        Returns:
            For each chain its rows' results, one after the other.
        """
        flat = [row for parts in rows for row in parts]
        values = iter(self.batches.map([len(row.ids) for row in flat], lambda batch: run([flat[i] for i in batch])))
        return [np.concatenate([next(values) for _ in parts]) for parts in rows]

    def padded(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """The model's inputs for a batch of rows, padded on the right."""
        padded = self.tokenizer.pad({"input_ids": [row.ids for row in rows]}, padding_side="right", return_tensors="pt")
        return dict(padded.to(self.model.device))

    def answered_rows(self, window: Sequence[ChainText], chains: list[list[int]]) -> list[list[Row]]:
        """The rows of chains where they were generated, after the prompt with the question."""
        return [self.rows(chain, self.prompt_ids(chain), ids, []) for chain, ids in zip(window, chains, strict=True)]

    @torch.inference_mode()
    def predictions(self, rows: list[Row], measure: Measure) -> list[np.ndarray]:
        """`measure` of what the model predicts for each scored token, given all before it."""
        inputs = self.padded(rows)
        # Logits of the positions that predict scored tokens, and no others.
        first = min(row.begin for row in rows) - 1
        columns = torch.arange(first, inputs["input_ids"].shape[1] - 1, device=self.model.device)
        logits = self.model(**inputs, logits_to_keep=columns, use_cache=False).logits
        values = []
        for index, row in enumerate(rows):
            predicting = logits[index, row.begin - 1 - first : row.end - 1 - first]
            values.append(measure(predicting, row.ids[row.begin : row.end]).cpu().double().numpy())
        return values

    def log_probs(self, rows: Sequence[Sequence[Row]]) -> list[np.ndarray]:
        """log p of each scored token given all before it, in nats; one array a chain."""
        return self.run_rows(rows, partial(self.predictions, measure=token_log_probs))

    def entropies(self, window: Sequence[ChainText], chains: list[list[int]]) -> list[np.ndarray]:
        """The entropy of the model's prediction for each token of each chain, in nats."""
        return self.run_rows(self.answered_rows(window, chains), partial(self.predictions, measure=token_entropies))


class SelectiveContextScorer(TokenScorer):
    """The target model's own surprisal, I(x_i) = -log p(x_i | prompt, x_<i), in nats.

    A token that the model can predict is unimportant. The chain is scored where it was generated, after the
    prompt with the question; the paper's eq. 1 leaves the context of the first token open. One forward pass a
    chain.

    Source: Selective Context (arXiv:2310.06201); TokenSkip (arXiv:2502.12067), eq. 1.
    """

    name = "selective_context"

    def token_scores(self, window: Sequence[ChainText], chains: list[list[int]]) -> list[np.ndarray]:
        return [-values for values in self.log_probs(self.answered_rows(window, chains))]


class EntropyScorer(TokenScorer):
    """How uncertain the target model was: H_i = -sum_v p(v | prompt, x_<i) log p(v | prompt, x_<i), in nats.

    A token is unimportant if the model was sure what to write there. A span's score is the sum over its tokens. Every
    token belongs to exactly one span, so the spans of a step add up to the step's entropy. A chain takes one forward
    pass.

    Source: Step entropy (arXiv:2508.03346); `pruning.mode: steps` leaves out whole steps by their sums.
    """

    name = "entropy"
    over_spans = staticmethod(sum_over_spans)

    def token_scores(self, window: Sequence[ChainText], chains: list[list[int]]) -> list[np.ndarray]:
        return self.entropies(window, chains)


class CTSScorer(TokenScorer):
    """What question and answer add to a token: log p(x_i | c, x_<i) - log p(x_i | x_<i), in nats.

    A token that becomes likelier when the model sees the question and its answer is a token that leads to the
    answer. Two forward passes a chain, both by the target model.

    The paper leaves the form of c open: its c holds the answer, and its authors' script gives LongLLMLingua's
    condition_compare one text before the chain, with a blank line between them. Here c is the question, a blank
    line, `The final answer is: ...` and a blank line, as plain text without a chat template. Both sides begin
    with the tokenizer's start token.

    Source: Conditional Token Selection (arXiv:2505.17827); LongLLMLingua (arXiv:2310.06839), eq. 5.
    """

    name = "cts"

    def token_scores(self, window: Sequence[ChainText], chains: list[list[int]]) -> list[np.ndarray]:
        first = self.tokenizer.bos_token_id
        start = [self.tokenizer.eos_token_id if first is None else first]
        texts = [f"{chain.question}\n\n{answer_tail(chain.answer).strip()}\n\n" for chain in window]
        conditions = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        given = [self.rows(c, start + x, ids, []) for c, x, ids in zip(window, conditions, chains, strict=True)]
        alone = [self.rows(chain, start, ids, []) for chain, ids in zip(window, chains, strict=True)]
        values = self.log_probs([*given, *alone])
        return [a - b for a, b in zip(values[: len(window)], values[len(window) :], strict=True)]


def token_log_probs(logits: torch.Tensor, ids: list[int]) -> torch.Tensor:
    """Log-probability of ids[k] by logits[k] (N x vocabulary), in nats, a few hundred rows at a time."""
    wanted = torch.tensor(ids, device=logits.device, dtype=torch.long)
    parts = [
        part.float().log_softmax(-1).gather(1, chosen[:, None])[:, 0]
        for part, chosen in zip(logits.split(_COLUMNS), wanted.split(_COLUMNS), strict=True)
    ]
    return torch.cat(parts) if parts else logits.new_zeros(0).float()


def token_entropies(logits: torch.Tensor, ids: list[int]) -> torch.Tensor:
    """Entropy of each row of logits (N x vocabulary), in nats, a few hundred rows at a time. The ids play no part."""
    parts = [torch.special.entr(part.float().softmax(-1)).sum(-1) for part in logits.split(_COLUMNS)]
    return torch.cat(parts) if parts else logits.new_zeros(0).float()
