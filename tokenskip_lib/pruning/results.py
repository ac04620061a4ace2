"""Scored and pruned chains as the Python API returns them: tables in a notebook, DataFrames for the rest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tokenskip_lib.core.records import ChainText, InputError, PrunedChain, ScoredChain
from tokenskip_lib.core.results import Html, Records


class ScoredChains(Records[ScoredChain]):
    """Chains with the importance of their spans. `chains` holds the chains as they were given, by id."""

    def __init__(self, records: Iterable[ScoredChain], chains: Mapping[str, ChainText] | None = None):
        super().__init__(records)
        self.chains = dict(chains or {})
        self.by_id = {record.id: record for record in self}
        if len(self.by_id) < len(self):
            raise InputError("scored chains: two of them have one id; prune the chains of each scorer by themselves")

    def _like(self, records: list[ScoredChain]) -> ScoredChains:
        return ScoredChains(records, self.chains)

    def _cells(self, record: ScoredChain) -> dict[str, Any]:
        from tokenskip_lib.pruning.display import chain_html

        shown = Html(chain_html(record.text, record.spans, record.importance))
        return {"id": record.id, "scorer": record.scorer, "spans": len(record.spans), "chain": shown}


class PrunedChains(Records[PrunedChain]):
    """Chains at one or more ratios. `scored` holds the scored chains that they were made from."""

    def __init__(self, records: Iterable[PrunedChain], scored: ScoredChains):
        super().__init__(records)
        self.scored = scored

    def _like(self, records: list[PrunedChain]) -> PrunedChains:
        return PrunedChains(records, self.scored)

    def _fields(self, record: PrunedChain) -> dict[str, Any]:
        return {**record.model_dump(), "actual_ratio": record.actual_ratio}

    def _cells(self, record: PrunedChain) -> dict[str, Any]:
        from tokenskip_lib.pruning.display import chain_html

        whole = self.scored.by_id[record.id]
        return {
            "id": record.id,
            "ratio": record.ratio,
            "actual ratio": record.actual_ratio,
            "tokens": f"{record.tokens} of {record.original_tokens}",
            "chain": Html(chain_html(whole.text, whole.spans, kept=record.kept)),
        }
