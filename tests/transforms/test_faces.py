# SPDX-License-Identifier: Apache-2.0
"""The MONAI faces: equality with the batched form, caching, worker seeding, labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import CacheDataset, DataLoader, Dataset, MetaTensor
from monai.transforms import Compose, RandomizableTrait
from monai.utils import set_determinism

import monai_ssl.transforms as T


@pytest.fixture
def seed_everything():
    """Seed as a MONAI user does, and undo it afterwards."""

    def seed(value):
        set_determinism(value)

    yield seed
    set_determinism(None)


def records(count=8, shape=(1, 20, 24)):
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(shape, generator=generator)
    return [{"image": image.clone(), "label": (image > 0.5).to(torch.int16), "index": i} for i in range(count)]


def test_array_face_equals_the_batched_form():
    views = T.radiograph_views(12)
    face = T.RandViews(views).set_random_state(seed=5)
    image = records(1)[0]["image"]
    made = face(image)
    assert [tuple(view.shape) for view in made] == [(1, 12, 12)] * 2
    for view, expected in zip(made, views.apply(image[None], face.params), strict=True):
        assert torch.equal(view, expected[0])
    again = face(image, randomize=False)
    assert all(torch.equal(a, b) for a, b in zip(made, again, strict=True))
    assert not torch.equal(face(image)[0], made[0])
    same_seed = T.RandViews(views).set_random_state(seed=5)(image)
    assert all(torch.equal(a, b) for a, b in zip(made, same_seed, strict=True))


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor, MetaTensor])
def test_any_array_gives_a_plain_tensor(kind):
    face = T.RandBatchTransform(T.RandomGamma(prob=1.0))
    result = face(kind(np.arange(64).reshape(1, 8, 8)))
    assert type(result) is torch.Tensor and result.dtype == torch.float32


def test_nothing_drawn_yet():
    with pytest.raises(RuntimeError, match="nothing was drawn"):
        T.RandBatchTransform(T.RandomGamma())(torch.rand(1, 8, 8), randomize=False)


def test_dictionary_face_keeps_image_and_label_together():
    resample = T.RandomResample((20, 24), (0.4, 1.0), rotation_deg=20, flip_prob=0.5)
    face = T.RandBatchTransformd(["image", "label"], T.ViewChain([resample, T.RandomGamma()]), ["bilinear", "nearest"])
    face.set_random_state(seed=1)
    item = records(1)[0]
    block = torch.zeros(1, 20, 24)
    block[:, 5:15, 6:20] = 1
    out = face({**item, "image": block, "label": block.to(torch.int16)})
    assert out["label"].dtype == torch.int16 and set(out["label"].unique().tolist()) <= {0, 1}
    assert (out["image"][out["label"] == 1] > 0.2).all() and (out["image"][out["label"] == 0] < 0.8).all()
    assert out["index"] == 0


def test_dictionary_views_names():
    views, item = T.c2l_views(8), records(1)[0]
    as_list = T.RandViewsd("image", views)(item)
    assert len(as_list["views"]) == 2 and torch.equal(as_list["image"], item["image"])
    named = T.RandViewsd("image", views, ("a", "b"))(item)
    assert named["a"].shape == named["b"].shape == (1, 8, 8)
    both = T.RandViewsd(["image", "label"], views, ("a", "b"), ["bilinear", "nearest"])(item)
    assert both["label_a"].dtype == torch.int16 and both["image_b"].dtype == torch.float32
    with pytest.raises(ValueError, match="3 views, but there are 2"):
        T.RandViewsd("image", views, ("a", "b", "c"))
    missing = T.RandViewsd(["image", "mask"], views, ("a", "b"), allow_missing_keys=True)(item)
    assert "image_a" in missing and "mask_a" not in missing


def test_faces_are_randomizable():
    views = T.c2l_views(8)
    for face in (
        T.RandViews(views),
        T.RandViewsd("image", views),
        T.RandBatchTransform(T.RandomGamma()),
        T.RandBatchTransformd("image", T.RandomGamma()),
    ):
        assert isinstance(face, RandomizableTrait)


def epochs(count, workers, dataset_class=Dataset, **options):
    """Standard deviation of each sample's first view over some epochs, (epochs, samples): all images are the same."""
    transform = Compose([T.RandViewsd("image", T.radiograph_views(12), ("first", "second"))])
    dataset = dataset_class(records(), transform, **options)
    loader = DataLoader(dataset, batch_size=2, num_workers=workers)
    made = []
    for _ in range(count):
        batches = [(batch["first"].std((1, 2, 3)), batch["second"].std((1, 2, 3))) for batch in loader]
        made.append(torch.cat([torch.cat(pair) for pair in batches]))
    return torch.stack(made)


def test_cached_dataset_does_not_freeze_the_views(seed_everything):
    seed_everything(0)
    values = epochs(2, workers=0, dataset_class=CacheDataset, progress=False)
    assert len(values.unique()) == values.numel()


def test_two_workers_neither_repeat_nor_copy_each_other(seed_everything):
    seed_everything(0)
    values = epochs(2, workers=2, dataset_class=CacheDataset, progress=False)
    assert len(values.unique()) == values.numel()
    seed_everything(0)
    assert torch.equal(epochs(2, workers=2, dataset_class=CacheDataset, progress=False), values)
    seed_everything(1)
    assert not torch.equal(epochs(2, workers=2, dataset_class=CacheDataset, progress=False), values)
