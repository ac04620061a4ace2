"""Pruners beside top spans: whole steps, one threshold for all, protected regions, a limit on neighbours left out."""

import json
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import tokenskip_lib as ts
from tokenskip_lib.core.records import Chain, InputError, Problem, PrunedChain, ScoredChain
from tokenskip_lib.core.settings import ImportanceSettings, KeepSettings, PruningSettings
from tokenskip_lib.experiments import stages
from tokenskip_lib.experiments.run import Run
from tokenskip_lib.experiments.steps import CHAINS, PRUNED, TRAIN_PROBLEMS
from tokenskip_lib.models.loading import TargetModel
from tokenskip_lib.models.tokens import batch_token_counter
from tokenskip_lib.pruning.prune import prune, prune_many, prune_steps, prune_together
from tokenskip_lib.pruning.ranking import peaks
from tokenskip_lib.pruning.registry import PRUNERS
from tokenskip_lib.pruning.spans import segment

every_mode = pytest.mark.parametrize("mode", PRUNERS)


def _spans(texts: Sequence[str]) -> list[int]:
    """A counter for which one span is one token, so that the ratio can be met exactly."""
    return [len(segment(text)) for text in texts]


def _chain(text: str, importance=None, name: str = "a") -> ScoredChain:
    spans = segment(text)
    if importance is None:
        importance = np.random.default_rng(len(text)).random(len(spans))
    return ScoredChain(id=name, scorer="s", text=text, spans=spans, importance=list(importance)[: len(spans)])


word = st.sampled_from(["Tom", "has", "3", "+", "4", "=", "7", "1 200", "$", "apples", "."])
some_text = st.lists(st.tuples(word, st.sampled_from([" ", " ", " ", "\n", "\n\n", "\r\n"])), min_size=1, max_size=25)
a_ratio = st.floats(0.01, 1.0)


@st.composite
def some_chains(draw, most=4):
    chains = []
    for number in range(draw(st.integers(1, most))):
        text = "".join(part + gap for part, gap in draw(some_text))
        count = len(segment(text))
        scores = st.integers(0, 5).map(float) | st.floats(-10, 10)
        chains.append(_chain(text, draw(st.lists(scores, min_size=count, max_size=count)), name=str(number)))
    return chains


def _kept_texts(chain: ScoredChain, kept: Sequence[int]) -> list[str]:
    return [chain.text[slice(*chain.spans[index])] for index in kept]


@every_mode
@given(some_chains(), st.lists(a_ratio | st.just(1.0), min_size=1, max_size=3))
def test_what_is_kept_is_part_of_the_chain_in_its_order_and_counted_by_the_target(mode, real_tokenizer, chains, ratios):
    count = batch_token_counter(real_tokenizer)
    pruned = PRUNERS[mode](chains, ratios, count_tokens=count)
    assert [(one.id, one.ratio) for one in pruned] == [(chain.id, ratio) for chain in chains for ratio in ratios]
    by_id = {chain.id: chain for chain in chains}
    for one in pruned:
        chain = by_id[one.id]
        assert one.kept and one.kept == sorted(set(one.kept)) and set(one.kept) <= set(range(len(chain.spans)))
        assert [one.text[a:b] for a, b in segment(one.text)] == _kept_texts(chain, one.kept)
        assert [one.tokens, one.original_tokens] == count([one.text.strip(), chain.text.strip()])
        if one.ratio == 1:
            assert one.text == chain.text and one.kept == list(range(len(chain.spans)))


@every_mode
@given(some_chains(), a_ratio, a_ratio)
def test_a_higher_ratio_keeps_all_that_a_lower_one_keeps(mode, chains, one, other):
    low, high = sorted((one, other))
    fewer, more = (PRUNERS[mode](chains, [ratio], count_tokens=_spans) for ratio in (low, high))
    for a, b in zip(fewer, more, strict=True):
        assert set(a.kept) <= set(b.kept) and a.tokens <= b.tokens


