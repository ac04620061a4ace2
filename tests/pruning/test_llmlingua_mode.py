"""llmlingua mode against llmlingua itself: the same bytes, or both refuse. The default mode never fails on the same."""

import json
import os
import random
import re
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest
import regex
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForTokenClassification, AutoTokenizer

from benchmarks.classifiers import NAMES, place_gpt_vocabulary, write_classifier
from tokenskip_lib.core.records import ChainText, InputError
from tokenskip_lib.pruning import llmlingua_mode
from tokenskip_lib.pruning.llmlingua2_scorer import LLMLingua2Scorer
from tokenskip_lib.pruning.llmlingua_mode import LLMLinguaPruner
from tokenskip_lib.pruning.prune import prune
from tokenskip_lib.pruning.spans import segment

bpe_openai = pytest.importorskip("bpe_openai", reason="bpe_openai, which counts llmlingua's tokens, is not installed")

RATIOS = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5]
OPTIONS = {
    "none": {},  # the reference's Qwen branch
    "llama": {"force_tokens": ["Step", ":"], "force_reserve_digit": True, "drop_consecutive": True},
    "line ends": {"force_tokens": ["\n", "."]},
    "several tokens": {"force_tokens": ["The total is", "\n", ".", "so that"], "drop_consecutive": True},
    "digits": {"force_reserve_digit": True},
}
options_named = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())

SENTENCES = [
    "Step {i}: {name} has {a} {thing} and buys {b} more, so that makes {a} + {b} = {c} {thing}.",
    "Then {name} gives away half of the {c} {thing}: {c}/2 = {h}.",
    "**Calculate the cost:** each of the {a} {thing} costs ${b}.50, so {a} * {b}.50 = {p}.",
    "\\[ {a} \\text{{ {thing} }} \\times {b} = {m} \\]",
    "The total is {c} {thing}, which is {b}% of {m}, isn't it?",
    "Therefore {name}'s friends need {h} - {b} = {d} {thing} (not 1,{a}00).",
]
NAMED, THINGS = ["Tom", "Mary", "Zoë", "Mrs. Ng"], ["apples", "pages", "eggs", "café tables"]


def story(seed: int, sentences: int) -> str:
    """A chain like a model's on a word problem."""
    rng = random.Random(seed)
    parts = []
    for i in range(1, sentences + 1):
        a, b = rng.randrange(2, 99), rng.randrange(2, 40)
        numbers = {"a": a, "b": b, "c": a + b, "d": a - b, "h": (a + b) / 2, "m": a * b, "p": a * b + a / 2}
        sentence = rng.choice(SENTENCES).format(i=i, name=rng.choice(NAMED), thing=rng.choice(THINGS), **numbers)
        parts += [sentence, rng.choice([" ", " ", "\n", "\n\n"])]
    return "".join(parts).rstrip()


# The last ones are several chunks of 510 tokens.
STORIES = [story(seed, n) for seed, n in enumerate([1, 1, 2, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 40, 100])]
CORPUS = [story(1000 + seed, 12) for seed in range(30)]
ODD = [
    "",
    " ",
    "\n\n",
    "word",
    ".",
    "!",
    "7",
    "a\n\n\nb",
    "...",
    ": : : Step : Step Step:",
    "Step 1: do. Step 2: do it: : : ok Steps",
    "3.14159 2,000 1/2 10% 5x5 ½ ² ٣",
    "é e\u0301 ñ 漢字かな ไทย 😀 👨‍👩‍👧 \u200b\u00ad\u00a0x",
    "tab\tand\r\nreturn\x0bhere\u2028there",
    "## #### 5 ##ing #",
    "▁under ▁▁ score _ __",
    "[NEW3]",
    "a [NEW0] b [NEW1][NEW2] c[NEW99]",
    "[PAD]",
    "one [PAD] two [CLS] three [SEP] four [UNK] [MASK] five",
    "<s> one </s> two <pad> three <unk> <mask> four",
    "</s>",
    "[UNK]",
    "<unk>",
    "<|endoftext|>",
    "hi <|endofprompt|> there",
    "＜｜endoftext｜＞",
    "we say ＜|endoftext|＞ here",
    "<|endof text|> <|eot_id|> <|im_start|>",
    "So that The total is The total is so that\nso that.",
    "The total is",
    "\\frac{1}{2} \\boxed{18} $$x^2$$ `code` [link](http://a.b/c?d=e) | table |",
    "x" * 300,
    "12345678901234567890" * 5,
    "no stop " * 400,
    "unbelievably " * 300,
    "hippopotamus " * 400,
    "a.b.c." * 300,
    "\n" * 600,
    "q" * 3000,
    "漢字" * 700,
    story(7, 60).replace(".", "").replace("\n", " "),
    " ".join(f"{n}." for n in range(700)),
    "Zoë\u0301 " * 300 + ". end",
]


