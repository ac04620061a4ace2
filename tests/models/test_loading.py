"""Models: found by folder, loaded with adapters, refused in one line."""

import importlib.util
import shutil
import socket
import time

import pytest
import torch
from safetensors.torch import load as safetensors_load
from safetensors.torch import save as safetensors_save

from tokenskip_lib.core.records import InputError
from tokenskip_lib.core.settings import PromptSettings, TargetSettings
from tokenskip_lib.models import devices, hub, loading
from tokenskip_lib.models.adapters import find_adapter
from tokenskip_lib.models.devices import pick_device, pick_dtype
from tokenskip_lib.models.loading import (
    TargetModel,
    describe,
    find_model,
    from_pretrained,
    load_model,
    load_tokenizer,
)
from tokenskip_lib.models.tokens import batch_token_counter, token_counter


@pytest.fixture
def settings(tiny_target):
    return TargetSettings(model=str(tiny_target), device="cpu", dtype="float32")


def test_a_local_folder_is_the_model(settings, tiny_model):
    model = load_model(settings)
    assert not model.training and next(model.parameters()).dtype == torch.float32
    for name, value in tiny_model.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)


def test_a_folder_below_the_root_is_found_before_wheel_and_hub(tmp_path, monkeypatch):
    name = "HuggingFaceTB/SmolLM2-135M-Instruct"
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir(parents=True)
    assert find_model(name, "none") == str(tmp_path / name)
    assert find_model("nobody/nothing", "none") == "nobody/nothing"


def test_the_tokenizer_pads_on_the_left_and_always_can(tiny_tokenizer, tmp_path, settings):
    import copy

    assert load_tokenizer(settings).padding_side == "left"
    assert load_tokenizer(settings).pad_token == tiny_tokenizer.pad_token
    without = copy.deepcopy(tiny_tokenizer)
    without.pad_token = None
    without.save_pretrained(tmp_path)
    loaded = load_tokenizer(settings.model_copy(update={"model": str(tmp_path)}))
    assert loaded.pad_token == loaded.eos_token == "<|im_end|>"


def test_tokens_are_counted_without_special_ones(real_tokenizer):
    count = token_counter(real_tokenizer)
    assert count("") == 0
    assert count("3 + 4 = 7") == len(real_tokenizer.tokenize("3 + 4 = 7"))


def test_counting_many_texts_is_counting_each_whatever_padding_was_set(real_tokenizer):
    texts = ["3 + 4 = 7", "", "é 漢字 😀", "<|im_end|>", "  two  spaces\n\n"]
    real_tokenizer(texts, padding=True, truncation=True, max_length=2)
    counted = batch_token_counter(real_tokenizer)(texts)
    assert counted == [len(ids) for ids in real_tokenizer(texts, add_special_tokens=False)["input_ids"]]


def test_a_target_loads_what_is_asked_for_and_once(settings, monkeypatch):
    loaded = []
    monkeypatch.setattr(loading, "load_model", lambda _: loaded.append("model") or "the model")
    target = TargetModel(settings)
    assert target.tokenizer is target.tokenizer and loaded == []
    assert target.model is target.model and loaded == ["model"]


def test_a_target_model_has_the_prompts_it_is_asked_with(settings):
    prompts = PromptSettings(system="You count.")
    assert TargetModel(settings, prompts).prompts is prompts
    assert TargetModel(settings).prompts == PromptSettings()


def test_an_adapter_is_merged_and_its_absence_is_named(settings, tiny_target, tiny_model, tmp_path):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    lora = LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    adapted = get_peft_model(load_model(settings), lora).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        wanted, plain = adapted(input_ids=ids).logits, tiny_model(input_ids=ids).logits
        second = load_model(settings, adapter=tmp_path / "adapter")(input_ids=ids).logits
        own = load_model(settings.model_copy(update={"adapter": str(tmp_path / "adapter")}))(input_ids=ids).logits
    assert torch.allclose(second, wanted, atol=1e-4) and torch.allclose(own, wanted, atol=1e-4)
    assert not torch.allclose(plain, wanted, atol=1e-2)
    with pytest.raises(InputError, match=r"adapter_model\.safetensors is missing"):
        load_model(settings, adapter=tmp_path / "nothing")


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, 1.5])
def test_an_adapters_strength_is_the_share_of_its_change_that_the_weights_get(settings, make_adapter, strength):
    adapter = make_adapter(3)
    plain, whole, scaled = (
        load_model(settings, **options).state_dict()
        for options in ({}, {"adapter": adapter}, {"adapter": adapter, "strength": strength})
    )
    changed = [name for name in plain if not torch.equal(plain[name], whole[name])]
    assert len(changed) > 10
    for name, weight in plain.items():
        assert torch.allclose(scaled[name], weight + strength * (whole[name] - weight), atol=1e-5)
    if strength in (0, 1):
        same = plain if strength == 0 else whole
        assert all(torch.equal(scaled[name], same[name]) for name in plain)


