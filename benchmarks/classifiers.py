"""Tiny random LLMLingua-2 checkpoints of every family, with tokenizers trained here; nothing is downloaded."""

import gzip
import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForTokenClassification,
    MobileBertConfig,
    MobileBertForTokenClassification,
    ModernBertConfig,
    ModernBertForTokenClassification,
    PreTrainedTokenizerFast,
    XLMRobertaConfig,
    XLMRobertaForTokenClassification,
)

# llmlingua reads the family off the path, so a folder must be called what the published model is.
NAMES = {"xlm-roberta": "xlm-roberta-large", "bert": "bert-base-multilingual-cased"}
BERT_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
OWN_SETTINGS = {
    "mobilebert": {"embedding_size": 32, "intra_bottleneck_size": 32, "initializer_range": 0.12},
    "modernbert": {"max_position_embeddings": 8192},
    "mmbert": {"max_position_embeddings": 8192},
}
FAMILIES = [*NAMES, "mobilebert", "modernbert", "mmbert"]  # mmBERT is ModernBERT with a tokenizer of Gemma's kind


def write_classifier(family: str, folder: Path, corpus: list[str], *, vocabulary: int = 600, **settings: Any) -> Path:
    """Save a random classifier and its tokenizer under the name its family is published by.

    Args:
        family: one of FAMILIES.
        settings: of the model's config, in place of the tiny ones.
    """
    train, config_class, model_class = {
        "xlm-roberta": (_unigram, XLMRobertaConfig, XLMRobertaForTokenClassification),
        "bert": (_wordpiece, BertConfig, BertForTokenClassification),
        "mobilebert": (_wordpiece, MobileBertConfig, MobileBertForTokenClassification),
        "modernbert": (_byte_level, ModernBertConfig, ModernBertForTokenClassification),
        "mmbert": (_gemma, ModernBertConfig, ModernBertForTokenClassification),
    }[family]
    tokenizer = train(corpus, vocabulary)
    settings = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 514,
        "initializer_range": 0.3,
        **OWN_SETTINGS.get(family, {}),
        **settings,
    }
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = model_class(config_class(vocab_size=len(tokenizer), **special, **settings)).eval()
    path = folder / f"llmlingua-2-{NAMES.get(family, family)}"
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def place_gpt_vocabulary(folder: Path) -> None:
    """Put GPT-3.5's vocabulary where tiktoken looks for its own download of it (TIKTOKEN_CACHE_DIR)."""
    packed = (resources.files("bpe_openai") / "data" / "cl100k_base.tiktoken.gz").read_bytes()
    url = "https://openaipublic.blob.core.windows.net/encodings/cl100k_base.tiktoken"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / hashlib.sha1(url.encode(), usedforsecurity=False).hexdigest()).write_bytes(gzip.decompress(packed))


def _unigram(corpus: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer.decoder = decoders.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=vocabulary, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return _framed(tokenizer, cls="<s>", sep="</s>", bos="<s>", eos="</s>", unk="<unk>", pad="<pad>", mask="<mask>")


def _wordpiece(corpus: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=vocabulary, special_tokens=BERT_TOKENS, show_progress=False)
    tokenizer.train_from_iterator(corpus, trainer)
    return _framed(tokenizer, cls="[CLS]", sep="[SEP]", unk="[UNK]", pad="[PAD]", mask="[MASK]")


def _byte_level(corpus: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=BERT_TOKENS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return _framed(tokenizer, cls="[CLS]", sep="[SEP]", unk="[UNK]", pad="[PAD]", mask="[MASK]")


def _gemma(corpus: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Spaces are letters, unknown characters are bytes, and <bos> and <eos> are around a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(corpus, trainer)
    learnt = json.loads(tokenizer.to_str())["model"]
    ids = learnt["vocab"]
    ids |= {f"<0x{byte:02X}>": len(ids) + byte for byte in range(256)}
    merges = [tuple(merge) for merge in learnt["merges"]]
    tokenizer.model = models.BPE(ids, merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")  # as in Gemma, where it splits nothing
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return _framed(tokenizer, bos="<bos>", eos="<eos>", unk="<unk>", pad="<pad>", mask="<mask>")


def _framed(tokenizer: Tokenizer, **named: str) -> PreTrainedTokenizerFast:
    """A tokenizer with these special tokens, whose template puts the first two around a text."""
    start, stop, *_ = named.values()
    around = [(token, tokenizer.token_to_id(token)) for token in (start, stop)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{start} $A {stop}", special_tokens=around)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **{f"{name}_token": token for name, token in named.items()}
    )
