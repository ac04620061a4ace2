"""The command line: `tokenskip --help`, or `python -m tokenskip_lib --help`. Every command calls the library."""

import atexit
import errno
import gc
import os
import sys
from typing import Annotated

import typer

import tokenskip_lib
from tokenskip_lib.commands import files, runs
from tokenskip_lib.core.records import InputError

# What a file system refuses whatever the code does: no space, no permission, a name that is too long.
_REFUSALS = {
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "ENAMETOOLONG", "ENOTDIR", "EISDIR")
}

app = typer.Typer(
    help=(tokenskip_lib.__doc__ or "").splitlines()[0],
    no_args_is_help=True,
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
    files.average,
    runs.study,
    runs.timing,
    runs.page,
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
    """Run the command line; bad input, or a file that cannot be read or written, is one line and exit code 2."""
    atexit.register(gc.freeze)  # or Python would look through all of torch for cycles at the end: a second
    try:
        app(prog_name="tokenskip")  # what `--install-completion` teaches the shell
    except InputError as error:
        _end(str(error))
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
        _end(f"{error.filename or 'standard output'}: {error.strerror}")


def _end(why: str) -> None:
    print(f"error: {why}", file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:  # what could not be written would be tried again at the exit, and fail with a traceback
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(2)


if __name__ == "__main__":
    main()
