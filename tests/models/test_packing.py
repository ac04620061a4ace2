"""Packed rows: every row's loss and gradient as if it stood alone, what is shared computed once."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, Qwen2Config

from tokenskip_lib.core.records import InputError, PrunedChain
from tokenskip_lib.core.settings import PromptSettings
from tokenskip_lib.models.packing import IGNORED, EncodedRow, attend_in_rows, pack_rows
from tokenskip_lib.models.prompts import encode_prompt
from tokenskip_lib.training.loss import response_loss
from tokenskip_lib.training.rows import build_sft_rows, encode_rows, even_out, training_order

RATIOS = (0.5, 0.7, 1.0)


@pytest.fixture
def rows(problems, tiny_tokenizer):
    """Three rows of each problem, one at each ratio, as training meets them."""
    chains = [
        PrunedChain(
            id=p.id, scorer="s", ratio=r, text=p.solution[: int(r * len(p.solution))], kept=[], tokens=1,
            original_tokens=1,
        )
        for p in problems
        for r in RATIOS
    ]  # fmt: skip
    by_id = {problem.id: problem for problem in problems}
    return build_sft_rows(chains, by_id, tiny_tokenizer, PromptSettings(), held_out=0, seed=0)


@pytest.fixture
def encoded(rows, tiny_tokenizer):
    return encode_rows(rows, tiny_tokenizer, 10_000)[0]


def _plain_loss(model, row: EncodedRow) -> torch.Tensor:
    """What transformers makes of one row alone: the sum over its response tokens."""
    ids = torch.tensor([row.prompt + row.completion])
    labels = torch.tensor([[IGNORED] * len(row.prompt) + row.completion])
    return model(input_ids=ids, labels=labels).loss * len(row.completion)


def _packed_loss(model, rows) -> torch.Tensor:
    batch = pack_rows(rows)
    labels = batch.pop("labels")
    return response_loss(model(**batch, use_cache=False).logits, labels, 1)


@pytest.fixture
def in_rows(tiny_target):
    """The tiny model with attention for packed sequences."""
    model = AutoModelForCausalLM.from_pretrained(tiny_target)
    attend_in_rows(model)
    return model


def test_a_row_ends_in_the_end_token_and_begins_with_what_inference_asks(rows, encoded, tiny_tokenizer):
    for row, made in zip(rows, encoded, strict=True):
        assert made.prompt == encode_prompt(tiny_tokenizer, row.prompt)
        assert made.completion[-1] == tiny_tokenizer.eos_token_id
        assert tiny_tokenizer.decode(made.completion[:-1]) == row.completion


def test_rows_above_the_limit_are_left_out_whole_and_counted(rows, encoded, tiny_tokenizer):
    limit = sorted(len(row) for row in encoded)[2]
    kept, too_long = encode_rows(rows, tiny_tokenizer, limit)
    assert kept == [row for row in encoded if len(row) <= limit]
    assert too_long == len(rows) - len(kept) > 0


def test_packed_losses_and_gradients_are_the_plain_rows(encoded, tiny_target, in_rows):
    plain_model = AutoModelForCausalLM.from_pretrained(tiny_target)
    plain, packed = sum(_plain_loss(plain_model, row) for row in encoded), _packed_loss(in_rows, encoded)
    assert packed.item() == pytest.approx(plain.item(), rel=1e-5)
    plain.backward()
    packed.backward()
    for (name, weight), other in zip(plain_model.named_parameters(), in_rows.parameters(), strict=True):
        assert weight.grad.abs().max() > 1e-3, name
        assert torch.allclose(weight.grad, other.grad, atol=1e-3), name


def test_a_model_with_a_sliding_window_is_refused():
    config = Qwen2Config(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        vocab_size=20, use_sliding_window=True, sliding_window=4, max_window_layers=1,
    )  # fmt: skip
    with pytest.raises(InputError, match="full attention, not sliding_attention"):
        attend_in_rows(AutoModelForCausalLM.from_config(config))


def test_the_rows_of_a_problem_share_its_question(encoded):
    family = [row for row in encoded if row.id == encoded[0].id]
    packed = pack_rows(family)["input_ids"].shape[1]
    question = min(len(row.prompt) for row in family)
    apart = sum(len(row) - 1 for row in family)  # the last token is only predicted
    assert len(family) == len(RATIOS)
    assert packed <= apart - (len(family) - 1) * (question - 8)  # all but the end of the marker, twice


tokens = st.lists(st.integers(0, 3), min_size=1, max_size=6)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(tokens, tokens), min_size=1, max_size=6))
def test_whatever_the_rows_each_token_sees_its_own_row_and_no_other(pairs):
    rows = [EncodedRow(str(number), *pair) for number, pair in enumerate(pairs)]
    batch = pack_rows(rows)
    ids, positions, labels = (batch[name][0].tolist() for name in ("input_ids", "position_ids", "labels"))
    paths, places, kept = batch["paths"], batch["places"].tolist(), batch["logits_to_keep"].tolist()
    flat = paths.flatten().tolist()
    assert [flat[place] for place in places] == list(range(len(ids)))
    histories = []
    for position in kept:
        row, depth = divmod(places[position], paths.shape[1])
        seen = paths[row, : depth + 1].tolist()  # what a token of this row sees
        assert [positions[index] for index in seen] == list(range(len(seen)))
        histories.append((*(ids[index] for index in seen), labels[position]))
    wanted = [
        (*row.prompt, *row.completion[: end + 1]) for row in rows for end in range(len(row.completion))
    ]  # what leads to each response token, and the token
    assert sorted(histories) == sorted(wanted)
    assert labels.count(IGNORED) == len(labels) - len(kept)


def test_every_epoch_is_all_rows_problems_together_and_the_seed_says_how(encoded):
    order = training_order(encoded, 2.5, seed=1)
    size = len(encoded)
    assert len(order) == round(2.5 * size)
    for epoch in (order[:size], order[size : 2 * size]):
        assert sorted(map(id, epoch)) == sorted(map(id, encoded))
        ids = [row.id for row in epoch]
        assert all(ids[start : start + 3] == [ids[start]] * 3 for start in range(0, size, 3))
    assert order[:size] != order[size : 2 * size]
    assert order == training_order(encoded, 2.5, seed=1) != training_order(encoded, 2.5, seed=2)


def test_rows_that_even_out_batches_change_no_loss(encoded, in_rows):
    three = encoded[:3]
    padded = even_out(three, 4)
    assert padded[:3] == three and len(padded) == 4 and even_out(padded, 2) == padded
    with torch.no_grad():
        assert _packed_loss(in_rows, padded).item() == pytest.approx(_packed_loss(in_rows, three).item(), abs=1e-4)
    nothing = _packed_loss(in_rows, padded[3:])  # a batch of one process may hold nothing else
    nothing.backward()
    assert nothing.item() == 0
