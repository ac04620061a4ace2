"""From importance to a shorter chain: the most important spans are kept at a ratio.

This module knows scores, spans and a token counter. It does not know where the scores come from. What is kept first is
in `ranking`, how kept spans become a text in `layout`, and which spans meet the ratio in `search`.
"""

from collections.abc import Sequence

import numpy as np

from tokenskip_lib.core.records import PrunedChain, ScoredChain
from tokenskip_lib.core.settings import KeepSettings
from tokenskip_lib.models.tokens import CountTokens
from tokenskip_lib.pruning.ranking import RankedLayout, Ranking, StepLayout, Together
from tokenskip_lib.pruning.search import Candidate, Search

NO_EXCEPTIONS = KeepSettings()


def prune(
    chain: ScoredChain, ratio: float, *, count_tokens: CountTokens, keep: KeepSettings = NO_EXCEPTIONS
) -> PrunedChain:
    """Keep the most important part of one chain of thought, in its original order.

    Spans are taken from the most important down, ties to the earlier span, until the target model
    would see round(ratio * T) tokens, where T is the count of the whole chain. If the next span would
    overshoot by more than a token, less important ones that fit fill the gap.

    Args:
        chain: text with S spans and S importance scores (float, higher is kept).
        ratio: fraction of target-model tokens kept, 0 < ratio <= 1 (TokenSkip's gamma).
        count_tokens: texts -> number of target-model tokens of each.
        keep: what stays whatever its score. `keep_digits` and `keep_tokens` may take the chain over its ratio.
            With `keep_operators`, operators come next, "=" the last of them, as far as the ratio has room. With
            `skip_spaces`, spaces between operators and numbers go before any span, and operators stay as numbers
            do. What is between two markers of `protect` stays to the byte. With `max_skipped`, at most so many
            neighbouring spans are left out.

    Returns:
        The pruned chain; at ratio 1.0 its text is the original's to the byte. Tokens are counted without the whitespace
        around the chain.

    Raises:
        ValueError: ratio outside (0, 1], or no span.

    Example:
        >>> from tokenskip_lib.pruning.spans import segment
        >>> text = "so Tom has 3 + 4"
        >>> chain = ScoredChain(id="a", scorer="mine", text=text, spans=segment(text), importance=[1, 4, 2, 9, 5, 8])
        >>> prune(chain, 0.5, count_tokens=lambda texts: [len(text.split()) for text in texts]).text
        '3 + 4'

    Source: TokenSkip (arXiv:2502.12067), eq. 3-4: the threshold is the (1 - ratio) quantile, so that
        the top `ratio` is kept. LLMLingua-2 thresholds words per chunk instead: see llmlingua_mode.
    """
    [pruned] = prune_many([chain], [ratio], count_tokens=count_tokens, keep=keep)
    return pruned


def prune_many(
    chains: Sequence[ScoredChain],
    ratios: Sequence[float],
    *,
    count_tokens: CountTokens,
    keep: KeepSettings = NO_EXCEPTIONS,
) -> list[PrunedChain]:
    """`prune` for many chains and ratios at once: token counts are asked for in a few large batches.

    Returns:
        Chains in order, ratios within each.
    """
    return _prune([RankedLayout(chain, keep) for chain in chains], ratios, count_tokens)


def prune_steps(
    chains: Sequence[ScoredChain],
    ratios: Sequence[float],
    *,
    count_tokens: CountTokens,
    keep: KeepSettings = NO_EXCEPTIONS,
) -> list[PrunedChain]:
    """Keep whole steps of each chain: those with the highest summed importance, down to the ratio.

    A chain keeps as many steps as come nearest to its ratio. Steps are long, so the actual ratio may be another one,
    and the record says which. See `StepLayout` for what a step is.

    Args:
        chains: scored chains; with the scorer `entropy` this is step entropy.
        ratios: as in `prune`.
        count_tokens: as in `prune`.
        keep: `skip_text` is written for each step that is left out, and its tokens count; "" writes nothing. With
            `keep_digits` every step with a number stays, and with `protect` every step that touches such a region.

    Returns:
        As `prune_many`; `kept` are spans, not steps.

    Example:
        >>> from tokenskip_lib.pruning.spans import segment
        >>> text = "3 + 4 = 7\\nSo it is seven.\\n7 * 2 = 14"
        >>> importance = [2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2]
        >>> chain = ScoredChain(id="a", scorer="mine", text=text, spans=segment(text), importance=importance)
        >>> def count_spans(texts): return [len(segment(text)) for text in texts]
        >>> keep = KeepSettings(skip_text="[SKIP]")
        >>> [pruned] = prune_steps([chain], [0.9], count_tokens=count_spans, keep=keep)
        >>> pruned.text
        '3 + 4 = 7\\n[SKIP]\\n7 * 2 = 14'

    Source: Step entropy (arXiv:2508.03346).
    """
    return _prune([StepLayout(chain, keep) for chain in chains], ratios, count_tokens)


