"""A run's adapter for others: the card that stages 4 and 5 write, and the folders of `export`."""

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from tokenskip_lib.core.profiles import with_overrides
from tokenskip_lib.core.records import Chain, InputError, Problem
from tokenskip_lib.core.store import read_json
from tokenskip_lib.experiments import stages, steps
from tokenskip_lib.experiments.release import adapter_card, export_model
from tokenskip_lib.experiments.run import Run
from tokenskip_lib.models.adapters import WEIGHTS
from tokenskip_lib.models.loading import load_model

IDS = torch.tensor([[5, 6, 7, 8]])


@pytest.fixture
def trained(tiny_profile, make_adapter, problems, chain_of):
    """A run on a target model with an adapter of its own, up to its training."""
    overrides = {
        "target.adapter": str(make_adapter(1)),
        "importance.scorer": "position",
        "importance.compare_with": [],
        "evaluation.methods": {"original": [], "tokenskip": [0.5]},
    }
    run = Run.create(with_overrides(tiny_profile, overrides, where="test"))
    run.store(steps.TRAIN_PROBLEMS, Problem).append(problems[:3])
    run.store(steps.CHAINS, Chain).append(chain_of(problem) for problem in problems[:3])
    for stage in (stages.score, stages.prune, stages.train):
        stage(run)
    return run


def test_training_writes_the_card_and_evaluation_adds_its_figures(trained):
    card = trained.folder / steps.ADAPTER / "README.md"
    before = card.read_text()
    assert "not evaluated" in before and "an adapter that taught it the task" in before and "`position`" in before
    metrics = stages.evaluate(trained)
    after = card.read_text()
    row = metrics[metrics["method"] == "tokenskip"].iloc[0]
    assert f"| tokenskip | 0.5 | {row['n']} | {100 * row['accuracy']:.1f} (" in after and "not evaluated" not in after


def test_a_card_adds_the_ranks_of_two_adapters_only_where_training_did_not_go_on_from_both(trained, tiny_tokenizer):
    summary = read_json(trained.folder / steps.ADAPTER / "summary.json", advice="train again")
    assert "their rank is the sum of both" in adapter_card(trained.profile, tiny_tokenizer, summary)
    summary["recipe"]["start_from"] = "data/runs/first/04_adapter"
    went_on = adapter_card(trained.profile, tiny_tokenizer, summary)
    assert "the weights here include that adapter." in went_on and "the sum of both" not in went_on


def test_an_adapter_that_the_run_did_not_train_keeps_its_folder(trained, make_adapter):
    folder = trained.folder / steps.ADAPTER
    other = with_overrides(trained.profile, {"evaluation.adapter": str(folder)}, where="test")
    before = (folder / "README.md").read_text()
    stages.evaluate(Run.create(other))
    assert (folder / "README.md").read_text() == before


def test_both_exports_load_without_the_library_and_answer_alike(trained, tmp_path):
    profile, base = trained.profile, trained.profile.target.model
    wanted = load_model(profile.target, adapter=trained.folder / steps.ADAPTER)
    for style in ("peft", "merged"):
        paths = export_model(profile, style, tmp_path / style)
        assert {"README.md", "generation_config.json"} <= {path.name for path in paths}
    of_peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(tmp_path / "peft"))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        logits = [model(input_ids=IDS).logits for model in (wanted, of_peft, merged)]
    assert torch.allclose(logits[0], logits[1], atol=1e-4) and torch.allclose(logits[0], logits[2], atol=1e-4)
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").eos_token == "<|im_end|>"
    assert "PeftModel" not in (tmp_path / "merged" / "README.md").read_text()
    assert sorted(path.name for path in (tmp_path / "peft").iterdir()) == [
        "README.md", "adapter_config.json", "adapter_model.safetensors", "generation_config.json",
    ]  # fmt: skip


def test_the_export_in_8_bits_is_half_the_file_and_changes_the_model_as_before(trained, tmp_path):
    profile, whole, small = trained.profile, tmp_path / "peft", tmp_path / "small"
    for style, folder in (("peft", whole), ("peft-8bit", small)):
        export_model(profile, style, folder)
    assert sorted(path.name for path in small.iterdir()) == sorted(path.name for path in whole.iterdir())
    weights = load_file(small / WEIGHTS)
    assert {value.dtype for value in weights.values()} == {torch.float8_e4m3fn}
    assert weights.keys() == load_file(whole / WEIGHTS).keys()
    sizes = [sum(value.nbytes for value in load_file(folder / WEIGHTS).values()) for folder in (whole, small)]
    assert sizes[1] <= sizes[0] / 2
    base = load_model(profile.target.model_copy(update={"adapter": None})).state_dict()
    exact, rounded = (load_model(profile.target, adapter=folder).state_dict() for folder in (whole, small))
    changed = [name for name in base if not torch.equal(base[name], exact[name])]
    assert changed
    for name in changed:
        change = exact[name] - base[name]
        assert (rounded[name] - exact[name]).norm() < 0.1 * change.norm()
    assert "Figures in this card are of the adapter before rounding" in (small / "README.md").read_text()
    again = with_overrides(profile, {"evaluation.adapter": str(small)}, where="test")
    with pytest.raises(InputError, match="small: its weights are 8-bit floats already"):
        export_model(again, "peft-8bit", tmp_path / "smaller")
    assert not (tmp_path / "smaller").exists()


def test_an_adapter_without_a_card_gets_one(trained, make_adapter, tmp_path):
    adapter = make_adapter(2)
    (adapter / "README.md").unlink()  # peft's empty form
    (adapter / "generation_config.json").unlink(missing_ok=True)
    plain = {"target.adapter": None, "evaluation.adapter": str(adapter), "run_dir": str(tmp_path / "no_run")}
    export_model(with_overrides(trained.profile, plain, where="test"), "peft", tmp_path / "made")
    assert "not evaluated" in (tmp_path / "made" / "README.md").read_text()
    written = GenerationConfig.from_pretrained(tmp_path / "made")  # as the card's code reads it
    assert written.max_new_tokens == 512 and written.eos_token_id is not None
    assert not (tmp_path / "no_run").exists()


def test_what_cannot_be_exported_is_one_line_and_leaves_nothing(trained, make_adapter, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    with pytest.raises(InputError, match="full: there already, and not empty"):
        export_model(trained.profile, "peft", tmp_path / "full")
    old = with_overrides(trained.profile, {"evaluation.adapter": str(make_adapter(2))}, where="test")
    with pytest.raises(InputError, match=r"does not include the target\.adapter"):
        export_model(old, "merged", tmp_path / "new")
    nowhere = with_overrides(trained.profile, {"run_dir": str(tmp_path / "nothing")}, where="test")
    with pytest.raises(InputError, match="no run here"):
        export_model(nowhere, "peft", tmp_path / "new")
    assert not (tmp_path / "new").exists() and (tmp_path / "full" / "file").read_text() == "mine"
