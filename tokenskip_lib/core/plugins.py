"""Code that may be there or not: your own by name (`mypackage.module:function`), and packages that an extra brings."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

from tokenskip_lib.core.records import InputError


def is_own(name: str) -> bool:
    """Whether a name says where your own code is: `mypackage.module:function`."""
    return ":" in name


def load_own(name: str, *, setting: str) -> object:
    """Import what a name of the form `mypackage.module:function` stands for.

    The module is looked up as Python does, then in the working directory.

    Args:
        name: dotted module, a colon, an attribute of the module.
        setting: what asked for it, e.g. "importance.scorer"; it goes into the error.

    Raises:
        InputError: no such module or attribute, or the module itself fails to import.
    """
    module_name, _, attribute = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:  # the `tokenskip` script and a notebook do not look there
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except (ImportError, SyntaxError) as error:
        raise InputError(
            f"{setting} '{name}': cannot import '{module_name}' ({error}); run from the folder that holds it, "
            "or install it"
        ) from None
    try:
        return getattr(module, attribute)
    except AttributeError:
        raise InputError(f"{setting} '{name}': module '{module_name}' has no '{attribute}'") from None


def need(package: str, extra: str) -> ModuleType:
    """Import a package that comes with an extra of this library.

    Args:
        package: dotted module name, e.g. "openai".
        extra: the extra that installs it, e.g. "server".

    Raises:
        InputError: it is not installed; the message names the extra.

    Example:
        >>> need("json", "server").__name__
        'json'
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != package.partition(".")[0]:
            raise  # the package is there, and something that it needs itself is not
        raise InputError(
            f"{package} is not installed; this needs the extra '{extra}': in a checkout, pip install '.[{extra}]'"
        ) from None
