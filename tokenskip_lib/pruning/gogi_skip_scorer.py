"""GoGI-Skip's adaptive threshold as a score: gradients of the answer, and the target model's uncertainty."""

from collections.abc import Sequence

import numpy as np

from tokenskip_lib.core.records import ChainText
from tokenskip_lib.pruning.display import importance_ranks
from tokenskip_lib.pruning.gradient_scorers import GoGIScorer

_SPREAD = 0.5  # how much more of the tokens is kept where the target model is uncertain


class GoGISkipScorer(GoGIScorer):
    """A token's rank by GoGI in its chain, from 0 to 1, plus 0.5 (1 - exp(-H_i)), with H_i its entropy in nats.

    GoGI-Skip keeps a token if its gradient is above a threshold of its own: the quantile 1 - gamma_i of the chain's
    gradients, where gamma_i, the share that is kept, grows with the target model's uncertainty at the token. With
    gamma_i = gamma_0 + 0.5 (1 - exp(-H_i)), a token passes if rank_i >= 1 - gamma_i, that is, if this score is at
    least 1 - gamma_0. So pruning by this score is pruning by that threshold, and the ratio that is asked for decides
    gamma_0. `pruning.max_skipped` is the method's limit on consecutive skips. With `pruning.mode: threshold` one
    gamma_0 holds for all chains, and a chain of which the model was uncertain keeps more.

    One forward and one backward pass as for GoGI, and one forward pass for the entropies.

    Source: Adaptive dynamic skipping (arXiv:2505.08392) for a kept share that grows with the entropy, a quantile of
        GoGI scores as the threshold, and a limit on consecutive skips. The paper's own functions were not at hand:
        the form of gamma_i and its 0.5 are ours. The paper's limit also depends on the entropy around a token; ours is
        one number.
    """

    name = "gogi_skip"

    def token_scores(self, window: Sequence[ChainText], chains: list[list[int]]) -> list[np.ndarray]:
        gradients, entropies = super().token_scores(window, chains), self.entropies(window, chains)
        return [
            importance_ranks(gradient) + _SPREAD * (1 - np.exp(-entropy))
            for gradient, entropy in zip(gradients, entropies, strict=True)
        ]
