"""The steps of a run in order, their files, and which step a changed setting makes stale."""

import re

from tokenskip_lib.core.records import InputError

STAGES = ("generate", "score", "prune", "train", "evaluate")
STEPS = (*STAGES, "studies", "analyses")  # a notebook each; the last two only where a profile has studies
# The first stage that a change in each section makes stale.
STAGE_OF_SECTION = {
    "seed": 1,
    "target": 1,
    "prompts": 1,
    "problems": 1,
    "chains": 1,
    "importance": 2,
    "pruning": 3,
    "training": 3,  # training.held_out marks rows there
    "evaluation": 5,
    "prompts.baseline_place": 5,
    "prompts.marker": 3,  # a field that is read later than its section
    "problems.test": 5,
    "problems.test_size": 5,
    "problems.validation": 5,
    "problems.validation_size": 5,
}


def stage_of(key: str) -> int:
    """The first stage that a change of this setting, by its dotted key, makes stale."""
    names = [key, key.partition(".")[0]]
    return next((STAGE_OF_SECTION[name] for name in names if name in STAGE_OF_SECTION), len(STAGES) + 1)


CHAINS, SCORED, PRUNED = "01_chains.jsonl", "02_scored.jsonl", "03_pruned.jsonl"
SFT_ROWS, ADAPTER, PREDICTIONS = "03_sft_rows.jsonl", "04_adapter", "05_predictions.jsonl"
TRAIN_PROBLEMS, TEST_PROBLEMS = "01_train_problems.jsonl", "05_test_problems.jsonl"


def stage_number(text: str) -> int:
    """`03`, `3`, `prune` or `03_pruning` -> 3."""
    match = re.match(r"0*([1-9]\d*)", text)
    number = STEPS.index(text) + 1 if text in STEPS else int(match.group(1)) if match else 0
    if not 1 <= number <= len(STEPS):
        raise InputError(f"no stage '{text}' (01 to {len(STEPS):02}, or {', '.join(STEPS)})")
    return number
