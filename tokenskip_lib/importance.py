"""Importance: how much each part of a chain of thought matters, one class per published score.

Scores live on character spans of the chain's text, so that any scorer's tokens meet the target
model's tokens: a word, a number or a run of one symbol is one span, whitespace is none.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tokenskip_lib.config import PromptSettings, nearest
from tokenskip_lib.prompts import build_prompt, encode_prompt
from tokenskip_lib.records import Chain, InputError, ScoredChain

SCORERS = ["selective_context", "random"]
WINDOW = 256  # chains sorted by length and scored together

_SPAN = re.compile(
    r"""
    \\[A-Za-z]+                                            # a LaTeX command
    | (?: \d+ (?: [.,] \d+ )* | [^\W\d_] (?: ['’] (?=[^\W\d_]) )? )+  # a word or a number, whole: 3.5  1,200  don't  2x
    | ([^\w\s]|_) \1*                                      # a symbol, or a run of one: ... ** =
    | \S
    """,
    re.VERBOSE,
)

# Kinds of span, for looking at what a scorer keeps.
_CONNECTIVE = re.compile(
    "a|an|and|are|as|at|be|because|but|by|can|each|every|first|following|for|from|had|has|have|he|her|his|how|if|in|"
    "into|is|it|its|left|more|next|now|of|on|or|per|she|since|so|that|the|their|them|then|there|therefore|these|they|"
    "this|thus|to|total|was|we|were|when|which|while|will|with|would|you|your",
    re.IGNORECASE,
)


def segment(text: str) -> list[tuple[int, int]]:
    """Character spans [start, end) of a text, in order; everything but whitespace is in one."""
    return [match.span() for match in _SPAN.finditer(text)]


def span_kind(text: str) -> str:
    """What kind of thing a span is: number, operator, connective, name, word or punctuation."""
    if any(character.isdigit() for character in text):
        return "number"
    if text[0] in "+-−*/×÷=<>%^" or text in ("x", "\\times", "\\cdot", "\\frac", "\\div"):
        return "operator"
    if _CONNECTIVE.fullmatch(text):
        return "connective"
    if text[0].isalpha() or text[0] == "\\":
        return "name" if text[0].isupper() else "word"
    return "punctuation"


def average_over_spans(
    spans: Sequence[tuple[int, int]], offsets: Sequence[tuple[int, int]], scores: Sequence[float]
) -> list[float]:
    """The mean score of the tokens that overlap each span.

    Args:
        spans: S character spans, ascending.
        offsets: character span of each of T tokens, ascending.
        scores: T scores.

    Returns:
        S scores; a token that straddles two spans counts for both, one of whitespace for none.
    """
    means, first = [], 0
    for start, end in spans:
        while first < len(offsets) and offsets[first][1] <= start:
            first += 1
        index, found = first, []
        while index < len(offsets) and offsets[index][0] < end:
            if offsets[index][1] > start:
                found.append(scores[index])
            index += 1
        if not found:
            raise ValueError(f"no token covers characters {start}-{end}")
        means.append(float(np.mean(found)))
    return means


class Scorer(Protocol):
    """What every scorer does: chains in, scored chains out, in the same order.

    `score` yields windows of chains; a window depends on the chains given alone, so the same chains
    get the same scores in a resumed run.
    """

    name: str

    def score(self, window: Sequence[Chain]) -> list[ScoredChain]: ...


def windows(chains: Sequence[Chain]) -> Iterator[Sequence[Chain]]:
    """The chains in runs of WINDOW, in order."""
    for start in range(0, len(chains), WINDOW):
        yield chains[start : start + WINDOW]


class RandomScorer:
    """The control: uniform scores in [0, 1), the same for the same chain id and seed."""

    name = "random"

    def __init__(self, seed: int):
        self.seed = seed

    def score(self, window: Sequence[Chain]) -> list[ScoredChain]:
        scored = []
        for chain in window:
            spans = segment(chain.chain)
            digest = hashlib.sha256(f"{self.seed}:{chain.id}".encode()).digest()
            values = np.random.default_rng(int.from_bytes(digest[:8], "big")).random(len(spans))
            scored.append(_scored(chain, self.name, spans, values.tolist()))
        return scored


class SelectiveContextScorer:
    """The target model's own surprisal, I(x_i) = -log p(x_i | prompt, x_<i), in nats.

    A token that the model can predict is unimportant. The chain is scored where it was generated:
    after the prompt with the question (the paper's eq. 1 leaves the context of the first token
    open). A span's importance is the mean over its tokens.

    Source: Selective Context (Li et al., 2023); TokenSkip (arXiv:2502.12067), eq. 1.
    """

    name = "selective_context"

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: PromptSettings,
        *,
        batch_tokens: int = 2048,
    ):
        """`batch_tokens`: padded tokens a forward pass may hold."""
        self.model = model
        self.tokenizer = tokenizer
        self.prompts = prompts
        self.batch_tokens = batch_tokens

    def score(self, window: Sequence[Chain]) -> list[ScoredChain]:
        prompts = [
            encode_prompt(self.tokenizer, build_prompt(self.tokenizer, c.question, self.prompts)) for c in window
        ]
        encoded = [self.tokenizer(c.chain, add_special_tokens=False, return_offsets_mapping=True) for c in window]
        rows = [(prompt, chain["input_ids"]) for prompt, chain in zip(prompts, encoded, strict=True)]
        surprisal: dict[int, list[float]] = {}
        for batch in self._batches(rows):
            surprisal.update(zip(batch, self._surprisal([rows[index] for index in batch]), strict=True))
        scored = []
        for index, chain in enumerate(window):
            spans = segment(chain.chain)
            means = average_over_spans(spans, encoded[index]["offset_mapping"], surprisal[index])
            scored.append(_scored(chain, self.name, spans, means))
        return scored

    def _batches(self, rows: list[tuple[list[int], list[int]]]) -> Iterator[list[int]]:
        lengths = [len(prompt) + len(chain) for prompt, chain in rows]
        batch: list[int] = []
        for index in sorted(range(len(rows)), key=lambda i: (lengths[i], i)):
            if batch and lengths[index] * (len(batch) + 1) > self.batch_tokens:
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch

    @torch.inference_mode()
    def _surprisal(self, rows: list[tuple[list[int], list[int]]]) -> list[list[float]]:
        full = [prompt + chain for prompt, chain in rows]
        inputs = self.tokenizer.pad({"input_ids": full}, padding_side="right", return_tensors="pt").to(
            self.model.device
        )
        first = min(len(prompt) for prompt, _ in rows) - 1
        columns = torch.arange(first, inputs["input_ids"].shape[1] - 1, device=self.model.device)
        logits = self.model(**inputs, logits_to_keep=columns, use_cache=False).logits
        values = []
        for row, (prompt, chain) in enumerate(rows):
            begin = len(prompt) - 1 - first  # the position that predicts the chain's first token
            log_probs = logits[row, begin : begin + len(chain)].float().log_softmax(-1)
            ids = torch.tensor(chain, device=log_probs.device)
            values.append((-log_probs.gather(1, ids[:, None])[:, 0]).tolist())
        return values


def check_scorers(names: Sequence[str]) -> None:
    """Raise InputError for the first name that is no scorer."""
    for name in names:
        if name not in SCORERS:
            raise InputError(f"unknown scorer '{name}'{nearest(name, SCORERS)}")


def build_scorer(
    name: str,
    *,
    model: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase,
    prompts: PromptSettings,
    seed: int,
) -> Scorer:
    """A scorer by its name in a profile.

    Raises:
        InputError: unknown name.
    """
    check_scorers([name])
    if name == "random":
        return RandomScorer(seed)
    return SelectiveContextScorer(model, tokenizer, prompts)


def _scored(chain: Chain, scorer: str, spans: list[tuple[int, int]], importance: Sequence[float]) -> ScoredChain:
    rounded = [round(value, 6) for value in importance]
    return ScoredChain(id=chain.id, scorer=scorer, text=chain.chain, spans=spans, importance=rounded)
