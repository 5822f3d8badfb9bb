"""Prepare meets bad files, a full disk, crashes, Ctrl-C and kill -9."""

from __future__ import annotations

import errno
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from array_folders import many_arrays, random_array, read_array, read_array_or_crash, read_array_slowly, write_arrays

from monai_ssl.data import ImageStore, prepare_store
from monai_ssl.data.files import folder_lock


def prepare(tmp_path, table, store="store", **options):
    options = {"reader": read_array, "num_workers": 0, "progress": False} | options
    return prepare_store(table, tmp_path / "images", tmp_path / store, **options)


def partial_files(folder):
    return [path for path in folder.rglob("*") if path.name.endswith(".partial")]


def test_bad_files_become_refused_rows(tmp_path):
    arrays = many_arrays(4)
    arrays |= {
        "bad1": random_array((9, 9)),
        "byteflat": np.full((9, 9), 7, np.uint8),
        "deep9nan": np.full((9, 9), np.nan),
    }
    table = write_arrays(tmp_path / "images", arrays)
    (tmp_path / "images" / "deep000.npy").write_bytes(b"not an array, and of another size")
    (tmp_path / "images" / "deep001.npy").unlink()
    store = prepare(tmp_path, table, max_refused_fraction=0.8)
    assert store.table["path"].to_pylist() == ["deep002.npy", "deep003.npy"]
    reasons = dict(zip(store.refused["path"].to_pylist(), store.refused["reason"].to_pylist(), strict=True))
    assert reasons == {
        "bad1.npy": "made to be refused",
        "byteflat.npy": "all its pixels have the same grey value",
        "deep9nan.npy": "it has values that are not finite",
        "deep000.npy": "the file changed since it was indexed; build the index again",
        "deep001.npy": "the file is gone since it was indexed; build the index again",
    }
    assert set(store.refused["status"].to_pylist()) == {"refused"}
    assert store.refused["store_item"].null_count == 5


def test_errors_of_a_reader_belong_to_the_file_and_do_not_quote_it(tmp_path):
    arrays = many_arrays(2)
    table = write_arrays(tmp_path / "images", arrays | {"deep9": np.zeros((2, 2), dtype=object)})
    store = prepare(tmp_path, table)  # np.load refuses pickled objects with a ValueError
    assert store.refused["reason"].to_pylist() == ["unexpected ValueError while reading"]


def test_too_many_refused_stops_with_reasons_and_examples(tmp_path):
    arrays = many_arrays(4) | {f"bad{i}": random_array((9, 9), seed=i) for i in range(5)}
    table = write_arrays(tmp_path / "images", arrays)
    with pytest.raises(RuntimeError, match=r"5 of 9 images were refused \(allowed: 50%\): 5 x made to be .*bad0\.npy"):
        prepare(tmp_path, table)
    with pytest.raises(FileNotFoundError):
        ImageStore(tmp_path / "store")
    assert len(prepare(tmp_path, table, max_refused_fraction=0.6)) == 4


def test_none_left_is_an_error_whatever_is_allowed(tmp_path):
    table = write_arrays(tmp_path / "images", {"bad1": random_array((9, 9))})
    with pytest.raises(RuntimeError, match="1 of 1 images were refused"):
        prepare(tmp_path, table, max_refused_fraction=1.0)


def test_a_file_that_kills_its_process_is_refused(tmp_path):
    arrays = many_arrays(6) | {"crash": random_array((9, 9))}
    table = write_arrays(tmp_path / "images", arrays)
    store = prepare(tmp_path, table, reader=read_array_or_crash, num_workers=2)
    assert len(store) == 6
    assert store.refused["reason"].to_pylist() == ["the decoder crashed or was killed on this file"]