@every_mode
def test_no_chains_and_impossible_ratios(mode):
    assert PRUNERS[mode]([], [0.5], count_tokens=_spans) == []
    with pytest.raises(ValueError, match="ratio"):
        PRUNERS[mode]([_chain("a b")], [1.5], count_tokens=_spans)
    with pytest.raises(ValueError, match="empty"):
        PRUNERS[mode]([_chain(" \n")], [0.5], count_tokens=_spans)


# Whole steps


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("One. Two.\nThree\n\nFour\nfive", ["One. Two.\nThree", "Four\nfive"]),  # empty lines part steps
        ("One. Two.\r\n\r\nThree", ["One. Two.", "Three"]),
        ("One. Two.\nThree", ["One. Two.", "Three"]),  # without them, line breaks
        ("One is 3.5. Two! Three", ["One is 3.5.", "Two!", "Three"]),  # without these, sentences
        ("一共3个。所以是5。", ["一共3个。", "所以是5。"]),
        ("One and two", ["One and two"]),
        ("\n\nOne\nTwo\n", ["One", "Two"]),  # whitespace around the chain is no break
    ],
)
def test_the_widest_breaks_of_a_chain_part_its_steps(text, steps):
    for index, step in enumerate(steps):
        begin = text.index(step)
        importance = [begin <= a and b <= begin + len(step) for a, b in segment(text)]
        [pruned] = prune_steps([_chain(text, importance)], [1e-6], count_tokens=_spans)
        assert pruned.text == step, index


def _by_hand(chain: ScoredChain, ratio: float) -> list[int]:
    """Steps (lines) go by their sums, the lowest first, as long as that comes nearer to the ratio."""
    lines = [range(0)]
    for index, (start, _) in enumerate(chain.spans):
        if index and "\n" in chain.text[chain.spans[index - 1][1] : start]:
            lines.append(range(index, index))
        lines[-1] = range(lines[-1].start, index + 1)
    sums = [sum(chain.importance[index] for index in line) for line in lines]
    ranked = sorted(range(len(lines)), key=lambda number: (-sums[number], number))
    wanted = round(ratio * len(chain.spans))
    choices = [[i for line in sorted(ranked[:n]) for i in lines[line]] for n in range(1, len(lines) + 1)]
    return min(choices, key=lambda kept: (abs(len(kept) - wanted), len(kept)))


@given(st.lists(st.lists(word, min_size=1, max_size=5), min_size=1, max_size=8), st.data(), a_ratio)
def test_steps_with_the_lowest_sums_go_as_a_whole_down_to_the_nearest_count(lines, data, ratio):
    text = "\n".join(" ".join(line) for line in lines)
    count = len(segment(text))
    scores = data.draw(st.lists(st.integers(0, 9).map(float), min_size=count, max_size=count))
    chain = _chain(text, scores)
    if ratio < 1 and "\n" in text:
        [pruned] = prune_steps([chain], [ratio], count_tokens=_spans)
        assert pruned.kept == _by_hand(chain, ratio)


def test_a_text_stands_for_each_step_that_is_left_out_and_its_tokens_count(real_tokenizer):
    count = batch_token_counter(real_tokenizer)
    text = "Tom has 3 + 4 = 7.\n\nLet me see if that can be so.\n\nYes, I think that is so.\n\nSo 7 * 2 = 14."
    chain = _chain(text, [9.0] * 8 + [0.1] * 17 + [9.0] * 9)
    with_text, without = (
        prune_steps([chain], [ratio], count_tokens=count, keep=KeepSettings(skip_text=skip))[0]
        for ratio, skip in ((0.8, "[SKIP]"), (0.6, ""))
    )
    assert with_text.text == "Tom has 3 + 4 = 7.\n\n[SKIP]\n\n[SKIP]\n\nSo 7 * 2 = 14."
    assert without.text == "Tom has 3 + 4 = 7.\n\nSo 7 * 2 = 14."
    assert with_text.kept == without.kept and with_text.tokens == count([with_text.text])[0] > without.tokens
    whole = prune_steps([chain], [1.0], count_tokens=count, keep=KeepSettings(skip_text="[SKIP]"))[0]
    assert whole.text == text


