"""Importance by name: controls, your own scores, and every published scorer built from a profile."""

import sys
from functools import partial
from itertools import count, islice

import numpy as np
import pytest

from benchmarks.classifiers import write_classifier
from tokenskip_lib.core.records import ChainText, InputError
from tokenskip_lib.core.windows import WINDOW, windows
from tokenskip_lib.models.loading import TargetModel
from tokenskip_lib.pruning.controls import FunctionScorer, RandomScorer, keep_first
from tokenskip_lib.pruning.prune import prune
from tokenskip_lib.pruning.registry import SCORERS, build_scorer, check_scorers, find_scorer, register_scorer
from tokenskip_lib.pruning.spans import segment


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    corpus = ["He has 3 + 4 = 7 apples.", "She reads 12 * 5 = 60 pages in 5 days, and 9 / 3 = 3 m are left of it."]
    return write_classifier("xlm-roberta", tmp_path_factory.mktemp("classifier"), corpus, vocabulary=80)


@pytest.fixture
def profile(tiny_profile, classifier):
    importance = tiny_profile.importance.model_copy(update={"classifier": str(classifier)})
    return tiny_profile.model_copy(update={"importance": importance})


@pytest.fixture
def registry():
    """The list of scorers, put back afterwards."""
    before = dict(SCORERS)
    yield SCORERS
    SCORERS.clear()
    SCORERS.update(before)


def build(name, profile, target=None):
    target = target or TargetModel(profile.target, profile.prompts)
    return build_scorer(name, target, profile.importance, seed=profile.seed)


def with_whole_latex(profile):
    return profile.model_copy(
        update={"importance": profile.importance.model_copy(update={"whole_latex": True})},
    )


def lengths(window):
    return [[end - start for start, end in segment(chain.chain)] for chain in window]


def test_random_scores_depend_on_seed_and_chain_alone(problems, chain_of):
    chains = [chain_of(problem, "Tom has 3 apples.") for problem in problems]
    first = RandomScorer(0).score(chains)
    alone = [RandomScorer(0).score([chain])[0] for chain in reversed(chains)]
    assert first == alone[::-1]
    assert len({tuple(scored.importance) for scored in first}) == len(chains)  # same text, other ids
    other = RandomScorer(1).score(chains)
    assert all(a.importance != b.importance for a, b in zip(first, other, strict=True))
    assert all(0 <= value < 1 for scored in first for value in scored.importance)


def test_random_scores_are_spread_evenly():
    [scored] = RandomScorer(0).score([ChainText(id="long", chain="a " * 4000)])
    shares, _ = np.histogram(scored.importance, bins=4, range=(0, 1))
    assert all(900 < share < 1100 for share in shares)


def test_position_prunes_the_end_and_keeps_the_beginning(profile):
    scorer = build("position", profile)
    [scored] = scorer.score([ChainText(id="a", chain="one two three four five six seven eight")])
    assert scored.importance[0] == 1 and scored.importance[-1] == 0
    assert sorted(scored.importance, reverse=True) == scored.importance
    assert len(set(scored.importance)) == 8
    pruned = prune(scored, 0.5, count_tokens=lambda texts: [len(segment(text)) for text in texts])
    assert pruned.text == "one two three four"


@pytest.mark.parametrize(("text", "scores"), [("", []), ("one", [1.0]), ("one two", [1.0, 0.0])])
def test_position_scores_any_number_of_spans(text, scores):
    assert keep_first([ChainText(id="a", chain=text)]) == [scores]


def test_your_own_function_scores_one_number_a_span(problems, chain_of):
    scored = FunctionScorer("longest", lengths).score([chain_of(problem) for problem in problems])
    assert [one.id for one in scored] == [problem.id for problem in problems]
    for one, problem in zip(scored, problems, strict=True):
        assert one.text == problem.solution and one.scorer == "longest"
        assert one.importance == [end - start for start, end in segment(problem.solution)]


