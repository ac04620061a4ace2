"""Generation: batches, padding and resuming change nothing about what is written."""

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.cache_utils import DynamicLayer

from tokenskip_lib.core.records import InputError
from tokenskip_lib.core.settings import PromptSettings, TargetSettings
from tokenskip_lib.inference import engine as engine_module
from tokenskip_lib.inference.engine import Request, TransformersEngine
from tokenskip_lib.inference.kv_cache import GrowingLayer
from tokenskip_lib.inference.sharing import shared_phases
from tokenskip_lib.models.adapters import attach_adapters
from tokenskip_lib.models.loading import load_model
from tokenskip_lib.models.prompts import build_prompt

BUDGET = 12


@pytest.fixture
def requests(problems, tiny_tokenizer):
    return [
        Request(p.id, build_prompt(tiny_tokenizer, p.question * (index + 1), PromptSettings()), BUDGET)
        for index, p in enumerate(problems)
    ]


@pytest.fixture
def alone(tiny_model, tiny_tokenizer, requests):
    """id -> the tokens that plain `generate` gives for one prompt at a time, no end token to stop it."""
    found = {}
    for request in requests:
        ids = tiny_tokenizer(request.prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            new = tiny_model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=BUDGET,
                eos_token_id=None, pad_token_id=tiny_tokenizer.pad_token_id,
            )  # fmt: skip
        found[request.key] = new[0, ids.shape[1] :].tolist()
    return found


@pytest.fixture
def ends_with(tiny_tokenizer):
    """A function token id -> the same tokenizer with this token as its end token."""

    def make(token_id: int):
        tokenizer = copy.deepcopy(tiny_tokenizer)
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(token_id)
        assert tokenizer.eos_token_id == token_id
        return tokenizer

    return make


def _answers(engine, requests, **options):
    return {g.key: g for batch in engine.generate(requests, **options) for g in batch}


def _first_new(ids: list[int], position: int) -> bool:
    return ids[position] not in ids[:position]


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_every_batch_size_gives_what_one_prompt_at_a_time_gives(
    batch_size, tiny_model, tiny_tokenizer, requests, alone
):
    answers = _answers(TransformersEngine(tiny_model, tiny_tokenizer, batch_size), requests)
    assert set(answers) == set(alone)
    for name, ids in alone.items():
        assert tiny_tokenizer.eos_token_id not in ids  # or the comparison below would be empty
        assert answers[name].text == tiny_tokenizer.decode(ids, skip_special_tokens=True)
        assert answers[name].tokens == BUDGET and answers[name].cut_off
        assert answers[name].seconds > 0
    assert len({answer.text for answer in answers.values()}) > 1


def test_an_answer_ends_before_its_end_token_and_is_not_cut_off(tiny_model, requests, alone, ends_with):
    name, ids = next((n, i) for n, i in alone.items() if any(_first_new(i, p) for p in range(2, BUDGET - 1)))
    position = next(p for p in range(2, BUDGET - 1) if _first_new(ids, p))
    tokenizer = ends_with(ids[position])
    answers = _answers(TransformersEngine(tiny_model, tokenizer, 5), requests)
    assert answers[name].tokens == position and not answers[name].cut_off
    assert answers[name].text == tokenizer.decode(ids[:position])
    for other, other_ids in alone.items():
        ends = other_ids.index(ids[position]) if ids[position] in other_ids else None
        assert answers[other].tokens == (BUDGET if ends is None else ends)
        assert answers[other].cut_off == (ends is None)


def test_an_end_token_as_the_last_token_of_the_budget_is_in_time(tiny_model, requests, alone, ends_with):
    name, position = next((n, p) for n, i in alone.items() for p in range(2, BUDGET) if _first_new(i, p))
    tokenizer = ends_with(alone[name][position])
    [request] = [r for r in requests if r.key == name]
    in_time = Request(name, request.prompt, position + 1)
    too_late = Request(name, request.prompt, position)
    engine = TransformersEngine(tiny_model, tokenizer, 1)
    assert not _answers(engine, [in_time])[name].cut_off
    assert _answers(engine, [too_late])[name].cut_off
    assert _answers(engine, [in_time])[name].text == _answers(engine, [too_late])[name].text


