"""The explorer: one chain at a time, pruned again whenever a slider or a switch moves.

It is a thin shell over `prune`. It reads a run's scored chains, writes nothing, and loads only the tokenizer of the
target model.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from html import escape
from typing import Any

from tokenskip_lib.core.live import Live
from tokenskip_lib.core.plugins import need
from tokenskip_lib.core.records import Chain, ScoredChain, ScoredKey
from tokenskip_lib.core.settings import KeepSettings
from tokenskip_lib.experiments.run import Run
from tokenskip_lib.experiments.steps import CHAINS, SCORED
from tokenskip_lib.models.loading import TargetModel
from tokenskip_lib.models.tokens import CountTokens, batch_token_counter
from tokenskip_lib.pruning.display import CHAIN_STYLE, chain_html, text_block
from tokenskip_lib.pruning.prune import prune

LABEL_CHARACTERS = 70  # of a question, in the list of examples
_LABELLED = {"style": {"description_width": "90px"}}
_SWITCH = {"indent": False, "layout": {"width": "auto", "margin": "2px 8px 2px 16px"}}
_WRAP = {"flex_flow": "row wrap", "align_items": "center"}
_PRUNED_STYLE = f"{CHAIN_STYLE}; border-left: 3px solid #cc4c02; padding-left: 8px"


def explore(run: Run) -> Live:
    """Widgets that show a run's chains: choose an example, a scorer, a ratio, and what is always kept.

    The switches start as the profile has them. A keep token with a comma in it cannot be typed and is left
    out. Chains are pruned by spans, also if the profile's mode is `llmlingua`. Without a kernel a notebook shows a
    picture of what the widgets showed at first.

    Raises:
        InputError: the run has no scored chains yet.
    """
    widgets = need("ipywidgets", "notebooks")
    scored: dict[tuple, ScoredChain] = {chain.key: chain for chain in run.need(SCORED, ScoredChain, "score")}
    questions = {chain.id: chain.question for chain in run.store(CHAINS, Chain)}
    count_tokens = batch_token_counter(TargetModel(run.profile.target).tokenizer)
    controls = _controls(scored.values(), questions, run.profile.pruning)
    view = widgets.HTML(layout={"width": "auto"})

    def show(_change: object = None) -> None:
        chain = scored.get(ScoredKey(controls.example.value, controls.scorer.value))
        if chain is None:  # a score stage that was killed
            sentence = f"{controls.scorer.value} has not scored this chain; finish the score stage"
            view.value = text_block("counts", escape(sentence))
        else:
            view.value = _view_html(chain, controls.chosen_ratio(), count_tokens, controls.chosen_settings())

    for control in controls.all():
        control.observe(show, names="value")
    show()
    panel = widgets.VBox([*(widgets.HBox(row, layout=_WRAP) for row in controls.rows()), view])
    chosen = controls.in_words()
    picture = "".join(text_block("chosen", escape(line)) for line in chosen) + view.value
    return Live(panel, picture, "\n".join(chosen))


@dataclass(frozen=True)
class _Controls:
    """The widgets that a reader moves."""

    example: Any  # ipywidgets has no types
    scorer: Any
    ratio: Any
    keep_digits: Any
    keep_operators: Any
    skip_spaces: Any
    keep_tokens: Any
    drop_consecutive: Any

    def all(self) -> list[Any]:
        return [getattr(self, field.name) for field in fields(self)]

    def rows(self) -> list[list[Any]]:
        """The widgets as they are laid out."""
        return [
            [self.example],
            [self.scorer],
            [self.ratio, self.keep_digits, self.keep_operators, self.skip_spaces],
            [self.keep_tokens, self.drop_consecutive],
        ]

    def in_words(self) -> list[str]:
        """What is chosen: one line a row."""
        return [" · ".join(filter(None, map(_said, row))) for row in self.rows()]

    def chosen_ratio(self) -> float:
        return round(self.ratio.value, 2)  # a slider's value is a sum of steps, for instance 0.7000000000000001

    def chosen_settings(self) -> KeepSettings:
        return KeepSettings(
            keep_digits=self.keep_digits.value,
            keep_operators=self.keep_operators.value,
            skip_spaces=self.skip_spaces.value,
            keep_tokens=[token for part in self.keep_tokens.value.split(",") if (token := part.strip())],
            drop_consecutive=self.drop_consecutive.value,
        )


def _controls(scored: Collection[ScoredChain], questions: Mapping[str, str], keep: KeepSettings) -> _Controls:
    """The widgets for these chains, with the switches as `keep` has them."""
    widgets = need("ipywidgets", "notebooks")
    ids = list(dict.fromkeys(chain.id for chain in scored))

    def switch(description: str, value: bool, tooltip: str | None = None) -> Any:
        return widgets.Checkbox(value=value, description=description, tooltip=tooltip, **_SWITCH)

    return _Controls(
        example=widgets.Dropdown(
            options=[(_label(number, name, questions.get(name, "")), name) for number, name in enumerate(ids, 1)],
            description="example",
            layout={"width": "760px", "max_width": "100%"},
            **_LABELLED,
        ),
        scorer=widgets.Dropdown(
            options=list(dict.fromkeys(chain.scorer for chain in scored)), description="scorer", **_LABELLED
        ),
        ratio=widgets.FloatSlider(
            value=0.7, min=0.1, max=1.0, step=0.05, description="ratio", layout={"width": "420px"}, **_LABELLED
        ),
        keep_digits=switch("keep digits", keep.keep_digits),
        keep_operators=switch("keep operators", keep.keep_operators),
        skip_spaces=switch("skip spaces", keep.skip_spaces, "spaces between operators and numbers go first"),
        keep_tokens=widgets.Text(
            value=", ".join(token for token in keep.keep_tokens if "," not in token),
            description="keep tokens",
            placeholder="comma separated: so, =",
            layout={"width": "420px"},
            **_LABELLED,
        ),
        drop_consecutive=switch(
            "drop consecutive",
            keep.drop_consecutive,
            "of equal keep tokens that become neighbours, only the first stays",
        ),
    )


def _view_html(chain: ScoredChain, ratio: float, count_tokens: CountTokens, keep: KeepSettings) -> str:
    """The counts, the whole chain with skipped spans struck through, and the pruned text."""
    pruned = prune(chain, ratio, count_tokens=count_tokens, keep=keep)
    counts = (
        f"{pruned.tokens} of {pruned.original_tokens} target tokens, "
        f"actual ratio {pruned.actual_ratio:.2f} (asked for {ratio:.2f})"
    )
    return (
        text_block("counts", counts, "font-weight: bold; margin: 4px 0")
        + "<div>the chain: darker is more important; struck through is skipped</div>"
        + chain_html(chain.text, chain.spans, chain.importance, pruned.kept)
        + '<div style="margin-top: 8px">the pruned text</div>'
        + text_block("pruned", escape(pruned.text), _PRUNED_STYLE)
    )


def _label(number: int, name: str, question: str) -> str:
    """An entry of the list of examples: its number and the beginning of the question, or else the chain's id."""
    beginning = " ".join(question.split())
    if len(beginning) > LABEL_CHARACTERS:
        beginning = f"{beginning[:LABEL_CHARACTERS]}…"
    return f"{number}. {beginning or name}"


def _said(control: Any) -> str:
    """What a control is set to; nothing of an empty field."""
    if isinstance(control.value, bool):
        return f"{'☑' if control.value else '☐'} {control.description}"
    value = f"{control.value:.2f}" if isinstance(control.value, float) else getattr(control, "label", control.value)
    return f"{control.description}: {value}" if value else ""
