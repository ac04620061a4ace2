"""The LLMLingua-2 scorer: keep-probabilities of a plain forward pass, no token lost, no text refused."""

import json
import shutil
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, processors
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForTokenClassification,
    PreTrainedTokenizerFast,
)

from benchmarks.classifiers import FAMILIES, write_classifier
from tokenskip_lib.core.records import ChainText, InputError
from tokenskip_lib.core.settings import ImportanceSettings, TargetSettings
from tokenskip_lib.pruning.llmlingua2_scorer import (
    LLMLingua2Scorer,
    keep_label,
    keep_probabilities,
    load_classifier,
    sentence_chunks,
    special_tokens,
)
from tokenskip_lib.pruning.spans import segment

CORPUS = [
    "Step 1: Tom has 3 apples and buys 4 more, so he has 3 + 4 = 7 apples. Each costs $2.50, so he pays 17.5 dollars.",
    "Mary reads 12 pages a day for 5 days.\nShe reads 12 * 5 = 60 pages.\nThen 60 - 8 = 52 pages are left, don't they?",
    "**Total:** \\[ \\frac{1}{2} \\times 36 = \\boxed{18} \\] The final answer is: $\\boxed{18}$",
]
CHAINS = [
    *CORPUS,
    "He has 7.",
    "× é e\u0301 漢字 don't\n\n1,200 $3.50 \\frac{1}{2}",
    "Short one. " * 30,
]
ODD = [
    *[
        "word",
        "x",
        "7",
        ".",
        "!?...;",
        "---",
        "\\",
        "😀",
        "👨‍👩‍👧 🏳️‍🌈",
        "\u200b",
        "a\u200bb",
        "\ufeff",
        "\u00ad",
        "\u0301",
        "漢",
    ],
    *["½²", "<|endoftext|>", "</s>", "<pad>", "[PAD] [CLS] [SEP]", "[UNK]", "<mask>", "\x00\x01", "\x7f a"],
    *["x" * 400, "q" * 3000, ". " * 1500],
]


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request, tmp_path_factory):
    return write_classifier(request.param, tmp_path_factory.mktemp("classifier"), CORPUS)


@pytest.fixture(scope="module")
def loaded(checkpoint):
    model = AutoModelForTokenClassification.from_pretrained(checkpoint, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(checkpoint)


@pytest.fixture(scope="module")
def scorer(loaded) -> LLMLingua2Scorer:
    return LLMLingua2Scorer(*loaded)


FRAMES = [("<s>", "</s>"), ("[CLS]", "[SEP]"), ("<bos>", "<eos>")]


def chains_of(texts) -> list[ChainText]:
    return [ChainText(id=str(index), chain=text) for index, text in enumerate(texts)]


def load(name, **settings):
    target = TargetSettings(model="unused", device="cpu")
    return load_classifier(ImportanceSettings(classifier=str(name), **settings), target, "float32")


def probabilities_by_hand(model, tokenizer, ids: list[int]) -> list[float]:
    """P(keep) of `ids` between the family's own start and end tokens: one row, no padding."""
    [(start, end)] = [pair for pair in FRAMES if pair[0] in tokenizer.get_vocab()]
    row = [tokenizer.convert_tokens_to_ids(start), *ids, tokenizer.convert_tokens_to_ids(end)]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([row])).logits[0].double()
    return torch.softmax(logits, -1)[1:-1, 1].tolist()


def span_means(text: str, offsets, values) -> list[float]:
    means = []
    for start, end in segment(text):
        inside = [v for v, (a, b) in zip(values, offsets, strict=True) if a < end and b > start and b > a]
        means.append(float(np.mean(inside)) if inside else None)
    lowest = min(mean for mean in means if mean is not None)
    return [lowest if mean is None else mean for mean in means]


def test_scores_are_the_keep_probabilities_of_a_plain_forward_pass(loaded, scorer):
    model, tokenizer = loaded
    for chain, scored in zip(chains_of(CHAINS), scorer.score(chains_of(CHAINS)), strict=True):
        encoded = tokenizer(chain.chain, return_tensors="pt")
        assert encoded["input_ids"].shape[1] <= 512
        with torch.no_grad():
            plain = model(**encoded).logits[0].double().softmax(-1)[1:-1, 1].tolist()
        encoded = tokenizer(chain.chain, add_special_tokens=False, return_offsets_mapping=True)
        assert scored.importance == pytest.approx(span_means(chain.chain, encoded["offset_mapping"], plain), abs=2e-5)
        assert scored.spans == segment(chain.chain) and scored.scorer == "llmlingua2" and scored.text == chain.chain


