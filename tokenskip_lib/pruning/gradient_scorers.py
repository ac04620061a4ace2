"""Importance from gradients of the answer's log-probability in the target model: GoGI and MIST."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from transformers import PreTrainedModel

from tokenskip_lib.core.records import ChainText, InputError
from tokenskip_lib.models.prompts import answer_tail
from tokenskip_lib.pruning.target_scorers import Row, TargetScorer, token_log_probs


class GoGIScorer(TargetScorer):
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
        if not chain.answer.strip():
            raise InputError(
                f"chain '{chain.id}' has no answer, and {self.name} scores what leads to it; "
                "add it, or use another scorer"
            )
        # The closing phrase, and which of its tokens are the answer's own.
        tail = answer_tail(chain.answer)
        encoded = self.tokenizer(tail, add_special_tokens=False, return_offsets_mapping=True)
        start = tail.rindex(chain.answer)
        stop = start + len(chain.answer)
        own = [index for index, (a, b) in enumerate(encoded["offset_mapping"]) if a < stop and b > max(a, start)]
        # The phrase ends each row, so the answer is counted from the row's end.
        tokens = encoded["input_ids"]
        from_begin, from_end = len(tokens) - own[0], len(tokens) - own[-1] - 1
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
        self, rows: list[Row], *, first_layer: int, layers: torch.nn.ModuleList, only_first: bool
    ) -> tuple[list[torch.Tensor], Sequence[torch.Tensor]]:
        """Hidden states after the blocks from `first_layer` on, and d log p(answer) / d each of them (or the first)."""
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
            gradients = torch.autograd.grad(likelihood, hidden[:1] if only_first else hidden)
        return hidden, gradients


class MISTScorer(GoGIScorer):
    """How necessary and how sufficient a token is for the answer: 0.6 necessity + 0.4 sufficiency.

    necessity_i = sum_l w_l <d log p(answer) / d h_i^l, h_i^l>. To first order, this is what the answer's
    log-probability loses without the state. sufficiency_i = sum_l w_l cos(h_i^l, h_last^l). It says how far
    the state already points where the state that predicts the answer points. One forward and one backward
    pass a chain.

    The paper leaves two things open. Here w_l grows linearly with depth, l = 1 .. L, and sums to 1, and each
    part is scaled to [0, 1] within the chain before they are mixed. In a pre-norm model the last two blocks
    add nothing to necessity: the last has no path to the answer, and a norm ignores a state's length.

    Source: MIST (arXiv:2608.31066) for the two parts and 0.6/0.4. Its own layer weights and scaling
        were not at hand, so this is not claimed to repeat its numbers.
    """

    name = "mist"

    def token_scores(self, window: Sequence[ChainText], chains: list[list[int]]) -> list[np.ndarray]:
        rows = [self._answered_rows(chain, ids) for chain, ids in zip(window, chains, strict=True)]
        parts = self.run_rows(rows, self._parts)  # (T, 2) a chain
        return [0.6 * _unit(part[:, 0]) + 0.4 * _unit(part[:, 1]) for part in parts]

    def _parts(self, rows: list[Row]) -> list[np.ndarray]:
        """Necessity and sufficiency of each token of each row, (T, 2) a row."""
        layers = decoder_layers(self.model)
        hidden, gradients = self._gradients(rows, first_layer=0, layers=layers, only_first=False)
        every_row = torch.arange(len(rows), device=self.model.device)
        predicting = torch.tensor([row.answer[0] - 1 for row in rows], device=self.model.device)
        shape, device = hidden[0].shape[:2], hidden[0].device
        necessity, sufficiency = torch.zeros(shape, device=device), torch.zeros(shape, device=device)
        for depth, (state, gradient) in enumerate(zip(hidden, gradients, strict=True), 1):
            state, gradient = state.detach().float(), gradient.float()
            weight = 2 * depth / (len(layers) * (len(layers) + 1))
            necessity = necessity + weight * (state * gradient).sum(-1)
            goal = state[every_row, predicting][:, None]  # the state that predicts the answer
            sufficiency = sufficiency + weight * torch.cosine_similarity(state, goal, dim=-1)
        both = torch.stack([necessity, sufficiency], -1).cpu().double().numpy()
        return [both[index, row.begin : row.end] for index, row in enumerate(rows)]


def decoder_layers(model: PreTrainedModel) -> torch.nn.ModuleList:
    """The model's blocks, first to last."""
    wanted = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == wanted:
            return module
    raise InputError(f"{type(model).__name__}: found no list of its {wanted} blocks; use another scorer")


@contextmanager
def recorded_outputs(layers: torch.nn.ModuleList, first: int) -> Iterator[list[torch.Tensor]]:
    """Record the outputs of blocks `first`, first + 1, ... of each forward pass, while the context is open.

    Gradients begin at the first of these blocks.
    """
    outputs: list[torch.Tensor] = []

    def record(layer: torch.nn.Module, _, output: torch.Tensor | tuple) -> torch.Tensor | tuple:
        state = output[0] if isinstance(output, tuple) else output
        if layer is layers[first]:
            state = state.detach().requires_grad_()
        outputs.append(state)
        return (state, *output[1:]) if isinstance(output, tuple) else state

    hooks = [layer.register_forward_hook(record) for layer in layers[first:]]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def _unit(values: np.ndarray) -> np.ndarray:
    """Values scaled to [0, 1]; equal values are all 0."""
    low, high = values.min(initial=np.inf), values.max(initial=-np.inf)
    return (values - low) / (high - low) if high > low else np.zeros_like(values)
