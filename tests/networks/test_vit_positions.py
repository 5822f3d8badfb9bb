# SPDX-License-Identifier: Apache-2.0
"""A ViT on images of another size: positions are interpolated where it was asked for, and nowhere else."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from monai.networks import nets
from network_cases import SMALL_VIT

from monai_ssl.methods import MAEViT, SimMIM
from monai_ssl.networks import ImageEncoder, build_classifier, build_encoder, patch_grid, resize_positions
from monai_ssl.weights import load_encoder, open_encoder, save_encoder

both = pytest.mark.parametrize("spatial_dims", [2, 3])


def vit(spatial_dims: int = 2, **options) -> ImageEncoder:
    torch.manual_seed(0)
    return build_encoder("vit", spatial_dims, **SMALL_VIT | {"interpolate_positions": True} | options).eval()


def image(spatial_dims: int, *sides: int) -> torch.Tensor:
    sides = sides * spatial_dims if len(sides) == 1 else sides
    return torch.rand(2, 1, *sides, generator=torch.Generator().manual_seed(0))


@both
@torch.no_grad()
def test_at_its_own_size_nothing_changes(spatial_dims):
    ours, plain = vit(spatial_dims), vit(spatial_dims, interpolate_positions=False)
    x = image(spatial_dims, 32)
    assert torch.equal(ours(x), plain(x))
    assert ours.positions(x.shape[2:]) is ours.net.patch_embedding.position_embeddings
    assert all(torch.equal(a, b) for a, b in zip(ours.feature_maps(x), plain.feature_maps(x), strict=True))
    assert list(ours.encoder_state_dict()) == list(plain.encoder_state_dict())
    assert type(ours.net) is nets.ViT


@both
@torch.no_grad()
def test_other_sizes(spatial_dims):
    encoder = vit(spatial_dims)
    sides = (16, 48, 24)[:spatial_dims]
    x = image(spatial_dims, *sides)
    assert encoder(x).shape == (2, 24)
    grid = tuple(side // 8 for side in sides)
    assert [m.shape[2:] for m in encoder.feature_maps(x)] == [grid] * 4
    assert encoder.positions(x.shape[2:]).shape == (1, math.prod(grid), 24)
    # What does not fill a patch at the far end is left out.
    torch.testing.assert_close(encoder(torch.nn.functional.pad(x, [0, 3])), encoder(x))


@both
def test_positions_keep_their_place_between_grids(spatial_dims):
    """Positions that are linear in the place are the same function of it on any grid, away from the border."""

    def ramp(*grid: int) -> torch.Tensor:
        axes = torch.meshgrid(*[(torch.arange(n) + 0.5) / n for n in grid], indexing="ij")
        return torch.stack(axes, -1).reshape(1, -1, len(grid))

    old, new = [8] * spatial_dims, [16, 12, 10][:spatial_dims]
    found = resize_positions(ramp(*old), old, new).view(*new, spatial_dims)
    inner = tuple(slice(n // 4, -(n // 4)) for n in new)
    torch.testing.assert_close(found[inner], ramp(*new).view(*new, spatial_dims)[inner], atol=0.01, rtol=0)
    positions = ramp(*old)
    assert resize_positions(positions, old, tuple(old)) is positions


def test_positions_learn_from_crops_of_another_size():
    encoder = vit()
    encoder(image(2, 16)).square().sum().backward()
    assert encoder.net.patch_embedding.position_embeddings.grad.abs().sum() > 0


@torch.no_grad()
def test_hidden_patches_do_not_show():
    encoder = vit()
    hidden = torch.zeros(2, 16, dtype=torch.bool)
    hidden[0, :6] = True
    x = image(2, 32)
    changed = x.clone()
    changed[0, :, :8] = 0  # the first row of four patches
    token = torch.randn(24)
    torch.testing.assert_close(encoder.encode_hidden(changed, hidden, token), encoder.encode_hidden(x, hidden, token))
    nothing = encoder.encode_hidden(x, torch.zeros_like(hidden), token)
    torch.testing.assert_close(nothing.mean(1), encoder(x))
    assert not torch.allclose(encoder.encode_hidden(x, hidden, token)[0], nothing[0])
    small = encoder.encode_hidden(image(2, 16), hidden[:, :4], token)
    assert small.shape == (2, 4, 24)


@torch.no_grad()
def test_a_file_says_that_positions_are_interpolated(tmp_path):
    encoder, path = vit(), tmp_path / "encoder.safetensors"
    manifest = save_encoder(encoder, path, {"method": "DINO"})
    assert manifest["network"]["arguments"]["interpolate_positions"] is True
    again = open_encoder(path).eval()
    x = image(2, 16)
    assert again.interpolate_positions and torch.equal(again(x), encoder(x))
    # Plain networks take the weights as before, without a word about it.
    plain = build_encoder("vit", **SMALL_VIT)
    assert not load_encoder(plain, path, min_coverage=1.0).notes
    assert load_encoder(nets.ViT(in_channels=1, spatial_dims=2, **SMALL_VIT), path).coverage == 1
    classifier = build_classifier("vit", 3, **manifest["network"]["arguments"]).eval()
    load_encoder(classifier, path)
    x = image(2, 32)
    torch.testing.assert_close(classifier(x), classifier.classification_head(encoder(x)))


@torch.no_grad()
def test_torchscript_interpolates_too():
    for spatial_dims in (2, 3):
        encoder = vit(spatial_dims)
        with warnings.catch_warnings(), torch.jit.optimized_execution(False):
            warnings.simplefilter("ignore")
            scripted = torch.jit.script(encoder)
            for side in (32, 16):
                x = image(spatial_dims, side)
                torch.testing.assert_close(scripted(x), encoder(x))


@pytest.mark.parametrize("method_class", [MAEViT, SimMIM])
def test_masked_modelling_takes_other_sizes_too(method_class):
    options = {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2} if method_class is MAEViT else {}
    options |= {"block_size": 8} if method_class is SimMIM else {}
    out = method_class(vit(), **options)({"views": [image(2, 48)]})
    out["loss"].backward()
    assert out["prediction"].shape == (2, 1, 48, 48)


def test_plain_errors():
    with pytest.raises(
        ValueError, match=r"make 4 patches, but this ViT was built \(img_size\) for 16; interpolate_pos"
    ):
        vit(interpolate_positions=False)(image(2, 16))
    net = nets.ViT(in_channels=1, spatial_dims=2, **SMALL_VIT)
    with pytest.raises(ValueError, match="interpolate_positions needs the network's img_size and patch_size"):
        ImageEncoder(net, "vit", {"interpolate_positions": True})
    assert ImageEncoder(net).grid == [16], "only their number is known"
    assert patch_grid({"img_size": [32, 64], "patch_size": 8}, 2) == (4, 8)
    assert patch_grid({"img_size": 32}, 2) is None