class FullDisk:
    """From the n-th image on, half of it is written and then the disk is full."""

    def __init__(self, room: int):
        self.room = room
        self.open = pathlib.Path.open

    def __call__(self, path, mode="r", *args, **kwargs):
        file = self.open(path, mode, *args, **kwargs)
        if ".b2nd." not in path.name or "w" not in mode:
            return file
        self.room -= 1
        if self.room >= 0:
            return file
        write = file.write

        class Half:
            def __enter__(self):
                return self

            def __exit__(self, *error):
                file.close()

            def write(self, data):
                write(data[: len(data) // 2])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        return Half()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_full_disk_leaves_whole_files_and_the_next_run_goes_on(tmp_path, monkeypatch, workers):
    table = write_arrays(tmp_path / "images", many_arrays(24))
    with monkeypatch.context() as patch:
        disk = FullDisk(room=4)
        patch.setattr(pathlib.Path, "open", lambda path, *args, **kwargs: disk(path, *args, **kwargs))
        with pytest.raises(RuntimeError, match=r"the disk is full\. What was prepared is kept"):
            prepare(tmp_path, table, num_workers=workers)
    time.sleep(0.5 * workers)  # workers may still be at their last image
    assert not partial_files(tmp_path / "store")
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*.b2nd")}
    assert 4 <= len(made) < 24
    store = prepare(tmp_path, table)
    assert len(store) == 24 and not len(store.refused)
    assert all(path.stat().st_mtime_ns == mtime for path, mtime in made.items())
    fresh = prepare(tmp_path, table, store="fresh")
    assert all(np.array_equal(store.read(i), fresh.read(i)) for i in range(24))


def test_a_disk_full_at_the_table_leaves_the_old_store(tmp_path, monkeypatch):
    before = prepare(tmp_path, write_arrays(tmp_path / "images", many_arrays(2)))
    table = write_arrays(tmp_path / "images", many_arrays(4))

    def no_room(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("pyarrow.parquet.write_table", no_room)
        with pytest.raises(RuntimeError, match="the disk is full"):
            prepare(tmp_path, table)
    assert not partial_files(tmp_path / "store")
    assert ImageStore(tmp_path / "store").table.equals(before.table)
    assert len(prepare(tmp_path, table)) == 4


def test_a_damaged_image_is_made_again(tmp_path):
    table = write_arrays(tmp_path / "images", many_arrays(3))
    store = prepare(tmp_path, table)
    expected = store.read(1)
    path = tmp_path / "store" / store.table["store_item"][1].as_py()
    path.write_bytes(path.read_bytes()[:100])
    np.testing.assert_array_equal(prepare(tmp_path, table).read(1), expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_interrupted_and_run_again_gives_the_same_store(tmp_path, sent):
    table = write_arrays(tmp_path / "images", many_arrays(80))
    run = fork_a_run(tmp_path, table)
    try:
        deadline = time.monotonic() + 60
        while len(list((tmp_path / "store").rglob("*.b2nd"))) < 6:
            assert time.monotonic() < deadline, (tmp_path / "said").read_text()
            time.sleep(0.02)
        # kill -9 hits the main process only, as the kernel or a scheduler would; Ctrl-C goes to the whole group.
        os.kill(run, sent) if sent == signal.SIGKILL else os.killpg(run, sent)
        status = os.waitpid(run, 0)[1]
        while alive(run):
            assert time.monotonic() < deadline, "workers outlive the run"
            time.sleep(0.1)
    finally:
        if alive(run):
            os.killpg(run, signal.SIGKILL)
    if sent == signal.SIGINT:
        said = (tmp_path / "said").read_text()
        assert os.waitstatus_to_exitcode(status) == 130
        assert "the same command goes on from there" in said and "Traceback" not in said
    else:
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*.b2nd")}
    assert 6 <= len(made) < 80
    with pytest.raises(FileNotFoundError):
        ImageStore(tmp_path / "store")

    store = prepare(tmp_path, table, reader=read_array_slowly, num_workers=2)
    assert not partial_files(tmp_path / "store")
    assert all(path.stat().st_mtime_ns == mtime for path, mtime in made.items()), "what was there is kept"
    fresh = prepare(tmp_path, table, store="fresh")
    assert fresh.table.drop_columns(["store_item"]).equals(store.table.drop_columns(["store_item"]))
    assert all(np.array_equal(store.read(i), fresh.read(i)) for i in range(80))


def fork_a_run(tmp_path, table) -> int:
    """Prepare in a process of its own group, which this one may kill; what it says goes to the file ``said``."""
    run = os.fork()
    if run:
        return run
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        said = os.open(tmp_path / "said", os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(said, 1)
        os.dup2(said, 2)
        sys.stderr = os.fdopen(2, "w", buffering=1)
        prepare(tmp_path, table, reader=read_array_slowly, num_workers=2)
    except KeyboardInterrupt:
        os._exit(130)
    finally:
        os._exit(1)


def alive(group: int) -> list[str]:
    """Processes of a group that have not ended."""
    listing = subprocess.run(["ps", "-eo", "pgid,stat,pid"], capture_output=True, text=True, check=True).stdout
    fields = [line.split() for line in listing.splitlines()[1:]]
    return [pid for pgid, state, pid in fields if int(pgid) == group and not state.startswith("Z")]


def test_two_processes_take_turns(tmp_path):
    order = []

    def wait_for_it():
        with folder_lock(tmp_path, lambda: order.append("waits")):
            order.append("has it")

    with folder_lock(tmp_path):
        other = threading.Thread(target=wait_for_it)
        other.start()
        while "waits" not in order:
            time.sleep(0.01)
        time.sleep(0.05)
        order.append("done")
    other.join(10)
    assert order == ["waits", "done", "has it"]
