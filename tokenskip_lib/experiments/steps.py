"""The steps of a run in order, the files they write, and which step a changed setting makes stale.

A file's name begins with its step's number. Redoing a step removes its files and those of all later steps.
"""

import re

from tokenskip_lib.core.profiles import Profile, is_how, setting_values
from tokenskip_lib.core.records import InputError

STAGES = ("generate", "score", "prune", "train", "evaluate")
STEPS = (*STAGES, "studies", "analyses")  # a notebook each; the last two only if the profile has studies

TRAIN_PROBLEMS, CHAINS = "01_train_problems.jsonl", "01_chains.jsonl"
SCORED, ORACLE_CURVES = "02_scored.jsonl", "02_oracle.jsonl"
FOLLOWED, FOLLOWED_SCORES = "01_followed.jsonl", "02_followed.jsonl"  # of the problem that the notebooks follow
PRUNED, SFT_ROWS = "03_pruned.jsonl", "03_sft_rows.jsonl"
ADAPTER = "04_adapter"
TEST_PROBLEMS, PREDICTIONS = "05_test_problems.jsonl", "05_predictions.jsonl"
FIRST_CALLS = "05_first_calls.jsonl"  # of methods that call twice; no such file without them
RECORDS = (
    TRAIN_PROBLEMS, CHAINS, FOLLOWED, SCORED, ORACLE_CURVES, FOLLOWED_SCORES, PRUNED, SFT_ROWS, ADAPTER,
    TEST_PROBLEMS, PREDICTIONS, FIRST_CALLS,
)  # fmt: skip

# Tables of a run, in the folder RESULTS. A study adds one of its own, `<study>.csv`.
METRICS, TIMINGS, RECOVERY, POLICY = "metrics.csv", "timings.csv", "recovery.csv", "policy.csv"
COMPLEXITY, ORACLE = "token_complexity.csv", "oracle.csv"
AGREEMENT, REGRET = "agreement.csv", "regret.csv"
COMPARISON, LOSSES = "comparison.csv", "losses.csv"
TABLES = (METRICS, TIMINGS, RECOVERY, POLICY, COMPLEXITY, ORACLE, AGREEMENT, REGRET, COMPARISON, LOSSES)
FIGURES, RESULTS, STUDIES, STATE = "figures", "results", "studies", "profile.json"

# The first stage that a change of a setting makes stale, by section or by dotted name; the longer name wins.
# Settings marked HOW in core/settings.py make none stale.
STAGE_OF = {
    "seed": 1,
    "target": 1,
    "prompts": 1,
    "prompts.marker": 3,
    "prompts.baseline_place": 5,
    "problems": 1,
    "problems.test": 5,
    "problems.test_size": 5,
    "problems.validation": 5,
    "problems.validation_size": 5,
    "chains": 1,
    "importance": 2,
    "pruning": 3,
    "training": 4,
    "training.ratios_a_problem": 3,
    "training.rows": 3,
    "training.seed": 3,
    "training.held_out": 3,
    "evaluation": 5,
    "server.model": 1,  # what answered: the target model in this process, or this model of a server
    "server.tokenskip_model": 5,
}


def stage_of(key: str) -> int | None:
    """The first stage that a change of this setting makes stale; None if it makes none stale.

    Example:
        >>> stage_of("pruning.ratios"), stage_of("prompts.baseline_place"), stage_of("training.save_every")
        (3, 5, None)
    """
    section = key.partition(".")[0]
    if (key not in STAGE_OF and section not in STAGE_OF) or is_how(key):
        return None
    return STAGE_OF.get(key, STAGE_OF.get(section))


def records_of(step: int) -> tuple[str, ...]:
    """The names of the records that a step writes; () for a step that writes tables alone.

    Example:
        >>> records_of(3), records_of(7)
        (('03_pruned.jsonl', '03_sft_rows.jsonl'), ())
    """
    return tuple(name for name in RECORDS if int(name[:2]) == step)


def changed_settings(profile: Profile, other: Profile) -> dict[int, str]:
    """First stage that is stale -> the name of a setting that two profiles disagree on, stages ascending.

    A change of the scorers that are only compared makes nothing stale: scores are kept by scorer, and missing ones are
    added.
    """
    mine, others = setting_values(profile), setting_values(other)
    changed: dict[int, str] = {}
    for key, value in mine.items():
        stage = stage_of(key)
        if stage is not None and value != others[key] and not key.startswith("importance.compare_"):
            changed.setdefault(stage, key)
    return dict(sorted(changed.items()))


def stage_number(text: str) -> int:
    """The number of a step, from 1.

    Example:
        >>> stage_number("03"), stage_number("prune"), stage_number("03_pruning")
        (3, 3, 3)

    Raises:
        InputError: no such step.
    """
    match = re.match(r"0*([1-9]\d*)", text)
    number = STEPS.index(text) + 1 if text in STEPS else int(match.group(1)) if match else 0
    if not 1 <= number <= len(STEPS):
        raise InputError(f"no stage '{text}' (01 to {len(STEPS):02}, or {', '.join(STEPS)})")
    return number
