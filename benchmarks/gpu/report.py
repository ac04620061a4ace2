"""The check's results: one JSON file that is written anew after each part, and a table of it."""

import json
from math import isfinite
from pathlib import Path

import torch
import transformers

from tokenskip_lib.core.store import write_json, write_whole


class Report:
    """Results in the order of their parts.

    Args:
        path: the JSON file; the table is written beside it, with the ending .md. None: nothing is written.
        about: what was checked and with what.
    """

    def __init__(self, path: Path | None, about: dict):
        self.path, self.parts = path, []
        self.about = about | {"torch": torch.__version__, "transformers": transformers.__version__}

    def add(self, name: str, what: str, figures: dict, seconds: float) -> None:
        """Take a part's result, write all there are, and print this one."""
        finite = {k: v if not isinstance(v, float) or isfinite(v) else str(v) for k, v in figures.items()}  # for JSON
        self.parts.append({"part": name, "what": what, **finite, "seconds": round(seconds, 1)})
        if self.path is not None:
            write_json(self.path, {**self.about, "parts": self.parts})
            write_whole(self.path.with_suffix(".md"), table(self.about, self.parts).encode())
        print(f"{name} ({seconds:.1f} s): {verdict(self.parts[-1])}; {_figures(self.parts[-1])}", flush=True)

    @property
    def right(self) -> bool:
        """Whether every part came to its end, and none is wrong."""
        return all(verdict(part) in ("right", "measured") for part in self.parts)


def verdict(part: dict) -> str:
    """What became of a part: right, WRONG, measured (nothing to be right about), failed or out of time."""
    if "error" in part:
        return "failed"
    if part.get("out_of_time"):
        return "out of time"
    return {True: "right", False: "WRONG", None: "measured"}[part.get("right")]


def table(about: dict, parts: list[dict]) -> str:
    """The results as Markdown."""
    head = ", ".join(f"{name.replace('_', ' ')}: {value}" for name, value in about.items())
    lines = [head, "", "| part | what must hold, or is measured | result | figures |", "|---|---|---|---|"]
    for part in parts:
        cells = (part["part"].replace("_", " "), part["what"], verdict(part), _figures(part))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _figures(part: dict) -> str:
    left_out = ("part", "what", "right", "seconds", "out_of_time")
    said = [f"{name.replace('_', ' ')} {_number(value)}" for name, value in part.items() if name not in left_out]
    return ", ".join(said)


def _number(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return json.dumps(value) if isinstance(value, list | bool) else str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3g}" if abs(value) < 100 else f"{value:,.0f}"
