"""The model card: its code runs as it stands, and what it says is what the training and the evaluation gave."""

import contextlib
import io
import re

import pandas as pd
import pytest
import yaml

from tokenskip_lib.core.settings import PromptSettings
from tokenskip_lib.models.prompts import build_prompt
from tokenskip_lib.training.card import EXAMPLE_RATIO, QUESTION, model_card
from tokenskip_lib.training.lora import generation_config

SUMMARY = {
    "rows_trained": 1200,
    "rows_held_out": 30,
    "steps": 150,
    "held_out_loss": 0.0536,
    "seed": 3,
    "recipe": {
        "rank": 4, "alpha": 8, "learning_rate": 3e-4, "warmup": 0.1, "epochs": 2.0, "batch_size": 2, "accumulation": 4,
    },
}  # fmt: skip


@pytest.fixture
def card(tiny_target, tiny_tokenizer):
    """A function of options -> a card for the tiny model."""

    def make(base=str(tiny_target), prompts=None, **options) -> str:
        ratios = [0.5, 0.9, 1.0]
        return model_card(
            base, tiny_tokenizer, prompts or PromptSettings(), SUMMARY, data="The rows are made up.", ratios=ratios,
            **options,
        )  # fmt: skip

    return make


def _run_its_code(text: str, folder, monkeypatch) -> str:
    """What the card's code prints in the folder that it is for."""
    [code] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(folder)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(compile(code, "card", "exec"), {})
    return said.getvalue()


@pytest.mark.parametrize("merged", [False, True])
def test_the_code_of_the_card_asks_the_example(card, merged, make_adapter, tiny_model, tiny_tokenizer, monkeypatch):
    folder = make_adapter(1)
    settings = generation_config(tiny_model.generation_config, tiny_tokenizer)
    settings.max_new_tokens = 4
    if merged:
        tiny_model.save_pretrained(folder)
        tiny_tokenizer.save_pretrained(folder)
    settings.save_pretrained(folder)
    assert _run_its_code(card(merged=merged), folder, monkeypatch).strip()


def test_the_prompt_of_the_card_is_that_of_the_training(card, tiny_tokenizer):
    prompt = build_prompt(tiny_tokenizer, QUESTION, PromptSettings(), ratio=EXAMPLE_RATIO)
    text = card()
    assert repr(prompt) in text and prompt.rstrip() in text
    assert "`<|im_end|>0.5<|im_end|>`" in text and "trained: 0.5, 0.9." in text
    words = card(prompts=PromptSettings(marker="words"))
    assert "`Keep 50% of your reasoning.`" in words and "<|im_end|>0.5" not in words


def test_the_card_has_the_recipe_the_figures_and_the_licence(card):
    metrics = pd.DataFrame(
        {
            "method": ["original", "tokenskip", "be_concise"], "ratio": [1.0, 0.5, 1.0], "n": [150, 150, 150],
            "accuracy": [0.9, 0.845, 0.1], "accuracy_low": [0.85, 0.8, 0.0], "accuracy_high": [0.95, 0.89, 0.2],
            "chain_tokens": [40.0, 21.04, 1.0], "actual_ratio": [1.0, 0.526, 0.1],
        }
    )  # fmt: skip
    text = card(base="HuggingFaceTB/SmolLM2-135M-Instruct", metrics=metrics)
    assert "| original |  | 150 | 90.0 (85.0-95.0) | 40.0 | 1.00 |" in text
    assert "| tokenskip | 0.5 | 150 | 84.5 (80.0-89.0) | 21.0 | 0.53 |" in text and "be_concise" not in text
    for said in (
        "1,200 trained, 30 held out; 150 steps",
        "rank 4, alpha 8",
        "0.0003",
        "batch 8, seed 3",
        "0.0536 nats",
    ):
        assert said in text
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["license"] == "apache-2.0" and head["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert head["library_name"] == "peft" and "apache-2.0, as the base model's" in text
    unknown = card(base="some/model")
    assert "license" not in yaml.safe_load(unknown.split("---\n")[1]) and "not evaluated" in unknown
    assert "licence of the base model, some/model, applies" in unknown
