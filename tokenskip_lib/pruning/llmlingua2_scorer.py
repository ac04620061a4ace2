"""LLMLingua-2: a bidirectional token classifier that says which tokens to keep (TokenSkip's eq. 2)."""

from collections.abc import Sequence

import torch
from transformers import AutoModelForTokenClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from tokenskip_lib.core.records import ChainText, InputError, ScoredChain
from tokenskip_lib.core.settings import ImportanceSettings, TargetSettings
from tokenskip_lib.models.batching import TokenBatches
from tokenskip_lib.models.loading import from_pretrained, pick_device, pick_dtype
from tokenskip_lib.pruning.spans import Segmenter, average_over_spans, build_scored_chain, segment

FAMILIES = {"xlm-roberta": "XLM-R", "bert": "mBERT"}  # config.model_type -> what the checkpoints are called
MAX_TOKENS = 512  # of one forward pass, two of them special: what the checkpoints were trained with
KEEP = 1  # the label of a token to keep


def load_classifier(
    settings: ImportanceSettings, target: TargetSettings, dtype: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The classifier that `importance.classifier` names and its tokenizer, on the target model's device.

    Raises:
        InputError: there is no such model, or it is no two-label token classifier of a known family.
    """
    device = pick_device(target.device)
    options = {"setting": "importance.classifier", "cache_dir": target.cache_dir}
    tokenizer = from_pretrained(AutoTokenizer, settings.classifier, **options)
    model = from_pretrained(
        AutoModelForTokenClassification,
        settings.classifier,
        dtype=pick_dtype(dtype, device),
        use_safetensors=True,
        **options,
    )
    check_classifier(model, settings.classifier)
    return model.to(device).eval(), tokenizer


def check_classifier(model: PreTrainedModel, name: str) -> None:
    """Raise InputError unless a model is an LLMLingua-2 classifier. Its config says of which family, not its path."""
    family, labels = model.config.model_type, model.config.num_labels
    if family not in FAMILIES:
        raise InputError(f"{name}: a '{family}' model; LLMLingua-2 classifiers are {' or '.join(FAMILIES)}")
    if labels != 2:
        raise InputError(f"{name}: a classifier of {labels} labels; LLMLingua-2's have two, drop and keep")


@torch.inference_mode()
def keep_probabilities(
    model: PreTrainedModel,
    rows: Sequence[list[int]],
    *,
    pad_id: int,
    hidden: Sequence[Sequence[int]] = (),
    width: int = 0,
) -> list[torch.Tensor]:
    """P(keep) of every token of a batch of rows, float32 on the CPU, one tensor a row.

    Args:
        rows: token ids, special tokens among them.
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
    probabilities = logits.float().softmax(-1)[..., KEEP].cpu()  # in bfloat16 all above 0.998 would be 1
    return [probabilities[index, : len(row)] for index, row in enumerate(rows)]


class LLMLingua2Scorer:
    """P(keep | the whole text), by a classifier distilled from GPT-4's compressions.

    A long chain is cut at sentence ends into chunks of at most 510 tokens. Each chunk is between the start
    and end tokens of the classifier's own family, as in its training. Every token is scored, with one forward
    pass a chunk. The package llmlingua 0.2.2 itself gives XLM-R an unknown token at both ends; `llmlingua_mode`
    repeats that.

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
            for begin, end in sentence_chunks(text, offsets[index], MAX_TOKENS - 2)
        ]
        start, stop = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        rows = [[start, *ids[index][begin:end], stop] for index, begin, end in chunks]
        values = self.batches.map(
            [len(row) for row in rows],
            lambda batch: keep_probabilities(self.model, [rows[i] for i in batch], pad_id=self.tokenizer.pad_token_id),
        )
        # Put each chain's chunks together again, and average over its spans.
        probabilities: list[list[float]] = [[] for _ in window]
        for (index, _, _), value in zip(chunks, values, strict=True):
            probabilities[index] += value[1:-1].tolist()
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
