"""Commands for files: your own chains, anyone's predictions, and what other trainers and programs read."""

import sys
from typing import Annotated

import typer

from tokenskip_lib.commands.options import Assignments, load, run_stage
from tokenskip_lib.core.profiles import apply_overrides, nearest, parse_overrides
from tokenskip_lib.core.records import InputError
from tokenskip_lib.pruning.registry import describe_scorers

OwnChains = Annotated[
    str | None,
    typer.Argument(
        metavar="[CHAINS.jsonl]", help="Your own: id, question, answer, chain (or output) a line; `-` reads a pipe."
    ),
]
Output = Annotated[str, typer.Option("--output", "-o", help="The file to write; `-` is a pipe.")]
AnswerLayout = Annotated[str, typer.Option("--layout", help="answer, or think: the answer follows </think>.")]
AnswerPhrases = Annotated[
    list[str] | None, typer.Option("--answer-phrase", help="Announces an answer in another language; repeatable.")
]
Predictions = Annotated[str, typer.Argument(help="Rows of answer and output, lm-eval, messages; `-` reads a pipe.")]
Files = Annotated[list[str], typer.Argument(metavar="PREDICTIONS...", help="Files of what `grade` reads.")]
Against = Annotated[str, typer.Option(help="Profile of a published run, or MODEL/SET: Qwen2.5-7B-Instruct/gsm8k.")]
Png = Annotated[str, typer.Option("--output", "-o", help="NAME.png; NAME.svg, .csv and .json are beside it.")]
Counter = Annotated[str | None, typer.Option(help="Counts tokens: folder or hub name, else the published model's.")]
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
Ratios = Annotated[
    str | None, typer.Option(metavar="R,R,...", help="With CHAINS: fractions of tokens kept, e.g. 0.9,0.5")
]
Layout = Annotated[
    str | None, typer.Option(help="With CHAINS that are whole outputs: answer, or think (the chain ends at </think>).")
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


def score(
    chains: OwnChains = None,
    output: Output = "-",
    scorer: ScorerName = None,
    model: TargetName = None,
    layout: Layout = None,
    profile: OptionalProfile = None,
    assignments: Assignments = None,
) -> None:
    """Stage 2, importance of every part of every kept chain; or of your own CHAINS, spans and scores out."""
    if chains is None:
        _refuse_without_chains(output, scorer=scorer, model=model, layout=layout)
        run_stage("score", profile or "demo", assignments)
    else:
        from tokenskip_lib.models.loading import TargetModel
        from tokenskip_lib.pruning.own_chains import score_file
        from tokenskip_lib.pruning.own_settings import OwnChainSettings, own_settings

        overrides = parse_overrides(assignments or [])
        chosen: OwnChainSettings = own_settings(profile, overrides, scorer=scorer, model=model, layout=layout)
        target = TargetModel(chosen.target, chosen.prompts)
        score_file(chains, output, target, chosen.importance, seed=chosen.seed, execution=chosen.execution)


def prune(
    chains: OwnChains = None,
    output: Output = "-",
    scorer: ScorerName = None,
    model: TargetName = None,
    ratios: Ratios = None,
    layout: Layout = None,
    profile: OptionalProfile = None,
    assignments: Assignments = None,
) -> None:
    """Stage 3, chains at every ratio and the training rows; or your own CHAINS at every ratio."""
    if chains is None:
        _refuse_without_chains(output, scorer=scorer, model=model, ratios=ratios, layout=layout)
        run_stage("prune", profile or "demo", assignments)
    else:
        from tokenskip_lib.models.loading import TargetModel
        from tokenskip_lib.pruning.own_chains import prune_file
        from tokenskip_lib.pruning.own_settings import OwnChainSettings, own_settings

        overrides = parse_overrides(assignments or [])
        chosen: OwnChainSettings = own_settings(
            profile, overrides, scorer=scorer, model=model, ratios=ratios, layout=layout
        )
        target = TargetModel(chosen.target, chosen.prompts)
        where = chosen.execution
        prune_file(chains, output, target, chosen.importance, chosen.pruning, seed=chosen.seed, execution=where)


def grade(
    predictions: Predictions,
    output: Output = "-",
    layout: AnswerLayout = "answer",
    answer_phrases: AnswerPhrases = None,
    assignments: Assignments = None,
) -> None:
    """Grade anyone's predictions, strictly and by the rule of the authors' code; adds fields to each line."""
    from tokenskip_lib.evaluation.own_predictions import OwnPredictionSettings, grade_file, shares

    chosen = apply_overrides(OwnPredictionSettings, {}, parse_overrides(assignments or []), where="grade")
    counts = grade_file(predictions, output, layout, answer_phrases or (), execution=chosen.execution)
    print(shares(counts), file=sys.stderr)


def place(
    files: Files,
    against: Against,
    output: Png = "place.png",
    tokenizer: Counter = None,
    layout: AnswerLayout = "answer",
    answer_phrases: AnswerPhrases = None,
) -> None:
    """Draw anyone's predictions over the published results, with intervals and paired comparisons."""
    from tokenskip_lib.analyses import place as placing

    phrases = answer_phrases or ()
    made = placing.place(files, against, output, tokenizer=tokenizer, layout=layout, answer_phrases=phrases)
    print(placing.report(made))


def export(
    output: Annotated[str, typer.Option("--output", "-o", help="The folder to write into.")],
    chains: OwnChains = None,
    style: Annotated[
        str, typer.Option("--format", help="trl or llamafactory: rows; peft, peft-8bit or merged: a model.")
    ] = "trl",
    scorer: ScorerName = None,
    model: TargetName = None,
    ratios: Ratios = None,
    layout: Layout = None,
    profile: OptionalProfile = None,
    assignments: Assignments = None,
) -> None:
    """Write rows for another trainer, of stage 3 or of your own CHAINS; or the adapter for peft and the hub."""
    from pathlib import Path

    from tokenskip_lib.core.paths import relative
    from tokenskip_lib.experiments import release, stages
    from tokenskip_lib.experiments.run import Run
    from tokenskip_lib.models.loading import TargetModel
    from tokenskip_lib.pruning.own_chains import prune_rows
    from tokenskip_lib.pruning.own_settings import OwnRowSettings, own_settings
    from tokenskip_lib.training.export import EXPORT_STYLES, export_rows
    from tokenskip_lib.training.rows import own_rows, problems_of

    if style not in (known := [*EXPORT_STYLES, *release.MODEL_STYLES]):
        raise InputError(f"unknown format '{style}'{nearest(style, known)}")
    folder = Path(output).expanduser()
    if chains is not None:
        if style in release.MODEL_STYLES:
            raise InputError(f"--format {style} writes the adapter of a profile's run, and takes no CHAINS")
        overrides = parse_overrides(assignments or [])
        given = {"scorer": scorer, "model": model, "ratios": ratios, "layout": layout}
        chosen = own_settings(profile, overrides, **given, kind=OwnRowSettings)
        if chosen.execution.kind != "local":
            raise InputError(
                "export works in this process: --set execution.kind=local, or `prune` a run and export its rows"
            )
        target, drawn = TargetModel(chosen.target, chosen.prompts), chosen.training.seed
        found, pruned = prune_rows(chains, target, chosen.importance, chosen.pruning, seed=chosen.seed)
        rows = own_rows(
            found,
            pruned,
            target.tokenizer,
            chosen.prompts,
            chosen.training,
            seed=chosen.seed if drawn is None else drawn,
        )
        written = export_rows(rows, problems_of(found), target.tokenizer, chosen.prompts, style, folder)
    else:
        _refuse_without_chains("-", scorer=scorer, model=model, ratios=ratios, layout=layout)
        loaded = load(profile or "demo", assignments)
        if style in release.MODEL_STYLES:
            written = release.export_model(loaded, style, folder)
        else:
            written = stages.export(Run.open(loaded), style, folder)
    for path in written:
        print(relative(path))


def average(
    adapters: Annotated[list[str], typer.Argument(metavar="ADAPTER...", help="Folders or hub names, two or more.")],
    output: Annotated[str, typer.Option("--output", "-o", help="The folder to write into.")],
) -> None:
    """Write the mean of adapters that went on from the same one (training.start_from)."""
    from pathlib import Path

    from tokenskip_lib.core.paths import relative
    from tokenskip_lib.models.averaging import average_adapters

    folder = Path(output).expanduser()
    average_adapters(adapters, folder)
    print(relative(folder))


def _refuse_without_chains(output: str, **options: str | None) -> None:
    for name, value in {**options, "output": None if output == "-" else output}.items():
        if value is not None:
            raise InputError(f"--{name} goes with a file of CHAINS; for a profile's stage use --set")
