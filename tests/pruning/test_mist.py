"""MIST against its definition: one state is changed at a time, and log p(answer) is computed anew (eq. 2 and 3)."""

import copy

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from tokenskip_lib.core.records import ChainText, InputError
from tokenskip_lib.core.settings import PromptSettings
from tokenskip_lib.models.loading import TargetModel
from tokenskip_lib.models.prompts import answer_tail, build_prompt
from tokenskip_lib.pruning.gradient_scorers import MISTScorer
from tokenskip_lib.pruning.own_settings import own_settings
from tokenskip_lib.pruning.registry import build_scorer

CHAIN = "He has 3 + 4 = 7 apples."


@pytest.fixture(scope="module")
def curved(tiny_model):
    """Four blocks with large random weights: log p(answer) is a curved function of every state."""
    config = copy.deepcopy(tiny_model.config)
    config.num_hidden_layers, config.layer_types = 4, None
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def straight(curved):
    """Blocks that only average what is before them, no norm, and an output so small that softmax is linear as well."""
    model = copy.deepcopy(curved)
    for layer in model.model.layers:
        layer.input_layernorm = layer.post_attention_layernorm = torch.nn.Identity()
        layer.self_attn.q_proj.weight.data.zero_()
        layer.mlp.down_proj.weight.data.zero_()
    model.model.norm = torch.nn.Identity()
    model.lm_head.weight.data *= 1e-7
    return model


@pytest.fixture(params=["7", "\\frac{1}{2}"], ids=["short", "several tokens"])
def chain(request) -> ChainText:
    return ChainText(id="a", question="Tom has 3 apples and buys 4. How many?", answer=request.param, chain=CHAIN)


