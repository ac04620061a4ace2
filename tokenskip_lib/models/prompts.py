"""The text of every prompt and of every training response, defined once.

Training rows, inference and all methods build their text here. So the ratio marker of training is the
ratio marker of inference, to the token. This module knows no method by name: a method is a sentence, a
ratio, both, neither, or a request in words of its own (evaluation.method).

Source: TokenSkip (arXiv:2502.12067) section 3 and appendix; github.com/hemingkx/TokenSkip for the
literal formats.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, cast

from jinja2 import TemplateError

from tokenskip_lib.core.records import InputError
from tokenskip_lib.core.settings import PromptSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."

# A template is a program of the model's author, and jinja's own errors are none of Python's families.
TEMPLATE_ERRORS = (
    TemplateError,
    ArithmeticError,
    AttributeError,
    ImportError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)

RECOVERY = (
    "Could you please recover the following compressed Chain-of-Thought output of a mathematical question to its "
    "original full content?\n\nThe question is:\n{question}\n\nThe compressed Chain-of-Thought:\n{chain}\n\n"
    "Original Full Chain-of-Thought:"
)


def answer_tail(answer: str) -> str:
    """The closing phrase with the answer. It follows every training chain and is never pruned."""
    return f"\n\nThe final answer is: $\\boxed{{{answer}}}$"


def build_completion(prompt: str, chain: str, tail: str, settings: PromptSettings) -> str:
    """A training response: a pruned chain and its tail.

    In the layout `think` the response starts with `<think>`, unless the prompt already ends with it.
    """
    opens = settings.layout == "think" and not prompt.rstrip().endswith("<think>")
    return ("<think>\n" if opens else "") + chain + tail


def ratio_marker(tokenizer: PreTrainedTokenizerBase, ratio: float, settings: PromptSettings) -> str:
    """The text that carries the ratio; empty at 1.0, as in the authors' code.

    The marker is `EOS ratio EOS`, with the tokenizer's own end-of-sequence token. Two settings change it:
    `settings.marker` gives a sentence or one special token instead, and the format `reference_qwen` writes
    the literal `<|eot_id|>` of the authors' code, which Qwen's tokenizer splits into several tokens.

    Raises:
        ValueError: ratio outside (0, 1].
        InputError: marker `token`, and the model has no spare special token for this ratio.
    """
    if not 0 < ratio <= 1:
        raise ValueError(f"ratio must be in (0, 1], not {ratio}")
    if ratio == 1.0:
        return ""
    if settings.marker == "words":
        return f"\nKeep {100 * ratio:g}% of your reasoning."
    if settings.marker == "token":
        return _ratio_token(tokenizer, ratio)
    end = "<|eot_id|>" if settings.format == "reference_qwen" else tokenizer.eos_token
    return f"{end}{ratio:g}{end}"


def ratio_tokens(tokenizer: PreTrainedTokenizerBase, settings: PromptSettings, ratios: Iterable[float]) -> list[int]:
    """Find the ids of the special tokens that stand for these ratios. The list is empty for other markers.

    The model never used these tokens, so their embeddings may be untrained. SmolLM2's tokens for 0.5 to 0.9 have nearly
    the same embedding. That is why a training trains these embeddings too.

    Raises:
        InputError: marker `token`, and the model has no spare special token for a ratio.
    """
    if settings.marker != "token":
        return []
    tokens = [_ratio_token(tokenizer, ratio) for ratio in sorted(set(ratios)) if ratio < 1]
    return cast(list[int], tokenizer.convert_tokens_to_ids(tokens))


def _ratio_token(tokenizer: PreTrainedTokenizerBase, ratio: float) -> str:
    """The special token for a tenth: one of the model's own that neither its chat template nor its texts use."""
    used = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token}
    added = sorted(tokenizer.added_tokens_decoder.items())
    spare = [
        token.content
        for _, token in added
        if token.special and token.content not in used and token.content not in (tokenizer.chat_template or "")
    ]
    tenth = round(10 * ratio)
    if abs(tenth - 10 * ratio) > 1e-9 or not 1 <= tenth <= len(spare):
        raise InputError(
            f"prompts.marker token: no spare special token for ratio {ratio:g} (the tokenizer has {len(spare)}, for "
            "tenths from 0.1 up); use marker: eos"
        )
    return spare[tenth - 1]


def build_prompt(
    tokenizer: PreTrainedTokenizerBase,
    question: str,
    settings: PromptSettings,
    *,
    sentence: str = "",
    ratio: float | None = None,
) -> str:
    """The whole prompt, up to where the model starts to answer.

    Args:
        question: the problem's text.
        sentence: one more request to the model, such as "Be concise."; `settings.baseline_place` says
            whether it follows the instruction, the question or the system message.
        ratio: fraction of the chain to keep. Its marker follows the question; None and 1.0 have no marker.

    Raises:
        ValueError: ratio outside (0, 1].
        InputError: marker `token`, and the model has no spare special token for this ratio; or the model's chat
            template is missing or broken.
    """
    request = user_message(tokenizer, question, settings, sentence=sentence, ratio=ratio)
    system = settings.system
    if settings.baseline_place == "system":
        system = " ".join(filter(None, [system, sentence]))
    return _in_template(tokenizer, system, request, settings)


