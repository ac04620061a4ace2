"""YAML as settings are written in it: texts, numbers, booleans, lists and mappings. All else is refused by its line."""

import math
import re
from typing import Any

import yaml

from tokenskip_lib.core.records import InputError

MOST_VALUES, DEEPEST = 10_000, 50
_TAG = "tag:yaml.org,2002:"
_KINDS = ("map", "seq", "str", "int", "float", "bool", "null", "merge")
_NO_TEXT = re.compile("[\0\ud800-\udfff]")


def read_yaml(text: str, where: str) -> Any:
    """The value of a YAML text.

    Args:
        where: the file or option; it begins the error, followed by the line if there are several.

    Raises:
        InputError: it is not YAML; a value is of another kind (a date), is not of the kind that its tag names, or is
            a number that is not finite; or it is nested deeper than settings are, or aliases (`*name`) stand for more
            values than settings have.

    Example:
        >>> read_yaml("{epochs: 3, ratios: [0.5, 1]}", "--set training")
        {'epochs': 3, 'ratios': [0.5, 1]}
    """
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if root is None:
            return None
        _Check(loader, where, has_lines="\n" in text).size(root)
        return loader.construct_document(root)
    except yaml.YAMLError as error:
        raise InputError(f"{where}: not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise InputError(f"{where}: nested too deeply for settings") from None


class _Check:
    """Counts the values below a node, and raises InputError at the first that settings cannot have."""

    def __init__(self, loader: yaml.SafeLoader, where: str, *, has_lines: bool):
        self.loader = loader
        self.where = where
        self.has_lines = has_lines
        self.sizes: dict[yaml.Node, int] = {}

    def size(self, node: yaml.Node, depth: int = 0) -> int:
        """How many values a node stands for, with every alias written out."""
        if node in self.sizes:
            return self.sizes[node]
        self.sizes[node] = MOST_VALUES  # a node in itself has no end
        kind, size = node.tag.removeprefix(_TAG), 1
        if kind not in _KINDS:
            raise self._error(node, f"a value of the kind {kind}, which no setting is; for a text put it in quotes")
        if depth > DEEPEST:
            raise self._error(node, "nested too deeply for settings")
        if isinstance(node, yaml.ScalarNode):
            if kind != "merge":  # the key `<<`
                self._check_scalar(node, kind)
        elif isinstance(node, yaml.MappingNode):
            size += sum(self.size(inner, depth + 1) for pair in node.value for inner in pair)
        else:
            size += sum(self.size(inner, depth + 1) for inner in node.value)
        if size > MOST_VALUES:
            raise self._error(node, f"with its aliases (*name) it stands for more than {MOST_VALUES} values")
        self.sizes[node] = size
        return size

    def _check_scalar(self, node: yaml.ScalarNode, kind: str) -> None:
        try:
            value = self.loader.construct_object(node)
        except (ValueError, LookupError):
            raise self._error(node, f"'{node.value[:40]}' is no {kind}") from None
        if isinstance(value, float) and not math.isfinite(value):
            raise self._error(node, f"{node.value} is not a finite number")
        if isinstance(value, str) and _NO_TEXT.search(value):
            raise self._error(node, f"{value[:40]!r} has a NUL or half of a surrogate pair; mend the text")

    def _error(self, node: yaml.Node, what: str) -> InputError:
        line = f":{node.start_mark.line + 1}" if self.has_lines else ""
        return InputError(f"{self.where}{line}: {what}")
