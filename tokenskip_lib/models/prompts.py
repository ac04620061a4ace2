"""The only definition of what the model is asked and how it is expected to end.

Training rows, inference and every baseline build their text here, so that a ratio marker learned in
training is the marker asked for at inference, to the token.

Source: TokenSkip (arXiv:2502.12067) section 3 and appendix; github.com/hemingkx/TokenSkip for the
literal formats.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenskip_lib.core.records import InputError
from tokenskip_lib.core.settings import PromptSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."

# Prompt-only baselines, the sentences as published; `prompts.baseline_place` says where one stands.
BASELINE_PROMPTS = {
    "be_concise": "Be concise.",
    "only_numbers": "Only use numbers or equations.",
    "abbre_words": "Abbreviate words as much as possible.",
    "lc_prompt": "Please reduce {percent}% of the words in your Chain-of-Thought process.",
}

RECOVERY = (
    "Could you please recover the following compressed Chain-of-Thought output of a mathematical question to its "
    "original full content?"
)


def answer_tail(answer: str) -> str:
    """What follows every chain in training: the closing phrase with the answer, never pruned."""
    return f"\n\nThe final answer is: $\\boxed{{{answer}}}$"


def build_completion(prompt: str, chain: str, tail: str, settings: PromptSettings) -> str:
    """A training response: a pruned chain and what follows it; `<think>` first, where the prompt did not open it."""
    opens = settings.layout == "think" and not prompt.rstrip().endswith("<think>")
    return ("<think>\n" if opens else "") + chain + tail


def ratio_marker(tokenizer: PreTrainedTokenizerBase, ratio: float, settings: PromptSettings) -> str:
    """The text that carries the ratio; empty at 1.0, as in the reference.

    The marker is `EOS ratio EOS` with the tokenizer's own end-of-sequence token, unless `settings.marker`
    says otherwise; in `reference_qwen` with the reference's literal `<|eot_id|>`, which is no special
    token to Qwen and splits into several.

    Raises:
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


def _ratio_token(tokenizer: PreTrainedTokenizerBase, ratio: float) -> str:
    """The special token that stands for a tenth: the model's own that neither its template nor its texts use."""
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
    method: str = "original",
    ratio: float = 1.0,
) -> str:
    """The whole prompt, up to where the model starts to answer.

    Args:
        question: the problem's text.
        method: "tokenskip" appends the ratio marker to the question; a baseline of BASELINE_PROMPTS
            appends its sentence to the instruction, or where `settings.baseline_place` says; "original"
            and "truncation" add nothing.
        ratio: fraction of the chain to keep. Read by tokenskip and lc_prompt only.
    """
    request = user_message(tokenizer, question, settings, method=method, ratio=ratio)
    system = settings.system
    if settings.baseline_place == "system":
        system = " ".join(filter(None, [system, _baseline_sentence(method, ratio)]))
    return _in_template(tokenizer, system, request, settings)


def build_recovery_prompt(
    tokenizer: PreTrainedTokenizerBase, question: str, pruned: str, settings: PromptSettings
) -> str:
    """What asks the target model to write a pruned chain out again.

    Source: TokenSkip's figure 3 for the sentence; question and chain follow it here.
    """
    return _in_template(tokenizer, settings.system, f"{RECOVERY}\n\n{question}\n\n{pruned}", settings)


def _in_template(tokenizer: PreTrainedTokenizerBase, system: str, request: str, settings: PromptSettings) -> str:
    if settings.format == "reference_llama3":  # no system message there
        return (
            f"{tokenizer.bos_token}<|start_header_id|>user<|end_header_id|>\n\n{request}"
            f"{tokenizer.eos_token}<|start_header_id|>assistant<|end_header_id|>\n\n"
        )
    if settings.format == "reference_qwen":
        return f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{request}<|im_end|>\n<|im_start|>assistant\n"
    messages = [{"role": "user", "content": request}]
    if system:
        messages.insert(0, {"role": "system", "content": system})
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def user_message(
    tokenizer: PreTrainedTokenizerBase,
    question: str,
    settings: PromptSettings,
    *,
    method: str = "original",
    ratio: float = 1.0,
) -> str:
    """What the user says in `build_prompt`: instruction, question and the ratio's marker, no template around it."""
    instruction, sentence = INSTRUCTION, _baseline_sentence(method, ratio)
    if sentence and settings.baseline_place == "instruction":
        instruction = f"{instruction} {sentence}"
    elif sentence and settings.baseline_place == "question":
        question = f"{question}\n{sentence}"
    marker = ratio_marker(tokenizer, ratio, settings) if method == "tokenskip" else ""
    # The reference writes a newline before the marker for Llama.
    return f"{instruction}\n{question}" + ("\n" if settings.format == "reference_llama3" else "") + marker


def _baseline_sentence(method: str, ratio: float) -> str:
    """What a prompt-only baseline adds, LC-Prompt with the ratio's own percentage; "" of other methods."""
    return BASELINE_PROMPTS.get(method, "").format(percent=round(100 * (1 - ratio)))


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Token ids of a built prompt; its special tokens are already in the text."""
    return tokenizer(prompt, add_special_tokens=False)["input_ids"]


def encode_completion(tokenizer: PreTrainedTokenizerBase, completion: str) -> list[int]:
    """Token ids of a training response, ended by the model's own end-of-sequence token.

    Prompt and completion are tokenised apart, as generation meets them.
    """
    return [*tokenizer(completion, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
