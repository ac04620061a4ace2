"""What a person wants to know when a run has ended: what came out, whether it is as published, what to open next."""

from pathlib import Path

import pandas as pd

from tokenskip_lib.core.paths import checkout, relative
from tokenskip_lib.core.profiles import load_profile, profile_names
from tokenskip_lib.evaluation.rounding import beside_lines, beside_published
from tokenskip_lib.experiments.notebooks import NOTEBOOKS
from tokenskip_lib.experiments.run import PUBLISHED_RESULTS, Run
from tokenskip_lib.experiments.steps import METRICS, RESULTS, changed_settings


def closing_lines(run: Run) -> list[str]:
    """The lines that a run prints at its end.

    If results of the same settings are published, a table shows the run's beside them. Then come accuracy and tokens,
    where the files are, and what to open next.
    """
    lines = []
    if (run.folder / RESULTS / METRICS).exists():
        metrics = _read(run.folder / RESULTS / METRICS)
        lines += [*_beside_lines(run, metrics), _outcome(metrics)]
    lines.append(f"records, tables (results/), figures (figures/) and notebooks: {relative(run.folder)}")
    if executed := sorted((run.folder / "notebooks").glob("*.ipynb")):
        shown = next((path for path in executed if path.stem == NOTEBOOKS["evaluate"]), executed[-1])
        lines.append(f"open next: {relative(shown)} (`make lab` starts JupyterLab)")
    return lines


def _read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, keep_default_na=False)


def _beside_lines(run: Run, metrics: pd.DataFrame) -> list[str]:
    """The run beside the published one; [] if none is published, or if it was made with other settings."""
    root, profile = checkout(), run.profile
    published = root / PUBLISHED_RESULTS / f"{profile.name}_{METRICS}" if root else None
    if published is None or not published.exists() or profile.name not in profile_names():
        return []
    if changed_settings(profile, load_profile(profile.name)):
        return []
    beside = beside_published(metrics, _read(published), trained=profile.evaluation.adapter is None)
    return [f"This run beside the published one ({relative(published)}):", *beside_lines(beside), ""]


def _outcome(metrics: pd.DataFrame) -> str:
    """Accuracy and chain tokens without TokenSkip, and with it at the highest and the lowest ratio."""
    said = []
    for method, name in (("original", "without TokenSkip"), ("tokenskip", "TokenSkip")):
        rows = metrics.loc[metrics["method"] == method, ["ratio", "accuracy", "chain_tokens"]].to_numpy().tolist()
        for ratio, accuracy, tokens in [max(rows), min(rows)][: len(rows)] if rows else []:
            at = f" at {ratio:g}" if method == "tokenskip" else ""
            said.append(f"{name}{at} {100 * accuracy:.1f}% with {tokens:.1f} tokens")
    return f"{metrics['n'].max()} problems: {'; '.join(said)}"