def test_a_step_that_touches_a_protected_region_stays_whole():
    chain = _chain("a b\nc <x d\ne x> f\ng h", range(20, 0, -1))
    [pruned] = prune_steps([chain], [0.01], count_tokens=_spans, keep=KeepSettings(protect=[["<x", "x>"]]))
    assert pruned.text == "c <x d\ne x> f"


# One threshold for many chains


@given(some_chains(), a_ratio)
def test_all_chains_share_one_threshold_and_meet_the_ratio_together(chains, ratio):
    pruned = prune_together(chains, [ratio], count_tokens=_spans)
    kept, left = [], []
    for chain, one in zip(chains, pruned, strict=True):
        top = int(np.argmax(chain.importance))  # stays anyway
        kept += [chain.importance[index] for index in one.kept if index != top]
        left += [score for index, score in enumerate(chain.importance) if index not in one.kept]
    assert min(kept, default=np.inf) >= max(left, default=-np.inf)
    total = sum(len(chain.spans) for chain in chains)
    wanted = max(len(chains), round(ratio * total))
    assert sum(one.tokens for one in pruned) == wanted or ratio == 1.0


def test_a_chain_with_high_scores_keeps_more_than_one_with_low_scores():
    chains = [_chain("a b c d", [9, 8, 7, 6], "high"), _chain("a b c d", [5, 0, 0, 0], "low")]
    high, low = prune_together(chains, [0.5], count_tokens=_spans)
    assert (high.text, low.text) == ("a b c", "a")  # 3 + 1 of 8; the low chain is not left empty
    assert (high.ratio, high.actual_ratio, low.actual_ratio) == (0.5, 0.75, 0.25)


def test_one_chain_together_is_that_chain_by_itself_where_no_span_is_long():
    chain = _chain("Tom has 3 + 4 = 7 apples , so he has 7 .")
    ratios = [0.2, 0.5, 0.7, 1.0]
    assert prune_together([chain], ratios, count_tokens=_spans) == prune_many([chain], ratios, count_tokens=_spans)


def test_options_hold_within_each_chain():
    keep = KeepSettings(keep_digits=True, keep_operators=True, protect=[["<", ">"]])
    chains = [_chain("a < b c", [1, 9, 1, 1], "open"), _chain("d > e 5 + f", [9, 9, 9, 0, 0, 9], "closed")]
    first, second = prune_together(chains, [0.01], count_tokens=_spans, keep=keep)
    assert first.text == "<"  # a marker that another chain closes protects nothing
    assert second.text in ("> 5", "5 +", "5", "d 5")


# Protected regions


@pytest.mark.parametrize(
    ("text", "markers", "kept"),
    [
        ("so <code>x = 1\n\n  y</code> is", [["<code>", "</code>"]], "<code>x = 1\n\n  y</code>"),
        ("a $$x + y$$ b $$z$$ c", [["$$", "$$"]], "$$x + y$$ $$z$$"),
        ("a $$x + y$$ b $$z c", [["$$", "$$"]], "$$x + y$$"),  # the last one is never closed
        ("a </code> b <code>", [["<code>", "</code>"]], "w"),
        ("a [b (c] d) e", [["[", "]"], ["(", ")"]], "[b (c] d)"),
        ("pre<b>fix</b>post q", [["<b>", "</b>"]], "<b>fix</b>"),
    ],
)
def test_what_is_between_two_markers_stays_to_the_byte_with_the_markers(text, markers, kept):
    chain = _chain(f"w {text}", range(100, 0, -1))
    pruned = prune(chain, 0.01, count_tokens=_spans, keep=KeepSettings(protect=markers))
    assert pruned.text == kept


