"""Greedy decoding by an OpenAI-compatible server (anything with /v1/completions, made for `vllm serve`).

Prompts are sent as token ids, and text comes back. The TokenSkip adapter is another model name on the same server.
Answers are yielded one by one as they come, so a killed run loses none.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from tokenskip_lib.core.plugins import need
from tokenskip_lib.core.profiles import nearest
from tokenskip_lib.core.records import InputError
from tokenskip_lib.core.settings import ServerSettings
from tokenskip_lib.inference.engine import Generation, Request
from tokenskip_lib.models.prompts import encode_prompt
from tokenskip_lib.models.tokens import token_counter


class ServerEngine:
    """Requests to a server, at most `concurrency` at a time; 429, 5xx and timeouts are tried again.

    Args:
        settings: the server's address, the names of its models, retries and timeout.
        tokenizer: the target model's; it makes the token ids of a prompt.
        adapted: whether to ask the model with the TokenSkip adapter.

    Raises:
        InputError: the server cannot be reached, does not serve the model, or refuses a request.
    """

    def __init__(self, settings: ServerSettings, tokenizer: PreTrainedTokenizerBase, *, adapted: bool):
        openai = need("openai", "server")
        self.api_error: type[Exception] = openai.APIError
        self.settings = settings
        self.tokenizer = tokenizer
        self.model = settings.tokenskip_model if adapted else settings.model
        self.client = openai.OpenAI(
            base_url=settings.url,
            api_key=os.environ.get(settings.api_key_variable) or "none",
            max_retries=settings.retries,  # with the client's exponential back-off
            timeout=settings.timeout,
        )
        try:
            served = [model.id for model in self.client.models.list()]
        except openai.APIError as error:
            raise InputError(f"server.url {settings.url}: {_reason(error)}; is the server up?") from None
        if self.model not in served:
            raise InputError(f"{settings.url} serves no model '{self.model}'{nearest(self.model, served)}")

    def generate(
        self, requests: Sequence[Request], *, is_done: Callable[[tuple], bool] = lambda _: False, label: str = ""
    ) -> Iterator[list[Generation]]:
        """Answer every request that is not done, longest prompts first, and yield each answer as it comes."""
        waiting = sorted((r for r in requests if not is_done(r.key)), key=lambda r: -len(r.prompt))
        todo = iter(waiting)
        pool = ThreadPoolExecutor(self.settings.concurrency, thread_name_prefix="server")
        running: set[Future] = set()
        before = time.perf_counter()
        try:
            with tqdm(total=len(requests), initial=len(requests) - len(waiting), desc=label, unit="answer") as bar:
                while True:
                    # Only what is worked on is submitted: after a failure no request waits in a queue.
                    while len(running) < self.settings.concurrency and (request := next(todo, None)) is not None:
                        running.add(pool.submit(self._answer, request))
                    if not running:
                        break
                    finished, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in finished:
                        text, tokens, cut_off, request = future.result()
                        now = time.perf_counter()
                        yield [Generation(request.key, text, tokens, cut_off, seconds=now - before)]
                        before = now
                        bar.update()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _answer(self, request: Request) -> tuple[str, int, bool, Request]:
        ends = [self.tokenizer.eos_token_id]
        try:
            completion = self.client.completions.create(
                model=self.model,
                prompt=encode_prompt(self.tokenizer, request.prompt),
                max_tokens=request.max_new_tokens,
                temperature=0,
                # All are sent: a server takes a missing value from the model's own generation settings, and
                # Qwen's have a repetition penalty.
                presence_penalty=0,
                frequency_penalty=0,
                extra_body={"repetition_penalty": 1.0, "stop_token_ids": ends, "skip_special_tokens": True},
            )
        except self.api_error as error:
            raise InputError(
                f"{self.settings.url}: {_reason(error)} (after {self.settings.retries} retries where they help); "
                "what is done is on disk, run again to go on"
            ) from None
        [choice] = completion.choices
        cut_off = choice.finish_reason == "length"
        if completion.usage is None:  # a server need not count
            tokens = token_counter(self.tokenizer)(choice.text)
        else:  # a server counts the end token too, which is no part of an answer here
            tokens = completion.usage.completion_tokens - (not cut_off)
        return choice.text, tokens, cut_off, request


def _reason(error: Exception) -> str:
    """The first line of an error, with its cause if it has one."""
    cause = error.__cause__
    text = str(error).splitlines()[0][:200]
    return f"{text} ({type(cause).__name__})" if cause is not None else text
