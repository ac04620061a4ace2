"""The mean of adapters that went on from the same one; anything else has no mean."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tokenskip_lib.core.records import InputError
from tokenskip_lib.core.settings import TargetSettings
from tokenskip_lib.models.adapters import CONFIG, WEIGHTS, trainable_adapter
from tokenskip_lib.models.averaging import average_adapters
from tokenskip_lib.models.loading import load_model
from tokenskip_lib.models.standalone import included, save_adapter


@pytest.fixture
def first(make_adapter, tiny_target, tmp_path):
    """An adapter that includes a target model's."""
    folder, trained = tmp_path / "first", make_adapter(3)
    save_adapter(folder, LoraConfig.from_pretrained(trained), load_file(trained / WEIGHTS), make_adapter(1))
    return folder


def _gone_on(first, folder, *, alpha, step):
    """What a training makes of the first adapter: another alpha, and weights that moved a little."""
    shutil.copytree(first, folder)
    config = json.loads((folder / CONFIG).read_text())
    scale = (config["lora_alpha"] / alpha) ** 0.5
    (folder / CONFIG).write_text(json.dumps(config | {"lora_alpha": alpha}))
    moved = {key: (value.float() * (1 + step)) * scale for key, value in load_file(first / WEIGHTS).items()}
    save_file(moved, folder / WEIGHTS, metadata={"format": "pt", "target_adapter_sha256": included(first)})
    return folder


def test_the_mean_lies_in_the_middle_whatever_the_alphas(first, tiny_target, tmp_path):
    more = _gone_on(first, tmp_path / "more", alpha=1, step=0.2)
    less = _gone_on(first, tmp_path / "less", alpha=64, step=-0.2)
    average_adapters([more, less], tmp_path / "mean")
    settings = TargetSettings(model=str(tiny_target), device="cpu", dtype="float32")
    mean, wanted = (load_model(settings, adapter=folder).state_dict() for folder in (tmp_path / "mean", first))
    base = load_model(settings).state_dict()
    for name, value in mean.items():  # it is written in bfloat16
        assert (value - wanted[name]).norm() <= 0.01 * (wanted[name] - base[name]).norm(), name
    assert included(tmp_path / "mean") == included(first)


def test_training_goes_on_from_the_same_model_under_another_alpha(first, tiny_target):
    ids = torch.tensor([[5, 6, 7, 8]])
    settings = TargetSettings(model=str(tiny_target), device="cpu", dtype="float32")
    with torch.no_grad():
        wanted = load_model(settings, adapter=first)(input_ids=ids).logits
        base = AutoModelForCausalLM.from_pretrained(tiny_target)
        adapted = trainable_adapter(base, first, alpha=64)
        assert torch.allclose(adapted(input_ids=ids).logits, wanted, atol=1e-4)
    assert adapted.peft_config["default"].lora_alpha == 64


@pytest.mark.parametrize("what", ["one", "rank", "target", "unrelated", "full"])
def test_what_has_no_mean_is_refused(first, make_adapter, tmp_path, what):
    other, output = _gone_on(first, tmp_path / "other", alpha=1, step=0.1), tmp_path / "mean"
    names, says = [first, other], "two adapters or more"
    if what == "one":
        names = [first]
    elif what == "rank":
        config = json.loads((other / CONFIG).read_text())
        (other / CONFIG).write_text(json.dumps(config | {"r": 1}))
        says = "its rank is another than that of"
    elif what == "target":
        save_file(load_file(other / WEIGHTS), other / WEIGHTS, metadata={"format": "pt"})
        says = "its target model's adapter is another"
    elif what == "unrelated":
        generator = torch.Generator().manual_seed(0)
        drawn = {
            key: torch.randn(value.shape, generator=generator) for key, value in load_file(other / WEIGHTS).items()
        }
        save_file(drawn, other / WEIGHTS, metadata={"format": "pt", "target_adapter_sha256": included(first)})
        says = "too far from the others' mean"
    else:
        output.mkdir()
        (output / "note").write_text("mine")
        says = "has files already"
    with pytest.raises(InputError, match=says):
        average_adapters(names, output)
    assert not (output / WEIGHTS).exists()
