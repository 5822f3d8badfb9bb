# SPDX-License-Identifier: Apache-2.0
"""A training starts from nothing, an earlier stage, or a foreign checkpoint."""

from __future__ import annotations

import pytest
import torch
from weight_cases import saved, thin_resnet

from monai_ssl.networks import build_encoder
from monai_ssl.weights import WeightsFileError, WeightsMismatchError, start_from


def test_without_a_path_the_weights_stay(tmp_path):
    encoder = thin_resnet()
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    assert start_from(encoder, None) is encoder
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())


def test_an_earlier_stage_is_loaded_with_its_lineage(tmp_path):
    source = thin_resnet()
    target = build_encoder("resnet10", widen_factor=0.125)
    start_from(target, saved(source, tmp_path))
    image = torch.rand(2, 1, 32, 32)
    assert torch.equal(source(image), target.eval()(image))
    assert [stage["method"] for stage in target.lineage] == ["C2L"]


def test_another_network_and_an_unknown_checkpoint_are_refused(tmp_path):
    with pytest.raises(WeightsMismatchError):
        start_from(build_encoder("densenet121"), saved(thin_resnet(), tmp_path))
    torch.save({"some.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(WeightsFileError, match="not known"):
        start_from(thin_resnet(), tmp_path / "other.pth")
