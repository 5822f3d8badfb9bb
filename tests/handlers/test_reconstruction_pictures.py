# SPDX-License-Identifier: Apache-2.0
"""TensorBoard and a picture show what masked modelling hid and rebuilt."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy_training import ToyImages, toy_trainer

from monai_ssl.handlers import PretrainTensorBoard, ReconstructionSheet
from monai_ssl.methods import MaskedAutoencoderCNN
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
