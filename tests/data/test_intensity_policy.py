from __future__ import annotations

import json

import numpy as np
import pytest

from monai_ssl.data import RadiographIntensity, UnreadableImageError, policy_from_dict

RAMP = np.arange(1000, dtype=np.float32).reshape(20, 50)


def test_radiographs_take_the_readers_range():
    policy = RadiographIntensity()
    assert policy.limits(RAMP, {"value_range": (10, 900), "value_range_source": "window"}) == (10.0, 900.0)


@pytest.mark.parametrize("source", ["pixels", "bits_stored"])
def test_stretch_takes_whole_values_the_image_has_and_no_padding(source):
    policy = RadiographIntensity(stretch_percentiles=(1, 99))
    padded = np.concatenate([np.zeros((20, 500), np.float32), RAMP], axis=1)
    low, high = policy.limits(padded, {"value_range": (0, 4095), "value_range_source": source})
    assert (low, high) == (10.0, 990.0)  # percentiles of 1..999


@pytest.mark.parametrize("source", ["window", "voi_lut", "sigmoid"])
def test_stretch_leaves_windowed_images_alone(source):
    policy = RadiographIntensity(stretch_percentiles=(1, 99))
    assert policy.limits(RAMP, {"value_range": (0, 4095), "value_range_source": source}) == (0.0, 4095.0)


@pytest.mark.parametrize("value_range", [(5, 5), (7, 3), (0, float("nan")), (0, float("inf"))])
def test_an_empty_range_is_refused(value_range):
    with pytest.raises(UnreadableImageError, match="no usable range"):
        RadiographIntensity().limits(RAMP, {"value_range": value_range})


@pytest.mark.parametrize("percentiles", [(99, 1), (-1, 50), (5, 101), (5, 5)])
def test_wrong_percentiles_are_an_error(percentiles):
    with pytest.raises(ValueError, match="0 <= low < high <= 100"):
        RadiographIntensity(stretch_percentiles=percentiles)


@pytest.mark.parametrize("percentiles", [None, (0.5, 99.5)])
def test_a_policy_survives_json(percentiles):
    policy = RadiographIntensity(stretch_percentiles=percentiles)
    again = policy_from_dict(json.loads(json.dumps(policy.to_dict())))
    assert again == policy
    assert {"kind", "name", "citation", "unit"} <= policy.to_dict().keys()


def test_unknown_policies_are_named():
    with pytest.raises(ValueError, match=r"unknown intensity policy 'radiogaph'; known: .*radiograph"):
        policy_from_dict({"kind": "radiogaph"})
    with pytest.raises(ValueError, match="fields of the intensity policy 'radiograph'"):
        policy_from_dict({"kind": "radiograph", "windw": 3})
