"""From importance to a shorter chain: the most important spans are kept at a ratio.

This module knows scores, spans and a token counter. It does not know where the scores come from. How kept spans
become a text is in `layout`; which spans meet the ratio is in `search`.
"""

from collections.abc import Sequence

import numpy as np

from tokenskip_lib.core.records import PrunedChain, ScoredChain
from tokenskip_lib.core.settings import KeepSettings
from tokenskip_lib.models.tokens import CountTokens
from tokenskip_lib.pruning.layout import Layout, RankedLayout
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
            do.

    Returns:
        The pruned chain; at ratio 1.0 its text is the original's to the byte.

    Raises:
        ValueError: ratio outside (0, 1], no span, or a score that is not finite.

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
    for ratio in ratios:
        if not 0 < ratio <= 1:
            raise ValueError(f"ratio must be in (0, 1], not {ratio}")
    layouts = [RankedLayout(chain, keep) for chain in chains]
    originals = count_tokens([chain.text for chain in chains])
    piece_tokens = _count_pieces(layouts, count_tokens)
    searches = [
        Search(layout, ratio, original, piece_tokens)
        for layout, original in zip(layouts, originals, strict=True)
        for ratio in ratios
        if ratio < 1
    ]
    found = iter(_run(searches, count_tokens))
    pruned = []
    for chain, original in zip(chains, originals, strict=True):
        whole = Candidate(np.arange(len(chain.spans)), chain.text, original)
        for ratio in ratios:
            best = next(found) if ratio < 1 else whole
            pruned.append(
                PrunedChain(
                    id=chain.id,
                    scorer=chain.scorer,
                    ratio=ratio,
                    text=best.text,
                    kept=best.kept.tolist(),
                    tokens=best.tokens,
                    original_tokens=original,
                )
            )
    return pruned


def _count_pieces(layouts: Sequence[Layout], count_tokens: CountTokens) -> dict[str, int]:
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
