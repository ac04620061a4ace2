"""Training rows for other trainers: the same tokens, in the files that those read."""

import json

import pytest

from tokenskip_lib.core.records import InputError, PrunedChain
from tokenskip_lib.core.settings import PromptSettings
from tokenskip_lib.training.export import export_rows
from tokenskip_lib.training.rows import build_sft_rows

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
