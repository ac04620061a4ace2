"""The command line: `tokenskip --help`, or `python -m tokenskip_lib --help`. Every command calls the library."""

import sys
from typing import Annotated

import typer

import tokenskip_lib
from tokenskip_lib.core.profiles import Profile, load_profile, parse_overrides, profile_names
from tokenskip_lib.core.records import InputError
from tokenskip_lib.pruning.registry import describe_scorers

app = typer.Typer(
    help=(tokenskip_lib.__doc__ or "").splitlines()[0],
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
ProfileName = Annotated[
    str, typer.Option("--profile", "-p", help="Name of a profile (see `profiles`), or the path of a YAML file.")
]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, e.g. --set training.epochs=1; repeatable."),
]
OwnChains = Annotated[
    str | None,
    typer.Argument(
        metavar="[CHAINS.jsonl]", help="Your own chains (id, question, answer, chain a line); `-` reads a pipe."
    ),
]
Output = Annotated[str, typer.Option("--output", "-o", help="With CHAINS: the file to write; `-` is a pipe.")]
ScorerName = Annotated[
    str | None,
    typer.Option(
        help=f"With CHAINS, when a token is important: {describe_scorers()}; or your own mypackage.module:function.",
        show_default=False,
    ),
]
TargetName = Annotated[
    str | None, typer.Option(help="With CHAINS: the target model, whose tokens are counted; folder or hub name.")
]
OptionalProfile = Annotated[
    str | None,
    typer.Option(
        "--profile",
        "-p",
        help="Name of a profile (see `profiles`), or the path of a YAML file. Without CHAINS the default is demo; with "
        "CHAINS it is no profile: the scorer is selective_context, and nothing is kept by force.",
    ),
]


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"tokenskip {tokenskip_lib.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options of the program itself, before the name of a command."""


@app.command()
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
    from tokenskip_lib.core.paths import relative
    from tokenskip_lib.experiments.notebooks import run_notebooks
    from tokenskip_lib.experiments.steps import stage_number

    made = run_notebooks(
        profile,
        parse_overrides(assignments or []),
        redo_from=stage_number(redo_from) if redo_from else None,
        only=stage_number(only) if only else None,
    )
    print(f"records, tables (results/), figures (figures/) and notebooks: {relative(made.folder)}")


@app.command()
def profiles() -> None:
    """List the profiles."""
    width = max(map(len, profile_names()))
    for name in profile_names():
        print(f"{name:{width}}  {load_profile(name).description}")


@app.command()
def plan(
    profile: ProfileName = "demo",
    card: Annotated[
        str | None,
        typer.Option(help="H100, H200, A100-80GB, L40S, RTX-4090, T4 or cpu; without it this machine."),
    ] = None,
    assignments: Assignments = None,
) -> None:
    """Tell what a run needs before it starts: memory, disk, tokens and time on a card."""
    from tokenskip_lib.experiments.plan import report

    print(report(_load(profile, assignments), card))


@app.command("prepare-target")
def prepare_target(profile: ProfileName = "demo-full", assignments: Assignments = None) -> None:
    """Teach the base model the task from the problem set's own solutions; writes target.adapter."""
    import json

    from tokenskip_lib.experiments import prepare_target as target

    print(json.dumps(target.prepare_target(_load(profile, assignments)), indent=2))


@app.command()
def generate(profile: ProfileName = "demo", assignments: Assignments = None) -> None:
    """Stage 1: the target model answers the training problems."""
    _stage("generate", profile, assignments)


@app.command()
def score(
    chains: OwnChains = None,
    output: Output = "-",
    scorer: ScorerName = None,
    model: TargetName = None,
    profile: OptionalProfile = None,
    assignments: Assignments = None,
) -> None:
    """Stage 2, importance of every part of every kept chain; or of your own CHAINS, spans and scores out."""
    if chains is None:
        _refuse_without_chains(scorer=scorer, model=model, output=None if output == "-" else output)
        _stage("score", profile or "demo", assignments)
    else:
        from tokenskip_lib.models.loading import TargetModel
        from tokenskip_lib.pruning.own_chains import score_file
        from tokenskip_lib.pruning.own_settings import own_settings

        chosen = own_settings(profile, parse_overrides(assignments or []), scorer=scorer, model=model)
        score_file(chains, output, TargetModel(chosen.target, chosen.prompts), chosen.importance, seed=chosen.seed)


@app.command()
def prune(
    chains: OwnChains = None,
    output: Output = "-",
    scorer: ScorerName = None,
    model: TargetName = None,
    ratios: Annotated[
        str | None,
        typer.Option(metavar="R,R,...", help="With CHAINS: fractions of tokens kept, e.g. 0.9,0.5"),
    ] = None,
    profile: OptionalProfile = None,
    assignments: Assignments = None,
) -> None:
    """Stage 3, chains at every ratio and the training rows; or your own CHAINS at every ratio."""
    if chains is None:
        _refuse_without_chains(scorer=scorer, model=model, ratios=ratios, output=None if output == "-" else output)
        _stage("prune", profile or "demo", assignments)
    else:
        from tokenskip_lib.models.loading import TargetModel
        from tokenskip_lib.pruning.own_chains import prune_file
        from tokenskip_lib.pruning.own_settings import own_settings

        overrides = parse_overrides(assignments or [])
        chosen = own_settings(profile, overrides, scorer=scorer, model=model, ratios=ratios)
        target = TargetModel(chosen.target, chosen.prompts)
        prune_file(chains, output, target, chosen.importance, chosen.pruning, seed=chosen.seed)


