"""Prompts: one definition, equal in training and inference, equal to what was published."""

import copy
from types import SimpleNamespace

import pytest

from tokenskip_lib.core.records import InputError, Problem, PrunedChain
from tokenskip_lib.core.settings import PromptSettings
from tokenskip_lib.evaluation.methods import METHODS
from tokenskip_lib.evaluation.predictions import build_requests
from tokenskip_lib.models import prompts
from tokenskip_lib.models.prompts import (
    INSTRUCTION,
    answer_tail,
    build_prompt,
    encode_completion,
    encode_prompt,
    ratio_marker,
)
from tokenskip_lib.training.rows import build_sft_rows, encode_rows

QUESTION = "Tom has 3 apples and buys 4 more. How many has he?"
RATIOS = [0.5, 0.6, 0.7, 0.8, 0.9, 1.0]


@pytest.fixture(params=["tiny_tokenizer", "real_tokenizer"])
def tokenizer(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def llama3():
    """The two special tokens that the format of the reference reads from Llama 3's tokenizer."""
    return SimpleNamespace(bos_token="<|begin_of_text|>", eos_token="<|eot_id|>")


@pytest.fixture
def qwen():
    return SimpleNamespace(bos_token=None, eos_token="<|im_end|>")


@pytest.mark.parametrize(("ratio", "written"), [(0.5, "0.5"), (0.9, "0.9"), (0.25, "0.25")])
def test_the_marker_is_the_ratio_between_two_end_tokens(tokenizer, ratio, written):
    assert ratio_marker(tokenizer, ratio, PromptSettings()) == f"{tokenizer.eos_token}{written}{tokenizer.eos_token}"
    ids = encode_prompt(tokenizer, ratio_marker(tokenizer, ratio, PromptSettings()))
    assert ids[0] == ids[-1] == tokenizer.eos_token_id
    assert ids[1:-1] == tokenizer(written, add_special_tokens=False)["input_ids"]


def test_there_is_no_marker_at_1(tokenizer):
    assert ratio_marker(tokenizer, 1.0, PromptSettings()) == ""
    settings = PromptSettings()
    full = build_prompt(tokenizer, QUESTION, settings, ratio=1.0)
    assert full == build_prompt(tokenizer, QUESTION, settings)


@pytest.fixture(scope="module")
def spare_tokens(tiny_tokenizer):
    """The tiny tokenizer with nine special tokens that nothing uses."""
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": [f"<spare_{number}>" for number in range(9)]})
    return tokenizer


def test_a_token_marker_is_one_spare_special_token_a_tenth(spare_tokens):
    settings = PromptSettings(marker="token")
    markers = [ratio_marker(spare_tokens, tenth / 10, settings) for tenth in range(1, 10)]
    assert markers == [f"<spare_{number}>" for number in range(9)]
    assert all(len(encode_prompt(spare_tokens, marker)) == 1 for marker in markers)


@pytest.mark.parametrize("ratio", [0.75, 0.05])
def test_a_ratio_without_a_token_of_its_own_is_refused(spare_tokens, ratio):
    with pytest.raises(InputError, match=f"no spare special token for ratio {ratio}"):
        ratio_marker(spare_tokens, ratio, PromptSettings(marker="token"))


def test_the_models_own_special_tokens_are_no_markers(tiny_tokenizer):
    with pytest.raises(InputError, match="the tokenizer has 0"):
        ratio_marker(tiny_tokenizer, 0.1, PromptSettings(marker="token"))


def test_a_marker_in_words_says_the_percentage(tokenizer):
    assert ratio_marker(tokenizer, 0.7, PromptSettings(marker="words")) == "\nKeep 70% of your reasoning."


@pytest.mark.parametrize("marker", ["token", "words"])
def test_the_references_text_takes_no_other_marker(marker):
    with pytest.raises(ValueError, match="literal"):
        PromptSettings(format="reference_qwen", marker=marker)


@pytest.mark.parametrize("ratio", [0, -0.5, 1.5])
def test_a_marker_for_an_impossible_ratio_is_refused(tokenizer, ratio):
    with pytest.raises(ValueError):
        ratio_marker(tokenizer, ratio, PromptSettings())


def test_the_marker_follows_the_question_and_nothing_else_changes(tokenizer):
    settings = PromptSettings()
    original = build_prompt(tokenizer, QUESTION, settings)
    asked = build_prompt(tokenizer, QUESTION, settings, ratio=0.5)
    assert asked == original.replace(QUESTION, QUESTION + ratio_marker(tokenizer, 0.5, PromptSettings()))
    prompts = {build_prompt(tokenizer, QUESTION, settings, ratio=ratio) for ratio in RATIOS}
    assert len(prompts) == len(RATIOS)


@pytest.mark.parametrize("prompt_format", ["chat", "reference_qwen", "reference_llama3"])
@pytest.mark.parametrize("ratio", RATIOS)
def test_the_training_prompt_is_the_inference_prompt_to_the_token(tokenizer, prompt_format, ratio):
    settings = PromptSettings(format=prompt_format)
    problem = Problem(id="a", question=QUESTION, answer="7")
    chain = PrunedChain(id="a", scorer="s", ratio=ratio, text="3 + 4 = 7", kept=[0], tokens=5, original_tokens=9)
    [row] = build_sft_rows([chain], {"a": problem}, tokenizer, settings, held_out=0, seed=0)
    [request] = build_requests([problem], tokenizer, settings, method="tokenskip", ratio=ratio, max_new_tokens=9)
    asked = encode_prompt(tokenizer, request.prompt)
    [encoded], too_long = encode_rows([row], tokenizer, 10_000)
    assert too_long == 0
    assert row.prompt == request.prompt
    assert encoded.prompt == asked
    assert encoded.completion == encode_completion(tokenizer, row.completion)


def test_the_chat_layout_has_system_message_instruction_question_and_an_open_answer(tokenizer):
    prompt = build_prompt(tokenizer, QUESTION, PromptSettings(system="You count apples."))
    assert prompt == (
        "<|im_start|>system\nYou count apples.<|im_end|>\n"
        f"<|im_start|>user\n{INSTRUCTION}\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_qwen_format_of_the_reference_is_reproduced_exactly(qwen):
    settings = PromptSettings(format="reference_qwen")
    assert build_prompt(qwen, QUESTION, settings, ratio=0.5) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        "Please reason step by step, and put your final answer within \\boxed{}.\n"
        "Tom has 3 apples and buys 4 more. How many has he?<|eot_id|>0.5<|eot_id|><|im_end|>\n<|im_start|>assistant\n"
    )
    assert build_prompt(qwen, QUESTION, settings, ratio=1.0) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        "Please reason step by step, and put your final answer within \\boxed{}.\n"
        "Tom has 3 apples and buys 4 more. How many has he?<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("place", "system", "user"),
    [
        ("instruction", "You count.", f"{INSTRUCTION} Be concise.\n{QUESTION}"),
        ("question", "You count.", f"{INSTRUCTION}\n{QUESTION}\nBe concise."),
        ("system", "You count. Be concise.", f"{INSTRUCTION}\n{QUESTION}"),
    ],
)
def test_a_baselines_sentence_stands_where_the_profile_says(tiny_tokenizer, place, system, user):
    settings = PromptSettings(system="You count.", baseline_place=place)
    prompt = build_prompt(tiny_tokenizer, QUESTION, settings, sentence="Be concise.")
    asked = f"<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"
    assert prompt == f"<|im_start|>system\n{system}<|im_end|>\n{asked}"
    alone = build_prompt(tiny_tokenizer, QUESTION, settings)
    assert "Be concise." not in alone
    assert METHODS["truncation"].build_prompt(tiny_tokenizer, QUESTION, settings, 0.5) == alone


