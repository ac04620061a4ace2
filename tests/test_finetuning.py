"""Training rows: ratios drawn evenly, prompts masked, the loss on the response and nothing else."""

import json
from collections import Counter

import pytest
import torch

from tokenskip_lib import finetuning
from tokenskip_lib.config import PromptSettings, TrainingSettings
from tokenskip_lib.finetuning import build_sft_rows, draw_ratios, encode_rows, export_rows, train_adapter
from tokenskip_lib.prompts import answer_tail, build_prompt, encode_prompt
from tokenskip_lib.records import InputError, PrunedChain, SFTRow

RATIOS = [0.5, 0.6, 0.7, 0.8, 0.9, 1.0]


def _pruned(problem, ratio=0.5) -> PrunedChain:
    return PrunedChain(
        id=problem.id, scorer="s", ratio=ratio, text=problem.solution, kept=[0], tokens=5, original_tokens=10
    )


@pytest.fixture
def rows(problems, tiny_tokenizer):
    chains = [_pruned(problem, RATIOS[index]) for index, problem in enumerate(problems)]
    by_id = {problem.id: problem for problem in problems}
    return build_sft_rows(chains, by_id, tiny_tokenizer, PromptSettings(), held_out=0.4, seed=0)


def test_ratios_are_drawn_evenly_one_a_problem():
    ids = [f"p{number}" for number in range(3000)]
    drawn = draw_ratios(ids, RATIOS, seed=0)
    counts = Counter(drawn.values())
    assert list(drawn) == ids and set(counts) == set(RATIOS)
    assert all(
        abs(count - 500) < 5 * (3000 / 6 * 5 / 6) ** 0.5 for count in counts.values()
    )  # five standard deviations


def test_the_draw_is_the_seeds():
    ids = [f"p{number}" for number in range(50)]
    assert draw_ratios(ids, RATIOS, seed=3) == draw_ratios(ids, RATIOS, seed=3)
    assert draw_ratios(ids, RATIOS, seed=3) != draw_ratios(ids, RATIOS, seed=4)


def test_a_row_is_the_marked_question_then_the_pruned_chain_and_the_untouched_answer(problems, rows, tiny_tokenizer):
    for problem, row, ratio in zip(problems, rows, RATIOS, strict=False):
        assert (row.id, row.ratio) == (problem.id, ratio)
        assert row.prompt == build_prompt(
            tiny_tokenizer, problem.question, PromptSettings(), method="tokenskip", ratio=ratio
        )
        assert row.completion == problem.solution + answer_tail(problem.answer)


def test_a_share_of_the_rows_is_held_out_and_the_seed_says_which(problems, tiny_tokenizer):
    def held_out(share, seed):
        chains = [_pruned(problems[0].model_copy(update={"id": f"p{i}"})) for i in range(40)]
        by_id = {chain.id: problems[0] for chain in chains}
        made = build_sft_rows(chains, by_id, tiny_tokenizer, PromptSettings(), held_out=share, seed=seed)
        return [row.id for row in made if row.held_out]

    assert len(held_out(0.1, 0)) == 4 and held_out(0, 0) == []
    assert held_out(0.1, 0) == held_out(0.1, 0) != held_out(0.1, 1)


def test_labels_are_masked_on_the_prompt_and_the_response_ends_in_the_end_token(rows, tiny_tokenizer):
    encoded, too_long = encode_rows(rows, tiny_tokenizer, 10_000)
    assert too_long == 0 and len(encoded) == len(rows)
    for row, example in zip(rows, encoded, strict=True):
        prompt = encode_prompt(tiny_tokenizer, row.prompt)
        ids, labels = example["input_ids"], example["labels"]
        assert len(ids) == len(labels) and ids[: len(prompt)] == prompt
        assert labels[: len(prompt)] == [-100] * len(prompt)
        assert labels[len(prompt) :] == ids[len(prompt) :] and -100 not in labels[len(prompt) :]
        assert labels[-1] == tiny_tokenizer.eos_token_id
        assert tiny_tokenizer.decode(labels[len(prompt) : -1]) == row.completion


