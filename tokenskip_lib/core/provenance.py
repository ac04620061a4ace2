"""What made a result: versions, commit and time."""

import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

PACKAGES = ("torch", "transformers", "peft", "reasoning-gym", "math-verify", "pandas", "numpy", "papermill")


def versions() -> dict[str, str]:
    """The versions of Python, this library and what the results depend on."""
    found = {"python": platform.python_version(), "tokenskip": metadata.version("tokenskip")}
    installed = {distribution.name.lower().replace("_", "-") for distribution in metadata.distributions()}
    return found | {name: metadata.version(name) for name in PACKAGES if name in installed}


def commit() -> str | None:
    """The commit this code is at, `+changes` where the tree differs; None outside a checkout of it."""
    package = Path(__file__).parent.parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(package), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "core/provenance.py")  # an installed copy inside another repository is none
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":/notebooks")
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