@contextmanager
def restored_randomness():
    """llmlingua's constructor seeds every generator of the process and settings of cuDNN: put them back."""
    cudnn = torch.backends.cudnn
    states = random.getstate(), np.random.get_state(), torch.get_rng_state(), cudnn.deterministic, cudnn.benchmark
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONHASHSEED", os.environ.get("PYTHONHASHSEED", "random"))
        try:
            yield patch
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
            torch.set_rng_state(states[2])
            cudnn.deterministic, cudnn.benchmark = states[3:]


@pytest.fixture(scope="module", params=NAMES)
def family(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def checkpoint(family, tmp_path_factory) -> Path:
    return write_classifier(family, tmp_path_factory.mktemp("classifier"), CORPUS)


class Ours:
    """Our pruners of one checkpoint, one for each set of options."""

    def __init__(self, checkpoint: Path):
        self.checkpoint = checkpoint
        self.pruners: dict[str, LLMLinguaPruner] = {}

    def load(self):
        model = AutoModelForTokenClassification.from_pretrained(self.checkpoint, dtype=torch.float32).eval()
        return model, AutoTokenizer.from_pretrained(self.checkpoint)

    def pruner(self, options: dict) -> LLMLinguaPruner:
        key = json.dumps(options)
        if key not in self.pruners:
            self.pruners[key] = LLMLinguaPruner(*self.load(), **options)
        return self.pruners[key]

    def compress(self, text: str, ratio: float, options: dict) -> str | None:
        """None where it refuses."""
        pruner = self.pruner(options)
        try:
            return pruner.compress(pruner.read([ChainText(id="c", chain=text)])[0], ratio)
        except InputError as error:
            assert "\n" not in str(error)
            return None


@pytest.fixture(scope="module")
def ours(checkpoint) -> Ours:
    return Ours(checkpoint)


class Theirs:
    """llmlingua's own PromptCompressor. Its forward passes, always of 512 tokens a chunk, are remembered."""

    def __init__(self, compressor):
        self.compressor = compressor
        forward, known = compressor.model.forward, {}

        def remembered(input_ids, attention_mask):
            key = input_ids.numpy().tobytes(), attention_mask.numpy().tobytes()
            if key not in known:
                known[key] = forward(input_ids=input_ids, attention_mask=attention_mask)
            return known[key]

        compressor.model.forward = remembered

    def compress(self, text: str, ratio: float, options: dict) -> str | None:
        """None where it raises."""
        try:
            return self.compressor.compress_prompt(text, rate=ratio, **options)["compressed_prompt"]
        except Exception:
            return None


@pytest.fixture(scope="module")
def theirs(checkpoint, tmp_path_factory) -> Theirs:
    llmlingua = pytest.importorskip("llmlingua", reason="llmlingua, the peer, is not installed")
    folder = tmp_path_factory.mktemp("tiktoken")
    place_gpt_vocabulary(folder)
    with restored_randomness() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(folder))
        return Theirs(llmlingua.PromptCompressor(str(checkpoint), device_map="cpu", use_llmlingua2=True))


