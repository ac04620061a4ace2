"""One training for `benchmarks.training --against`, by the tokenskip_lib that is found first on the path.

    PYTHONPATH=CHECKOUT python benchmarks/train_once.py ROWS.jsonl

Prints a line of JSON: the seconds of training, and the loss of every optimiser step.
"""

import json
import sys
import tempfile
from pathlib import Path

from tokenskip_lib.core.profiles import load_profile
from tokenskip_lib.core.records import SFTRow
from tokenskip_lib.core.settings import TrainingSettings
from tokenskip_lib.models.loading import load_model, load_tokenizer
from tokenskip_lib.training.lora import train_adapter


def train(model, tokenizer, rows: list[SFTRow], settings: TrainingSettings, folder: Path, seed: int = 0):
    """Losses of every step and seconds, by this library."""
    summary = train_adapter(model, tokenizer, rows, settings, folder, base_name="target", seed=seed)
    log = [json.loads(line) for line in (folder / "training_log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line["loss"] for line in log if line.get("loss") is not None], summary["seconds"]


def main() -> None:
    rows = [SFTRow.model_validate_json(line) for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()]
    profile = load_profile("demo")
    settings = profile.training.model_copy(update={"epochs": 1, "log_every": 1})
    with tempfile.TemporaryDirectory() as name:
        losses, seconds = train(load_model(profile.target), load_tokenizer(profile.target), rows, settings, Path(name))
    print(json.dumps({"seconds": seconds, "losses": losses}))


if __name__ == "__main__":
    main()
