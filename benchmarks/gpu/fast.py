"""Is the device fast? Tokens a second of a large model, against other ways and against the device's own limits.

Speeds are measured by CUDA's events. Shares are of what this device reached here in plain matrix products.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.generation import ContinuousBatchingConfig

from benchmarks.generation import REFERENCE_BATCH, reference
from benchmarks.gpu.setting import Setting
from benchmarks.train_once import train
from benchmarks.training import training_rows
from tokenskip_lib.analyses.timing import time_answers
from tokenskip_lib.core.settings import ImportanceSettings
from tokenskip_lib.experiments.costs import Shape, forward_flops, kv_cache_bytes, read_shape
from tokenskip_lib.experiments.plan import ADAPTER_STATE
from tokenskip_lib.models.clock import Clock, peak_memory
from tokenskip_lib.models.prompts import encode_prompt
from tokenskip_lib.pruning.registry import build_scorer
from tokenskip_lib.training.rows import encode_rows


def limits(setting: Setting) -> dict:
    """What the device reaches in plain products: FLOP/s in its 16-bit dtype, bytes a second; its memory."""
    card = setting.card
    return {
        "dtype": str(setting.dtype).removeprefix("torch."),
        "TFLOPS": card.flops / 1e12,
        "GB_per_second": card.bandwidth / 1e9,
        "memory_GB": card.memory / 1e9,
    }


def answering(setting: Setting) -> dict:
    """Tokens a second of our engine at each batch size, and the share of the bound: bandwidth for one, FLOP/s for many.

    Peak memory is compared with what `plan` says: weights and the KV cache.
    """
    return _answering(setting, compiled=False)


def answering_compiled(setting: Setting) -> dict:
    """The same with a compiled step, at batch size 1."""
    return _answering(setting, compiled=True)


def authors_way(setting: Setting) -> dict:
    """`model.generate` in batches of 16, as the authors' code calls it, against our engine on the same prompts."""
    requests = _requests(setting, setting.sizes.fast_requests)
    warm_up = requests[:REFERENCE_BATCH]
    made = {}
    for name, run in (
        ("authors", lambda asked: reference(setting.large, asked)),
        ("ours", lambda asked: _by_engine(setting, asked)),
    ):
        run(warm_up)
        seconds, answers = _seconds(setting, lambda run=run: run(requests))
        made[f"{name}_tokens_per_second"] = sum(tokens for _, tokens in answers.values()) / seconds
    return made | {"times_as_fast": made["ours_tokens_per_second"] / made["authors_tokens_per_second"]}


def continuous_batching(setting: Setting) -> dict:
    """transformers' continuous batching on the same prompts."""
    model, requests = setting.large.model, _requests(setting, setting.sizes.fast_requests)
    config = GenerationConfig(max_new_tokens=setting.sizes.fast_new_tokens, do_sample=False, eos_token_id=-1)
    config.pad_token_id = setting.tokenizer.pad_token_id
    inputs = [encode_prompt(setting.tokenizer, request.prompt) for request in requests]
    before, size = model.config._attn_implementation, {}
    if setting.device.type == "cpu":  # by itself it would take nearly all of the machine's memory
        size = {"num_blocks": 16, "max_batch_tokens": 256, "page_size": 32}

    def run(prompts: list[list[int]]) -> dict:
        own = ContinuousBatchingConfig(**size)
        return model.generate_batch(inputs=prompts, generation_config=config, continuous_batching_config=own)

    try:
        run(inputs[:2])
        seconds, made = _seconds(setting, lambda: run(inputs))
    finally:
        model.set_attn_implementation(before)
    if len(made) < len(inputs):
        raise RuntimeError(f"transformers' continuous batching answered {len(made)} of {len(inputs)} prompts")
    return {"tokens_per_second": sum(len(answer.generated_tokens) for answer in made.values()) / seconds}


def scoring(setting: Setting) -> dict:
    """Tokens a second of two scorers, one that reads forwards and one that goes back; share of the FLOP/s."""
    figures: dict = {}
    chains = setting.chains
    for name in ("selective_context", "gogi"):
        scorer = build_scorer(name, setting.large, ImportanceSettings(), seed=0)
        scorer.score(chains[:4])
        seconds, _ = _seconds(setting, lambda scorer=scorer: scorer.score(chains))
        lengths = [len(scorer.prompt_ids(chain) + setting.tokenizer(chain.chain)["input_ids"]) for chain in chains]
        figures[f"{name}_tokens_per_second"] = sum(lengths) / seconds
        flops = forward_flops(_shape(setting), sum(lengths), sum(lengths) / len(lengths), 0)
        figures[f"{name}_share_of_flops"] = flops / seconds / setting.card.flops
    return figures


