"""The tokens of every stage, before it runs: those it reads, and those its answers are expected to have.

Prompts are built and counted. The expected length of answers comes from the first of three sources: records
that are already there, the problems' worked solutions, the budget. The source is kept with the number.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from itertools import cycle, islice

from transformers import PreTrainedTokenizerBase

from tokenskip_lib.core.profiles import Profile
from tokenskip_lib.core.records import Chain, FirstCall, Prediction, Problem, SFTRow
from tokenskip_lib.core.store import R, parse_record, read_json_rows
from tokenskip_lib.evaluation.method import Known, Method, full_budget
from tokenskip_lib.evaluation.methods import METHODS, answer_budget, method_ratios
from tokenskip_lib.experiments.costs import Card, Shape, decoding_seconds, forward_flops, reading_seconds
from tokenskip_lib.experiments.state import read_state
from tokenskip_lib.experiments.steps import CHAINS, FIRST_CALLS, PREDICTIONS, SFT_ROWS
from tokenskip_lib.models.adapters import is_local
from tokenskip_lib.models.loading import load_tokenizer
from tokenskip_lib.models.prompts import answer_tail
from tokenskip_lib.models.tokens import batch_token_counter
from tokenskip_lib.problems.sets import load_problems
from tokenskip_lib.pruning.registry import find_scorer
from tokenskip_lib.training.arguments import EVALUATION_SHARE
from tokenskip_lib.training.rows import draw_ratios, encode_rows

EVALUATIONS = round(1 / EVALUATION_SHARE)  # of the held-out rows in one training, the last at its end


@dataclass(frozen=True)
class ExpectedLengths:
    """The tokens that answers are expected to have, the most that one may have, and the source of the numbers."""

    lengths: Sequence[float]
    budget: int
    source: str

    @property
    def mean(self) -> float:
        return sum(self.lengths) / len(self.lengths)

    def shortened(self, ratio: float, budget: int) -> "ExpectedLengths":
        """The lengths times the ratio, within the budget."""
        source = self.source if ratio == 1 else f"{self.source} x {ratio:g}"
        return ExpectedLengths([min(budget, ratio * length) for length in self.lengths], budget, source)


@dataclass(frozen=True)
class Work:
    """The tokens of one part of a stage.

    Attributes:
        reads: tokens that the model reads, of each row.
        predicted: how many of all tokens read pass the output layer.
        passes: how often the tokens are read, in forward passes.
        answers: the expected answers to the rows; None if the part generates nothing.
        classifier: whether LLMLingua-2's classifier reads the tokens; otherwise the target model.
    """

    stage: str
    part: str
    reads: Sequence[float]
    predicted: float
    passes: float = 1
    answers: ExpectedLengths | None = None
    classifier: bool = False

    @property
    def read(self) -> int:
        return round(sum(self.reads))

    @property
    def written(self) -> int:
        return round(len(self.reads) * self.answers.mean) if self.answers else 0

    @property
    def most_written(self) -> int:
        return len(self.reads) * self.answers.budget if self.answers else 0

    def share(self, workers: int) -> "Work":
        """The rows of the busiest of several workers among whom the rows are dealt out evenly."""
        rows = -(-len(self.reads) // workers)
        share = rows / len(self.reads) if rows else 0.0
        return replace(self, reads=self.reads[:rows], predicted=share * self.predicted)

    def seconds(self, shape: Shape, card: Card, *, batch_size: int, itemsize: int) -> float:
        """Seconds on a card.

        A batch takes as many steps as its longest answer, and rows that are done leave it. Methods share
        batches, so a part may fill a fraction of its last batch.
        """
        if not self.read:
            return 0.0
        context = self.read / len(self.reads)
        flops = forward_flops(shape, self.read, context, self.predicted)
        taken = reading_seconds(card, self.passes * flops)
        if self.answers and self.written:
            steps = max(1, len(self.reads) / batch_size) * max(self.answers.lengths)
            rows, context = self.written / steps, context + self.answers.mean / 2
            taken += decoding_seconds(shape, card, steps=steps, rows=rows, context=context, itemsize=itemsize)
        return taken


def expected_lengths(
    problems: Sequence[Problem],
    count: Callable[[Sequence[str]], list[int]],
    budget: int,
    recorded: Mapping[str, Sequence[int]],
) -> ExpectedLengths:
    """Expected answer lengths from the first source there is: records, worked solutions, the whole budget.

    Args:
        count: texts -> number of the target model's tokens in each.
        budget: the most tokens that an answer may have.
        recorded: file name -> answer lengths in it.
    """
    for source, lengths in recorded.items():
        if lengths:
            return ExpectedLengths([min(budget, length) for length in lengths], budget, source)
    solved = [problem.solution + answer_tail(problem.answer) for problem in problems if problem.solution]
    lengths = [min(budget, length) for length in count(solved)]
    return (
        ExpectedLengths(lengths, budget, "worked solutions")
        if lengths
        else ExpectedLengths([budget], budget, "max_new_tokens")
    )


def stage_work(
    profile: Profile,
    *,
    checkpointing: bool,
    number: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> list[Work]:
    """The tokens of every stage, done or not; only those of evaluation if its adapter comes from a hub.

    Args:
        checkpointing: whether training computes activations twice, as it does on a GPU.
        number: as if there were so many training problems, and no rows yet; None: those of the profile.
        tokenizer: counts the tokens; None: the target model's.
    """
    tokenizer = load_tokenizer(profile.target) if tokenizer is None else tokenizer
    chains = _recorded(profile, CHAINS, Chain)
    evaluated = _evaluate_work(profile, tokenizer, chains)
    if evaluates_alone(profile):
        return evaluated
    problems, count = load_problems(profile, "train").problems, batch_token_counter(tokenizer)
    lengths = _prompt_lengths(profile, tokenizer, problems, METHODS["original"], [1.0] * len(problems))
    asked = list(islice(cycle(lengths), number or len(lengths)))
    recorded = {CHAINS: [chain.output_tokens for chain in chains]}
    answers = expected_lengths(problems, count, profile.chains.max_new_tokens, recorded)
    kept = [chain.chain_tokens for chain in chains if chain.dropped is None]
    rows = round(len(asked) * len(kept) / len(chains)) if chains else len(asked)
    prompt, tail = _mean(asked), _mean(count([answer_tail(problem.answer) for problem in problems]))
    chain = _mean(kept) if kept else max(0.0, answers.mean - tail)
    work = [Work("generate", "original", asked, len(asked), answers=answers)]
    for name in dict.fromkeys([profile.importance.scorer, *profile.importance.compare_with]):
        scored = rows if name == profile.importance.scorer else min(rows, profile.importance.compare_size or rows)
        spec = find_scorer(name)
        if spec.classifier:
            work.append(Work("score", name, [chain] * scored, 0, classifier=True))
        elif spec.deletes:  # about a span a token; on average half of the chain follows a span, and the answer
            versions = chain * (chain / 2 + tail)
            work.append(Work("score", name, [prompt + chain + versions] * scored, versions * scored, spec.passes))
        elif spec.passes:
            work.append(Work("score", name, [prompt + chain] * scored, chain * scored, spec.passes))
    if profile.pruning.mode == "llmlingua":
        work.append(Work("prune", "llmlingua", [chain] * rows, 0, classifier=True))
    sft_rows = _recorded(profile, SFT_ROWS, SFTRow) if number is None else []
    trained = _train_work(profile, tokenizer, problems, sft_rows, rows, chain, tail, checkpointing=checkpointing)
    return [*work, *trained, *evaluated]


def evaluates_alone(profile: Profile) -> bool:
    """Whether the adapter that is evaluated comes from the hub; then the stages before have no part in the figures."""
    return profile.evaluation.adapter is not None and not is_local(profile.evaluation.adapter)


def _train_work(
    profile: Profile,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    sft_rows: Sequence[SFTRow],
    rows: int,
    chain: float,
    tail: float,
    *,
    checkpointing: bool,
) -> list[Work]:
    """The work of training: from its rows if they are there, else from the chains to expect, pruned at drawn ratios.

    Args:
        sft_rows: the rows, if they are there.
        rows: how many chains to expect.
        chain: their tokens.
        tail: tokens of the closing phrase with the answer.
    """
    training = profile.training
    if sft_rows:
        parts = [[row for row in sft_rows if row.held_out is out] for out in (False, True)]
        encoded = [encode_rows(part, tokenizer, training.max_tokens)[0] for part in parts]
        reads: list[list[float]] = [[len(row) for row in part] for part in encoded]
        responses: list[float] = [sum(len(row.completion) for row in part) for part in encoded]
    else:
        ratios, asked = profile.pruning.ratios, problems
        if training.ratios_a_problem == "all":
            rows *= len(ratios)
            ratios, asked = ratios * len(problems), [problem for problem in problems for _ in ratios]
        else:
            ratios = list(draw_ratios([problem.id for problem in problems], ratios, profile.training_seed).values())
        rows = min(rows, training.rows or rows)
        response, out = chain * _mean(ratios) + tail + 1, round(training.held_out * rows)
        row = _mean(_prompt_lengths(profile, tokenizer, asked, METHODS["tokenskip"], ratios)) + response
        reads, responses = [[row] * (rows - out), [row] * out], [response * (rows - out), response * out]
    passes = training.epochs * (3 if checkpointing else 2)
    return [
        Work("train", f"epochs: {training.epochs:g}", reads[0], responses[0], passes),
        Work("train", "held-out rows", reads[1], responses[1], EVALUATIONS),
    ]


def _evaluate_work(profile: Profile, tokenizer: PreTrainedTokenizerBase, chains: Sequence[Chain]) -> list[Work]:
    settings, answered = profile.evaluation, defaultdict(list)
    for prediction in _recorded(profile, PREDICTIONS, Prediction):
        own = prediction.chain_tokens + prediction.answer_tokens - prediction.first_call_tokens
        answered[prediction.method, prediction.ratio].append(own)
    called = [call.tokens for call in _recorded(profile, FIRST_CALLS, FirstCall)]
    problems = load_problems(profile, settings.split).problems
    recorded = {PREDICTIONS: answered["original", 1.0], CHAINS: [chain.output_tokens for chain in chains]}
    count = batch_token_counter(tokenizer)
    original = expected_lengths(problems, count, settings.max_new_tokens, recorded)
    # Prompts that state a number are counted with this one: theirs follows from answers, and has as many tokens.
    number = max(1, round(original.mean))
    smallest = min(profile.pruning.ratios)
    known = Known(smallest_ratio=smallest, original_tokens=[number], original_words=[number])
    work = []
    for name, level in method_ratios(settings):
        method = METHODS[name]
        if method.first_request:
            asked = count([method.build_first_prompt(tokenizer, p.question, profile.prompts) for p in problems])
            first = ExpectedLengths(called, settings.max_new_tokens, FIRST_CALLS) if called else original
            work.append(Work("evaluate", f"{name}, first call", asked, len(asked), answers=first))
        # Before the original has answered, its followers' budget is not known: the most it can be is planned.
        follows = method.follows_original
        budget = settings.max_new_tokens if follows else answer_budget(settings, name, level)
        # A prompt alone shortens little: only the adapter and a budget are expected to answer at their level.
        shortens = method.uses_adapter or method.budget is not full_budget
        share = 1 - level * (1 - smallest) if method.scales_adapter else level if shortens else 1
        answers = original.shortened(share, budget)
        if lengths := answered[name, level]:
            answers = ExpectedLengths(lengths, budget, PREDICTIONS)
        stated = number if method.first_request else None
        built = [method.build_prompt(tokenizer, p.question, profile.prompts, level, known, stated) for p in problems]
        reads = count(built)
        work.append(Work("evaluate", f"{name} {level:g}", reads, len(reads), answers=answers))
    return work


def _prompt_lengths(
    profile: Profile,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    method: Method,
    ratios: Sequence[float],
) -> list[int]:
    """Tokens of each problem's prompt at its ratio."""
    pairs = zip(problems, ratios, strict=True)
    built = [method.build_prompt(tokenizer, p.question, profile.prompts, r) for p, r in pairs]
    return batch_token_counter(tokenizer)(built)


def _recorded(profile: Profile, name: str, record_type: type[R]) -> list[R]:
    """The run's records, or none if another model or other prompts made them.

    A line that is still being written is left out. A RecordStore would mend the file under the stage that
    writes it, so the file is read directly.
    """
    state, path = read_state(profile.path("")), profile.path(name)
    if state is None or not path.is_file():
        return []
    made, asked = (
        [settings["prompts"], settings["target"]["model"], settings["target"]["adapter"]]
        for settings in (state["profile"], profile.model_dump())
    )
    if made != asked:
        return []
    content = path.read_bytes()
    rows = read_json_rows(BytesIO(content[: content.rfind(b"\n") + 1]))
    return [parse_record(row, record_type, f"{path}:{number}") for number, row in rows]


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)