def build_own_prompt(
    tokenizer: PreTrainedTokenizerBase, question: str, settings: PromptSettings, request: str, *, system: str = ""
) -> str:
    """The whole prompt of a request in words of its own: without the instruction, a sentence or a marker.

    Args:
        request: the user's message; `{question}` becomes the question.
        system: the system message; "" is the profile's. A profile without a system message, or whose format has
            none, gets it in front of the user's message.
    """
    message = request.replace("{question}", question)
    if system and (settings.format == "reference_llama3" or not settings.system):
        return _in_template(tokenizer, settings.system, f"{system}\n{message}", settings)
    return _in_template(tokenizer, system or settings.system, message, settings)


def build_recovery_prompt(
    tokenizer: PreTrainedTokenizerBase, question: str, pruned: str, settings: PromptSettings
) -> str:
    """The prompt that asks the target model to write a pruned chain out in full again.

    Source: TokenSkip's figure 11, with its labels.
    """
    return _in_template(tokenizer, settings.system, RECOVERY.format(question=question, chain=pruned), settings)


def _in_template(tokenizer: PreTrainedTokenizerBase, system: str, request: str, settings: PromptSettings) -> str:
    if settings.format == "reference_llama3":  # no system message there
        return (
            f"{tokenizer.bos_token}<|start_header_id|>user<|end_header_id|>\n\n{request}"
            f"{tokenizer.eos_token}<|start_header_id|>assistant<|end_header_id|>\n\n"
        )
    if settings.format == "reference_qwen":
        return f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{request}<|im_end|>\n<|im_start|>assistant\n"
    return _in_chat_template(tokenizer, system, request)


def _in_chat_template(tokenizer: PreTrainedTokenizerBase, system: str, request: str) -> str:
    """The prompt by the model's own template. A template that has no system message gets it with the request.

    Raises:
        InputError: the model has no chat template, or one that fails or leaves the request out.
    """
    name = tokenizer.name_or_path or "the tokenizer"
    if not tokenizer.chat_template:
        raise InputError(
            f"{name}: no chat template; add the file chat_template.jinja to the model's folder, or write the literal "
            "text of the authors' code by prompts.format (reference_qwen or reference_llama3)"
        )
    built, why = _render(tokenizer, system, request)
    # A template may refuse a system message, or leave it out without a word.
    if system and (built is None or (system.strip() not in built and built == _render(tokenizer, "", request)[0])):
        folded, _ = _render(tokenizer, "", f"{system}\n{request}")
        if folded is not None:
            _say_folded(name)
            built = folded
    if built is not None and request.strip() not in built and built == _render(tokenizer, system, "")[0]:
        built, why = None, "it leaves the user's message out"
    if built is None:
        raise InputError(f"{name}: the chat template fails ({why}); mend chat_template.jinja in the model's folder")
    return built


def _render(tokenizer: PreTrainedTokenizerBase, system: str, request: str) -> tuple[str | None, str]:
    """The prompt, or None and why the template failed."""
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": request})
    try:
        return cast(str, tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)), ""
    except TEMPLATE_ERRORS as error:
        return None, f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


@cache
def _say_folded(name: str) -> None:
    """Say once that a model has no system message."""
    print(f"{name}: its chat template has no system message; the user's message begins with it", file=sys.stderr)


def user_message(
    tokenizer: PreTrainedTokenizerBase,
    question: str,
    settings: PromptSettings,
    *,
    sentence: str = "",
    ratio: float | None = None,
) -> str:
    """The user's part of `build_prompt`: instruction, question and marker, without the template around them.

    Args:
        question: the problem's text.
        sentence: as in `build_prompt`; left out if it belongs in the system message.
        ratio: as in `build_prompt`.
    """
    instruction = INSTRUCTION
    if sentence and settings.baseline_place == "instruction":
        instruction = f"{instruction} {sentence}"
    elif sentence and settings.baseline_place == "question":
        question = f"{question}\n{sentence}"
    marker = "" if ratio is None else ratio_marker(tokenizer, ratio, settings)
    # The authors' code writes a newline before the marker for Llama, with or without a marker.
    return f"{instruction}\n{question}" + ("\n" if settings.format == "reference_llama3" else "") + marker


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Token ids of a built prompt; its special tokens are already in the text."""
    return tokenizer(prompt, add_special_tokens=False)["input_ids"]


def encode_completion(tokenizer: PreTrainedTokenizerBase, completion: str) -> list[int]:
    """Token ids of a training response, ended by the model's own end-of-sequence token.

    Prompt and completion are tokenised apart, because generation also starts after a tokenised prompt.
    """
    return [*tokenizer(completion, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
