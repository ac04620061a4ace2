"""Your own chains of thought, from a file or a pipe: scored, pruned, written as they come.

A few windows of chains are held at a time, whatever the length of the file. A file that is already
there goes on where it stopped, if it was made with the same settings.
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from tokenskip_lib.config import Profile
from tokenskip_lib.importance import build_scorer, windows
from tokenskip_lib.models import Target
from tokenskip_lib.records import ChainText, InputError, PrunedChain, Record, RecordLog, ScoredChain, read_json_rows
from tokenskip_lib.runs import commit, versions
from tokenskip_lib.stages import build_pruner

PIPE = "-"
_SETTINGS = ("seed", "target", "prompts", "importance", "pruning")  # the sections that the output depends on


def read_chains(source: str) -> Iterator[ChainText]:
    """Chains of a JSONL file, or of standard input for "-", one by one.

    A row has `id` and `chain`, and `question` and `answer` where the scorer reads them; other
    fields are left alone.

    Raises:
        InputError: a row that is not such an object, an empty chain, or an id seen before.
    """
    seen = set()
    for number, row in read_json_rows(sys.stdin.buffer if source == PIPE else source):
        where = f"{source}:{number}"
        fields = {name: row[name] for name in ChainText.model_fields if name in row}
        for missing in ("id", "chain"):
            if missing not in fields:
                raise InputError(f"{where}: no '{missing}'; a row has id, chain, and question and answer if known")
        not_text = next((name for name, value in fields.items() if not isinstance(value, str | int | float)), None)
        if not_text:
            raise InputError(f"{where}: {not_text}: a text, not {type(fields[not_text]).__name__}")
        chain = ChainText(**{name: str(value) for name, value in fields.items()})
        try:
            "".join([chain.id, chain.question, chain.answer, chain.chain]).encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"{where}: half of a surrogate pair ({error.object[error.start]!r}); mend the text"
            ) from None
        if not chain.chain.strip():
            raise InputError(f"{where}: chain '{chain.id}' is empty; leave the row out")
        if chain.id in seen:
            raise InputError(f"{where}: id '{chain.id}' was there before; ids tell the rows apart")
        seen.add(chain.id)
        yield chain


def score_file(source: str, output: str, profile: Profile) -> None:
    """Importance of every chain by the profile's scorer: text, spans and scores out (ScoredChain records)."""
    scorer = build_scorer(profile.importance.scorer, Target(profile.target), profile)
    _write(source, output, profile, ScoredChain, scorer.score, lambda chain: [(chain.id, scorer.name)])


def prune_file(source: str, output: str, profile: Profile) -> None:
    """Every chain at every ratio of the profile (PrunedChain records), from one scoring."""
    target = Target(profile.target)
    prune_window, cut = build_pruner(target, profile)
    if profile.pruning.mode == "llmlingua":
        prune = prune_window
    else:
        scorer = build_scorer(profile.importance.scorer, target, profile)

        def prune(window: Sequence[ChainText]) -> list[PrunedChain]:
            return prune_window(scorer.score(window))

    def keys(chain: ChainText) -> list[tuple]:
        return [(chain.id, profile.pruned_by, ratio) for ratio in profile.pruning.ratios]

    _write(source, output, profile, PrunedChain, prune, keys)
    for chain_id, tokens in cut.items():
        print(f"chain '{chain_id}': {tokens} tokens cut off, as llmlingua does", file=sys.stderr)


def _write(
    source: str,
    output: str,
    profile: Profile,
    record_type: type[Record],
    make: Callable[[Sequence[ChainText]], Iterable[Record]],
    keys: Callable[[ChainText], list[tuple]],
) -> None:
    """Make records of each window that is not wholly done, and write them down before the next."""
    log = None
    if output != PIPE:
        _check_settings(Path(output), profile)
        log = RecordLog(output, record_type)
    total = None if source == PIPE else sum(1 for _ in read_json_rows(source))
    with tqdm(total=total, unit="chain", desc=f"importance: {profile.pruned_by}") as bar:
        for window in windows(read_chains(source)):
            if log is None:
                sys.stdout.write("".join(record.model_dump_json() + "\n" for record in make(window)))
                sys.stdout.flush()
            elif not all(key in log for chain in window for key in keys(chain)):
                log.append(make(window))
            bar.update(len(window))


def _check_settings(output: Path, profile: Profile) -> None:
    """Write OUTPUT.settings.json, or refuse to go on with an output that was made with other settings."""
    note = output.with_name(output.name + ".settings.json")
    settings = {name: value for name, value in profile.model_dump().items() if name in _SETTINGS}
    if output.exists() and output.stat().st_size:
        before = json.loads(note.read_text(encoding="utf-8"))["settings"] if note.exists() else None
        if before != settings:
            differs = "settings that are not known" if before is None else "other settings"
            raise InputError(f"{output}: made with {differs}; remove it, or write to another file")
    output.parent.mkdir(parents=True, exist_ok=True)
    made = {"settings": settings, "versions": versions(), "commit": commit()}
    note.write_text(json.dumps(made, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
