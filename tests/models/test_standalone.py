"""An adapter that includes the target model's adapter works on the base model; any other kind is refused."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tokenskip_lib.core.records import InputError
from tokenskip_lib.core.settings import TargetSettings
from tokenskip_lib.inference.engine import Request, TransformersEngine
from tokenskip_lib.models.adapters import CONFIG, WEIGHTS
from tokenskip_lib.models.loading import load_attached, load_model
from tokenskip_lib.models.standalone import save_adapter

IDS = torch.tensor([[5, 6, 7, 8]])


@pytest.fixture
def lora(tiny_target, tmp_path):
    """A function name, LoRA settings -> the folder of a random adapter for the tiny model."""

    def make(name, **settings):
        torch.manual_seed(sum(map(ord, name)))
        config = LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **settings)
        get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_target), config).save_pretrained(tmp_path / name)
        return tmp_path / name

    return make


@pytest.fixture
def target(lora):
    return lora("target", r=3, lora_alpha=5, target_modules=["q_proj", "v_proj", "down_proj"])


@pytest.fixture
def on_top(lora):
    """An adapter that changes the target model, as training leaves it: other layers, another rank and scaling."""
    return lora("on_top", r=4, lora_alpha=2, target_modules=["q_proj", "gate_proj", "down_proj"])


@pytest.fixture
def standalone(target, on_top, tmp_path):
    config = LoraConfig.from_pretrained(on_top)
    save_adapter(tmp_path / "standalone", config, load_file(on_top / WEIGHTS), target)
    return tmp_path / "standalone"


@pytest.fixture
def base(tiny_target):
    return TargetSettings(model=str(tiny_target), device="cpu", dtype="float32")


@pytest.fixture
def settings(base, target):
    return base.model_copy(update={"adapter": str(target)})


def _merged(model, *folders):
    for folder in folders:
        model = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    return model.eval()


def _same(model, other, tolerance=1e-6):
    weights = other.state_dict()
    return all(torch.allclose(value, weights[name], atol=tolerance) for name, value in model.state_dict().items())


def test_three_lines_of_peft_on_the_base_give_the_target_with_the_adapter(tiny_target, target, on_top, standalone):
    model = AutoModelForCausalLM.from_pretrained(tiny_target)
    model = PeftModel.from_pretrained(model, str(standalone))
    with torch.no_grad():
        alone = model(input_ids=IDS).logits
        wanted = _merged(AutoModelForCausalLM.from_pretrained(tiny_target), target, on_top)(input_ids=IDS).logits
        without = _merged(AutoModelForCausalLM.from_pretrained(tiny_target), on_top)(input_ids=IDS).logits
    assert torch.allclose(alone, wanted, atol=1e-4) and not torch.allclose(without, wanted, atol=1e-2)
    config = json.loads((standalone / CONFIG).read_text())
    assert (config["r"], config["lora_alpha"]) == (7, 7)
    assert config["target_modules"] == ["down_proj", "gate_proj", "q_proj", "v_proj"]


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, 1.5])
def test_a_strength_scales_the_change_of_the_target_model_alone(settings, target, on_top, standalone, strength):
    of_target, of_both = (
        _merged(AutoModelForCausalLM.from_pretrained(settings.model), *folders).state_dict()
        for folders in ([target], [target, on_top])
    )
    scaled = load_model(settings, adapter=standalone, strength=strength).state_dict()
    for name, value in scaled.items():
        wanted = of_target[name] + strength * (of_both[name] - of_target[name])
        assert torch.allclose(value, wanted, atol=1e-6), name


def test_the_model_with_it_is_loaded_on_the_base(settings, base, standalone):
    assert _same(load_model(settings, adapter=standalone), load_model(base, adapter=standalone))


def test_attached_both_answer_as_merged_models_do(settings, standalone, tiny_tokenizer):
    prompts = {"a": "What is 3 + 4?", "b": "How many apples?"}
    requests = [Request((name, who), text, 8, who) for name, text in prompts.items() for who in (None, "tokenskip")]

    def answers(model, asked):
        made = TransformersEngine(model, tiny_tokenizer, 2).generate(asked)
        return {answer.key: answer.text for batch in made for answer in batch}

    together = answers(load_attached(settings, standalone), requests)
    for who, adapter in ((None, None), ("tokenskip", standalone)):
        asked = [Request((name, who), text, 8) for name, text in prompts.items()]
        apart = answers(load_model(settings, adapter=adapter), asked)
        assert {key: together[key] for key in apart} == apart
    assert together["a", None] != together["a", "tokenskip"]


def test_what_is_not_for_this_target_model_is_refused(settings, base, on_top, standalone, lora):
    other = lora("other", r=2, target_modules=["q_proj"])
    elsewhere = settings.model_copy(update={"adapter": str(other)})
    for load in (load_model, lambda given, adapter: load_attached(given, adapter)):
        with pytest.raises(InputError, match=r"on_top: it does not include the target.adapter .*run --from 04"):
            load(settings, adapter=on_top)
        with pytest.raises(InputError, match=r"standalone: it includes another adapter than the target.adapter"):
            load(elsewhere, adapter=standalone)
    load_model(base, adapter=on_top)  # without a target.adapter nothing has changed


@pytest.mark.parametrize(
    "kind",
    [{"use_dora": True}, {"use_rslora": True}, {"rank_pattern": {"q_proj": 2}}, {"modules_to_save": ["lm_head"]}],
)
def test_a_target_adapter_that_is_no_plain_lora_is_refused(lora, on_top, tmp_path, kind):
    target = lora("special", r=3, target_modules=["q_proj"], **kind)
    config = LoraConfig.from_pretrained(on_top)
    with pytest.raises(InputError, match=rf"special: {next(iter(kind))} is .*target\.model"):
        save_adapter(tmp_path / "made", config, load_file(on_top / WEIGHTS), target)
    assert not (tmp_path / "made").exists()


def test_halves_that_bfloat16_holds_are_stored_in_it(tiny_target, lora, on_top, tmp_path):
    target = lora("doubled", r=2, lora_alpha=4, target_modules=["q_proj", "gate_proj", "down_proj"])
    short = {name: value.to(torch.bfloat16) for name, value in load_file(on_top / WEIGHTS).items()}
    save_adapter(
        target,
        LoraConfig.from_pretrained(target),
        {n: v.to(torch.bfloat16) for n, v in load_file(target / WEIGHTS).items()},
    )
    save_adapter(tmp_path / "made", LoraConfig.from_pretrained(on_top), short, target)
    made = load_file(tmp_path / "made" / WEIGHTS)
    assert {value.dtype for value in made.values()} == {torch.bfloat16}  # scalings of 2 and 0.5 lose nothing
    kept = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    assert torch.equal(made[kept][:, 2:].float(), short[kept].float() / 2)
