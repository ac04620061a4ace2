"""Counting a text's tokens with the target model's tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def batch_token_counter(tokenizer: PreTrainedTokenizerBase) -> Callable[[Sequence[str]], list[int]]:
    """texts -> number of the target model's tokens in each, without any special token."""
    if not tokenizer.is_fast:
        return lambda texts: [len(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]

    def count(texts: Sequence[str]) -> list[int]:
        # The Rust tokenizer itself: the wrapper would build Python lists of every id.
        backend = tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        return [len(encoding) for encoding in backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    return count


def token_counter(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], int]:
    """text -> number of the target model's tokens, without any special token."""
    count = batch_token_counter(tokenizer)
    return lambda text: count([text])[0]


CountTokens = Callable[[Sequence[str]], Sequence[int]]  # texts -> the target model's tokens in each
