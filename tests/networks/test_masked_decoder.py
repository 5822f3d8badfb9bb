# SPDX-License-Identifier: Apache-2.0
"""MAE's decoder: where tokens go, positions of any grid, and patches back in their places."""

from __future__ import annotations

import pytest
import torch

from monai_ssl.networks import MaskedTokenDecoder, build_encoder, sine_positions, tokens_to_image


@pytest.mark.parametrize("grid, patch", [((3, 2), (2, 4)), ((2, 3, 1), (1, 2, 4))])
def test_patches_find_their_places(grid, patch):
    spatial = [g * p for g, p in zip(grid, patch, strict=True)]
    image = torch.rand(2, 3, *spatial)
    rows = []
    for index in torch.cartesian_prod(*[torch.arange(g) for g in grid]).tolist():
        window = tuple(slice(i * p, i * p + p) for i, p in zip(index, patch, strict=True))
        rows.append(image[(slice(None), slice(None), *window)].flatten(1))
    assert torch.equal(tokens_to_image(torch.stack(rows, 1), grid, patch), image)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_the_order_of_patches_is_the_vits(spatial_dims):
    """One bright patch: the token that differs from the others is the one that goes back to its place."""
    encoder = build_encoder("vit", spatial_dims, img_size=8, patch_size=2, hidden_size=12, mlp_dim=8, num_heads=2)
    x = torch.zeros(1, 1, *[8] * spatial_dims)
    x[(0, 0, slice(2, 4), slice(6, 8), slice(0, 2))[: spatial_dims + 2]] = 1
    tokens = encoder.patch_tokens(x)
    lit = (tokens != tokens[:, -1:]).any(2, keepdim=True).float()
    grid, patch = (4,) * spatial_dims, (2,) * spatial_dims
    assert torch.equal(tokens_to_image(lit.expand(-1, -1, 2**spatial_dims), grid, patch), x)


def test_positions_are_waves_along_each_axis():
    positions = sine_positions((3, 4, 2), 20)  # three frequencies an axis, two values left over
    assert positions.shape == (24, 20)
    wave = torch.tensor([1.0, 10000 ** (-1 / 3), 10000 ** (-2 / 3)])
    place = positions.view(3, 4, 2, 20)[2, 3, 1]
    expected = torch.cat([torch.cat(((i * wave).sin(), (i * wave).cos())) for i in (2, 3, 1)] + [torch.zeros(2)])
    torch.testing.assert_close(place, expected)
    assert len(positions.unique(dim=0)) == 24
    with pytest.raises(ValueError, match="width of at least 6"):
        sine_positions((2, 2, 2), 5)


def test_tokens_stand_in_their_places_and_the_mask_token_elsewhere():
    torch.manual_seed(0)
    decoder = MaskedTokenDecoder(6, 5, width=8, depth=0, num_heads=2)
    decoder.norm, decoder.predict = torch.nn.Identity(), torch.nn.Identity()
    tokens, places = torch.rand(2, 3, 6), torch.tensor([[0, 4, 5], [1, 2, 3]])
    bare = decoder(tokens, places, (2, 3)) - sine_positions((2, 3), 8)
    for i in range(2):
        for patch in range(6):
            seen = (places[i] == patch).nonzero().flatten().tolist()
            expected = decoder.embed(tokens[i, seen[0]]) if seen else decoder.mask_token
            torch.testing.assert_close(bare[i, patch], expected, atol=1e-5, rtol=1e-5)


def test_all_of_the_decoder_learns():
    decoder = MaskedTokenDecoder(6, 5, width=8, depth=2, num_heads=2)
    out = decoder(torch.rand(2, 3, 6), torch.tensor([[0, 4, 5], [1, 2, 3]]), (2, 3))
    assert out.shape == (2, 6, 5)
    out.square().sum().backward()
    assert not [name for name, p in decoder.named_parameters() if p.requires_grad and p.grad is None]
