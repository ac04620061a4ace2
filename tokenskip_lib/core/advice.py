"""What an error advises, for a person in a notebook: it has OVERRIDES and functions, and no command line."""

import re

_STAGES = "generate|score|prune|train|evaluate"
_WORDS = (
    (re.compile(r"`run --from 0?(\d)`"), r"`open_run(PROFILE, OVERRIDES, redo_from=\1)`"),
    (re.compile(rf"`(?:python -m )?tokenskip(?:_lib)? ({_STAGES})(?: [^`]*)?`"), r"`stages.\1(run)`"),
    (re.compile(r"(`(?:python -m )?tokenskip(?:_lib)? [^`]*`)"), r"\1 in a terminal"),
    (re.compile(r"the same --set\b"), "the same OVERRIDES"),
)
_SETTING = re.compile(r"--set ([\w.]+)=(\.\.\.|[^\s,;`]+)")


def for_notebook(message: str) -> str:
    """An error's line with what it advises in a notebook's words.

    Example:
        >>> for_notebook("made with another seed; `run --from 03` redoes it")
        'made with another seed; `open_run(PROFILE, OVERRIDES, redo_from=3)` redoes it'
        >>> for_notebook("made with another seed; --set run_dir=... keeps both")
        "made with another seed; OVERRIDES = {'run_dir': ...} keeps both"
        >>> for_notebook("a.jsonl: nothing there yet; run `python -m tokenskip_lib score --profile demo` first")
        'a.jsonl: nothing there yet; run `stages.score(run)` first'
    """
    for words, instead in _WORDS:
        message = words.sub(instead, message)
    return _SETTING.sub(_as_override, message)


def _as_override(setting: re.Match) -> str:
    key, value = setting.groups()
    return f"OVERRIDES = {{'{key}': {'None' if value == 'null' else value}}}"