def encode(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def score(model, tokenizer, chain: ChainText, **options) -> np.ndarray:
    scorer = MISTScorer(model, tokenizer, PromptSettings(), **options)
    return scorer.token_scores([chain], [encode(tokenizer, chain.chain)])[0]


def in_float64(model):
    """A copy whose norms are float64 too; Llama's own compute in float32, whose rounding would hide small effects."""
    model = copy.deepcopy(model).double().requires_grad_(False)
    for parent in list(model.modules()):
        for name, norm in list(parent.named_children()):
            if isinstance(norm, LlamaRMSNorm):
                assert (norm.weight == 1).all()
                setattr(parent, name, torch.nn.RMSNorm(norm.weight.shape, norm.variance_epsilon, dtype=torch.float64))
    return model


class Direct:
    """log p(answer) after the prompt and some chain, in float64, with any state changed."""

    def __init__(self, model, tokenizer, chain: ChainText, text: str):
        self.model = in_float64(model)
        tail = answer_tail(chain.answer)
        prompt = encode(tokenizer, build_prompt(tokenizer, chain.question, PromptSettings()))
        encoded = tokenizer(tail, add_special_tokens=False, return_offsets_mapping=True)
        begin, end = tail.index("{") + 1, len(tail) - len("}$")
        own = [i for i, (a, b) in enumerate(encoded["offset_mapping"]) if a < end and b > begin]
        self.begin = len(prompt)
        self.end = self.begin + len(encode(tokenizer, text))
        self.ids = torch.tensor([prompt + encode(tokenizer, text) + encoded["input_ids"]])
        self.answer = [self.end + i for i in own]

    @torch.no_grad()
    def run(self, layer: int = 0, position: int = 0, state: torch.Tensor | None = None):
        """log p(answer), and the states (L + 1, T, D) of the row: what block 1 reads, then what each block writes.

        If `state` is given, it takes the place of what block `layer`, counted from 1, writes at `position`.
        """
        states = []

        def record(number):
            def hook(block, inputs, output):
                if number == 1:
                    states.append(inputs[0][0])
                if state is not None and number == layer:
                    output = output.clone()
                    output[0, position] = state
                states.append(output[0])
                return output

            return hook

        hooks = [block.register_forward_hook(record(n)) for n, block in enumerate(self.model.model.layers, 1)]
        logits = self.model(input_ids=self.ids).logits[0]
        for hook in hooks:
            hook.remove()
        own = [torch.log_softmax(logits[place - 1], -1)[self.ids[0, place]] for place in self.answer]
        return float(sum(own)), torch.stack(states)


def by_definition(model, tokenizer, chain: ChainText, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Necessity and sufficiency of each token, (T,) each, from two forward passes a token and block.

    A `share` of a state is taken away, or of a patch put in, and the effect divided by it. A share of 1 is eq. 2 and 3.
    """
    whole, bare = (Direct(model, tokenizer, chain, text) for text in (chain.chain, ""))
    (likely, states), (likely_bare, bare_states) = whole.run(), bare.run()
    last = bare.answer[0] - 1
    answer = whole.model.lm_head.weight[whole.ids[0, whole.answer]].mean(0)
    necessity, sufficiency = np.zeros(whole.end - whole.begin), np.zeros(whole.end - whole.begin)
    for layer in range(1, len(states)):
        written = states[layer, whole.begin : whole.end] - states[layer - 1, whole.begin : whole.end]
        weight = float((written @ answer).mean())
        for token in range(whole.end - whole.begin):
            state, final = states[layer, whole.begin + token], bare_states[layer, last]
            without, _ = whole.run(layer, whole.begin + token, (1 - share) * state)
            patched, _ = bare.run(layer, last, final + share * (state - final))
            necessity[token] += weight * abs(likely - without) / share
            sufficiency[token] += weight * abs(patched - likely_bare) / share
    return necessity, sufficiency


@pytest.mark.parametrize(("kind", "share"), [("curved", 1e-5), ("straight", 1.0)])
def test_both_parts_are_the_effect_of_a_small_change_of_every_state_and_of_any_change_where_all_is_linear(
    kind, share, chain, curved, straight, tiny_tokenizer
):
    model = {"curved": curved, "straight": straight}[kind]
    necessity, sufficiency = by_definition(model, tiny_tokenizer, chain, share)
    for alpha, expected in ((1.0, necessity), (0.0, sufficiency)):
        size = np.abs(expected).max()
        assert size > 0 and np.ptp(expected) > 0.1 * size  # tokens differ
        assert score(model, tiny_tokenizer, chain, alpha=alpha) == pytest.approx(expected, rel=2e-3, abs=1e-4 * size)


def test_a_large_change_of_a_curved_model_has_another_effect(chain, curved, tiny_tokenizer):
    """Else the test above could not tell a first-order term from the exact one."""
    small, large = (by_definition(curved, tiny_tokenizer, chain, share) for share in (1e-5, 1.0))
    for first_order, exact in zip(small, large, strict=True):
        assert exact != pytest.approx(first_order, rel=0.1)


def test_alpha_mixes_the_parts_and_is_a_setting(chain, tiny_target, tiny_tokenizer, tiny_model):
    alone = [score(tiny_model, tiny_tokenizer, chain, alpha=alpha) for alpha in (1.0, 0.0)]
    for overrides, alpha in (({}, 0.6), ({"importance.alpha": 0.25}, 0.25)):
        settings = own_settings(overrides={"target.dtype": "float32", **overrides}, model=str(tiny_target))
        built = build_scorer("mist", TargetModel(settings.target), settings.importance, seed=0)
        [values] = built.token_scores([chain], [encode(tiny_tokenizer, chain.chain)])
        assert values == pytest.approx(alpha * alone[0] + (1 - alpha) * alone[1], rel=1e-4)


@pytest.mark.parametrize("alpha", [-0.1, 1.01, "half"])
def test_an_alpha_outside_0_to_1_is_refused_in_one_line(alpha):
    with pytest.raises(InputError, match=r"^[^\n]*alpha[^\n]*$"):
        own_settings(overrides={"importance.alpha": alpha})


def test_the_first_row_of_a_long_chain_has_the_scores_of_that_part_alone(tiny_model, tiny_tokenizer, chain):
    scorer = MISTScorer(tiny_model, tiny_tokenizer, PromptSettings())
    ids = encode(tiny_tokenizer, " ".join(f"Step {i}: {i} + {i % 7} = {i + i % 7}." for i in range(120)))
    [[first, *others]] = [scorer._answered_rows(chain, ids)]
    room = first.end - first.begin
    assert len(others) > 1 and len(first.ids) == 1024
    [values], [part] = (scorer.token_scores([chain], [tokens]) for tokens in (ids, ids[:room]))
    assert values[:room] == pytest.approx(part, rel=1e-3, abs=1e-6)
    assert len(values) == len(ids) and np.isfinite(values).all()
