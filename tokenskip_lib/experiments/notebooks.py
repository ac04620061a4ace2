"""The notebooks of a profile, in order, through papermill; and publishing what they made."""

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tokenskip_lib.core.live import WIDGET
from tokenskip_lib.core.paths import need_checkout, relative
from tokenskip_lib.core.plugins import need
from tokenskip_lib.core.profiles import Profile, is_profile_file, load_profile, profile_names
from tokenskip_lib.core.progress import IN_LAB
from tokenskip_lib.core.provenance import now
from tokenskip_lib.core.records import InputError
from tokenskip_lib.core.store import write_json
from tokenskip_lib.evaluation.metrics import markdown_table
from tokenskip_lib.experiments.links import move_links
from tokenskip_lib.experiments.run import PUBLISHED_FIGURES, PUBLISHED_RESULTS, Run
from tokenskip_lib.experiments.stages import check_names
from tokenskip_lib.experiments.steps import FIGURES, METRICS, RESULTS, STAGES, STEPS
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
SHOWN_STUDIES = ("scorers", "random", "control", "seeds", "budget", "untrained", "choice")  # in notebooks 06 and 07
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
    if is_profile_file(name):
        name = str(Path(name).resolve())  # the kernels start in the notebooks' folder
    check_names(profile)
    if only is None or only > len(STAGES):  # the notebooks of the stages need no study
        check_studies(profile)
    _refuse_beyond(profile, only)
    if not profile.studies:  # without notebooks of their own, studies are still redone by --from 06
        _refuse_beyond(profile, redo_from)
    need_checkout("the notebooks are")
    need("papermill", "notebooks")
    run = Run.create(profile, redo_from=redo_from)
    print(f"profile {profile.name} -> {relative(run.folder)}", flush=True)
    with run.writing():  # the kernels, which it starts, write too
        for number, stage in enumerate(steps_of(profile), 1):
            if only is not None and number != only:
                continue
            if only is None and stage in run.timings():
                print(f"{NOTEBOOKS[stage]}: done, {run.timings()[stage]:.0f} s", flush=True)
                continue
            print(f"{NOTEBOOKS[stage]} ...", flush=True)
            start = time.perf_counter()
            _execute(run, NOTEBOOKS[stage], name, overrides)
            seconds = time.perf_counter() - start
            # A notebook without a run shows published tables; one drawn again did no work again.
            worked = run.has_noted(stage) or run.has_begun()
            if worked and stage not in run.timings():
                run.note(stage, notebook_seconds=round(seconds, 1), finished_at=now())
            print(f"{NOTEBOOKS[stage]}: {seconds:.0f} s", flush=True)
    return run


def steps_of(profile: Profile) -> tuple[str, ...]:
    """What is run for a profile, a notebook each: the five stages, and notebooks 06 and 07 if it has their studies."""
    return STEPS if set(SHOWN_STUDIES) <= set(profile.studies) else STAGES


def _refuse_beyond(profile: Profile, number: int | None) -> None:
    if number is not None and number > len(steps_of(profile)):
        lacking = ", ".join(study for study in SHOWN_STUDIES if study not in profile.studies)
        raise InputError(
            f"profile '{profile.name}' lacks studies that notebooks 06 and 07 show ({lacking}), so it ends with "
            f"notebook {len(steps_of(profile)):02}"
        )


def _execute(run: Run, notebook: str, profile_name: str, overrides: dict) -> None:
    papermill = need("papermill", "notebooks")
    source = need_checkout("the notebooks are") / "notebooks" / f"{notebook}.ipynb"
    known = set(papermill.inspect_notebook(str(source)))
    if unknown := {"PROFILE", "OVERRIDES"} - known:
        raise InputError(f"{source}: no {', '.join(sorted(unknown))} in its parameters cell")
    parameters = {"PROFILE": profile_name, "OVERRIDES": overrides, "RERUN": True}
    target = run.folder / "notebooks" / f"{notebook}.ipynb"
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _environment_of_kernels():
            papermill.execute_notebook(
                str(source),
                str(target),
                parameters={name: value for name, value in parameters.items() if name in known},
                cwd=str(source.parent),
                progress_bar=False,
                stderr_file=sys.stderr,  # the stages' own progress bars, live
                shutdown_kernel="immediate",  # records are on disk: a kernel that is stopped has nothing to finish
                # Errors only: each kernel warns of its connection, which does not leave this machine.
                extra_arguments=["--IPKernelApp.log_level=40"],
            )
    except papermill.PapermillExecutionError as error:
        if error.ename == InputError.__name__:
            target.unlink()  # it stops in the middle of a cell
            raise InputError(error.evalue) from None
        raise
    nbformat = need("nbformat", "notebooks")
    executed = nbformat.read(target, as_version=4)
    move_links(executed, source.parent, target.parent, together=_together(run.profile))
    nbformat.write(_with_pictures(executed), target)


