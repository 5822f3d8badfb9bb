# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools

import pytest
import torch
from loss_references import slow_masked_reconstruction

from monai_ssl.losses import MaskedReconstructionLoss, masked_reconstruction, patch_statistics

SHAPES = [(2, 1, 4, 6), (3, 2, 6, 4), (2, 2, 4, 2, 6)]


def draw(shape=(2, 2, 4, 6), seed=0, dtype=torch.float64):
    """Prediction, target, mask and valid mask."""
    generator = torch.Generator().manual_seed(seed)
    prediction, target = torch.randn(2, *shape, generator=generator, dtype=dtype)
    mask, valid = torch.rand(2, shape[0], 1, *shape[2:], generator=generator) < 0.6
    return prediction, target, mask, valid


@pytest.mark.parametrize(
    "shape, error, normalized, with_valid",
    list(itertools.product(SHAPES, ("squared", "absolute"), (False, True), (False, True))),
)
def test_equals_the_literal_formula(shape, error, normalized, with_valid):
    prediction, target, mask, valid = draw(shape)
    patch = (2,) * (len(shape) - 2) if normalized else None
    counted = mask & valid if with_valid else mask
    expected = slow_masked_reconstruction(
        prediction.numpy(), target.numpy(), counted.numpy(), {"squared": 2, "absolute": 1}[error], patch
    )
    loss = masked_reconstruction(prediction, target, mask, valid if with_valid else None, error=error, patch_size=patch)
    assert loss.item() == pytest.approx(expected, rel=1e-9)


def test_closed_forms():
    prediction, target, mask, _ = draw()
    assert masked_reconstruction(target, target, mask) == 0
    assert masked_reconstruction(target + 3, target, mask).item() == pytest.approx(9)
    assert masked_reconstruction(target - 3, target, mask, error="absolute").item() == pytest.approx(3)
    everywhere = torch.ones_like(mask)
    torch.testing.assert_close(
        masked_reconstruction(prediction, target, everywhere), torch.nn.functional.mse_loss(prediction, target)
    )


def test_predicting_nothing_of_a_normalised_target_costs_one():
    target = 1000 + 50 * torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(4, 1, 16, 16, dtype=torch.bool)
    assert masked_reconstruction(torch.zeros_like(target), target, mask, patch_size=(8, 8)).item() == pytest.approx(1)
    flat = torch.full_like(target, 7.0)  # constant patches become 0, not NaN
    assert masked_reconstruction(torch.zeros_like(flat), flat, mask, patch_size=(8, 8)).item() == 0


def test_scale_and_shift_of_the_image_do_not_matter_to_normalised_targets():
    prediction, target, mask, _ = draw()
    loss = masked_reconstruction(prediction, target, mask, patch_size=(2, 3))
    other = masked_reconstruction(prediction, 1000 * target - 300, mask, patch_size=(2, 3))
    torch.testing.assert_close(other, loss, rtol=1e-4, atol=0)


def test_patch_statistics_give_the_normalised_patches_back():
    _, target, mask, _ = draw((2, 2, 4, 4, 6))
    mean, std = patch_statistics(target, (2, 4, 3))
    assert mean.shape == std.shape == mask.shape
    patch = target[1, :, 2:4, :, 3:6]
    torch.testing.assert_close(mean[1, 0, 3, 2, 5], patch.mean())
    torch.testing.assert_close(std[1, 0, 2, 0, 3], (patch.var(correction=0) + 1e-6).sqrt())
    loss = MaskedReconstructionLoss(patch_size=(2, 4, 3))
    torch.testing.assert_close(loss.in_target_units((target - mean) / std, target), target)
    assert MaskedReconstructionLoss().in_target_units(target, mean) is target


@pytest.mark.parametrize("error", ["squared", "absolute"])
@pytest.mark.parametrize("patch", [None, (2, 3)])
def test_gradients(error, patch):
    prediction, target, mask, valid = draw()
    prediction.requires_grad_()
    function = lambda p: masked_reconstruction(p, target, mask, valid, error=error, patch_size=patch)  # noqa: E731
    assert torch.autograd.gradcheck(function, prediction)
    (gradient,) = torch.autograd.grad(function(prediction), prediction)
    counted = (mask & valid).expand_as(gradient)
    assert (gradient[~counted] == 0).all() and (gradient[counted] != 0).all()


def test_what_is_not_counted_may_be_anything():
    prediction, target, mask, valid = draw()
    counted = (mask & valid).expand_as(target)
    expected = masked_reconstruction(prediction, target, mask, valid)
    prediction[~counted], target[~counted] = float("nan"), float("inf")
    prediction.requires_grad_()
    loss = masked_reconstruction(prediction, target, mask, valid)
    loss.backward()
    torch.testing.assert_close(loss, expected)
    assert prediction.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_nothing_to_count_costs_nothing(dtype):
    prediction, target, mask, _ = draw(dtype=dtype)
    prediction.requires_grad_()
    loss = masked_reconstruction(prediction, target, torch.zeros_like(mask))
    loss.backward()
    assert loss == 0 and (prediction.grad == 0).all()
    mask[0] = False  # one sample has none, the other counts
    assert masked_reconstruction(prediction, target, mask).isfinite()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("patch", [None, (2, 3)])
def test_half_precision_is_computed_in_float32(dtype, patch):
    prediction, target, mask, _ = draw(dtype=torch.float32)
    half = (300 * prediction).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = masked_reconstruction(half, (-300 * target).to(dtype), mask, patch_size=patch)
    assert loss.dtype == torch.float32 and loss.isfinite()  # squares of 600 overflow float16
    loss.backward()
    assert half.grad.isfinite().all()
    wide = masked_reconstruction(half.float(), (-300 * target).to(dtype).float(), mask, patch_size=patch)
    torch.testing.assert_close(loss, wide)


def test_refuses_what_does_not_fit():
    prediction, target, mask, valid = draw()
    with pytest.raises(ValueError, match="prediction and target must have one shape"):
        masked_reconstruction(prediction[:, :1], target, mask)
    with pytest.raises(ValueError, match=r"mask must be boolean with shape \(2, 1, 4, 6\)"):
        masked_reconstruction(prediction, target, mask.float())
    with pytest.raises(ValueError, match=r"valid must be boolean with shape"):
        masked_reconstruction(prediction, target, mask, valid[:, :, 1:])
    with pytest.raises(ValueError, match=r"size \(4, 6\) must be a multiple of the patch size \(4, 4\)"):
        masked_reconstruction(prediction, target, mask, patch_size=(4, 4))
    with pytest.raises(ValueError, match="error must be 'squared' or 'absolute', got 'huber'"):
        MaskedReconstructionLoss("huber")


def test_module_is_the_function():
    prediction, target, mask, valid = draw()
    loss = MaskedReconstructionLoss("absolute", (2, 2))
    torch.testing.assert_close(
        loss(prediction, target, mask, valid),
        masked_reconstruction(prediction, target, mask, valid, error="absolute", patch_size=(2, 2)),
    )
    assert loss.distribution == "local" and loss.state_dict() == {}
    assert repr(loss) == "MaskedReconstructionLoss(error='absolute', patch_size=(2, 2))"