def test_an_adapter_that_is_nowhere_is_named(monkeypatch):
    import huggingface_hub

    def offline(*_, **__):
        raise OSError("no network\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(InputError, match=r"^adapter 'nobody/nothing': no such folder .*\(no network\)$"):
        find_adapter("nobody/nothing")


@pytest.fixture
def damaged_model(tiny_target, tmp_path):
    """A function of a file's name and its new bytes, a function of the old ones: the settings of such a model."""

    def make(name, change):
        folder = tmp_path / "model"
        shutil.copytree(tiny_target, folder)
        (folder / name).write_bytes(change((folder / name).read_bytes()))
        return TargetSettings(model=str(folder), device="cpu", dtype="float32")

    return make


@pytest.mark.parametrize(
    "change", [lambda whole: b"", lambda whole: whole[:100], lambda whole: whole[:-10], lambda whole: whole + b"x" * 9]
)
def test_weights_that_are_cut_off_or_too_long_are_one_line(damaged_model, change):
    with pytest.raises(InputError, match=r"files cannot be loaded \(Error while deserializing") as caught:
        load_model(damaged_model("model.safetensors", change))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("keep", "says"), [(slice(0, None, 2), "it has no weights"), (slice(0, 0), "it has no weights")]
)
def test_a_model_with_part_of_its_weights_is_refused_and_none_is_drawn(damaged_model, keep, says):
    def part(whole):
        weights = safetensors_load(whole)
        return safetensors_save({name: weights[name] for name in sorted(weights)[keep]}, metadata={"format": "pt"})

    with pytest.raises(InputError, match=says):
        load_model(damaged_model("model.safetensors", part))


@pytest.mark.parametrize("content", [b"[]", b"null", b"[" * 100_000])
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "tokenizer.json"])
def test_a_damaged_file_of_a_model_is_one_line(damaged_model, name, content):
    load = load_model if name == "config.json" else load_tokenizer
    with pytest.raises(InputError, match=r"^target\.model '") as caught:
        load(damaged_model(name, lambda whole: content))
    assert str(caught.value).isprintable()


def test_a_device_that_is_none_is_refused():
    with pytest.raises(InputError, match="unknown device 'gpu'"):
        pick_device("gpu")
    with pytest.raises(InputError, match="on a CPU or on CUDA"):
        pick_device("mps")
    assert pick_device("cpu").type == "cpu"
    if not torch.cuda.is_available():
        assert pick_device("auto").type == "cpu"
        with pytest.raises(InputError, match="no CUDA device"):
            pick_device("cuda")


def test_a_named_dtype_is_taken_and_auto_is_one_that_the_device_computes_in():
    cpu = torch.device("cpu")
    assert pick_dtype("float16", cpu) == torch.float16
    assert pick_dtype("auto", cpu) in (torch.bfloat16, torch.float32)


@pytest.mark.parametrize(
    ("features", "seconds", "dtype"),
    [
        (["amx_bf16"], None, torch.bfloat16),
        (["avx512_bf16"], {torch.float32: 3.0, torch.bfloat16: 1.0}, torch.bfloat16),
        (["avx512_bf16"], {torch.float32: 1.0, torch.bfloat16: 1.0}, torch.float32),
        (["avx512_f"], None, torch.float32),
    ],
)
def test_auto_is_bfloat16_on_a_cpu_that_is_faster_in_it(features, seconds, dtype, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(features, True), raising=False)
    monkeypatch.setattr(devices, "_product_seconds", lambda dtype: seconds[dtype])
    devices._cpu_is_faster_in_bfloat16.cache_clear()
    try:
        assert pick_dtype("auto", torch.device("cpu")) == dtype
    finally:
        devices._cpu_is_faster_in_bfloat16.cache_clear()


def test_a_product_takes_time():
    assert devices._product_seconds(torch.float32) > 0


def test_the_description_names_model_adapter_device_and_dtype(settings, tiny_target):
    text = describe(settings.model_copy(update={"adapter": "data/one"}))
    assert text.startswith(f"{tiny_target} + data/one on CPU") and text.endswith("float32")


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is not None, reason="flash-attn is installed")
def test_flash_attention_that_is_not_installed_ends_in_one_line(tiny_target):
    with pytest.raises(InputError, match=r"(?i)flash.?att") as caught:
        load_model(TargetSettings(model=str(tiny_target), device="cpu", attention="flash_attention_2"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"{", b"\xff\xfe"])
