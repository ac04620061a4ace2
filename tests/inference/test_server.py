"""The server engine against a real HTTP server on loopback that answers with the tiny model, and misbehaves."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tokenskip_lib.core.records import Chain, InputError, PredictionKey, Problem
from tokenskip_lib.core.settings import PromptSettings, ServerSettings
from tokenskip_lib.evaluation.methods import METHODS
from tokenskip_lib.experiments import stages, steps
from tokenskip_lib.experiments.chains import kept_chains
from tokenskip_lib.experiments.evaluate import compared
from tokenskip_lib.experiments.failures import note_failures
from tokenskip_lib.experiments.run import Run
from tokenskip_lib.inference import server as server_module
from tokenskip_lib.inference.engine import Request, TransformersEngine
from tokenskip_lib.inference.server import ServerEngine
from tokenskip_lib.models.prompts import build_prompt, encode_prompt
from tokenskip_lib.models.tokens import token_counter

BUDGET = 6
MODELS = ["base", "tokenskip"]


def _models(*names: str) -> dict:
    return {"object": "list", "data": [{"id": name, "object": "model"} for name in names]}


class _Server(ThreadingHTTPServer):
    """Answers /v1/completions by a function of token ids.

    `faults` maps a request's number to what goes wrong: "hang", "cut", a status, or (status, body). `fault_of` gives
    the same for a request's token ids, or None. `changed` maps a good reply to what is sent in its place.
    """

    daemon_threads = True

    def __init__(self, complete):
        self.complete, self.faults, self.counts_nothing = complete, {}, False
        self.hang_seconds = 2
        self.fault_of, self.changed, self.lists = lambda ids: None, lambda reply: reply, (200, _models(*MODELS))
        self.bodies, self.running, self.most = [], 0, 0
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def _send(self, body: dict | bytes, status: int = 200) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if status in (429, 503):
            self.send_header("Retry-After-Ms", "1")
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        status, body = self.server.lists
        self._send(body, status)

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            number = len(server.bodies)
            server.bodies.append(body)
            server.running += 1
            server.most = max(server.most, server.running)
        try:
            fault = server.faults.get(number) or server.fault_of(body["prompt"])
            if fault == "hang":
                time.sleep(server.hang_seconds)
                self.close_connection = True
            elif fault == "cut":
                self.close_connection = True
            elif isinstance(fault, tuple):
                self._send(fault[1], fault[0])
            elif fault:
                self._send({"error": {"message": "no luck", "type": "test"}}, fault)
            else:
                text, tokens, cut_off = server.complete(body["prompt"], body["max_tokens"])
                choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": "length" if cut_off else "stop"}
                made = tokens + (not cut_off)
                usage = {"prompt_tokens": 1, "completion_tokens": made, "total_tokens": 1 + made}
                self._send(server.changed({
                    "id": "x", "object": "text_completion", "created": 0, "model": body["model"],
                    "choices": [choice], "usage": None if server.counts_nothing else usage,
                }))  # fmt: skip
        finally:
            with server.lock:
                server.running -= 1


@pytest.fixture
def requests(problems, tiny_tokenizer):
    return [
        Request((p.id, "original", 1.0), build_prompt(tiny_tokenizer, p.question, PromptSettings()), BUDGET)
        for p in problems
    ]


@pytest.fixture
def expected(tiny_model, tiny_tokenizer, requests):
    engine = TransformersEngine(tiny_model, tiny_tokenizer, 1)
    return {g.key: (g.text, g.tokens, g.cut_off) for batch in engine.generate(requests) for g in batch}


@pytest.fixture
def no_pause(monkeypatch):
    """Tries again at once, whatever the server asks for."""
    monkeypatch.setattr(server_module, "_pause", lambda *_: 0.0)


@pytest.fixture
def server(tiny_model, tiny_tokenizer):
    engine, lock = TransformersEngine(tiny_model, tiny_tokenizer, 1), threading.Lock()

    def complete(ids, budget):
        with lock:
            [made] = engine._decode([Request("x", "", budget)], [ids])
        return made.text, made.tokens, made.cut_off

    server = _Server(complete)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def _engine(server, tokenizer, **settings) -> ServerEngine:
    settings = {"concurrency": 3, "retries": 3, "timeout": 30, **settings}
    failed = settings.pop("failed", None)
    return ServerEngine(
        ServerSettings(url=server.url, model="base", **settings), tokenizer, adapted=False, failed=failed
    )


def _answers(engine, requests, **options):
    made = [batch for batch in engine.generate(requests, label="test", **options)]
    assert all(len(batch) == 1 for batch in made)
    return {g.key: (g.text, g.tokens, g.cut_off) for [g] in made}


def test_answers_are_those_of_the_model_behind_it_and_prompts_are_ours_to_the_token(
    server, tiny_tokenizer, requests, expected
):
    assert _answers(_engine(server, tiny_tokenizer), requests) == expected
    sent = sorted(body["prompt"] for body in server.bodies)
    assert sent == sorted(encode_prompt(tiny_tokenizer, r.prompt) for r in requests)
    assert all(b["temperature"] == 0 and b["max_tokens"] == BUDGET and b["model"] == "base" for b in server.bodies)


def test_answers_of_a_server_that_counts_nothing_are_counted_here(server, requests, tiny_tokenizer):
    server.counts_nothing = True
    counted = token_counter(tiny_tokenizer)
    made = _answers(_engine(server, tiny_tokenizer), requests)
    assert len(made) == len(requests) and all(tokens == counted(text) for text, tokens, _ in made.values())


def test_no_sampling_setting_is_left_to_the_model_on_the_server(server, tiny_tokenizer, requests):
    # vLLM takes what a request leaves out from generation_config.json, e.g. Qwen's repetition_penalty of 1.05.
    _answers(_engine(server, tiny_tokenizer), requests)
    plain = {"temperature": 0, "repetition_penalty": 1, "presence_penalty": 0, "frequency_penalty": 0}
    assert all(body | plain == body for body in server.bodies)


@pytest.mark.parametrize("fault", [429, 500, 503, "cut"])
def test_a_passing_fault_is_tried_again_and_nothing_is_lost(server, tiny_tokenizer, requests, expected, fault):
    server.faults = {0: fault, 2: fault, 3: fault}
    assert _answers(_engine(server, tiny_tokenizer), requests) == expected
    assert len(server.bodies) == len(requests) + 3


def test_a_request_that_hangs_is_given_up_and_tried_again(server, tiny_tokenizer, requests, expected):
    server.faults = {1: "hang"}
    assert _answers(_engine(server, tiny_tokenizer, timeout=1), requests) == expected


def test_a_lasting_fault_ends_in_one_line_and_keeps_what_was_yielded(server, tiny_tokenizer, requests, expected):
    server.faults = dict.fromkeys(range(3, 99), 500)
    got = []
    with pytest.raises(InputError) as caught:
        for [generation] in _engine(server, tiny_tokenizer, concurrency=1, retries=1).generate(requests, label="t"):
            got.append(generation.key)
    assert len(got) == 3 and "run again to go on" in str(caught.value) and "\n" not in str(caught.value)
    server.faults = {}
    rest = _answers(_engine(server, tiny_tokenizer), requests, is_done=lambda key: key in got)
    assert set(rest) == set(expected) - set(got)


def test_a_bad_request_is_not_tried_again(server, tiny_tokenizer, requests):
    server.faults = dict.fromkeys(range(99), 400)
    with pytest.raises(InputError, match="no luck"):
        _answers(_engine(server, tiny_tokenizer, concurrency=1), requests)
    assert len(server.bodies) == 1


def test_no_more_than_the_allowed_number_is_asked_at_a_time(server, tiny_tokenizer, requests):
    _answers(_engine(server, tiny_tokenizer, concurrency=2), requests)
    assert server.most <= 2


def test_a_server_that_is_not_there_or_serves_another_model_is_named(server, tiny_tokenizer):
    with pytest.raises(InputError, match="is the server up"):
        ServerEngine(
            ServerSettings(url="http://127.0.0.1:9/v1", model="base", retries=0), tiny_tokenizer, adapted=False
        )
    with pytest.raises(InputError, match="did you mean 'base'"):
        ServerEngine(ServerSettings(url=server.url, model="bass"), tiny_tokenizer, adapted=False)


@pytest.mark.parametrize(
    "url", ["", "host", "http://host:port/v1", "http://\0/v1", f"http://{'a' * 70}.b/v1", "ftp://h/v1"]
)
def test_an_address_that_is_none_is_one_line(tiny_tokenizer, url):
    with pytest.raises(InputError, match=r"^server\.url .*is the server up") as caught:
        ServerEngine(ServerSettings(url=url, model="base", retries=0), tiny_tokenizer, adapted=False)
    assert str(caught.value).isprintable()


def test_a_key_that_cannot_be_sent_is_one_line_without_it(server, tiny_tokenizer, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "schlüssel-geheim")
    with pytest.raises(InputError) as caught:
        _engine(server, tiny_tokenizer)
    assert "geheim" not in str(caught.value)


def test_chains_and_evaluation_go_to_the_server_and_the_adapter_is_a_model_of_its_own(server, tiny_profile):
    settings = ServerSettings(url=server.url, model="base", concurrency=2)
    methods = {name: levels for name, levels in tiny_profile.evaluation.methods.items() if name != "adapter_scaling"}
    evaluation = tiny_profile.evaluation.model_copy(update={"methods": methods})
    run = Run.create(tiny_profile.model_copy(update={"server": settings, "evaluation": evaluation}))
    chains = stages.generate(run)
    assert len(chains) == 3 and len(run.store(steps.CHAINS, Chain)) == 3
    (run.folder / steps.ADAPTER).mkdir()
    (run.folder / steps.ADAPTER / "summary.json").write_text("{}")
    metrics = stages.evaluate(run)
    asked = Counter(body["model"] for body in server.bodies)
    pairs = Counter(metrics["method"])
    others = len(metrics) - pairs["tokenskip"] + pairs["tale_ep"]  # which calls twice
    assert asked["tokenskip"] == 2 * pairs["tokenskip"] and asked["base"] == 3 + 2 * others


# Replies that are no answers.

TEXT = {"index": 0, "text": "3 + 4 = 7", "finish_reason": "stop"}


def _reply(**parts) -> bytes:
    """A completion with some of its parts changed; a lone surrogate is written as JSON may hold it."""
    return json.dumps(
        {"object": "text_completion", "choices": [TEXT], "usage": {"completion_tokens": 4}, **parts}
    ).encode()


NO_ANSWERS = {
    "html": b"<html><body>502 Bad Gateway</body></html>",
    "empty": b"",
    "malformed": _reply()[:-9],
    "not utf-8": _reply().replace(b"3 + 4", b"3 \xff 4"),
    "deep": b"[" * 100_000,
    "a list": b"[1, 2]",
    "no choices": _reply(choices=[]),
    "choices null": _reply(choices=None),
    "two choices": _reply(choices=[TEXT, TEXT]),
    "error with status 200": json.dumps({"error": {"message": "overloaded", "code": 503}}).encode(),
    "text null": _reply(choices=[TEXT | {"text": None}]),
    "a surrogate": _reply(choices=[TEXT | {"text": "3 + 4 \ud800 = 7"}]),
    "abort": _reply(choices=[TEXT | {"finish_reason": "abort"}]),
    "content_filter": _reply(choices=[TEXT | {"finish_reason": "content_filter"}]),
    "no reason to end": _reply(choices=[TEXT | {"finish_reason": None}]),
}


@pytest.mark.parametrize("body", NO_ANSWERS.values(), ids=NO_ANSWERS.keys())
def test_a_reply_that_is_no_answer_is_tried_again_and_then_noted_while_the_others_go_on(
    server, tiny_tokenizer, requests, expected, no_pause, body
):
    failed = {}
    engine = _engine(server, tiny_tokenizer, failed=failed, retries=2)
    server.faults = {0: (200, body), 1: (200, body)}
    assert _answers(engine, requests) == expected and not failed
    lost = encode_prompt(tiny_tokenizer, requests[2].prompt)
    server.faults, server.fault_of, before = {}, lambda ids: (200, body) if ids == lost else None, len(server.bodies)
    made = _answers(engine, requests)
    assert made == {key: answer for key, answer in expected.items() if key != requests[2].key}
    assert list(failed) == [requests[2].key] and len(server.bodies) == before + len(requests) + 2
    [reason] = failed.values()
    assert reason.startswith("not what was asked for (") and reason.isprintable() and len(reason) < 400


@pytest.mark.parametrize("counted", [0, -1, None, "4", 10**9, True, 1.5, {}])
def test_a_count_that_cannot_be_is_not_taken(server, requests, tiny_tokenizer, counted):
    server.changed = lambda reply: reply | {"usage": {"completion_tokens": counted}}
    count = token_counter(tiny_tokenizer)
    made = _answers(_engine(server, tiny_tokenizer), requests)
    assert len(made) == len(requests) and all(tokens == count(text) for text, tokens, _ in made.values())


# Requests that fail for good.


def _refuse(server, tokenizer, *refused: Request, fault=(400, {"error": {"message": "prompt too long"}})) -> None:
    """From now on the server refuses the prompts of these requests."""
    lost = [encode_prompt(tokenizer, request.prompt) for request in refused]
    server.fault_of = lambda ids: fault if ids in lost else None


@pytest.mark.parametrize("status", [400, 403, 413, 422, 500])
def test_a_request_that_fails_for_good_is_noted_and_the_others_go_on(
    server, tiny_tokenizer, requests, expected, no_pause, status
):
    failed = {}
    _refuse(server, tiny_tokenizer, requests[1], fault=(status, {"error": {"message": "too\nlong \x1b[31m"}}))
    made = _answers(_engine(server, tiny_tokenizer, failed=failed, retries=2), requests)
    assert set(made) == set(expected) - {requests[1].key} == set(expected) - set(failed)
    [reason] = failed.values()
    assert reason.startswith(f"Error code: {status}") and reason.isprintable()
    assert len(server.bodies) == len(requests) + (2 if status == 500 else 0)


def test_a_server_that_is_gone_ends_the_stage_and_what_came_back_is_kept(server, tiny_tokenizer, requests, no_pause):
    engine = _engine(server, tiny_tokenizer, failed={}, concurrency=1, retries=1)
    server.faults, server.lists = dict.fromkeys(range(3, 99), 503), (503, {})
    got = []
    with pytest.raises(InputError, match=r"^http://127.*503.*; what is done is on disk, run again to go on$"):
        for [generation] in engine.generate(requests, label="t"):
            got.append(generation.key)
    assert len(got) == 3


def test_a_model_that_is_unloaded_ends_the_stage(server, tiny_tokenizer, requests):
    engine = _engine(server, tiny_tokenizer, failed={})
    server.faults, server.lists = dict.fromkeys(range(99), 404), (200, _models("another"))
    with pytest.raises(InputError, match="serves no model 'base'"):
        _answers(engine, requests)


def test_answers_that_came_before_the_end_are_yielded(server, tiny_tokenizer, requests, monkeypatch):
    engine = _engine(server, tiny_tokenizer, concurrency=5)
    arrived = threading.Barrier(len(requests))

    def answer(request, stopped):
        number = arrived.wait(10)
        if request.key == requests[0].key:
            raise server_module._FailedError("no luck")
        return str(number), 1, False

    monkeypatch.setattr(engine, "_answer", answer)
    got = []
    with pytest.raises(InputError, match="no luck"):
        for [generation] in engine.generate(requests, label="t"):
            time.sleep(0.05)  # while the others come back
            got.append(generation.key)
    assert len(got) >= 1 and requests[0].key not in got


@pytest.fixture
def many(requests):
    return [Request((number,), request.prompt, BUDGET) for number, request in enumerate(requests * 5)]


def test_a_server_that_lists_its_models_and_answers_nothing_ends_the_stage(server, tiny_tokenizer, many, no_pause):
    server.faults, failed = dict.fromkeys(range(5, 99), 500), {}
    with pytest.raises(InputError, match="10 requests in a row failed: Error code: 500"):
        _answers(_engine(server, tiny_tokenizer, failed=failed, concurrency=1, retries=0), many)
    assert 10 <= len(failed) <= 11  # one began before the last answer was read


def test_refused_prompts_are_no_silence_however_many_come_first(server, tiny_tokenizer, many):
    server.faults, failed = dict.fromkeys(range(20), 400), {}  # the longest prompts are asked first
    assert len(_answers(_engine(server, tiny_tokenizer, failed=failed, concurrency=1), many)) == 5
    assert len(failed) == 20


def test_what_the_server_asks_to_wait_is_waited_within_bounds():
    assert (
        server_module._pause(0, {"retry-after": "3"}) == 3 and server_module._pause(0, {"retry-after-ms": "20"}) == 0.02
    )
    assert [server_module._pause(attempt, {}) for attempt in (0, 1, 4, 9999)] == [0.5, 1, 8, 8]
    for value in ("inf", "nan", "-1", "9999", "Wed, 21 Oct 2015 07:28:00 GMT"):
        assert server_module._pause(0, {"retry-after": value}) == 0.5


# The key.


@pytest.mark.parametrize("where", ["refusal", "failure", "no answer", "answer", "models", "model names"])
def test_a_key_that_the_server_echoes_is_in_no_message_and_no_answer(
    server, tiny_tokenizer, requests, no_pause, monkeypatch, capsys, where
):
    key, failed, said = "sk-very-secret-1234567890", {}, ""
    monkeypatch.setenv("OPENAI_API_KEY", f"{key}\n")  # as `export OPENAI_API_KEY="$(cat file)"` may leave it
    if where == "models":
        server.lists = (401, {"error": {"message": f"wrong key {key}"}})
    elif where == "model names":
        server.lists = (200, _models(f"base {key}"))
    else:
        reply = _reply(choices=[TEXT | {"text": f"It is {key}."}])
        server.fault_of = lambda _: {
            "refusal": (400, {"error": {"message": f"Bearer {key} may not"}}),
            "failure": (500, {"error": {"message": f"{'x' * 150} {key}"}}),
            "no answer": (200, f"<html>{key}</html>".encode()),
            "answer": (200, reply),
        }[where]
    try:
        said = str(_answers(_engine(server, tiny_tokenizer, failed=failed, retries=0), requests))
    except InputError as error:
        said = str(error)
    said += str(failed) + "".join(capsys.readouterr())
    assert "sk-very" not in said and ("***" in said or "the answer contains the key" in said)


def test_a_stand_in_for_a_key_may_be_in_an_answer(server, tiny_tokenizer, requests, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "EMPTY")
    server.changed = lambda reply: reply | {"choices": [reply["choices"][0] | {"text": "The box is EMPTY."}]}
    assert len(_answers(_engine(server, tiny_tokenizer), requests)) == len(requests)


# The end of a command.

STOPPED = """
import atexit, gc, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's job in the background has it ignored
from tokenskip_lib.core.settings import ServerSettings
from tokenskip_lib.inference.engine import Request
from tokenskip_lib.inference.server import ServerEngine
from transformers import AutoTokenizer
settings = ServerSettings(url=sys.argv[1], model="base", concurrency=4)
engine = ServerEngine(settings, AutoTokenizer.from_pretrained(sys.argv[2]), adapted=False)
atexit.register(gc.freeze)  # as the command line does
for batch in engine.generate([Request((number,), "3 + 4 =", 6) for number in range(9)]):
    print("answered", flush=True)
