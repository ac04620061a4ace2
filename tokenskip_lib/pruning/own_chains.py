"""Your own chains of thought, from a file or a pipe: scored, pruned, written as they come.

A few windows of chains are held at a time, whatever the length of the file. A file that is already
there goes on where it stopped, if it was made from the same chains with the same settings.
"""

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tokenskip_lib.core.processes import processes
from tokenskip_lib.core.profiles import Profile
from tokenskip_lib.core.provenance import commit, versions
from tokenskip_lib.core.records import ChainText, InputError, PrunedChain, PrunedKey, Record, ScoredChain, pruned_keys
from tokenskip_lib.core.settings import KeepSettings
from tokenskip_lib.core.store import PIPE, RecordLog, output_path, read_json_rows, write_json
from tokenskip_lib.core.windows import write_windows
from tokenskip_lib.models.loading import TargetModel
from tokenskip_lib.pruning.registry import build_pruner, build_scorer

# The settings that decide what comes out. Ratios are not among them: they are in the records' keys.
_SCORING = [
    "seed",
    "target.model",
    "target.adapter",
    "target.dtype",
    "prompts",
    "importance.scorer",
    "importance.classifier",
    "importance.classifier_dtype",
    "importance.whole_latex",
]
_PRUNING = [f"pruning.{name}" for name in ("mode", *KeepSettings.model_fields)]


def read_chains(source: str, *, reads: Sequence[str] = ()) -> Iterator[ChainText]:
    """Chains of a JSONL file, or of standard input for "-", one by one; see `check_chains`."""
    rows = read_json_rows(sys.stdin.buffer if source == PIPE else source)
    return check_chains(((f"{source}:{number}", row) for number, row in rows), reads=reads)


def check_chains(rows: Iterable[tuple[str, dict]], *, reads: Sequence[str] = ()) -> Iterator[ChainText]:
    """Rows as chains, one by one.

    A row has `id` and `chain`, and `question` and `answer` where they are known. Other fields are
    left alone, and a null counts as a missing field.

    Args:
        rows: (the place that an error names, the row).
        reads: which of `question` and `answer` must be there.

    Raises:
        InputError: a row that lacks a field or has one that is no text, an empty chain, or an id seen before.
    """
    seen = set()
    for where, row in rows:
        fields = {name: row[name] for name in ChainText.model_fields if row.get(name) is not None}
        for name in ("id", "chain", *reads):
            if fields.get(name, "") == "":
                raise InputError(f"{where}: no '{name}'; a row has id, chain, and what the scorer reads")
        for name, value in fields.items():
            if isinstance(value, bool) or not isinstance(value, str | int | float):
                raise InputError(f"{where}: {name}: a text, not {type(value).__name__}")
        chain = ChainText(**{name: str(value) for name, value in fields.items()})
        try:
            "".join([chain.id, chain.question, chain.answer, chain.chain]).encode()
        except UnicodeEncodeError as error:
            half = error.object[error.start]
            raise InputError(f"{where}: half of a surrogate pair ({half!r}); mend the text") from None
        if not chain.chain.strip():
            raise InputError(f"{where}: chain '{chain.id}' is empty; leave the row out")
        if chain.id in seen:
            raise InputError(f"{where}: id '{chain.id}' was there before; ids tell the rows apart")
        seen.add(chain.id)
        yield chain


def score_file(source: str, output: str, profile: Profile) -> None:
    """Importance of every chain by the profile's scorer: text, spans and scores out (ScoredChain records)."""
    log = _open(source, output, ScoredChain, _chosen(profile, _SCORING))
    scorer = build_scorer(profile.importance.scorer, TargetModel(profile.target), profile)
    chains = read_chains(source, reads=scorer.reads)
    _write(source, chains, log, scorer.score, lambda chain: [(chain.id, scorer.name)], label=scorer.name)


