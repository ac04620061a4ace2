"""LLMLingua-2: a bidirectional token classifier that says which tokens to keep (TokenSkip's eq. 2)."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from tokenskip_lib.core.records import ChainText, InputError, ScoredChain
from tokenskip_lib.core.settings import ImportanceSettings, TargetSettings
from tokenskip_lib.models.batching import TokenBatches
from tokenskip_lib.models.devices import pick_device, pick_dtype
from tokenskip_lib.models.loading import find_model, from_pretrained, load_whole
from tokenskip_lib.pruning.spans import Segmenter, average_over_spans, build_scored_chain, segment

MAX_TOKENS = 512  # of one forward pass, special tokens among them: what the checkpoints were trained with
KEEP_NAMES = {
    "keep",
    "kept",
    "preserve",
    "retain",
    "true",
    "1",
}  # what a checkpoint may call the label of tokens to keep
DROP_NAMES = {"drop", "dropped", "discard", "delete", "remove", "skip", "false", "0"}


def load_classifier(
    settings: ImportanceSettings, target: TargetSettings, dtype: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The classifier that `importance.classifier` names and its tokenizer, on the target model's device.

    Raises:
        InputError: there is no such model, or it is no trained classifier with a label to keep (`keep_label`).
    """
    device = pick_device(target.device)
    name, revision = settings.classifier, settings.classifier_revision
    options: dict[str, Any] = {
        "setting": "importance.classifier",
        "cache_dir": target.cache_dir,
        "revision": revision,
    }
    tokenizer = from_pretrained(AutoTokenizer, name, **options)
    model = load_whole(
        AutoModelForTokenClassification, name, what="token classifier", dtype=pick_dtype(dtype, device), **options
    )
    # If config.json has `label2id` alone, transformers writes LABEL_0 and LABEL_1 over it.
    written, _ = PreTrainedConfig.get_config_dict(find_model(name, target.cache_dir, revision), revision=revision)
    model.config.label2id = written.get("label2id") or model.config.label2id
    keep_label(model, name)
    return model.to(device).eval(), tokenizer


def keep_label(model: PreTrainedModel, name: str) -> int:
    """Which of a classifier's two labels means "keep", by the labels' names in its config.

    If the names are LABEL_0 and LABEL_1, as in the published LLMLingua-2 checkpoints, it is 1.

    Args:
        name: what an error names.

    Raises:
        InputError: there are not two labels, or their names do not decide.
    """
    config = model.config
    if config.num_labels != 2:
        raise InputError(f"{name}: a classifier of {config.num_labels} labels; LLMLingua-2's have two, drop and keep")
    # Two tables name the labels; a checkpoint may have filled only one of them.
    pairs = [*(config.id2label or {}).items(), *((label, text) for text, label in (config.label2id or {}).items())]
    names = [{str(text).strip().lower() for index, text in pairs if int(index) == label} for label in (0, 1)]
    votes = {label for label in (0, 1) if names[label] & KEEP_NAMES or names[1 - label] & DROP_NAMES}
    if not votes and names == [{"label_0"}, {"label_1"}]:
        return 1
    if len(votes) != 1:
        raise InputError(
            f"{name}: its labels {' and '.join('/'.join(sorted(label)) for label in names)} do not say which one means "
            "keep; call it 'keep' in id2label and label2id of its config.json"
        )
    return votes.pop()


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens before and after a text, by the tokenizer's own template.

    If the template has none, these are its classifier and separator tokens if it has both, as in LLMLingua-2's
    training; else none.
    """
    encoded = tokenizer("a", return_special_tokens_mask=True)
    ids, special = encoded["input_ids"], encoded["special_tokens_mask"]
    before, after = special.index(0), special[::-1].index(0)
    if before or after:
        return ids[:before], ids[len(ids) - after :]
    around = tokenizer.cls_token_id, tokenizer.sep_token_id
    return ([], []) if None in around else ([around[0]], [around[1]])


def longest_input(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens of one forward pass: 512, as LLMLingua-2 was trained, or fewer if the checkpoint takes fewer.

    A model for longer inputs (ModernBERT: 8192) gets 512 as well.
    """
    positions = getattr(model.config, "max_position_embeddings", None) or MAX_TOKENS
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            positions -= module.padding_idx + 1  # RoBERTa's family begins to count after the padding token
    return min(MAX_TOKENS, tokenizer.model_max_length, positions)


