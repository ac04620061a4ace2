"""Importance from gradients of the answer's log-probability in the target model: GoGI and MIST."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from tokenskip_lib.core.records import ChainText, InputError
from tokenskip_lib.pruning.target_scorers import Row, TokenScorer, token_log_probs

FLOAT16_SCALE = 1024.0


class GoGIScorer(TokenScorer):
    """How much the answer depends on a token: || d log p(answer | question, chain) / d h_i ||_1.

    h_i is the token's hidden state after block max(L - 2, 0) of L (counted from 0), the late layer
    that MIST's re-run names. The graph begins there, so a chain costs one forward pass and a
    backward pass through the last block. The likelihood is of the answer's own tokens inside the
    closing phrase.

    Source: Goal-Gradient Importance (arXiv:2505.08392).
    """

    name = "gogi"

    def token_scores(self, window: Sequence[ChainText], chains: list[list[int]]) -> list[np.ndarray]:
        rows = [self._answered_rows(chain, ids) for chain, ids in zip(window, chains, strict=True)]
        return self.run_rows(rows, self._gradient_norms)

    def _answered_rows(self, chain: ChainText, ids: list[int]) -> list[Row]:
        """A chain's rows, each with the closing phrase at its end, and the place of the answer in it."""
        tokens, own = self.closing(chain)  # it ends each row, so the answer is counted from the row's end
        from_begin, from_end = len(tokens) - own.start, len(tokens) - own.stop
        return [
            replace(row, answer=(len(row.ids) - from_begin, len(row.ids) - from_end))
            for row in self.rows(chain, self.prompt_ids(chain), ids, tokens)
        ]

    def _gradient_norms(self, rows: list[Row]) -> list[np.ndarray]:
        layers = decoder_layers(self.model)
        _, [gradient] = self._gradients(rows, first_layer=max(len(layers) - 2, 0), layers=layers, only_first=True)
        norms = gradient.float().abs().sum(-1).cpu().double().numpy()
        return [norms[index, row.begin : row.end] for index, row in enumerate(rows)]

    def _gradients(
        self, rows: Sequence[Row], *, first_layer: int, layers: torch.nn.ModuleList, only_first: bool
    ) -> tuple[list[torch.Tensor], Sequence[torch.Tensor]]:
        """The states that block `first_layer` reads, those after it and each later block, and the gradients.

        The gradients are d log p(answer) / d each of the states but the one that is read, or d the first of these.
        """
        inputs = self.padded(rows)
        with torch.enable_grad(), recorded_outputs(layers, first_layer) as hidden:
            # Logits of the positions that predict answers, and no others.
            begin = min(row.answer[0] for row in rows) - 1
            columns = torch.arange(begin, inputs["input_ids"].shape[1] - 1, device=self.model.device)
            logits = self.model(**inputs, logits_to_keep=columns, use_cache=False).logits
            likelihood = logits.new_zeros(()).float()
            for index, row in enumerate(rows):
                first, last = row.answer
                predicting = logits[index, first - 1 - begin : last - 1 - begin]
                likelihood = likelihood + token_log_probs(predicting, row.ids[first:last]).sum()
            wanted = hidden[1:2] if only_first else hidden[1:]
            if logits.dtype != torch.float16:
                return hidden, torch.autograd.grad(likelihood, wanted)
            # float16 has no number below 6e-8, so small gradients are computed scaled; without, if that is too much.
            for scale in (FLOAT16_SCALE, 1.0):
                scaled = torch.autograd.grad(scale * likelihood, wanted, retain_graph=True)
                if all(gradient.isfinite().all() for gradient in scaled):
                    break
        return hidden, [gradient.float() / scale for gradient in scaled]


@dataclass(frozen=True, kw_only=True)
class PairedRow(Row):
    """A row with the chain, and the row of the same question and answer without it."""

    without: Row


