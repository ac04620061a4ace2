"""Greedy decoding by the workers of a Ray cluster, each with the model and the engine of this library.

The driver makes the batches, so they are those of one process, and so are the texts on the same kind of device.
"""

from collections.abc import Callable, Iterator, Sequence

from transformers import PreTrainedTokenizerBase

from tokenskip_lib.core.cluster import build_executor
from tokenskip_lib.core.executor import Work
from tokenskip_lib.core.progress import Bar
from tokenskip_lib.core.records import InputError
from tokenskip_lib.core.settings import ExecutionSettings
from tokenskip_lib.inference.engine import Generation, Request, batches
from tokenskip_lib.models.prompts import encode_prompt


class ClusterEngine:
    """Batches are answered by workers, and yielded in order.

    Args:
        build: loads the model in a worker, and returns the function from a batch to its answers.
        tokenizer: the target model's; it decides which prompts are in a batch.
        batch_size: the most requests of a batch.
        batch_tokens: the most tokens of a batch, as in TransformersEngine.
        execution: how many workers, and where.
        failed: gets the key of every request that ended its worker each time, and why. None: it raises InputError.

    Raises:
        InputError: Ray is not installed, or its cluster cannot be reached.
    """

    def __init__(
        self,
        build: Callable[[], Work[Request, Generation]],
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int,
        *,
        batch_tokens: int | None,
        execution: ExecutionSettings,
        failed: dict[tuple, str] | None,
    ):
        self.executor = build_executor(build, execution)
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.batch_tokens = batch_tokens or float("inf")
        self.failed = failed

    def generate(
        self, requests: Sequence[Request], *, is_done: Callable[[tuple], bool] = lambda _: False, label: str = ""
    ) -> Iterator[list[Generation]]:
        """Answer every request of a batch that is not wholly done, and yield each batch."""
        encoded = {request.key: encode_prompt(self.tokenizer, request.prompt) for request in requests}
        with Bar(total=len(requests), desc=label, unit="answer") as bar:

            def todo() -> Iterator[list[Request]]:
                for batch in batches(requests, encoded, self.batch_size, self.batch_tokens):
                    if all(is_done(request.key) for request in batch):
                        bar.update(len(batch))
                    else:
                        yield batch

            for done in self.executor.map(todo()):
                for request, reason in done.lost:
                    if self.failed is None:
                        raise InputError(f"problem '{request.key[0]}': {reason}; leave it out")
                    self.failed[request.key] = reason
                if done.made:
                    yield done.made
                bar.update(len(done.items))
