"""Options that commands share, and what they become: a profile, or one of its stages."""

from typing import Annotated

import typer

from tokenskip_lib.core.profiles import Profile, load_profile, parse_overrides, profile_names


def complete_profile(begun: str) -> list[str]:
    """The names of profiles that a shell may complete a word to.

    Example:
        >>> complete_profile("demo-")
        ['demo-full', 'demo-more']
    """
    return [name for name in profile_names() if name.startswith(begun)]


ProfileName = Annotated[
    str,
    typer.Option(
        "--profile",
        "-p",
        help="Name of a profile (see `profiles`), or the path of a YAML file.",
        autocompletion=complete_profile,
    ),
]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, e.g. --set training.epochs=1; repeatable."),
]


def load(profile: str, assignments: list[str] | None) -> Profile:
    """The profile with the settings of `--set`."""
    return load_profile(profile, parse_overrides(assignments or []))


def run_stage(name: str, profile: str, assignments: list[str] | None) -> None:
    """Run one stage of a profile's run, and print what it says."""
    loaded = load(profile, assignments)
    from tokenskip_lib.experiments import stages

    if said := stages.run_stage(loaded, name):
        print(said)
