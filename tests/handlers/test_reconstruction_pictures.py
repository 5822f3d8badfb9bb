# SPDX-License-Identifier: Apache-2.0
"""TensorBoard and a picture show what methods that rebuild images saw and rebuilt."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ignite.engine import Events
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy_training import ToyImages, toy_trainer

from monai_ssl.handlers import PretrainTensorBoard, ReconstructionSheet, tensorboard
from monai_ssl.handlers.tensorboard import view_grid
from monai_ssl.methods import MaskedAutoencoderCNN, ModelsGenesis, SwinUNETRPretext
from monai_ssl.networks import build_encoder


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_image_what_was_seen_and_prediction(spatial_dims, tmp_path):
    def method():
        encoder = build_encoder("segresnet", spatial_dims, out_channels=1, blocks_down=[1, 1], blocks_up=[1])
        return MaskedAutoencoderCNN(encoder, block_size=4)

    toy_trainer(
        method=method,
        dataset=ToyImages(4, 16, spatial_dims),
        views=lambda image, generator=None, extent=None: [image],
        max_epochs=1,
        train_handlers=[PretrainTensorBoard(tmp_path, every_steps=1), ReconstructionSheet(tmp_path)],
    ).run()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert set(events.Tags()["images"]) == {"views", "reconstruction"}
    picture = events.Images("reconstruction")[0]
    assert (picture.width, picture.height) == (3 * 18, 4 * 18)  # three columns, four images, a margin of 1
    assert "train/counted" in events.Tags()["scalars"]
    assert torch.isfinite(torch.tensor(events.Scalars("train/loss")[0].value))
    with Image.open(tmp_path / "reconstructions.png") as sheet:
        grey = np.asarray(sheet.convert("L"))
    assert grey.shape[1] > grey.shape[0] / 2
    assert grey.std() > 20, "three columns of images on white"


def test_a_method_that_rebuilds_nothing_gets_no_sheet(tmp_path):
    toy_trainer(max_epochs=1, train_handlers=[ReconstructionSheet(tmp_path)]).run()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method_class", [ModelsGenesis, SwinUNETRPretext])
def test_target_what_was_seen_and_prediction_of_other_methods(method_class, tmp_path, monkeypatch):
    """The target is not the view here: it was mirrored or turned."""
    pictures, outputs = [], []
    monkeypatch.setattr(tensorboard, "view_grid", lambda views, rows: pictures.append(views) or view_grid(views, rows))

    def method():
        decoder = {"out_channels": 1} if method_class is ModelsGenesis else {}
        return method_class(build_encoder("segresnet", 2, blocks_down=[1, 1], blocks_up=[1], **decoder))

    class Keep:
        def attach(self, engine):
            engine.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: outputs.append(engine.state.output))

    toy_trainer(
        method=method,
        dataset=ToyImages(4, 16, 2),
        views=lambda image, generator=None, extent=None: [image],
        max_epochs=1,
        train_handlers=[PretrainTensorBoard(tmp_path, every_steps=1), Keep()],
    ).run()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert set(events.Tags()["images"]) == {"views", "reconstruction"}
    shown = pictures[-1]
    assert len(shown) == 3
    for name, column in zip(("target", "corrupted", "prediction"), shown, strict=True):
        assert torch.equal(column, outputs[-1][name])
