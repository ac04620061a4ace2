"""A method: one way to get an answer, as one object.

All methods answer the same problems through the same engine (evaluation.predictions). They differ in three
things: the prompt, the adapter and the budget of new tokens. The registry of methods is evaluation.methods.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING

from tokenskip_lib.core.records import InputError
from tokenskip_lib.core.settings import EvaluationSettings, PromptSettings
from tokenskip_lib.models.prompts import build_own_prompt, build_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# (evaluation settings, ratio, chain tokens of the original's answers) -> the most new tokens of an answer
Budget = Callable[[EvaluationSettings, float, Sequence[int]], int]


def full_budget(settings: EvaluationSettings, ratio: float, original_tokens: Sequence[int]) -> int:
    """`evaluation.max_new_tokens`, whatever the ratio."""
    return settings.max_new_tokens


def ratio_budget(settings: EvaluationSettings, ratio: float, original_tokens: Sequence[int]) -> int:
    """`evaluation.max_new_tokens`, times the ratio if `evaluation.budget` is `scaled` (the paper's rule on MATH)."""
    return max(1, round(settings.max_new_tokens * (ratio if settings.budget == "scaled" else 1)))


def truncation_budget(chain_tokens: Sequence[int], ratio: float) -> int:
    """The budget, one for all problems, at which the original's chains keep `ratio` of their tokens on average.

    It is the smallest cap c with mean(min(length, c)) >= ratio * mean(length). So truncation is compared
    at equal chain tokens, and an answer that ends within the cap still finishes.

    Args:
        chain_tokens: the original's chain length for each problem, in tokens.
        ratio: fraction of these tokens to spend, 0 < ratio <= 1.

    Raises:
        InputError: no chain has a token.

    Source: TokenSkip's Truncation baseline caps max_new_tokens at a fraction of the original's
        budget; its published actual ratios (.95, .70, .49) are of the tokens that were spent.

    Example:
        >>> truncation_budget([10, 10, 100], 0.5)  # 10 + 10 + 40 is half of 120
        40
    """
    if not any(chain_tokens):
        raise InputError("evaluation.methods.truncation: the original's chains are empty, there is nothing to truncate")
    wanted = ratio * sum(chain_tokens)
    caps = range(1, max(chain_tokens) + 1)
    return caps[bisect_left(caps, wanted, key=lambda cap: sum(min(length, cap) for length in chain_tokens))]


def length_limit(lengths: Sequence[int], ratio: float) -> int:
    """The limit, one for all problems, that is `ratio` of the original's mean chain length; at least 1.

    Args:
        lengths: the original's chain lengths, in words or in tokens.

    Raises:
        InputError: no chain has a length.

    Example:
        >>> length_limit([20, 30], 0.5)
        12
    """
    if not any(lengths):
        raise InputError("evaluation.methods: the original's chains are empty, there is nothing to limit")
    return max(1, round(ratio * sum(lengths) / len(lengths)))


@dataclass(frozen=True)
class Known:
    """What a method may know when it asks, beside the question and its level.

    Attributes:
        smallest_ratio: the smallest that the adapter was trained on; None: not known.
        original_tokens: chain tokens of the original's answers to the same problems; empty: not known.
        original_words: words of these chains.
    """

    smallest_ratio: float | None = None
    original_tokens: Sequence[int] = ()
    original_words: Sequence[int] = ()


@dataclass(frozen=True)
class Method:
    """One way to get an answer, with everything that evaluation, plan, tables and figures need to know about it.

    Attributes:
        name: what records, tables and figures call it.
        takes_ratio: whether a profile gives it ratios. Without any level it answers once, and its ratio is 1.0.
        scales_adapter: whether a profile gives it strengths of the adapter, 0 to 1.5, in place of ratios. Its prompt
            asks for the smallest ratio that the adapter was trained on.
        prompt: a sentence added to the prompt; `{percent}` becomes the percentage to leave out, `{words}` and
            `{tokens}` the ratio's share of the original's mean chain length.
        request: the user's whole message, in place of instruction, question and sentence; `{question}` becomes the
            question.
        system: the system message of such a request; "" is the profile's.
        first_request: the message of a first call, which asks for a number of tokens in the form `[[12]]`.
        budget_request: what is asked in place of `request` if the first call states such a number; `{budget}`
            becomes the number.
        marks_ratio: whether the prompt carries the ratio marker.
        uses_adapter: whether the TokenSkip adapter answers; otherwise the target model without it.
        budget: how many new tokens an answer may have.
        follows_original: whether `budget` or `prompt` reads the original's chain lengths, so that the original
            answers first.
        colour: of its curve in figures, as matplotlib takes it; "" is the next free one.
        marker: of its points in figures, as matplotlib takes it; "" is the next free one.
        description: one line for people.

    Raises:
        InputError: a sentence needs the original's chain lengths and does not follow the original; or a system message
            or a first call comes without a request.

    Example:
        >>> brief = Method("brief", prompt="Answer in {percent}% fewer words.", takes_ratio=True)
        >>> brief.sentence(0.7)
        'Answer in 30% fewer words.'
    """

    name: str
    _: KW_ONLY
    takes_ratio: bool = False
    scales_adapter: bool = False
    prompt: str = ""
    request: str = ""
    system: str = ""
    first_request: str = ""
    budget_request: str = ""
    marks_ratio: bool = False
    uses_adapter: bool = False
    budget: Budget = full_budget
    follows_original: bool = False
    colour: str = ""
    marker: str = ""
    description: str = ""

    def __post_init__(self) -> None:
        if not self.follows_original and ("{words}" in self.prompt or "{tokens}" in self.prompt):
            raise InputError(f"method '{self.name}': {{words}} and {{tokens}} in its prompt need follows_original=True")
        if (self.system or self.first_request) and not self.request:
            raise InputError(f"method '{self.name}': a system message or a first call of its own needs a request")
        if bool(self.first_request) != bool(self.budget_request):
            raise InputError(f"method '{self.name}': a first call and a budget_request go together")

    @property
    def level(self) -> str:
        """What the numbers are that a profile gives it: "ratio" or "strength"; "" if it takes none.

        Example:
            >>> Method("weaker", scales_adapter=True, uses_adapter=True).level
            'strength'
        """
        return "strength" if self.scales_adapter else "ratio" if self.takes_ratio else ""

    def strength(self, level: float) -> float:
        """How strong the adapter is at this level: 1 as it was trained, 0 for the target model without it."""
        return level if self.scales_adapter else float(self.uses_adapter)

    def say_level(self, level: float) -> str:
        """The level as tables write it; "" if the method takes none.

        Example:
            >>> Method("weaker", scales_adapter=True).say_level(0.5), Method("brief", takes_ratio=True).say_level(0.5)
            ('strength 0.5', '0.5')
        """
        return {"": "", "ratio": f"{level}", "strength": f"strength {level:g}"}[self.level]

    def sentence(self, ratio: float, known: Known | None = None) -> str:
        """The sentence that the prompt gets at this ratio; "" if the method adds none.

        Args:
            known: None will do for a sentence without `{words}` and `{tokens}`.
        """
        text, known = self.prompt.replace("{percent}", str(round(100 * (1 - ratio)))), known or Known()
        for place, lengths in (("{words}", known.original_words), ("{tokens}", known.original_tokens)):
            if place in text:
                self._need(bool(lengths), "the original's answers")
                text = text.replace(place, str(length_limit(lengths, ratio)))
        return text

    def build_prompt(
        self,
        tokenizer: PreTrainedTokenizerBase,
        question: str,
        prompts: PromptSettings,
        level: float,
        known: Known | None = None,
        budget: int | None = None,
    ) -> str:
        """The whole prompt for a question, up to where the model starts to answer.

        Args:
            level: a ratio or a strength, as `self.level` says.
            known: None will do for a method that does not follow the original and does not scale the adapter.
            budget: the number of tokens that the first call states; None if it states none or there is no such call.

        Raises:
            ValueError: something that the method must know is missing.
        """
        if self.request:
            message = self.request if budget is None else self.budget_request.replace("{budget}", str(budget))
            return build_own_prompt(tokenizer, question, prompts, message, system=self.system)
        marked = level if self.marks_ratio else None
        if self.scales_adapter:
            marked = known.smallest_ratio if known else None
            self._need(marked is not None, "the adapter's smallest ratio")
        return build_prompt(tokenizer, question, prompts, sentence=self.sentence(level, known), ratio=marked)

    def build_first_prompt(self, tokenizer: PreTrainedTokenizerBase, question: str, prompts: PromptSettings) -> str:
        """The whole prompt of the first call."""
        return build_own_prompt(tokenizer, question, prompts, self.first_request)

    def _need(self, there: bool, what: str) -> None:
        if not there:
            raise ValueError(f"'{self.name}' follows from {what}: missing here")
