# SPDX-License-Identifier: Apache-2.0
"""Pieces of the fine-tuning recipe."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_ssl.evaluation.fine_tuning import (
    WeightAverage,
    class_weights,
    classification_layer,
    fine_tuning_groups,
    fine_tuning_views,
    set_classification_layer,
)
from monai_ssl.evaluation.probes import linear_probe
from monai_ssl.networks import ImageEncoder, build_classifier
from monai_ssl.transforms import IntensityStandardize, evaluation_view

PLAIN = IntensityStandardize(mean=0.0, std=1.0)
VIT = {"img_size": 32, "hidden_size": 24, "mlp_dim": 24, "num_layers": 2, "num_heads": 2}
DENSE = {"init_features": 8, "growth_rate": 4, "block_config": [1, 1, 1, 1]}
NETS = [("resnet18", {}), ("densenet121", DENSE), ("efficientnet-b0", {}), ("vit", VIT)]


@pytest.mark.parametrize(("architecture", "arguments"), NETS, ids=[name for name, _ in NETS])
def test_groups_hold_every_parameter_once_and_slow_down_towards_the_image(architecture, arguments):
    net = build_classifier(architecture, 3, **arguments)
    groups = fine_tuning_groups(net, 0.1, backbone_factor=0.5, layer_decay=0.8, weight_decay=0.05)
    ids = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in net.parameters() if p.requires_grad)
    rate = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    adapter = ImageEncoder(net)
    stem = rate[id(net.get_parameter(adapter.stem_key))]
    assert rate[id(classification_layer(net).weight)] == 0.1 == max(rate.values())
    assert stem == min(rate.values()) < 0.04
    backbone = sorted({value for value in rate.values() if value < 0.1}, reverse=True)
    np.testing.assert_allclose(backbone, 0.05 * 0.8 ** np.arange(len(backbone)))
    assert len(backbone) >= 4
    for group in groups:
        assert all((parameter.ndim > 1) == (group["weight_decay"] > 0) for parameter in group["params"])
    torch.optim.AdamW(groups)


def test_blocks_of_a_resnet_have_rates_of_their_own_and_follow_the_order():
    net = build_classifier("resnet18", 2)
    groups = fine_tuning_groups(net, 1.0, layer_decay=0.5)
    rate = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    found = [rate[id(p)] for name, p in net.named_parameters() if name.endswith("conv1.weight")]
    assert found == sorted(found) and found[-1] == 1.0 and found[0] == 0.5**8  # the stem and eight blocks
    assert rate[id(net.bn1.weight)] == rate[id(net.conv1.weight)]


def test_factor_zero_and_frozen_parameters_are_left_out():
    net = build_classifier("resnet18", 2)
    only_head = fine_tuning_groups(net, 0.1, backbone_factor=0.0)
    assert [p.shape for group in only_head for p in group["params"]] == [net.fc.weight.shape, net.fc.bias.shape]
    net.conv1.requires_grad_(False)
    ids = {id(p) for group in fine_tuning_groups(net, 0.1) for p in group["params"]}
    assert id(net.conv1.weight) not in ids and id(net.bn1.weight) in ids


@pytest.mark.parametrize(("architecture", "arguments"), NETS, ids=[name for name, _ in NETS])
def test_head_takes_over_a_probe_of_the_same_network(architecture, arguments):
    torch.manual_seed(0)
    net = build_classifier(architecture, 3, **arguments).eval()
    images = torch.rand(12, 1, 32, 32)
    with torch.no_grad():
        features = ImageEncoder(net)(images)
        probe = linear_probe(features, np.arange(12) % 3, c=1.0)
        set_classification_layer(net, probe)
        torch.testing.assert_close(net(images), torch.from_numpy(probe.logits(features)).float(), rtol=1e-3, atol=1e-3)


def test_head_of_another_size_is_refused():
    probe = linear_probe(np.random.default_rng(0).normal(size=(20, 8)), np.arange(20) % 2, c=1.0)
    with pytest.raises(ValueError, match="8 features to 2 classes, the head 512 to 3"):
        set_classification_layer(build_classifier("resnet18", 3), probe)


def test_class_weights():
    labels = np.array([0] * 8 + [1] * 2 + [-1])
    balanced = class_weights(labels, 2, power=1.0)
    assert balanced[1] / balanced[0] == pytest.approx(4.0)
    assert (balanced * torch.tensor([8.0, 2.0])).sum().item() == pytest.approx(10.0)  # mean over samples is 1
    assert class_weights(labels, 2, power=0.0).tolist() == [1.0, 1.0]
    findings = np.array([[1, 0], [0, 0], [0, 1], [0, -1]])
    assert class_weights(findings, 2, power=1.0).tolist() == [3.0, 2.0]
    with pytest.raises(ValueError, match="class 2 has no sample"):
        class_weights(labels, 3)
    with pytest.raises(ValueError, match="finding 0 has no positive"):
        class_weights(np.zeros((4, 1), int), 1)


def test_weight_average_follows_parameters_and_statistics():
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    average = WeightAverage(net, momentum=0.5)
    net[0].weight.data.fill_(1.0)
    average.update(net)
    assert torch.equal(average.module[0].weight, net[0].weight)  # the first update copies
    net[0].weight.data.fill_(3.0)
    net[1].running_mean.fill_(2.0)
    net[1].num_batches_tracked.fill_(7)
    average.update(net)
    assert average.module[0].weight[0, 0].item() == pytest.approx(0.1 * 1 + 0.9 * 3)  # m = 1 / (1 + 9)
    assert average.module[1].running_mean[0].item() == pytest.approx(0.9 * 2)
    assert average.module[1].num_batches_tracked == 7
    for _ in range(30):
        average.update(net)
    net[0].weight.data.fill_(5.0)
    before = average.module[0].weight[0, 0].item()
    average.update(net)
    assert average.module[0].weight[0, 0].item() == pytest.approx((before + 5) / 2)  # the ramp has ended
    average.train()
    assert not average.module.training
    twin = WeightAverage(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)), 0.5)
    twin.load_state_dict(average.state_dict())
    twin.update(net), average.update(net)
    assert torch.equal(twin.module[0].weight, average.module[0].weight)


def test_views_are_light_and_strength_zero_only_mirrors():
    images = torch.rand(6, 1, 40, 48)
    g = torch.Generator().manual_seed(0)
    (still,) = fine_tuning_views((40, 48), strength=0, flip_prob=0.0, standardize=PLAIN)(images, g)
    torch.testing.assert_close(still, images, atol=1e-5, rtol=0)
    (mirrored,) = fine_tuning_views((40, 48), strength=0, flip_prob=1.0, standardize=PLAIN)(images, g)
    torch.testing.assert_close(mirrored, images.flip(-1), atol=1e-5, rtol=0)
    (changed,) = fine_tuning_views(32, strength=1.0)(images, g)
    assert changed.shape == (6, 1, 32, 32)
    (volumes,) = fine_tuning_views(16, spatial_dims=3)(torch.rand(2, 1, 20, 20, 24), g)
    assert volumes.shape == (2, 1, 16, 16, 16)


@pytest.mark.parametrize(
    "wrong", [{"learning_rate": 0}, {"backbone_factor": -1}, {"layer_decay": 0}, {"layer_decay": 1.5}]
)
def test_numbers_out_of_range(wrong):
    with pytest.raises(ValueError, match="fine-tuning needs"):
        fine_tuning_groups(build_classifier("resnet18", 2), **{"learning_rate": 0.1, **wrong})
    with pytest.raises(ValueError, match="strength"):
        fine_tuning_views(32, strength=2)
    with pytest.raises(ValueError, match="momentum"):
        WeightAverage(torch.nn.Linear(1, 1), 1.0)


@pytest.mark.parametrize("fit", ["stretch", "native"])
def test_views_of_volumes_keep_all_that_is_evaluated(fit):
    """A bright spot near the corner of what the evaluation sees must survive: it may be what the label is about."""
    size, shape = (12, 24, 24), (2, 1, 16, 40, 44)
    volumes = torch.zeros(shape)
    box = evaluation_view(size, 3, fit, PLAIN).draw(shape)
    corner = (box["0.center"] - 0.3 * box["0.crop"]).round().long()
    for volume, (d, h, w) in zip(volumes, corner.tolist(), strict=True):
        volume[0, d - 2 : d + 2, h - 3 : h + 3, w - 3 : w + 3] = 1
    g = torch.Generator().manual_seed(0)
    views = fine_tuning_views(size, 3, strength=1.0, flip_prob=(0.5, 0.5, 0.5), standardize=PLAIN, fit=fit)
    for _ in range(20):
        (view,) = views(volumes, g)
        assert view.shape == (2, 1, *size) and (view.flatten(1).amax(1) > 0.5).all()
    (still,) = fine_tuning_views(size, 3, strength=0, flip_prob=0.0, standardize=PLAIN, fit=fit)(volumes, g)
    torch.testing.assert_close(still, evaluation_view(size, 3, fit, PLAIN)(volumes))
    params = views.draw((200, 1, 16, 40, 44), g)[0]
    assert params["0.axis"].eq(torch.tensor([1.0, 0.0, 0.0])).all()  # turns within slices
    assert ((params["0.crop"] / params["0.crop"][:, :1]).std(0) < 1e-5).all()  # and no change of shape