@torch.inference_mode()
def keep_probabilities(
    model: PreTrainedModel,
    rows: Sequence[list[int]],
    *,
    keep: int,
    pad_id: int,
    hidden: Sequence[Sequence[int]] = (),
    width: int = 0,
) -> list[torch.Tensor]:
    """P(keep) of every token of a batch of rows, float32 on the CPU, one tensor a row.

    Args:
        rows: token ids, special tokens among them.
        keep: the label that means keep.
        pad_id: fills shorter rows; the model does not see it.
        hidden: for each row, further positions that the model must not see; none by default.
        width: the least number of tokens that a row is padded to.
    """
    width = max(width, *map(len, rows))
    ids = torch.tensor([[*row, *[pad_id] * (width - len(row))] for row in rows])
    mask = torch.arange(width)[None] < torch.tensor([len(row) for row in rows])[:, None]
    for index, positions in enumerate(hidden):
        mask[index, list(positions)] = False
    logits = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).logits
    probabilities = logits.float().softmax(-1)[..., keep].cpu()  # in bfloat16 all above 0.998 would be 1
    return [probabilities[index, : len(row)] for index, row in enumerate(rows)]


class LLMLingua2Scorer:
    """P(keep | the whole text), by a classifier distilled from GPT-4's compressions.

    The classifier is any token classifier with a label to keep: XLM-R, mBERT, MobileBERT, ModernBERT, mmBERT. What
    differs between these is read from the checkpoint: the label, the special tokens, the longest input.

    A long chain is cut at sentence ends into chunks, of at most 510 tokens if two special tokens are around them.
    Every token is scored, with one forward pass a chunk. The package llmlingua 0.2.2 itself gives XLM-R an unknown
    token at both ends; `llmlingua_mode` repeats that.

    Source: LLMLingua-2 (arXiv:2403.12968); TokenSkip (arXiv:2502.12067), eq. 2, the paper's choice.
    """

    name = "llmlingua2"

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_tokens: int | None = None,
        segmenter: Segmenter = segment,
    ):
        """`batch_tokens`: padded tokens that a forward pass may hold, see TokenBatches."""
        self.model = model
        self.tokenizer = tokenizer
        self.batches = TokenBatches(batch_tokens, model.device)
        self.segment = segmenter
        self.keep = keep_label(model, model.name_or_path or "the classifier")
        self.before, self.after = special_tokens(tokenizer)
        self.chunk_tokens = longest_input(model, tokenizer) - len(self.before) - len(self.after)
        self.pad_id = tokenizer.pad_token_id or 0  # without one, any token: the model does not see it

    def score(self, window: Sequence[ChainText]) -> list[ScoredChain]:
        if not window:
            return []
        texts = [chain.chain for chain in window]
        encoded = self.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        # Cut every chain into chunks, and score the chunks of all chains together.
        chunks = [
            (index, begin, end)
            for index, text in enumerate(texts)
            for begin, end in sentence_chunks(text, offsets[index], self.chunk_tokens)
        ]
        rows = [[*self.before, *ids[index][begin:end], *self.after] for index, begin, end in chunks]
        values = self.batches.map(
            [len(row) for row in rows],
            lambda batch: keep_probabilities(self.model, [rows[i] for i in batch], keep=self.keep, pad_id=self.pad_id),
        )
        # Put each chain's chunks together again, and average over its spans.
        probabilities: list[list[float]] = [[] for _ in window]
        for (index, _, _), value in zip(chunks, values, strict=True):
            probabilities[index] += value[len(self.before) : len(value) - len(self.after)].tolist()
        scored = []
        for index, chain in enumerate(window):
            spans = self.segment(chain.chain)
            means = average_over_spans(spans, offsets[index], probabilities[index])
            scored.append(build_scored_chain(chain, self.name, spans, means))
        return scored


def sentence_chunks(text: str, offsets: Sequence[tuple[int, int]], size: int) -> list[tuple[int, int]]:
    """Cut T tokens into runs [begin, end) of at most `size`, so that every token is in one run.

    A run ends after a full stop or a line break if it has one. If it has none, it ends before a word, and if it
    has no second word, anywhere.

    Example:
        >>> sentence_chunks("One. Two three", [(0, 3), (3, 4), (4, 8), (8, 14)], 3)
        [(0, 2), (2, 4)]
    """
    runs, begin = [], 0
    while begin < len(offsets):
        end = min(begin + size, len(offsets))
        if end < len(offsets):
            between = [(i, text[offsets[i - 1][0] : offsets[i][0]]) for i in range(begin + 1, end + 1)]
            sentences = [i for i, piece in between if "\n" in piece or piece.rstrip().endswith(".")]
            words = [i for i, piece in between if piece[-1:].isspace() or text[offsets[i][0]].isspace()]
            end = max(sentences, default=max(words, default=end))
        runs.append((begin, end))
        begin = end
    return runs
