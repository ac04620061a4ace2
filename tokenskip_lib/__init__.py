"""TokenSkip: chains of thought that skip their unimportant tokens, by a ratio chosen at inference.

import tokenskip_lib as ts: `load`, `score`, `prune`, `train` and `generate`. Importing the package loads none
of its parts; each is loaded when a name from it is first used.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenskip_lib.api import generate, load, prune, score, train
    from tokenskip_lib.core.records import Chain, ChainText, InputError, Problem, PrunedChain, ScoredChain
    from tokenskip_lib.evaluation.answers import Answer, Answers
    from tokenskip_lib.evaluation.methods import Method, register_method
    from tokenskip_lib.models.loading import TargetModel
    from tokenskip_lib.pruning.registry import register_scorer
    from tokenskip_lib.pruning.results import PrunedChains, ScoredChains
    from tokenskip_lib.pruning.spans import segment
    from tokenskip_lib.training.adapter import Adapter

__version__ = "0.1.0"
_MODULES = {
    "api": ["load", "score", "prune", "train", "generate"],
    "core.records": ["Chain", "ChainText", "InputError", "Problem", "PrunedChain", "ScoredChain"],
    "evaluation.answers": ["Answer", "Answers"],
    "evaluation.methods": ["Method", "register_method"],
    "models.loading": ["TargetModel"],
    "pruning.registry": ["register_scorer"],
    "pruning.results": ["PrunedChains", "ScoredChains"],
    "pruning.spans": ["segment"],
    "training.adapter": ["Adapter"],
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
__all__ = [
    "Adapter",
    "Answer",
    "Answers",
    "Chain",
    "ChainText",
    "InputError",
    "Method",
    "Problem",
    "PrunedChain",
    "PrunedChains",
    "ScoredChain",
    "ScoredChains",
    "TargetModel",
    "generate",
    "load",
    "prune",
    "register_method",
    "register_scorer",
    "score",
    "segment",
    "train",
]


def __getattr__(name: str) -> object:
    """Load a public name when it is first used."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