def test_no_other_option_changes_a_protected_region():
    text = "Step : Step <m>3 + 4 = 7 : : 2 * 2</m> 5 + 5 and : so"
    keep = KeepSettings(
        protect=[["<m>", "</m>"]], keep_digits=True, keep_operators=True, skip_spaces=True, keep_tokens=["Step", ":"],
        drop_consecutive=True,
    )  # fmt: skip
    pruned = prune(_chain(text), 0.01, count_tokens=lambda texts: [len(text) for text in texts], keep=keep)
    assert "<m>3 + 4 = 7 : : 2 * 2</m>" in pruned.text and "5+5" in pruned.text


@given(some_chains(1), a_ratio)
def test_protected_spans_are_among_the_kept(chains, ratio):
    [chain] = chains
    keep = KeepSettings(protect=[["3", "7"], ["$", "."]])
    kept = set(prune(chain, ratio, count_tokens=_spans, keep=keep).kept)
    for opening, closing in keep.protect:
        start = chain.text.find(opening)
        while start >= 0 and (end := chain.text.find(closing, start + 1)) >= 0:
            assert {i for i, (a, b) in enumerate(chain.spans) if a <= end and b > start} <= kept
            start = chain.text.find(opening, end + 1)


# A limit on neighbours that are left out


@given(some_chains(1), a_ratio, st.integers(1, 6))
def test_no_more_neighbours_are_left_out_than_the_limit(chains, ratio, most):
    [chain] = chains
    kept = prune(chain, ratio, count_tokens=_spans, keep=KeepSettings(max_skipped=most)).kept
    assert max(np.diff([-1, *kept, len(chain.spans)])) - 1 <= most


@given(some_chains(1), a_ratio, a_ratio, st.integers(1, 6))
def test_with_a_limit_a_higher_ratio_still_keeps_all_that_a_lower_one_keeps(chains, one, other, most):
    low, high = sorted((one, other))
    keep = KeepSettings(max_skipped=most)
    fewer, more = (prune(chains[0], ratio, count_tokens=_spans, keep=keep) for ratio in (low, high))
    assert set(fewer.kept) <= set(more.kept)


@given(st.permutations(range(14)), st.integers(1, 14))
def test_the_most_important_of_too_many_neighbours_stays_and_the_same_on_both_sides(ranks, most):
    must = set()

    def limit(begin: int, end: int) -> None:
        if end - begin > most:
            top = min(range(begin, end), key=lambda index: ranks[index])
            must.add(top)
            limit(begin, top)
            limit(top + 1, end)

    limit(0, len(ranks))
    assert set(np.flatnonzero(peaks(np.array(ranks), most))) == must


def test_a_limit_that_is_never_reached_changes_nothing():
    chain = _chain("Tom has 3 + 4 = 7 apples , so he has 7 .")
    plain, limited = (
        prune(chain, 0.5, count_tokens=_spans, keep=KeepSettings(max_skipped=most)).kept for most in (None, 50)
    )
    assert plain == limited


# Which options a mode knows


@pytest.mark.parametrize(
    ("mode", "option", "says"),
    [
        ("spans", {"skip_text": "[SKIP]"}, "skip_text is no option of mode spans; use mode: steps"),
        ("threshold", {"skip_text": "[SKIP]"}, "use mode: steps"),
        (
            "steps",
            {"keep_operators": True},
            "keep_operators is no option of mode steps; use mode: spans or threshold",
        ),
        ("steps", {"keep_tokens": ["Step"]}, "use mode: spans or threshold or llmlingua"),
        ("llmlingua", {"protect": [["$$", "$$"]]}, "protect is no option of mode llmlingua"),
        ("llmlingua", {"max_skipped": 3}, "max_skipped is no option of mode llmlingua"),
        ("spans", {"protect": [["$$"]]}, "protect"),
        ("spans", {"protect": [["", "$$"]]}, "protect"),
        ("spans", {"max_skipped": 0}, "max_skipped"),
        ("words", {}, "mode"),
    ],
)
def test_an_option_that_a_mode_does_not_know_is_refused(mode, option, says):
    with pytest.raises(ValidationError, match=says):
        PruningSettings(mode=mode, **option)


