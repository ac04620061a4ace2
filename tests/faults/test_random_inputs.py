"""A hundred thousand random inputs: each is read, graded, cut into spans or pruned, or refused in one line."""

import json

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tokenskip_lib.core.records import InputError, PrunedChain, ScoredChain
from tokenskip_lib.core.settings import KeepSettings
from tokenskip_lib.core.store import read_jsonl
from tokenskip_lib.evaluation.own_predictions import grade_file
from tokenskip_lib.problems.grading import is_correct, is_correct_by_reference, split_output
from tokenskip_lib.pruning.own_rows import read_chains
from tokenskip_lib.pruning.prune import prune_many
from tokenskip_lib.pruning.spans import segment

pytestmark = pytest.mark.faults
EXAMPLES = 25_000
LIMIT = 5000  # milliseconds an input
many = settings(
    max_examples=EXAMPLES, deadline=LIMIT, database=None, suppress_health_check=list(HealthCheck), print_blob=True
)

# fmt: off
LATEX = ["\\boxed{", "\\frac{", "\\sqrt{", "\\text{", "\\left(", "\\begin{",
         "{", "}", "}{", "(", ")", "[", "]", "&", "\\", "^", "_", "$", "%", "\\%"]
WORDS = ["1", "12", "-7", "3.5", "1,200", "=", "+", "*", "/", ",", ".", "x",
         "So", "apples", "é", "👍🏽", "####", "<think>", "</think>", "<<1+1=2>>"]
# fmt: on
OTHERS = ["the answer is ", " ", "\t", "\n", "\0", "\x1b[31m", "\u2028", "\ufeff"]
pieces = st.sampled_from(LATEX + WORDS + OTHERS)
texts = st.lists(pieces | st.text(max_size=4), max_size=40).map("".join)
answers = st.lists(pieces, max_size=8).map("".join)
outputs = texts | st.builds("{}\\boxed{{{}}}{}".format, texts, answers, texts)
fields = st.sampled_from(
    ["id", "chain", "question", "answer", "output", "target", "resps", "messages", "conversations"]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts, lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(fields | st.text(max_size=3), inner, max_size=3), max_leaves=6,
)  # fmt: skip
rows = st.dictionaries(fields, values, max_size=5).map(lambda row: json.dumps(row).encode())
lines = rows | texts.map(lambda text: text.encode("utf-8", "surrogatepass")) | st.binary(max_size=40)
torn = st.tuples(lines, st.integers(0, 60)).map(lambda given: given[0][: given[1]])
files = st.lists(lines | torn, max_size=4).map(b"\n".join)


def _one_line(call) -> bool:
    """Whether something is taken; if not, it is refused in one printable line."""
    try:
        call()
    except InputError as error:
        assert str(error).isprintable()
        return False
    return True


def _characters(texts) -> list[int]:
    return [len("".join(text.split())) for text in texts]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("random") / "rows.jsonl"


def test_reading(file, figure):
    taken = []

    @many
    @given(files)
    def read(content):
        file.write_bytes(content)
        readers = (
            lambda: list(read_chains(str(file))),
            lambda: read_jsonl(file, ScoredChain),
            lambda: read_jsonl(file, PrunedChain),
            lambda: grade_file(str(file), "/dev/null"),
        )
        taken.append(any([_one_line(reader) for reader in readers]))

    read()
    figure("random files read", f"{len(taken)}, {sum(taken)} of them taken, no traceback, none over 5 s")


def test_grading(figure):
    stated = []

    @many
    @given(outputs, answers)
    def grade(output, gold):
        prediction = split_output(output).prediction
        stated.append(prediction is not None)
        assert is_correct(prediction, gold) in (True, False) and is_correct_by_reference(output, gold) in (True, False)

    grade()
    figure(
        "random outputs graded", f"{len(stated)}, {sum(stated)} of them state an answer, no traceback, none over 5 s"
    )


def test_segmenting(figure):
    seen = []

    @many
    @given(texts, st.booleans())
    def cut(text, whole_latex):
        spans = segment(text, whole_latex=whole_latex)
        covered = {position for start, end in spans for position in range(start, end)}
        assert {position for position, character in enumerate(text) if not character.isspace()} <= covered
        seen.append(len(spans))

    cut()
    figure("random texts cut into spans", f"{len(seen)}, {sum(seen)} spans, no traceback, none over 5 s")


def test_pruning(figure):
    seen = []

    @many
    @given(texts, st.randoms(use_true_random=False), st.floats(0.01, 1), st.booleans(), st.booleans(), st.booleans())
    def shorten(text, random, ratio, keep_digits, keep_operators, skip_spaces):
        spans = segment(text)
        assume(spans)
        scored = ScoredChain(
            id="a", scorer="random", text=text, spans=spans, importance=[random.random() for _ in spans]
        )
        keep = KeepSettings(keep_digits=keep_digits, keep_operators=keep_operators, skip_spaces=skip_spaces)
        [pruned] = prune_many([scored], [ratio], keep=keep, count_tokens=_characters)
        assert pruned.tokens <= pruned.original_tokens
        assert pruned.kept is None or set(pruned.kept) <= set(range(len(spans)))
        seen.append(pruned)

    shorten()
    figure("random chains pruned", f"{len(seen)}, no traceback, none over 5 s")