@contextmanager
def _environment_of_kernels() -> Iterator[None]:
    """Kernels started inside find your own modules where you started the run, and draw their bars on stderr.

    They run in notebooks/, and would take a notebook that started the run for their own place. They show figures even
    if MPLBACKEND, of a machine without a screen, says that there is nobody to show them to.
    """
    before = {name: os.environ.pop(name, None) for name in ("PYTHONPATH", IN_LAB, "MPLBACKEND")}
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path.cwd()), before["PYTHONPATH"]]))
    try:
        yield
    finally:
        del os.environ["PYTHONPATH"]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def publish(profile: Profile, *, only: int | None = None) -> list[Path]:
    """Copy what a finished run made to where readers of the repository see it.

    Its figures go to figures/ and its tables to data/results/, each with a name in front: the profile's, or with other
    settings than the profile's, that of the run's folder. Its notebooks go to notebooks/, if they open with this
    profile (PROFILE in their parameters) and its settings: then a reader who runs them gets what is shown. With
    notebook 05, its table goes into the README.

    Args:
        only: of the notebooks this one alone.

    Returns:
        The files written.

    Raises:
        InputError: the run is not finished, its folder has the name of a profile whose settings it has not, or there
            is no checkout.
    """
    _refuse_beyond(profile, only)
    root, run, name = need_checkout("published results are kept"), Run.open(profile), _published_name(profile)
    wanted = [step for number, step in enumerate(steps_of(profile), 1) if only in (None, number)]
    missing = [NOTEBOOKS[step] for step in wanted if step not in run.timings()]
    if missing:
        raise InputError(f"{relative(run.folder)}: {missing[0]} has not been run; finish the run first")
    written = [*_publish_results(run, root, name), *_publish_figures(run, root, name)]
    published = [step for step in wanted if not profile.overrides and _opens_with(NOTEBOOKS[step]) == profile.name]
    written += [_publish_notebook(run, root, NOTEBOOKS[step]) for step in published]
    if "evaluate" in published:
        written.append(_publish_table(run, root))
    return written


def _published_name(profile: Profile) -> str:
    """What a run's published files begin with."""
    if not profile.overrides:
        return profile.name
    name = profile.path("").name
    if name in {profile.name, *profile_names()}:
        raise InputError(
            f"{relative(profile.path(''))}: has other settings than profile '{name}' ({', '.join(profile.overrides)}), "
            "whose figures it would replace; give the run a folder of its own with --set run_dir=..."
        )
    return name


def _publish_results(run: Run, root: Path, name: str) -> list[Path]:
    """Copy the run's tables, as data/results/<name>_<table>.csv."""
    (root / PUBLISHED_RESULTS).mkdir(parents=True, exist_ok=True)
    written = []
    for path in sorted((run.folder / RESULTS).glob("*.csv")):
        written.append(root / PUBLISHED_RESULTS / f"{name}_{path.name}")
        shutil.copyfile(path, written[-1])
    return written


def _publish_figures(run: Run, root: Path, name: str) -> list[Path]:
    """Copy the run's figures, as figures/<name>_<figure>; one drawn from a table names the published table."""
    (root / PUBLISHED_FIGURES).mkdir(parents=True, exist_ok=True)
    written = []
    for path in sorted((run.folder / FIGURES).glob("*.*")):
        target = root / PUBLISHED_FIGURES / f"{name}_{path.name}"
        written.append(target)
        if path.suffix != ".json":
            shutil.copyfile(path, target)
            continue
        origin = json.loads(path.read_text(encoding="utf-8"))
        table = Path(origin["source"])
        if table == Path(relative(run.folder / RESULTS)) / table.name:
            origin["source"] = f"{PUBLISHED_RESULTS}/{name}_{table.name}"
        write_json(target, origin)
    return written


def _publish_notebook(run: Run, root: Path, notebook: str) -> Path:
    """Copy an executed notebook, without what only the run needs."""
    nbformat = need("nbformat", "notebooks")
    source, target = (folder / "notebooks" / f"{notebook}.ipynb" for folder in (run.folder, root))
    content = nbformat.read(source, as_version=4)
    move_links(content, source.parent, target.parent, together=_together(run.profile))
    nbformat.write(_for_readers(content), target)
    return target


def _together(profile: Profile) -> list[str]:
    """The notebooks that are in the run's folder as well as in notebooks/."""
    return [f"{NOTEBOOKS[step]}.ipynb" for step in steps_of(profile)]


def _publish_table(run: Run, root: Path) -> Path:
    """Put the run's metrics and its minutes between the README's markers."""
    import pandas as pd

    readme = root / "README.md"
    metrics = pd.read_csv(run.folder / RESULTS / METRICS, keep_default_na=False)
    table = f"{markdown_table(metrics)}\n\n{_minutes(run)}\n"
    readme.write_text(README_TABLE.sub(rf"\g<1>{table}\g<2>", readme.read_text(encoding="utf-8")), encoding="utf-8")
    return readme


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
    for cell in notebook.cells:
        for field in ("papermill", "execution"):
            cell.metadata.pop(field, None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return _with_pictures(notebook)


def _with_pictures(notebook):
    """An executed notebook whose widgets are gone with the kernel: their pictures stay, and bars leave nothing."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            for output in cell.outputs:
                if output.get("data", {}).pop(WIDGET, None) and set(output.data) == {"text/plain"}:
                    output.data.clear()
            cell.outputs = [output for output in cell.outputs if output.get("data") != {}]
    return notebook
