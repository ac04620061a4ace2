"""The note of a training: a folder of another training, or a damaged one, is refused and kept."""

import json

import pytest

from tokenskip_lib.core.records import InputError
from tokenskip_lib.training.adapter import NOTE, SUMMARY, open_training


@pytest.fixture
def trained(tmp_path):
    """A folder whose training has ended."""
    (tmp_path / NOTE).write_text(json.dumps({"rank": 8}))
    (tmp_path / SUMMARY).write_text(json.dumps({"steps": 3}))
    return tmp_path


def test_a_training_that_has_ended_is_opened_and_another_is_refused(trained):
    assert open_training(trained, {"rank": 8}).summary == {"steps": 3}
    with pytest.raises(InputError, match="another 'rank'"):
        open_training(trained, {"rank": 4})


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(InputError, match="mine: a file; name a folder"):
        open_training(tmp_path / "mine", {"rank": 8})


@pytest.mark.parametrize("name", [NOTE, SUMMARY])
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"[]", "expected an object, found list"),
        (b"null", "expected an object, found NoneType"),
        (b"{", "not JSON"),
        (b"", "not JSON"),
        ('{"rank": 8}'.encode("utf-16"), "not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_a_damaged_note_or_summary_is_one_line_and_stays(trained, name, content, says):
    (trained / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        open_training(trained, {"rank": 8})
    assert str(caught.value).startswith(f"{trained / name}: {says}") and str(caught.value).isprintable()
    assert (trained / name).read_bytes() == content
