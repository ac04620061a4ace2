"""The engine that answers for a profile: the model in this process, in a cluster's workers, or a server."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tokenskip_lib.core.executor import Work
from tokenskip_lib.core.profiles import Profile
from tokenskip_lib.inference.cluster_engine import ClusterEngine
from tokenskip_lib.inference.engine import Engine, Generation, Request, TransformersEngine
from tokenskip_lib.inference.server import ServerEngine
from tokenskip_lib.models.loading import load_attached, load_model, load_tokenizer

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
    """The engine of a profile: its server if it names one, its Ray cluster, otherwise the model in this process.

    Args:
        adapter: the TokenSkip adapter, or None for the target model.
        strength: of the adapter, as in `load_model`. A server has the adapter as it was trained.
        attached: whether the adapter stays beside the weights, as trained; else it is merged into them.
        failed: gets the key of every request without an answer, and why; None: the first raises InputError.
    """
    if profile.server is not None:
        return ServerEngine(profile.server, tokenizer, adapted=adapter is not None, failed=failed)
    build = partial(_build_local, profile, batch_size=batch_size, adapter=adapter, strength=strength, attached=attached)
    if profile.execution.kind == "local":
        return build(tokenizer)
    return ClusterEngine(
        partial(_build_answering, build, profile),
        tokenizer,
        batch_size,
        batch_tokens=profile.target.batch_tokens,
        execution=profile.execution,
        failed=failed,
    )


def _build_answering(build: partial[TransformersEngine], profile: Profile) -> Work[Request, Generation]:
    return build(load_tokenizer(profile.target)).answer


def _build_local(
    profile: Profile,
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_size: int,
    adapter: Path | str | None,
    strength: float,
    attached: bool,
) -> TransformersEngine:
    if adapter is not None and attached:
        model = load_attached(profile.target, adapter)
    else:
        model = load_model(profile.target, adapter=adapter, strength=strength)
    settings = profile.target
    return TransformersEngine(
        model, tokenizer, batch_size, batch_tokens=settings.batch_tokens, compiled=settings.compile
    )