def test_your_own_function_may_return_arrays_or_a_generator(problems, chain_of):
    chains = [chain_of(problem) for problem in problems]
    expected = FunctionScorer("s", lengths).score(chains)
    assert FunctionScorer("s", lambda window: [np.array(row) for row in lengths(window)]).score(chains) == expected
    assert FunctionScorer("s", lambda window: (row for row in lengths(window))).score(chains) == expected


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda window: lengths(window)[:-1], "1 lists of scores for 2 chains"),
        (lambda window: [row[:-1] for row in lengths(window)], "'p0': 7 scores for 8 spans"),
        (lambda window: [[*row[:-1], float("nan")] for row in lengths(window)], "'p0': a score is not finite"),
        (lambda window: [[*row[:-1], float("-inf")] for row in lengths(window)], "'p0': a score is not finite"),
    ],
)
def test_scores_that_do_not_fit_the_spans_are_refused_with_scorer_and_chain(function, says, problems, chain_of):
    chains = [chain_of(problem, "He has 3 + 4 = 7.") for problem in problems[:2]]
    with pytest.raises(InputError) as caught:
        FunctionScorer("mine", function).score(chains)
    assert says in str(caught.value) and "'mine'" in str(caught.value) and "\n" not in str(caught.value)


def test_a_registered_score_is_available_by_name(registry, profile, problems, chain_of):
    register_scorer("longest", lengths)
    check_scorers(["longest"])
    scorer = build("longest", profile)
    [scored] = scorer.score([chain_of(problems[0])])
    assert scored.scorer == "longest" and scored.importance == lengths([chain_of(problems[0])])[0]


def test_a_registered_score_replaces_the_one_of_its_name(registry, profile):
    register_scorer("mine", lambda window: [[4.0] for _ in window])
    register_scorer("mine", lambda window: [[5.0] for _ in window])
    [scored] = build("mine", profile).score([ChainText(id="a", chain="one")])
    assert scored.importance == [5.0]


@pytest.mark.parametrize("name", SCORERS)
def test_scored_chains_come_in_the_order_they_went_in(name, profile, problems, chain_of):
    scorer = build(name, profile)
    assert scorer.name == name
    chains = [chain_of(p, p.solution * (5 - index)) for index, p in enumerate(problems)]
    for order in (chains, chains[::-1]):
        scored = scorer.score(order)
        assert [s.id for s in scored] == [c.id for c in order]
        assert [s.text for s in scored] == [c.chain for c in order]
        for one in scored:
            assert one.scorer == name and one.spans == segment(one.text) and len(one.importance) == len(one.spans)
            assert np.isfinite(one.importance).all()


@pytest.mark.parametrize("name", SCORERS)
def test_no_chains_have_no_scores(name, profile):
    assert build(name, profile).score([]) == []


@pytest.mark.parametrize("name", SCORERS)
@pytest.mark.parametrize("text", ["", " \n"])
def test_a_chain_without_a_span_has_no_scores(name, text, profile, problems, chain_of):
    scorer = build(name, profile)
    empty, other = scorer.score([chain_of(problems[0], text), chain_of(problems[1])])
    assert empty.spans == [] and empty.importance == []
    assert len(other.importance) == len(other.spans) > 0


