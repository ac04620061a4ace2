"""The target model's own scores: each against a plain computation of one unpadded row, whatever the batch or length."""

import copy

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from tokenskip_lib.core.records import ChainText, InputError
from tokenskip_lib.core.settings import PromptSettings
from tokenskip_lib.models.prompts import answer_tail, build_prompt
from tokenskip_lib.pruning.gradient_scorers import GoGIScorer, MISTScorer, decoder_layers, recorded_outputs
from tokenskip_lib.pruning.spans import segment
from tokenskip_lib.pruning.target_scorers import CTSScorer, SelectiveContextScorer

ALL = [SelectiveContextScorer, CTSScorer, GoGIScorer, MISTScorer]
every_scorer = pytest.mark.parametrize("scorer_class", ALL, ids=[scorer.name for scorer in ALL])
gradient_scorers = pytest.mark.parametrize("scorer_class", [GoGIScorer, MISTScorer], ids=["gogi", "mist"])


@pytest.fixture(scope="module")
def deep_model(tiny_model, tiny_tokenizer):
    """The tiny model with five blocks, so that the last but one and the first are not the same."""
    config = copy.deepcopy(tiny_model.config)
    config.num_hidden_layers, config.layer_types = 5, None
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return LlamaForCausalLM(config).eval()


@pytest.fixture(params=["tiny", "deep"])
def model(request, tiny_model, deep_model):
    return {"tiny": tiny_model, "deep": deep_model}[request.param]


@pytest.fixture
def chains(problems, chain_of) -> list[ChainText]:
    odd = problems[0].model_copy(update={"id": "odd", "answer": "\\frac{1}{2}"})
    return [*map(chain_of, problems), chain_of(odd, "× é 漢字 don't\n\n1,200 $3.50 \\frac{1}{2}")]