def test_scores_do_not_depend_on_the_batch(loaded, scorer):
    chains = chains_of([*CHAINS, "no stop " * 600])
    together = scorer.score(chains)
    assert [scored.id for scored in together] == [chain.id for chain in chains]
    alone = [scorer.score([chain])[0] for chain in reversed(chains)][::-1]
    row_by_row, at_once = (LLMLingua2Scorer(*loaded, batch_tokens=tokens).score(chains) for tokens in (1, 1 << 20))
    for one, *others in zip(together, alone, row_by_row, at_once, strict=True):
        for other in others:
            assert one.importance == pytest.approx(other.importance, abs=2e-5)


def test_a_text_of_2000_words_without_a_full_stop_is_scored_to_its_end(loaded, scorer):
    model, tokenizer = loaded
    text = " ".join(f"word{number % 7} more" for number in range(1000))
    shapes = []
    hook = model.register_forward_pre_hook(
        lambda model, args, inputs: shapes.append(tuple(inputs["input_ids"].shape)), with_kwargs=True
    )
    try:
        [scored] = scorer.score(chains_of([text]))
    finally:
        hook.remove()
    assert all(width <= 512 for _, width in shapes)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    chunks = sentence_chunks(text, encoded["offset_mapping"], 510)
    assert sum(rows for rows, _ in shapes) == len(chunks) > 5
    plain = [p for a, b in chunks for p in probabilities_by_hand(model, tokenizer, encoded["input_ids"][a:b])]
    assert scored.importance == pytest.approx(span_means(text, encoded["offset_mapping"], plain), abs=2e-5)
    assert len(scored.importance) == 2000 and len(set(scored.importance[-100:])) > 50


@st.composite
def a_tokenised_text(draw):
    """A text and the character spans of tokens: pieces of words, each word's with or without the space before it."""
    words = draw(
        st.lists(st.sampled_from(["a", "word", "stop.", "1.5", "...", "line\n", "é", ".\n\n", "long" * 5]), max_size=40)
    )
    text, offsets, leading = "", [], draw(st.booleans())
    for word in words:
        start = len(text)
        text += " " * draw(st.integers(0, 2))
        begin = start if leading else len(text)
        text += word
        end = len(text.rstrip("\n"))
        cuts = sorted({begin, end, *(draw(st.lists(st.integers(begin, end), max_size=3)))})
        offsets += pairwise(cuts)
    return text, offsets


@given(a_tokenised_text(), st.integers(1, 12))
def test_chunks_are_contiguous_cover_all_and_are_at_most_as_long_as_asked(tokenised, size):
    text, offsets = tokenised
    runs = sentence_chunks(text, offsets, size)
    assert [index for begin, end in runs for index in range(begin, end)] == list(range(len(offsets)))
    assert all(0 < end - begin <= size for begin, end in runs)


@given(a_tokenised_text(), st.integers(1, 12))
def test_chunks_end_after_the_last_sentence_that_fits_where_there_is_one(tokenised, size):
    text, offsets = tokenised

    def ends_sentence(index):
        """Whether a sentence or line ends between token index - 1 and token index."""
        piece = text[offsets[index - 1][0] : offsets[index][0]]
        return "\n" in piece or piece.rstrip().endswith(".")

    for begin, end in sentence_chunks(text, offsets, size)[:-1]:
        possible = [index for index in range(begin + 1, begin + size + 1) if ends_sentence(index)]
        assert not possible or end == possible[-1]


@pytest.mark.parametrize(
    ("text", "size", "parts"),
    [
        ("One two. Three four five", 4, ["One two.", "Three four five"]),
        ("One two\nthree four five", 4, ["One two", "three four five"]),
        ("One two three four five", 3, ["One two three", "four five"]),
        ("One. Two. Three. Four.", 5, ["One. Two.", "Three. Four."]),
        ("fits.", 5, ["fits."]),
        ("", 5, []),
    ],
)
def test_chunks_of_plain_words(text, size, parts):
    offsets = segment(text)
    runs = sentence_chunks(text, offsets, size)
    assert [text[offsets[begin][0] : offsets[end - 1][1]] for begin, end in runs] == parts


