# SPDX-License-Identifier: Apache-2.0
"""Feature extraction."""

from __future__ import annotations

import pytest
import torch

from monai_ssl.evaluation.features import extract_features
from monai_ssl.networks import build_encoder
from monai_ssl.transforms import evaluation_view


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    encoder = build_encoder("densenet121", init_features=8, growth_rate=4, block_config=[1, 1, 1, 1])
    with torch.no_grad():  # untouched running statistics would let the features die out
        for _ in range(30):
            encoder(torch.rand(4, 1, 40, 40))
    return encoder


def batches(sizes=(3, 2), side=40):
    g = torch.Generator().manual_seed(0)
    start = 100
    for size in sizes:
        yield {
            "image": torch.rand(size, 1, side, side, generator=g),
            "index": torch.arange(start, start - size, -1),
            "extent": torch.full((size, 2), side),
        }
        start -= size


def test_features_equal_the_encoder_and_modes_are_kept(encoder):
    encoder.train()
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    features, index = extract_features(encoder, batches())
    assert encoder.training
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())
    assert index.tolist() == [100, 99, 98, 97, 96]
    assert features.dtype == torch.float32 and not features.requires_grad
    encoder.eval()
    with torch.no_grad():
        torch.testing.assert_close(features, encoder(torch.cat([batch["image"] for batch in batches()])))
    assert not extract_features(encoder, batches())[0].requires_grad and not encoder.training


def test_view_sees_the_extent(encoder):
    view = evaluation_view(32)
    padded = [{**batch} for batch in batches()]
    for batch in padded:
        batch["image"] = torch.nn.functional.pad(batch["image"], (0, 24, 0, 8), value=1.0)
    plain, _ = extract_features(encoder, batches(), view)
    same, _ = extract_features(encoder, padded, view)
    torch.testing.assert_close(same, plain, rtol=1e-3, atol=1e-3)
    for batch in padded:
        del batch["extent"]
    assert not torch.allclose(extract_features(encoder, padded, view)[0], plain, rtol=1e-2, atol=1e-2)


def test_layers_are_pooled_maps_side_by_side(encoder):
    features, _ = extract_features(encoder, batches(), layers=(-2, -1))
    assert features.shape == (5, 9 + 8)
    assert torch.equal(
        extract_features(encoder, batches(), layers=(1,))[0], extract_features(encoder, batches(), layers=(-4,))[0]
    )


def test_bf16_is_close(encoder):
    exact, _ = extract_features(encoder, batches())
    half, _ = extract_features(encoder, batches(), precision="bf16")
    assert half.dtype == torch.float32
    assert 0 < (half - exact).abs().max() < 0.05 * exact.abs().max()


def test_3d():
    net = build_encoder("densenet121", spatial_dims=3, init_features=8, growth_rate=4, block_config=[1, 1, 1, 1])
    batch = {"image": torch.rand(2, 1, 32, 40, 48), "index": torch.arange(2)}
    assert extract_features(net, [batch])[0].shape == (2, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"precision": "half"}, "precision"),
        ({"layers": (7,)}, "5 feature maps"),
        ({"layers": ()}, "5 feature maps"),
        ({"loader": []}, "empty"),
        ({"loader": [{"image": torch.full((1, 1, 32, 32), torch.nan), "index": [0]}]}, "1 of 1 images"),
    ],
)
def test_bad_input_is_named(encoder, arguments, message):
    with pytest.raises(ValueError, match=message):
        extract_features(encoder, **{"loader": batches(), **arguments})
