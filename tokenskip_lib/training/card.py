"""The model card of a trained adapter: what it does, how it is asked, what it was trained on, what it gave."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tokenskip_lib.core.settings import PromptSettings
from tokenskip_lib.models.prompts import build_prompt, ratio_marker

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedTokenizerBase

# Base models whose licence we have read; of others the card says that their own licence applies.
LICENCES = {"HuggingFaceTB/SmolLM2-135M-Instruct": "apache-2.0"}
QUESTION = "A child has 11 pencils. His sister has 6 fewer pencils than he has. How many pencils do they have together?"
EXAMPLE_RATIO = 0.5

_LOADED = {
    False: """model = AutoModelForCausalLM.from_pretrained({base!r})
model = PeftModel.from_pretrained(model, folder)
tokenizer = AutoTokenizer.from_pretrained({base!r})""",
    True: """model = AutoModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)""",
}


def model_card(
    base: str,
    tokenizer: PreTrainedTokenizerBase,
    prompts: PromptSettings,
    summary: Mapping[str, Any],
    *,
    data: str,
    ratios: Sequence[float],
    weights: str = "",
    metrics: pd.DataFrame | None = None,
    merged: bool = False,
) -> str:
    """The text of README.md for an adapter's folder, with the fields that the Hugging Face hub reads.

    Args:
        base: the base model's name.
        summary: of the training, as in summary.json; {} if it is not known.
        data: sentences that say what the rows are.
        ratios: those that the rows were pruned at.
        weights: a sentence about the base model's weights that the adapter was trained on, if they are not the hub's.
        metrics: the columns of metrics.csv; None: it was not evaluated yet.
        merged: whether the folder holds the whole model with the adapter in its weights.
    """
    about = {
        "base_model": json.dumps(base),
        "library_name": "transformers" if merged else "peft",
        "pipeline_tag": "text-generation",
        **({"license": LICENCES[base]} if base in LICENCES else {}),
    }
    head = "".join(f"{key}: {value}\n" for key, value in about.items())
    parts = [
        f"---\n{head}tags: [tokenskip, chain-of-thought]\n---",
        f"# TokenSkip {'model' if merged else 'adapter'} for {base}",
        "The model writes a chain of thought before its answer. A ratio in the prompt says what share of the chain's "
        "tokens to keep, and the model leaves out the less important ones. The method is TokenSkip "
        "([arXiv:2502.12067](https://arxiv.org/abs/2502.12067)).",
        "## Use",
        _use(base, tokenizer, prompts, merged),
        f"The tokenizer is the base model's: no token was added{'' if merged else ', so no tokenizer is here'}. "
        f"Decoding is greedy. {weights}".strip(),
        "## Prompt",
        _prompt(tokenizer, prompts, ratios),
        "## Training",
        f"{data} {_recipe(summary, prompts)}".strip(),
        "## Figures",
        _figures(metrics),
        "## Licence",
        _licence(base),
    ]
    return "\n\n".join(parts) + "\n"


def _use(base: str, tokenizer: PreTrainedTokenizerBase, prompts: PromptSettings, merged: bool) -> str:
    """Code that asks the example's question."""
    names = "AutoModelForCausalLM, AutoTokenizer, GenerationConfig"
    prompt = build_prompt(tokenizer, QUESTION, prompts, ratio=EXAMPLE_RATIO)
    return "\n".join(
        [
            "```python",
            *([] if merged else ["from peft import PeftModel"]),
            f"from transformers import {names}",
            "",
            'folder = "."  # this folder, or its name on the hub',
            _LOADED[merged].format(base=base),
            "",
            f"prompt = {prompt!r}",
            'inputs = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")',
            "made = model.generate(**inputs, generation_config=GenerationConfig.from_pretrained(folder))",
            'print(tokenizer.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
            "```",
        ]
    )


def _prompt(tokenizer: PreTrainedTokenizerBase, prompts: PromptSettings, ratios: Sequence[float]) -> str:
    text = build_prompt(tokenizer, QUESTION, prompts, ratio=EXAMPLE_RATIO)
    marker = ratio_marker(tokenizer, EXAMPLE_RATIO, prompts)
    asked = ", ".join(f"{ratio:g}" for ratio in sorted(ratios) if ratio < 1)
    return (
        f"The prompt carries the ratio in a marker after the question. At ratio {EXAMPLE_RATIO:g} the marker is "
        f"`{marker.strip()}`. A prompt without a marker asks for the whole chain. The ratios below 1 that were "
        f"trained: {asked or 'none'}. This is the example's prompt; the code above has it to the character:\n\n"
        f"```text\n{text.rstrip()}\n```"
    )


def _recipe(summary: Mapping[str, Any], prompts: PromptSettings) -> str:
    if "recipe" not in summary:
        return ""
    recipe = summary["recipe"]
    held_out = summary["held_out_loss"]
    return (
        f"Rows: {summary['rows_trained']:,} trained, {summary['rows_held_out']:,} held out; {summary['steps']:,} "
        "steps. "
        + (f"It goes on from {recipe['start_from']}. " if recipe.get("start_from") else "")
        + f"LoRA rank {recipe['rank']}, alpha {recipe['alpha']}, all linear layers"
        + (", and the embeddings of the marker's tokens" if prompts.marker == "token" else "")
        + f"; learning rate {recipe['learning_rate']:g}, cosine, warm-up {recipe['warmup']:g}; epochs "
        f"{recipe['epochs']:g}, batch {recipe['batch_size'] * recipe['accumulation']}, seed {summary['seed']}. "
        + (f"Held-out loss: {held_out} nats a response token. " if held_out is not None else "")
        + "The loss counts the response alone."
    )


def _figures(metrics: pd.DataFrame | None) -> str:
    """The rows of metrics.csv that are the original's and the adapter's, with 95% intervals."""
    if metrics is None:
        return "The adapter was not evaluated before this card was written."
    lines = [
        "| method | ratio | n | accuracy % (95% interval) | chain tokens | actual ratio |",
        "|---|---|---|---|---|---|",
    ]
    for row in metrics[metrics["method"].isin(["original", "tokenskip"])].to_dict("records"):
        ratio = "" if row["method"] == "original" else f"{float(row['ratio']):g}"
        accuracy, low, high = (100 * float(row[name]) for name in ("accuracy", "accuracy_low", "accuracy_high"))
        lines.append(
            f"| {row['method']} | {ratio} | {row['n']} | {accuracy:.1f} ({low:.1f}-{high:.1f}) | "
            f"{float(row['chain_tokens']):.1f} | {float(row['actual_ratio']):.2f} |"
        )
    said = "`original` is the model without TokenSkip. The actual ratio is chain tokens over the original's."
    return "\n".join([*lines, "", said])


def _licence(base: str) -> str:
    if base in LICENCES:
        return f"{LICENCES[base]}, as the base model's."
    return f"The licence of the base model, {base}, applies to what is derived from it."
