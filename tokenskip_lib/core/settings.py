"""The settings of each part of a run, validated. `profiles.py` puts them together in a profile.

A setting marked HOW changes how the work is done (memory, speed, the address of a server); results stay. A run never
refuses another value of it.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

HOW = "how"
Ratio = Annotated[float, Field(gt=0, le=1)]
Level = Annotated[float, Field(ge=0, le=1.5)]  # a ratio, or an adapter's strength: evaluation.methods says which
PositiveInt = Annotated[int, Field(gt=0)]
Markers = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=2, max_length=2)]
Dtype = Literal["auto", "bfloat16", "float16", "float32"]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what numpy, torch and transformers take alike
OutputLayout = Literal["answer", "think"]  # how an output says what its chain is: PromptSettings


def _as_file_name(name: str) -> str:
    if not re.fullmatch(r"\w[\w .,+=()@-]*", name) or len(name.encode()) > 100:
        raise ValueError(
            "a name of files: at most 100 letters, digits, spaces and . , + = ( ) @ - _, of which a letter, a digit or "
            "_ is the first"
        )
    return name


FileName = Annotated[str, AfterValidator(_as_file_name)]


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TargetSettings(Settings):
    """Which model answers, and where it runs."""

    model: str
    revision: str | None = None  # a commit of the hub's repository; None: its newest
    adapter: str | None = None
    device: str = "auto"
    dtype: Dtype = "auto"
    attention: Literal["sdpa", "flash_attention_2"] = "sdpa"  # the latter where flash-attn is installed
    # Most tokens of a generation batch, prompts and whole budgets together; None: any.
    batch_tokens: Annotated[PositiveInt | None, HOW] = None
    compile: bool = False  # decode by a compiled step over a cache of fixed size
    cache_dir: Annotated[str, HOW] = "~/.cache/tokenskip"


class PromptSettings(Settings):
    """`chat`: the model's own template, marker `EOS ratio EOS`; `reference_*`: the literal text of
    the reference implementation, so that adapters trained with it can be asked.

    `layout`, of outputs: `answer`, a chain, then a closing phrase; `think`, a chain in `<think>` tags.
    `answer_phrases` announce an answer in another language, e.g. "Die Antwort ist"; English phrases always do.
    `marker`, how a chat prompt carries the ratio: `eos`, the paper's; `token`, one special token for each
    tenth, of those that the model has and never uses, whose embeddings are trained too; `words`, a sentence.
    `baseline_place`: where the sentence of a prompt-only baseline stands: after the instruction, the question
    or the system message.
    """

    format: Literal["chat", "reference_qwen", "reference_llama3"] = "chat"
    system: str = "You are a helpful assistant."  # "": no system message
    layout: OutputLayout = "answer"
    answer_phrases: list[Annotated[str, Field(pattern=r"\S")]] = []
    marker: Literal["eos", "token", "words"] = "eos"
    baseline_place: Literal["instruction", "question", "system"] = "instruction"

    @model_validator(mode="after")
    def _reference_is_literal(self) -> "PromptSettings":
        if self.format != "chat" and self.marker != "eos":
            raise ValueError(f"prompts.marker '{self.marker}' goes with format: chat; the reference's text is literal")
        if self.format == "reference_llama3" and self.baseline_place == "system":
            raise ValueError("prompts.baseline_place 'system': reference_llama3 has no system message")
        return self


class ProblemSettings(Settings):
    """A named problem set (gsm_symbolic, gsm8k, math, math500) or the path of a JSONL file."""

    train: str
    test: str
    train_size: PositiveInt | None = None
    train_seed: Seed | None = None  # of gsm_symbolic's training problems alone; None: the profile's seed
    test_size: PositiveInt | None = None
    validation: str | None = None  # a JSONL file; gsm_symbolic has a validation split of its own
    validation_size: PositiveInt | None = None  # problems to choose settings by
    max_number: PositiveInt | None = None  # gsm_symbolic: the largest number in question or solution
    max_words: PositiveInt | None = None  # gsm_symbolic: of question and solution together


class ChainSettings(Settings):
    """How the target model answers the training problems."""

    max_new_tokens: PositiveInt = 512
    batch_size: PositiveInt = 16
    max_chain_tokens: PositiveInt | None = None  # longer chains are dropped and counted


class ImportanceSettings(Settings):
    """Whose scores are used later, and whose are shown beside them."""

    scorer: str = "selective_context"
    compare_with: list[str] = ["random"]
    compare_size: PositiveInt | None = None  # how many chains those score, the first; None: all
    classifier: str = "microsoft/llmlingua-2-xlm-roberta-large-meetingbank"  # of llmlingua2 and llmlingua mode
    classifier_revision: str | None = None
    classifier_dtype: Dtype = "auto"
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.6  # of mist: the share of necessity; the rest is sufficiency
    whole_latex: bool = False  # a LaTeX command and its arguments are one span
    batch_tokens: Annotated[PositiveInt | None, HOW] = (
        None  # padded tokens of a forward pass; None: the device's default
    )


class KeepSettings(Settings):
    """What stays before all else, and what goes first. In llmlingua mode: its force_tokens, force_reserve_digit,
    drop_consecutive."""

    keep_tokens: list[str] = []
    keep_digits: bool = False
    keep_operators: bool = False
    skip_spaces: bool = False  # between operator and number first of all: tokens too, where digits are taken singly
    drop_consecutive: bool = False  # of equal keep_tokens that come to stand side by side, the first alone stays
    protect: list[Markers] = []  # what is between an opening and a closing marker stays, and so do the markers
    max_skipped: PositiveInt | None = None  # most neighbouring spans (or steps) that are left out; None: any number
    skip_text: str = ""  # mode steps: stands for each step that is left out, e.g. [SKIP]


class PruningSettings(KeepSettings):
    """`spans`: whole words and numbers, ratios in target tokens. `steps`: whole steps, by the sum of their importance.
    `threshold`: spans above one score in all chains of a window, which together meet the ratio. `llmlingua`: byte for
    byte as llmlingua 0.2.2.
    """

    mode: Literal["spans", "steps", "threshold", "llmlingua"] = "spans"
    ratios: list[Ratio] = [0.5, 0.6, 0.7, 0.8, 0.9, 1.0]

    @field_validator("ratios")
    @classmethod
    def _ascending(cls, ratios: list[float]) -> list[float]:
        if not ratios or ratios != sorted(set(ratios)):
            raise ValueError("ratios must ascend, without repeats")
        return ratios

    @model_validator(mode="after")
    def _known_to_mode(self) -> "PruningSettings":
        for name in UNKNOWN_TO_MODE[self.mode]:
            if getattr(self, name) != KeepSettings.model_fields[name].default:
                modes = [mode for mode, unknown in UNKNOWN_TO_MODE.items() if name not in unknown]
                raise ValueError(f"{name} is no option of mode {self.mode}; use mode: {' or '.join(modes)}")
        return self


# The options that have no meaning in a mode.
UNKNOWN_TO_MODE = {
    "spans": ["skip_text"],
    "steps": ["keep_tokens", "keep_operators", "skip_spaces", "drop_consecutive"],
    "threshold": ["skip_text"],
    "llmlingua": ["keep_operators", "skip_spaces", "protect", "max_skipped", "skip_text"],
}


def pruned_by(pruning: PruningSettings, importance: ImportanceSettings) -> str:
    """What the `scorer` field of pruned chains says: the scorer, or "llmlingua" in that mode."""
    return "llmlingua" if pruning.mode == "llmlingua" else importance.scorer


class TrainingSettings(Settings):
    """LoRA fine-tuning. The defaults are the paper's recipe.

    An optimiser step takes batch_size x accumulation rows, however many processes share them.
    """

    ratios_a_problem: Literal["one", "all"] = "one"  # a row at one drawn ratio, or a row at each
    rows: PositiveInt | None = None  # of the chains' rows, the first so many; None: all
    seed: Seed | None = None  # of drawn ratios, order and initial weights; None: the profile's
    start_from: str | None = None  # an adapter of this rank that training goes on from; None: a fresh one
    rank: PositiveInt = 8
    alpha: PositiveInt = 16
    learning_rate: Annotated[float, Field(gt=0)] = 5e-5
    epochs: Annotated[float, Field(gt=0)] = 3
    batch_size: PositiveInt = 1
    accumulation: PositiveInt = 8
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1  # share of all steps
    max_tokens: PositiveInt = 2048
    # Compute activations again for the gradient, which saves memory; None: on a GPU only.
    checkpointing: Annotated[bool | None, HOW] = None
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.1
    log_every: PositiveInt = 10  # optimiser steps
    save_every: Annotated[PositiveInt, HOW] = 100  # optimiser steps between resumable checkpoints
    report_to: Annotated[list[Literal["tensorboard", "trackio", "wandb"]], HOW] = []  # who gets the losses as well


class EvaluationSettings(Settings):
    """`methods`: name -> levels; an empty list where the method takes none. A level is a ratio, and for
    adapter_scaling the strength of the adapter, from 0 to 1.5.

    `budget`: tokenskip's answers may have max_new_tokens as all others (fixed), or that times the ratio (scaled).
    The paper and the authors' code scale it on MATH and never on GSM8K. Answers that it cuts off are counted
    either way.
    """

    methods: dict[str, list[Level]]
    split: Literal["test", "validation"] = "test"  # the latter to choose settings by
    adapter: str | None = None  # a published one (folder or hub name) in place of the run's own
    attach: bool = False  # the adapter beside the weights, one model for all methods; else merged into a copy
    max_new_tokens: PositiveInt = 512
    budget: Literal["fixed", "scaled"] = "fixed"
    batch_size: PositiveInt = 16

    @field_validator("methods")
    @classmethod
    def _original_first(cls, methods: dict[str, list[float]]) -> dict[str, list[float]]:
        if "original" not in methods:
            raise ValueError("'original' must be among the methods: ratios are measured against it")
        return {"original": methods["original"], **methods}


class ServerSettings(Settings):
    """An OpenAI-compatible server that answers in place of this process; chains and evaluation go to it."""

    url: Annotated[str, HOW]  # ends with /v1
    model: str  # what the server calls the target model
    tokenskip_model: str = "tokenskip"  # and the target model with the TokenSkip adapter
    concurrency: Annotated[PositiveInt, HOW] = 32  # requests at a time
    retries: Annotated[int, Field(ge=0), HOW] = 8
    timeout: Annotated[float, Field(gt=0), HOW] = 600  # seconds for one request
    api_key_variable: Annotated[str, HOW] = "OPENAI_API_KEY"  # the environment variable that holds the key


class ExecutionSettings(Settings):
    """Where chains are scored and pruned, predictions graded and our own engine answers: here, or by workers of Ray.

    `tries`: how many workers may die over the same records before these are halved, and one alone is left out.
    """

    kind: Annotated[Literal["local", "ray"], HOW] = "local"
    workers: Annotated[PositiveInt, HOW] = 1
    cpus_per_worker: Annotated[PositiveInt, HOW] = 1  # threads of a worker
    gpus_per_worker: Annotated[float, Field(ge=0, le=1), HOW] = 0
    address: Annotated[str | None, HOW] = None  # HOST:PORT, or auto; None: RAY_ADDRESS, else this machine alone
    tries: Annotated[PositiveInt, HOW] = 3


class TargetTrainingSettings(Settings):
    """How `prepare-target` teaches the base model the task; of gsm_symbolic its rows are never in train or test."""

    rows: PositiveInt
    training: TrainingSettings


class StudySettings(Settings):
    """A question put to several trainings: a run for each entry of `vary`, on the chains of the profile's own run.

    `common` and every entry are overrides, dotted setting -> value.
    """

    common: dict[str, Any] = {}
    vary: Annotated[list[dict[str, Any]], Field(min_length=1)]
