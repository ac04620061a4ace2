"""A JupyterLab of a test's own, which a browser can open."""

import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

WAIT_S = 60
SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "notebook-extension/tracker": {"windowingMode": "none"},  # every cell is in the page, not only the visible ones
}


@contextmanager
def open_lab(root: Path, folder: Path, **environment: str) -> Iterator[Callable[[str], str]]:
    """Start JupyterLab in `root`; it gives a function from a path below root to its address.

    The address opens an empty workspace: Lab would otherwise bring back the tabs of the test before.

    Args:
        folder: for Lab's own files.
        environment: variables that its kernels see.
    """
    for name, values in SETTINGS.items():
        file = folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex()
    own = {
        "HOME": folder,
        "JUPYTER_CONFIG_DIR": folder / "config",
        "JUPYTER_DATA_DIR": folder / "data",
        "JUPYTER_RUNTIME_DIR": folder / "runtime",
        "JUPYTERLAB_SETTINGS_DIR": folder / "settings",
        "JUPYTERLAB_WORKSPACES_DIR": folder / "workspaces",
        "IPYTHONDIR": folder / "ipython",
        "JUPYTER_TOKEN": token,
    }
    options = [f"--ServerApp.port={port}", "--ServerApp.port_retries=0", "--ServerApp.ip=127.0.0.1", "--allow-root"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", "--no-browser", *options, f"--ServerApp.root_dir={root}"],
            env={**os.environ, **{name: str(value) for name, value in own.items()}, **environment},
            cwd=folder,
            stdout=log,
            stderr=log,
        )
    try:
        _wait_for(server, f"http://127.0.0.1:{port}/api", folder / "log")
        yield lambda path: f"http://127.0.0.1:{port}/lab/tree/{path}?token={token}&reset"
    finally:
        server.terminate()  # it shuts its kernels down too
        try:
            server.wait(timeout=20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _wait_for(server: subprocess.Popen, address: str, log: Path) -> None:
    for _ in range(10 * WAIT_S):
        assert server.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(address, timeout=WAIT_S).close()
            return
        except urllib.error.URLError:
            time.sleep(0.1)
    pytest.fail(f"JupyterLab did not answer: {log.read_text()}")