"""


@pytest.mark.parametrize("how", ["ctrl-c", "error"])
def test_a_command_ends_at_once_whatever_is_in_flight(server, tiny_target, root, how):
    server.complete = lambda ids, budget: time.sleep(0.2) or ("7", 1, False)
    server.faults = dict.fromkeys(range(1, 9), "hang")
    if how == "error":
        server.faults[4] = 400  # the next one, when the first has its answer
    server.hang_seconds = 60
    words = [sys.executable, "-c", STOPPED, server.url, str(tiny_target)]
    command = subprocess.Popen(words, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ)
    try:
        assert command.stdout.readline() == b"answered\n"
        if how == "ctrl-c":
            command.send_signal(signal.SIGINT)
        command.wait(30)  # half of what the requests would take; a second where the machine has nothing else to do
    finally:
        command.kill()
        command.communicate()
    assert command.returncode != 0


# The stages.


@pytest.fixture
def served(server, tiny_profile):
    """A run that the server answers: original, tokenskip and a method that calls twice."""
    evaluation = tiny_profile.evaluation.model_copy(
        update={"methods": {"original": [], "tokenskip": [0.5], "tale_ep": []}}
    )
    settings = ServerSettings(url=server.url, model="base", concurrency=2, retries=0)
    run = Run.create(tiny_profile.model_copy(update={"server": settings, "evaluation": evaluation}))
    (run.folder / steps.ADAPTER).mkdir()
    (run.folder / steps.ADAPTER / "summary.json").write_text("{}")
    return run


def _state(run) -> dict:
    return json.loads((run.folder / "profile.json").read_text())["stages"]


def test_a_refused_problem_is_noted_said_and_asked_again_and_the_next_stage_goes_on(
    server, served, problems, tiny_tokenizer, capsys
):
    asked = build_prompt(tiny_tokenizer, problems[1].question, served.profile.prompts)
    _refuse(server, tiny_tokenizer, Request(("p1",), asked, BUDGET))
    assert {chain.id for chain in stages.generate(served)} == {"p0", "p2"}
    noted = _state(served)["generate"]
    assert noted["chains"] == 2 and noted["failed_requests"] == 1
    assert list(noted["problems_without_answer"]) == ["p1"] and "too long" in noted["problems_without_answer"]["p1"]
    said = capsys.readouterr().err
    assert "generate: 1 request failed, so 1 problem is left out (p1: Error code: 400" in said
    with pytest.raises(InputError, match="every chain was dropped"):  # a random model's; not "not answered yet"
        stages.score(served)
    server.fault_of, before = lambda _: None, len(server.bodies)
    assert {chain.id for chain in stages.generate(Run.create(served.profile))} == {"p0", "p1", "p2"}
    assert len(server.bodies) == before + 1
    noted = _state(served)["generate"]
    assert noted["chains"] == 3 and noted["failed_requests"] == 0 and noted["problems_without_answer"] == {}


def test_a_stage_whose_requests_all_fail_is_one_line(server, served):
    server.fault_of = lambda _: (400, {"error": {"message": "no luck"}})
    with pytest.raises(InputError, match=r"^generate: no answer at all; 3 requests failed.*no luck") as caught:
        stages.generate(served)
    assert "\n" not in str(caught.value)


def test_a_study_knows_that_a_problem_of_its_run_has_no_answer(server, served, problems, tiny_tokenizer, chain_of):
    served.store(steps.TRAIN_PROBLEMS, Problem).append(problems[:3])
    served.store(steps.CHAINS, Chain).append(chain_of(problem) for problem in problems[:2])
    served.note("generate", chains=2)
    variant = Run.create(served.profile.model_copy(update={"run_dir": str(served.folder / "studies" / "s" / "v")}))
    for name in (steps.TRAIN_PROBLEMS, steps.CHAINS):
        (variant.folder / name).symlink_to(served.folder / name)
    for run in (served, variant):
        with pytest.raises(InputError, match="1 training problems are not answered yet"):
            kept_chains(run)
    note_failures(served, "generate", {PredictionKey("p2", "original", 1.0): "too long"})
    for run in (served, variant):
        assert [chain.id for chain in kept_chains(run)] == ["p0", "p1"]


@pytest.mark.parametrize("lost", ["original", "first call"])
def test_a_problem_that_a_method_got_no_answer_to_is_left_out_of_all_metrics(
    server, served, problems, tiny_tokenizer, capsys, lost
):
    stages.generate(served)
    method = METHODS["original" if lost == "original" else "tale_ep"]
    build = method.build_first_prompt if lost == "first call" else method.build_prompt
    options = () if lost == "first call" else (1.0,)
    asked = build(tiny_tokenizer, problems[3].question, served.profile.prompts, *options)
    _refuse(server, tiny_tokenizer, Request(("p3",), asked, BUDGET))
    metrics = stages.evaluate(served)
    assert set(metrics["n"]) == {1} and len(metrics) == 3
    assert {prediction.id for prediction in compared(served)} == {"p4"}
    assert list(_state(served)["evaluate"]["problems_without_answer"]) == ["p3"]
    assert "`tokenskip evaluate` asks again" in capsys.readouterr().err
    server.fault_of = lambda _: None
    metrics = stages.evaluate(Run.create(served.profile))
    assert set(metrics["n"]) == {2} and _state(served)["evaluate"]["failed_requests"] == 0
    assert {prediction.id for prediction in compared(served)} == {"p3", "p4"}


def test_a_method_without_any_answer_is_one_line(server, served, tiny_tokenizer):
    stages.generate(served)
    server.fault_of = lambda _: (
        (400, {"error": {"message": "no adapter"}}) if server.bodies[-1]["model"] != "base" else None
    )
    with pytest.raises(InputError, match=r"^evaluate, tokenskip 0\.5: no answer at all; 2 requests failed.*no adapter"):
        stages.evaluate(served)


def test_without_failures_a_note_has_nothing_about_them(served):
    stages.generate(served)
    assert not {"failed_requests", "problems_without_answer"} & set(_state(served)["generate"])


def test_an_error_of_our_own_in_a_request_is_not_lost(server, tiny_tokenizer, requests, monkeypatch):
    printed = []
    monkeypatch.setattr(threading, "excepthook", lambda error: printed.append(error.exc_type))
    engine = _engine(server, tiny_tokenizer, failed={})
    monkeypatch.setattr(engine, "_answer", lambda *_: {}["no such thing"])
    with pytest.raises(RuntimeError, match="printed above"):
        _answers(engine, requests)
    for thread in threading.enumerate():
        if thread.name.startswith("server-"):
            thread.join(10)
    assert printed and set(printed) == {KeyError}


@pytest.mark.faults
def test_of_two_thousand_answers_none_is_lost_where_one_request_in_ten_fails(
    server, tiny_tokenizer, requests, expected, no_pause, record_property
):
    kinds, drawn = ("cut", 500, 503, 429, (200, b"<html>")), random.Random(0)
    server.faults = {number: drawn.choice(kinds) for number in range(4000) if drawn.random() < 0.1}
    asked = [
        Request((f"{number}", *request.key), request.prompt, BUDGET) for number in range(400) for request in requests
    ]
    answers = _answers(_engine(server, tiny_tokenizer, concurrency=16, retries=8), asked)
    assert answers == {request.key: expected[request.key[1:]] for request in asked}
    faulty = f"{len(answers)} of {len(asked)}, in {len(server.bodies)} requests"
    record_property("figure", ["answers of a server where one request in ten fails", faulty])
