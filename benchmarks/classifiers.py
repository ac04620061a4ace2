"""Tiny random LLMLingua-2 checkpoints of both families, with tokenizers trained here; nothing is downloaded."""

import gzip
import hashlib
from importlib import resources
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    BertConfig,
    BertForTokenClassification,
    PreTrainedTokenizerFast,
    XLMRobertaConfig,
    XLMRobertaForTokenClassification,
)

# llmlingua reads the family off the path, so a folder must be called what the published model is.
NAMES = {"xlm-roberta": "xlm-roberta-large", "bert": "bert-base-multilingual-cased"}


def write_classifier(family: str, folder: Path, corpus: list[str], *, vocabulary: int = 600, **sizes: int) -> Path:
    """Save a random classifier and its tokenizer under the name its family is published by.

    Args:
        sizes: settings of the model's config, in place of the tiny ones.
    """
    tokenizer = (_unigram if family == "xlm-roberta" else _wordpiece)(corpus, vocabulary)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 514,
        "initializer_range": 0.3,
        **sizes,
    }
    config_class, model_class = {
        "xlm-roberta": (XLMRobertaConfig, XLMRobertaForTokenClassification),
        "bert": (BertConfig, BertForTokenClassification),
    }[family]
    config = config_class(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, num_labels=2, **sizes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = model_class(config).eval()
    path = folder / f"llmlingua-2-{NAMES[family]}"
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def place_gpt_vocabulary(folder: Path) -> None:
    """Put GPT-3.5's vocabulary where tiktoken looks for its own download of it (TIKTOKEN_CACHE_DIR)."""
    packed = (resources.files("bpe_openai") / "data" / "cl100k_base.tiktoken.gz").read_bytes()
    url = "https://openaipublic.blob.core.windows.net/encodings/cl100k_base.tiktoken"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / hashlib.sha1(url.encode()).hexdigest()).write_bytes(gzip.decompress(packed))


def _unigram(corpus: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=vocabulary, special_tokens=[*special, "<mask>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        mask_token="<mask>",
    )


def _wordpiece(corpus: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=vocabulary, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="[UNK]",
        pad_token="[PAD]",
        mask_token="[MASK]",
    )