@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"])
def test_a_model_whose_files_are_damaged_is_one_line(tiny_target, tmp_path, file, content):
    folder = shutil.copytree(tiny_target, tmp_path / "model")
    (folder / file).write_bytes(content)
    load = load_tokenizer if file.startswith("tokenizer") else load_model
    with pytest.raises(
        InputError, match=r"^target\.model '.*': the model's files cannot be loaded \(.+\); mend"
    ) as caught:
        load(TargetSettings(model=str(folder), device="cpu", dtype="float32"))
    assert "\n" not in str(caught.value)


# Without a network.


@pytest.fixture
def hub_at(monkeypatch, tmp_path):
    """A function of an address: the hub is there, HF_HUB_OFFLINE is unset, and the hub's cache is tmp_path/hub."""
    import huggingface_hub
    from huggingface_hub import constants

    def place(url: str) -> None:
        monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: False)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    return place


class Asked:
    """In place of transformers' AutoTokenizer: keeps what it is asked for."""

    def __init__(self):
        self.sources, self.options = [], {}

    def from_pretrained(self, source, **options):
        self.sources.append(source)
        self.options = options
        raise OSError("not there")


def _load(auto, name):
    return from_pretrained(auto, name, setting="importance.classifier", cache_dir="none")


def test_without_a_network_a_missing_model_or_adapter_is_one_line_and_nobody_tries_again(hub_at):
    hub_at("http://127.0.0.1:9")
    auto = Asked()
    for name in ("nobody/nothing", "nothing"):
        with pytest.raises(
            InputError, match=rf"^importance\.classifier '{name}': .*the hub cannot be reached, and its"
        ):
            _load(auto, name)
    assert not auto.sources
    with pytest.raises(InputError, match=r"^adapter 'nobody/nothing': .*the hub cannot be reached"):
        find_adapter("nobody/nothing")


def test_a_hub_that_does_not_reply_is_given_up_soon(hub_at, monkeypatch):
    assert hub.SECONDS <= 2.5
    monkeypatch.setattr(hub, "SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it takes connections, and says nothing
        hub_at(f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        with pytest.raises(InputError, match="the hub cannot be reached"):
            _load(Asked(), "nobody/nothing")
        assert time.monotonic() - began < 3


def test_without_a_network_what_is_cached_is_loaded(hub_at, tiny_target, make_adapter, tmp_path):
    hub_at("http://127.0.0.1:9")
    for name, folder in (("tiny", tiny_target), ("adapter", make_adapter(0))):
        cached = tmp_path / "hub" / f"models--nobody--{name}"
        (cached / "refs").mkdir(parents=True)
        (cached / "refs" / "main").write_text("0" * 40)
        shutil.copytree(folder, cached / "snapshots" / ("0" * 40))
    settings = TargetSettings(model="nobody/tiny", device="cpu", dtype="float32")
    assert load_tokenizer(settings).eos_token == "<|im_end|>"
    assert load_model(settings, adapter="nobody/adapter").config.hidden_size == 32


def test_of_a_cached_model_the_commit_that_is_set_is_loaded_and_no_other(hub_at, tiny_target, tmp_path):
    hub_at("http://127.0.0.1:9")
    shutil.copytree(tiny_target, tmp_path / "hub" / "models--nobody--tiny" / "snapshots" / ("1" * 40))
    settings = TargetSettings(model="nobody/tiny", revision="1" * 40, device="cpu", dtype="float32")
    assert load_tokenizer(settings).eos_token == "<|im_end|>" and load_model(settings).config.hidden_size == 32
    for other in ("2" * 40, None):
        with pytest.raises(InputError, match=r"^target\.model 'nobody/tiny': .*its cache has no copy"):
            load_model(settings.model_copy(update={"revision": other}))


def test_a_hub_that_answers_is_asked_for_the_commit_that_is_set(hub_at, monkeypatch):
    monkeypatch.setattr(hub, "_unreachable", lambda: "")
    hub_at("http://127.0.0.1:9")
    auto = Asked()
    for revision, asked in (("1" * 40, "1" * 40), (None, "main")):
        with pytest.raises(InputError, match="not there"):
            from_pretrained(auto, "a/b", setting="target.model", cache_dir="none", revision=revision)
        assert auto.options.pop("revision") == asked


def test_a_hub_that_answers_is_asked_by_name(hub_at, monkeypatch):
    monkeypatch.setattr(hub, "_unreachable", lambda: "")
    hub_at("http://127.0.0.1:9")
    auto = Asked()
    with pytest.raises(InputError, match="not there"):
        _load(auto, "nobody/nothing")
    assert auto.sources == ["nobody/nothing"]


def test_a_number_that_is_no_card_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(InputError, match=r"target\.device is 'cuda:2', but this machine has 2 CUDA devices"):
        pick_device("cuda:2")
