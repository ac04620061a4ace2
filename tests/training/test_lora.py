"""LoRA training: the loss is the response's, a kill loses nothing, an adapter for the base comes out."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GenerationConfig

from tokenskip_lib.core.processes import LOCK
from tokenskip_lib.core.records import InputError, PrunedChain
from tokenskip_lib.core.settings import PromptSettings, TargetSettings, TrainingSettings
from tokenskip_lib.models.loading import load_model
from tokenskip_lib.models.packing import IGNORED
from tokenskip_lib.training import lora
from tokenskip_lib.training.arguments import training_arguments
from tokenskip_lib.training.lora import train_adapter
from tokenskip_lib.training.rows import build_sft_rows, encode_rows
from tokenskip_lib.training.start import model_to_train

RATIOS = [0.5, 0.6, 0.7, 0.8, 0.9, 1.0]


@pytest.fixture
def rows(problems, tiny_tokenizer):
    chains = [
        PrunedChain(id=p.id, scorer="s", ratio=r, text=p.solution, kept=[0], tokens=5, original_tokens=10)
        for p, r in zip(problems, RATIOS, strict=False)
    ]
    by_id = {problem.id: problem for problem in problems}
    return build_sft_rows(chains, by_id, tiny_tokenizer, PromptSettings(), held_out=0.4, seed=0)


def _loss(model, rows, tokenizer) -> float:
    """Mean loss over response tokens, each row by itself, as transformers computes it."""
    encoded, _ = encode_rows(rows, tokenizer, 10_000)
    total = 0.0
    for row in encoded:
        ids, labels = row.prompt + row.completion, [IGNORED] * len(row.prompt) + row.completion
        with torch.no_grad():
            loss = model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss.item()
        total += loss * len(row.completion)
    return total / sum(len(row.completion) for row in encoded)


@pytest.fixture
def fresh_model(tiny_target):
    """A model of one's own: training puts an adapter into it."""
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

    folder = tmp_path / "adapter"
    # As good as no learning rate at first: what is measured is then the base model's own loss.
    settings = TrainingSettings(learning_rate=1e-12, epochs=1, batch_size=2, accumulation=1, log_every=1)
    held_out = [row for row in rows if row.held_out]
    summary = train_adapter(fresh_model, tiny_tokenizer, rows, settings, folder, base_name="tiny", seed=0)
    assert summary["held_out_loss"] == pytest.approx(_loss(tiny_model, held_out, tiny_tokenizer), abs=2e-3)
    assert (summary["rows_trained"], summary["rows_held_out"], summary["rows_too_long"]) == (3, 2, 0)
    assert summary["steps"] == 2 and 0 < summary["trainable_parameters"] < summary["all_parameters"]

    trained = train_adapter(
        AutoModelForCausalLM.from_pretrained(fresh_model.name_or_path), tiny_tokenizer, rows,
        settings.model_copy(update={"learning_rate": 0.02, "epochs": 8}), folder, base_name="tiny", seed=0,
    )  # fmt: skip
    assert trained["train_loss"] < summary["train_loss"] - 0.5
    assert json.loads((folder / "summary.json").read_text()) == trained
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny"
    assert config["target_modules"] == sorted(config["target_modules"]) and len(config["target_modules"]) > 1
    modes = {(folder / name).stat().st_mode & 0o777 for name in ("adapter_model.safetensors", "training_log.jsonl")}
    assert len(modes) == 1 and modes.pop() & 0o400
    assert not (folder / "checkpoints").exists()
    log = [json.loads(line) for line in (folder / "training_log.jsonl").read_text().splitlines()]
    assert {"step", "epoch"} <= set(log[0])
    ends = [line["eval_loss"] for line in log if "eval_loss" in line and line["step"] == trained["steps"]]
    assert ends == [pytest.approx(trained["held_out_loss"], abs=1e-4)]  # measured once

    base = AutoModelForCausalLM.from_pretrained(fresh_model.name_or_path)
    adapted = PeftModel.from_pretrained(base, str(folder)).merge_and_unload().eval()
    train = [row for row in rows if not row.held_out]
    assert _loss(adapted, train, tiny_tokenizer) < _loss(tiny_model, train, tiny_tokenizer) - 0.5


