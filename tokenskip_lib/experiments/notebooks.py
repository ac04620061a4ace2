"""The notebooks of a profile, in order, through papermill; and publishing what they made."""

import re
import sys
import time
from pathlib import Path

from tokenskip_lib.core.paths import need_checkout, relative
from tokenskip_lib.core.plugins import need
from tokenskip_lib.core.profiles import Profile, load_profile
from tokenskip_lib.core.provenance import finished_at
from tokenskip_lib.core.records import InputError
from tokenskip_lib.evaluation.metrics import markdown_table
from tokenskip_lib.experiments.run import Run
from tokenskip_lib.experiments.stages import check_names
from tokenskip_lib.experiments.steps import STAGES, STEPS
from tokenskip_lib.experiments.studies import check_studies

NOTEBOOKS = dict(
    zip(
        STEPS,
        (
            "01_chains_of_thought",
            "02_token_importance",
            "03_pruning",
            "04_fine_tuning",
            "05_accuracy_vs_tokens",
            "06_what_control_takes",
            "07_what_else_holds",
        ),
        strict=True,
    )
)
WIDGET = "application/vnd.jupyter.widget-view+json"
README_TABLE = re.compile(r"(<!-- metrics -->\n).*?(<!-- /metrics -->)", re.DOTALL)


def run_notebooks(name: str, overrides: dict, *, redo_from: int | None = None, only: int | None = None) -> Run:
    """Execute the notebooks of a profile; finished ones are left as they are.

    Args:
        name: the profile.
        overrides: dotted key -> value.
        redo_from: first step (1 to 7) to do again; its records and all later ones are removed.
        only: run this notebook alone, again if it is finished; its records stay.

    Raises:
        InputError: bad settings, or bad input met inside a notebook.
    """
    profile = load_profile(name, overrides)
    check_names(profile)
    check_studies(profile)
    _refuse_beyond(profile, only, redo_from)
    need_checkout("the notebooks are")
    run = Run.create(profile, redo_from=redo_from)
    print(f"profile {profile.name} -> {relative(run.folder)}", flush=True)
    for number, stage in enumerate(steps(profile), 1):
        if only is not None and number != only:
            continue
        if only is None and stage in run.timings():
            print(f"{NOTEBOOKS[stage]}: done, {run.timings()[stage]:.0f} s", flush=True)
            continue
        print(f"{NOTEBOOKS[stage]} ...", flush=True)
        start = time.perf_counter()
        _execute(run, NOTEBOOKS[stage], name, overrides)
        seconds = time.perf_counter() - start
        if stage not in run.timings():  # a notebook drawn again from its records did not do the work again
            run.note(stage, notebook_seconds=round(seconds, 1), finished_at=finished_at())
        print(f"{NOTEBOOKS[stage]}: {seconds:.0f} s", flush=True)
    return run


def steps(profile: Profile) -> tuple[str, ...]:
    """What is run for a profile, a notebook each: the five stages, and what its studies show if it has any."""
    return STEPS if profile.studies else STAGES


def _refuse_beyond(profile: Profile, *numbers: int | None) -> None:
    if any(number is not None and number > len(steps(profile)) for number in numbers):
        raise InputError(f"profile '{profile.name}' has no studies, so it ends with notebook {len(steps(profile)):02}")


def _execute(run: Run, notebook: str, profile_name: str, overrides: dict) -> None:
    papermill = need("papermill", "notebooks")
    source = need_checkout("the notebooks are") / "notebooks" / f"{notebook}.ipynb"
    unknown = {"PROFILE", "OVERRIDES"} - set(papermill.inspect_notebook(str(source)))
    if unknown:
        raise InputError(f"{source}: no {', '.join(sorted(unknown))} in its parameters cell")
    target = run.folder / "notebooks" / f"{notebook}.ipynb"
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        papermill.execute_notebook(
            str(source),
            str(target),
            parameters={"PROFILE": profile_name, "OVERRIDES": overrides},
            cwd=str(source.parent),
            progress_bar=False,
            stderr_file=sys.stderr,  # the stages' own progress bars, live
        )
    except papermill.PapermillExecutionError as error:
        if error.ename == InputError.__name__:
            target.unlink()  # it stops in the middle of a cell
            raise InputError(error.evalue) from None
        raise


def publish(profile: Profile, *, only: int | None = None) -> list[Path]:
    """Put a finished run where readers see it: executed notebooks, and with notebook 05 the README's table.

    Published are the notebooks that open with this profile (PROFILE in their parameters): what a reader
    sees is what running them again gives.

    Args:
        only: this notebook alone.

    Returns:
        The files written.

    Raises:
        InputError: the run is not finished, or no such notebook opens with its profile.
    """
    import pandas as pd

    _refuse_beyond(profile, only)
    nbformat = need("nbformat", "notebooks")
    run = Run.create(profile)
    wanted = [step for number, step in enumerate(steps(profile), 1) if only in (None, number)]
    published = [step for step in wanted if _opens_with(NOTEBOOKS[step]) == profile.name]
    if not published:
        raise InputError(
            f"{NOTEBOOKS[wanted[0]]} opens with profile '{_opens_with(NOTEBOOKS[wanted[0]])}': set PROFILE in its "
            f"parameters to '{profile.name}' before publishing this run in it"
        )
    missing = [NOTEBOOKS[step] for step in published if step not in run.timings()]
    if missing:
        raise InputError(f"{relative(run.folder)}: {missing[0]} has not been run; finish the run first")
    written = []
    for notebook in (NOTEBOOKS[step] for step in published):
        content = nbformat.read(run.folder / "notebooks" / f"{notebook}.ipynb", as_version=4)
        written.append(need_checkout("the notebooks are") / "notebooks" / f"{notebook}.ipynb")
        nbformat.write(_for_readers(content), written[-1])
    if "evaluate" not in published:
        return written
    readme = need_checkout("the README is") / "README.md"
    table = f"{markdown_table(pd.read_csv(run.folder / 'metrics.csv', keep_default_na=False))}\n\n{_minutes(run)}\n"
    readme.write_text(README_TABLE.sub(rf"\g<1>{table}\g<2>", readme.read_text(encoding="utf-8")), encoding="utf-8")
    return [*written, readme]


def _opens_with(notebook: str) -> str:
    """The profile that a committed notebook's parameters name."""
    papermill = need("papermill", "notebooks")
    path = need_checkout("the notebooks are") / "notebooks" / f"{notebook}.ipynb"
    return papermill.inspect_notebook(str(path))["PROFILE"]["default"].strip("\"'")


def _minutes(run: Run) -> str:
    timings = run.timings()
    parts = ", ".join(f"{NOTEBOOKS[stage]} {seconds / 60:.1f}" for stage, seconds in timings.items())
    return f"Minutes on the machine that made this table: {parts}; {sum(timings.values()) / 60:.1f} in all."


def _for_readers(notebook):
    """An executed notebook as it is committed: no injected parameters, timings, widgets or bars."""
    notebook.cells = [c for c in notebook.cells if "injected-parameters" not in c.metadata.get("tags", [])]
    notebook.metadata.pop("papermill", None)
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        for field in ("papermill", "execution"):
            cell.metadata.pop(field, None)
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr" and WIDGET not in o.get("data", {})]
    return notebook
