"""The explorer: one chain at a time, pruned again whenever a slider or a switch moves.

A thin shell over `prune`: it reads a run's scored chains, writes nothing, and loads the target
model's tokenizer alone.
"""

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from tokenskip_lib.core.plugins import need
from tokenskip_lib.core.records import Chain, ScoredChain
from tokenskip_lib.core.settings import KeepSettings
from tokenskip_lib.evaluation.importance_tables import importance_ranks
from tokenskip_lib.experiments.run import Run
from tokenskip_lib.experiments.steps import CHAINS, SCORED
from tokenskip_lib.figures.importance import rank_colours
from tokenskip_lib.models.loading import TargetModel
from tokenskip_lib.models.tokens import CountTokens, batch_token_counter
from tokenskip_lib.pruning.prune import prune

if TYPE_CHECKING:
    import ipywidgets


LABEL_CHARACTERS = 70  # of a question, in the list of examples
_CHAIN_STYLE = "white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.7; font-size: 14px"
_PRUNED_STYLE = f"{_CHAIN_STYLE}; border-left: 3px solid #cc4c02; padding-left: 8px"
# No background: the page may be light or dark, and this grey is readable on both.
_SKIPPED_STYLE = "color: #7a7a7a; text-decoration: line-through #c0606080"


def explore(run: Run) -> "ipywidgets.Widget":
    """Widgets to look at a run's chains with: example, scorer, ratio, and what is kept before all else.

    The switches start as the profile has them; a keep token with a comma in it cannot be typed and is left
    out. Chains are pruned by spans, whatever the profile's mode.

    Raises:
        InputError: the run has no scored chains yet.
    """
    widgets = need("ipywidgets", "notebooks")

    scored = {chain.key: chain for chain in run.need(SCORED, ScoredChain, "score")}
    questions = {chain.id: chain.question for chain in run.store(CHAINS, Chain)}
    count_tokens = batch_token_counter(TargetModel(run.profile.target).tokenizer)
    keep = run.profile.pruning
    labelled = {"style": {"description_width": "90px"}}
    switch = {"indent": False, "layout": {"width": "auto", "margin": "2px 8px 2px 16px"}}

    example = widgets.Dropdown(
        options=[(_label(name, questions.get(name, "")), name) for name in dict.fromkeys(name for name, _ in scored)],
        description="example",
        layout={"width": "760px", "max_width": "100%"},
        **labelled,
    )
    scorer = widgets.Dropdown(options=list(dict.fromkeys(name for _, name in scored)), description="scorer", **labelled)
    ratio = widgets.FloatSlider(
        value=0.7, min=0.1, max=1.0, step=0.05, description="ratio", layout={"width": "420px"}, **labelled
    )
    keep_digits = widgets.Checkbox(value=keep.keep_digits, description="keep digits", **switch)
    keep_operators = widgets.Checkbox(value=keep.keep_operators, description="keep operators", **switch)
    skip_spaces = widgets.Checkbox(
        value=keep.skip_spaces,
        description="skip spaces",
        tooltip="between operators and numbers, first of all",
        **switch,
    )
    keep_tokens = widgets.Text(
        value=", ".join(token for token in keep.keep_tokens if "," not in token),
        description="keep tokens",
        placeholder="comma separated: so, =",
        layout={"width": "420px"},
        **labelled,
    )
    drop_consecutive = widgets.Checkbox(
        value=keep.drop_consecutive,
        description="drop consecutive",
        tooltip="of equal keep tokens that come to stand side by side, the first alone stays",
        **switch,
    )
    view = widgets.HTML(layout={"width": "auto"})

    def show(_change: object = None) -> None:
        chain = scored.get((example.value, scorer.value))
        if chain is None:  # a score stage that was killed
            view.value = _block("counts", escape(f"{scorer.value} has not scored this chain; finish the score stage"))
            return
        settings = KeepSettings(
            keep_digits=keep_digits.value,
            keep_operators=keep_operators.value,
            skip_spaces=skip_spaces.value,
            keep_tokens=[token for part in keep_tokens.value.split(",") if (token := part.strip())],
            drop_consecutive=drop_consecutive.value,
        )
        # A slider's value is a sum of steps, 0.7000000000000001 for instance.
        view.value = _view_html(chain, round(ratio.value, 2), count_tokens, settings)

    controls = [example, scorer, ratio, keep_digits, keep_operators, skip_spaces, keep_tokens, drop_consecutive]
    for control in controls:
        control.observe(show, names="value")
    show()
    rows = [[example], [scorer], [ratio, keep_digits, keep_operators, skip_spaces], [keep_tokens, drop_consecutive]]
    wrap = {"flex_flow": "row wrap", "align_items": "center"}
    return widgets.VBox([*(widgets.HBox(row, layout=wrap) for row in rows), view])


def chain_html(chain: ScoredChain, kept: Sequence[int]) -> str:
    """One chain as HTML, to the character: what is kept on its importance's colour, the rest struck through.

    Colours are ranks within the chain, on the scale of `importance_plots.importance_strip`.

    Args:
        kept: indices of the chain's spans.
    """
    ranks = importance_ranks(chain)
    chosen, parts, end = set(kept), [], 0
    for index, (start, stop) in enumerate(chain.spans):
        parts.append(escape(chain.text[end:start]))
        parts.append(_span_html(chain.text[start:stop], ranks[index], len(ranks), index in chosen))
        end = stop
    parts.append(escape(chain.text[end:]))
    return _block("chain", "".join(parts), _CHAIN_STYLE)


def _span_html(text: str, rank: float, spans: int, is_kept: bool) -> str:
    title = f"importance rank {spans * (1 - rank) + 0.5:g} of {spans}"
    if not is_kept:
        return f'<s title="{title}" style="{_SKIPPED_STYLE}">{escape(text)}</s>'
    background, colour = rank_colours(rank)
    return f'<mark title="{title}" style="background: {background}; color: {colour}">{escape(text)}</mark>'


def _view_html(chain: ScoredChain, ratio: float, count_tokens: CountTokens, keep: KeepSettings) -> str:
    pruned = prune(chain, ratio, count_tokens=count_tokens, keep=keep)
    counts = (
        f"{pruned.tokens} of {pruned.original_tokens} target tokens, "
        f"actual ratio {pruned.actual_ratio:.2f} (asked for {ratio:.2f})"
    )
    return (
        _block("counts", counts, "font-weight: bold; margin: 4px 0")
        + "<div>the chain: the darker, the more important; what is struck through is skipped</div>"
        + chain_html(chain, pruned.kept)
        + '<div style="margin-top: 8px">the pruned text</div>'
        + _block("pruned", escape(pruned.text), _PRUNED_STYLE)
    )


def _block(name: str, content: str, style: str = "") -> str:
    # The classes that MathJax 3 and 2 leave alone: a price is `$18`, not the beginning of a formula.
    return f'<div class="tokenskip-{name} mathjax_ignore tex2jax_ignore" style="{style}">{content}</div>'


def _label(name: str, question: str) -> str:
    beginning = " ".join(question.split())
    if len(beginning) > LABEL_CHARACTERS:
        beginning = f"{beginning[:LABEL_CHARACTERS]}…"
    return f"{name}: {beginning}" if beginning else name