def training_speed(setting: Setting) -> dict:
    """Tokens a second of training, the share of the FLOP/s, and peak memory against what `plan` says at least."""
    settings = setting.training_settings(batch_size=8)
    problems = setting.all_problems[: setting.sizes.training_problems]
    rows = training_rows(problems, setting.large, setting.prompts, every=True)
    encoded, _ = encode_rows(rows, setting.tokenizer, settings.max_tokens)
    tokens, longest = sum(map(len, encoded)), max(map(len, encoded))
    setting.start_peak()
    config, model = setting.large.model.config, setting.large.model
    del setting.large  # training changes it: the next part makes its own
    with tempfile.TemporaryDirectory(dir=setting.folder) as folder:
        _, seconds = train(model, setting.tokenizer, rows, settings, Path(folder))
    shape = read_shape(AutoModelForCausalLM, config, settings)
    response = sum(len(row.completion) for row in encoded)
    passes = 3 if setting.device.type == "cuda" else 2
    flops = passes * forward_flops(shape, tokens, tokens / len(encoded), response)
    state = shape.trainable * ADAPTER_STATE
    inputs = shape.layers * shape.hidden * settings.batch_size * longest * setting.dtype.itemsize
    return {
        "tokens_per_second": tokens / seconds,
        "response_tokens_per_second": response / seconds,
        "share_of_flops": flops / seconds / setting.card.flops,
        **_memory(setting, shape.parameters * setting.dtype.itemsize + state + inputs),
    }


PARTS: list[Callable[[Setting], dict]] = [limits, answering, authors_way, scoring, training_speed]


def _answering(setting: Setting, *, compiled: bool) -> dict:
    large, shape, card = setting.large, _shape(setting), setting.card
    figures: dict = {"model": setting.large_name, "new_tokens": setting.sizes.fast_new_tokens}
    for size in setting.sizes.batches[: 1 if compiled else None]:
        requests = _requests(setting, max(size, 2))
        with setting.quick_compilation():
            [[(row, _)]] = time_answers([(large.model, requests)], large.tokenizer, size, compiled=compiled)
        weights = shape.parameters * setting.dtype.itemsize
        lengths = [len(encode_prompt(setting.tokenizer, request.prompt)) for request in requests]
        context = max(lengths) + setting.sizes.fast_new_tokens
        cache = kv_cache_bytes(shape, size, context, setting.dtype.itemsize)
        by_memory = row.tokens_per_second / size * (weights + cache) / card.bandwidth
        by_flops = row.tokens_per_second * forward_flops(shape, 1, context, 1) / card.flops
        figures |= {
            f"batch_{size}_tokens_per_second": row.tokens_per_second,
            f"batch_{size}_seconds_per_problem": row.seconds_per_problem,
            f"batch_{size}_share_of_bandwidth": by_memory,
            f"batch_{size}_share_of_flops": by_flops,
        }
        if setting.device.type == "cuda":
            figures[f"batch_{size}_peak_GB"] = row.peak_memory_mb * 2**20 / 1e9
            figures[f"batch_{size}_planned_GB"] = (weights + cache) / 1e9
    return figures


def _requests(setting: Setting, count: int) -> list:
    return setting.requests(count, setting.sizes.fast_new_tokens)


def _by_engine(setting: Setting, requests: list) -> dict:
    engine = setting.engine(setting.large.model, max(setting.sizes.batches))
    return {made.key: (made.text, made.tokens) for batch in engine.generate(requests) for made in batch}


def _shape(setting: Setting) -> Shape:
    return read_shape(AutoModelForCausalLM, setting.large.model.config)


def _seconds(setting: Setting, run: Callable):
    """Seconds of a call on the device, and its result."""
    clock = Clock(setting.device)
    clock.start()
    result = run()
    return clock.stop(), result


def _memory(setting: Setting, planned: float) -> dict:
    """Peak memory and what was planned, GB; on a CPU nothing, because the process's peak is of all parts."""
    if setting.device.type == "cpu":
        return {}
    return {"peak_GB": peak_memory(setting.device) * 2**20 / 1e9, "planned_at_least_GB": planned / 1e9}
