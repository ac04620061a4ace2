"""The log of a training: losses as they come, seconds, and the mean loss."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from transformers import TrainerCallback

from tokenskip_lib.core.progress import Bar
from tokenskip_lib.core.store import write_json, write_whole


def mean_loss(history: Sequence[dict]) -> float:
    """The mean loss over all steps; Trainer's own leaves out the steps before the checkpoint of a killed training.

    Args:
        history: Trainer's log; each `loss` in it is the mean over the steps since the one before.

    Example:
        >>> mean_loss([{"step": 1, "loss": 4.0}, {"step": 1, "eval_loss": 9.0}, {"step": 3, "loss": 1.0}])
        2.0
    """
    steps, losses = zip(*((entry["step"], entry["loss"]) for entry in history if "loss" in entry), strict=True)
    return float(np.average(losses, weights=np.diff(steps, prepend=0)))


class LogWriter(TrainerCallback):
    """Writes every logged loss to JSONL, shows the progress of a training, and counts its seconds.

    Args:
        path: the JSONL file; a line has step, epoch, learning_rate, and loss or eval_loss.
        epochs: passes over the rows, which the trainer counts as one.
    """

    def __init__(self, path: Path, epochs: float):
        self.path = path
        self.epochs = epochs
        self.bar: Bar | None = None
        self.before = 0.0  # seconds up to the checkpoint that the training went on from
        self.began = 0.0

    def seconds(self) -> float:
        """Seconds of training, those before the checkpoint included; of a killed part up to its checkpoint."""
        return self.before + time.perf_counter() - self.began

    def on_train_begin(self, args, state, control, **kwargs):
        self.began, spent = time.perf_counter(), Path(args.output_dir) / "seconds.json"
        if state.global_step and spent.exists():
            self.before = json.loads(spent.read_text())
        if state.is_world_process_zero and self.path.exists():  # later steps are done, and logged, again
            lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= state.global_step]
            write_whole(self.path, "".join(kept if state.global_step else []).encode())
        self.bar = Bar(
            total=state.max_steps,
            initial=state.global_step,
            desc="fine-tuning",
            unit="step",
            disable=not state.is_world_process_zero,
        )

    def on_step_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.update()
        # Otherwise the losses since the last line would be missing from a checkpoint, or from the end of the log.
        control.should_log |= control.should_save or state.global_step == state.max_steps

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            write_json(Path(args.output_dir) / "seconds.json", self.seconds())

    def on_train_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.close()

    def on_log(self, args, state, control, logs=None, **kwargs):
        kept = {name: logs[name] for name in ("loss", "eval_loss", "learning_rate") if name in (logs or {})}
        if state.is_world_process_zero and ("loss" in kept or "eval_loss" in kept):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            line = {"step": state.global_step, "epoch": round(state.epoch * self.epochs, 4), **kept}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