@app.command()
def grade(
    predictions: Annotated[
        str, typer.Argument(metavar="PREDICTIONS.jsonl", help="id, answer, output a line; `-` reads a pipe.")
    ],
    output: Annotated[str, typer.Option("--output", "-o", help="The file to write; `-` is a pipe.")] = "-",
    layout: Annotated[str, typer.Option(help="answer, or think: the answer follows </think>.")] = "answer",
    answer_phrases: Annotated[
        list[str] | None,
        typer.Option("--answer-phrase", help="Announces an answer in another language; repeatable."),
    ] = None,
) -> None:
    """Grade anyone's predictions, strictly and by the rule of the authors' code; adds fields to each line."""
    from tokenskip_lib.evaluation.own_predictions import grade_file, shares

    print(shares(grade_file(predictions, output, layout, answer_phrases or ())), file=sys.stderr)


@app.command()
def export(
    output: Annotated[str, typer.Option("--output", "-o", help="The folder to write into.")],
    style: Annotated[str, typer.Option("--format", help="trl or llamafactory.")] = "trl",
    profile: ProfileName = "demo",
    assignments: Assignments = None,
) -> None:
    """Write the training rows of stage 3 for another trainer."""
    from pathlib import Path

    from tokenskip_lib.core.paths import relative
    from tokenskip_lib.experiments import stages
    from tokenskip_lib.experiments.run import Run

    for path in stages.export(Run.open(_load(profile, assignments)), style, Path(output)):
        print(relative(path))


@app.command()
def train(profile: ProfileName = "demo", assignments: Assignments = None) -> None:
    """Stage 4: the TokenSkip adapter."""
    _stage("train", profile, assignments)


@app.command()
def evaluate(profile: ProfileName = "demo", assignments: Assignments = None) -> None:
    """Stage 5: every method at every ratio on the test problems; metrics.csv."""
    _stage("evaluate", profile, assignments)


@app.command()
def study(
    name: Annotated[str, typer.Argument(help="One of the profile's studies.")],
    profile: ProfileName = "demo-full",
    assignments: Assignments = None,
) -> None:
    """Put one question to several trainings on a run's chains; a row a variant and ratio in results/<study>.csv."""
    from tokenskip_lib.experiments import studies
    from tokenskip_lib.experiments.run import Run

    loaded = _load(profile, assignments)
    studies.check_studies(loaded)
    print(studies.run_study(Run.create(loaded), name).to_string(index=False))


@app.command()
def timing(
    problems: Annotated[int, typer.Option(min=1, help="How many test problems, each at every ratio.")] = 20,
    batches: Annotated[str, typer.Option(metavar="N,N,...", help="Batch sizes; 1 is latency.")] = "1,64",
    profile: ProfileName = "demo",
    assignments: Assignments = None,
) -> None:
    """Seconds a problem, tokens a second and peak memory at every ratio; timings.csv."""
    if not all(size.strip().isdigit() and int(size) for size in batches.split(",")):
        raise InputError(f"--batches {batches}: whole numbers between commas, e.g. 1,64")
    loaded = _load(profile, assignments)
    from tokenskip_lib.analyses.timing import time_run
    from tokenskip_lib.experiments.run import Run

    print(time_run(Run.create(loaded), problems, [int(size) for size in batches.split(",")]).to_string(index=False))


@app.command()
def publish(
    profile: ProfileName = "demo",
    only: Annotated[str | None, typer.Option("--only", metavar="NN", help="This notebook alone.")] = None,
    assignments: Assignments = None,
) -> None:
    """Copy a finished run's figures, tables and notebooks into the checkout, and its metrics into the README."""
    from tokenskip_lib.core.paths import relative
    from tokenskip_lib.experiments.notebooks import publish as publish_run
    from tokenskip_lib.experiments.steps import stage_number

    for path in publish_run(_load(profile, assignments), only=stage_number(only) if only else None):
        print(relative(path))


def _load(profile: str, assignments: list[str] | None) -> Profile:
    return load_profile(profile, parse_overrides(assignments or []))


def _refuse_without_chains(**options: str | None) -> None:
    for name, value in options.items():
        if value is not None:
            raise InputError(f"--{name} goes with a file of CHAINS; for a profile's stage use --set")


def _stage(name: str, profile: str, assignments: list[str] | None) -> None:
    loaded = _load(profile, assignments)
    import json

    from tokenskip_lib.core.paths import relative
    from tokenskip_lib.core.processes import processes, rank
    from tokenskip_lib.experiments import stages
    from tokenskip_lib.experiments.run import Run

    if processes() > 1 and name in ("generate", "evaluate"):
        raise InputError(f"{name} runs in one process; on several GPUs a server answers, see docs/scale-out.md")
    stages.check_names(loaded)
    opened = Run.create(loaded)
    stages.STAGE_FUNCTIONS[name](opened)
    if rank() == 0:
        counts = {key: value for key, value in opened.state["stages"][name].items() if key != "finished_by"}
        print(f"{relative(opened.folder)}: {json.dumps(counts, ensure_ascii=False)}")


def main() -> None:
    """Run the command line; bad input is one line on stderr and exit code 2."""
    try:
        app()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
