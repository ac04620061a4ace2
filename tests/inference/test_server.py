"""The server engine against a real HTTP server on loopback that answers with the tiny model, and misbehaves."""

import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tokenskip_lib.core.records import Chain, InputError
from tokenskip_lib.core.settings import PromptSettings, ServerSettings
from tokenskip_lib.experiments import stages, steps
from tokenskip_lib.experiments.run import Run
from tokenskip_lib.inference.engine import Request, TransformersEngine
from tokenskip_lib.inference.server import ServerEngine
from tokenskip_lib.models.prompts import build_prompt, encode_prompt
from tokenskip_lib.models.tokens import token_counter

BUDGET = 6
MODELS = ["base", "tokenskip"]


class _Server(ThreadingHTTPServer):
    """Answers /v1/completions by a function of token ids; `faults` maps a request's number to what goes wrong."""

    daemon_threads = True

    def __init__(self, complete):
        self.complete, self.faults, self.counts_nothing = complete, {}, False
        self.bodies, self.running, self.most = [], 0, 0
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def _send(self, body: dict, status: int = 200) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if status in (429, 503):
            self.send_header("Retry-After-Ms", "1")
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        self._send({"object": "list", "data": [{"id": name, "object": "model"} for name in MODELS]})

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            number = len(server.bodies)
            server.bodies.append(body)
            server.running += 1
            server.most = max(server.most, server.running)
        try:
            fault = server.faults.get(number)
            if fault == "hang":
                time.sleep(2)
                self.close_connection = True
            elif fault == "cut":
                self.close_connection = True
            elif fault:
                self._send({"error": {"message": "no luck", "type": "test"}}, fault)
            else:
                text, tokens, cut_off = server.complete(body["prompt"], body["max_tokens"])
                choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": "length" if cut_off else "stop"}
                made = tokens + (not cut_off)
                usage = {"prompt_tokens": 1, "completion_tokens": made, "total_tokens": 1 + made}
                self._send({
                    "id": "x", "object": "text_completion", "created": 0, "model": body["model"],
                    "choices": [choice], "usage": None if server.counts_nothing else usage,
                })  # fmt: skip
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
    return ServerEngine(ServerSettings(url=server.url, model="base", **settings), tokenizer, adapted=False)


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
