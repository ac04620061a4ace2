"""The registry of methods: those of this library, your own, and the levels that a profile asks for."""

from __future__ import annotations

from collections.abc import Sequence

from tokenskip_lib.core.plugins import is_own, load_own
from tokenskip_lib.core.profiles import nearest
from tokenskip_lib.core.records import InputError
from tokenskip_lib.core.settings import EvaluationSettings
from tokenskip_lib.evaluation.method import Method, ratio_budget, truncation_budget

# The whole request of TALE-EP, without a budget and with one.
_TALE = (
    "Q: {question}\nPlease Give the response by strictly following this format: [[answer]], for example: "
    "Answer: [[50]].Let's think step by step"
)

# Every method by its name, in the order of tables. Colours are those of seaborn's palette "colorblind"; where these
# end, of Paul Tol's "muted". The prompts of the prompt-only baselines are as published: TokenSkip's table 3,
# Chain of Draft (arXiv:2502.18600), TALE-EP (arXiv:2412.18547), and the limits of Lee et al. (arXiv:2503.01141,
# cot_prompts.json of github.com/Compressed-CoT/compressed-cot), who state fixed numbers.
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
        Method(
            "word_limit",
            takes_ratio=True,
            prompt="Only use {words} words for your answer.",
            follows_original=True,
            colour="#999933",
            marker="<",
            description="A prompt that states a number of words: the ratio's share of the original's mean chain.",
        ),
        Method(
            "token_limit",
            takes_ratio=True,
            prompt="Only use {tokens} tokens for your answer.",
            follows_original=True,
            colour="#44aa99",
            marker=">",
            description="A prompt that states a number of tokens: the ratio's share of the original's mean chain.",
        ),
        Method(
            "chain_of_draft",
            request="{question}",
            system=(
                "Think step by step, but only keep minimum draft for each thinking step, with 5 words at most.\n"
                "Return the answer at the end of the response after a separator ####."
            ),
            colour="#661100",
            marker="p",
            description="A system message that asks for steps of five words at most.",
        ),
        Method(
            "tale_ep",
            first_request=(
                "Task: Analyze the given question and estimate the minimum number of tokens required to generate a "
                "complete and accurate response. Please Give the response by strictly following this format: "
                '[[budget]],for example: Budget: [[12]].\n\nBelow is the question:\n\nQuestion: "{question}"'
            ),
            request=f"{_TALE}:",
            budget_request=f"{_TALE} and use less than {{budget}} tokens:",
            colour="#882255",
            marker="h",
            description="A first call estimates how many tokens the answer needs; the second states that budget.",
        ),
        Method(
            "adapter_scaling",
            scales_adapter=True,
            uses_adapter=True,
            colour="#332288",
            marker="d",
            description="The TokenSkip adapter at a strength, always asked for its smallest ratio (CoT-Valve's idea).",
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
    """Every (method's name, level) of an evaluation, levels descending; 1.0 for a method that takes none.

    Methods come in the profile's order, and the original is always first. A level is a ratio, or a strength for a
    method that scales the adapter.

    Raises:
        InputError: a method is unknown or named twice, has levels but takes none, or takes levels but has none; a
            ratio is 0 or above 1.

    Example:
        >>> method_ratios(EvaluationSettings(methods={"original": [], "tokenskip": [0.5, 0.9]}))
        [('original', 1.0), ('tokenskip', 0.9), ('tokenskip', 0.5)]
    """
    pairs: list[tuple[str, float]] = []
    for name, levels in settings.methods.items():
        method = find_method(name)
        if bool(levels) != bool(method.level):
            kind = {"ratio": "ratios", "strength": "strengths of the adapter"}.get(method.level)
            wanted = f"needs a list of {kind}" if kind else "takes no ratios: write []"
            raise InputError(f"evaluation.methods.{name} {wanted}")
        if bad := [level for level in levels if method.level == "ratio" and not 0 < level <= 1]:
            raise InputError(f"evaluation.methods.{name}: a ratio is above 0 and at most 1, not {bad[0]:g}")
        if any(method.name == known for known, _ in pairs):
            raise InputError(f"evaluation.methods.{name}: there are two methods of the name '{method.name}'")
        pairs += [(method.name, level) for level in sorted(levels, reverse=True)] or [(method.name, 1.0)]
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
