# SPDX-License-Identifier: Apache-2.0
"""Checkpoints survive kills, truncation, full disks and Ctrl-C, and the training goes on with the same numbers."""

from __future__ import annotations

import errno
import os
import random
import signal
import time

import pytest
import torch
from ignite.engine import Events
from kill_runs import WriteLosses, fork, read_losses, send_after, wait
from torch.utils.data import DataLoader
from toy_training import LossLog, ToyEpochSampler, ToyImages, ToyMethod, toy_trainer

from monai_ssl.engines import TrainingStopped
from monai_ssl.handlers import TrainingCheckpoint


def trained(folder, log=None, *, workers: int = 0, pause: float = 0.0, resume=True, handlers=(), **options):
    images = ToyImages()
    loader = DataLoader(images, 4, sampler=ToyEpochSampler(len(images)), num_workers=workers)
    logs = [WriteLosses(log, pause)] if log else []
    checkpoint = TrainingCheckpoint(folder, every_steps=1, resume=resume)
    trainer = toy_trainer(loader=loader, max_epochs=6, train_handlers=[*logs, *handlers, checkpoint], **options)
    trainer.run()
    return trainer


@pytest.mark.parametrize("workers", [0, 2])
def test_kill_at_random_moments(tmp_path, workers):
    assert wait(fork(trained, tmp_path / "whole", tmp_path / "whole.txt")) == 0
    whole = read_losses(tmp_path / "whole.txt")
    assert len(whole) == 30
    moments = random.Random(workers)
    for lines in (4, 9, 15):  # in epochs 1, 2 and 3, or in the middle of writing
        pid = fork(trained, tmp_path / "killed", tmp_path / "killed.txt", workers=workers, pause=0.01)
        assert send_after(pid, tmp_path / "killed.txt", lines, moments.random() * 0.03) == -signal.SIGKILL
    assert wait(fork(trained, tmp_path / "killed", tmp_path / "killed.txt")) == 0
    assert read_losses(tmp_path / "killed.txt") == whole
    assert len(list((tmp_path / "killed").iterdir())) == 2, "nothing half written is left"


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_save_and_stop_with_one_line(tmp_path, capfd, number, code):
    pid = fork(trained, tmp_path / "files", tmp_path / "losses.txt", workers=2, pause=0.02)
    assert send_after(pid, tmp_path / "losses.txt", 7, 0.005, number) == code
    lines = [line for line in capfd.readouterr().err.splitlines() if "training stopped by" in line]
    assert len(lines) == 1
    assert "resume=True" in lines[0]
    done = len(read_losses(tmp_path / "losses.txt"))
    assert f"training_{done:08d}.pt" in lines[0]
    assert (tmp_path / "files" / f"training_{done:08d}.pt").exists()


def test_ctrl_c_reaches_the_workers_too_and_the_run_ends_in_order(tmp_path, capfd):
    """A terminal sends SIGINT to the whole process group."""

    class InterruptGroup:
        def attach(self, engine):
            engine.add_event_handler(Events.ITERATION_COMPLETED(once=7), self.interrupt)

        def interrupt(self, engine):
            for worker in torch.multiprocessing.active_children():
                os.kill(worker.pid, signal.SIGINT)
            time.sleep(0.2)
            os.kill(os.getpid(), signal.SIGINT)

    assert wait(fork(trained, tmp_path, workers=2, handlers=[InterruptGroup()])) == 130
    assert "DataLoader worker" not in capfd.readouterr().err
    assert (tmp_path / "training_00000007.pt").exists() or (tmp_path / "training_00000008.pt").exists()


def test_everything_is_saved_last_and_restored_first(tmp_path):
    """Wherever the checkpoint stands, a measurement at the epoch's end is in it and there again before others look."""

    class Probe:
        value, seen_at_start = 0, None

        def attach(self, engine):
            engine.register_state("probe", self)
            engine.add_event_handler(Events.STARTED, lambda: setattr(self, "seen_at_start", self.value))
            engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: setattr(self, "value", engine.state.epoch))

        def state_dict(self):
            return {"value": self.value}

        def load_state_dict(self, state):
            self.value = state["value"]

    for order in (1, -1):
        first, second = Probe(), Probe()
        folder = tmp_path / str(order)
        toy_trainer(max_epochs=2, train_handlers=[TrainingCheckpoint(folder), first][::order]).run()
        toy_trainer(max_epochs=3, train_handlers=[TrainingCheckpoint(folder, resume=True), second][::order]).run()
        assert second.seen_at_start == 2


def test_a_truncated_newest_file_falls_back(tmp_path, caplog):
    whole, log = LossLog(), LossLog()
    toy_trainer(max_epochs=3, train_handlers=[whole, TrainingCheckpoint(tmp_path)]).run()
    newest = TrainingCheckpoint(tmp_path).files()[-1]
    newest.write_bytes(newest.read_bytes()[:-1000])
    toy_trainer(max_epochs=3, train_handlers=[log, TrainingCheckpoint(tmp_path, resume=True)]).run()
    assert "training_00000015.pt can't be read" in caplog.text
    assert log.losses == {iteration: loss for iteration, loss in whole.losses.items() if iteration > 10}


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:100], lambda data: b"not a checkpoint" * 99])
def test_when_no_file_can_be_read_the_training_does_not_start_over(tmp_path, damage):
    toy_trainer(max_epochs=1, train_handlers=[TrainingCheckpoint(tmp_path)]).run()
    (path,) = TrainingCheckpoint(tmp_path).files()
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(RuntimeError, match="no checkpoint can be read"):
        toy_trainer(train_handlers=[TrainingCheckpoint(tmp_path, resume=True)]).run()


