# SPDX-License-Identifier: Apache-2.0
"""Supervised losses of partly labelled batches: those of the labelled part alone, and nothing else has a gradient."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.losses import DiceCELoss

from monai_ssl.losses import (
    IGNORED_LABEL,
    MaskedBinaryCrossEntropyLoss,
    MaskedCrossEntropyLoss,
    MaskedDiceCrossEntropyLoss,
    masked_binary_cross_entropy,
    masked_cross_entropy,
    masked_dice,
)

LABELS = torch.tensor([2, -1, 0, 1, -1, 2])
WEIGHTS = torch.tensor([1.0, 3.0, 0.5])


def random(*shape: int, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def reference_cross_entropy(logits, labels, weights=None, smoothing=0.0) -> float:
    """Term by term."""
    total = share = 0.0
    for z, y in zip(logits.tolist(), labels.tolist(), strict=True):
        if y < 0:
            continue
        w = [1.0] * len(z) if weights is None else weights.tolist()
        log_sum = math.log(sum(math.exp(v) for v in z))
        nll = [log_sum - v for v in z]
        total += (1 - smoothing) * w[y] * nll[y]
        total += smoothing / len(z) * sum(a * b for a, b in zip(w, nll, strict=True))
        share += w[y]
    return total / share


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_is_the_mean_over_what_is_known(weights, smoothing):
    logits = random(6, 3)
    value = masked_cross_entropy(logits, LABELS, weights, label_smoothing=smoothing)
    assert value.item() == pytest.approx(reference_cross_entropy(logits, LABELS, weights, smoothing), rel=1e-6)
    known = LABELS >= 0
    theirs = F.cross_entropy(
        logits[known], LABELS[known], None if weights is None else weights.double(), label_smoothing=smoothing
    )
    torch.testing.assert_close(value, theirs)


def test_closed_forms():
    assert masked_cross_entropy(torch.zeros(4, 5), torch.tensor([0, -1, 4, -1])).item() == pytest.approx(math.log(5))
    findings = torch.tensor([[1.0, math.nan], [-1.0, 0.0]])
    assert masked_binary_cross_entropy(torch.zeros(2, 2), findings).item() == pytest.approx(math.log(2))
    # Equal probabilities of 2 classes, a quarter of the voxels foreground: 2 * 0.5 * 1 / (0.5 * 4 + 1) = 1/3.
    labels = torch.tensor([[1, 0, 0, 0]])
    dice = masked_dice(torch.zeros(1, 2, 4), labels, torch.ones_like(labels, dtype=torch.bool), smooth=0.0)
    assert dice.item() == pytest.approx(2 / 3)


def test_binary_cross_entropy_is_the_mean_over_known_findings():
    logits, labels = random(5, 3), (random(5, 3) > 0).double()
    labels[0, 1], labels[2], labels[4, 0] = -1, math.nan, -1
    known = (labels >= 0).numpy()
    z, y = logits.numpy()[known], labels.numpy()[known]
    factor = np.broadcast_to(WEIGHTS.numpy(), known.shape)[known]
    expected = np.mean(factor * y * np.log1p(np.exp(-z)) + (1 - y) * np.log1p(np.exp(z)))
    assert masked_binary_cross_entropy(logits, labels, WEIGHTS).item() == pytest.approx(expected, rel=1e-6)
    assert MaskedBinaryCrossEntropyLoss(WEIGHTS)(logits, labels).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_dice_and_cross_entropy_are_monais_where_all_is_known(spatial_dims, background):
    logits = random(3, 4, *[6] * spatial_dims)
    labels = random(3, 1, *[6] * spatial_dims).abs().mul(2).long().clamp(max=3)
    weights = torch.tensor([0.5, 1.0, 2.0, 1.5])
    options = {"include_background": background}
    theirs = DiceCELoss(
        to_onehot_y=True, softmax=True, batch=True, lambda_dice=0.7, lambda_ce=1.3, weight=weights.double(), **options
    )
    ours = MaskedDiceCrossEntropyLoss(dice_weight=0.7, ce_weight=1.3, class_weights=weights, **options)
    torch.testing.assert_close(ours(logits, labels), theirs(logits, labels))


def test_ignored_voxels_are_as_if_they_were_cut_out():
    logits, labels = random(2, 3, 8, 6), random(2, 1, 8, 6).abs().long().clamp(max=2)
    labels[:, :, 3:] = IGNORED_LABEL
    criterion = MaskedDiceCrossEntropyLoss()
    torch.testing.assert_close(criterion(logits, labels.byte()), criterion(logits[:, :, :3], labels[:, :, :3]))
    one = torch.tensor([True, False]).view(2, 1, 1, 1)
    torch.testing.assert_close(criterion(logits, labels, one), criterion(logits[:1], labels[:1]))


def every_loss(logits: torch.Tensor, unknown: bool) -> torch.Tensor:
    """Of (B, 3, 4) maps; ``unknown``: no label at all, else only the first sample's."""
    size = len(logits)
    known = torch.arange(size) < (0 if unknown else 1)
    labels = torch.where(known, torch.arange(size) % 3, -1)
    maps = labels[:, None, None].expand(-1, 1, 4)
    findings = torch.where(known, 1.0, torch.nan)[:, None].expand(-1, 3)
    return (
        MaskedCrossEntropyLoss()(logits[:, :, 0], labels)
        + MaskedBinaryCrossEntropyLoss()(logits[:, :, 1], findings)
        + MaskedDiceCrossEntropyLoss()(logits, maps)
    )