@pytest.mark.parametrize("extra", [0, 1, 2])
def test_a_smaller_budget_in_a_batch_of_larger_ones_is_kept_as_if_alone(tiny_model, requests, alone, ends_with, extra):
    name, position = next((n, p) for n, i in alone.items() for p in range(2, BUDGET) if _first_new(i, p))
    tokenizer = ends_with(alone[name][position])
    short = [Request(r.key, r.prompt, position + extra if r.key == name else BUDGET) for r in requests]
    [one] = [r for r in short if r.key == name]
    by_itself = _answers(TransformersEngine(tiny_model, tokenizer, 1), [one])[name]
    in_batch = _answers(TransformersEngine(tiny_model, tokenizer, 5), short)[name]
    assert (in_batch.text, in_batch.tokens, in_batch.cut_off) == (by_itself.text, by_itself.tokens, by_itself.cut_off)


def test_batches_hold_every_request_once_sorted_by_budget_then_prompt_length(tiny_model, tiny_tokenizer, requests):
    by_length = TransformersEngine(tiny_model, tiny_tokenizer, 2).generate(requests[::-1])
    ids = sorted((r.key for r in requests), key=lambda n: len(tiny_tokenizer(requests[int(n[1])].prompt)["input_ids"]))
    assert [[g.key for g in batch] for batch in by_length] == [ids[:2], ids[2:4], ids[4:]]
    mixed = [
        Request("a", requests[0].prompt, 3),
        Request("b", requests[0].prompt, 3),
        Request("c", requests[1].prompt, 2),
        Request("e", requests[0].prompt, 2),
        Request("d", requests[0].prompt, 2),
    ]
    batches = TransformersEngine(tiny_model, tiny_tokenizer, 2).generate(mixed)
    assert [[g.key for g in batch] for batch in batches] == [["d", "e"], ["c", "a"], ["b"]]


def test_only_batches_that_are_wholly_done_are_skipped_and_the_others_stay_as_they_were(
    tiny_model, tiny_tokenizer, requests
):
    engine = TransformersEngine(tiny_model, tiny_tokenizer, 2)

    def batches(done):
        made = engine.generate(requests, is_done=lambda name: name in done)
        return [[(g.key, g.text, g.tokens, g.cut_off) for g in batch] for batch in made]

    fresh = batches(set())
    first, second, third = [[g[0] for g in batch] for batch in fresh]
    assert (len(first), len(second), len(third)) == (2, 2, 1)
    assert batches({*first}) == fresh[1:]
    assert batches({*third, second[0]}) == fresh[:2]
    assert batches({first[0], second[1]}) == fresh
    assert batches({"p0", "p1", "p2", "p3", "p4"}) == []


def test_a_batch_is_decoded_only_when_it_is_asked_for(tiny_model, tiny_tokenizer, requests):
    # A caller writes each batch down before the next begins: what is done is looked up late.
    engine = TransformersEngine(tiny_model, tiny_tokenizer, 2)
    first, second, third = [[g.key for g in batch] for batch in engine.generate(requests)]
    done, seen = set(), []
    for batch in engine.generate(requests, is_done=lambda name: name in done):
        seen.append([g.key for g in batch])
        done.update(second)
    assert seen == [first, third]


def test_no_request_is_no_batch(tiny_model, tiny_tokenizer):
    assert list(TransformersEngine(tiny_model, tiny_tokenizer, 2).generate([])) == []


def _siblings(tokenizer, problems) -> list[Request]:
    """Every problem at three ratios, not in order."""
    asked = [(p, ratio) for ratio in (0.5, 1.0, 0.9) for p in problems]
    prompts = [build_prompt(tokenizer, p.question, PromptSettings(), ratio=r) for p, r in asked]
    return [Request((p.id, ratio), prompt, BUDGET) for (p, ratio), prompt in zip(asked, prompts, strict=True)]


@pytest.mark.parametrize("batch_size", [2, 4, 15])
def test_sharing_a_question_changes_no_answer(batch_size, tiny_model, tiny_tokenizer, problems):
    requests = _siblings(tiny_tokenizer, problems)
    alone = {r.key: _answers(TransformersEngine(tiny_model, tiny_tokenizer, 1), [r])[r.key] for r in requests}
    together = _answers(TransformersEngine(tiny_model, tiny_tokenizer, batch_size), requests)
    assert {k: (g.text, g.tokens) for k, g in together.items()} == {k: (g.text, g.tokens) for k, g in alone.items()}


