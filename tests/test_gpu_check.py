"""The GPU check on this CPU, in tiny sizes: every part is reported, and a time limit leaves those before it."""

import json
import signal

import pytest
import torch

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu.report import Report, table, verdict
from benchmarks.gpu.setting import QWEN, Setting

NAMES = [part.__name__ for part in gpu.PARTS]


@pytest.fixture
def setting(tmp_path):
    return Setting(torch.device("cpu"), tmp_path)


def test_every_part_runs_on_a_cpu_and_is_reported(root, tmp_path, monkeypatch):
    output = tmp_path / "check.json"
    monkeypatch.chdir(root)
    monkeypatch.setattr("sys.argv", ["gpu", "--cpu", "--minutes", "20", "-o", str(output)])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    written = json.loads(output.read_text())
    found = {part["part"]: part for part in written["parts"]}
    assert list(found) == NAMES
    assert {name: verdict(part) for name, part in found.items() if verdict(part) not in ("right", "measured")} == {}
    assert ended.value.code == 0
    # One device against itself: equal to the last bit, where nothing but the device is compared.
    for name in ("float32_texts", "padding", "adapters", "out_of_memory", "compiled"):
        assert found[name]["alike"] == 1, found[name]
    assert found["gradients"]["apart"] == found["training"]["float32_apart"] == 0 < found["gradients"]["norm"]
    assert found["adapters"]["alike_without_adapter"] < 1 and len(found["out_of_memory"]["batches"]) > 1
    for name in ("authors_way", "continuous_batching", "training_speed", "answering", "answering_compiled", "scoring"):
        speeds = {key: value for key, value in found[name].items() if key.endswith("tokens_per_second")}
        assert speeds and all(value > 0 for value in speeds.values()), found[name]
    lines = output.with_suffix(".md").read_text().splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in lines[4:]] == [name.replace("_", " ") for name in NAMES]


def test_a_failed_part_and_a_time_limit_leave_the_other_results(setting, tmp_path, monkeypatch):
    def works(setting):
        """It works."""
        return {"right": True}

    def fails(setting):
        """It fails."""
        raise RuntimeError("CUDA error: a fault\nwith more lines")

    def hangs(setting):
        """It takes longer than there is time."""
        signal.raise_signal(signal.SIGALRM)
        raise AssertionError

    def never(setting):
        """It is not reached."""
        raise AssertionError

    monkeypatch.setattr(gpu, "PARTS", [works, fails, works, hangs, never])
    report = gpu.check(setting, tmp_path / "check.json", minutes=10)
    parts = json.loads((tmp_path / "check.json").read_text())["parts"]
    assert [verdict(part) for part in parts] == ["right", "failed", "right", "out of time", "out of time"]
    assert parts[1]["error"] == "RuntimeError: CUDA error: a fault" and not report.right


def test_what_is_wrong_or_not_finite_is_said(tmp_path):
    report = Report(tmp_path / "check.json", {"device": "none"})
    report.add("losses", "They agree.", {"right": False, "apart": float("inf")}, 1)
    assert not report.right and json.loads((tmp_path / "check.json").read_text())["parts"][0]["apart"] == "inf"
    assert "| losses | They agree. | WRONG | apart inf |" in table(report.about, report.parts)


def test_without_a_card_the_check_says_so_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["gpu"])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 2
    assert "no CUDA device; --cpu checks the check itself" in capsys.readouterr().err.splitlines()[-1]


def test_the_large_models_shapes_are_the_published_ones():
    from transformers import AutoModelForCausalLM, Qwen2Config

    from tokenskip_lib.experiments.costs import read_shape

    sizes = {
        name: read_shape(AutoModelForCausalLM, Qwen2Config(**shape)).parameters for name, (_, shape) in QWEN.items()
    }
    assert sizes == {"Qwen2.5-7B": 7_615_616_512, "Qwen2.5-1.5B": 1_543_714_304, "Qwen2.5-0.5B": 494_032_768}
    for name, (size, _) in QWEN.items():
        assert 2 * sizes[name] == pytest.approx(size, rel=0.02)