def test_rows_above_the_limit_are_left_out_whole_and_counted(rows, tiny_tokenizer):
    lengths = sorted(len(example["input_ids"]) for example in encode_rows(rows, tiny_tokenizer, 10_000)[0])
    encoded, too_long = encode_rows(rows, tiny_tokenizer, lengths[2])
    kept = [length for length in lengths if length <= lengths[2]]
    assert sorted(len(example["input_ids"]) for example in encoded) == kept
    assert too_long == len(lengths) - len(kept) > 0


def _batch(rows, tokenizer):
    """Right-padded tensors, labels -100 on padding: what a collator makes of the rows."""
    encoded, _ = encode_rows(rows, tokenizer, 10_000)
    width = max(len(example["input_ids"]) for example in encoded)

    def padded(key, value):
        return torch.tensor([example[key] + [value] * (width - len(example[key])) for example in encoded])

    lengths = torch.tensor([[len(example["input_ids"])] for example in encoded])
    return {
        "input_ids": padded("input_ids", tokenizer.pad_token_id),
        "labels": padded("labels", -100),
        "attention_mask": (torch.arange(width)[None] < lengths).long(),
    }


def test_the_loss_is_plain_cross_entropy_on_the_response_tokens(rows, tiny_model, tiny_tokenizer):
    inputs = _batch(rows, tiny_tokenizer)
    with torch.no_grad():
        plain = tiny_model(**inputs).loss
        ours = finetuning._response_loss(tiny_model, inputs)
        accumulated = finetuning._response_loss(tiny_model, inputs, 1000)
    assert ours.item() == pytest.approx(plain.item(), abs=1e-4)
    count = (inputs["labels"] != -100).sum().item()
    assert accumulated.item() == pytest.approx(plain.item() * count / 1000, abs=1e-4)


def test_the_loss_ignores_padding_and_has_gradients_from_the_response_alone(rows, tiny_model, tiny_tokenizer):
    inputs = _batch(rows[:1], tiny_tokenizer)
    padded = {
        "input_ids": torch.nn.functional.pad(inputs["input_ids"], (0, 7), value=tiny_tokenizer.pad_token_id),
        "labels": torch.nn.functional.pad(inputs["labels"], (0, 7), value=-100),
        "attention_mask": torch.nn.functional.pad(inputs["attention_mask"], (0, 7)),
    }
    with torch.no_grad():
        ours, with_padding = (finetuning._response_loss(tiny_model, given) for given in (inputs, padded))
    assert ours.item() == pytest.approx(with_padding.item(), abs=1e-4)


