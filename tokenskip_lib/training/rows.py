"""Mixed-ratio training rows: one drawn ratio a problem, or all of them; and the same rows for other trainers.

Source: TokenSkip (arXiv:2502.12067) section 3.3.
"""

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from tokenskip_lib.core.profiles import nearest
from tokenskip_lib.core.records import Chain, InputError, Problem, PrunedChain, SFTRow
from tokenskip_lib.core.settings import PromptSettings
from tokenskip_lib.models.prompts import answer_tail, build_completion, build_prompt, user_message

EXPORT_STYLES = ("trl", "llamafactory")


def draw_ratios(ids: Sequence[str], ratios: Sequence[float], seed: int) -> dict[str, float]:
    """One ratio per problem, uniform over `ratios`, the same for the same ids and seed."""
    generator = random.Random(seed)
    return {problem_id: generator.choice(list(ratios)) for problem_id in ids}


def build_sft_rows(
    pruned: Iterable[PrunedChain],
    problems: dict[str, Problem],
    tokenizer: PreTrainedTokenizerBase,
    prompts: PromptSettings,
    *,
    held_out: float,
    seed: int,
    tails: Mapping[str, str] | None = None,
) -> list[SFTRow]:
    """`question marker -> pruned chain, answer`, one row per pruned chain.

    Args:
        pruned: the chains to learn from, each at the ratio its row will ask for.
        problems: id -> problem, for the question and the gold answer.
        held_out: share of the problems kept out of training, to measure the loss on.
        tails: id -> what follows the chain; None for the closing phrase with the gold answer.

    Source: TokenSkip section 3.3; the response is the pruned chain and the untouched answer.
    """
    pruned = list(pruned)
    ids = list(dict.fromkeys(chain.id for chain in pruned))
    random.Random(seed).shuffle(ids)
    out = set(ids[: round(held_out * len(ids))])
    rows = []
    for chain in pruned:
        problem = problems[chain.id]
        prompt = build_prompt(tokenizer, problem.question, prompts, ratio=chain.ratio)
        tail = answer_tail(problem.answer) if tails is None else tails[chain.id]
        completion = build_completion(prompt, chain.text, tail, prompts)
        rows.append(
            SFTRow(id=chain.id, ratio=chain.ratio, prompt=prompt, completion=completion, held_out=chain.id in out)
        )
    return rows


def own_tails(chains: Iterable[Chain]) -> dict[str, str]:
    """id -> what the target model itself wrote after its chain of thought."""
    return {chain.id: chain.output[chain.output.index(chain.chain) + len(chain.chain) :] for chain in chains}


def export_rows(
    rows: Sequence[SFTRow],
    problems: dict[str, Problem],
    tokenizer: PreTrainedTokenizerBase,
    prompts: PromptSettings,
    style: str,
    folder: Path,
) -> list[Path]:
    """Write training rows for another trainer: train.jsonl, and held_out.jsonl where rows are held out.

    Args:
        style: "trl" (prompt and completion; messages for a chat template, plain text for the
            reference's literal formats) or "llamafactory" (alpaca fields, and dataset_info.json).

    Raises:
        InputError: another style.
    """
    if style not in EXPORT_STYLES:
        raise InputError(f"unknown format '{style}'{nearest(style, list(EXPORT_STYLES))}")
    folder.mkdir(parents=True, exist_ok=True)
    written, info = [], {}
    for name, held_out in (("train", False), ("held_out", True)):
        lines = []
        for row in rows:
            if row.held_out != held_out:
                continue
            request = user_message(tokenizer, problems[row.id].question, prompts, ratio=row.ratio)
            if style == "llamafactory":
                fields = {"instruction": request, "input": "", "output": row.completion, "system": prompts.system}
            elif prompts.format == "chat":
                system = [{"role": "system", "content": prompts.system}] if prompts.system else []
                fields = {
                    "prompt": [*system, {"role": "user", "content": request}],
                    "completion": [{"role": "assistant", "content": row.completion}],
                }
            else:
                fields = {"prompt": row.prompt, "completion": row.completion}
            lines.append(json.dumps(fields, ensure_ascii=False) + "\n")
        if lines:
            written.append(folder / f"{name}.jsonl")
            written[-1].write_text("".join(lines), encoding="utf-8")
            columns = {"prompt": "instruction", "query": "input", "response": "output", "system": "system"}
            info[f"tokenskip_{name}"] = {"file_name": f"{name}.jsonl", "columns": columns}
    if style == "llamafactory":
        written.append(folder / "dataset_info.json")
        written[-1].write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
    return written
