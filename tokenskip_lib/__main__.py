"""The command line: `tokenskip --help`, or `python -m tokenskip_lib --help`. Every command calls the library."""

import sys
from typing import Annotated

import typer

import tokenskip_lib
from tokenskip_lib.commands import files, runs
from tokenskip_lib.core.records import InputError

app = typer.Typer(
    help=(tokenskip_lib.__doc__ or "").splitlines()[0],
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
# In the order of --help.
for command in (
    runs.run,
    runs.profiles,
    runs.plan,
    runs.prepare_target,
    runs.generate,
    files.score,
    files.prune,
    runs.train,
    runs.evaluate,
    files.grade,
    files.place,
    files.export,
    runs.study,
    runs.timing,
    runs.publish,
):
    app.command()(command)


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


def main() -> None:
    """Run the command line; bad input is one line on stderr and exit code 2."""
    try:
        app()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