def test_a_question_asked_at_several_ratios_is_computed_once(tiny_model, tiny_tokenizer, problems):
    requests = _siblings(tiny_tokenizer, problems)
    seen = []
    hook = tiny_model.register_forward_pre_hook(
        lambda model, args, inputs: seen.append(tuple(inputs["input_ids"].shape)), with_kwargs=True
    )
    try:
        [_] = TransformersEngine(tiny_model, tiny_tokenizer, 15).generate(requests)
    finally:
        hook.remove()
    rows, widths = zip(*seen, strict=True)
    assert rows[:3] == (1, 5, 15)  # the template, the questions, the markers
    longest = max(len(tiny_tokenizer(r.prompt, add_special_tokens=False)["input_ids"]) for r in requests)
    assert sum(widths[:3]) <= longest + 15 and set(widths[3:]) == {1}


token_lists = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=30), min_size=1, max_size=8)


@given(token_lists, st.integers(0, 40))
def test_phases_put_every_prompt_together_again(prompts, common):
    prompts = sorted([7] * common + prompt for prompt in prompts)
    whole = [[]]
    for rows, parents in shared_phases(prompts):
        whole = [whole[parent] + row for row, parent in zip(rows, parents, strict=True)]
    assert whole == prompts
    assert all(shared_phases(prompts)[-1][0])  # each ends with a token of its own, whose logits are asked for


def test_a_growing_layer_holds_what_a_dynamic_one_holds(monkeypatch):
    monkeypatch.setattr(GrowingLayer, "room", 2)
    torch.manual_seed(0)
    growing, dynamic = GrowingLayer(), DynamicLayer()
    for step in (3, 1, 1, 5, 1):
        new = torch.randn(4, 2, step, 8), torch.randn(4, 2, step, 8)
        for a, b in zip(growing.update(*new), dynamic.update(*new), strict=True):
            assert torch.equal(a, b)
    rows = torch.tensor([2, 0, 0])
    growing.batch_select_indices(rows)
    dynamic.batch_select_indices(rows)
    assert torch.equal(growing.keys, dynamic.keys) and growing.get_seq_length() == dynamic.get_seq_length() == 11
    new = torch.randn(3, 2, 1, 8), torch.randn(3, 2, 1, 8)
    assert all(torch.equal(a, b) for a, b in zip(growing.update(*new), dynamic.update(*new), strict=True))


def test_a_batch_that_does_not_fit_is_halved_and_a_prompt_that_does_not_is_refused(
    tiny_model, tiny_tokenizer, requests, monkeypatch
):
    engine = TransformersEngine(tiny_model, tiny_tokenizer, 5)
    whole, decode, sizes = _answers(engine, requests), engine._decode, []

    def small_memory(batch, prompts, fits=2):
        sizes.append(len(batch))
        if len(batch) > fits:
            raise torch.OutOfMemoryError("no room")
        return decode(batch, prompts)

    monkeypatch.setattr(engine, "_decode", small_memory)
    assert {k: g.text for k, g in _answers(engine, requests).items()} == {k: g.text for k, g in whole.items()}
    assert sizes == [5, 2, 3, 1, 2]
    monkeypatch.setattr(engine, "_decode", lambda batch, prompts: small_memory(batch, prompts, fits=0))
    with pytest.raises(InputError, match="does not fit the device's memory by itself"):
        _answers(engine, requests)


def test_attached_adapters_answer_side_by_side_as_merged_ones_do(tiny_target, tiny_tokenizer, requests, make_adapter):
    adapters = {"first": make_adapter(0), "second": make_adapter(1)}
    settings = TargetSettings(model=str(tiny_target), device="cpu", dtype="float32")
    names = [None, "first", "second"]
    mixed = [replace(r, key=(r.key, name), adapter=name) for r in requests for name in names]
    attached = attach_adapters(load_model(settings), adapters)
    together = _answers(TransformersEngine(attached, tiny_tokenizer, 3), mixed)
    for name in names:
        merged = load_model(settings, adapter=adapters.get(name))
        apart = _answers(TransformersEngine(merged, tiny_tokenizer, 3), requests)
        assert {r.key: together[r.key, name].text for r in requests} == {k: a.text for k, a in apart.items()}
    assert len({together[requests[0].key, name].text for name in names}) == 3


