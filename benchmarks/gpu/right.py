"""Is the device right? Its texts, scores, gradients and losses against those of the CPU, and of itself.

Each part is a function of the setting. It returns its figures, and under "right" whether they are as they must be.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from peft import get_peft_model
from transformers import PreTrainedModel

from benchmarks.gpu.setting import Setting, share_alike, texts
from benchmarks.train_once import train
from benchmarks.training import training_rows
from tokenskip_lib.core.settings import ImportanceSettings
from tokenskip_lib.models.adapters import attach_adapters
from tokenskip_lib.models.packing import attend_in_rows, pack_rows
from tokenskip_lib.pruning.registry import build_scorer
from tokenskip_lib.training.loss import response_loss
from tokenskip_lib.training.rows import encode_rows
from tokenskip_lib.training.start import lora_config

MOSTLY = 0.9  # the share of texts that must be alike: two tokens may lie so close that rounding decides
SCORERS = ("selective_context", "entropy", "cts", "gogi", "mist")
CLOSE = 1e-3  # how far float32 numbers of two devices may lie apart, as a share of the largest


def float32_texts(setting: Setting) -> dict:
    """In float32 the device writes the CPU's texts."""
    here, cpu = setting.answers(setting.device, "float32"), setting.answers("cpu", "float32")
    apart = _logits_apart(setting, "float32")[0]
    alike = share_alike(cpu, here)
    return {"right": alike >= MOSTLY and apart < CLOSE, "answers": len(cpu), "alike": alike, "logits_apart": apart}


def sixteen_bits(setting: Setting) -> dict:
    """In bfloat16 and float16 the likeliest next token is mostly that of float32; texts part sooner."""
    figures: dict = {"right": True}
    for dtype in ("bfloat16", "float16"):
        if dtype == "bfloat16" and setting.device.type == "cuda" and not torch.cuda.is_bf16_supported(False):
            continue
        apart, top = _logits_apart(setting, dtype)
        alike = share_alike(setting.answers("cpu", "float32"), setting.answers(setting.device, dtype))
        figures |= {f"{dtype}_alike": alike, f"{dtype}_next_token": top, f"{dtype}_logits_apart": apart}
        figures["right"] &= top >= MOSTLY
    return figures


def padding(setting: Setting) -> dict:
    """A prompt gets the same text in a padded batch as by itself."""
    model = setting.target(setting.device, "float32").model
    alike = share_alike(
        texts(setting.engine(model, 1), setting.small_requests), setting.answers(setting.device, "float32")
    )
    return {"right": alike >= MOSTLY, "alike": alike}


def adapters(setting: Setting) -> dict:
    """An attached adapter writes what the merged one writes, and something else than no adapter."""
    folder = setting.folder / "adapter"
    torch.manual_seed(0)
    lora = lora_config(setting.training_settings())
    lora.init_lora_weights = False  # random, not zero
    made = get_peft_model(setting.fresh("cpu", "float32"), lora)
    made.save_pretrained(folder)
    attached = attach_adapters(setting.fresh(setting.device, "float32"), {"made": folder})
    named = [replace(request, adapter="made") for request in setting.small_requests]
    beside = texts(setting.engine(attached), named)
    merged = texts(setting.engine(setting.fresh(setting.device, "float32", folder)), setting.small_requests)
    without = share_alike(merged, setting.answers(setting.device, "float32"))
    alike = share_alike(merged, beside)
    return {"right": alike >= MOSTLY and without < 1, "alike": alike, "alike_without_adapter": without}


def out_of_memory(setting: Setting) -> dict:
    """A batch that does not fit is halved until it does, and the texts stay.

    On CUDA the process is allowed a little less memory than the whole batch takes. A CPU has no such limit: there a
    hook refuses batches of more than two rows, and "injected" says so.
    """
    model, on_cuda = setting.target(setting.device, "float32").model, setting.device.type == "cuda"
    requests = setting.requests(4 * setting.sizes.problems, setting.sizes.new_tokens)
    engine, sizes, found = setting.engine(model, len(requests)), [], {}
    setting.clean()
    before = torch.cuda.memory_reserved(setting.device) if on_cuda else 0
    setting.start_peak()
    whole = texts(engine, requests)
    needed = torch.cuda.max_memory_reserved(setting.device) - before if on_cuda else 0
    with _injected(model) if not on_cuda else _memory_for(setting, 0.7 * needed):
        for batch in engine.generate(requests):
            sizes.append(len(batch))
            found |= {made.key: made.text for made in batch}
    alike, halved = share_alike(whole, found), max(sizes) < len(requests)
    return {"right": halved and alike >= MOSTLY, "batches": sizes, "alike": alike, "injected": not on_cuda}


def scorers(setting: Setting) -> dict:
    """Scores in float32 are the CPU's to a tolerance."""
    figures: dict = {"right": True}
    for name in SCORERS:
        scores = []
        for device in ("cpu", setting.device):
            scorer = build_scorer(name, setting.target(device, "float32"), ImportanceSettings(), seed=0)
            scored = scorer.score(setting.chains)
            scores.append(torch.tensor([value for chain in scored for value in chain.importance]))
        figures[name] = apart = _apart(*scores)
        figures["right"] &= apart < CLOSE
    return figures


