"""Packages that an extra brings: one that is missing is one line that names the extra."""

import subprocess
import sys

import pytest

from tokenskip_lib.core.plugins import need
from tokenskip_lib.core.records import InputError


def test_a_missing_package_names_its_extra():
    with pytest.raises(InputError, match=r"not_there.part is not installed; .* pip install '.\[server\]'"):
        need("not_there.part", "server")
    assert need("json.decoder", "server").JSONDecoder


def test_a_package_that_lacks_something_itself_says_so(tmp_path, monkeypatch):
    (tmp_path / "half_there.py").write_text("import not_there_either")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="not_there_either"):
        need("half_there", "server")


PROFILE = "from tokenskip_lib.core.profiles import load_profile;"
USES = {
    ("openai", "server"): "from tokenskip_lib.inference.server import ServerEngine;"
    "from tokenskip_lib.core.settings import ServerSettings;"
    "ServerEngine(ServerSettings(url='http://localhost:1/v1', model='m'), None, adapted=False)",
    ("reasoning_gym", "demo"): f"{PROFILE} from tokenskip_lib.problems.sets import load_problems;"
    "load_problems(load_profile('demo'), 'test')",
    ("datasets", "demo"): f"{PROFILE} from tokenskip_lib.problems.sets import load_problems;"
    "load_problems(load_profile('qwen2.5-7b-gsm8k'), 'test')",
    ("papermill", "notebooks"): "from tokenskip_lib.experiments.notebooks import run_notebooks;"
    "run_notebooks('demo', {'run_dir': '/not/written'})",
    ("seaborn", "figures"): "import tokenskip_lib.figures.results",
    ("bpe_openai", "llmlingua"): "from tokenskip_lib.pruning.llmlingua_reader import _gpt_encoding; _gpt_encoding()",
}


def test_every_part_that_needs_an_extra_names_it(root):
    # One process for all, in which none of the packages is there: torch's import is most of the time.
    lines = ["import sys", f"sys.modules |= dict.fromkeys({[package for package, _ in USES]!r})"]
    for use in USES.values():
        lines += [
            "try:",
            f"    {use}",
            "except Exception as error:",
            "    print(type(error).__name__, error, sep=': ')",
        ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=root, capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        f"InputError: {package} is not installed; this needs the extra '{extra}': "
        f"in a checkout, pip install '.[{extra}]'"
        for package, extra in USES
    ], done.stderr
