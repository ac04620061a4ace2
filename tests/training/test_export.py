"""Training rows for other trainers: the same tokens, in the files that those read."""

import copy
import json

import pytest
from tokenizers.processors import TemplateProcessing

from tokenskip_lib.core.records import InputError
from tokenskip_lib.core.settings import PromptSettings
from tokenskip_lib.models.prompts import encode_prompt
from tokenskip_lib.training.export import export_rows
from tokenskip_lib.training.rows import build_sft_rows

# Of the kind of DeepSeek-R1's: what an assistant thought, all that stands before </think>, is deleted.
R1_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% set content = message['content'] %}"
    "{% if message['role'] == 'user' %}<｜User｜>{{ content }}"
    "{% else %}{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
    "<｜Assistant｜>{{ content }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<｜Assistant｜>{% endif %}"
)
THINKING = PromptSettings(layout="think", system="")


@pytest.fixture(params=["", "<think>\n"], ids=["unopened", "opened"])
def r1_tokenizer(request, tiny_tokenizer):
    """A tokenizer with a template of the R1 kind: newer ones open the thought in the prompt."""
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = R1_TEMPLATE.replace(
        "<｜Assistant｜>{% endif %}", f"<｜Assistant｜>{request.param}{{% endif %}}"
    )
    return tokenizer


@pytest.fixture
def thoughts(problems, pruned_of, r1_tokenizer):
    """Training rows of a model that thinks, one for each problem."""
    chains, by_id = [pruned_of(problem) for problem in problems], {problem.id: problem for problem in problems}
    tails = {problem.id: f"\n</think>\n\nIt is {problem.answer}." for problem in problems}
    return build_sft_rows(chains, by_id, r1_tokenizer, THINKING, held_out=0, seed=0, tails=tails)


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


def test_rows_for_trl_in_the_references_formats_are_plain_text(problems, pruned_of, tiny_tokenizer, tmp_path):
    prompts = PromptSettings(format="reference_qwen")
    chains, by_id = [pruned_of(problems[0])], {problems[0].id: problems[0]}
    made = build_sft_rows(chains, by_id, tiny_tokenizer, prompts, held_out=0.0, seed=0)
    [path] = export_rows(made, by_id, tiny_tokenizer, prompts, "trl", tmp_path)
    assert _lines(path) == [{"prompt": made[0].prompt, "completion": made[0].completion}]


def test_rows_of_a_model_that_thinks_keep_their_chains_in_trl(problems, thoughts, r1_tokenizer, tmp_path):
    by_id = {problem.id: problem for problem in problems}
    [path] = export_rows(thoughts, by_id, r1_tokenizer, THINKING, "trl", tmp_path)
    for row, problem, line in zip(thoughts, problems, _lines(path), strict=True):
        text = line["prompt"] + line["completion"]  # as trl does with plain text, before it adds the end token
        assert text == row.prompt + row.completion and text.count("<think>") == text.count("</think>") == 1
        assert f"<think>\n{problem.solution}\n</think>" in text and problem.solution not in line["prompt"]
        turns = [{"role": "user", "content": problem.question}, {"role": "assistant", "content": line["completion"]}]
        assert problem.solution not in r1_tokenizer.apply_chat_template(turns, tokenize=False)  # why no messages


def test_plain_rows_for_trl_have_one_start_token_after_its_tokenization(problems, thoughts, r1_tokenizer, tmp_path):
    first = r1_tokenizer.bos_token_id
    adding = copy.deepcopy(r1_tokenizer)
    start = (r1_tokenizer.bos_token, first)
    adding.backend_tokenizer.post_processor = TemplateProcessing(single=f"{start[0]} $A", special_tokens=[start])
    by_id = {problem.id: problem for problem in problems}
    for tokenizer in (r1_tokenizer, adding):
        [path] = export_rows(thoughts, by_id, tokenizer, THINKING, "trl", tmp_path / str(tokenizer is adding))
        for row, line in zip(thoughts, _lines(path), strict=True):
            assert tokenizer(line["prompt"]).input_ids == encode_prompt(tokenizer, row.prompt)
            assert tokenizer(line["prompt"] + line["completion"]).input_ids.count(first) == 1


def test_rows_of_a_model_that_thinks_open_the_thought_in_llama_factory(problems, thoughts, r1_tokenizer, tmp_path):
    by_id = {problem.id: problem for problem in problems}
    export_rows(thoughts, by_id, r1_tokenizer, THINKING, "llamafactory", tmp_path)
    for problem, line in zip(problems, _lines(tmp_path / "train.jsonl"), strict=True):
        assert line["output"] == f"<think>\n{problem.solution}\n</think>\n\nIt is {problem.answer}."
        assert "<think>" not in line["instruction"]


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


def test_a_file_of_someone_else_is_not_written_over(problems, rows, tiny_tokenizer, tmp_path):
    by_id = {problem.id: problem for problem in problems}
    (tmp_path / "dataset_info.json").write_text("mine")  # LLaMA-Factory's own folder has one
    with pytest.raises(InputError, match=r"dataset_info\.json: there already, with another content"):
        export_rows(rows, by_id, tiny_tokenizer, PromptSettings(), "llamafactory", tmp_path)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]
    for _ in range(2):  # the same once more is no other content
        export_rows(rows, by_id, tiny_tokenizer, PromptSettings(), "trl", tmp_path)