def test_pieces_of_a_word_are_cut_apart_only_where_a_word_is_longer_than_a_chunk():
    text, offsets = "ab cdefgh", [(0, 1), (1, 2), (3, 4), (4, 5), (5, 6), (6, 7), (7, 8), (8, 9)]
    assert sentence_chunks(text, offsets, 4) == [(0, 2), (2, 6), (6, 8)]


def test_no_real_token_is_lost_or_repeated_by_chunking(loaded):
    _, tokenizer = loaded
    for text in ("Tom has 3 apples. " * 200, "no stop " * 500, "q" * 3000, "漢字" * 600, "a.b.c." * 300, ". " * 1500):
        offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)[
            "offset_mapping"
        ]
        runs = sentence_chunks(text, offsets, 510)
        assert [index for begin, end in runs for index in range(begin, end)] == list(range(len(offsets)))
        assert all(0 < end - begin <= 510 for begin, end in runs)


@pytest.mark.parametrize("text", ODD, ids=ascii)
def test_odd_texts_have_a_finite_score_for_every_span(scorer, text):
    [scored] = scorer.score(chains_of([text]))
    assert scored.spans == segment(text) and len(scored.importance) == len(scored.spans)
    assert all(0 <= value <= 1 for value in scored.importance)


@given(st.text(max_size=60) | st.lists(st.sampled_from(ODD[:24]), max_size=5).map(" ".join))
def test_any_text_has_a_finite_score_for_every_span(scorer, text):
    [scored, other] = scorer.score(chains_of([text, "A plain one."]))
    assert len(scored.importance) == len(segment(text)) and np.isfinite(scored.importance).all()
    assert all(0 < value < 1 for value in other.importance)


def test_the_family_is_read_from_the_config_and_not_from_the_path(checkpoint, scorer, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "mine")
    model, tokenizer = load(tmp_path / "mine")
    assert model.dtype == torch.float32 and not model.training
    copied = LLMLingua2Scorer(model, tokenizer).score(chains_of(CHAINS))
    for a, b in zip(copied, scorer.score(chains_of(CHAINS)), strict=True):
        assert a.importance == pytest.approx(b.importance, abs=1e-6)


TINY = {"vocab_size": 60, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}


def test_a_classifier_of_three_labels_is_refused():
    model = BertForTokenClassification(BertConfig(**TINY, num_labels=3))
    with pytest.raises(InputError, match=r"^mine: .*3 labels"):
        keep_label(model, "mine")


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (BertForTokenClassification(BertConfig(**TINY, num_labels=3)), "3 labels"),
        (BertForMaskedLM(BertConfig(**TINY)), "no weights classifier.bias, classifier.weight"),
    ],
    ids=["labels", "no head"],
)
def test_a_wrong_checkpoint_is_refused_when_it_is_loaded(model, says, checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "wrong")
    model.save_pretrained(tmp_path / "wrong")
    with pytest.raises(InputError, match=rf"^[^\n]*wrong'?: [^\n]*{says}[^\n]*$"):
        load(tmp_path / "wrong")


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return write_classifier("bert", tmp_path_factory.mktemp("classifier"), CORPUS)


def relabelled(checkpoint, folder, labels: dict):
    """A copy of a checkpoint whose config.json has these tables of labels and no others."""
    shutil.copytree(checkpoint, folder / "relabelled")
    path = folder / "relabelled" / "config.json"
    config = json.loads(path.read_text())
    others = {key: value for key, value in config.items() if key not in ("id2label", "label2id", "num_labels")}
    path.write_text(json.dumps(others | labels))
    return folder / "relabelled"


