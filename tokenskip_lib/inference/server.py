"""Greedy decoding by an OpenAI-compatible server (anything with /v1/completions, made for `vllm serve`).

Prompts are sent as token ids, and text comes back. The TokenSkip adapter is another model name on the same server.
Answers are yielded one by one as they come, so a killed run loses none. A request that fails for good is noted with
its reason, and the others go on.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from queue import SimpleQueue
from threading import Event, Thread
from typing import Annotated, Any, Literal, TypeVar, cast
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, ValidationError
from transformers import PreTrainedTokenizerBase

from tokenskip_lib.core.plugins import need
from tokenskip_lib.core.profiles import nearest
from tokenskip_lib.core.progress import Bar
from tokenskip_lib.core.records import InputError, first_error
from tokenskip_lib.core.settings import ServerSettings
from tokenskip_lib.inference.engine import Generation, Request
from tokenskip_lib.models.prompts import encode_prompt
from tokenskip_lib.models.tokens import token_counter

REFUSED = (400, 413, 422)  # HTTP statuses that speak of the prompt
TRIED_AGAIN = (408, 409, 425, 429)  # and 500 and above
PROBE_SECONDS = 30.0  # a server that takes longer to list its models is gone
SILENT = 10  # as many requests that fail one after another, begun after the last answer, end the stage
SECRET = 8  # characters; a shorter key is a stand-in such as EMPTY, and an answer may contain it

T = TypeVar("T", bound=BaseModel)


class _Choice(BaseModel):
    text: str
    finish_reason: Literal["stop", "length"]  # any other, such as "abort", is no end of an answer


class _Completion(BaseModel):
    choices: Annotated[list[_Choice], Field(min_length=1, max_length=1)]
    usage: Any = None  # a server need not count


class _Model(BaseModel):
    id: str


class _Models(BaseModel):
    data: list[_Model]


class _FailedError(Exception):
    """A call that failed for good. `refused`: the server refused this prompt, so it may answer others."""

    def __init__(self, reason: str, *, refused: bool = False):
        super().__init__(reason)
        self.refused = refused


_Outcome = tuple[str, int, bool] | _FailedError | InputError | None  # of a request: see ServerEngine._answer


class ServerEngine:
    """Requests to a server, at most `concurrency` at a time.

    429, 5xx, timeouts and replies that are no completion are tried again. A request that still fails is noted in
    `failed`, and the others go on, unless the server is gone or answers nothing any more.

    Args:
        settings: the server's address, the names of its models, retries and timeout.
        tokenizer: the target model's; it makes the token ids of a prompt.
        adapted: whether to ask the model with the TokenSkip adapter.
        failed: gets the key of every request that failed, and why. None: the first one raises InputError.

    Raises:
        InputError: the server cannot be reached, does not serve the model, or answers nothing any more.
    """

    def __init__(
        self,
        settings: ServerSettings,
        tokenizer: PreTrainedTokenizerBase,
        *,
        adapted: bool,
        failed: dict[tuple, str] | None = None,
    ):
        openai = need("openai", "server")
        self.api_error: type[Exception] = openai.APIError
        self.settings = settings
        self.tokenizer = tokenizer
        self.model = settings.tokenskip_model if adapted else settings.model
        self.failed = failed
        self.key = os.environ.get(settings.api_key_variable, "").strip()
        self.url = self._line(settings.url)
        try:
            _check_address(settings.url)
            self.client = openai.OpenAI(
                base_url=settings.url,
                api_key=self.key or "none",
                max_retries=0,  # `_ask` tries again
                timeout=settings.timeout,
            )
            self._check_serves(settings.retries, Event())
        except InputError:
            raise
        except (_FailedError, ValueError) as error:  # the latter if the address or the key cannot be sent at all
            raise InputError(f"server.url {self.url}: {self._line(_reason(error))}; is the server up?") from None

    def generate(
        self, requests: Sequence[Request], *, is_done: Callable[[tuple], bool] = lambda _: False, label: str = ""
    ) -> Iterator[list[Generation]]:
        """Answer every request that is not done, longest prompts first, and yield each answer as it comes."""
        waiting = sorted((r for r in requests if not is_done(r.key)), key=lambda r: -len(r.prompt))
        todo, outcomes, stopped = iter(waiting), SimpleQueue[tuple[Request, float, _Outcome]](), Event()

        def work() -> None:
            while not stopped.is_set() and (request := next(todo, None)) is not None:
                began = time.perf_counter()
                outcome: _Outcome = None
                try:
                    outcome = self._answer(request, stopped)
                except (_FailedError, InputError) as error:
                    outcome = error
                finally:  # with None after an error of our own, which Python then prints
                    outcomes.put((request, began, outcome))

        # Python waits for the threads of a pool before it ends, but not for these: a command that stops ends at once.
        for number in range(min(self.settings.concurrency, len(waiting))):
            Thread(target=work, name=f"server-{number}", daemon=True).start()
        last, silent, ending = time.perf_counter(), 0, None
        try:
            with Bar(total=len(requests), initial=len(requests) - len(waiting), desc=label, unit="answer") as bar:
                for _ in waiting:
                    if ending is not None and outcomes.empty():
                        break
                    request, began, outcome = outcomes.get()
                    if not isinstance(outcome, tuple):
                        silent += began >= last and not (isinstance(outcome, _FailedError) and outcome.refused)
                        ending = ending or self._judge(request, outcome, silent)
                        if ending is not None:
                            stopped.set()  # what is answered already is yielded before the end
                        continue
                    text, tokens, cut_off = outcome
                    before, last, silent = last, time.perf_counter(), 0
                    yield [Generation(request.key, text, tokens, cut_off, seconds=last - before)]
                    bar.update()
        finally:
            stopped.set()
        if ending is not None:
            raise ending

    def _judge(self, request: Request, error: Exception | None, silent: int) -> Exception | None:
        """Note a failed request in `failed`. Returns what to end with, if the others must not go on."""
        if not isinstance(error, _FailedError):
            return error or RuntimeError("a request ended by the error that is printed above")
        if self.failed is not None:
            self.failed[request.key] = str(error)
            if silent < SILENT:
                return None
        return self._gone(f"{silent} requests in a row failed: {error}" if silent >= SILENT else str(error))

    def _gone(self, reason: str) -> InputError:
        return InputError(f"{self.url}: {reason}; what is done is on disk, run again to go on")

    def _answer(self, request: Request, stopped: Event) -> tuple[str, int, bool]:
        """The text, its tokens, and whether the budget ended it.

        Raises:
            _FailedError: the server is there and does not answer this request.
            InputError: the server is gone, or does not serve the model any more.
        """

        def create() -> Any:
            return self.client.completions.with_raw_response.create(
                model=self.model,
                prompt=encode_prompt(self.tokenizer, request.prompt),
                max_tokens=request.max_new_tokens,
                temperature=0,
                # All are sent: a server takes a missing value from the model's own generation settings, and
                # Qwen's have a repetition penalty.
                presence_penalty=0,
                frequency_penalty=0,
                extra_body={
                    "repetition_penalty": 1.0,
                    "stop_token_ids": [self.tokenizer.eos_token_id],
                    "skip_special_tokens": True,
                },
            )

        try:
            reply = self._ask(create, _Completion, self.settings.retries, stopped)
        except _FailedError as error:
            try:
                self._check_serves(0, stopped)
            except _FailedError:
                raise self._gone(str(error)) from None
            raise
        [choice] = reply.choices
        if len(self.key) >= SECRET and self.key in choice.text:
            raise _FailedError(f"the answer contains the key that is in {self.settings.api_key_variable}")
        counted = reply.usage.get("completion_tokens") if isinstance(reply.usage, dict) else None
        if type(counted) is int and 1 <= counted <= request.max_new_tokens:
            tokens = counted - (choice.finish_reason == "stop")  # the end token is no part of an answer here
        else:
            tokens = token_counter(self.tokenizer)(choice.text)
        return choice.text, tokens, choice.finish_reason == "length"

    def _check_serves(self, retries: int, stopped: Event) -> None:
        """Raise _FailedError if the server does not list its models, and InputError if ours is not among them."""
        client = self.client.with_options(timeout=min(PROBE_SECONDS, self.settings.timeout))
        served = [model.id for model in self._ask(client.models.with_raw_response.list, _Models, retries, stopped).data]
        if self.model not in served:
            near = self._line(nearest(self.model, served))
            raise InputError(f"{self.url} serves no model '{self.model}' {near}")

    def _ask(self, call: Callable[[], Any], reply_type: type[T], retries: int, stopped: Event) -> T:
        """The reply to a call; what may pass is tried again.

        Raises:
            _FailedError: it failed for good, or `stopped` was set while it waited for the next try.
        """
        for attempt in range(retries + 1):
            content, headers = b"", cast(Any, {})
            try:
                content = call().http_response.content
                return reply_type.model_validate_json(content)
            except ValidationError as error:
                said = self._line(content.decode(errors="replace")) or "nothing"
                failed = _FailedError(f"not what was asked for ({first_error(error)}): {said}")
            except self.api_error as error:
                response = getattr(error, "response", None)  # none: no connection, or no reply in time
                status = 500 if response is None else response.status_code
                failed = _FailedError(self._line(_reason(error)), refused=status in REFUSED)
                if status < 500 and status not in TRIED_AGAIN:
                    break
                headers = {} if response is None else response.headers
            if attempt == retries or stopped.wait(_pause(attempt, headers)):
                break
        raise failed

    def _line(self, text: str) -> str:
        """What a server says, as the beginning of one line that can be printed, without our key."""
        if len(self.key) >= SECRET:
            text = text.replace(self.key, "***")
        return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text[:2000].split()))[:200]


def _check_address(url: str) -> None:
    """Raise ValueError if this is no address of a server."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0 or not url.isprintable():
        raise ValueError("not of the form http://HOST:PORT/v1")


def _reason(error: Exception) -> str:
    """The text of an error, with its cause if it has one."""
    cause = error.__cause__
    return f"{error} ({type(cause).__name__})" if cause is not None else str(error)


def _pause(attempt: int, headers: Any) -> float:
    """Seconds until the next try: what the server asks for, up to two minutes, else 0.5 that double up to 8."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        with suppress(KeyError, ValueError):
            if 0 <= (seconds := float(headers[name]) * unit) <= 120:
                return seconds
    return 0.5 * 2 ** min(attempt, 4)