def test_a_sentence_may_be_the_whole_system_message(tiny_tokenizer):
    settings = PromptSettings(system="", baseline_place="system")
    prompt = METHODS["lc_prompt"].build_prompt(tiny_tokenizer, QUESTION, settings, 0.7)
    assert prompt.startswith(
        "<|im_start|>system\nPlease reduce 30% of the words in your Chain-of-Thought process.<|im_end|>"
    )
    with pytest.raises(ValueError, match="no system message"):
        PromptSettings(format="reference_llama3", baseline_place="system")


def test_the_llama_format_of_the_reference_is_reproduced_exactly(llama3):
    settings = PromptSettings(format="reference_llama3")
    assert build_prompt(llama3, QUESTION, settings, ratio=0.5) == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n"
        "Please reason step by step, and put your final answer within \\boxed{}.\n"
        "Tom has 3 apples and buys 4 more. How many has he?\n"
        "<|eot_id|>0.5<|eot_id|><|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert build_prompt(llama3, QUESTION, settings, ratio=1.0) == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n"
        "Please reason step by step, and put your final answer within \\boxed{}.\n"
        "Tom has 3 apples and buys 4 more. How many has he?\n"
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )


@pytest.mark.parametrize(
    ("method", "ratio", "sentence"),
    [
        ("be_concise", 1.0, "Be concise."),
        ("only_numbers", 1.0, "Only use numbers or equations."),
        ("abbre_words", 1.0, "Abbreviate words as much as possible."),
        ("lc_prompt", 0.5, "Please reduce 50% of the words in your Chain-of-Thought process."),
        ("lc_prompt", 0.7, "Please reduce 30% of the words in your Chain-of-Thought process."),
        ("lc_prompt", 0.9, "Please reduce 10% of the words in your Chain-of-Thought process."),
    ],
)
def test_a_baseline_adds_its_published_sentence_to_the_instruction(tiny_tokenizer, method, ratio, sentence):
    original = build_prompt(tiny_tokenizer, QUESTION, PromptSettings())
    prompt = METHODS[method].build_prompt(tiny_tokenizer, QUESTION, PromptSettings(), ratio)
    assert prompt == original.replace(INSTRUCTION, f"{INSTRUCTION} {sentence}")


