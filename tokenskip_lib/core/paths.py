"""Paths: where the checkout is, and how a path is shown to people."""

from pathlib import Path


def project_root() -> Path:
    """The nearest folder, from the working directory up, that holds notebooks/ and tokenskip_lib/.

    Without one (the library installed elsewhere) the working directory itself.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "notebooks").is_dir() and (folder / "tokenskip_lib").is_dir():
            return folder
    return here


def resolve_path(path: str) -> Path:
    """An absolute path as it is, `~` expanded; a relative one under the project's root."""
    return project_root() / Path(path).expanduser()


def relative(path: Path) -> str:
    """A path for people and for figure sources: relative to the project's root where it lies below."""
    root = project_root()
    return str(path.relative_to(root) if path.is_relative_to(root) else path)
