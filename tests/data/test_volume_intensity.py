# SPDX-License-Identifier: Apache-2.0
"""Intensity policies of volumes: windows, robust limits, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from volume_folders import ct_volume

from monai_ssl.data import (
    CT_WINDOWS,
    CTIntensity,
    ModalityIntensity,
    MRIntensity,
    RadiographIntensity,
    UnreadableImageError,
    policy_from_dict,
    volume_policy,
)
from monai_ssl.data.foreground import body_threshold, foreground_box, otsu_threshold
from monai_ssl.data.volume_intensity import VOLUME_POLICIES

CT = {"modality": "CT", "unit": "HU"}
MR = {"modality": "MR", "unit": None}


def mr_volume(air: int = 20_000, scale: float = 1.0) -> np.ndarray:
    random = np.random.default_rng(0)
    tissue = random.normal(600, 100, 10_000)
    return (np.concatenate([np.abs(random.normal(0, 10, air)), tissue]) * scale).astype(np.float32)


@pytest.mark.parametrize("name", VOLUME_POLICIES)
def test_every_named_policy_survives_json(name):
    policy = volume_policy(name)
    assert policy_from_dict(json.loads(json.dumps(policy.to_dict()))) == policy
    assert policy.name and policy.citation and policy.unit
    assert volume_policy(policy) is policy


def test_named_windows_are_known_by_their_limits_and_cite():
    assert volume_policy("CT").window_hu == (-1000.0, 1000.0)
    for name, ((low, high), citation) in CT_WINDOWS.items():
        policy = CTIntensity(window_hu=(low, high))
        assert (policy.name, policy.citation) == (name, citation) and policy == CTIntensity(name=name)
        assert policy.limits(ct_volume(), CT) == (low, high)
    own = CTIntensity(window_hu=(-100, 300))
    assert own.name == "ct_custom" and "-100 to 300 HU" in own.citation


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CTIntensity(window_hu=(200, 100)), "the lower one first"),
        (lambda: CTIntensity(window_hu=(-np.inf, 100)), "finite"),
        (lambda: CTIntensity(name="ct_liver"), "is no window; known: ct_wide"),
        (lambda: CTIntensity(name="ct_lung", window_hu=(0, 1)), "another name"),
        (lambda: MRIntensity(percentiles=(5, 5)), "0 <= low < high"),
        (lambda: MRIntensity(deviations=0), "above 0"),
        (lambda: ModalityIntensity(policies={}), "at least one"),
        (lambda: ModalityIntensity(policies={"CT": "wide"}), "intensity policies"),
        (lambda: volume_policy("ct_liver"), "there is no intensity policy 'ct_liver' for volumes; known: ct_wide"),
    ],
)
def test_wrong_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("policy", "meta", "reason"),
    [
        ("ct", MR, "its modality is MR, and the intensity policy 'ct_wide' is for CT"),
        ("mr", CT, "its modality is CT, and the intensity policy 'mr_percentiles' is for MR"),
        ("auto", {"modality": "PT", "unit": "BQML"}, "its modality is PT, and .* is for CT and MR"),
        ("auto", {"modality": None}, "its modality is not known.*'modality'.*CT or MR"),
        ("ct", {"modality": "CT", "unit": "BQML"}, "not in Hounsfield units"),
    ],
)
def test_another_modality_is_refused(policy, meta, reason):
    with pytest.raises(UnreadableImageError, match=reason):
        volume_policy(policy).limits(ct_volume(), meta)


@pytest.mark.parametrize("offset", [1000, 1024])
def test_ct_stored_with_an_offset_is_refused_where_no_unit_vouches_for_it(offset):
    stored = np.maximum(ct_volume().astype(np.float32), -1024) + offset
    unknown = {"modality": "CT", "unit": None}
    assert CTIntensity().limits(stored - offset, unknown) == (-1000, 1000)
    with pytest.raises(UnreadableImageError, match=r"does not look like Hounsfield units.*offset.*check_unit=False"):
        CTIntensity().limits(stored, unknown)
    assert CTIntensity().limits(stored, CT) == (-1000, 1000)
    assert CTIntensity(check_unit=False).limits(stored, unknown) == (-1000, 1000)


def test_mr_limits_are_robust_follow_the_scale_and_not_the_air():
    low, high = MRIntensity().limits(mr_volume(), MR)
    assert 0 <= low < 5 and 800 < high < 950
    spiked = mr_volume()
    spiked[::3000] = 1e6  # ten voxels
    np.testing.assert_allclose(MRIntensity().limits(spiked, MR), (low, high), rtol=0.1, atol=1)
    np.testing.assert_allclose(MRIntensity().limits(mr_volume(scale=1000), MR), (low * 1000, high * 1000), rtol=1e-4)
    assert abs(MRIntensity().limits(mr_volume(air=200_000), MR)[1] - high) < 20
    everywhere = np.percentile(mr_volume(air=2_000_000), 99.5)
    assert everywhere < 600, "a percentile of all voxels would clip the tissue"


def test_mr_without_air_keeps_its_dark_tissue():
    crop = np.random.default_rng(0).choice([200.0, 400.0, 800.0], 30_000).astype(np.float32)
    assert MRIntensity().limits(crop, MR) == (200, 800)


def test_mr_whole_numbers_get_whole_limits():
    limits = MRIntensity().limits(np.rint(mr_volume()), MR)
    assert all(value.is_integer() for value in limits)


def test_z_scores_come_from_the_foreground():
    volume = mr_volume()
    low, high = MRIntensity(deviations=2).limits(volume, MR)
    np.testing.assert_allclose([(low + high) / 2, (high - low) / 4], [600, 100], rtol=0.03)


def test_a_constant_volume_has_no_limits():
    for policy in (MRIntensity(), MRIntensity(deviations=3)):
        with pytest.raises(UnreadableImageError, match="same value"):
            policy.limits(np.full((3, 3, 3), 7, np.float32), MR)


def test_each_modality_has_its_own_policy_and_strangers_can_be_added():
    policy = ModalityIntensity(policies={"CT": CTIntensity(name="ct_lung"), "CR": RadiographIntensity()})
    assert policy.limits(ct_volume(), CT) == (-1350, 150)
    assert policy.policy_of("CR") == RadiographIntensity()
    assert policy.to_dict()["policies"]["CT"]["window_hu"] == [-1350, 150]
    with pytest.raises(UnreadableImageError, match="is for CR and CT"):
        policy.limits(mr_volume(), MR)


def test_otsu_is_the_threshold_of_least_variance_within():
    values = np.concatenate([np.random.default_rng(s).normal(m, 5, n) for s, m, n in ((0, 20, 500), (1, 90, 1500))])
    best = otsu_threshold(values)

    def within(threshold):
        parts = [values[values <= threshold], values[values > threshold]]
        return sum(part.var() * len(part) for part in parts if len(part))

    candidates = np.linspace(values.min(), values.max(), 500)
    assert within(best) <= min(map(within, candidates)) * 1.001
    assert otsu_threshold(np.full(5, 3.0)) == 3.0


def test_the_body_is_found_and_specks_are_not():
    volume = ct_volume((40, 60, 50)).astype(np.float32)
    box = tuple(slice(side // 4, side - side // 4) for side in volume.shape)
    volume[0, 0, 0] = 3000  # a wire: 1 of 3000 voxels of its slice
    assert foreground_box(volume, body_threshold(volume, "CT")) == (slice(0, 30), slice(0, 45), slice(0, 38))
    assert foreground_box(volume, body_threshold(volume, "CT"), specks=1e-3) == box
    shifted = volume + 1000
    shifted[0, 0, 0] = 0
    assert foreground_box(shifted, body_threshold(shifted, "MR")) == box
    assert foreground_box(volume, 1e9) == (slice(0, 40), slice(0, 60), slice(0, 50))
