"""The records that pass between stages, and the keys that identify them.

A stage reads records and appends records; a killed stage continues where it stopped. This file
knows nothing about models or prompts.
"""

from collections.abc import Iterable, Sequence
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tokenskip_lib.core.advice import for_notebook
from tokenskip_lib.core.settings import Level, Ratio

LONGEST_MESSAGE = 1000  # characters of an error
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]


class InputError(ValueError):
    """Something the user gave is wrong. The message is one line: what, where, and what to do.

    A message may quote any text, so it is made printable here. Of a very long one the middle is left out.
    """

    def __init__(self, message: str):
        said = printable(message)
        half = LONGEST_MESSAGE // 2
        super().__init__(said if len(said) <= LONGEST_MESSAGE else f"{said[:half]} ... {said[-half:]}")

    def _render_traceback_(self) -> list[str]:
        """What IPython shows: the line alone, without a traceback."""
        return [f"InputError: {for_notebook(str(self))}"]


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

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

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
    chain_tokens: Count
    output_tokens: Count
    cut_off: bool
    dropped: Literal["wrong", "cut_off", "no_answer", "empty", "too_long"] | None


class DeletionCurve(Record):
    """What greedy deletion leaves of one chain of S spans, from the whole chain down to its last span.

    Attributes:
        removed: S - 1 indices of spans, in the order in which they were left out.
        texts: S versions of the chain, the first with all spans.
        answer_log_probs: log p(answer | question, version) of each version, in nats.
    """

    removed: list[Count]
    texts: list[str]
    answer_log_probs: list[float]

    @model_validator(mode="after")
    def _a_version_a_step(self) -> "DeletionCurve":
        texts, log_probs, versions = len(self.texts), len(self.answer_log_probs), len(self.removed) + 1
        if not texts == log_probs == versions:
            raise ValueError(f"{texts} texts and {log_probs} answer_log_probs for {versions} versions")
        return self

    @property
    def key(self) -> IdKey:
        return IdKey(self.id)


class ScoredChain(Record):
    """One chain with S character spans of its text and S importance scores (higher is kept).

    Spans are not empty, ascend and do not overlap. Scores are finite.
    """

    scorer: str
    text: str
    spans: list[tuple[int, int]]
    importance: list[float]

    @model_validator(mode="after")
    def _scores_of_spans_of_the_text(self) -> "ScoredChain":
        if len(self.importance) != len(self.spans):
            raise ValueError(f"{len(self.importance)} scores in importance for {len(self.spans)} spans")
        before = 0
        for start, end in self.spans:
            if not before <= start < end:
                raise ValueError(f"spans: [{start}, {end}] is empty, or begins before the span before it ends")
            before = end
        if before > len(self.text):
            raise ValueError(f"spans: the last ends at {before}, and the text has {len(self.text)} characters")
        return self

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
    ratio: Ratio
    text: str
    kept: list[Count] | None
    tokens: Count
    original_tokens: Count
    tokens_cut: Count = 0
    output: str | None = Field(default=None, exclude_if=lambda output: output is None)

    @field_validator("kept")
    @classmethod
    def _ascending(cls, kept: list[int] | None) -> list[int] | None:
        if kept and kept != sorted(set(kept)):
            raise ValueError("indices of spans must ascend, without repeats")
        return kept

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

    ratio: Ratio
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
    ratio: Level
    output: str
    budget: Count | None
    tokens: Count
    cut_off: bool
    seconds: Seconds

    @property
    def key(self) -> PredictionKey:
        return PredictionKey(self.id, self.method, self.ratio)


class Prediction(Record):
    """One answer to a test problem by one method at one level (see PredictionKey).

    If the method calls twice, `chain_tokens` and `seconds` include the first call. Only such records have the field
    `first_call_tokens`, the first call's share of `chain_tokens`.
    """

    method: str
    ratio: Level
    answer: str
    output: str
    chain: str
    prediction: str | None
    is_correct: bool
    chain_tokens: Count
    answer_tokens: Count
    max_new_tokens: Count
    cut_off: bool
    seconds: Seconds
    first_call_tokens: Count = Field(default=0, exclude_if=lambda tokens: tokens == 0)

    @property
    def key(self) -> PredictionKey:
        return PredictionKey(self.id, self.method, self.ratio)


def first_error(error: ValidationError) -> str:
    """The first thing pydantic complains about, as `field: what is wrong`."""
    problem = error.errors()[0]
    field = ".".join(str(part) for part in problem["loc"])
    said = problem["msg"].removeprefix("Value error, ")
    return f"{field}: {said}" if field else said


def printable(text: str) -> str:
    r"""A text as it may be shown on one line of a terminal: a newline, an ANSI escape and the like are escaped.

    Example:
        >>> print(printable("caf\u00e9\n\x1b[31m"))
        café\n\x1b[31m
    """
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def few_of(ids: Sequence[str]) -> str:
    """The first three ids, printable, and how many more there are.

    Example:
        >>> few_of(["a", "b"]), few_of(["a", "b", "c", "d", "e"])
        ('a, b', 'a, b, c and 2 more')
    """
    more = f" and {len(ids) - 3} more" if len(ids) > 3 else ""
    return printable(", ".join(ids[:3])) + more
