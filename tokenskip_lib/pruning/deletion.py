"""Importance measured exactly: parts of a chain are left out, and the target model says what its answer loses.

A version of a chain is the chain without some of its spans, written as pruning writes it. All versions begin alike up
to where the first span is missing, so they are packed and that beginning is computed once.
"""

from collections.abc import Sequence

import numpy as np
import torch

from tokenskip_lib.core.progress import tell
from tokenskip_lib.core.records import ChainText, DeletionCurve, InputError, ScoredChain
from tokenskip_lib.models.batching import common_length
from tokenskip_lib.models.packing import EncodedRow, attending_in_rows, pack_rows
from tokenskip_lib.pruning.layout import Layout
from tokenskip_lib.pruning.spans import Spans, build_scored_chain
from tokenskip_lib.pruning.target_scorers import TargetScorer, token_log_probs

MOST_SPANS = 64  # of a chain for greedy deletion, whose time grows with the third power of the spans


class LeaveOneOutScorer(TargetScorer):
    """What the answer loses without a span: the drop in log p(answer | question, chain).

    The log-probability is that of the answer's own tokens in the closing phrase, in nats. A span that the answer can do
    without has a score near 0, one that misled the model a negative one. One row a span.

    An answer can be copied from the last equation, so this undervalues the steps before it: see LeaveOneOutRestScorer.
    """

    name = "leave_one_out"

    def span_scores(self, window: Sequence[ChainText], spans: Sequence[Spans]) -> list[np.ndarray]:
        losses = []
        for chain, own in zip(window, spans, strict=True):
            losses.append(self._losses(chain, own) if own else np.zeros(0))
            tell(len(losses), len(window), "chains")
        return losses

    def answer_log_probs(self, chain: ChainText, texts: Sequence[str]) -> np.ndarray:
        """The answer's log-probability after each of several texts in place of the chain, in nats.

        Args:
            chain: its question and answer are used.
            texts: versions of one chain. Tokens that they share at the beginning are computed once.

        Raises:
            InputError: a text and its question exceed the model's context, or the chain has no answer.
        """
        tail, own = self.closing(chain)
        values = self._log_probs(chain, self._encode(texts), tail[: own.stop], last=own.stop - own.start)
        return np.array([value.sum() for value in values])

    def _losses(self, chain: ChainText, spans: Spans) -> np.ndarray:
        """What is lost without each span."""
        texts = _without_each(Layout(chain.chain, spans), np.arange(len(spans)))
        whole, *others = self.answer_log_probs(chain, [chain.chain, *texts])
        return whole - np.array(others)

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        return self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]

    def _log_probs(
        self, chain: ChainText, versions: Sequence[list[int]], tail: list[int], *, last: int | None = None
    ) -> list[np.ndarray]:
        """log p of the tokens of each version and of the `tail` after it, from where it departs from the first version.

        Args:
            last: how many tokens are wanted of each, the last ones; None for all. The first version's begin at its own
                begin.
        """
        prompt = self.prompt_ids(chain)
        shared = [common_length([versions[0], ids]) for ids in versions]
        shared[0] = 0
        rows = [
            EncodedRow(chain.id, prompt + ids[:length], ids[length:] + tail)
            for ids, length in zip(versions, shared, strict=True)
        ]
        if (longest := max(map(len, rows))) > self.max_tokens:
            raise InputError(
                f"chain '{chain.id}': with question and answer it has {longest} tokens, and the model's context has "
                f"{self.max_tokens}; use a scorer that does not need the answer, or leave the chain out"
            )
        with attending_in_rows(self.model):
            lengths = [len(row.completion) for row in rows]
            return self.batches.map(lengths, lambda batch: self._packed_log_probs([rows[i] for i in batch], last))

    @torch.inference_mode()
    def _packed_log_probs(self, rows: list[EncodedRow], last: int | None) -> list[np.ndarray]:
        """log p of every row's completion tokens, or of the last of them, all rows in one packed sequence."""
        order = sorted(range(len(rows)), key=lambda index: rows[index].prompt)  # that of the packed rows
        packed = {name: tensor.to(self.model.device) for name, tensor in pack_rows(rows).items()}
        predicted = packed.pop("labels")[0][packed["logits_to_keep"]]  # the completions' tokens, row after row
        lengths = [len(rows[index].completion) for index in order]
        if last is not None:
            ends = np.cumsum(lengths)
            wanted = torch.as_tensor(np.concatenate([np.arange(end - last, end) for end in ends]))
            wanted = wanted.to(self.model.device)
            packed["logits_to_keep"], predicted = packed["logits_to_keep"][wanted], predicted[wanted]
            lengths = [last] * len(rows)
        logits = self.model(**packed, use_cache=False).logits[0]
        values = token_log_probs(logits, predicted.tolist()).cpu().double().numpy()
        parts = dict(zip(order, np.split(values, np.cumsum(lengths)[:-1]), strict=True))
        return [parts[index] for index in range(len(rows))]