def gradients(setting: Setting) -> dict:
    """The adapter's gradients of a packed batch in float32 are the CPU's to a tolerance."""
    settings = setting.training_settings()
    target = setting.target("cpu", "float32")
    rows = training_rows(setting.problems[:2], target, setting.prompts, every=True)
    encoded, _ = encode_rows(rows, setting.tokenizer, settings.max_tokens)
    found = []
    for device in ("cpu", setting.device):
        model = setting.fresh(device, "float32")
        attend_in_rows(model)
        torch.manual_seed(0)
        lora = lora_config(settings)
        adapted = get_peft_model(model, lora)
        torch.manual_seed(1)
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:  # zero at first, which would leave A without a gradient
                weight.data = (0.02 * torch.randn(weight.shape)).to(weight.device)
        batch = {name: tensor.to(model.device) for name, tensor in pack_rows(encoded).items()}
        labels = batch.pop("labels")
        response_loss(adapted(**batch, use_cache=False).logits, labels).backward()
        grads = [weight.grad.flatten().cpu() for weight in adapted.parameters() if weight.grad is not None]
        found.append(torch.cat(grads))
    apart = float((found[0] - found[1]).norm() / found[0].norm())
    return {"right": apart < CLOSE, "apart": apart, "norm": float(found[0].norm())}


def training(setting: Setting) -> dict:
    """The losses of a short training are the CPU's in float32, and near them in 16 bits."""
    target = setting.target("cpu", "float32")
    problems = setting.all_problems[: setting.sizes.training_problems]
    rows = training_rows(problems, target, setting.prompts, every=True)
    on_cuda = setting.device.type == "cuda"
    sides = [("cpu", "float32"), (setting.device, "float32"), (setting.device, "bfloat16")]
    losses = {}
    for device, dtype in [*sides, *([(setting.device, "float16")] if on_cuda else [])]:
        with tempfile.TemporaryDirectory(dir=setting.folder) as folder:
            made, _ = train(
                setting.fresh(device, dtype), setting.tokenizer, rows, setting.training_settings(), Path(folder)
            )
        losses["cpu" if device == "cpu" else dtype] = made
    whole = torch.tensor(losses.pop("cpu"))
    apart = {f"{name}_apart": _apart(whole, torch.tensor(found)) for name, found in losses.items()}
    right = apart["float32_apart"] < 10 * CLOSE and all(found < 0.05 for found in apart.values())
    return {"right": right, "steps": len(whole), "first": float(whole[0]), "last": float(whole[-1])} | apart


def compiled(setting: Setting) -> dict:
    """A compiled step writes what the plain one writes. On a CPU it is traced, and not compiled: that takes minutes."""
    model = setting.target(setting.device, "float32").model
    with setting.quick_compilation():
        engine = setting.engine(model, compiled=True)
    alike = share_alike(setting.answers(setting.device, "float32"), texts(engine, setting.small_requests))
    return {"right": alike >= MOSTLY, "alike": alike}


PARTS: list[Callable[[Setting], dict]] = [
    float32_texts,
    padding,
    sixteen_bits,
    adapters,
    out_of_memory,
    scorers,
    gradients,
    training,
]


@contextmanager
def _injected(model: PreTrainedModel) -> Iterator[None]:
    """A model that refuses batches of more than two rows, while the context is open."""

    def refuse(module, args, inputs):
        if len(inputs["input_ids"]) > 2:
            raise torch.OutOfMemoryError("injected")

    hook = model.register_forward_pre_hook(refuse, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _memory_for(setting: Setting, spare: float) -> Iterator[None]:
    """This process may take so many bytes of the card's memory beyond what it has, while the context is open."""
    setting.clean()
    total = torch.cuda.get_device_properties(setting.device).total_memory
    torch.cuda.set_per_process_memory_fraction(
        (torch.cuda.memory_reserved(setting.device) + spare) / total, setting.device
    )
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, setting.device)


def _apart(left: torch.Tensor, right: torch.Tensor) -> float:
    """The largest difference, as a share of the largest number; infinite if anything is not finite."""
    if not (left.isfinite().all() and right.isfinite().all()):
        return float("inf")
    return float((left - right).abs().max() / left.abs().max())


@torch.inference_mode()
def _logits_apart(setting: Setting, dtype: str) -> tuple[float, float]:
    """Logits after every token of a few prompts, against the CPU's in float32: how far apart, same likeliest token."""
    kept = []
    prompts = [setting.tokenizer(request.prompt)["input_ids"] for request in setting.small_requests[:4]]
    for device, own in (("cpu", "float32"), (setting.device, dtype)):
        model = setting.target(device, own).model
        kept.append(torch.cat([model(torch.tensor([ids]).to(model.device)).logits[0].float().cpu() for ids in prompts]))
    return _apart(*kept), float((kept[0].argmax(-1) == kept[1].argmax(-1)).float().mean())
