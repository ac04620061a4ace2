"""Commands for runs: all notebooks, one stage, a study, the plan, and publishing."""

from typing import Annotated

import typer

from tokenskip_lib.commands.options import Assignments, ProfileName, load, run_stage
from tokenskip_lib.core.profiles import load_profile, parse_overrides, profile_names
from tokenskip_lib.core.records import InputError


def run(
    profile: ProfileName = "demo",
    redo_from: Annotated[
        str | None, typer.Option("--from", metavar="NN", help="Redo this step (01 to 07) and all after it.")
    ] = None,
    only: Annotated[
        str | None, typer.Option("--only", metavar="NN", help="Run this notebook alone; its records stay.")
    ] = None,
    assignments: Assignments = None,
) -> None:
    """Run the notebooks of a profile, in order; finished ones are skipped."""
    from tokenskip_lib.experiments.closing import closing_lines
    from tokenskip_lib.experiments.notebooks import run_notebooks
    from tokenskip_lib.experiments.steps import stage_number

    made = run_notebooks(
        profile,
        parse_overrides(assignments or []),
        redo_from=stage_number(redo_from) if redo_from else None,
        only=stage_number(only) if only else None,
    )
    print(*closing_lines(made), sep="\n")


def profiles() -> None:
    """List the profiles."""
    width = max(map(len, profile_names()))
    for name in profile_names():
        print(f"{name:{width}}  {load_profile(name).description}")


def plan(
    profile: ProfileName = "demo",
    card: Annotated[
        str | None,
        typer.Option(
            help="H100, H200, A100-40GB, A100-80GB, L40S, RTX-4090, T4, V100-16GB, V100-32GB or cpu; without it this "
            "machine's device."
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Also time and cost of each stage on so many workers, a card each.")
    ] = None,
    problems: Annotated[int | None, typer.Option(min=1, help="As if there were so many training problems.")] = None,
    parameters: Annotated[
        float | None,
        typer.Option(min=1e6, help="Of the target model, e.g. 7.6e9, if the model itself is out of reach."),
    ] = None,
    assignments: Assignments = None,
) -> None:
    """Tell what a run needs before it starts: memory, disk, tokens and time on a card."""
    from tokenskip_lib.experiments.plan import report

    print(report(load(profile, assignments), card, parameters, workers=workers, problems=problems))


def prepare_target(profile: ProfileName = "demo-full", assignments: Assignments = None) -> None:
    """Teach the base model the task from the problem set's own solutions; writes target.adapter."""
    import json

    from tokenskip_lib.experiments import prepare_target as target

    print(json.dumps(target.prepare_target(load(profile, assignments)), indent=2))


def generate(profile: ProfileName = "demo", assignments: Assignments = None) -> None:
    """Stage 1: the target model answers the training problems."""
    run_stage("generate", profile, assignments)


def train(profile: ProfileName = "demo", assignments: Assignments = None) -> None:
    """Stage 4: the TokenSkip adapter."""
    run_stage("train", profile, assignments)


def evaluate(profile: ProfileName = "demo", assignments: Assignments = None) -> None:
    """Stage 5: every method at every ratio on the test problems; metrics.csv."""
    run_stage("evaluate", profile, assignments)


def study(
    name: Annotated[str, typer.Argument(help="One of the profile's studies.")],
    profile: ProfileName = "demo-full",
    assignments: Assignments = None,
) -> None:
    """Put one question to several trainings on a run's chains; a row a variant and ratio in results/<study>.csv."""
    from tokenskip_lib.experiments import studies
    from tokenskip_lib.experiments.run import Run

    loaded = load(profile, assignments)
    studies.check_studies(loaded)
    print(studies.run_study(Run.create(loaded), name).to_string(index=False))


def timing(
    problems: Annotated[int, typer.Option(min=1, help="How many test problems, each at every ratio.")] = 20,
    batches: Annotated[str, typer.Option(metavar="N,N,...", help="Batch sizes; 1 is latency.")] = "1,64",
    profile: ProfileName = "demo",
    assignments: Assignments = None,
) -> None:
    """Seconds a problem, tokens a second and peak memory at every ratio; timings.csv."""
    if not all(size.strip().isdigit() and int(size) for size in batches.split(",")):
        raise InputError(f"--batches {batches}: whole numbers between commas, e.g. 1,64")
    loaded = load(profile, assignments)
    from tokenskip_lib.analyses.timing import time_run
    from tokenskip_lib.experiments.run import Run

    print(time_run(Run.create(loaded), problems, [int(size) for size in batches.split(",")]).to_string(index=False))


def page(
    output: Annotated[str, typer.Option("--output", "-o", help="The page to write, NAME.html.")],
    problems: Annotated[int, typer.Option(min=1, help="How many test problems are on the page, the first ones.")] = 60,
    profile: ProfileName = "demo",
    assignments: Assignments = None,
) -> None:
    """Write a page to explore an evaluated run in a browser: the curve, every answer, what pruning would keep."""
    loaded = load(profile, assignments)
    from tokenskip_lib.analyses.page import make_page
    from tokenskip_lib.core.paths import relative
    from tokenskip_lib.experiments.run import Run

    print(relative(make_page(Run.open(loaded), output, problems=problems)))


def publish(
    profile: ProfileName = "demo",
    only: Annotated[str | None, typer.Option("--only", metavar="NN", help="This notebook alone.")] = None,
    assignments: Assignments = None,
) -> None:
    """Copy a finished run's figures, tables and notebooks into the checkout, and its metrics into the README."""
    from tokenskip_lib.core.paths import relative
    from tokenskip_lib.experiments.notebooks import publish as publish_run
    from tokenskip_lib.experiments.steps import stage_number

    for path in publish_run(load(profile, assignments), only=stage_number(only) if only else None):
        print(relative(path))
