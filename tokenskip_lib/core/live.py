"""What a reader can move or sort while a notebook's kernel runs, with a picture for everywhere else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import ipywidgets

WIDGET = "application/vnd.jupyter.widget-view+json"


class Live:
    """A widget that JupyterLab shows while the kernel runs, and HTML without scripts wherever there is no kernel.

    Attributes:
        widget: the widget.
        picture: HTML. A notebook that is not trusted shows it, and so does a page that runs no scripts.
        text: the same in words, for a terminal.
    """

    def __init__(self, widget: ipywidgets.Widget, picture: str, text: str):
        self.widget = widget
        self.picture = picture
        self.text = text

    def __repr__(self) -> str:
        return self.text

    def _repr_mimebundle_(self, **_kwargs: Any) -> dict[str, Any]:
        view = {"version_major": 2, "version_minor": 0, "model_id": self.widget.model_id}
        return {WIDGET: view, "text/html": self.picture, "text/plain": self.text}
