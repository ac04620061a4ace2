"""The committed adapter on bare SmolLM2, by peft alone, as a person with three lines of code has it."""

import json

import torch

from tokenskip_lib.core.profiles import load_profile
from tokenskip_lib.models.adapters import WEIGHTS, find_adapter
from tokenskip_lib.models.loading import find_model
from tokenskip_lib.models.prompts import build_prompt
from tokenskip_lib.models.standalone import digest, included
from tokenskip_lib.problems.grading import is_correct, split_output
from tokenskip_lib.problems.sets import load_problems


def test_it_includes_the_committed_target_adapter_and_both_are_small():
    adapter, target = find_adapter("data/tokenskip_adapter"), find_adapter("data/target_adapter")
    assert included(adapter) == digest(target) and included(target) is None
    assert sum((folder / WEIGHTS).stat().st_size for folder in (adapter, target)) <= 20_000_000


def test_three_lines_of_peft_solve_the_demos_first_test_problems_at_a_half(real_tokenizer):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, GenerationConfig

    profile = load_profile("demo")
    folder = find_adapter("data/tokenskip_adapter")
    name = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert name == profile.target.model
    where = find_model(name, profile.target.cache_dir)  # the wheel's copy, where the hub is out of reach

    model = AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, str(folder))
    greedy = GenerationConfig.from_pretrained(folder)

    chosen = load_problems(profile, "test").problems[:8]
    prompts = [build_prompt(real_tokenizer, p.question, profile.prompts, ratio=0.5) for p in chosen]
    inputs = real_tokenizer(prompts, add_special_tokens=False, padding=True, return_tensors="pt")
    greedy.max_new_tokens = 96  # the test's patience; an answer has about 35
    with torch.inference_mode():
        made = model.generate(**inputs, generation_config=greedy)[:, inputs["input_ids"].shape[1] :]
    outputs = real_tokenizer.batch_decode(made, skip_special_tokens=True)
    right = [is_correct(split_output(text).prediction, p.answer) for text, p in zip(outputs, chosen, strict=True)]
    assert sum(right) >= 6
    words = sum(len(split_output(text).chain.split()) for text in outputs)
    assert words < 0.8 * sum(len(p.solution.split()) for p in chosen)  # and it skips