def test_an_adapter_that_was_trained_on_a_target_model_stands_alone_on_the_base(
    tiny_target, tiny_tokenizer, rows, make_adapter, tmp_path
):
    from peft import PeftModel

    settings = TargetSettings(model=str(tiny_target), adapter=str(make_adapter(1)), device="cpu", dtype="float32")
    recipe = TrainingSettings(learning_rate=0.02, epochs=4, batch_size=1, accumulation=1, rank=2, alpha=6)
    made = [
        train_adapter(
            load_model(settings), tiny_tokenizer, rows, recipe, tmp_path / name, base_name=str(tiny_target), seed=0,
            target=target,
        )
        for name, target in (("alone", settings.adapter), ("on_top", None))
    ]  # fmt: skip
    assert {**made[0], "seconds": 0} == {**made[1], "seconds": 0}  # the training itself is the same

    ids = torch.tensor([[5, 6, 7, 8]])
    base = AutoModelForCausalLM.from_pretrained(tiny_target)
    alone = PeftModel.from_pretrained(base, str(tmp_path / "alone"))
    merged = PeftModel.from_pretrained(load_model(settings), str(tmp_path / "on_top"))
    with torch.no_grad():
        logits = [model(input_ids=ids).logits for model in (alone, merged, load_model(settings))]
    assert torch.allclose(logits[0], logits[1], atol=1e-4)
    assert not torch.allclose(logits[0], logits[2], atol=1e-2)  # the training has changed something


def test_training_goes_on_from_an_earlier_adapter_which_includes_the_targets(
    tiny_target, tiny_tokenizer, rows, make_adapter, tmp_path
):
    target = TargetSettings(model=str(tiny_target), adapter=str(make_adapter(1)), device="cpu", dtype="float32")
    recipe = TrainingSettings(learning_rate=0.02, epochs=4, batch_size=1, accumulation=1, rank=2, alpha=6)

    def trained(name, **changes):
        settings = recipe.model_copy(update=changes)
        return train_adapter(
            model_to_train(target, settings), tiny_tokenizer, rows, settings, tmp_path / name,
            base_name=str(tiny_target), seed=0, target=target.adapter,
        )  # fmt: skip

    earlier = trained("earlier")
    rank = json.loads((tmp_path / "earlier" / "adapter_config.json").read_text())["r"]
    further = {"start_from": str(tmp_path / "earlier"), "rank": rank, "alpha": 3 * rank}
    unmoved = trained("unmoved", **further, learning_rate=1e-12)
    assert unmoved["held_out_loss"] == pytest.approx(earlier["held_out_loss"], abs=0.02)  # it was saved in bfloat16
    later = trained("later", **further)
    assert later["train_loss"] < unmoved["train_loss"] - 0.05
    assert later["trainable_parameters"] > earlier["trainable_parameters"]  # the target's part learns too
    model = load_model(target, adapter=tmp_path / "later")  # refused, did it not include the target's adapter
    held_out = [row for row in rows if row.held_out]
    assert _loss(model, held_out, tiny_tokenizer) == pytest.approx(later["held_out_loss"], abs=0.02)

    with pytest.raises(InputError, match=f"of rank {rank}; set training.rank"):
        trained("other", start_from=further["start_from"])
    elsewhere = target.model_copy(update={"adapter": str(make_adapter(2))})
    with pytest.raises(InputError, match="includes another adapter"):
        model_to_train(elsewhere, recipe.model_copy(update=further))


def test_the_folder_of_an_adapter_has_generation_settings_and_a_card(fresh_model, tiny_tokenizer, rows, tmp_path):
    settings = TrainingSettings(epochs=1, batch_size=2, accumulation=1)
    train_adapter(
        fresh_model, tiny_tokenizer, rows, settings, tmp_path, base_name="tiny", seed=0,
        card=lambda summary: f"{summary['steps']} steps\n",
    )  # fmt: skip
    assert (tmp_path / "README.md").read_text() == "2 steps\n"
    generation = GenerationConfig.from_pretrained(tmp_path)
    assert not generation.do_sample and generation.eos_token_id == tiny_tokenizer.eos_token_id
    assert (generation.pad_token_id, generation.max_new_tokens) == (tiny_tokenizer.pad_token_id, 512)


def test_losses_go_to_the_trackers_that_the_settings_name(fresh_model, tiny_tokenizer, rows, tmp_path, monkeypatch):
    assert training_arguments(fresh_model, TrainingSettings(), tmp_path, evaluate=False, seed=0).report_to == []
    named = TrainingSettings(report_to=["trackio", "wandb"])
    arguments = training_arguments(fresh_model, named, tmp_path / "run" / "adapter" / "c", evaluate=False, seed=0)
    assert (arguments.report_to, arguments.run_name) == (["trackio", "wandb"], "run/adapter")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"training.report_to: wandb is not installed; pip install wandb"):
        train_adapter(
            fresh_model, tiny_tokenizer, rows, TrainingSettings(report_to=["wandb"]), tmp_path / "new",
            base_name="tiny", seed=0,
        )  # fmt: skip
    assert not (tmp_path / "new").exists()


def test_tensorboard_has_the_losses_after_the_checkpoints_are_gone(fresh_model, tiny_tokenizer, rows, tmp_path):
    pytest.importorskip("tensorboard")
    settings = TrainingSettings(epochs=1, batch_size=2, accumulation=1, log_every=1, report_to=["tensorboard"])
    train_adapter(fresh_model, tiny_tokenizer, rows, settings, tmp_path, base_name="tiny", seed=0)
    assert not (tmp_path / "checkpoints").exists() and list((tmp_path / "tensorboard").glob("events*"))