@pytest.mark.parametrize("name", SCORERS)
def test_the_same_window_has_the_same_scores_to_the_last_digit(name, profile, problems, chain_of):
    chains = [chain_of(problem) for problem in problems]
    first, second = (build(name, profile).score(chains) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("name", SCORERS)
def test_every_scorer_can_hold_a_latex_command_together(name, profile, problems, chain_of):
    scorer = build(name, with_whole_latex(profile))
    [scored] = scorer.score([chain_of(problems[0], "So it is \\frac{36}{2} = \\boxed{18}.")])
    parts = [scored.text[start:end] for start, end in scored.spans]
    assert parts == ["So", "it", "is", "\\frac{36}{2}", "=", "\\boxed{18}", "."]
    assert len(scored.importance) == len(parts)


@pytest.mark.parametrize("name", ["random", "position"])
def test_a_control_loads_no_model(name, profile, problems, chain_of):
    target = TargetModel(profile.target)
    build(name, profile, target).score([chain_of(problems[0])])
    assert "model" not in vars(target) and "tokenizer" not in vars(target)


def test_a_classifier_that_is_not_there_is_named(profile, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    importance = profile.importance.model_copy(update={"classifier": str(tmp_path / "nowhere")})
    with pytest.raises(InputError, match=r"importance\.classifier .*nowhere"):
        build_scorer("llmlingua2", TargetModel(profile.target), importance, seed=0)


def test_windows_hold_every_chain_once_in_order():
    chains = [ChainText(id=str(i), chain="x") for i in range(2 * WINDOW + 3)]
    cut = list(windows(chains))
    assert [len(window) for window in cut] == [WINDOW, WINDOW, 3]
    assert [chain for window in cut for chain in window] == chains
    assert list(windows([])) == []


def test_windows_take_from_a_stream_no_more_than_they_need():
    taken = []

    def stream():
        for number in count():  # it never ends
            taken.append(number)
            yield ChainText(id=str(number), chain="x")

    cut = windows(stream())
    assert taken == []
    next(cut)
    assert len(taken) == WINDOW
    assert [window[0].id for window in islice(cut, 2)] == [str(WINDOW), str(2 * WINDOW)]
    assert len(taken) == 3 * WINDOW


def test_an_unknown_scorer_is_refused_with_the_nearest_name(profile):
    with pytest.raises(InputError, match="did you mean 'selective_context'"):
        check_scorers(["random", "selective_contxt"])
    with pytest.raises(InputError, match="unknown scorer 'nothing_like_it'"):
        build("nothing_like_it", profile)
    check_scorers(SCORERS)
    check_scorers([])


@pytest.mark.parametrize("name", SCORERS)
def test_a_scorer_is_one_object_that_says_what_it_reads_and_costs(name, profile, problems, chain_of):
    spec, target, passes = find_scorer(name), TargetModel(profile.target, profile.prompts), []
    assert spec.name == name and spec.description and set(spec.reads) <= {"question", "answer"}
    if spec.passes:
        target.model.register_forward_hook(lambda module, args, output: passes.append(1))
    scorer = build(name, profile, target)
    chain = chain_of(problems[0])
    unread = {field: "" for field in ("question", "answer") if field not in spec.reads}
    [scored] = scorer.score([chain.model_copy(update=unread)])
    assert scored == scorer.score([chain])[0]  # a field that is not in `reads` plays no part
    assert ("model" in vars(target)) == (spec.passes > 0)
    assert spec.classifier == (name == "llmlingua2")
    most = 2 * spec.passes * (len(scored.spans) if spec.deletes else 1)
    assert 1 <= len(passes) <= most if spec.passes else passes == []


OWN = """
from tokenskip_lib.pruning.spans import segment

NUMBER = 3

def longest(chains):
    return [[end - start for start, end in segment(chain.chain)] for chain in chains]
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """The name of a module of one's own in the working directory."""
    (tmp_path / "my_scores_of_registry.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return "my_scores_of_registry"


def test_your_own_function_is_found_by_module_and_name(own_module, profile, problems, chain_of):
    name = f"{own_module}:longest"
    check_scorers(["random", name])
    spec = find_scorer(name)
    assert (spec.name, spec.reads, spec.passes, spec.classifier) == (name, (), 0, False)
    [scored] = build(name, profile).score([chain_of(problems[0])])
    assert scored.scorer == name and scored.importance == lengths([chain_of(problems[0])])[0]
    assert name not in SCORERS


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("no_such_module_here:longest", "cannot import 'no_such_module_here'"),
        ("{}:shortest", "has no 'shortest'"),
        ("{}:NUMBER", "of type int, not a function of chains"),
        ("{}:", "has no ''"),
    ],
)
def test_your_own_function_that_is_not_there_is_one_clear_line(own_module, name, says):
    name = name.format(own_module)
    with pytest.raises(InputError) as caught:
        find_scorer(name)
    assert says in str(caught.value) and f"importance.scorer '{name}'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_name_of_the_library_cannot_be_taken():
    with pytest.raises(InputError, match="'random' is a scorer of this library"):
        register_scorer("random", lambda chains: [])


def test_own_scores_are_averaged_where_spans_are_wider(problems, chain_of):
    chain = chain_of(problems[0], "so \\frac{1}{2} left")
    wide = partial(segment, whole_latex=True)
    own = FunctionScorer("mine", lambda chains: [list(range(len(segment(c.chain)))) for c in chains], segmenter=wide)
    [scored] = own.score([chain])
    assert [scored.text[s:e] for s, e in scored.spans] == ["so", "\\frac{1}{2}", "left"]
    assert scored.importance == [0, 4, 8]
