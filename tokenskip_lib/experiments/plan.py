"""What a run needs, in a report for people before it starts: memory, disk, and each stage's tokens and time."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf

from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForTokenClassification

from tokenskip_lib.core.profiles import Profile
from tokenskip_lib.core.settings import TargetSettings
from tokenskip_lib.experiments import costs
from tokenskip_lib.experiments.costs import Card, Shape
from tokenskip_lib.experiments.stages import check_names
from tokenskip_lib.experiments.workload import Work, evaluates_alone, stage_work
from tokenskip_lib.models.loading import from_pretrained, load_tokenizer

COUNTER = "HuggingFaceTB/SmolLM2-135M-Instruct"  # counts tokens in place of a tokenizer that is out of reach
CLASSIFIER_SIZE = 3.03e8  # parameters in the blocks of LLMLingua-2's XLM-RoBERTa large
RECORD_BYTES = 12  # for each token in a record, with the fields around it: measured on the demo's run
ADAPTER_BYTES = 2  # for each trained parameter, when it is saved
ADAPTER_STATE = 16  # for each trained parameter in float32: itself, its gradient, AdamW's two moments
CHECKPOINT_STATE = 12  # of these 16, on disk during training: all but the gradient


def report(
    profile: Profile,
    card_name: str | None = None,
    parameters: float | None = None,
    *,
    workers: int | None = None,
    problems: int | None = None,
) -> str:
    """The report for people. It states its own assumptions.

    Args:
        card_name: a name in costs.CARDS or "cpu"; None: this machine's GPU, or its CPU without one.
        parameters: of the target model, if the model itself is out of reach. Its shape is then assumed, and tokens
            are counted by the demo's tokenizer.
        workers: also time and cost of each stage on so many workers, each with one such card.
        problems: as if there were so many training problems; None: those of the profile.

    Raises:
        InputError: there is no such card, or a model, tokenizer, classifier or problem set cannot be reached.
    """
    where, target = {"cache_dir": profile.target.cache_dir}, profile.target
    card, dtype = costs.find_card(card_name, target)
    check_names(profile)
    if parameters is None:
        config = from_pretrained(AutoConfig, target.model, setting="target.model", revision=target.revision, **where)
        work = stage_work(profile, checkpointing=card.name != "cpu", number=problems)
        shape = costs.read_shape(AutoModelForCausalLM, config, profile.training)
    else:
        counter = load_tokenizer(TargetSettings(model=COUNTER, cache_dir=target.cache_dir))
        work = stage_work(profile, checkpointing=card.name != "cpu", number=problems, tokenizer=counter)
        shape = costs.shape_of_size(parameters, profile.training)
    shapes = {False: shape}  # by Work.classifier
    if any(part.classifier for part in work):
        name, revision = profile.importance.classifier, profile.importance.classifier_revision
        if parameters is None:
            own = from_pretrained(AutoConfig, name, setting="importance.classifier", revision=revision, **where)
            shapes[True] = costs.read_shape(AutoModelForTokenClassification, own)
        else:
            shapes[True] = costs.shape_of_size(CLASSIFIER_SIZE, profile.training)
    scored = sum(part.read for part in work if part.stage in ("score", "prune"))
    records = RECORD_BYTES * (scored + sum(part.written for part in work))
    adapter, checkpoint = shape.trainable * ADAPTER_BYTES, shape.trainable * CHECKPOINT_STATE
    too_wide = card.name != "cpu" and dtype.itemsize > 2
    lines = [
        f"{profile.name}: {profile.target.model} in {str(dtype).removeprefix('torch.')} on {card.name}",
        f"card        {card.flops / 1e12:.3g} TFLOP/s, {card.bandwidth / 1e9:.0f} GB/s, {_bytes(card.memory)} "
        f"({card.source}{', of 16-bit weights: float32 is slower' if too_wide else ''})",
        f"parameters  {shape.parameters:,}; adapter of rank {profile.training.rank}: {shape.trainable:,}",
        *_memory_lines(profile, work, shape, card, dtype.itemsize),
        f"disk        {_bytes(shape.parameters * shape.stored)} model; {_bytes(adapter)} adapter; "
        f"{_bytes(checkpoint)} its checkpoint while it trains; about {_bytes(records)} records",
        "",
        *_stage_lines(profile, work, shapes, card, dtype.itemsize),
        *(_cluster_lines(profile, work, shapes, card, dtype.itemsize, workers) if workers else []),
        "",
        f"Time assumes {costs.COMPUTE_SHARE:.0%} of the FLOP/s in reading and training and "
        f"{costs.BANDWIDTH_SHARE:.0%} of the bandwidth in decoding.",
        "Not counted: launches and Python, which take most of a small model's time on a fast card; padding; and the",
        "savings when the prompts of a batch begin alike. Without records, every chain counts as right and used.",
    ]
    if parameters is not None:
        lines.append(
            f"The shape is assumed from --parameters: {shape.layers} blocks of width {shape.hidden}. "
            f"Tokens are those of {COUNTER}."
        )
    if evaluates_alone(profile):
        lines.append(f"Evaluation alone is planned: {profile.evaluation.adapter} comes from the hub.")
    if profile.studies or profile.target_training:
        lines.append("Nor counted: `prepare-target`, and studies, where each variant is a training or an evaluation.")
    if profile.server is not None:
        lines.append(
            f"{profile.server.url} answers in generate and evaluate: their time is for a server on one such card."
        )
    return "\n".join(lines)


def _memory_lines(profile: Profile, work: Sequence[Work], shape: Shape, card: Card, itemsize: int) -> list[str]:
    weights = shape.parameters * itemsize
    lines, peak = [f"memory      {_bytes(weights)} weights"], float(weights)
    for stage in dict.fromkeys(part.stage for part in work if part.answers):
        parts = [(part.reads, part.answers) for part in work if part.stage == stage and part.answers]
        rows = min(_batch_size(profile, stage), sum(len(reads) for reads, _ in parts))
        lengths = [
            max(max(reads) + max(answers.lengths) for reads, answers in parts),
            max(max(reads) + answers.budget for reads, answers in parts),
        ]
        expected, most = (costs.kv_cache_bytes(shape, rows, length, itemsize) for length in lengths)
        lines.append(f"            + {_bytes(expected)} KV cache in {stage}, {rows} rows; at most {_bytes(most)}")
        peak = max(peak, weights + expected)
    if trained := next((part for part in work if part.stage == "train"), None):
        rows, longest = profile.training.batch_size, max(trained.reads, default=0)
        state = shape.trainable * ADAPTER_STATE
        inputs = shape.layers * shape.hidden * rows * longest * itemsize
        kept = "every block" if card.name == "cpu" else "one block at a time"  # the other blocks are computed again
        lines += [
            f"            + {_bytes(state)} in training: adapter, gradients and AdamW's two moments in float32",
            f"            + {_bytes(inputs)} in training: what enters the blocks, {rows} x {longest:.0f} tokens",
            f"            + in training, not estimated: what kernels keep inside {kept}, and logits",
        ]
        peak = max(peak, weights + state + inputs)
    if peak > card.memory:
        lines.append(f"            DOES NOT FIT: {_bytes(peak)} at least, and {card.name} has {_bytes(card.memory)}")
    return lines


def _stage_lines(
    profile: Profile, work: Sequence[Work], shapes: Mapping[bool, Shape], card: Card, itemsize: int
) -> list[str]:
    lines, total = [], 0.0
    row = "{:9} {:16} {:>6} {:>11} {:>6} {:>11} {:>11} {:>9}  {}"
    lines.append(row.format("stage", "part", "rows", "read", "passes", "written", "at most", "time", "answers as in"))
    for part in work:
        model = shapes[part.classifier]
        seconds = part.seconds(model, card, batch_size=_batch_size(profile, part.stage), itemsize=itemsize)
        total += seconds
        numbers = (f"{number:,}" for number in (part.written, part.most_written)) if part.answers else ("", "")
        rows, read, source = len(part.reads), f"{part.read:,}", part.answers.source if part.answers else ""
        lines.append(
            row.format(part.stage, part.part, rows, read, f"{part.passes:g}", *numbers, _time(seconds), source)
        )
    sums = [f"{sum(numbers):,}" for numbers in zip(*((p.read, p.written, p.most_written) for p in work), strict=True)]
    lines.append(row.format("all", "", "", sums[0], "", sums[1], sums[2], _time(total), ""))
    return [line.rstrip() for line in lines]


def _cluster_lines(
    profile: Profile, work: Sequence[Work], shapes: Mapping[bool, Shape], card: Card, itemsize: int, workers: int
) -> list[str]:
    """Time and cost of each stage on several workers, and which stage holds the others up, with the reason.

    Rows are dealt out evenly. Training shares the rows of an optimiser step, so few processes can take part.
    """
    row = "{:9} {:>6} {:>9} {:>11}"
    lines = [
        "",
        f"On {workers:,} worker{'s' * (workers > 1)}, each with {card.name}:",
        row.format("stage", "busy", "time", "card-hours"),
    ]
    taken: dict[str, float] = {}
    reasons = {}
    for stage in dict.fromkeys(part.stage for part in work):
        parts = [part for part in work if part.stage == stage]
        accumulation = profile.training.accumulation
        sharing = max(n for n in range(1, accumulation + 1) if accumulation % n == 0 and n <= workers)
        busy = sharing if stage == "train" else min(workers, max(len(part.reads) for part in parts))

        def seconds(card: Card, stage: str = stage, parts: Sequence[Work] = parts, busy: int = busy) -> float:
            size = _batch_size(profile, stage)
            shares = ((part.share(busy), shapes[part.classifier]) for part in parts)
            return sum(part.seconds(shape, card, batch_size=size, itemsize=itemsize) for part, shape in shares)

        taken[stage] = seconds(card)
        by_memory = seconds(replace(card, bandwidth=inf)) < taken[stage] / 2
        reasons[stage] = "memory bandwidth limits decoding" if by_memory else "arithmetic limits it"
        if busy < workers:
            what = f"an accumulation of {accumulation} batches" if stage == "train" else f"its {busy:,} rows"
            reasons[stage] = f"{what} can be shared by {busy:,} at most"
        lines.append(row.format(stage, f"{busy:,}", _time(taken[stage]), f"{workers * taken[stage] / 3600:,.2f}"))
    total, slowest = sum(taken.values()), max(taken, key=lambda stage: taken[stage])
    lines.append(row.format("all", "", _time(total), f"{workers * total / 3600:,.2f}"))
    share = taken[slowest] / total if total else 0
    return [
        *lines,
        f"The bottleneck is {slowest}, {share:.0%} of the time: {reasons[slowest]}.",
        "All cards are paid for from beginning to end. Not counted: loading a model on each worker, traffic between",
        "gradients of training processes, and what passes through the driver.",
    ]


def _batch_size(profile: Profile, stage: str) -> int:
    if profile.server is not None:
        return profile.server.concurrency
    return profile.chains.batch_size if stage == "generate" else profile.evaluation.batch_size


def _bytes(number: float) -> str:
    return f"{number / 1e9:.2f} GB" if number >= 1e8 else f"{number / 1e6:.1f} MB"


def _time(seconds: float) -> str:
    if 0 < seconds < 0.1:
        return f"{1000 * seconds:.1f} ms" if seconds >= 5e-5 else "< 0.1 ms"
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"
