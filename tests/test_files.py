"""Files appear whole or not at all, and what is damaged is refused with a word on it."""

import errno
import json
import os
from pathlib import Path

import pytest
import torch

from sbridge.errors import FileFormatError
from sbridge.storage import documents, files

TENSORS = {
    "b": torch.arange(6, dtype=torch.float64).reshape(2, 3),
    "a": torch.tensor(7),
    "state": torch.Generator().manual_seed(3).get_state(),
}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_round_trips(tmp_path):
    documents.write_text(tmp_path / "deep" / "er" / "a.json", json.dumps({"σ": [1, 2.5, None]}))
    assert documents.read_json(tmp_path / "deep" / "er" / "a.json") == {"σ": [1, 2.5, None]}
    files.write_tensors(tmp_path / "a.safetensors", TENSORS)
    found = files.read_tensors(tmp_path / "a.safetensors")
    assert found.keys() == TENSORS.keys()
    for key, value in TENSORS.items():
        assert torch.equal(found[key], value)
        assert found[key].dtype == value.dtype


def test_tensors_that_share_memory_or_are_strided_can_be_written(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    files.write_tensors(tmp_path / "a", {"whole": base, "transposed": base.mT, "row": base[1], "again": base})
    found = files.read_tensors(tmp_path / "a")
    assert torch.equal(found["transposed"], base.mT)
    assert torch.equal(found["row"], base[1])


def test_the_order_of_a_dict_does_not_show_in_the_file(tmp_path):
    files.write_tensors(tmp_path / "one", TENSORS)
    files.write_tensors(tmp_path / "two", dict(reversed(TENSORS.items())))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, failing):
    path = tmp_path / "a.txt"
    documents.write_text(path, "old")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, failing, full)
    with pytest.raises(OSError, match="No space left"):
        documents.write_text(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_file_is_replaced_in_one_move(tmp_path, monkeypatch):
    path, seen = tmp_path / "a.txt", []
    documents.write_text(path, "old")
    move = os.replace

    def watched(temporary, target):
        # Just before the move the new content is complete on disk, under another name in the same folder.
        seen.append((path.read_text(), Path(temporary).read_text(), Path(temporary).parent))
        move(temporary, target)

    monkeypatch.setattr(os, "replace", watched)
    documents.write_text(path, "new")
    assert seen == [("old", "new", tmp_path)]
    assert path.read_text() == "new"


def test_a_file_may_be_read_by_whoever_may_read_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    documents.write_text(tmp_path / "ours", "x")
    assert oct((tmp_path / "ours").stat().st_mode) == oct((tmp_path / "plain").stat().st_mode)


def test_what_cannot_be_read_is_refused(tmp_path):
    for read in (documents.read_json, files.read_tensors):
        with pytest.raises(FileFormatError, match="does not exist"):
            read(tmp_path / "missing")
    files.write_tensors(tmp_path / "t", TENSORS)
    documents.write_text(tmp_path / "j", json.dumps({"a": [1, 2, 3]}))
    for read, name, kind in ((documents.read_json, "j", "JSON"), (files.read_tensors, "t", "safetensors")):
        whole = (tmp_path / name).read_bytes()
        for size in (0, 1, len(whole) // 2, len(whole) - 1):
            (tmp_path / name).write_bytes(whole[:size])
            with pytest.raises(FileFormatError, match=f"not (a )?readable {kind}.*truncated"):
                read(tmp_path / name)
    (tmp_path / "j").write_bytes(b"\xff\xfe{}")
    with pytest.raises(FileFormatError, match="not readable JSON"):
        documents.read_json(tmp_path / "j")
