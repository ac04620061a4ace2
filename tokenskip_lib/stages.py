"""The stages of a run: each reads the records before it and appends its own to the run folder."""

from tokenskip_lib.config import Profile, resolve_path
from tokenskip_lib.finetuning import build_sft_rows, train_adapter
from tokenskip_lib.models import load_model, load_tokenizer
from tokenskip_lib.problems import load_problems
from tokenskip_lib.records import PrunedChain


def prepare_target(profile: Profile) -> dict:
    """Teach the base model the task from the problem set's own solutions, and check it."""
    folder = resolve_path(profile.target.adapter)
    base = profile.target.model_copy(update={"adapter": None})
    tokenizer = load_tokenizer(base)
    loaded = load_problems(profile, "target")
    solutions = [
        PrunedChain(id=p.id, scorer="gold", ratio=1.0, text=p.solution, kept=[], tokens=1, original_tokens=1)
        for p in loaded.problems
    ]
    settings = profile.target_training.training
    rows = build_sft_rows(
        solutions, {p.id: p for p in loaded.problems}, tokenizer, profile.prompts,
        held_out=settings.held_out, seed=profile.seed,
    )  # fmt: skip
    return train_adapter(
        load_model(base), tokenizer, rows, settings, folder, base_name=profile.target.model, seed=profile.seed
    )