@pytest.mark.parametrize("batch_size", [1, 5])
def test_a_compiled_step_over_a_fixed_cache_gives_the_same_answers(
    batch_size, tiny_model, tiny_tokenizer, requests, alone, monkeypatch
):
    # What is compiled is torch's affair: here the cache of fixed size and the shapes are.
    compiled, torch_compile = [], torch.compile

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda model, **kw: torch_compile(model, backend=backend, **kw))
    torch._dynamo.reset()
    engine = TransformersEngine(tiny_model, tiny_tokenizer, batch_size, compiled=True)
    answers = _answers(engine, requests)
    assert {name: answer.text for name, answer in answers.items()} == {
        name: tiny_tokenizer.decode(ids, skip_special_tokens=True) for name, ids in alone.items()
    }
    # A batch has a size of cache, and all its steps have one shape.
    sizes = {-(-(len(tiny_tokenizer(r.prompt)["input_ids"]) + BUDGET) // GrowingLayer.room) for r in requests}
    assert 1 <= len(compiled) <= len(sizes)


def test_a_batch_holds_no_more_tokens_than_allowed_and_changes_no_answer(tiny_model, tiny_tokenizer, requests, alone):
    lengths = {r.key: len(tiny_tokenizer(r.prompt)["input_ids"]) + BUDGET for r in requests}
    limit = 2 * sorted(lengths.values())[2]
    engine = TransformersEngine(tiny_model, tiny_tokenizer, 5, batch_tokens=limit)
    batches = list(engine.generate(requests))
    assert 2 < len(batches) < len(requests)
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[g.key] for g in batch) <= limit
    assert {g.key: g.text for batch in batches for g in batch} == {
        name: tiny_tokenizer.decode(ids, skip_special_tokens=True) for name, ids in alone.items()
    }


def test_a_step_reads_the_chosen_tokens_and_waits_for_nothing_else(tiny_model, tiny_tokenizer, requests):
    class Waits(TorchDispatchMode):
        """Counts the operations whose result the host must know before it goes on."""

        def __init__(self):
            super().__init__()
            self.names = []

        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            name = operation.overloadpacket.__name__
            places = args[1] if name in ("index", "index_put_") else []
            by_mask = any(place is not None and place.dtype == torch.bool for place in places)
            if by_mask or name in ("nonzero", "_local_scalar_dense", "is_nonzero"):
                self.names.append(name)
            return operation(*args, **kwargs or {})

    engine = TransformersEngine(tiny_model, tiny_tokenizer, len(requests))
    counts = []
    for budget in (4, 10):
        with Waits() as waits:
            _answers(engine, [replace(request, max_new_tokens=budget) for request in requests])
        counts.append(len(waits.names))
    assert counts[1] - counts[0] <= 10 - 4  # one a step: transformers asks whether the mask hides anything


@pytest.mark.parametrize("batch_size", [1, 4, 5])
@pytest.mark.parametrize("ends_early", [False, True])
def test_looking_every_few_steps_changes_no_answer_and_waits_once_a_look(
    batch_size, ends_early, tiny_model, tiny_tokenizer, requests, alone, ends_with, monkeypatch
):
    # On CUDA the host looks every few steps, and hands over masks that nobody has to read.
    if ends_early:
        name, position = next((n, p) for n, i in alone.items() for p in range(2, BUDGET) if _first_new(i, p))
        tiny_tokenizer = ends_with(alone[name][position])
    engine = TransformersEngine(tiny_model, tiny_tokenizer, batch_size)
    each_step = _answers(engine, requests)
    engine.look_every, looks, masks, read = 5, [], [], engine_module._read
    monkeypatch.setattr(engine_module, "_read", lambda columns: looks.append(len(columns)) or read(columns))
    hook = tiny_model.register_forward_pre_hook(
        lambda model, args, inputs: masks.append((inputs["input_ids"].shape[1], inputs["attention_mask"])),
        with_kwargs=True,
    )
    try:
        together = _answers(engine, requests)
    finally:
        hook.remove()
    assert {k: (g.text, g.tokens, g.cut_off) for k, g in together.items()} == {
        k: (g.text, g.tokens, g.cut_off) for k, g in each_step.items()
    }
    assert looks and set(looks) <= {5, BUDGET % 5}
    assert all(mask is None or mask.dim() == 4 for width, mask in masks if width == 1)
    assert any(mask is None for width, mask in masks if width == 1) == (
        batch_size == 1 or len(requests) % batch_size == 1
    )
