"""Training rows in the files that other trainers read: trl and LLaMA-Factory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenskip_lib.core.profiles import nearest
from tokenskip_lib.core.records import InputError, Problem, SFTRow
from tokenskip_lib.core.settings import PromptSettings
from tokenskip_lib.core.store import write_whole
from tokenskip_lib.models.prompts import user_message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EXPORT_STYLES = ("trl", "llamafactory")
_ALPACA_COLUMNS = {"prompt": "instruction", "query": "input", "response": "output", "system": "system"}


def export_rows(
    rows: Sequence[SFTRow],
    problems: dict[str, Problem],
    tokenizer: PreTrainedTokenizerBase,
    prompts: PromptSettings,
    style: str,
    folder: Path,
) -> list[Path]:
    """Write training rows for another trainer: train.jsonl, and held_out.jsonl if there are held-out rows.

    Args:
        style: "trl" (prompt and completion) or "llamafactory" (alpaca fields, and dataset_info.json). TRL's rows are
            messages for the model's chat template. In the layout `think` and in the literal formats of the authors'
            code they are plain text, to which TRL adds the end-of-sequence token: the chat templates of the R1
            family would delete the chain, all that stands before `</think>`.

    Returns:
        The files that were written.

    Raises:
        InputError: no such style, or a file of another content is there.
    """
    if style not in EXPORT_STYLES:
        raise InputError(f"unknown format '{style}'{nearest(style, list(EXPORT_STYLES))}")
    files: dict[Path, str] = {}
    info = {}
    for name, held_out in (("train", False), ("held_out", True)):
        chosen = [row for row in rows if row.held_out == held_out]
        if not chosen:
            continue
        lines = [_fields(row, problems[row.id], tokenizer, prompts, style) for row in chosen]
        files[folder / f"{name}.jsonl"] = "".join(json.dumps(fields, ensure_ascii=False) + "\n" for fields in lines)
        info[f"tokenskip_{name}"] = {"file_name": f"{name}.jsonl", "columns": _ALPACA_COLUMNS}
    if style == "llamafactory":
        files[folder / "dataset_info.json"] = json.dumps(info, indent=2) + "\n"
    for path, text in files.items():
        if path.exists() and path.read_bytes() != text.encode():
            raise InputError(f"{path}: there already, with another content; write into another folder")
    for path, text in files.items():
        write_whole(path, text.encode())
    return list(files)


def _fields(
    row: SFTRow, problem: Problem, tokenizer: PreTrainedTokenizerBase, prompts: PromptSettings, style: str
) -> dict[str, Any]:
    """One row as the other trainer reads it."""
    request = user_message(tokenizer, problem.question, prompts, ratio=row.ratio)
    if style == "llamafactory":
        output = _opening_tag(row, prompts) + row.completion
        return {"instruction": request, "input": "", "output": output, "system": prompts.system}
    if prompts.format != "chat" or prompts.layout == "think":
        return {"prompt": _without_doubled_start(row.prompt, tokenizer), "completion": row.completion}
    system = [{"role": "system", "content": prompts.system}] if prompts.system else []
    return {
        "prompt": [*system, {"role": "user", "content": request}],
        "completion": [{"role": "assistant", "content": row.completion}],
    }


def _opening_tag(row: SFTRow, prompts: PromptSettings) -> str:
    """The `<think>` that ends a prompt: LLaMA-Factory writes prompts of its own, which do not end with it."""
    opened = prompts.layout == "think" and row.prompt.rstrip().endswith("<think>")
    return row.prompt[row.prompt.rindex("<think>") :] if opened else ""


def _without_doubled_start(prompt: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The prompt without its start token, if the tokenizer puts one before every text, as TRL lets it do."""
    adds_start = tokenizer.bos_token and tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]
    return prompt.removeprefix(tokenizer.bos_token) if adds_start else prompt