def test_what_is_unknown_has_no_gradient_whatever_it_is():
    logits = random(4, 3, 4, dtype=torch.float32)
    logits[1], logits[2] = math.nan, math.inf
    logits.requires_grad_()
    loss = every_loss(logits, unknown=False)
    loss.backward()
    assert loss.isfinite() and loss > 0
    assert (logits.grad[1:] == 0).all() and logits.grad[0].abs().sum() > 0
    torch.testing.assert_close(loss.detach(), every_loss(logits.detach()[:1], unknown=False))


def test_without_any_label_loss_and_gradients_are_zero():
    logits = random(4, 3, 4, dtype=torch.float32).requires_grad_()
    loss = every_loss(logits, unknown=True)
    loss.backward()
    assert loss == 0 and (logits.grad == 0).all()


def test_a_label_of_no_class_makes_the_loss_nan_and_not_a_number_that_looks_right():
    assert masked_cross_entropy(torch.zeros(2, 3), torch.tensor([0, 3])).isnan()
    assert masked_binary_cross_entropy(torch.zeros(1, 2), torch.tensor([[2.0, 0.0]])).isnan()
    assert MaskedDiceCrossEntropyLoss()(torch.zeros(1, 2, 4), torch.tensor([[[0, 1, 2, 0]]])).isnan()


def test_gradients_are_those_of_the_formula():
    logits = random(3, 3, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: every_loss(x, unknown=False), logits)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_compute_in_float32(dtype):
    logits = (30 * random(3, 3, 4, dtype=torch.float32)).to(dtype).requires_grad_()
    loss = every_loss(logits, unknown=False)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite() and logits.grad.isfinite().all()
    wide = logits.detach().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert every_loss(wide, unknown=False) == every_loss(wide, unknown=False)
    assert every_loss(wide, unknown=False).item() == pytest.approx(loss.item(), rel=1e-6)


def test_wrong_shapes_and_numbers_are_refused():
    with pytest.raises(ValueError, match=r"need labels \(B, \*spatial\)"):
        masked_cross_entropy(torch.zeros(2, 3), torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match="must have one shape"):
        masked_binary_cross_entropy(torch.zeros(2, 3), torch.zeros(2))
    with pytest.raises(ValueError, match=r"need labels \(B, 1, \*spatial\)"):
        MaskedDiceCrossEntropyLoss()(torch.zeros(2, 3, 4), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="label_smoothing"):
        MaskedCrossEntropyLoss(label_smoothing=1.0)
    with pytest.raises(ValueError, match="one above it"):
        MaskedDiceCrossEntropyLoss(dice_weight=0, ce_weight=0)