def test_the_instruction_and_the_four_baselines_are_the_published_ones():
    assert INSTRUCTION == "Please reason step by step, and put your final answer within \\boxed{}."
    asking = {name for name, method in METHODS.items() if method.prompt}
    assert asking == {"be_concise", "only_numbers", "abbre_words", "lc_prompt", "word_limit", "token_limit"}


def test_truncation_asks_what_the_original_asks(tiny_tokenizer):
    original = build_prompt(tiny_tokenizer, QUESTION, PromptSettings())
    assert METHODS["truncation"].build_prompt(tiny_tokenizer, QUESTION, PromptSettings(), 0.5) == original


def test_braces_and_chat_tokens_in_a_question_are_left_as_they_are(tiny_tokenizer):
    question = "What is \\frac{1}{2} of {percent}% of {{ 8 }} {budget} {question}?"
    for method in ("tokenskip", "lc_prompt", "chain_of_draft", "tale_ep"):
        assert question in METHODS[method].build_prompt(tiny_tokenizer, question, PromptSettings(), 0.5)


def test_a_response_ends_in_the_tail_and_one_end_token(tokenizer):
    assert answer_tail("\\frac{1}{2}") == "\n\nThe final answer is: $\\boxed{\\frac{1}{2}}$"
    ids = encode_completion(tokenizer, "3 + 4 = 7" + answer_tail("7"))
    assert ids[-1] == tokenizer.eos_token_id and ids.count(tokenizer.eos_token_id) == 1
    assert tokenizer.decode(ids[:-1]) == "3 + 4 = 7\n\nThe final answer is: $\\boxed{7}$"


def test_a_request_of_its_own_words_has_neither_instruction_nor_sentence(tiny_tokenizer):
    for place in ("instruction", "question", "system"):
        settings = PromptSettings(system="You count.", baseline_place=place)
        prompt = METHODS["chain_of_draft"].build_prompt(tiny_tokenizer, QUESTION, settings, 1.0)
        draft = METHODS["chain_of_draft"].system
        asked = f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
        assert prompt == f"<|im_start|>system\n{draft}<|im_end|>\n{asked}"


def test_without_a_system_message_a_methods_own_stands_before_the_question(tiny_tokenizer, llama3):
    draft = METHODS["chain_of_draft"].system
    plain = METHODS["chain_of_draft"].build_prompt(tiny_tokenizer, QUESTION, PromptSettings(system=""), 1.0)
    assert plain == f"<|im_start|>user\n{draft}\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    literal = METHODS["chain_of_draft"].build_prompt(llama3, QUESTION, PromptSettings(format="reference_llama3"), 1.0)
    assert f"user<|end_header_id|>\n\n{draft}\n{QUESTION}<|eot_id|>" in literal


