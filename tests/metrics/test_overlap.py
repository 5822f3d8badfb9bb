# SPDX-License-Identifier: Apache-2.0
"""Dice and surface distances: values that are known, MONAI's own functions, and empty masks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance
from monai.networks import one_hot

from monai_ssl.metrics import mask_scores


def cube(shape, low, high, value=1):
    mask = np.zeros(shape, np.uint8)
    mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = value
    return mask


def test_shifted_cube_in_millimetres():
    truth = cube((12, 12, 12), (2, 2, 2), (8, 8, 8))
    (score,) = mask_scores(np.roll(truth, 2, axis=0), truth, 1, (3.0, 1.0, 1.0))
    assert score.dice == pytest.approx(4 / 6)
    assert score.hausdorff95_mm == pytest.approx(6.0)  # the whole end face lies two voxels of 3 mm away
    assert score.truth_ml == score.predicted_ml == pytest.approx(6**3 * 3 / 1000)
    (same,) = mask_scores(truth, truth, 1, (3.0, 1.0, 1.0))
    assert (same.dice, same.surface_distance_mm, same.hausdorff95_mm) == (1.0, 0.0, 0.0)


def test_two_thin_plates():
    truth, prediction = cube((5, 9, 9), (1, 0, 0), (2, 9, 9)), cube((5, 9, 9), (3, 0, 0), (4, 9, 9))
    (score,) = mask_scores(prediction, truth, 1, (2.5, 1.0, 1.0))
    assert (score.dice, score.surface_distance_mm, score.hausdorff95_mm) == pytest.approx((0.0, 5.0, 5.0))


@pytest.mark.parametrize(("shape", "spacing"), [((14, 16), (0.7, 1.3)), ((9, 11, 10), (2.5, 0.8, 0.8))])
def test_equals_monai(shape, spacing):
    rng = np.random.default_rng(0)
    truth, prediction = (torch.from_numpy(rng.integers(0, 3, shape)) for _ in range(2))
    scores = mask_scores(prediction, truth, 2, spacing)
    hot = [one_hot(mask[None, None], 3) for mask in (prediction, truth)]
    average = compute_average_surface_distance(*hot, symmetric=True, spacing=spacing)[0]
    hausdorff = compute_hausdorff_distance(*hot, percentile=95, spacing=spacing)[0]
    assert [s.surface_distance_mm for s in scores] == pytest.approx(average.tolist(), rel=1e-5)
    assert [s.hausdorff95_mm for s in scores] == pytest.approx(hausdorff.tolist(), rel=1e-5)
    for k, score in enumerate(scores, 1):
        a, b = prediction == k, truth == k
        assert score.dice == pytest.approx(float(2 * (a & b).sum() / (a.sum() + b.sum())))


def test_empty_masks_have_a_rule():
    truth = cube((6, 6, 6), (1, 1, 1), (3, 3, 3), 1) + cube((6, 6, 6), (4, 4, 4), (6, 6, 6), 2)
    prediction = cube((6, 6, 6), (1, 1, 1), (3, 3, 3), 1) + cube((6, 6, 6), (4, 0, 0), (6, 2, 2), 3)
    found, missed, alarm, absent = mask_scores(prediction, truth, 4, (1, 1, 1))
    assert [s.outcome for s in (found, missed, alarm, absent)] == ["found", "missed", "false alarm", "rightly absent"]
    assert (found.dice, missed.dice, alarm.dice) == (1.0, 0.0, 0.0) and math.isnan(absent.dice)
    assert all(math.isnan(s.surface_distance_mm) and math.isnan(s.hausdorff95_mm) for s in (missed, alarm, absent))


def test_without_distances_and_wrong_shapes():
    truth = cube((6, 6), (1, 1), (3, 3))
    (score,) = mask_scores(truth, truth, 1, (1, 1), distances=False)
    assert score.dice == 1 and math.isnan(score.hausdorff95_mm)
    with pytest.raises(ValueError, match="shapes"):
        mask_scores(truth, truth[1:], 1, (1, 1))
    with pytest.raises(ValueError, match="3 axes"):
        mask_scores(truth, truth, 1, (1, 1, 1))
