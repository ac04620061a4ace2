"""Paths: the checkout, if there is one, what a relative path is relative to, and how a path is shown."""

from pathlib import Path

from tokenskip_lib.core.records import InputError


def checkout() -> Path | None:
    """The root of the checkout that the working directory is in, else of the one that this code is in.

    None if the package was installed and the working directory is in no checkout.
    """
    own = Path(__file__).parents[2]
    return _checkout_around(Path.cwd()) or (own if _is_checkout(own) else None)


def need_checkout(what: str) -> Path:
    """The checkout's root, for what the installed package does not carry.

    Args:
        what: the beginning of the error, for example "the notebooks are".

    Raises:
        InputError: there is no checkout.
    """
    root = checkout()
    if root is None:
        raise InputError(f"{what} only in a checkout of the repository: clone it and run the command there")
    return root


def resolve_path(path: str) -> Path:
    """The absolute path of a setting; `~` is expanded.

    A relative path is relative to the checkout that the working directory is in. In no checkout it is relative to
    the working directory; if it is not there and this code is in a checkout, it is relative to that one.
    """
    here, given = Path.cwd(), Path(path).expanduser()
    root = _checkout_around(here)
    if root is None:
        root = here if (here / given).exists() else checkout() or here
    return root / given


def local_folder(name: str) -> str:
    """A folder of the working directory as an absolute path; any other name, e.g. a hub name, as it is."""
    folder = Path(name).expanduser()
    return str(folder.resolve()) if folder.is_dir() else name


def relative(path: Path) -> str:
    """A path for people and for figure sources: relative to where `resolve_path` starts, if it is below."""
    root = checkout() or Path.cwd()
    return str(path.relative_to(root) if path.is_relative_to(root) else path)


def _is_checkout(folder: Path) -> bool:
    return (folder / "notebooks").is_dir() and (folder / "tokenskip_lib").is_dir()


def _checkout_around(folder: Path) -> Path | None:
    return next((above for above in (folder, *folder.parents) if _is_checkout(above)), None)
