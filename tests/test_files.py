import errno
import fcntl
import os
import threading
from pathlib import Path

import pytest
from filelock import FileLock, Timeout
from servers import wait_for

from bincount import files
from bincount.errors import DatasetError, DiskFull


def test_what_goes_wrong_while_a_file_is_written_leaves_the_one_before_and_no_other(tmp_path):
    path = tmp_path / "result.json"
    with files.atomic_write(path) as temporary:
        temporary.write_text("whole")
    with pytest.raises(UnicodeEncodeError), files.atomic_write(path) as temporary:
        temporary.write_text("half \ud800")
    assert path.read_text() == "whole"
    assert os.listdir(tmp_path) == ["result.json"]


def write_to_full_device(path):
    path.symlink_to("/dev/full")
    path.write_text("rows")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_an_error_with_the_remedy(tmp_path):
    remedy = r"cannot write .*/table: No space left on device; free some space and run again, nothing is lost"
    with pytest.raises(DiskFull, match=remedy), files.atomic_write(tmp_path / "table") as temporary:
        write_to_full_device(temporary)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
        Exception(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        ),  # as safetensors says it
    ],
    ids=["quota", "safetensors"],
)
def test_there_are_several_ways_of_saying_that_a_disk_is_full(tmp_path, error):
    with pytest.raises(DiskFull, match="free some space and run again"), files.raise_on_disk_full(tmp_path):
        raise error


@pytest.mark.parametrize(
    "error", [PermissionError(errno.EACCES, "Permission denied"), DatasetError("No space left on device, it says")]
)
def test_other_errors_stay_as_they_are(tmp_path, error):
    with pytest.raises(type(error)) as caught, files.raise_on_disk_full(tmp_path):
        raise error
    assert caught.value is error


@pytest.mark.parametrize("name", ["n" * 255, "ü" * 127, "short"])
def test_a_name_as_long_as_files_have_is_written_atomically(tmp_path, name):
    with files.atomic_write(tmp_path / name) as temporary:
        temporary.write_text("all of it")
        assert temporary.name.startswith(".")
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.fixture
def impatient(monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(files, "SECONDS_OF_PATIENCE", 0)
    monkeypatch.setattr(files, "SECONDS_BETWEEN_REMINDERS", 0.1)


def test_who_waits_for_a_lock_says_for_what_again_and_again_and_when_it_goes_on(tmp_path, impatient, caplog):
    path, held = tmp_path / ".lock", threading.Event()

    def hold() -> None:
        with files.locked(path, "nobody"):
            held.set()
            wait_for(lambda: len(caplog.records) >= 2)

    other = threading.Thread(target=hold)
    other.start()
    held.wait(60)
    with files.locked(path, "another process is packing images in packs/64"):
        other.join()
    waiting = [record.message for record in caplog.records if "waiting for" in record.message]
    assert len(waiting) >= 2
    assert all(line.endswith("s by now: another process is packing images in packs/64") for line in waiting)
    assert caplog.messages[-1].startswith("going on after ")


def test_a_lock_that_is_free_is_held_without_a_word(tmp_path, impatient, caplog):
    with files.locked(tmp_path / ".lock", "another process"), pytest.raises(Timeout):
        FileLock(tmp_path / ".lock").acquire(timeout=0)
    FileLock(tmp_path / ".lock").acquire(timeout=0).lock.release()
    assert not caplog.records


def test_who_is_told_to_stop_waits_for_a_lock_no_longer(tmp_path, impatient):
    with (
        files.locked(tmp_path / ".lock", "nobody"),
        pytest.raises(Timeout),
        files.locked(tmp_path / ".lock", "another process", is_stopped=lambda: True),
    ):
        pass


def test_where_fsync_leaves_data_in_the_disks_own_memory_the_disk_is_asked_to_write_it(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)  # of macOS
    monkeypatch.setattr(fcntl, "fcntl", lambda descriptor, command: asked.append(command))
    monkeypatch.setattr(files.os, "fsync", lambda descriptor: asked.append("fsync"))
    with files.atomic_write(tmp_path / "result") as temporary:
        temporary.write_text("whole")
    assert asked == [51]

    def not_supported(descriptor, command):
        raise OSError(errno.ENOTSUP, "a disk on the network")

    monkeypatch.setattr(fcntl, "fcntl", not_supported)
    with files.atomic_write(tmp_path / "result") as temporary:
        temporary.write_text("whole")
    assert asked == [51, "fsync"]
