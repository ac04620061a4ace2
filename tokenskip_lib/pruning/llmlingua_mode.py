"""Pruning byte for byte as llmlingua 0.2.2 does (PromptCompressor.compress_prompt, LLMLingua-2 in float32).

This mode repeats published runs, with llmlingua's habits:
- the text is written anew from word pieces: line breaks and some spaces change, and chunks are joined with nothing
  between them;
- XLM-R gets BERT's special tokens;
- ratios are counted in GPT-3.5 tokens, for each chunk of 510 tokens.
Where llmlingua raises, this raises InputError. Where llmlingua cuts tokens off, `tokens_cut` counts them. The default
mode (`prune`) does neither.

One thing differs. Each chunk goes through the model once for all ratios, in batches without the padding to 512.
Sums of another shape differ in their last bits. So if two words are closer to a threshold than that, the chain is
scored once more in llmlingua's own shape, and the bits are the same.
"""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tokenskip_lib.core.records import ChainText, InputError, PrunedChain
from tokenskip_lib.models.batching import TokenBatches
from tokenskip_lib.models.tokens import CountTokens
from tokenskip_lib.pruning.llmlingua2_scorer import MAX_TOKENS, keep_label, keep_probabilities
from tokenskip_lib.pruning.llmlingua_reader import Chunk, LLMLinguaReader, Reading, count_gpt_tokens

FAMILIES = ("xlm-roberta", "bert")  # config.model_type of XLM-R and mBERT, the only ones that llmlingua reads
KEEP = 1  # the label that llmlingua keeps
LLMLINGUA_BATCH = 50  # chunks that llmlingua pads to 512 tokens and scores together
NEAR_TIE = 2e-6  # a float32 score differed by 1e-6 at most between two shapes, where we looked
_SEED = 42  # llmlingua draws the embeddings of its placeholder tokens with it