def encode(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def prompt_ids(tokenizer, chain: ChainText) -> list[int]:
    return encode(tokenizer, build_prompt(tokenizer, chain.question, PromptSettings()))


def log_probs(model, before: list[int], ids: list[int]) -> np.ndarray:
    """log p of each of `ids` after `before`: one row, no padding, no batch."""
    row = torch.tensor([before + ids])
    with torch.no_grad():
        logits = model(input_ids=row).logits[0].double()
    all_log_probs = torch.log_softmax(logits, -1)
    return np.array([all_log_probs[p - 1, row[0, p]].item() for p in range(len(before), len(before) + len(ids))])


def span_means(tokenizer, text: str, values) -> list[float]:
    """A plain mean of the tokens that overlap each span."""
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return [
        float(np.mean([v for v, (a, b) in zip(values, offsets, strict=True) if a < end and b > start]))
        for start, end in segment(text)
    ]


def gogi_by_hand(model, tokenizer, chain: ChainText, *, ids: list[int] | None = None) -> np.ndarray:
    """From d log p(answer) / d each block's states. Nothing is cut out of the graph: it begins at the embeddings."""
    before = prompt_ids(tokenizer, chain)
    ids = encode(tokenizer, chain.chain) if ids is None else ids
    tail = answer_tail(chain.answer)
    encoded = tokenizer(tail, add_special_tokens=False, return_offsets_mapping=True)
    opening = tail.index("\\boxed{") + len("\\boxed{")
    closing = len(tail) - len("}$")
    answer = [i for i, (a, b) in enumerate(encoded["offset_mapping"]) if a < closing and b > opening]
    row = torch.tensor([before + ids + encoded["input_ids"]])
    states = []
    hooks = [layer.register_forward_hook(lambda _, args, out: states.append(out)) for layer in model.model.layers]
    embedded = model.get_input_embeddings()(row).detach().requires_grad_()
    logits = model(inputs_embeds=embedded).logits[0]
    for hook in hooks:
        hook.remove()
    begin, end = len(before), len(before) + len(ids)
    likelihood = sum(torch.log_softmax(logits[end + i - 1], -1)[row[0, end + i]] for i in answer)
    gradients = torch.autograd.grad(likelihood, states)
    return gradients[max(len(states) - 2, 0)][0, begin:end].double().abs().sum(-1).numpy()


def test_selective_context_is_the_surprisal_of_a_plain_forward_pass(model, tiny_tokenizer, chains):
    scorer = SelectiveContextScorer(model, tiny_tokenizer, PromptSettings())
    for chain, scored in zip(chains, scorer.score(chains), strict=True):
        plain = -log_probs(model, prompt_ids(tiny_tokenizer, chain), encode(tiny_tokenizer, chain.chain))
        assert scored.importance == pytest.approx(span_means(tiny_tokenizer, chain.chain, plain), rel=1e-4, abs=1e-4)


def test_cts_is_the_difference_of_two_plain_forward_passes(model, tiny_tokenizer, chains):
    scorer = CTSScorer(model, tiny_tokenizer, PromptSettings())
    start = [tiny_tokenizer.bos_token_id]
    for chain, scored in zip(chains, scorer.score(chains), strict=True):
        ids = encode(tiny_tokenizer, chain.chain)
        condition = f"{chain.question}\n\nThe final answer is: $\\boxed{{{chain.answer}}}$\n\n"
        plain = log_probs(model, start + encode(tiny_tokenizer, condition), ids) - log_probs(model, start, ids)
        assert scored.importance == pytest.approx(span_means(tiny_tokenizer, chain.chain, plain), rel=1e-4, abs=1e-4)


def test_cts_starts_with_the_end_token_where_a_tokenizer_has_no_start_token(tiny_model, tiny_tokenizer, chains):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.bos_token = None
    [ids] = [encode(tokenizer, chains[0].chain)]
    start = [tokenizer.eos_token_id]
    condition = encode(tokenizer, f"{chains[0].question}\n\n{answer_tail(chains[0].answer).strip()}\n\n")
    plain = log_probs(tiny_model, start + condition, ids) - log_probs(tiny_model, start, ids)
    [values] = CTSScorer(tiny_model, tokenizer, PromptSettings()).token_scores(chains[:1], [ids])
    assert values == pytest.approx(plain, rel=1e-4, abs=1e-4)


def test_gogi_is_the_gradient_norm_of_the_last_block_but_one(model, tiny_tokenizer, chains):
    scorer = GoGIScorer(model, tiny_tokenizer, PromptSettings())
    for chain, scored in zip(chains, scorer.score(chains), strict=True):
        plain = gogi_by_hand(model, tiny_tokenizer, chain)
        assert plain.max() > 1e-3
        assert scored.importance == pytest.approx(span_means(tiny_tokenizer, chain.chain, plain), rel=1e-3, abs=1e-5)


@every_scorer
def test_scores_do_not_depend_on_the_batch(scorer_class, deep_model, tiny_tokenizer, problems, chain_of):
    chains = [chain_of(p, p.solution * repeat) for repeat, p in enumerate(problems, 1)]
    scorer = scorer_class(deep_model, tiny_tokenizer, PromptSettings())
    together = scorer.score(chains)
    assert [scored.id for scored in together] == [chain.id for chain in chains]
    alone = [scorer.score([chain])[0] for chain in reversed(chains)][::-1]
    one_row_batches = scorer_class(deep_model, tiny_tokenizer, PromptSettings(), batch_tokens=1).score(chains)
    for a, b, c in zip(together, alone, one_row_batches, strict=True):
        assert a.importance == pytest.approx(b.importance, rel=1e-3, abs=1e-4)
        assert a.importance == pytest.approx(c.importance, rel=1e-3, abs=1e-4)


@every_scorer
def test_the_question_is_part_of_what_the_model_knows(scorer_class, tiny_model, tiny_tokenizer, problems, chain_of):
    scorer = scorer_class(tiny_model, tiny_tokenizer, PromptSettings())
    other = problems[0].model_copy(update={"question": "What is the capital of France?"})
    here, elsewhere = scorer.score([chain_of(p, "He has 7 apples.") for p in (problems[0], other)])
    assert here.importance != pytest.approx(elsewhere.importance, rel=1e-2)


@pytest.mark.parametrize("scorer_class", ALL[1:], ids=[scorer.name for scorer in ALL[1:]])
def test_the_answer_is_part_of_the_score(scorer_class, tiny_model, tiny_tokenizer, problems, chain_of):
    scorer = scorer_class(tiny_model, tiny_tokenizer, PromptSettings())
    other = problems[0].model_copy(update={"answer": "Paris"})
    here, elsewhere = scorer.score([chain_of(p, "He has 7 apples.") for p in (problems[0], other)])
    assert here.importance != pytest.approx(elsewhere.importance, rel=1e-2)


@pytest.fixture(scope="module")
def long_chain() -> ChainText:
    text = " ".join(
        f"Step {i}: Tom has {i} apples and buys {i % 7} more, so {i} + {i % 7} = {i + i % 7}." for i in range(103)
    )
    return ChainText(id="long", question="How many apples has Tom?", answer="81", chain=text)


@pytest.fixture
def widths(tiny_model):
    """The shape of every forward pass, as they happen."""
    seen = []
    hook = tiny_model.register_forward_pre_hook(
        lambda model, args, inputs: seen.append(tuple(inputs["input_ids"].shape)), with_kwargs=True
    )
    yield seen
    hook.remove()


@every_scorer
def test_a_chain_longer_than_the_models_context_is_scored_to_its_end(
    scorer_class, tiny_model, tiny_tokenizer, long_chain, widths
):
    ids = encode(tiny_tokenizer, long_chain.chain)
    assert 2500 < len(ids) < 4000
    scorer = scorer_class(tiny_model, tiny_tokenizer, PromptSettings())
    [values] = scorer.token_scores([long_chain], [ids])
    assert len(values) == len(ids) and np.isfinite(values).all()
    assert all(0 < width <= 1024 for _, width in widths)
    [scored] = scorer.score([long_chain])
    assert scored.spans == segment(long_chain.chain) and np.isfinite(scored.importance).all()
    assert len(set(scored.importance[-40:])) > 20  # the last part has scores of its own


def test_what_fits_the_context_has_the_plain_score_and_the_rest_sees_half_a_context(
    tiny_model, tiny_tokenizer, long_chain
):
    ids, before = encode(tiny_tokenizer, long_chain.chain), prompt_ids(tiny_tokenizer, long_chain)
    room = 1024 - len(before)
    [values] = SelectiveContextScorer(tiny_model, tiny_tokenizer, PromptSettings()).token_scores([long_chain], [ids])
    assert values[:room] == pytest.approx(-log_probs(tiny_model, before, ids[:room]), rel=1e-4, abs=1e-3)
    step, first = room - room // 2, room
    while first < len(ids):
        last = min(first + step, len(ids))
        seen = log_probs(tiny_model, before + ids[last - room : first], ids[first:last])
        assert values[first:last] == pytest.approx(-seen, rel=1e-4, abs=1e-3)
        first = last


def test_gogis_first_part_of_a_long_chain_is_that_part_followed_by_the_answer(tiny_model, tiny_tokenizer, long_chain):
    ids = encode(tiny_tokenizer, long_chain.chain)
    around = len(prompt_ids(tiny_tokenizer, long_chain)) + len(encode(tiny_tokenizer, answer_tail(long_chain.answer)))
    room = 1024 - around
    [values] = GoGIScorer(tiny_model, tiny_tokenizer, PromptSettings()).token_scores([long_chain], [ids])
    plain = gogi_by_hand(tiny_model, tiny_tokenizer, long_chain, ids=ids[:room])
    assert values[:room] == pytest.approx(plain, rel=1e-3, abs=1e-5)


@every_scorer
def test_long_and_short_chains_share_a_window_without_mixing(
    scorer_class, deep_model, tiny_tokenizer, long_chain, chains
):
    scorer = scorer_class(deep_model, tiny_tokenizer, PromptSettings())
    mixed = scorer.score([chains[0], long_chain, chains[1]])
    assert [scored.id for scored in mixed] == [chains[0].id, "long", chains[1].id]
    for scored, chain in zip(mixed, (chains[0], long_chain, chains[1]), strict=True):
        assert scored.importance == pytest.approx(scorer.score([chain])[0].importance, rel=1e-3, abs=1e-3)


@every_scorer
def test_another_architecture_with_learnt_positions_never_sees_more_than_it_has(
    scorer_class, tiny_tokenizer, long_chain
):
    """GPT-2 has no position 256 here: one token too many in a row would be an IndexError."""
    config = GPT2Config(vocab_size=len(tiny_tokenizer), n_positions=256, n_embd=32, n_layer=3, n_head=4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GPT2LMHeadModel(config).eval()
    chain = long_chain.model_copy(update={"chain": long_chain.chain[:1500]})
    [scored] = scorer_class(model, tiny_tokenizer, PromptSettings()).score([chain])
    assert np.isfinite(scored.importance).all() and len(set(scored.importance)) > len(scored.importance) // 2


@every_scorer
@pytest.mark.parametrize("text", ["Seven", "7", "漢"])
def test_one_word_has_a_finite_score(scorer_class, text, tiny_model, tiny_tokenizer, problems, chain_of):
    [scored] = scorer_class(tiny_model, tiny_tokenizer, PromptSettings()).score([chain_of(problems[0], text)])
    assert len(scored.importance) == 1 and np.isfinite(scored.importance).all()


@gradient_scorers
@pytest.mark.parametrize("answer", ["", "  "])
def test_a_chain_without_answer_is_refused_by_name(
    scorer_class, answer, tiny_model, tiny_tokenizer, problems, chain_of
):
    scorer = scorer_class(tiny_model, tiny_tokenizer, PromptSettings())
    chains = [chain_of(problems[0]), chain_of(problems[1].model_copy(update={"answer": answer}))]
    with pytest.raises(InputError, match=r"^[^\n]*'p1'[^\n]*answer[^\n]*$"):
        scorer.score(chains)


@every_scorer
def test_a_question_that_fills_the_context_is_refused_by_name(
    scorer_class, tiny_model, tiny_tokenizer, problems, chain_of
):
    scorer = scorer_class(tiny_model, tiny_tokenizer, PromptSettings())
    chains = [chain_of(problems[0]), chain_of(problems[1].model_copy(update={"question": "Why? " * 600}))]
    with pytest.raises(InputError, match=r"^[^\n]*'p1'[^\n]*1024[^\n]*$"):
        scorer.score(chains)


def test_scoring_leaves_nothing_behind_in_the_model(tiny_tokenizer, tiny_model, chains):
    model = copy.deepcopy(tiny_model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for scorer_class in ALL:
        scorer_class(model, tiny_tokenizer, PromptSettings()).score(chains)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_hooks_go_even_where_a_forward_pass_fails(tiny_model):
    layers = decoder_layers(tiny_model)
    with pytest.raises(RuntimeError, match="on purpose"), recorded_outputs(layers, 0):
        raise RuntimeError("on purpose")
    assert not any(layer._forward_hooks for layer in layers)


def test_a_models_blocks_are_found_or_asked_for(tiny_model, deep_model):
    assert decoder_layers(tiny_model) is tiny_model.model.layers
    assert len(decoder_layers(deep_model)) == 5
    model = copy.deepcopy(tiny_model)
    model.model.layers = torch.nn.Sequential(*model.model.layers)
    with pytest.raises(InputError, match="2 blocks"):
        decoder_layers(model)


def test_small_gradients_are_not_lost_in_float16(deep_model, tiny_tokenizer, chains):
    faint = copy.deepcopy(deep_model)
    faint.model.norm.weight.data *= 1e-4  # gradients below what float16 can hold
    scores = {}
    for dtype in (torch.float32, torch.float16):
        scorer = GoGIScorer(copy.deepcopy(faint).to(dtype), tiny_tokenizer, PromptSettings())
        scored = scorer.score(chains)
        scores[dtype] = np.array([value for chain in scored for value in chain.importance])
    assert np.abs(scores[torch.float32]).max() < 1e-3
    assert scores[torch.float16] == pytest.approx(scores[torch.float32], rel=0.2)
