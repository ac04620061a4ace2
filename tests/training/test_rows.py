"""Training rows: ratios drawn evenly, the marker and the answer whole."""

import copy
from collections import Counter

import pytest

from tokenskip_lib.core.records import SFTRow
from tokenskip_lib.core.settings import PromptSettings, PruningSettings
from tokenskip_lib.models.prompts import answer_tail, build_prompt
from tokenskip_lib.problems.grading import split_output
from tokenskip_lib.training.rows import build_sft_rows, draw_ratios

RATIOS = PruningSettings().ratios


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


def test_a_share_of_the_rows_is_held_out_and_the_seed_says_which(problems, pruned_of, tiny_tokenizer):
    def held_out(share, seed):
        chains = [pruned_of(problems[0].model_copy(update={"id": f"p{i}"})) for i in range(40)]
        by_id = {chain.id: problems[0] for chain in chains}
        made = build_sft_rows(chains, by_id, tiny_tokenizer, PromptSettings(), held_out=share, seed=seed)
        return [row.id for row in made if row.held_out]

    assert len(held_out(0.1, 0)) == 4 and held_out(0, 0) == []
    assert held_out(0.1, 0) == held_out(0.1, 0) != held_out(0.1, 1)


def test_an_sft_row_refuses_what_is_no_row():
    with pytest.raises(ValueError):
        SFTRow(id="a", ratio=0.5, prompt="p", completion=None, held_out=False)


@pytest.mark.parametrize("opened", [True, False])
def test_a_thinking_row_prunes_the_thinking_and_keeps_what_the_model_wrote_after_it(
    problems, pruned_of, tiny_tokenizer, opened
):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    if opened:  # as in the templates of some of these models
        tokenizer.chat_template = tokenizer.chat_template.replace("assistant\n", "assistant\n<think>\n")
    chain = pruned_of(problems[0]).model_copy(update={"text": "7 apples."})
    tails = {chain.id: "\n</think>\n\nTom has 7."}
    settings = PromptSettings(layout="think", system="")
    by_id = {chain.id: problems[0]}
    [row] = build_sft_rows([chain], by_id, tokenizer, settings, held_out=0, seed=0, tails=tails)
    assert (row.prompt + row.completion).endswith("assistant\n<think>\n7 apples.\n</think>\n\nTom has 7.")
    assert "system" not in row.prompt
    assert split_output(row.completion, "think").chain == "7 apples.\n"
