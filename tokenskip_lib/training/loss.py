"""The loss of a training step: cross-entropy of response tokens, computed a few positions at a time.

A vocabulary has tens of thousands of tokens, so the log-probabilities of all positions and their gradient are the
largest arrays of a step. In parts that fit a processor's cache, loss and gradient come from one pass over them.
"""

from __future__ import annotations

import torch

from tokenskip_lib.models.packing import IGNORED

PART = 2**20  # logits in float32 that are worked on at a time: 4 MiB


def response_loss(logits: torch.Tensor, labels: torch.Tensor, tokens: torch.Tensor | int | None = None) -> torch.Tensor:
    """Cross-entropy of response tokens, nats: their mean, or their sum over `tokens`.

    Args:
        logits: (1, R, V), of the positions that `logits_to_keep` names.
        labels: (1, N), as `pack_rows` makes them.

    Example:
        >>> logits = torch.tensor([[[0.0, 0.0]]])  # two tokens, equally likely
        >>> response_loss(logits, torch.tensor([[IGNORED, 1]]))
        tensor(0.6931)
    """
    targets = labels[labels != IGNORED]
    return _CrossEntropy.apply(logits.flatten(0, 1), targets, len(targets) if tokens is None else tokens)


class _CrossEntropy(torch.autograd.Function):
    """The sum of cross-entropies over a number, and its gradient, computed in the forward pass."""

    @staticmethod
    def forward(ctx, logits: torch.Tensor, targets: torch.Tensor, divisor: torch.Tensor | int) -> torch.Tensor:
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        size = max(1, PART // logits.shape[1])
        buffer = logits.new_empty((min(size, len(logits)), logits.shape[1]), dtype=torch.float32)
        total = buffer.new_zeros(())
        for start in range(0, len(logits), size):
            part, own = logits[start : start + size], targets[start : start + size, None]
            probabilities = torch.softmax(part, -1, dtype=torch.float32, out=buffer[: len(part)])
            highest, at = probabilities.max(-1, keepdim=True)
            # log p of the target from the likeliest token's, which is never 0.
            total += (part.gather(1, at).float() - part.gather(1, own).float() - highest.log()).sum()
            if gradient is not None:
                probabilities.scatter_add_(1, own, probabilities.new_full(own.shape, -1))
                gradient[start : start + size] = probabilities.div_(divisor)
        ctx.save_for_backward(gradient)
        return total / divisor

    @staticmethod
    def backward(ctx, upstream: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream.to(gradient.dtype), None, None
