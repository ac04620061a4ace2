"""Marker `token`: a model never trained its spare tokens, so their embeddings are alike until a training moves them."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import tokenskip_lib as ts
from tokenskip_lib.core.profiles import load_profile, with_overrides
from tokenskip_lib.core.records import InputError, PrunedChain, SFTRow
from tokenskip_lib.core.settings import PromptSettings, TargetSettings, TrainingSettings
from tokenskip_lib.experiments import stages
from tokenskip_lib.experiments.run import Run
from tokenskip_lib.experiments.steps import ADAPTER, SFT_ROWS
from tokenskip_lib.models.adapters import WEIGHTS
from tokenskip_lib.models.averaging import average_adapters
from tokenskip_lib.models.loading import load_attached, load_model
from tokenskip_lib.models.prompts import build_prompt, encode_prompt, ratio_tokens
from tokenskip_lib.models.rounding import round_adapter
from tokenskip_lib.training.log import LogWriter
from tokenskip_lib.training.lora import train_adapter
from tokenskip_lib.training.rows import build_sft_rows
from tokenskip_lib.training.start import model_to_train

PROMPTS = PromptSettings(marker="token")
SETTINGS = TrainingSettings(learning_rate=0.02, epochs=2, batch_size=2, accumulation=1, held_out=0)


@pytest.fixture
def tokenizer(tiny_tokenizer):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": [f"<spare_{number}>" for number in range(12)]})
    return tokenizer


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def base(request, tokenizer, tiny_model, tmp_path):
    """A model whose spare tokens all have one embedding; the output layer is the embeddings' table, or its own."""
    config = copy.deepcopy(tiny_model.config)
    config.tie_word_embeddings = request.param
    config.vocab_size = len(tokenizer)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    table = model.get_input_embeddings().weight.data
    table[-12:] = table[-12]
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return TargetSettings(model=str(tmp_path / "base"), device="cpu", dtype="float32")


@pytest.fixture
def target(base, tmp_path):
    """The base model with an adapter of its own in it."""
    torch.manual_seed(1)
    config = LoraConfig(r=3, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base.model), config).save_pretrained(tmp_path / "target")
    return base.model_copy(update={"adapter": str(tmp_path / "target")})


@pytest.fixture
def rows(problems, tokenizer):
    chains = [
        PrunedChain(id=p.id, scorer="s", ratio=ratio, text=p.solution, kept=[0], tokens=5, original_tokens=10)
        for p, ratio in zip(problems, (0.5, 0.9, 0.5, 0.9), strict=False)
    ]
    by_id = {problem.id: problem for problem in problems}
    return build_sft_rows(chains, by_id, tokenizer, PROMPTS, held_out=0, seed=0)


def _logits(model, tokenizer, ratio):
    ids = encode_prompt(tokenizer, build_prompt(tokenizer, "How many apples?", PROMPTS, ratio=ratio))
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([ids])).logits[0, -1]


def _train(settings, tokenizer, rows, folder, training=SETTINGS):
    return train_adapter(
        model_to_train(settings, training), tokenizer, rows, training, folder,
        base_name=settings.model, seed=0, target=settings.adapter, prompts=PROMPTS,
    )  # fmt: skip


@pytest.mark.parametrize("adapted", [True, False], ids=["on an adapter", "on the base"])
def test_a_training_moves_the_ratios_apart_and_every_way_to_load_it_agrees(
    base, target, adapted, tokenizer, rows, tmp_path
):
    settings, folder = target if adapted else base, tmp_path / "adapter"
    before = load_model(settings)
    assert torch.equal(_logits(before, tokenizer, 0.5), _logits(before, tokenizer, 0.9))
    _train(settings, tokenizer, rows, folder)
    merged = load_model(settings, adapter=folder)
    attached = load_attached(settings, folder)
    attached.set_adapter("tokenskip")
    alone = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(settings.model), str(folder))
    for ratio in (0.5, 0.9, 1.0):
        wanted = _logits(alone, tokenizer, ratio)
        for model in (merged, attached):
            assert torch.allclose(_logits(model, tokenizer, ratio), wanted, atol=1e-4)
    moved = _logits(merged, tokenizer, 0.5) - _logits(merged, tokenizer, 0.9)
    assert moved.abs().max() > 1e-3