def different(ours: Ours, theirs: Theirs, texts, options: dict, ratios=RATIOS) -> list:
    """Where one refuses and the other does not, or the bytes differ."""
    found = []
    for text in texts:
        for ratio in ratios:
            a, b = ours.compress(text, ratio, options), theirs.compress(text, ratio, options)
            if a != b:
                found.append((text[:60], ratio, "ours:", a and a[:120], "theirs:", b and b[:120]))
    return found


def all_different(ours: Ours, theirs: Theirs, texts: list[str], options: dict) -> list:
    """The same for texts that nobody refuses, read in one window and so in shared batches."""
    chains = [ChainText(id=str(index), chain=text) for index, text in enumerate(texts)]
    pruned = ours.pruner(options).prune(chains, RATIOS, count_tokens=lambda texts: [len(t.split()) for t in texts])
    assert [(p.id, p.ratio) for p in pruned] == [(chain.id, ratio) for chain in chains for ratio in RATIOS]
    return [
        (one.id, one.ratio, one.text[:120], expected and expected[:120])
        for one in pruned
        if one.text != (expected := theirs.compress(texts[int(one.id)], one.ratio, options))
    ]


@pytest.mark.parametrize(
    ("family", "settings", "says"),
    [
        ("mobilebert", {}, "no 'mobilebert' model"),
        ("mmbert", {}, "no 'modernbert' model"),
        ("bert", {"id2label": {0: "keep", 1: "drop"}}, "label 1, which means drop"),
        ("bert", {"num_labels": 3}, "3 labels"),
    ],
)
def test_a_classifier_that_llmlingua_does_not_read_is_refused_in_one_line(family, settings, says, tmp_path):
    path = write_classifier(family, tmp_path, CORPUS, **settings)
    model = AutoModelForTokenClassification.from_pretrained(path)
    with pytest.raises(InputError, match=rf"^pruning.mode llmlingua[^\n]*{says}[^\n]*$"):
        LLMLinguaPruner(model, AutoTokenizer.from_pretrained(path))


@options_named
def test_word_problem_chains_come_out_byte_for_byte(ours, theirs, options):
    assert not all_different(ours, theirs, STORIES, options)


@options_named
def test_odd_texts_come_out_byte_for_byte_or_both_refuse(ours, theirs, options):
    assert not different(ours, theirs, ODD, options, ratios=[1.0, 0.9, 0.5])


