"""The engine that answers for a profile: the model in this process, or a server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tokenskip_lib.core.profiles import Profile
from tokenskip_lib.inference.engine import Engine, TransformersEngine
from tokenskip_lib.inference.server import ServerEngine
from tokenskip_lib.models.loading import load_attached, load_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def build_engine(
    profile: Profile,
    tokenizer: PreTrainedTokenizerBase,
    batch_size: int,
    *,
    adapter: Path | str | None = None,
    strength: float = 1.0,
    attached: bool = False,
    failed: dict[tuple, str] | None = None,
) -> Engine:
    """The engine of a profile: its server if it names one, otherwise the model in this process.

    Args:
        adapter: the TokenSkip adapter, or None for the target model.
        strength: of the adapter, as in `load_model`. A server has the adapter as it was trained.
        attached: whether the adapter stays beside the weights, as trained; else it is merged into them.
        failed: gets the key of every request that a server did not answer, and why; None: the first raises InputError.
    """
    if profile.server is not None:
        return ServerEngine(profile.server, tokenizer, adapted=adapter is not None, failed=failed)
    if adapter is not None and attached:
        model = load_attached(profile.target, adapter)
    else:
        model = load_model(profile.target, adapter=adapter, strength=strength)
    settings = profile.target
    return TransformersEngine(
        model, tokenizer, batch_size, batch_tokens=settings.batch_tokens, compiled=settings.compile
    )