class MISTScorer(GoGIScorer):
    """How much the answer needs a token's states, and how much these states alone would give it.

    h_i^l is the residual state of chain token i after block l = 1 .. L; block 1 reads h_i^0.
    - Necessity (eq. 4): phi_i^l = <d log p(a | question, chain) / d h_i^l, h_i^l>. To first order, this is what
      log p(a) loses without the state (eq. 2 sets it to zero).
    - Sufficiency (eq. 5): psi_i^l = <g^l, h_i^l - h_final^l>. A second pass reads question and answer without the
      chain. h_final^l is its state at the last position before the answer, and g^l the gradient of
      log p(a | question) there. To first order, psi is what log p(a) gains if h_i^l takes the place of h_final^l
      (eq. 3).
    - Layer weight (eq. 6): c_l is the mean over the chain's tokens of <h^l - h^(l-1), W_U[a]>, where W_U[a] is the
      answer's row of the output layer.
    - Score (eq. 7, 8): alpha * sum_l c_l |phi_i^l| + (1 - alpha) * sum_l c_l |psi_i^l|.

    A chain takes two forward and two backward passes, one pair of them without the chain. Gradients are of states,
    never of parameters.

    Choices where the paper is open:
    - Both rows end with the closing phrase, as for GoGI, and a is the answer's own tokens in it. log p(a) is the sum
      over them. With several tokens, "the last position before the answer" is before the first of them, and W_U[a] is
      the mean of their rows. The sum would multiply all scores of a chain by one number.
    - Nothing is scaled, so the larger part decides. If the chain makes the answer certain, this is sufficiency: on 60
      chains of the demo it is three million times necessity, and alpha 0.6 ranks as alpha 0 (Spearman 1.000).
    - A negative c_l stays negative (9 of the 30 blocks, on five of these chains), so scores may be negative.
    - c_l reads the residual states as they are, without the final norm.
    - If a chain exceeds the model's context, each of its rows has its own c_l.

    The paper scores in float32 with eager attention. Here states and gradients have the target model's dtype and
    attention, because the model that answers is already loaded; products and sums are float32. For the paper's
    precision set target.dtype to float32. On the same chains bfloat16 ranks nearly alike (Spearman 0.990). The
    attention kernels differ by rounding alone.

    In a pre-norm model the last two blocks add nothing to necessity: the last has no path to the answer, and a norm
    ignores a state's length.

    Args:
        alpha: the share of necessity, 0 to 1.

    Source: MIST (arXiv:2608.31066), eq. 4-8; alpha is 0.6 in all its runs.
    """

    name = "mist"

    def __init__(self, *model_and_prompts: Any, alpha: float = 0.6, **options: Any):
        super().__init__(*model_and_prompts, **options)
        self.alpha = alpha

    def token_scores(self, window: Sequence[ChainText], chains: list[list[int]]) -> list[np.ndarray]:
        rows: list[list[PairedRow]] = []
        for chain, ids in zip(window, chains, strict=True):
            [without] = self._answered_rows(chain, [])
            rows.append([PairedRow(**vars(row), without=without) for row in self._answered_rows(chain, ids)])
        return self.run_rows(rows, self._scores)

    def _scores(self, rows: Sequence[PairedRow]) -> list[np.ndarray]:
        layers = decoder_layers(self.model)
        # Without the chain: the state at the last position before the answer, and its gradient, B x D a layer.
        bare = [row.without for row in rows]
        at_answer = range(len(rows)), [row.answer[0] - 1 for row in bare]
        (_, *finals), goals = (
            [state.detach()[at_answer].float() for state in states]
            for states in self._gradients(bare, first_layer=0, layers=layers, only_first=False)
        )
        # With the chain: every state, B x T x D a layer, against these.
        hidden, gradients = self._gradients(rows, first_layer=0, layers=layers, only_first=False)
        output = self.model.get_output_embeddings().weight
        answer = torch.stack([output[row.ids[slice(*row.answer)]].float().mean(0) for row in rows])
        chain = torch.zeros(hidden[0].shape[:2], device=hidden[0].device)  # 1 / tokens at each token of the chain
        for index, row in enumerate(rows):
            chain[index, row.begin : row.end] = 1 / max(1, row.end - row.begin)
        scores, before = torch.zeros_like(chain), hidden[0].float()
        for state, gradient, final, goal in zip(hidden[1:], gradients, finals, goals, strict=True):
            state = state.detach().float()
            necessity = (state * gradient.float()).sum(-1).abs()
            sufficiency = ((state - final[:, None]) * goal[:, None]).sum(-1).abs()
            written = ((state - before) * answer[:, None]).sum(-1)
            weight = (written * chain).sum(-1, keepdim=True)
            scores += weight * (self.alpha * necessity + (1 - self.alpha) * sufficiency)
            before = state
        values = scores.cpu().double().numpy()
        return [values[index, row.begin : row.end] for index, row in enumerate(rows)]


def decoder_layers(model: PreTrainedModel) -> torch.nn.ModuleList:
    """The model's blocks, first to last."""
    wanted = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == wanted:
            return module
    raise InputError(f"{type(model).__name__}: found no list of its {wanted} blocks; use another scorer")


@contextmanager
def recorded_outputs(layers: torch.nn.ModuleList, first: int) -> Iterator[list[torch.Tensor]]:
    """Record what block `first` reads, and the outputs of it and of all later blocks, while the context is open.

    Gradients begin at the first of these outputs.
    """
    outputs: list[torch.Tensor] = []

    def record(layer: torch.nn.Module, inputs: tuple, output: torch.Tensor | tuple) -> torch.Tensor | tuple:
        state = output[0] if isinstance(output, tuple) else output
        if layer is layers[first]:
            outputs.append(inputs[0].detach())
            state = state.detach().requires_grad_()
        outputs.append(state)
        return (state, *output[1:]) if isinstance(output, tuple) else state

    hooks = [layer.register_forward_hook(record) for layer in layers[first:]]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()