def prune_file(source: str, output: str, profile: Profile) -> None:
    """Every chain at every ratio of the profile (PrunedChain records), from one scoring."""
    log = _open(source, output, PrunedChain, _chosen(profile, [*_SCORING, *_PRUNING]))
    target = TargetModel(profile.target)
    prune_window, reads = build_pruner(target, profile), ()
    if profile.pruning.mode == "llmlingua":

        def prune(window: Sequence[ChainText]) -> list[PrunedChain]:
            pruned = prune_window(window)
            for chain_id, tokens in {chain.id: chain.tokens_cut for chain in pruned if chain.tokens_cut}.items():
                print(f"chain '{chain_id}': {tokens} tokens cut off, as llmlingua does", file=sys.stderr)
            return pruned

    else:
        scorer = build_scorer(profile.importance.scorer, target, profile)
        reads = scorer.reads

        def prune(window: Sequence[ChainText]) -> list[PrunedChain]:
            return prune_window(scorer.score(window))

    def keys(chain: ChainText) -> list[PrunedKey]:
        return pruned_keys(chain, profile.pruned_by, profile.pruning.ratios)

    _write(source, read_chains(source, reads=reads), log, prune, keys, label=profile.pruned_by)


class _Pipe:
    """Standard output in place of a RecordLog: nothing is done before, nothing is resumed."""

    def __contains__(self, key: tuple) -> bool:
        return False

    def append(self, records: Iterable[Record]) -> None:
        sys.stdout.write("".join(record.model_dump_json() + "\n" for record in records))
        sys.stdout.flush()


def _write(source: str, chains: Iterable[ChainText], log: RecordLog | _Pipe, make, keys, *, label: str) -> None:
    total = None if source == PIPE else sum(1 for _ in read_json_rows(source))
    if not write_windows(chains, log, make, keys, total=total, label=label):
        raise InputError(f"{source}: no chains in it")


def _chosen(profile: Profile, names: Sequence[str]) -> dict:
    """The settings of these names, dots between section and field."""
    values = profile.model_dump()
    sections = {name: name.partition(".") for name in names}
    return {n: values[section][field] if field else values[section] for n, (section, _, field) in sections.items()}


def _open(source: str, output: str, record_type: type[Record], settings: dict) -> RecordLog | _Pipe:
    """The output to go on with, its settings beside it in OUTPUT.settings.json.

    Raises:
        InputError: the output cannot be written, or was made from other chains or with other settings.
    """
    if processes() > 1:
        raise InputError("own chains are written by one process; give each process a file of its own")
    if output == PIPE:
        return _Pipe()
    path = output_path(source, output)
    size, digest = _digest(source)
    note = path.with_name(path.name + ".settings.json")
    if path.exists() and path.stat().st_size:
        if source == PIPE:
            raise InputError(
                f"{output}: there already, and what comes through a pipe cannot be compared with it; "
                "write to another file"
            )
        before = _read_note(note)
        if before is None:
            raise InputError(f"{output}: it is not known how this file was made; write to another file")
        differs = next((name for name in settings if before["settings"].get(name) != settings[name]), None)
        if differs is not None:
            raise InputError(f"{output}: made with other settings ({differs}); write to another file")
        # A source may have grown; what was there must be there still.
        if _digest(source, before["source_bytes"])[1] != before["source_sha256"]:
            raise InputError(f"{output}: made from other chains than {source} holds now; write to another file")
        return RecordLog(path, record_type)
    made = {
        "settings": settings,
        "source": source,
        "source_bytes": size,
        "source_sha256": digest,
        "versions": versions(),
        "commit": commit(),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(note, made)
    except OSError as error:
        raise InputError(f"{output}: cannot be written ({error.strerror})") from None
    return RecordLog(path, record_type)


def _read_note(note: Path) -> dict | None:
    try:
        made = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None
    known = isinstance(made, dict) and {"settings", "source_bytes", "source_sha256"} <= set(made)
    return made if known else None


def _digest(source: str, size: int | None = None) -> tuple[int | None, str | None]:
    """Length and sha256 of a file's first `size` bytes, all by default; (None, None) for a pipe."""
    if source == PIPE:
        return None, None
    digest, length = hashlib.sha256(), 0
    with Path(source).open("rb") as file:
        while block := file.read(1 << 20 if size is None else min(1 << 20, size - length)):
            digest.update(block)
            length += len(block)
    return length, digest.hexdigest()
