"""A trained adapter as the Python API returns it, and the note that tells whose training a folder holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenskip_lib.core.records import InputError
from tokenskip_lib.core.results import table_html
from tokenskip_lib.core.store import read_json, write_json

NOTE = "settings.json"
SUMMARY = "summary.json"
DAMAGED = "put the file back, or train into another folder"


@dataclass(frozen=True, repr=False)
class Adapter:
    """A trained LoRA adapter: a path for every function that takes one, and the summary of its training.

    Example:
        >>> import os
        >>> os.fspath(Adapter(Path("out"), {"steps": 3}))
        'out'
    """

    folder: Path
    summary: Mapping[str, Any]

    def __fspath__(self) -> str:
        return str(self.folder)

    def __repr__(self) -> str:
        names = ("rows_trained", "steps", "train_loss", "held_out_loss", "seconds")
        return f"Adapter({str(self.folder)!r}, {', '.join(f'{name}={self.summary.get(name)}' for name in names)})"

    def _repr_html_(self) -> str:
        values = [{"": "folder", "adapter": self.folder}]
        return table_html(values + [{"": k, "adapter": v} for k, v in self.summary.items() if k != "recipe"])


def open_training(folder: Path, made_with: Mapping[str, Any]) -> Adapter | None:
    """Begin a training in a folder, or go on with it. A training goes on only with its own rows and settings.

    Args:
        made_with: what decides the result: model, prompts, recipe, seed and a digest of the rows.

    Returns:
        The adapter if its training has ended; None if there is something to train.

    Raises:
        InputError: the folder holds an adapter made with other rows or settings, or one whose settings are unknown.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: a file; name a folder for the adapter")
    note, summary = folder / NOTE, folder / SUMMARY
    now = json.loads(json.dumps(made_with))
    trained = summary.exists() or any(folder.glob("checkpoints/checkpoint-*"))
    if trained and note.exists():
        begun = read_json(note, advice=DAMAGED)
        differs = next((name for name in now if begun.get(name) != now[name]), None)
        if differs is not None:
            raise InputError(f"{folder}: holds a training with another '{differs}'; name another folder, or remove it")
    elif trained or (folder / "adapter_config.json").exists():
        raise InputError(f"{folder}: holds an adapter that was made elsewhere; name another folder")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(note, now)
    return Adapter(folder, read_json(summary, advice=DAMAGED)) if summary.exists() else None
