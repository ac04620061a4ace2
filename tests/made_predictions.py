"""Predictions made up for tests of metrics, comparisons and curves."""

from tokenskip_lib.core.records import Prediction

ORIGINAL, HALF = ("original", 1.0), ("tokenskip", 0.5)


def prediction(name, method="original", ratio=1.0, *, right=True, tokens=100, cut_off=False, seconds=1.0):
    return Prediction(
        id=name, method=method, ratio=ratio, answer="7", output="7" if right else "8", chain="c",
        prediction="7" if right else None, is_correct=right, chain_tokens=tokens, answer_tokens=9, max_new_tokens=256,
        cut_off=cut_off, seconds=seconds,
    )  # fmt: skip


def answers_of(right: dict, tokens: dict | None = None) -> list[Prediction]:
    """Predictions from (method, ratio) -> a verdict a problem, and -> tokens a problem (100)."""
    lengths = tokens or {key: [100] * len(verdicts) for key, verdicts in right.items()}
    return [
        prediction(f"p{i}", method, ratio, right=bool(verdict), tokens=lengths[method, ratio][i])
        for (method, ratio), verdicts in right.items()
        for i, verdict in enumerate(verdicts)
    ]  # fmt: skip
