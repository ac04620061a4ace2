"""Batches of token rows: similar lengths together, results in the order of the rows."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from tokenskip_lib.core.progress import tell
from tokenskip_lib.core.records import InputError

T = TypeVar("T")


class TokenBatches:
    """Batches of rows of similar length, each at most `budget` padded tokens (or one row).

    A batch that does not fit the device's memory halves the budget for itself and all that follow.

    Args:
        budget: padded tokens of a batch; None for 512 on a CPU, where larger batches leave its caches and are
            slower, and 8192 on a GPU, which needs as many to be busy.
    """

    def __init__(self, budget: int | None, device: torch.device):
        self.budget = budget or (512 if device.type == "cpu" else 8192)

    def map(self, lengths: Sequence[int], run: Callable[[list[int]], Sequence[T]]) -> list[T]:
        """Call `run` on batches of row indices, longest rows first.

        Args:
            lengths: tokens of each of N rows.
            run: indices of one batch -> one result for each.

        Returns:
            N results, in the order of `lengths`.

        Raises:
            InputError: a single row does not fit the device's memory.
        """
        waiting = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
        results: dict[int, T] = {}
        while waiting:
            batch = waiting[: max(1, self.budget // max(1, lengths[waiting[0]]))]
            made: Sequence[T] | None = None
            try:
                made = run(batch)
            except torch.OutOfMemoryError:
                if len(batch) == 1:
                    raise InputError(
                        f"a sequence of {lengths[batch[0]]} tokens does not fit the device's memory by itself; "
                        "use a smaller model or dtype, or leave that row out"
                    ) from None
            if made is None:
                # Within `except` the error's frames would keep the failed batch's tensors, and nothing could be freed.
                self.budget = max(1, lengths[batch[0]] * len(batch) // 2)
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                continue
            results.update(zip(batch, made, strict=True))
            waiting = waiting[len(batch) :]
            tell(len(results), len(lengths), "rows")
        return [results[index] for index in range(len(lengths))]


def common_length(rows: Sequence[list[int]]) -> int:
    """The number of tokens that all rows begin with.

    Example:
        >>> common_length([[1, 2, 3, 4], [1, 2]])
        2
    """
    first, last = min(rows), max(rows)
    most = min(len(first), len(last))
    return next((i for i in range(most) if first[i] != last[i]), most)


def shared_length(rows: Sequence[list[int]]) -> int:
    """The number of tokens that all rows begin with; the last token of each row is not counted.

    Example:
        >>> shared_length([[1, 2, 3, 4], [1, 2]])
        1
    """
    return max(0, min(common_length(rows), min(map(len, rows)) - 1))