def test_a_flipped_bit_is_noticed(tmp_path, caplog):
    toy_trainer(max_epochs=1, train_handlers=[TrainingCheckpoint(tmp_path)]).run()
    (path,) = TrainingCheckpoint(tmp_path).files()
    data = bytearray(path.read_bytes())
    state = torch.load(path, weights_only=True)
    stored = state["method"]["encoder.net.0.weight"].numpy().tobytes()
    data[data.index(stored) + 5] ^= 16
    path.write_bytes(data)
    with pytest.raises(RuntimeError, match="no checkpoint can be read"):
        toy_trainer(train_handlers=[TrainingCheckpoint(tmp_path, resume=True)]).run()


def test_nothing_is_unpickled_from_a_file(tmp_path, caplog):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "hacked"), "w"))

    torch.save({"format": Evil()}, tmp_path / "training_00000001.pt")
    with pytest.raises(RuntimeError, match="no checkpoint can be read"):
        toy_trainer(train_handlers=[TrainingCheckpoint(tmp_path, resume=True)]).run()
    assert not (tmp_path / "hacked").exists()


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    toy_trainer(max_epochs=1, train_handlers=[TrainingCheckpoint(tmp_path)]).run()
    with pytest.raises(ValueError, match=r"training_00000005.pt does not fit this training: .*another method"):
        toy_trainer(
            method=lambda: ToyMethod(spatial_dims=3), train_handlers=[TrainingCheckpoint(tmp_path, resume=True)]
        ).run()


def test_a_full_disk_stops_in_order_and_keeps_the_older_file(tmp_path, monkeypatch, capfd):
    save, calls = torch.save, []

    def full_at_the_second(state, file):
        calls.append(0)
        if len(calls) == 2:
            file.write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(state, file)

    monkeypatch.setattr(torch, "save", full_at_the_second)
    with pytest.raises(TrainingStopped) as stopped:
        toy_trainer(max_epochs=3, train_handlers=[TrainingCheckpoint(tmp_path)]).run()
    assert stopped.value.code == 1
    message = capfd.readouterr().err
    assert "space on the disk" in message
    assert "training_00000005.pt is intact" in message
    assert [path.name for path in tmp_path.iterdir()] == ["training_00000005.pt"]
    assert torch.load(tmp_path / "training_00000005.pt", weights_only=True)["optimizer_steps"] == 5


def test_a_really_full_disk(tmp_path, monkeypatch):
    """torch.save wraps the system's error; this is the error that the kernel gives."""
    from contextlib import contextmanager

    from monai_ssl.handlers import checkpoint
    from monai_ssl.weights import files

    @contextmanager
    def on_a_full_device(path):
        with open("/dev/full", "wb") as file:
            try:
                yield file
                file.flush()
            except BaseException as error:
                assert files._disk_full_cause(error) is not None
                raise OSError(errno.ENOSPC, "No space left") from error

    monkeypatch.setattr(checkpoint, "atomic_file", on_a_full_device)
    with pytest.raises(TrainingStopped, match="No space left"):
        toy_trainer(train_handlers=[TrainingCheckpoint(tmp_path)]).run()


def test_keeps_the_last_two_and_the_last_epoch(tmp_path):
    toy_trainer(max_epochs=5, train_handlers=[TrainingCheckpoint(tmp_path, every_epochs=2)]).run()
    assert [path.name for path in TrainingCheckpoint(tmp_path).files()] == [
        "training_00000020.pt",
        "training_00000025.pt",
    ]


def test_a_fresh_start_sets_an_earlier_run_aside(tmp_path, caplog):
    toy_trainer(max_epochs=3, train_handlers=[TrainingCheckpoint(tmp_path)]).run()
    toy_trainer(max_epochs=1, train_handlers=[TrainingCheckpoint(tmp_path)]).run()
    assert [path.name for path in TrainingCheckpoint(tmp_path).files()] == ["training_00000005.pt"]
    assert len(list((tmp_path / "earlier").iterdir())) == 2
    trainer = toy_trainer(
        max_epochs=4,
        train_handlers=[TrainingCheckpoint(tmp_path, resume=tmp_path / "earlier" / "training_00000015.pt")],
    )
    trainer.run()
    assert trainer.optimizer_steps == 20


def test_resume_without_a_checkpoint_starts_afresh(tmp_path):
    trainer = toy_trainer(max_epochs=1, train_handlers=[TrainingCheckpoint(tmp_path / "new", resume=True)])
    trainer.run()
    assert trainer.optimizer_steps == 5
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        toy_trainer(train_handlers=[TrainingCheckpoint(tmp_path, resume=tmp_path / "none.pt")]).run()


def test_a_finished_training_resumes_to_its_end(tmp_path):
    toy_trainer(max_epochs=2, train_handlers=[TrainingCheckpoint(tmp_path)]).run()
    log, ended = LossLog(), []
    trainer = toy_trainer(max_epochs=2, train_handlers=[log, TrainingCheckpoint(tmp_path, resume=True)])
    trainer.add_event_handler(Events.COMPLETED, lambda: ended.append(1))
    trainer.run()
    assert not log.losses
    assert ended == [1]


def test_accumulating_saves_between_steps_only(tmp_path):
    trainer = toy_trainer(
        max_epochs=1, accumulate=2, train_handlers=[TrainingCheckpoint(tmp_path, every_steps=1, keep=9)]
    )
    trainer.run()
    states = [torch.load(path, weights_only=True) for path in TrainingCheckpoint(tmp_path).files()]
    assert [state["iteration"] for state in states] == [2, 4, 5]


@pytest.mark.parametrize("options", [{"every_epochs": 0}, {"every_steps": 0}, {"keep": 0}])
def test_refused_arguments(tmp_path, options):
    with pytest.raises(ValueError, match="at least 1"):
        TrainingCheckpoint(tmp_path, **options)