def prune_together(
    chains: Sequence[ScoredChain],
    ratios: Sequence[float],
    *,
    count_tokens: CountTokens,
    keep: KeepSettings = NO_EXCEPTIONS,
) -> list[PrunedChain]:
    """Keep what is above a threshold on the score. All chains share the threshold, and together they meet the ratio.

    A chain with high scores keeps more than the ratio, and a chain with low scores keeps less. A chain always keeps
    its most important span. The threshold of a ratio is the lowest score of all other spans that are kept.

    Args:
        chains: scored chains, by one scorer. Its scores must be comparable between chains.
        ratios: fractions of the tokens of all chains.
        count_tokens: as in `prune`.
        keep: as in `prune`.

    Returns:
        As `prune_many`.
    """
    layouts = [RankedLayout(chain, keep) for chain in chains]
    return _prune([Together(layouts)] if layouts else [], ratios, count_tokens)


def _prune(layouts: Sequence[Ranking], ratios: Sequence[float], count_tokens: CountTokens) -> list[PrunedChain]:
    """The chains of the layouts at every ratio. Whitespace around a chain does not count as its tokens."""
    for ratio in ratios:
        if not 0 < ratio <= 1:
            raise ValueError(f"ratio must be in (0, 1], not {ratio}")
    counts = iter(count_tokens([chain.text.strip() for layout in layouts for chain in layout.chains]))
    originals = [[next(counts) for _ in layout.chains] for layout in layouts]
    piece_tokens = _count_pieces(layouts, count_tokens)
    searches = [
        Search(layout, ratio, sum(tokens), piece_tokens)
        for layout, tokens in zip(layouts, originals, strict=True)
        for ratio in ratios
        if ratio < 1
    ]
    found = iter(_run(searches, count_tokens))
    pruned = []
    for layout, tokens in zip(layouts, originals, strict=True):
        whole = Candidate([(np.arange(len(c.spans)), c.text) for c in layout.chains], tokens, sum(tokens))
        best = [next(found) if ratio < 1 else whole for ratio in ratios]
        for index, (chain, original) in enumerate(zip(layout.chains, tokens, strict=True)):
            for ratio, choice in zip(ratios, best, strict=True):
                kept, text = choice.parts[index]
                pruned.append(
                    PrunedChain(
                        id=chain.id,
                        scorer=chain.scorer,
                        ratio=ratio,
                        text=text,
                        kept=kept.tolist(),
                        tokens=choice.counts[index],
                        original_tokens=original,
                    )
                )
    return pruned


def _count_pieces(layouts: Sequence[Ranking], count_tokens: CountTokens) -> dict[str, int]:
    """Tokens of each distinct span by itself: where a search begins, and not a count that is reported."""
    distinct = sorted({piece for layout in layouts for piece in layout.pieces})
    return dict(zip(distinct, count_tokens([f" {piece}" for piece in distinct]), strict=True))


def _run(searches: Sequence[Search], count_tokens: CountTokens) -> list[Candidate]:
    """Answer what the searches ask, all together in each round, until each has its result."""
    unfinished = list(searches)
    while unfinished:
        counts = iter(count_tokens([text for search in unfinished for text in search.texts]))
        for search in unfinished:
            search.learn([next(counts) for _ in search.texts])
        unfinished = [search for search in unfinished if search.texts]
    return [search.best for search in searches if search.best is not None]