def test_the_second_call_states_the_budget_of_the_first_or_none(tiny_tokenizer):
    tale, settings = METHODS["tale_ep"], PromptSettings()
    first = tale.build_first_prompt(tiny_tokenizer, QUESTION, settings)
    assert f'Below is the question:\n\nQuestion: "{QUESTION}"<|im_end|>' in first
    stated = tale.build_prompt(tiny_tokenizer, QUESTION, settings, 1.0, budget=12)
    silent = tale.build_prompt(tiny_tokenizer, QUESTION, settings, 1.0)
    assert f"<|im_start|>user\nQ: {QUESTION}\nPlease Give" in stated
    assert stated.replace(" and use less than 12 tokens:", ":") == silent


# Templates of other models.

TURNS = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</{{ m['role'] }}>{% endfor %}<assistant>"
NO_SYSTEM = {
    # Gemma's and older Mistrals' refuse a system message, and others leave it out.
    "refused": "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}",
    "alternating": "{% if messages[0]['role'] != 'user' %}{{ raise_exception('must alternate') }}{% endif %}",
    "left out": "{% set messages = messages | selectattr('role', 'equalto', 'user') %}",
}


@pytest.fixture
def with_template(tiny_tokenizer):
    """A function of a chat template -> the tiny tokenizer with it."""

    def make(template):
        tokenizer = copy.deepcopy(tiny_tokenizer)
        tokenizer.chat_template, tokenizer.name_or_path = template, "some/model"
        prompts._say_folded.cache_clear()
        return tokenizer

    return make


@pytest.mark.parametrize("start", NO_SYSTEM.values(), ids=NO_SYSTEM.keys())
def test_without_a_system_role_the_users_turn_begins_with_the_system_message_and_it_is_said_once(
    with_template, capsys, start
):
    tokenizer = with_template(start + TURNS)
    for question in (QUESTION, "And now?"):
        prompt = build_prompt(tokenizer, question, PromptSettings(system="You count."))
        assert prompt == f"<user>You count.\n{INSTRUCTION}\n{question}</user><assistant>"
    [said] = capsys.readouterr().err.splitlines()
    assert said.startswith("some/model: its chat template has no system message")
    alone = build_prompt(tokenizer, QUESTION, PromptSettings(system=""))
    assert alone == f"<user>{INSTRUCTION}\n{QUESTION}</user><assistant>" and not capsys.readouterr().err


def test_a_template_that_trims_or_repeats_messages_is_left_as_it_is(with_template, capsys):
    trims = TURNS.replace("m['content']", "m['content'] | trim")
    settings = PromptSettings(system=" You count. ")
    prompt = build_prompt(with_template(trims), QUESTION, settings)
    assert prompt == f"<system>You count.</system><user>{INSTRUCTION}\n{QUESTION}</user><assistant>"
    upper = build_prompt(with_template(TURNS.replace("m['content']", "m['content'] | upper")), QUESTION, settings)
    assert upper.startswith("<system> YOU COUNT. </system><user>PLEASE REASON")
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (None, "no chat template; add the file chat_template.jinja"),
        ("", "no chat template; add the file chat_template.jinja"),
        ("{% for m in messages %}", "TemplateSyntaxError"),
        ("{{ messages[0]['content'] + 1 }}", "TypeError"),
        ("{{ messages[7]['content'].strip() }}", "UndefinedError"),
        ("{{ raise_exception('for\nno one') }}", "TemplateError: for no one"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("You are a model.", "it leaves the user's message out"),
        ({"tool_use": TURNS}, "ValueError"),
    ],
)
def test_a_template_that_is_missing_or_broken_is_one_line(with_template, template, said):
    with pytest.raises(InputError) as caught:
        build_prompt(with_template(template), QUESTION, PromptSettings())
    assert str(caught.value).startswith("some/model: ") and said in str(caught.value)
    assert str(caught.value).isprintable()


def test_the_references_text_needs_no_template(with_template):
    tokenizer = with_template(None)
    assert QUESTION in build_prompt(tokenizer, QUESTION, PromptSettings(format="reference_qwen"))
