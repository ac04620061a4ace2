"""Recovery: what the model is asked, and what is counted of its answers."""

import pandas as pd
import pytest

from tokenskip_lib.analyses.recovery import RECOVERY_COLUMNS, recover, summarise_recovery
from tokenskip_lib.core.records import Chain, InputError, Problem
from tokenskip_lib.core.settings import PromptSettings
from tokenskip_lib.experiments import stages, steps
from tokenskip_lib.experiments.run import Run
from tokenskip_lib.models.prompts import RECOVERY, build_recovery_prompt


def test_the_model_is_asked_in_the_papers_words(tiny_tokenizer):
    prompt = build_recovery_prompt(tiny_tokenizer, "How many {x}?", "3 + 4 = {7}", PromptSettings(system="S"))
    asked = RECOVERY.format(question="How many {x}?", chain="3 + 4 = {7}")
    assert "\nThe question is:\nHow many {x}?\n\nThe compressed Chain-of-Thought:\n3 + 4 = {7}\n\n" in asked
    assert prompt == (f"<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n")


def test_the_first_chains_are_recovered_at_each_ratio(tiny_profile, problems, chain_of):
    run = Run.create(tiny_profile)
    run.store(steps.TRAIN_PROBLEMS, Problem).append(problems[:3])
    run.store(steps.CHAINS, Chain).append(chain_of(problem) for problem in problems[:3])
    stages.score(run)
    stages.prune(run)
    table = recover(run, [1.0, 0.5], 2)
    assert list(table.columns) == RECOVERY_COLUMNS
    with pytest.raises(InputError, match=r"no chains at 0\.65; pruned were \[0\.5, 0\.7, 1\.0\]"):
        recover(run, [0.65], 2)
    asked = [(f"p{number}", ratio) for number in (0, 1) for ratio in (1.0, 0.5, 0.0)]
    assert list(zip(table["id"], table["ratio"], strict=True)) == asked
    assert (table.loc[table["ratio"] == 0, "pruned"] == "").all()
    assert (table.loc[table["ratio"] == 1, ["numbers_pruned", "equations_pruned"]] == 1).all(axis=None)
    assert table["recovered"].nunique() > 1 and table["numbers_recovered"].between(0, 1).all()


def test_shares_are_means_over_the_chains_that_have_some_and_lie_in_their_intervals():
    table = pd.DataFrame({"id": ["a", "b", "c"], "ratio": 0.5, "pruned": "", "recovered": ""})
    table = table.assign(numbers_pruned=[1.0, 0.5, 0.0], numbers_recovered=1.0, equations_pruned=[None, 0.2, None])
    shares = summarise_recovery(table.assign(equations_recovered=None)).set_index("part")
    assert list(shares.index) == ["numbers_pruned", "numbers_recovered", "equations_pruned"]  # nothing to recover: none
    assert shares["n"].tolist() == [3, 3, 1] and shares["value"].tolist() == [0.5, 1.0, 0.2]
    low, high = shares.loc["numbers_pruned", ["low", "high"]]
    assert 0 <= low < 0.5 < high <= 1
    assert shares.loc["numbers_recovered", ["low", "high"]].tolist() == [1.0, 1.0]