@pytest.mark.parametrize("every", [39, pytest.param(13, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["none", "llama"])
def test_a_target_models_own_chains_come_out_byte_for_byte(ours, theirs, data_folder, name, every):
    rows = (data_folder / "qwen2.5-7b_gsm8k_chains.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(row)["output"] for row in rows[::every]]
    assert len(texts) * every >= 1300
    assert not all_different(ours, theirs, texts, OPTIONS[name])


PIECES = [
    *["Tom", "apples", "Step", ":", "so that", "The total is", ".", ",", "\n", "\n\n", " ", " ", "  ", "'", "don't"],
    *["88", "3.5", "1,200", "=", "+", "$", "\\frac{1}{2}", "é", "e\u0301", "漢", "😀", "\u200b", "\t", "▁", "##", "_"],
    *["[NEW3]", "[NEW0]", "[PAD]", "[UNK]", "[CLS]", "[SEP]", "</s>", "<s>", "<pad>", "<unk>", "<mask>"],
]
piece = st.sampled_from(PIECES)
rare = st.sampled_from(["<|endoftext|>", "＜｜endoftext｜＞", "<|fim_prefix|>"])
composed = st.lists(piece | piece | piece | rare, max_size=30).map("".join)
any_text = st.text(max_size=50) | composed | composed.map(lambda text: text.replace(".", "") * 40)


@options_named
@settings(max_examples=50)
@given(text=any_text, ratio=st.sampled_from(RATIOS))
def test_any_text_comes_out_byte_for_byte_or_both_refuse(ours, theirs, options, text, ratio):
    assert ours.compress(text, ratio, options) == theirs.compress(text, ratio, options)


@pytest.mark.parametrize(
    "forced",
    [["so that", "so that", "that"], ["Step 1", "Step", "1"], ["é"], ["##ing", "▁Tom", "Tom"], ["[NEW1]", "a b"]],
    ids=str,
)
def test_unusual_force_tokens_act_as_in_llmlingua(ours, theirs, forced):
    texts = ["Step 1: Tom is counting so that that is é, so that [NEW1] [NEW0] a b.", STORIES[6], STORIES[9]]
    for drop in (False, True):
        assert not different(ours, theirs, texts, {"force_tokens": forced, "drop_consecutive": drop})


def test_more_than_100_force_tokens_are_refused_by_both(ours, theirs):
    options = {"force_tokens": [f"w{number}" for number in range(101)]}
    assert theirs.compress("Some text.", 0.5, options) is None
    with pytest.raises(InputError, match="100"):
        LLMLinguaPruner(*ours.load(), **options)


def test_a_chain_with_a_near_tie_is_scored_once_more_in_llmlinguas_own_shape(ours, theirs, monkeypatch):
    monkeypatch.setattr(llmlingua_mode, "NEAR_TIE", 1.0)  # every chain has one
    pruner, passes = ours.pruner(OPTIONS["none"]), []
    [reading] = pruner.read([ChainText(id="c", chain=STORIES[-1])])
    hook = pruner.model.register_forward_pre_hook(
        lambda model, args, inputs: passes.append(tuple(inputs["input_ids"].shape)), with_kwargs=True
    )
    try:
        texts = [pruner.compress(reading, ratio) for ratio in RATIOS]
    finally:
        hook.remove()
    assert passes == [(len(reading.chunks), 512)] and reading.exact
    assert texts == [theirs.compress(STORIES[-1], ratio, OPTIONS["none"]) for ratio in RATIOS]


def test_all_ratios_come_from_one_forward_pass_a_chunk(ours, monkeypatch):
    monkeypatch.setattr(llmlingua_mode, "NEAR_TIE", 0.0)  # chains without one, whatever tokenizer was trained
    pruner = ours.pruner(OPTIONS["none"])
    passes = []
    hook = pruner.model.register_forward_pre_hook(
        lambda model, args, inputs: passes.append(inputs["input_ids"].shape), with_kwargs=True
    )
    try:
        pruner.prune([ChainText(id="c", chain=STORIES[4])], RATIOS, count_tokens=lambda texts: [1] * len(texts))
        assert len(passes) == 1 and passes[0][0] == 1 and passes[0][1] < 512  # and without padding
        passes.clear()
        [reading] = pruner.read([ChainText(id="c", chain=STORIES[-1])])
        assert len(reading.chunks) > 3
        for ratio in RATIOS:
            pruner.compress(reading, ratio)
        assert sum(rows for rows, _ in passes) == len(reading.chunks)
    finally:
        hook.remove()


def test_the_records_say_llmlingua_and_hold_the_target_models_counts(ours):
    chains = [ChainText(id=str(index), chain=text) for index, text in enumerate(STORIES[:3])]

    def count(texts):
        return [len(text) for text in texts]

    for pruned in ours.pruner(OPTIONS["none"]).prune(chains, [0.5, 1.0], count_tokens=count):
        assert pruned.scorer == "llmlingua" and pruned.kept is None
        assert pruned.tokens == len(pruned.text)
        assert pruned.original_tokens == len(STORIES[int(pruned.id)])


def test_a_refusal_names_its_chain_in_one_line(ours):
    chains = [ChainText(id="fine", chain="All is well."), ChainText(id="bad", chain="He said <|endoftext|> twice.")]
    with pytest.raises(InputError, match=r"^[^\n]*'bad'[^\n]*$"):
        ours.pruner(OPTIONS["none"]).prune(chains, [0.5], count_tokens=lambda texts: [1] * len(texts))


def test_tokens_that_llmlingua_cuts_off_unseen_are_counted(ours, theirs):
    # A chunk that begins inside a word is read again as more tokens: XLM-R gains a `▁`, mBERT two `#`.
    text = "hippopotamus " * 400
    pruner = ours.pruner(OPTIONS["none"])
    chains = [ChainText(id="short", chain="Just this."), ChainText(id="long", chain=text)]
    pruned = pruner.prune(chains, [0.5], count_tokens=lambda texts: [1] * len(texts))
    assert pruned[0].tokens_cut == 0 < pruned[1].tokens_cut
    assert pruned[1].text == theirs.compress(text, 0.5, {})


def test_nothing_is_counted_as_cut_where_all_is_seen(ours):
    pruner = ours.pruner(OPTIONS["none"])
    readings = pruner.read([ChainText(id=str(index), chain=text) for index, text in enumerate(STORIES)])
    assert not any(reading.cut for reading in readings)


def test_building_a_pruner_leaves_the_random_generators_alone(ours):
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    LLMLinguaPruner(*ours.load())
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


@settings(max_examples=300)
@given(st.text(max_size=80) | composed)
def test_the_wheels_token_counts_are_tiktokens(gpt_encodings, text):
    theirs, ours = gpt_encodings
    assert len(ours.encode_ordinary(text)) == len(theirs.encode_ordinary(text))


@pytest.fixture(scope="module")
def gpt_encodings(tmp_path_factory):
    tiktoken = pytest.importorskip("tiktoken", reason="tiktoken, the peer, is not installed")
    folder = tmp_path_factory.mktemp("tiktoken")
    place_gpt_vocabulary(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(folder))
        return tiktoken.encoding_for_model("gpt-3.5-turbo"), bpe_openai.get_encoding("cl100k_base")


def test_both_encodings_refuse_the_same_special_tokens(gpt_encodings):
    theirs, ours = gpt_encodings
    assert set(ours.special_tokens_set) == theirs.special_tokens_set


@pytest.fixture(scope="module")
def default_scorer(ours) -> LLMLingua2Scorer:
    return LLMLingua2Scorer(*ours.load())


# Scripts that are written without spaces: their spans may come to stand side by side (test_prune.py says when).
UNSPACED = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}ー\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]")


def glued(kept: list[str], read: list[str]) -> list[tuple[str, str]]:
    """Neighbours among the kept spans that are read as one, though neither is of a script without spaces."""
    ends = set(accumulate(map(len, read)))
    assert "".join(read) == "".join(kept) and ends <= set(accumulate(map(len, kept)))  # none is cut
    joints = zip(accumulate(map(len, kept)), kept, kept[1:], strict=False)
    return [(a, b) for end, a, b in joints if end not in ends and not UNSPACED.search(a[-1] + b[0])]


def check_default_mode(scorer: LLMLingua2Scorer, texts: list[str]) -> None:
    """Every text is pruned at every ratio, and consists of kept spans of which none is glued to another."""
    chains = [ChainText(id=str(index), chain=text) for index, text in enumerate(texts)]
    for scored in scorer.score(chains):
        for ratio in (1.0, 0.9, 0.5, 0.1):
            pruned = prune(scored, ratio, count_tokens=lambda texts: [len(segment(text)) for text in texts])
            assert pruned.kept and pruned.text.strip()
            kept = [scored.text[slice(*scored.spans[index])] for index in pruned.kept]
            read = [pruned.text[start:end] for start, end in segment(pruned.text)]
            assert not glued(kept, read)
            if ratio == 1.0:
                assert pruned.text == scored.text


def test_the_default_mode_prunes_what_llmlingua_fails_on_and_glues_nothing(default_scorer):
    check_default_mode(default_scorer, [text for text in [*ODD, *STORIES] if text.strip()])


@settings(max_examples=40)
@given(text=any_text.filter(lambda text: re.search(r"\S", text)))
@example(text="00000/㐀")
@example(text="一/二")
def test_the_default_mode_prunes_any_text_and_glues_nothing(default_scorer, text):
    check_default_mode(default_scorer, [text])
