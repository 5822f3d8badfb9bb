# SPDX-License-Identifier: Apache-2.0
"""Speed, progress, curves and TensorBoard."""

from __future__ import annotations

import csv
import io
import time

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy_training import ToyImages, ToyMethod, toy_trainer, toy_views

from monai_ssl.handlers import (
    OnlineProbe,
    PretrainTensorBoard,
    ProgressETA,
    Throughput,
    TrainingCheckpoint,
    TrainingCurves,
    view_grid,
)
from monai_ssl.handlers.curves import LossTrace
from monai_ssl.handlers.progress import _in_words


class SlowImages(ToyImages):
    def __getitem__(self, i):
        time.sleep(0.02)
        return super().__getitem__(i)


class SlowMethod(ToyMethod):
    def forward(self, batch):
        time.sleep(0.04)
        return super().forward(batch)


def test_throughput_splits_loader_and_step(caplog):
    waiting = toy_trainer(max_epochs=1, dataset=SlowImages(), train_handlers=[Throughput()])
    with caplog.at_level("INFO"):
        waiting.run()
    assert waiting.state.metrics["loader_fraction"] > 0.5
    assert "the loader is the limit: raise num_workers (now 0)" in caplog.text
    caplog.clear()
    computing = toy_trainer(max_epochs=1, method=SlowMethod, train_handlers=[Throughput()])
    with caplog.at_level("INFO"):
        computing.run()
    assert computing.state.metrics["loader_fraction"] < 0.2
    assert "the loader is the limit" not in caplog.text
    assert 5 < computing.state.metrics["images_per_second"] < 100, "4 images in 0.04 s and a little"
    assert "images/s" in caplog.text


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_on_a_terminal_is_one_line():
    stream = Terminal()
    toy_trainer(max_epochs=2, train_handlers=[ProgressETA(stream=stream)]).run()
    text = stream.getvalue()
    assert "epoch 2/2, loss" in text
    assert "10/10" in text
    assert text.count("\n") <= 1


def test_progress_without_a_terminal_is_a_line_an_epoch(caplog):
    stream = io.StringIO()
    with caplog.at_level("INFO", logger="monai_ssl"):
        toy_trainer(max_epochs=2, train_handlers=[ProgressETA(stream=stream)]).run()
    assert not stream.getvalue()
    lines = [record.message for record in caplog.records if record.name.endswith("progress")]
    assert len(lines) == 2
    assert "epoch 1/2, loss" in lines[0]
    assert "iteration 5 of 10" in lines[0]
    assert lines[1].endswith("0 min 00 s left")
    assert _in_words(3725) == "1 h 02 min"


def test_progress_after_a_resume_counts_what_is_left(tmp_path, caplog):
    toy_trainer(max_epochs=1, train_handlers=[TrainingCheckpoint(tmp_path)]).run()
    stream = Terminal()
    toy_trainer(
        max_epochs=3, train_handlers=[ProgressETA(stream=stream), TrainingCheckpoint(tmp_path, resume=True)]
    ).run()
    assert "15/15" in stream.getvalue()
    assert "1/15" not in stream.getvalue().replace("11/15", "")


def test_loss_trace_keeps_means_of_equal_stretches():
    trace = LossTrace(max_points=4)
    for loss in range(11):
        trace.add(float(loss))
    assert trace.stretch == 4
    assert trace.means == [1.5, 5.5]
    other = LossTrace(max_points=4)
    other.load_state_dict(trace.state_dict())
    for each in (trace, other):
        each.add(11.0)
    assert trace.means == other.means == [1.5, 5.5, 9.5]


def rows(folder) -> list[dict]:
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_curves_are_a_table_and_a_picture(tmp_path):
    labelled = [{"image": ToyImages(6).images, "label": torch.tensor([0, 1] * 3)}]
    toy_trainer(max_epochs=3, train_handlers=[TrainingCurves(tmp_path), OnlineProbe(labelled)]).run()
    table = rows(tmp_path)
    assert [row["epoch"] for row in table] == ["1", "2", "3"]
    assert [row["step"] for row in table] == ["5", "10", "15"]
    assert all(float(row["loss"]) > 0 and float(row["gradient_norm"]) > 0 for row in table)
    assert all(0 <= float(row["knn_auc"]) <= 1 for row in table), "the probe, attached later, measured before"
    assert Image.open(tmp_path / "loss_curve.png").size[0] > 500


def test_curves_go_on_after_a_resume(tmp_path):
    toy_trainer(max_epochs=3, train_handlers=[TrainingCurves(tmp_path / "whole")]).run()
    for epochs, resume in ((2, False), (3, True)):
        handlers = [TrainingCurves(tmp_path), TrainingCheckpoint(tmp_path / "checkpoints", resume=resume)]
        toy_trainer(max_epochs=epochs, train_handlers=handlers, learning_rate_schedule=None).run()
    assert [row["epoch"] for row in rows(tmp_path)] == ["1", "2", "3"]
    assert handlers[0].trace.means[:10] and len(handlers[0].trace.means) == 15


def test_a_curve_that_can_not_be_written_is_no_end(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    toy_trainer(max_epochs=1, train_handlers=[TrainingCurves(tmp_path / "file" / "folder")]).run()
    assert "file" in caplog.text


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_view_grid(spatial_dims):
    views = [torch.rand(3, 1, *[6] * spatial_dims) * 5 - 2, torch.rand(3, 1, *[4] * spatial_dims)]
    grid = view_grid(views, max_images=2)
    assert grid.shape == (2 * 8, 8 + 6)
    assert grid.min() == 0
    assert grid.max() == 1
    middle = views[0][1, 0] if spatial_dims == 2 else views[0][1, 0, 3]
    expected = (middle - middle.min()) / (middle.max() - middle.min())
    torch.testing.assert_close(grid[9:15, 1:7], expected)
    assert view_grid([torch.full((1, 1, 4, 4), 7.0)]).isfinite().all(), "a constant image"


def test_tensorboard_holds_curves_pictures_and_histograms(tmp_path):
    toy_trainer(
        max_epochs=3,
        train_handlers=[PretrainTensorBoard(tmp_path, every_steps=5, every_epochs=3), Throughput()],
    ).run()
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0, "histograms": 0})
    events.Reload()
    tags = events.Tags()
    assert {"train/loss", "train/learning_rate", "epoch/images_per_second"} <= set(tags["scalars"])
    assert [point.step for point in events.Scalars("train/loss")] == [5, 10, 15]
    assert [picture.step for picture in events.Images("views")] == [5, 15]
    assert [point.step for point in events.Histograms("embedding")] == [5, 15]


def test_tensorboard_without_images_and_after_a_resume(tmp_path):
    for epochs, resume in ((1, False), (2, True)):
        handlers = [
            PretrainTensorBoard(tmp_path / "events", every_steps=1, images=False),
            TrainingCheckpoint(tmp_path, resume=resume),
        ]
        toy_trainer(max_epochs=epochs, train_handlers=handlers).run()
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    assert not events.Tags()["images"]
    assert [point.step for point in events.Scalars("train/loss")] == list(range(1, 11))
    with pytest.raises(ValueError, match="at least 1"):
        PretrainTensorBoard(tmp_path, every_steps=0)


def test_toy_views_differ():
    """The helper's views are two views, or the tests above test nothing."""
    first, second = toy_views(ToyImages(2).images, torch.Generator().manual_seed(0))
    assert not torch.equal(first, second)