@pytest.fixture
def fresh_model(tiny_target):
    """A model of one's own: training puts an adapter into it."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_target)


def test_a_training_without_rows_is_refused_before_anything_is_written(
    fresh_model, tiny_tokenizer, problems, rows, tmp_path
):
    for given, limit in (([row.model_copy(update={"held_out": True}) for row in rows], 2048), (rows, 1)):
        with pytest.raises(InputError, match="no training rows"):
            train_adapter(
                fresh_model, tiny_tokenizer, given, TrainingSettings(max_tokens=limit), tmp_path / "adapter",
                base_name="tiny", seed=0,
            )  # fmt: skip
    assert not (tmp_path / "adapter").exists()


def test_training_learns_the_response_and_saves_an_adapter_for_the_base(
    fresh_model, tiny_model, tiny_tokenizer, rows, tmp_path
):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "adapter"
    # As good as no learning rate at first: what is measured is then the base model's own loss.
    settings = TrainingSettings(learning_rate=1e-12, epochs=1, batch_size=2, accumulation=1, log_every=1)
    held_out = [row for row in rows if row.held_out]
    summary = train_adapter(fresh_model, tiny_tokenizer, rows, settings, folder, base_name="tiny", seed=0)
    with torch.no_grad():
        by_hand = tiny_model(**_batch(held_out, tiny_tokenizer)).loss.item()
    assert summary["held_out_loss"] == pytest.approx(by_hand, abs=2e-3)
    assert (summary["rows_trained"], summary["rows_held_out"], summary["rows_too_long"]) == (3, 2, 0)
    assert summary["steps"] == 2 and 0 < summary["trainable_parameters"] < summary["all_parameters"]

    trained = train_adapter(
        AutoModelForCausalLM.from_pretrained(fresh_model.name_or_path), tiny_tokenizer, rows,
        settings.model_copy(update={"learning_rate": 0.02, "epochs": 8}), folder, base_name="tiny", seed=0,
    )  # fmt: skip
    assert trained["train_loss"] < summary["train_loss"] - 0.5
    assert json.loads((folder / "summary.json").read_text()) == trained
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"
    assert not (folder / "checkpoints").exists()
    log = [json.loads(line) for line in (folder / "training_log.jsonl").read_text().splitlines()]
    assert {"step", "epoch"} <= set(log[0]) and any("eval_loss" in line for line in log)

    base = AutoModelForCausalLM.from_pretrained(fresh_model.name_or_path)
    adapted = PeftModel.from_pretrained(base, str(folder)).merge_and_unload().eval()
    train = [row for row in rows if not row.held_out]
    with torch.no_grad():
        before, after = (model(**_batch(train, tiny_tokenizer)).loss.item() for model in (tiny_model, adapted))
    assert after < before - 0.5


def test_an_sft_row_refuses_what_is_no_row():
    with pytest.raises(ValueError):
        SFTRow(id="a", ratio=0.5, prompt="p", completion=None, held_out=False)


def _lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_for_trl_are_the_tokens_that_we_train_on(problems, rows, tiny_tokenizer, tmp_path):
    by_id = {problem.id: problem for problem in problems}
    paths = export_rows(rows, by_id, tiny_tokenizer, PromptSettings(), "trl", tmp_path)
    assert [path.name for path in paths] == ["train.jsonl", "held_out.jsonl"]
    ordered = [row for held_out in (False, True) for row in rows if row.held_out == held_out]
    for row, exported in zip(ordered, [line for path in paths for line in _lines(path)], strict=True):
        # As trl does with messages: the template once over the prompt, once over the whole.
        prompt = tiny_tokenizer.apply_chat_template(exported["prompt"], tokenize=False, add_generation_prompt=True)
        whole = tiny_tokenizer.apply_chat_template(exported["prompt"] + exported["completion"], tokenize=False)
        assert prompt == row.prompt
        assert whole.rstrip("\n") == row.prompt + row.completion + tiny_tokenizer.eos_token


def test_rows_for_trl_in_the_references_formats_are_plain_text(problems, tiny_tokenizer, tmp_path):
    prompts = PromptSettings(format="reference_qwen")
    chains, by_id = [_pruned(problems[0])], {problems[0].id: problems[0]}
    made = build_sft_rows(chains, by_id, tiny_tokenizer, prompts, held_out=0.0, seed=0)
    [path] = export_rows(made, by_id, tiny_tokenizer, prompts, "trl", tmp_path)
    assert _lines(path) == [{"prompt": made[0].prompt, "completion": made[0].completion}]


def test_rows_for_llama_factory_carry_the_marker_and_are_described(problems, rows, tiny_tokenizer, tmp_path):
    by_id = {problem.id: problem for problem in problems}
    export_rows(rows, by_id, tiny_tokenizer, PromptSettings(), "llamafactory", tmp_path)
    info = json.loads((tmp_path / "dataset_info.json").read_text())
    assert {entry["file_name"] for entry in info.values()} == {"train.jsonl", "held_out.jsonl"}
    row = next(row for row in rows if not row.held_out and row.ratio < 1)
    [line] = [line for line in _lines(tmp_path / "train.jsonl") if by_id[row.id].question in line["instruction"]]
    assert set(info["tokenskip_train"]["columns"].values()) <= set(line)
    assert line["instruction"].endswith(f"<|im_end|>{row.ratio:g}<|im_end|>") and line["output"] == row.completion
    assert line["instruction"] in row.prompt


def test_another_export_style_is_refused(tmp_path, tiny_tokenizer):
    with pytest.raises(InputError, match="did you mean 'trl'"):
        export_rows([], {}, tiny_tokenizer, PromptSettings(), "tlr", tmp_path)