def test_a_killed_training_goes_on_with_the_embeddings_it_had(base, tokenizer, rows, tmp_path, monkeypatch):
    every = SETTINGS.model_copy(update={"save_every": 1})
    _train(base, tokenizer, rows, tmp_path / "whole", every)
    step_end = LogWriter.on_step_end

    def killed(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise KeyboardInterrupt
        step_end(self, args, state, control, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(LogWriter, "on_step_end", killed)
        _train(base, tokenizer, rows, tmp_path / "killed", every)
    assert (tmp_path / "killed/checkpoints/checkpoint-2").exists()
    _train(base, tokenizer, rows, tmp_path / "killed", every)
    whole, resumed = (load_file(tmp_path / name / WEIGHTS) for name in ("whole", "killed"))
    (moved,) = [name for name in whole if "trainable_tokens" in name]
    assert whole.keys() == resumed.keys() and whole[moved].shape[0] == 2
    assert all(torch.allclose(whole[name], resumed[name], atol=1e-5) for name in whole)


def test_the_tokens_are_those_of_the_ratios_below_1_and_none_with_another_marker(tokenizer):
    wanted = tokenizer.convert_tokens_to_ids(["<spare_4>", "<spare_8>"])
    assert ratio_tokens(tokenizer, PROMPTS, [0.9, 0.5, 1.0, 0.5]) == wanted
    assert ratio_tokens(tokenizer, PromptSettings(), [0.5]) == ratio_tokens(tokenizer, PROMPTS, [1.0]) == []
    with pytest.raises(InputError, match=r"no spare special token for ratio 0\.75"):
        ratio_tokens(tokenizer, PROMPTS, [0.75])


def test_a_run_and_the_python_api_train_the_tokens_too(base, tiny_profile, rows, problems, tmp_path):
    settings = {"target.model": base.model, "prompts.marker": "token", "training.epochs": 1}
    run = Run.create(with_overrides(tiny_profile, settings, where="test"))
    run.store(SFT_ROWS, SFTRow).append(rows)
    stages.train(run)
    model = ts.load(base.model, device="cpu", dtype="float32", prompts=PROMPTS)
    chains = [{"question": p.question, "answer": p.answer, "chain": p.solution} for p in problems]
    pruned = ts.prune(ts.score(chains, model, scorer="position"), ratios=[0.5, 0.9], model=model)
    ts.train(pruned, model, tmp_path / "own", epochs=1, ratios_a_problem="all", held_out=0)
    for folder in (run.folder / ADAPTER, tmp_path / "own"):
        (moved,) = [value for name, value in load_file(folder / WEIGHTS).items() if "trainable_tokens" in name]
        assert len(moved) == 2
        assert "and the embeddings of the marker's tokens" in (folder / "README.md").read_text()


def test_an_adapter_with_tokens_is_neither_averaged_nor_rounded(base, tokenizer, rows, tmp_path):
    _train(base, tokenizer, rows, tmp_path / "adapter")
    for use in (lambda: average_adapters([tmp_path / "adapter"] * 2, tmp_path / "mean"),
                lambda: round_adapter(tmp_path / "adapter", tmp_path)):  # fmt: skip
        with pytest.raises(InputError, match=r"trainable_token_indices is .*only a plain LoRA adapter can be"):
            use()


def test_a_training_that_goes_on_from_an_adapter_refuses_the_tokens(base, tokenizer, rows, tmp_path, make_adapter):
    goes_on = SETTINGS.model_copy(update={"start_from": str(make_adapter(0)), "rank": 4})
    with pytest.raises(InputError, match=r"training\.start_from .*no adapter can go on with prompts\.marker token"):
        _train(base, tokenizer, rows, tmp_path / "adapter", goes_on)


def test_the_demos_spare_tokens_are_alike_and_its_digits_are_not(real_tokenizer):
    table = load_model(load_profile("demo").target).get_input_embeddings().weight.detach().float()
    tokens = table[ratio_tokens(real_tokenizer, PROMPTS, [0.5, 0.6, 0.7, 0.8, 0.9])]
    digits = table[real_tokenizer.convert_tokens_to_ids(list("56789"))]
    assert torch.pdist(tokens).max() < 0.01 and torch.pdist(digits).min() > 1
