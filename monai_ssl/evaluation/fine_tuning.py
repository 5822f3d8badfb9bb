# SPDX-License-Identifier: Apache-2.0
"""Pieces of a fine-tuning recipe for a MONAI classifier: where its head is, rates by depth, weights, an average."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import nn

from monai_ssl.evaluation.probes import LinearProbe
from monai_ssl.networks import ImageEncoder
from monai_ssl.transforms import (
    IntensityStandardize,
    MultiView,
    RandomBrightnessContrast,
    RandomCenterResample,
    RandomGamma,
    RandomGaussianNoise,
    ViewChain,
    radiograph_views,
)

__all__ = [
    "WeightAverage",
    "class_weights",
    "classification_layer",
    "fine_tuning_groups",
    "fine_tuning_views",
    "set_classification_layer",
]


def classification_layer(net: nn.Module) -> nn.Linear:
    """Return the last linear layer of a classifier, the one that reads the pooled features.

    Args:
        net: made by :func:`monai_ssl.networks.build_classifier`, or a MONAI network of such a class.

    Raises:
        ValueError: the network has no head of one linear layer.
    """
    adapter = ImageEncoder(net)
    layers = [
        module
        for name, module in net.named_modules()
        if isinstance(module, nn.Linear) and not adapter.is_encoder_key(f"{name}.weight")
    ]
    if len(layers) != 1 or layers[0].in_features != adapter.num_features:
        raise ValueError(f"{type(net).__name__} has no head of one linear layer; build it with build_classifier")
    return layers[0]


def set_classification_layer(net: nn.Module, probe: LinearProbe) -> None:
    """Start the head from a linear probe of the same network's features.

    Kumar et al., *Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution*, ICLR 2022 (LP-FT,
    section 4): a random head sends random gradients into the pretrained layers; a head that is fitted first does not.

    Raises:
        ValueError: the probe has other features or classes than the head.
    """
    layer, new = classification_layer(net), probe.as_linear_layer()
    if new.weight.shape != layer.weight.shape:
        raise ValueError(
            f"the probe maps {new.in_features} features to {new.out_features} classes, "
            f"the head {layer.in_features} to {layer.out_features}"
        )
    layer.load_state_dict(new.state_dict())


def fine_tuning_groups(
    net: nn.Module,
    learning_rate: float,
    backbone_factor: float = 1.0,
    layer_decay: float = 1.0,
    weight_decay: float = 0.0,
) -> list[dict[str, Any]]:
    """Return parameter groups with a rate for each depth: the head learns fastest, the first layers slowest.

    With L groups of layers between image and head, layer group i of 1 .. L gets the rate
    ``learning_rate * backbone_factor * layer_decay ** (L - i)`` and the head ``learning_rate`` (Clark et al., ELECTRA,
    ICLR 2020, appendix A, for the decay). Biases and normalisation parameters are not decayed.

    Args:
        net: a MONAI classifier whose class :class:`monai_ssl.networks.ImageEncoder` knows.
        learning_rate: of the head.
        backbone_factor: of the last layer before the head, relative to it; 0 freezes the backbone's parameters.
        layer_decay: from one group of layers to the one before, in (0, 1].
        weight_decay: of the weights.

    Returns:
        Groups with ``name``, ``params``, ``lr`` and ``weight_decay`` for any torch optimiser, head first. Frozen
        parameters are in none of them.

    Raises:
        ValueError: a number is out of its range, or the class of ``net`` is unknown.
    """
    if not learning_rate > 0 or backbone_factor < 0 or not 0 < layer_decay <= 1 or weight_decay < 0:
        raise ValueError(
            "fine-tuning needs learning_rate > 0, backbone_factor >= 0, layer_decay in (0, 1] and weight_decay >= 0, "
            f"got {learning_rate}, {backbone_factor}, {layer_decay} and {weight_decay}"
        )
    adapter, depths = type(ImageEncoder(net)), _depths(net)
    last = max(depths.values())
    groups: dict[tuple, dict[str, Any]] = {}
    for name, parameter in net.named_parameters():
        if adapter.is_encoder_key(name):
            depth = depths[name]
            rate = learning_rate * backbone_factor * layer_decay ** (last - depth)
            place = "backbone" if layer_decay == 1 else f"layers {depth + 1} of {last + 1}"
        else:
            rate, depth, place = learning_rate, last + 1, "head"
        decay = weight_decay if parameter.ndim > 1 else 0.0
        if rate == 0 or not parameter.requires_grad:
            continue
        group = {"name": f"{place}{', decayed' if decay else ''}", "params": [], "lr": rate, "weight_decay": decay}
        groups.setdefault((-depth if layer_decay < 1 else place != "head", decay == 0), group)["params"].append(
            parameter
        )
    return [groups[key] for key in sorted(groups)]


def fine_tuning_views(
    size: int | Sequence[int],
    spatial_dims: int = 2,
    strength: float = 1.0,
    flip_prob: float | Sequence[float] = 0.5,
    standardize: IntensityStandardize | None = None,
    fit: str = "stretch",
) -> MultiView:
    """Return one randomly changed view of each image, lighter than the views of pretraining.

    At strength 1: half of the image's area or more, a turn of up to 10 degrees, brightness, contrast and gamma within
    20 %, a left-right mirror; no blur. A class must survive the change, so a view keeps most of the image.

    Of volumes, and of images that are not stretched, a view keeps nearly all that the evaluation sees: what decides
    may be small and at the edge, and its size in mm may count. At strength 1 the box of ``fit`` is zoomed within 10 %
    and moved by up to 5 % of its sides, volumes are turned within their slices, and half get noise of up to 2 % of the
    grey range.

    Args:
        size: side(s) of the view in pixels.
        spatial_dims: 2 or 3.
        strength: scales all of it but the mirror; 0 only mirrors, 2 is as strong as crops of any size.
        flip_prob: of the mirror, one number for left-right or one for each axis; 0 keeps the side of the heart.
        standardize: what the encoder was trained with; None: the package's common one.
        fit: see :class:`monai_ssl.transforms.CenterResample`; that of the evaluation.

    Raises:
        ValueError: the strength is outside [0, 2).
    """
    if not 0 <= strength < 2:
        raise ValueError(f"the strength of the augmentation must be in [0, 2), got {strength}")
    if spatial_dims == 3 or fit != "stretch":
        return _whole_views(size, fit, strength, flip_prob, standardize)
    return radiograph_views(
        size if isinstance(size, int) else tuple(size),
        spatial_dims,
        min_scale=1 - 0.5 * strength,
        jitter=min(0.2 * strength, 0.9),
        gamma=(1 / (1 + 0.2 * strength), 1 + 0.2 * strength),
        gamma_prob=0.5 if strength else 0.0,
        rotation_deg=10 * strength,
        flip_prob=flip_prob,
        blur_prob=0.0,
        standardize=standardize,
        num_views=1,
    )


def _whole_views(
    size: int | Sequence[int],
    fit: str,
    strength: float,
    flip_prob: float | Sequence[float],
    standardize: IntensityStandardize | None,
) -> MultiView:
    """One view that keeps nearly all that the evaluation sees, see ``fine_tuning_views``."""
    zoom, jitter, gamma = 1 + 0.1 * strength, min(0.2 * strength, 0.9), 1 + 0.2 * strength
    box = RandomCenterResample(size, fit, (1 / zoom, zoom), 0.05 * strength, 10 * strength, flip_prob)
    changes = [
        RandomBrightnessContrast(jitter, jitter, 0.8),
        RandomGamma((1 / gamma, gamma), 0.5),
        RandomGaussianNoise((0.0, 0.02 * strength), 0.5),
    ]
    return MultiView([ViewChain([box, *(changes if strength else []), standardize or IntensityStandardize()])])


def class_weights(labels: np.ndarray, num_classes: int, power: float = 0.5) -> torch.Tensor:
    """Return weights of competing classes, or of the positive samples of findings, for the loss.

    Competing classes: ``(n / (K n_k)) ** power``, scaled so that the mean over samples is 1. Findings:
    ``(n_without / n_with) ** power`` for ``BCEWithLogitsLoss(pos_weight=...)``.

    Args:
        labels: ``(N,)`` classes, or ``(N, K)`` findings of 0 and 1; -1 is unknown.
        num_classes: K.
        power: 1 balances fully, 0 not at all; the square root tames rare classes' noise.

    Raises:
        ValueError: a class has no sample, or a finding no positive sample.
    """
    y = np.asarray(labels)
    if y.ndim == 2:
        positives, negatives = (y == 1).sum(axis=0), (y == 0).sum(axis=0)
        if not positives.all():
            raise ValueError(f"finding {int(np.argmin(positives))} has no positive sample to weigh")
        return torch.from_numpy((negatives / positives) ** power).float()
    counts = np.bincount(y[y >= 0], minlength=num_classes)
    if not counts.all():
        raise ValueError(f"class {int(np.argmin(counts))} has no sample to weigh")
    weights = (counts.sum() / (num_classes * counts)) ** power
    return torch.from_numpy(weights * counts.sum() / (weights * counts).sum()).float()


class WeightAverage(nn.Module):
    r"""A copy of a network whose parameters and running statistics are the moving average of the network's.

    .. math:: \bar\theta_t = m_t \bar\theta_{t-1} + (1 - m_t) \theta_t, \qquad m_t = \min(m, t / (t + 9))

    for t = 0, 1, ...: the first update copies, and the ramp (that of TensorFlow's ``ExponentialMovingAverage``, one
    step later) lets short runs forget their start. Averaging along the way makes fine-tuning on few labels steadier
    (Polyak & Juditsky 1992; Izmailov et al., arXiv 1803.05407).

    Args:
        source: the network to follow.
        momentum: m in [0, 1); 0 keeps an exact copy.

    Attributes:
        module: the average; in evaluation mode, without gradients.
    """

    def __init__(self, source: nn.Module, momentum: float = 0.98) -> None:
        super().__init__()
        if not 0 <= momentum < 1:
            raise ValueError(f"the weight average's momentum must be in [0, 1), got {momentum}")
        self.momentum = momentum
        self.module = deepcopy(source).requires_grad_(False).eval()
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, source: nn.Module) -> None:
        """Take in the network as it is after a step."""
        t = int(self.steps)
        self.steps += 1
        momentum = min(self.momentum, t / (t + 9))
        ours, theirs = self.module.state_dict(), source.state_dict()
        floating = [key for key, value in ours.items() if value.is_floating_point()]
        torch._foreach_lerp_([ours[key] for key in floating], [theirs[key] for key in floating], 1 - momentum)
        for key in ours.keys() - set(floating):
            ours[key].copy_(theirs[key])

    def train(self, mode: bool = True) -> WeightAverage:
        """Stay in evaluation mode."""
        return super().train(False)


def _depths(net: nn.Module) -> dict[str, int]:
    """Depth of each encoder parameter, 0 at the image, in the order in which the network lists its layers.

    A unit is a block of a container of blocks (``layer1.0``, ``features.denseblock1``, ``blocks.3``); single layers
    that stand between (``conv1``, ``bn1``) form one unit together.
    """
    adapter = type(ImageEncoder(net))
    depths: dict[str, int] = {}
    depth, previous, previous_single = -1, None, False
    for name, _ in net.named_parameters():
        if not adapter.is_encoder_key(name):
            continue
        unit, single = _unit_of(net, name)
        if unit != previous and not (single and previous_single):
            depth += 1
        depths[name], previous, previous_single = depth, unit, single
    return depths


def _unit_of(net: nn.Module, name: str) -> tuple[str, bool]:
    """The unit that a parameter belongs to, and whether it is a single layer."""
    parts = name.split(".")
    if len(parts) == 1:
        return name, True
    unit: Sequence[str] = parts[:1]
    if isinstance(net.get_submodule(parts[0]), (nn.Sequential, nn.ModuleList)):
        unit = parts[:2]
    single = not any(True for _ in net.get_submodule(".".join(unit)).children())
    return ".".join(unit), single
