"""Adapters: a damaged one, and one of another model or rank, is one line; none changes a model in part."""

import json

import pytest
from safetensors.torch import load, save

from tokenskip_lib.core.records import InputError
from tokenskip_lib.core.settings import TargetSettings
from tokenskip_lib.models.adapters import CONFIG, WEIGHTS, attach_adapters
from tokenskip_lib.models.loading import load_model

LAYER = ".layers.1."


@pytest.fixture
def settings(tiny_target):
    return TargetSettings(model=str(tiny_target), device="cpu", dtype="float32")


def _assert_refused(settings, adapter, says: str) -> None:
    """Both ways of using an adapter refuse it in one line."""
    for use in (
        lambda: load_model(settings, adapter=adapter),
        lambda: attach_adapters(load_model(settings), {"tokenskip": adapter}),
    ):
        with pytest.raises(InputError) as caught:
            use()
        message = str(caught.value)
        assert message.startswith(str(adapter)) and says in message and message.isprintable()


@pytest.mark.parametrize(
    "change", [lambda whole: b"", lambda whole: whole[:100], lambda whole: whole[:-10], lambda whole: whole + b"x" * 9]
)
def test_weights_that_are_cut_off_or_too_long_are_one_line(settings, make_adapter, change):
    adapter = make_adapter(1)
    (adapter / WEIGHTS).write_bytes(change((adapter / WEIGHTS).read_bytes()))
    _assert_refused(settings, adapter, "damaged, or the adapter of another model or rank (Error while deserializing")


def _of_rank_two(weights):
    return {key: (value[:2] if "lora_A" in key else value[:, :2]).contiguous() for key, value in weights.items()}


def _of_a_narrower_base(weights):
    return {key: (value[:, :16] if "lora_A" in key else value[:16]).contiguous() for key, value in weights.items()}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda weights: dict(sorted(weights.items())[::2]), "it lacks base_model"),
        (lambda weights: {}, "it lacks base_model"),
        (lambda weights: {key: value for key, value in weights.items() if LAYER in key}, "it lacks base_model"),
        (lambda weights: {key.replace("layers", "h"): value for key, value in weights.items()}, "it lacks base_model"),
        (
            lambda weights: (
                weights | {k.replace(LAYER, ".layers.2."): v.clone() for k, v in weights.items() if LAYER in k}
            ),
            "the model has no place for base_model.model.model.layers.2.",
        ),
        (_of_rank_two, "size mismatch"),
        (_of_a_narrower_base, "size mismatch"),
    ],
)
def test_weights_that_do_not_fit_are_refused(settings, make_adapter, change, says):
    adapter = make_adapter(1)
    (adapter / WEIGHTS).write_bytes(save(change(load((adapter / WEIGHTS).read_bytes())), metadata={"format": "pt"}))
    _assert_refused(settings, adapter, says)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda config: [], "expected an object, found list"),
        (lambda config: None, "expected an object, found NoneType"),
        (lambda config: {}, "damaged"),
        (lambda config: {**config, "r": "x"}, "damaged"),
        (lambda config: {**config, "peft_type": "NONE"}, "damaged"),
        (lambda config: {**config, "target_modules": ["nothing"]}, "damaged"),
    ],
)
def test_a_damaged_configuration_is_one_line(settings, make_adapter, change, says):
    adapter = make_adapter(1)
    (adapter / CONFIG).write_text(json.dumps(change(json.loads((adapter / CONFIG).read_text()))))
    _assert_refused(settings, adapter, says)


def test_a_configuration_that_is_missing_or_no_text_is_named(settings, make_adapter):
    adapter = make_adapter(1)
    for content, says in (("{}".encode("utf-16"), "not UTF-8"), (b"[" * 100_000, "nested too deeply")):
        (adapter / CONFIG).write_bytes(content)
        _assert_refused(settings, adapter, says)
    (adapter / CONFIG).unlink()
    _assert_refused(settings, adapter, f"{CONFIG} is missing")