class LLMLinguaPruner:
    """Texts to their compressions at any number of ratios, from one scoring.

    Args:
        model: a float32 LLMLingua-2 classifier. Like llmlingua, this adds 100 placeholder tokens to it
            and to its tokenizer.
        force_tokens, force_reserve_digit, drop_consecutive: llmlingua's options of these names.
        batch_tokens: padded tokens that a forward pass may hold, see TokenBatches.

    Raises:
        InputError: llmlingua does not read this classifier, or there are too many forced tokens.
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
        family, name = model.config.model_type, "pruning.mode llmlingua"
        if family not in FAMILIES:
            raise InputError(f"{name}: llmlingua reads XLM-R and mBERT alone, no '{family}' model; use mode: spans")
        if keep_label(model, name) != KEEP:
            raise InputError(f"{name}: llmlingua keeps label {KEEP}, which means drop here; use mode: spans")
        self.model = model
        self.tokenizer = tokenizer
        self.drop_consecutive = drop_consecutive
        self.batches = TokenBatches(batch_tokens, model.device)
        self.reader = LLMLinguaReader(
            tokenizer,
            is_bert=model.config.model_type == "bert",
            force_tokens=force_tokens,
            force_reserve_digit=force_reserve_digit,
        )
        with torch.random.fork_rng():  # so that nobody's random numbers depend on this
            torch.manual_seed(_SEED)
            model.resize_token_embeddings(len(tokenizer))

    def prune(
        self, chains: Sequence[ChainText], ratios: Sequence[float], *, count_tokens: CountTokens
    ) -> list[PrunedChain]:
        """Every chain at every ratio, chains in order, ratios within each. `kept` is None.

        Raises:
            InputError: a chain on which llmlingua fails.
        """
        originals = count_tokens([chain.chain.strip() for chain in chains])
        readings = self.read(chains)
        texts = [self.compress(reading, ratio) for reading in readings for ratio in ratios]
        counted = iter(zip(texts, count_tokens([text.strip() for text in texts]), strict=True))
        pruned = []
        for reading, original in zip(readings, originals, strict=True):
            for ratio in ratios:
                text, tokens = next(counted)
                pruned.append(
                    PrunedChain(
                        id=reading.chain.id,
                        scorer=self.name,
                        ratio=ratio,
                        text=text,
                        kept=None,
                        tokens=tokens,
                        original_tokens=original,
                        tokens_cut=reading.cut,
                    )
                )
        return pruned

    def read(self, chains: Sequence[ChainText]) -> list[Reading]:
        """The scored chunks of every chain, from one forward pass a chunk.

        Raises:
            InputError: a chain on which llmlingua fails.
        """
        readings = [self.reader.read(chain) for chain in chains]
        # The chunks of all chains share batches.
        rows = [row for reading in readings for row in reading.rows]
        hidden = [positions for reading in readings for positions in reading.hidden]
        pad_id = self.reader.pad_id

        def score(batch: list[int]) -> list[torch.Tensor]:
            return keep_probabilities(
                self.model, [rows[i] for i in batch], keep=KEEP, pad_id=pad_id, hidden=[hidden[i] for i in batch]
            )

        values = iter(self.batches.map([len(row) for row in rows], score))
        for reading in readings:
            reading.chunks = self.reader.words(reading, [next(values).numpy() for _ in reading.rows])
        return readings

    def compress(self, reading: Reading, ratio: float) -> str:
        """What llmlingua's compress_prompt(text, rate=ratio) returns for this chain.

        Raises:
            InputError: llmlingua fails on this chain.
        """
        reduction = max(0, 1 - ratio)
        if reduction <= 0:
            text = "".join(self.reader.without_placeholders(part) for part in reading.texts)
        else:
            inexact = self.model.dtype == torch.float32 and not reading.exact  # in bfloat16 the bytes differ anyway
            if inexact and any(self._has_near_tie(chunk, reduction) for chunk in reading.chunks):
                self._score_as_llmlingua(reading)
            text = "".join(self._compress_chunk(chunk, reduction) for chunk in reading.chunks)
        count_gpt_tokens(text)  # llmlingua counts its output, and fails on GPT's special tokens in it
        return text

    def _score_as_llmlingua(self, reading: Reading) -> None:
        """Score a chain's chunks again in llmlingua's batches, padded to 512, for the same bits."""
        values: list[torch.Tensor] = []
        for start in range(0, len(reading.rows), LLMLINGUA_BATCH):
            rows, hidden = (part[start : start + LLMLINGUA_BATCH] for part in (reading.rows, reading.hidden))
            values += keep_probabilities(
                self.model, rows, keep=KEEP, pad_id=self.reader.pad_id, hidden=hidden, width=MAX_TOKENS
            )
        reading.chunks = self.reader.words(reading, [value.numpy() for value in values])
        reading.exact = True

    def _has_near_tie(self, chunk: Chunk, reduction: float) -> bool:
        """Whether two words are so near to a threshold that sums of another shape could change what is kept."""
        if chunk.failure:
            return False
        scores = self._without_repeats(chunk, reduction) if self.drop_consecutive else chunk.scores
        thresholds = [np.percentile(chunk.scores, int(100 * reduction))] if self.drop_consecutive else []
        values = np.sort([score for score in chunk.scores if score != 1.0])  # a forced 1.0 is one in any shape
        for threshold in [*thresholds, self._threshold(chunk, scores, reduction)]:
            # The last word skipped and the first kept. If the former is the threshold, the one before it too.
            first = np.searchsorted(values, threshold, side="right")
            begin = max(0, first - 1 - (first > 1 and values[first - 1] == threshold))
            if (np.diff(values[begin : first + 1]) < NEAR_TIE).any():
                return True
        return False

    def _compress_chunk(self, chunk: Chunk, reduction: float) -> str:
        if chunk.failure:
            raise InputError(f"{chunk.failure}, on which llmlingua fails; use pruning.mode: spans")
        # Which words exceed the threshold. A threshold of 1.0 keeps the forced words.
        scores = self._without_repeats(chunk, reduction) if self.drop_consecutive else chunk.scores
        values, threshold = np.asarray(scores), self._threshold(chunk, scores, reduction)
        keep = (values > threshold) | ((threshold == 1.0) & (values == threshold))
        kept: list[str] = []
        for index in keep.nonzero()[0]:
            word = chunk.words[index]
            repeated = self.drop_consecutive and word in self.reader.force_tokens and kept and kept[-1] == word
            if not repeated:
                kept.append(word)
        return self.tokenizer.convert_tokens_to_string(kept)

    def _threshold(self, chunk: Chunk, scores: Sequence[float], reduction: float) -> float:
        """The score that a word must exceed: a percentile over GPT-3.5's tokens of the words."""
        counts = [count_gpt_tokens(word) for word in chunk.words]
        return np.percentile(np.repeat(np.asarray(scores), counts), int(100 * reduction + 1))

    def _without_repeats(self, chunk: Chunk, reduction: float) -> list[float]:
        """The scores, with 0 for a forced word if no word is kept between it and the same word before it."""
        scores = list(chunk.scores)
        threshold = np.percentile(scores, int(100 * reduction))
        between, previous = False, None
        for index, word in enumerate(chunk.words):
            if word in self.reader.force_tokens:
                if between:
                    between = False
                elif word == previous:
                    scores[index] = 0.0
                previous = word
            else:
                between |= bool(scores[index] > threshold)
        return scores
