"""Methods: one object and one registration each.

All methods answer the same problems through the same engine (evaluation.predictions). They differ in three
things: the prompt, the adapter and the budget of new tokens.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING

from tokenskip_lib.core.plugins import is_own, load_own
from tokenskip_lib.core.profiles import nearest
from tokenskip_lib.core.records import InputError
from tokenskip_lib.core.settings import EvaluationSettings, PromptSettings
from tokenskip_lib.models.prompts import build_prompt

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


@dataclass(frozen=True)
class Method:
    """One way to get an answer, with everything that evaluation, plan, tables and figures need to know about it.

    Attributes:
        name: what records, tables and figures call it.
        takes_ratio: whether a profile gives it ratios. Without, it answers once, and its ratio is 1.0.
        prompt: a sentence added to the prompt; `{percent}` becomes the percentage to leave out.
        marks_ratio: whether the prompt carries the ratio marker.
        uses_adapter: whether the TokenSkip adapter answers; otherwise the target model without it.
        budget: how many new tokens an answer may have.
        follows_original: whether `budget` reads the original's chain lengths, so that the original answers first.
        colour: of its curve in figures, as matplotlib takes it; "" is the next free one.
        marker: of its points in figures, as matplotlib takes it; "" is the next free one.
        description: one line for people.

    Example:
        >>> brief = Method("brief", prompt="Answer in {percent}% fewer words.", takes_ratio=True)
        >>> brief.sentence(0.7)
        'Answer in 30% fewer words.'
    """

    name: str
    _: KW_ONLY
    takes_ratio: bool = False
    prompt: str = ""
    marks_ratio: bool = False
    uses_adapter: bool = False
    budget: Budget = full_budget
    follows_original: bool = False
    colour: str = ""
    marker: str = ""
    description: str = ""

    def sentence(self, ratio: float) -> str:
        """The sentence that the prompt gets at this ratio; "" if the method adds none."""
        return self.prompt.replace("{percent}", str(round(100 * (1 - ratio))))

    def build_prompt(
        self, tokenizer: PreTrainedTokenizerBase, question: str, prompts: PromptSettings, ratio: float
    ) -> str:
        """The whole prompt for a question, up to where the model starts to answer."""
        marked = ratio if self.marks_ratio else None
        return build_prompt(tokenizer, question, prompts, sentence=self.sentence(ratio), ratio=marked)


# Every method by its name, in the order of tables. Colours are those of seaborn's palette "colorblind". The
# sentences of the prompt-only baselines are as published.
METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("original", colour="black", marker="*", description="The target model, asked for nothing more."),
        Method(
            "tokenskip",
            takes_ratio=True,
            marks_ratio=True,
            uses_adapter=True,
            budget=ratio_budget,
            colour="#0173b2",
            marker="o",
            description="The target model with the TokenSkip adapter; the prompt carries the ratio.",
        ),
        Method(
            "truncation",
            takes_ratio=True,
            budget=lambda settings, ratio, original_tokens: truncation_budget(original_tokens, ratio),
            follows_original=True,
            colour="#d55e00",
            marker="s",
            description="The original's prompt, cut off after as many tokens as the ratio leaves.",
        ),
        Method(
            "be_concise",
            prompt="Be concise.",
            colour="#de8f05",
            marker="D",
            description="A prompt that asks for a concise answer.",
        ),
        Method(
            "only_numbers",
            prompt="Only use numbers or equations.",
            colour="#cc78bc",
            marker="P",
            description="A prompt that asks for numbers and equations only.",
        ),
        Method(
            "abbre_words",
            prompt="Abbreviate words as much as possible.",
            colour="#ca9161",
            marker="X",
            description="A prompt that asks for abbreviated words.",
        ),
        Method(
            "lc_prompt",
            takes_ratio=True,
            prompt="Please reduce {percent}% of the words in your Chain-of-Thought process.",
            colour="#029e73",
            marker="^",
            description="A prompt that states the percentage of words to leave out.",
        ),
    )
}
BUILT_IN = frozenset(METHODS)


def register_method(method: Method) -> None:
    """Make your own method available by its name in this process.

    Profiles, evaluation, the plan, tables and figures then know it. A profile can name a method without
    registration as `mypackage.module:attribute`, which also works on the command line.

    Raises:
        InputError: the name is empty, has a colon, or is a method of this library.

    Example:
        >>> register_method(Method("brief", prompt="Answer in one line."))
        >>> find_method("brief").sentence(1.0)
        'Answer in one line.'
        >>> del METHODS["brief"]
    """
    if not method.name or is_own(method.name):
        raise InputError(f"'{method.name}' cannot be a method's name: it is empty or has a colon")
    if method.name in BUILT_IN and METHODS[method.name] != method:
        raise InputError(f"'{method.name}' is a method of this library; choose another name")
    METHODS[method.name] = method


def find_method(name: str) -> Method:
    """A method by its name, or by where your own code is.

    Args:
        name: a name in METHODS, or "mypackage.module:attribute"; the attribute is a Method and gets registered.

    Raises:
        InputError: no such method, no such module or attribute, or the attribute is no Method.
    """
    if is_own(name):
        method = load_own(name, setting="evaluation.methods")
        if not isinstance(method, Method):
            raise InputError(
                f"evaluation.methods '{name}' is a {type(method).__name__}; it must be a Method "
                "(tokenskip_lib.evaluation.methods)"
            )
        register_method(method)
        return method
    if name not in METHODS:
        raise InputError(f"evaluation.methods: unknown method '{name}'{nearest(name, list(METHODS))}")
    return METHODS[name]


def method_ratios(settings: EvaluationSettings) -> list[tuple[str, float]]:
    """Every (method's name, ratio) of an evaluation, ratios descending; 1.0 for a method that takes none.

    Methods come in the profile's order, and the original is always first.

    Raises:
        InputError: a method is unknown or named twice, has ratios but takes none, or takes ratios but has none.

    Example:
        >>> method_ratios(EvaluationSettings(methods={"original": [], "tokenskip": [0.5, 0.9]}))
        [('original', 1.0), ('tokenskip', 0.9), ('tokenskip', 0.5)]
    """
    pairs: list[tuple[str, float]] = []
    for name, ratios in settings.methods.items():
        method = find_method(name)
        if bool(ratios) != method.takes_ratio:
            wanted = "needs a list of ratios" if method.takes_ratio else "takes no ratios: write []"
            raise InputError(f"evaluation.methods.{name} {wanted}")
        if any(method.name == known for known, _ in pairs):
            raise InputError(f"evaluation.methods.{name}: there are two methods of the name '{method.name}'")
        pairs += [(method.name, ratio) for ratio in sorted(ratios, reverse=True)] or [(method.name, 1.0)]
    return pairs


def answer_budget(
    settings: EvaluationSettings, method: str, ratio: float, original_tokens: Sequence[int] | None = None
) -> int:
    """The most new tokens that an answer of a method may have at a ratio.

    Args:
        original_tokens: chain tokens of the original's answers. Only a method that `follows_original` reads them.

    Raises:
        ValueError: the method follows the original, and the original's chain tokens are missing.
    """
    found = find_method(method)
    if found.follows_original and original_tokens is None:
        raise ValueError(f"the budget of '{method}' follows from the original's answers, which are missing")
    return found.budget(settings, ratio, original_tokens or ())
