"""The rows of own chains, checked one by one: a chain, or a whole output that is split into chain and answer."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenskip_lib.core.inputs import Given, items_of, rows_of, text_of
from tokenskip_lib.core.records import ChainText, InputError, OutputChain, PrunedChain, few_of
from tokenskip_lib.core.store import PIPE, read_json_rows
from tokenskip_lib.problems.grading import has_think_tags, split_output


@dataclass
class Outputs:
    """How whole outputs are split, and what was found in them.

    Attributes:
        layout, answer_phrases: as in `split_output`.
        split: how many outputs gave a chain.
        no_answer: ids of the outputs among them that state no answer.
        no_chain: ids of outputs that have no chain. They are left out.
        tagged: ids of chains with `<think>` tags in the layout "answer", where a tag is a word like any other.
    """

    layout: str = "answer"
    answer_phrases: Sequence[str] = ()
    split: int = 0
    no_answer: list[str] = field(default_factory=list)
    no_chain: list[str] = field(default_factory=list)
    tagged: list[str] = field(default_factory=list)

    def chain_of(self, whole: ChainText) -> OutputChain | None:
        """The chain of one output, or None if the output has none; counted either way.

        Args:
            whole: a record that has the whole output in place of its chain.
        """
        parts = split_output(whole.chain, self.layout, self.answer_phrases)
        chain = parts.chain.rstrip()
        if not chain.strip():
            self.no_chain.append(whole.id)
            return None
        self.split += 1
        if parts.prediction is None:
            self.no_answer.append(whole.id)
        return OutputChain(**{**whole.model_dump(), "chain": chain, "output": whole.chain})

    def report(self) -> None:
        """Say on stderr how many outputs were split, and which of them need a look."""
        said = [f"{self.split + len(self.no_chain)} outputs"] if self.split or self.no_chain else []
        for ids, what in (
            (self.no_answer, "state no answer, and are used"),
            (self.no_chain, "have no chain, and are left out"),
            (self.tagged, "have <think> tags, which the layout 'answer' prunes like words: use the layout 'think'"),
        ):
            if ids:
                said.append(f"{len(ids)} {what} ({few_of(ids)})")
        if said:
            print("; ".join(said), file=sys.stderr)


def read_chains(source: str, *, reads: Sequence[str] = (), outputs: Outputs | None = None) -> Iterator[ChainText]:
    """Chains of a JSONL file, or of standard input for "-", one by one; see `check_chains`."""
    rows = read_json_rows(sys.stdin.buffer if source == PIPE else source)
    return check_chains(((f"{source}:{number}", row) for number, row in rows), reads=reads, outputs=outputs)


def check_chains(
    rows: Iterable[tuple[str, dict[str, Any]]], *, reads: Sequence[str] = (), outputs: Outputs | None = None
) -> Iterator[ChainText]:
    """Rows as chains, one by one.

    A row has `id`, and `chain` or `output`, and `question` and `answer` where they are known. Other fields are left
    alone, and a null counts as a missing field. A row with a chain keeps it as it is, whatever its output. There is one
    exception: in the layout `think`, a chain with a `<think>` or `</think>` tag is taken for the whole output.

    Args:
        rows: (the place that an error names, the row).
        reads: which of `question` and `answer` must be there.
        outputs: the layout of whole outputs; it receives their counts.

    Yields:
        ChainText for a chain, OutputChain for the chain of a whole output. An output without a chain is left out.

    Raises:
        InputError: a row that lacks a field or has one that is neither text nor number, an empty chain, or an id seen
            before.
    """
    outputs = outputs or Outputs()
    seen: set[str] = set()
    for where, row in rows:
        text = "output" if row.get("chain") is None and row.get("output") is not None else "chain"
        fields = {name: row[name] for name in ("id", "question", "answer", text) if row.get(name) is not None}
        for name in ("id", *reads):
            if fields.get(name, "") == "":
                raise InputError(f"{where}: no '{name}'; a row has id, chain or output, and what the scorer reads")
        if text not in fields:
            raise InputError(f"{where}: no 'chain' and no 'output'; a row has one of the two")
        texts = {name: text_of(value, f"{where}: {name}") for name, value in fields.items()}
        chain = ChainText(**{"chain" if name == text else name: value for name, value in texts.items()})
        if text == "chain" and not chain.chain.strip():
            raise InputError(f"{where}: chain '{chain.id}' is empty; leave the row out")
        if chain.id in seen:
            raise InputError(f"{where}: id '{chain.id}' was there before; ids tell the rows apart")
        seen.add(chain.id)
        tagged = has_think_tags(chain.chain)
        if tagged and outputs.layout != "think":
            outputs.tagged.append(chain.id)
        if text == "chain" and not (tagged and outputs.layout == "think"):
            yield chain
        elif (split := outputs.chain_of(chain)) is not None:
            yield split


def given_chains(
    given: Given, reads: Sequence[str], layout: str, answer_phrases: Sequence[str] = ()
) -> list[ChainText]:
    """The chains that somebody gave to the Python API, checked. A record stays as it is: a Chain knows its output.

    Args:
        given: texts, dicts, rows or records.
        reads: as in `check_chains`. Bare texts have no question; a scorer that needs no answer does without.
        layout, answer_phrases: how whole outputs are split.

    Raises:
        InputError: there is no chain, or a wrong one.
    """
    items, outputs = items_of(given, name="chains"), Outputs(layout, answer_phrases)
    if "answer" not in reads and all(isinstance(item, str) for item in items):
        reads = ()
    chains = list(check_chains(rows_of(items, name="chains", text="chain"), reads=reads, outputs=outputs))
    outputs.report()
    if not chains:
        raise InputError("chains: no output has a chain")
    records = {(item.id, item.chain): item for item in items if isinstance(item, ChainText)}
    return [records.get((chain.id, chain.chain), chain) for chain in chains]


def in_outputs(pruned: Iterable[PrunedChain], chains: Mapping[str, ChainText]) -> list[PrunedChain]:
    """Pruned chains; a chain that came in a whole output has that output too, with the pruned chain in it.

    Args:
        chains: id -> the chain before it was pruned.
    """
    made = []
    for record in pruned:
        whole = chains.get(record.id)
        if isinstance(whole, OutputChain):
            record = record.model_copy(update={"output": whole.output_with(record.text)})
        made.append(record)
    return made
