# SPDX-License-Identifier: Apache-2.0
"""Several sources in one training: views by source, maps with them, and a resume in the middle of an epoch."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader
from toy_training import LossLog, ToyImages, toy_trainer

from monai_ssl.data import MixtureSampler, PadCollate, SourceMixture
from monai_ssl.transforms import (
    IntensityStandardize,
    MultiView,
    RandomGamma,
    RandomResample,
    SourceViews,
    ViewChain,
    modality_views,
)


def loader(homogeneous: bool = True, maps: bool = False) -> DataLoader:
    sources = {"a": ToyImages(12), "b": ToyImages(9, size=10)}
    if maps:
        sources = {name: WithMaps(data) for name, data in sources.items()}
    data = SourceMixture(sources)
    sampler = MixtureSampler(data, 4, homogeneous=homogeneous, temper=1.0)
    return DataLoader(data, 4, sampler=sampler, collate_fn=PadCollate(), drop_last=True)


class WithMaps:
    """Label maps that are the images, above one half."""

    def __init__(self, images: ToyImages) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> dict:
        item = self.images[i]
        return item | {"label_map": (item["image"] > 0.5).to(torch.uint8)}


def random_views() -> SourceViews:
    return SourceViews({"a": modality_views("DX", 8), "b": modality_views("MR", 8)})


@pytest.mark.parametrize("homogeneous", [True, False])
@pytest.mark.parametrize("stop_after", [3, 5, 7])
def test_the_next_loss_is_the_same_number(homogeneous, stop_after):
    whole = LossLog()
    toy_trainer(loader=loader(homogeneous), views=random_views(), train_handlers=[whole]).run()
    assert len(whole.losses) == 15
    interrupted = toy_trainer(
        loader=loader(homogeneous), views=random_views(), train_handlers=[LossLog(stop_after=stop_after)]
    )
    interrupted.run()
    rest = LossLog()
    resumed = toy_trainer(loader=loader(homogeneous), views=random_views(), train_handlers=[rest], seed=99)
    resumed.load_state_dict(interrupted.state_dict())
    resumed.run()
    assert rest.losses == {i: loss for i, loss in whole.losses.items() if i > stop_after}


def test_each_image_and_its_map_get_the_views_of_their_source():
    def still(shift: float) -> MultiView:
        steps = [RandomResample(8, (0.5, 1)), RandomGamma((1, 1)), IntensityStandardize(mean=shift, std=1)]
        return MultiView([ViewChain(steps)] * 2)

    for homogeneous in (True, False):
        trainer = toy_trainer(
            loader=loader(homogeneous, maps=True), views=SourceViews({"a": still(0.0), "b": still(100.0)}), max_epochs=1
        )
        trainer.run()
        batch = trainer.state.batch
        shifted = torch.stack([view.flatten(1).mean(1) < -50 for view in batch["views"]])
        assert (shifted == (batch["source"] == 1)).all()
        for view, moved in zip(batch["views"], batch["label_map"], strict=True):
            image = view + 100.0 * (batch["source"] == 1).view(-1, 1, 1, 1)
            agree = ((image > 0.5) == (moved == 1)).float().mean()
            assert agree > 0.8 and moved.dtype == torch.uint8


def test_a_loader_that_does_not_tell_the_source_is_an_error():
    with pytest.raises(ValueError, match=r"each of 4 images, got none.*SourceMixture"):
        toy_trainer(views=random_views()).run()