def test_a_killed_training_goes_on_at_its_checkpoint_to_the_same_adapter(
    tiny_target, tiny_tokenizer, rows, tmp_path, monkeypatch
):
    settings = TrainingSettings(
        learning_rate=0.02, epochs=4, batch_size=1, accumulation=2, log_every=1, save_every=1, held_out=0.4
    )

    def train(name: str) -> dict:
        model = AutoModelForCausalLM.from_pretrained(tiny_target)
        return train_adapter(model, tiny_tokenizer, rows, settings, tmp_path / name, base_name="tiny", seed=0)

    whole = train("whole")
    step_end = lora.LogWriter.on_step_end

    def killed(self, args, state, control, **kwargs):
        step_end(self, args, state, control, **kwargs)
        if state.global_step == 4:  # its losses are logged, its checkpoint is not written yet
            raise KeyboardInterrupt

    monkeypatch.setattr(lora.LogWriter, "on_step_end", killed)
    with pytest.raises(KeyboardInterrupt):
        train("killed")
    monkeypatch.setattr(lora.LogWriter, "on_step_end", step_end)
    assert not (tmp_path / "killed" / "summary.json").exists()
    last = tmp_path / "killed" / "checkpoints" / "checkpoint-3"
    shutil.copytree(last, last.with_name("checkpoint-4"))  # and a kill while it is saved: its state comes last
    (last.with_name("checkpoint-4") / "trainer_state.json").write_text('{"global_')
    resumed = train("killed")
    assert resumed["steps"] == whole["steps"] == 6
    assert resumed["held_out_loss"] == pytest.approx(whole["held_out_loss"], abs=1e-4)
    assert resumed["train_loss"] == pytest.approx(whole["train_loss"], abs=1e-4)
    weights, others = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "killed"))
    assert all(torch.allclose(weights[name], others[name], atol=1e-5) for name in weights)
    logs = [(tmp_path / name / "training_log.jsonl").read_text() for name in ("whole", "killed")]
    steps = [[json.loads(line)["step"] for line in log.splitlines()] for log in logs]
    assert steps[0] == steps[1]


@pytest.mark.parametrize("size", [300, 20_000])  # a file of peft's does not fit, and one of torch's
def test_a_full_disk_is_one_line_and_the_training_begins_again(
    fresh_model, tiny_target, tiny_tokenizer, rows, tmp_path, full_disk, size
):
    settings = TrainingSettings(epochs=1, rank=4, accumulation=1, save_every=1)
    folder = tmp_path / "adapter"
    with full_disk(size), pytest.raises(InputError, match=r"^[^\n]*adapter: cannot be written \([^\n]*$"):
        train_adapter(fresh_model, tiny_tokenizer, rows, settings, folder, base_name="tiny", seed=0)
    model = AutoModelForCausalLM.from_pretrained(tiny_target)
    assert train_adapter(model, tiny_tokenizer, rows, settings, folder, base_name="tiny", seed=0)["steps"] == 3
    assert not (folder / LOCK).exists()


def test_a_folder_that_another_process_trains_in_is_refused(
    fresh_model, tiny_tokenizer, rows, tmp_path, written_by_another
):
    with written_by_another(tmp_path, tmp_path / LOCK) as pid, pytest.raises(InputError, match=f"process {pid} on "):
        train_adapter(fresh_model, tiny_tokenizer, rows, TrainingSettings(), tmp_path, base_name="tiny", seed=0)


def test_the_mean_loss_is_of_all_steps_however_seldom_it_is_logged(tiny_target, tiny_tokenizer, rows, tmp_path):
    def mean_loss(log_every: int) -> float:
        settings = TrainingSettings(
            learning_rate=0.02, epochs=4, batch_size=1, accumulation=2, log_every=log_every, save_every=3
        )
        model, folder = AutoModelForCausalLM.from_pretrained(tiny_target), tmp_path / str(log_every)
        return train_adapter(model, tiny_tokenizer, rows, settings, folder, base_name="tiny", seed=0)["train_loss"]

    assert mean_loss(4) == pytest.approx(mean_loss(1), abs=1e-3)


@pytest.mark.parametrize("device", [torch.device("cpu"), torch.device("cuda", 1)])
def test_the_loss_is_scaled_where_a_gpu_trains_in_float16_and_the_named_gpu_is_used(device, tmp_path, monkeypatch):
    def scaled(dtype: torch.dtype) -> bool:
        weights = SimpleNamespace(dtype=dtype, device=device)
        model = SimpleNamespace(parameters=lambda: iter([weights]))
        return training_arguments(model, TrainingSettings(), tmp_path, evaluate=False, seed=0).fp16

    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    on_cuda = device.type == "cuda"
    assert [scaled(dtype) for dtype in (torch.float32, torch.float16)] == [False, on_cuda]
    assert chosen == [device] * 2 * on_cuda
