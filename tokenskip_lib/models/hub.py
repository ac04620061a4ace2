"""The hub without a network: whether it can be reached, and the copies in its cache.

The hub's own client tries again for up to a minute, and its lines say nothing that a user can act on.
"""

from http.client import HTTPException
from pathlib import Path
from ssl import SSLError
from threading import Thread
from urllib.error import HTTPError
from urllib.request import Request, urlopen

SECONDS = 2.0  # a hub that takes longer to reply cannot be reached


def copy_without_network(name: str, revision: str | None = None) -> Path | None:
    """The folder of a model or adapter in the hub's cache; None if the hub can be asked for it.

    With HF_HUB_OFFLINE the result is None: the hub's client then asks nobody.

    Raises:
        OSError: the hub cannot be reached, and its cache has no copy.
    """
    from huggingface_hub import is_offline_mode, snapshot_download

    if is_offline_mode() or not (why := _unreachable()):
        return None
    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except (OSError, ValueError):
        raise OSError(f"the hub cannot be reached, and its cache has no copy; {why}") from None


def _unreachable() -> str:
    """Why the hub cannot be reached; "" if it can."""
    from huggingface_hub import constants

    found: list[str] = []

    def ask() -> None:
        try:
            # The address is one that the user's own environment sets.
            urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=SECONDS).close()  # nosec B310
            found.append("")
        except (HTTPError, HTTPException):  # a reply, whatever it says
            found.append("")
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            # Its client may know a certificate that we do not.
            found.append("" if isinstance(reason, SSLError) else str(reason).partition("\n")[0][:100])

    asking = Thread(target=ask, daemon=True)  # looking up the host's name knows no time limit
    asking.start()
    asking.join(SECONDS)
    return found[0] if found else f"no reply within {SECONDS:g} s"
