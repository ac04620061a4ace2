"""Paths: what a relative one is relative to, in a checkout, beside one and without one."""

import pytest

from tokenskip_lib.core import paths
from tokenskip_lib.core.paths import checkout, local_folder, need_checkout, relative, resolve_path
from tokenskip_lib.core.records import InputError


def test_relative_paths_are_of_the_checkout_from_any_folder_below_it(root, monkeypatch, tmp_path):
    for folder in (root, root / "notebooks"):
        monkeypatch.chdir(folder)
        assert checkout() == root and resolve_path("data/x") == root / "data" / "x"
    monkeypatch.chdir(tmp_path)
    assert resolve_path(str(root)) == root


def test_elsewhere_the_working_directory_comes_before_the_codes_checkout(root, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert checkout() == root and resolve_path("data/target_adapter") == root / "data" / "target_adapter"
    (tmp_path / "mine.jsonl").touch()
    assert resolve_path("mine.jsonl") == tmp_path / "mine.jsonl"
    for folder in ("notebooks", "tokenskip_lib"):
        (tmp_path / "other" / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "other" / "notebooks")
    assert checkout() == tmp_path / "other" and resolve_path("data") == tmp_path / "other" / "data"


def test_without_a_checkout_paths_are_of_the_working_directory(monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "__file__", str(tmp_path / "site-packages/tokenskip_lib/core/paths.py"))
    monkeypatch.chdir(tmp_path)
    assert checkout() is None and resolve_path("data/x") == tmp_path / "data" / "x"
    assert relative(tmp_path / "data") == "data"
    with pytest.raises(InputError, match="the notebooks are only in a checkout of the repository"):
        need_checkout("the notebooks are")


def test_a_folder_of_the_working_directory_is_named_in_full(monkeypatch, tmp_path):
    (tmp_path / "org" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert local_folder("org/model") == str(tmp_path / "org" / "model")
    assert local_folder("org/other") == "org/other"
