"""Your own chains of thought, from a file or a pipe: scored or pruned, and written as they come.

A few windows of chains are in memory at a time, whatever the length of the file. A file that is already there is
continued, if it was made from the same chains with the same settings.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from itertools import chain as joined
from typing import TYPE_CHECKING, Any, TextIO

from tqdm import tqdm

from tokenskip_lib.core.executor import Work
from tokenskip_lib.core.outputs import open_output, open_stream, source_digest
from tokenskip_lib.core.records import (
    ChainText,
    InputError,
    PrunedChain,
    PrunedKey,
    Record,
    ScoredChain,
    ScoredKey,
    printable,
    pruned_keys,
)
from tokenskip_lib.core.settings import (
    ExecutionSettings,
    ImportanceSettings,
    KeepSettings,
    PromptSettings,
    PruningSettings,
    Settings,
    pruned_by,
)
from tokenskip_lib.core.store import PIPE, R, RecordLog, RecordSink, file_errors, read_json_rows
from tokenskip_lib.core.windows import say_lost, windows, write_windows
from tokenskip_lib.pruning.own_rows import Outputs, in_outputs, read_chains
from tokenskip_lib.pruning.registry import build_pruner, build_scorer, find_scorer

if TYPE_CHECKING:
    from tokenskip_lib.models.loading import TargetModel

# The settings that decide what is in the records. Ratios are not among them: they are in the records' keys.
_TARGET = ("model", "revision", "adapter", "dtype", "attention")
_IMPORTANCE = ("scorer", "classifier", "classifier_revision", "classifier_dtype", "alpha", "whole_latex")
_PRUNING = ("mode", *KeepSettings.model_fields)


def score_file(
    source: str,
    output: str,
    target: TargetModel,
    importance: ImportanceSettings,
    *,
    seed: int = 0,
    execution: ExecutionSettings | None = None,
) -> None:
    """Write the importance of every chain of a file: text, spans and scores (ScoredChain records).

    Args:
        source: a JSONL file of chains, or "-" for standard input; see `check_chains`.
        output: a JSONL file, or "-" for standard output.
        target: the target model, whose scores these are if the scorer is one of its own.
        importance: which scorer, and how it works.
        seed: of the scorer `random`.
        execution: where the work is done; None: in this process.

    Raises:
        InputError: an unknown scorer, a bad row, an output of other chains or settings, or a missing model.
    """
    spec = find_scorer(importance.scorer)

    def open_output() -> AbstractContextManager[RecordSink[ScoredChain]]:
        return _open(source, output, ScoredChain, _scoring(target, importance, seed))

    def keys(chain: ChainText) -> list[ScoredKey]:
        return [ScoredKey(chain.id, spec.name)]

    def build() -> Work[ChainText, ScoredChain]:
        return build_scorer(importance.scorer, target, importance, seed=seed).score

    size = spec.window
    _write(
        source, open_output, spec.reads, target.prompts, build, keys, execution=execution, label=spec.name, size=size
    )


def prune_file(
    source: str,
    output: str,
    target: TargetModel,
    importance: ImportanceSettings,
    pruning: PruningSettings,
    *,
    seed: int = 0,
    execution: ExecutionSettings | None = None,
) -> None:
    """Write every chain of a file at every ratio (PrunedChain records). All ratios come from one scoring.

    Args:
        source: a JSONL file of chains, or "-" for standard input; see `check_chains`.
        output: a JSONL file, or "-" for standard output.
        target: the target model, whose tokens the ratios count.
        importance: which scorer, and how it works.
        pruning: the ratios, the mode, and what stays whatever its score.
        seed: of the scorer `random`.
        execution: where the work is done; None: in this process.

    Raises:
        InputError: an unknown scorer, a bad row, an output of other chains or settings, or a missing model.
    """
    name = pruned_by(pruning, importance)
    reads = () if pruning.mode == "llmlingua" else find_scorer(importance.scorer).reads
    made_with = {**_scoring(target, importance, seed), **_chosen("pruning", pruning, _PRUNING)}

    def open_output() -> AbstractContextManager[RecordSink[PrunedChain]]:
        if pruning.mode == "threshold" and output != PIPE:  # the chains of a window share one, so more chains change it
            made_with["the whole source, in mode threshold"] = source_digest(source)[1]
        return _open(source, output, PrunedChain, made_with)

    def keys(chain: ChainText) -> list[PrunedKey]:
        return pruned_keys(chain, name, pruning.ratios)

    build = partial(_build_pruner, target, importance, pruning, seed)
    _write(source, open_output, reads, target.prompts, build, keys, execution=execution, label=name)


def prune_rows(
    source: str, target: TargetModel, importance: ImportanceSettings, pruning: PruningSettings, *, seed: int = 0
) -> tuple[list[ChainText], list[PrunedChain]]:
    """The chains of a file, and each at every ratio: all in memory, to choose training rows from.

    Args:
        source, target, importance, pruning, seed: as in `prune_file`. Every row needs its question and answer.

    Raises:
        InputError: as `prune_file`; or a row has no question or answer.
    """
    outputs = Outputs(target.prompts.layout, target.prompts.answer_phrases)
    chains = list(read_chains(source, reads=("question", "answer"), outputs=outputs))
    outputs.report()
    if not chains:
        raise InputError(f"{source}: no chains in it")
    prune, pruned = _build_pruner(target, importance, pruning, seed), []
    with tqdm(total=len(chains), unit="chain", desc=pruned_by(pruning, importance)) as bar:
        for window in windows(chains):
            pruned += prune(window)
            bar.update(len(window))
    return chains, pruned


def _build_pruner(
    target: TargetModel, importance: ImportanceSettings, pruning: PruningSettings, seed: int
) -> Work[ChainText, PrunedChain]:
    """The function from a window of chains to these chains at every ratio."""
    prune_window = build_pruner(target, pruning, importance)
    by_llmlingua = pruning.mode == "llmlingua"
    scorer = None if by_llmlingua else build_scorer(importance.scorer, target, importance, seed=seed)

    def prune(window: Sequence[ChainText]) -> list[PrunedChain]:
        pruned = _say_what_was_cut(prune_window(window if scorer is None else scorer.score(window)))
        return in_outputs(pruned, {chain.id: chain for chain in window})

    return prune


def _say_what_was_cut(pruned: list[PrunedChain]) -> list[PrunedChain]:
    """Name the chains of which llmlingua drops tokens unseen, each once."""
    for chain_id, tokens in {chain.id: chain.tokens_cut for chain in pruned if chain.tokens_cut}.items():
        print(f"chain '{printable(chain_id)}': {tokens} tokens cut off, as llmlingua does", file=sys.stderr)
    return pruned


class _Stream:
    """A sink of records that go straight through. Nothing is done before, so nothing is resumed."""

    def __init__(self, file: TextIO, name: str):
        self.file = file
        self.name = name

    def __contains__(self, key: tuple, /) -> bool:
        return False

    def append(self, records: Iterable[Record], /) -> None:
        with file_errors(self.name):
            self.file.write("".join(record.model_dump_json() + "\n" for record in records))
            self.file.flush()


def _write(
    source: str,
    open_output: Callable[[], AbstractContextManager[RecordSink[R]]],
    reads: Sequence[str],
    prompts: PromptSettings,
    build: Callable[[], Work[ChainText, R]],
    keys: Callable[[ChainText], Sequence[tuple]],
    *,
    execution: ExecutionSettings | None,
    label: str,
    size: int | None = None,
) -> None:
    """Make and write the records of every chain that is not done. Models are loaded only if there is such a chain.

    Args:
        open_output: begins or continues the output; called once there is a chain.
        reads: which of `question` and `answer` every row must have.
        prompts: how rows that have a whole output are split (layout, answer_phrases).
        build: loads what is needed, and returns the function from a window of chains to their records.
        keys: one chain -> the keys of its records.
        size: how many chains are written together; None for the usual number.
    """
    outputs = Outputs(prompts.layout, prompts.answer_phrases)
    chains = read_chains(source, reads=reads, outputs=outputs)
    first = next(chains, None)
    if first is None:
        outputs.report()
        raise InputError(f"{source}: no chains in it")
    with open_output() as sink:
        total = None
        if source != PIPE:
            known = Outputs(prompts.layout, prompts.answer_phrases)
            done = all(key in sink for chain in read_chains(source, reads=reads, outputs=known) for key in keys(chain))
            total = sum(1 for _ in read_json_rows(source)) - len(known.no_chain)
            if done:
                print(f"{label}: all {total} chains were done before", file=sys.stderr)
                known.report()
                return
        everything = joined([first], chains)
        where = execution or ExecutionSettings()
        lost = write_windows(everything, sink, build, keys, execution=where, total=total, label=label, size=size)
    outputs.report()
    if lost:
        print(f"{label}: {say_lost(lost)}; the same command tries again", file=sys.stderr)


def _scoring(target: TargetModel, importance: ImportanceSettings, seed: int) -> dict[str, Any]:
    """The settings that decide scores, by their dotted names."""
    return {
        "seed": seed,
        **_chosen("target", target.settings, _TARGET),
        "prompts": target.prompts.model_dump(),
        **_chosen("importance", importance, _IMPORTANCE),
    }


def _chosen(section: str, settings: Settings, names: Sequence[str]) -> dict[str, Any]:
    """Some settings of a section, by their dotted names."""
    values = settings.model_dump()
    return {f"{section}.{name}": values[name] for name in names}


@contextmanager
def _open(source: str, output: str, record_type: type[R], settings: dict[str, Any]) -> Iterator[RecordSink[R]]:
    """The output to begin or to continue. Its settings are beside it, in OUTPUT.settings.json.

    Raises:
        InputError: the output cannot be written, or was made from other chains or with other settings.
    """
    stream = open_stream(output)
    if stream is not None:
        yield _Stream(stream, output)
        return
    with open_output(source, output, settings) as path:
        yield RecordLog(path, record_type)
