"""Training rows: ratios drawn evenly, the marker and the answer whole, and the same rows for other trainers."""

import copy
import json
from collections import Counter

import pytest

from tokenskip_lib.core.records import InputError, PrunedChain, SFTRow
from tokenskip_lib.core.settings import PromptSettings
from tokenskip_lib.models.prompts import answer_tail, build_prompt
from tokenskip_lib.problems.grading import split_output
from tokenskip_lib.training.rows import build_sft_rows, draw_ratios, export_rows

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
        assert row.prompt == build_prompt(tiny_tokenizer, problem.question, PromptSettings(), ratio=ratio)
        assert row.completion == problem.solution + answer_tail(problem.answer)


def test_a_share_of_the_rows_is_held_out_and_the_seed_says_which(problems, tiny_tokenizer):
    def held_out(share, seed):
        chains = [_pruned(problems[0].model_copy(update={"id": f"p{i}"})) for i in range(40)]
        by_id = {chain.id: problems[0] for chain in chains}
        made = build_sft_rows(chains, by_id, tiny_tokenizer, PromptSettings(), held_out=share, seed=seed)
        return [row.id for row in made if row.held_out]

    assert len(held_out(0.1, 0)) == 4 and held_out(0, 0) == []
    assert held_out(0.1, 0) == held_out(0.1, 0) != held_out(0.1, 1)


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


@pytest.mark.parametrize("opened", [True, False])
def test_a_thinking_row_prunes_the_thinking_and_keeps_what_the_model_wrote_after_it(problems, tiny_tokenizer, opened):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    if opened:  # as in the templates of some of these models
        tokenizer.chat_template = tokenizer.chat_template.replace("assistant\n", "assistant\n<think>\n")
    chain = _pruned(problems[0]).model_copy(update={"text": "7 apples."})
    tails = {chain.id: "\n</think>\n\nTom has 7."}
    settings = PromptSettings(layout="think", system="")
    by_id = {chain.id: problems[0]}
    [row] = build_sft_rows([chain], by_id, tokenizer, settings, held_out=0, seed=0, tails=tails)
    assert (row.prompt + row.completion).endswith("assistant\n<think>\n7 apples.\n</think>\n\nTom has 7.")
    assert "system" not in row.prompt
    assert split_output(row.completion, "think").chain == "7 apples.\n"