class LeaveOneOutRestScorer(LeaveOneOutScorer):
    """What everything after a span loses without it: the drop in log p(rest of the chain, answer), in nats.

    The token after the gap does not count. It is surprising because a word is missing before it, whatever that word
    said. Tokens that are written otherwise next to the gap do not count either.
    """

    name = "leave_one_out_rest"

    def score_both(self, window: Sequence[ChainText]) -> list[ScoredChain]:
        """Each chain by LeaveOneOutScorer and by this scorer, from the same forward passes."""
        scored = []
        for number, chain in enumerate(window, 1):
            spans = self.segment(chain.chain)
            answer, rest = self._both(chain, spans) if spans else (np.zeros(0), np.zeros(0))
            scored.append(build_scored_chain(chain, LeaveOneOutScorer.name, spans, answer))
            scored.append(build_scored_chain(chain, self.name, spans, rest))
            tell(number, len(window), "chains")
        return scored

    def _losses(self, chain: ChainText, spans: Spans) -> np.ndarray:
        return self._both(chain, spans)[1]

    def _both(self, chain: ChainText, spans: Spans) -> tuple[np.ndarray, np.ndarray]:
        """What the answer, and what everything after the gap, loses without each span."""
        tail, own = self.closing(chain)
        texts = _without_each(Layout(chain.chain, spans), np.arange(len(spans)))
        whole, *versions = self._encode([chain.chain, *texts])
        before, *after = self._log_probs(chain, [whole, *versions], tail)
        counted = np.zeros(len(tail), dtype=bool)
        counted[own] = True
        answer, losses = [], []
        for ids, values in zip(versions, after, strict=True):
            answer.append((before[-len(tail) :] - values[-len(tail) :])[own].sum())
            new = len(values) - len(tail)  # of the version's own tokens, all after the gap
            same = min(common_length([whole[::-1], ids[::-1]]), new)  # of them, those that the whole chain ends with
            rest = np.concatenate([np.ones(same, dtype=bool), counted])
            if same == new > 0:
                rest[0] = False  # the token after the gap
            losses.append((before[-len(rest) :] - values[-len(rest) :])[rest].sum())
        return np.array(answer), np.array(losses)


def greedy_deletion(scorer: LeaveOneOutScorer, chain: ChainText) -> DeletionCurve:
    """Leave out span after span, each time the one that costs the answer least.

    The curve of log p(answer) over what is left bounds from below what a chain of that length can keep: a scorer is
    judged by its distance from it. Of spans that cost the same, the first goes.

    Args:
        scorer: the target model, ready to score.

    Raises:
        InputError: the chain has more than MOST_SPANS spans, or what `answer_log_probs` raises.
    """
    spans = scorer.segment(chain.chain)
    if len(spans) > MOST_SPANS:
        raise InputError(
            f"chain '{chain.id}' has {len(spans)} spans; greedy deletion takes chains of {MOST_SPANS} at most"
        )
    layout, kept = Layout(chain.chain, spans), np.arange(len(spans))
    removed: list[int] = []
    texts = [chain.chain]
    log_probs = scorer.answer_log_probs(chain, texts).tolist()
    while len(kept) > 1:
        versions = _without_each(layout, kept)
        # The present text comes first: the versions share their beginnings with it.
        values = scorer.answer_log_probs(chain, [texts[-1], *versions])[1:]
        best = int(np.argmax(values))
        removed.append(int(kept[best]))
        texts.append(versions[best])
        log_probs.append(float(values[best]))
        kept = np.delete(kept, best)
    return DeletionCurve(id=chain.id, removed=removed, texts=texts, answer_log_probs=log_probs)


def _without_each(layout: Layout, kept: np.ndarray) -> list[str]:
    """The kept spans written down without each of them in turn; a single span leaves an empty text."""
    return [layout.join(np.delete(kept, place)) if len(kept) > 1 else "" for place in range(len(kept))]