@pytest.mark.parametrize(
    ("labels", "keep"),
    [
        ({}, 1),
        ({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}}, 1),
        ({"id2label": {"0": "drop", "1": "keep"}, "label2id": {"drop": 0, "keep": 1}}, 1),
        ({"id2label": {"0": "Keep", "1": "Drop"}, "label2id": {"Keep": 0, "Drop": 1}}, 0),
        ({"label2id": {"keep": 0, "drop": 1}}, 0),
        ({"id2label": {"0": "PRESERVE", "1": "other"}}, 0),
        ({"id2label": {"0": "discard", "1": "O"}}, 1),
        ({"id2label": {"0": "1", "1": "0"}}, 0),
    ],
)
def test_the_label_to_keep_is_the_one_whose_name_says_so(labels, keep, bert, tmp_path):
    model, tokenizer = load(relabelled(bert, tmp_path, labels))
    assert keep_label(model, "mine") == keep
    texts = chains_of(CHAINS[:2])
    plain = LLMLingua2Scorer(*load(bert)).score(texts)
    for one, other in zip(LLMLingua2Scorer(model, tokenizer).score(texts), plain, strict=True):
        expected = other.importance if keep else [1 - value for value in other.importance]
        assert one.importance == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    "labels",
    [
        {"id2label": {"0": "A", "1": "B"}, "label2id": {"A": 0, "B": 1}},
        {"id2label": {"0": "keep", "1": "kept"}},
        {"id2label": {"0": "drop", "1": "keep"}, "label2id": {"keep": 0, "drop": 1}},
        {"id2label": {"0": "not keep", "1": "other"}},
    ],
)
def test_labels_that_do_not_decide_are_refused_with_their_names(labels, bert, tmp_path):
    with pytest.raises(
        InputError, match=r"^[^\n]*relabelled: its labels [^\n]*do not say which [^\n]*config.json$"
    ) as caught:
        load(relabelled(bert, tmp_path, labels))
    assert all(name.lower() in str(caught.value) for name in labels["id2label"].values())


@pytest.mark.parametrize(
    ("family", "settings", "model_max_length", "longest"),
    [
        ("xlm-roberta", {"max_position_embeddings": 66}, None, 64),  # positions begin after the padding token's id, 1
        ("bert", {"max_position_embeddings": 66}, None, 66),
        ("mobilebert", {}, 64, 64),
        ("modernbert", {}, 8192, 512),
        ("mmbert", {}, None, 512),
    ],
)
def test_no_row_is_longer_than_the_checkpoint_takes_or_than_512(family, settings, model_max_length, longest, tmp_path):
    model, tokenizer = load(write_classifier(family, tmp_path, CORPUS, **settings))
    if model_max_length:
        tokenizer.model_max_length = model_max_length
    widths = []
    model.register_forward_pre_hook(
        lambda model, args, inputs: widths.append(inputs["input_ids"].shape[1]), with_kwargs=True
    )
    [scored] = LLMLingua2Scorer(model, tokenizer).score(chains_of(["no stop " * 700]))
    assert max(widths) in (longest, longest - 1)  # a row may end a token early, before a word
    assert len(scored.importance) == 1400


@pytest.mark.parametrize(
    ("template", "named", "around"),
    [
        ("[A] $A [B]", {"cls_token": "[C]", "sep_token": "[D]"}, ([0], [1])),
        ("[A] $A", {}, ([0], [])),
        ("$A [A] [B]", {}, ([], [0, 1])),
        ("$A", {"cls_token": "[C]", "sep_token": "[D]"}, ([2], [3])),
        ("$A", {"bos_token": "[C]", "eos_token": "[D]"}, ([], [])),
        ("$A", {"cls_token": "[C]"}, ([], [])),
    ],
)
def test_special_tokens_are_those_of_the_tokenizers_template_or_else_cls_and_sep(template, named, around):
    tokens = ["[A]", "[B]", "[C]", "[D]"]
    tokenizer = Tokenizer(models.WordLevel({token: index for index, token in enumerate([*tokens, "a"])}, "a"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(token, index) for index, token in enumerate(tokens)]
    )
    assert special_tokens(PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)) == around


def test_a_target_model_is_no_classifier(tiny_target):
    with pytest.raises(InputError, match=r"^[^\n]+$"):
        load(tiny_target)


def test_a_folder_that_is_not_there_is_named_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match=r"^importance\.classifier '[^\n]*nowhere'[^\n]*$"):
        load(tmp_path / "nowhere")


def test_an_empty_folder_is_named_in_one_line(tmp_path):
    with pytest.raises(InputError, match=r"^importance\.classifier [^\n]*$"):
        load(tmp_path)


def test_important_tokens_are_told_apart_in_half_precision_as_well():
    logits = torch.tensor([[[0.0, 7.0], [0.0, 8.0], [0.0, 9.0]]], dtype=torch.bfloat16)

    def classifier(**_):
        return SimpleNamespace(logits=logits)

    classifier.device = torch.device("cpu")
    [probabilities] = keep_probabilities(classifier, [[1, 2, 3]], keep=1, pad_id=0)
    assert probabilities.dtype == torch.float32
    assert probabilities[0] < probabilities[1] < probabilities[2] < 1
