"""The records that pass between stages, and the keys that identify them.

A stage reads records and appends records; a killed stage continues where it stopped. This file
knows nothing about models, prompts or notebooks.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError


class InputError(ValueError):
    """Something the user gave is wrong. The message is one line: what, where, and what to do."""


class IdKey(NamedTuple):
    """Identifies a record that is alone for its problem."""

    id: str


class ScoredKey(NamedTuple):
    """Identifies a scored chain."""

    id: str
    scorer: str


class PrunedKey(NamedTuple):
    """Identifies a pruned chain."""

    id: str
    scorer: str
    ratio: float


class RowKey(NamedTuple):
    """Identifies a training row."""

    id: str
    ratio: float


class PredictionKey(NamedTuple):
    """Identifies one answer in an evaluation.

    `ratio` is the level that the method was asked at: a ratio, or the adapter's strength for a method that scales the
    adapter; 1.0 if the method takes no level.
    """

    id: str
    method: str
    ratio: float


class Record(BaseModel):
    """One line of a JSONL file. `key` identifies it inside its file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str

    @property
    def key(self) -> tuple:
        return IdKey(self.id)


class Problem(Record):
    """A question with its gold answer; `solution` is the data set's own worked solution, or ""."""

    question: str
    answer: str
    solution: str = ""


class ChainText(Record):
    """The part of a chain that scorers read; `question` and `answer` may be "" where none needs them."""

    question: str = ""
    answer: str = ""
    chain: str


class OutputChain(ChainText):
    """A chain that was split off the whole output of a model; `output` holds its tags and its answer too."""

    output: str

    def output_with(self, chain: str) -> str:
        """The output with another chain in place of its own.

        Example:
            >>> whole = OutputChain(id="a", chain="So 3 + 4 = 7.", output="<think>So 3 + 4 = 7.</think>It is 7.")
            >>> whole.output_with("3 + 4 = 7")
            '<think>3 + 4 = 7</think>It is 7.'
        """
        before, _, after = self.output.partition(self.chain)
        return before + chain + after


class Chain(ChainText):
    """What the target model answered to one problem, split into chain of thought and answer.

    Token counts are of the target model's tokenizer. `dropped` says why the chain is not used for
    training (wrong, cut_off, no_answer, empty, too_long), or is None where it is kept.
    """

    output: str
    prediction: str | None
    is_correct: bool
    chain_tokens: int
    output_tokens: int
    cut_off: bool
    dropped: str | None


class DeletionCurve(Record):
    """What greedy deletion leaves of one chain of S spans, from the whole chain down to its last span.

    Attributes:
        removed: S - 1 indices of spans, in the order in which they were left out.
        texts: S versions of the chain, the first with all spans.
        answer_log_probs: log p(answer | question, version) of each version, in nats.
    """

    removed: list[int]
    texts: list[str]
    answer_log_probs: list[float]

    @property
    def key(self) -> IdKey:
        return IdKey(self.id)


class ScoredChain(Record):
    """One chain with S character spans of its text and S importance scores (higher is kept)."""

    scorer: str
    text: str
    spans: list[tuple[int, int]]
    importance: list[float]

    @property
    def key(self) -> ScoredKey:
        return ScoredKey(self.id, self.scorer)


class PrunedChain(Record):
    """One chain at one ratio. `kept` are indices into the scored chain's spans, ascending.

    Token counts leave out the whitespace around a text. `kept` is None where the text was not pruned by spans
    (llmlingua mode); `tokens_cut` are the classifier's tokens that llmlingua then drops unseen, at any ratio.
    `output` is the whole output with the pruned chain in it; records of chains that came without an output do not
    have this field.
    """

    scorer: str
    ratio: float
    text: str
    kept: list[int] | None
    tokens: int
    original_tokens: int
    tokens_cut: int = 0
    output: str | None = Field(default=None, exclude_if=lambda output: output is None)

    @property
    def key(self) -> PrunedKey:
        return PrunedKey(self.id, self.scorer, self.ratio)

    @property
    def actual_ratio(self) -> float:
        return self.tokens / self.original_tokens


def pruned_keys(chain: Record, scorer: str, ratios: Iterable[float]) -> list[PrunedKey]:
    """The keys of the records that pruning one chain at several ratios gives.

    Example:
        >>> pruned_keys(ChainText(id="a", chain="3 + 4 = 7"), "random", [0.5])
        [PrunedKey(id='a', scorer='random', ratio=0.5)]
    """
    return [PrunedKey(chain.id, scorer, ratio) for ratio in ratios]


class SFTRow(Record):
    """One training example: prompt with the ratio marker, completion with the pruned chain."""

    ratio: float
    prompt: str
    completion: str
    held_out: bool

    @property
    def key(self) -> RowKey:
        return RowKey(self.id, self.ratio)


class FirstCall(Record):
    """The first answer of a method that calls twice: `budget` is the number of tokens that it states, or None.

    Method and ratio are those of the Prediction that the second answer becomes. `tokens` counts the whole output.
    """

    method: str
    ratio: float
    output: str
    budget: int | None
    tokens: int
    cut_off: bool
    seconds: float

    @property
    def key(self) -> PredictionKey:
        return PredictionKey(self.id, self.method, self.ratio)


class Prediction(Record):
    """One answer to a test problem by one method at one level (see PredictionKey).

    If the method calls twice, `chain_tokens` and `seconds` include the first call. Only such records have the field
    `first_call_tokens`, the first call's share of `chain_tokens`.
    """

    method: str
    ratio: float
    answer: str
    output: str
    chain: str
    prediction: str | None
    is_correct: bool
    chain_tokens: int
    answer_tokens: int
    max_new_tokens: int
    cut_off: bool
    seconds: float
    first_call_tokens: int = Field(default=0, exclude_if=lambda tokens: tokens == 0)

    @property
    def key(self) -> PredictionKey:
        return PredictionKey(self.id, self.method, self.ratio)


def first_error(error: ValidationError) -> str:
    """The first thing pydantic complains about, as `field: what is wrong`."""
    problem = error.errors()[0]
    field = ".".join(str(part) for part in problem["loc"])
    said = problem["msg"].removeprefix("Value error, ")
    return f"{field}: {said}" if field else said


def few_of(ids: Sequence[str]) -> str:
    """The first three ids, and how many more there are.

    Example:
        >>> few_of(["a", "b"]), few_of(["a", "b", "c", "d", "e"])
        ('a, b', 'a, b, c and 2 more')
    """
    more = f" and {len(ids) - 3} more" if len(ids) > 3 else ""
    return ", ".join(ids[:3]) + more