# From Python, from the command line, and from a profile


PRUNED_BY = {
    "steps": {"skip_text": "[SKIP]"},
    "threshold": {"keep_digits": True, "protect": [["$", "$"]]},
    "spans": {"max_skipped": 4},
}


@pytest.fixture
def lines(problems) -> list[dict]:
    """Problems with chains of two lines."""
    return [
        {"id": p.id, "question": p.question, "answer": p.answer, "chain": f"{p.solution}\nSo it is {p.answer}."}
        for p in problems
    ]


@every_mode
@pytest.mark.parametrize("scorer", ["entropy", "gogi_skip"])
def test_python_and_the_command_line_give_the_same_records(mode, scorer, lines, tiny_target, tokenskip, tmp_path):
    source, out = tmp_path / "own.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in lines))
    settings = {"target.device": "cpu", "target.dtype": "float32", "pruning.mode": mode}
    settings |= {f"pruning.{name}": json.dumps(value) for name, value in PRUNED_BY[mode].items()}
    words = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    command = ["prune", source, "--model", tiny_target, "--scorer", scorer, "--ratios", "0.5,0.7,1", "-o", out, *words]
    assert tokenskip(*command).returncode == 0
    written = out.read_bytes()
    assert tokenskip(*command).returncode == 0 and out.read_bytes() == written  # it was done
    model = ts.load(tiny_target, device="cpu", dtype="float32")
    pruned = ts.prune(
        ts.score(lines, model, scorer=scorer), ratios=[0.5, 0.7, 1.0], model=model, mode=mode, **PRUNED_BY[mode]
    )
    assert list(pruned) == [PrunedChain.model_validate_json(line) for line in written.splitlines()]
    assert all(chain.scorer == scorer and chain.actual_ratio <= 1 for chain in pruned)
    if mode == "steps":
        assert any("[SKIP]" in chain.text for chain in pruned if chain.ratio < 1)


def test_a_mode_that_scores_by_itself_is_refused_in_python(lines, tiny_target):
    model = ts.load(tiny_target, device="cpu", dtype="float32")
    scored = ts.score(lines, model, scorer="position")
    with pytest.raises(InputError, match="mode llmlingua scores by itself"):
        ts.prune(scored, model=model, mode="llmlingua")
    with pytest.raises(InputError, match=r"prune: .*skip_text is no option of mode spans"):
        ts.prune(scored, model=model, skip_text="[SKIP]")


@every_mode
def test_a_profile_prunes_by_its_mode_and_trains_on_it(mode, tiny_profile, problems, chain_of):
    profile = tiny_profile.model_copy(
        update={
            "importance": ImportanceSettings(scorer="entropy", compare_with=[]),
            "pruning": PruningSettings(mode=mode, ratios=[0.5, 1.0], **PRUNED_BY[mode]),
        }
    )
    run = Run.create(profile)
    run.store(TRAIN_PROBLEMS, Problem).append(problems[:3])
    run.store(CHAINS, Chain).append([chain_of(p, f"{p.solution}\nSo it is {p.answer}.") for p in problems[:3]])
    scored = stages.score(run)
    rows = stages.prune(run)
    pruned = list(run.store(PRUNED, PrunedChain))
    expected = PRUNERS[mode](
        scored,
        [0.5, 1.0],
        count_tokens=batch_token_counter(TargetModel(profile.target).tokenizer),
        keep=profile.pruning,
    )
    assert pruned == expected and len(rows) == 3
    by_key = {(chain.id, chain.ratio): chain.text for chain in pruned}
    assert all(row.completion.startswith(by_key[row.id, row.ratio]) for row in rows)
