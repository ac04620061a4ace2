"""Anyone's predictions as they come: one reader for the forms of rows that people have.

| form | question | gold answer | output |
|---|---|---|---|
| our records, and plain rows | `question` | `answer` | `output` |
| predictions of the authors' code | `messages` | `answer` | `model_output` |
| samples of lm-eval | `doc` | `target` | the first text of `resps` |
| messages (`role`, `content`) | `messages`, the user's last | `answer` | the assistant's last |
| sharegpt (`from`, `value`) | `conversations`, the human's last | `answer` | the gpt's last |

Each is a line of a JSONL file, or an item of one JSON array.
"""

import math
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

from tokenskip_lib.core.store import PIPE, read_json_rows
from tokenskip_lib.problems.grading import last_boxed

FORMS = (
    "a row has an output (output, model_output, resps, messages or conversations) and its gold answer (answer or "
    "target)"
)
_ASKS, _ANSWERS = ("user", "human"), ("assistant", "gpt", "model")


class GivenAnswer(NamedTuple):
    """One model's answer to one problem, with what the row says of it.

    Attributes:
        id: the row's own; "" if it has none.
        question: "" if the row does not show it.
        gold: the gold answer, without the worked solution before it.
        output: the whole text.
        method: "" if the row names none.
        ratio: None if the row names none.
        chain_tokens: as the row counts them; None if it does not.
        first_call_tokens: how many of these were spent on another call before, whose text the row does not have.
        further: samples of lm-eval beside `output`, which is the first of them.
    """

    id: str
    question: str
    gold: str
    output: str
    method: str
    ratio: float | None
    chain_tokens: int | None
    first_call_tokens: int = 0
    further: int = 0


def read_rows(source: str) -> Iterator[tuple[str, dict]]:
    """(the place that an error names, the row) of a JSONL file, of a JSON array, or of standard input for "-".

    Raises:
        InputError: no such file, or a line or item that is no JSON object.
    """
    rows = read_json_rows(sys.stdin.buffer if source == PIPE else source, array=True)
    return ((f"{source}:{number}", row) for number, row in rows)


def read_answer(row: dict) -> GivenAnswer | str:
    r"""One row of any form, or in words what it lacks.

    Example:
        >>> row = {"doc": {"question": "9 x 2?"}, "target": "9 * 2 = 18 #### 18", "resps": [["So \\boxed{18}."]]}
        >>> read_answer(row)[1:4]
        ('9 x 2?', '18', 'So \\boxed{18}.')
        >>> read_answer({"question": "9 x 2?", "output": "18"})
        "no 'answer' that is a text or a number"
    """
    talks = (row.get("messages"), row.get("conversations"))
    doc = row["doc"] if isinstance(row.get("doc"), dict) else {}
    said = (_said(turns, _ANSWERS) for turns in talks)
    output = _first(_plain(row.get("output")), _plain(row.get("model_output")), _response(row), *said)
    if output is None:
        return "no 'output' that is a text or a number"
    gold = _first(_plain(row.get("answer")), _plain(row.get("target")), _plain(doc.get("answer")))
    if gold is None or not gold.strip():
        return "no 'answer' that is a text or a number"
    asked = [_plain(place.get(name)) for place in (row, doc) for name in ("question", "problem")]
    ratio = row.get("ratio")
    if ratio is not None and (isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 <= ratio < 100):
        return "a 'ratio' that is not a small number"
    named = next((row[name] for name in ("id", "unique_id", "doc_id") if row.get(name) is not None), "")
    if _plain(named) is None:
        return "an 'id' that is neither a text nor a number"
    return GivenAnswer(
        id=str(named),
        question=_first(*asked, *(_said(turns, _ASKS) for turns in talks)) or "",
        gold=_stated(gold),
        output=output,
        method=_plain(row.get("method")) or "",
        ratio=None if ratio is None else float(ratio),
        chain_tokens=_count(row.get("cot_length" if row.get("chain_tokens") is None else "chain_tokens")),
        first_call_tokens=_count(row.get("first_call_tokens")) or 0,
        further=max(0, len(_samples(row)) - 1) if output == _response(row) else 0,
    )


def _first(*found: str | None) -> str | None:
    """The first text that is not blank; without one, the first text."""
    texts = [text for text in found if text is not None]
    return next((text for text in texts if text.strip()), texts[0] if texts else None)


def _plain(value: Any) -> str | None:
    """The value as text if it is a text or a number, else None."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    return None if isinstance(value, float) and not math.isfinite(value) else str(value)


def _count(value: Any) -> int | None:
    """The value if it can be a count of tokens, else None."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1_000_000_000 else None


def _response(row: dict) -> str | None:
    return next(iter(_samples(row)), None)


def _samples(row: dict) -> list[str]:
    """The texts of lm-eval's `resps`: a list of requests, each a list of samples. Deeper are likelihoods."""
    found = row.get("resps")
    if isinstance(found, list) and found and isinstance(found[0], list):
        found = found[0]
    texts = found if isinstance(found, list) else [found]
    return [text for text in texts if isinstance(text, str)] if texts and isinstance(texts[0], str) else []


def _said(turns: Any, roles: tuple[str, ...]) -> str | None:
    """The last turn of one side, in either of the two forms of a conversation."""
    said = None
    for turn in turns if isinstance(turns, list) else []:
        if isinstance(turn, dict) and turn.get("role", turn.get("from")) in roles:
            content = turn.get("content", turn.get("value"))
            if isinstance(content, list):  # parts, as chat services have them
                content = "".join(_plain(part.get("text")) or "" for part in content if isinstance(part, dict))
            said = _plain(content)
    return said


def _stated(gold: str) -> str:
    """The answer of a gold text: after GSM8K's "####", in MATH's last box, or all of it."""
    if "####" in gold:
        return gold.rpartition("####")[2].strip()
    boxed = last_boxed(gold)
    return boxed.content.strip() if boxed else gold
