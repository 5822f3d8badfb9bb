# SPDX-License-Identifier: Apache-2.0
"""Noise-contrastive estimation with a constant partition function Z, estimated once.

Gutmann & Hyvarinen, *Noise-contrastive estimation*, AISTATS 2010, in the form of Wu et al., *Unsupervised Feature
Learning via Non-Parametric Instance Discrimination*, CVPR 2018, equations 4 to 8: with ``P(s) = exp(s/t) / Z`` and
uniform noise ``Pn = 1 / n_data``::

    L = -[ log(P_pos / (P_pos + K Pn)) + sum_j log(K Pn / (P_neg_j + K Pn)) ]

It is the second criterion of C2L (Zhou et al., MICCAI 2020). Everything is done with ``log P``: ``exp(s/t)`` itself
overflows float32 below a temperature of 0.012.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_ssl.losses.contrast import check_temperature, full_precision, prepare_contrast
from monai_ssl.losses.distributed import DistributedKind, all_gather

__all__ = ["ConstantZNCELoss", "nce_constant_z"]


@full_precision
def nce_constant_z(
    query: Tensor,
    key: Tensor,
    negatives: Tensor,
    log_z: float | Tensor,
    num_data: int,
    temperature: float | Tensor = 0.07,
    *,
    normalized: bool = False,
    negative_mask: Tensor | None = None,
) -> Tensor:
    """NCE loss with a given ``log Z``, averaged over the queries (see the module's text for the formula).

    Args:
        query: ``(B, D)`` features.
        key: ``(B, D)`` features, row ``i`` is the positive of query ``i``.
        negatives: ``(K, D)`` features, the noise samples.
        log_z: natural logarithm of the partition function ``Z``, see :func:`estimate_log_z`.
        num_data: number of images in the training set, ``1 / Pn``.
        temperature: positive number, or a scalar tensor.
        normalized: the rows already have unit length and are used as they are.
        negative_mask: boolean ``(B, K)``, True where a negative is excluded for that query; ``K`` in the formula is
            then that query's number of remaining negatives.

    Returns:
        Scalar.

    Raises:
        ValueError: if shapes do not fit, or ``num_data`` or the temperature is not positive.
    """
    _check_num_data(num_data)
    positive, negative = _logits(query, key, negatives, temperature, normalized, negative_mask)
    # log(P / (P + c)) = -softplus(log c - log P) and log(c / (P + c)) = -softplus(log P - log c), c = K Pn
    log_c = _num_negatives(negative, negative_mask).log() - math.log(num_data)  # (B,)
    offset = log_z + log_c
    data_term = F.softplus(offset - positive)
    evidence = negative.sub_(offset[:, None])  # in place: (B, K) is the large one
    if negative_mask is not None:
        evidence.masked_fill_(negative_mask, -torch.inf)
    return (data_term + F.softplus(evidence).sum(dim=1)).mean()


@full_precision
def estimate_log_z(
    query: Tensor,
    key: Tensor,
    negatives: Tensor,
    num_data: int,
    temperature: float | Tensor = 0.07,
    *,
    normalized: bool = False,
    negative_mask: Tensor | None = None,
) -> Tensor:
    """Monte-Carlo estimate ``log Z = log(mean(exp(s/t)) * num_data)`` over all pairs of a batch and of all processes.

    Args and errors as in :func:`nce_constant_z`.

    Returns:
        Scalar without gradient, equal on all processes.
    """
    _check_num_data(num_data)
    with torch.no_grad():
        positive, negative = _logits(query, key, negatives, temperature, normalized, negative_mask)
        if negative_mask is not None:
            negative.masked_fill_(negative_mask, -torch.inf)
        count = _num_negatives(negative, negative_mask).sum() + len(positive)
        log_sum = torch.logsumexp(torch.cat([positive, negative.flatten()]), dim=0)
        log_means = all_gather((log_sum - count.log())[None])  # (world_size,)
        return torch.logsumexp(log_means, dim=0) - math.log(len(log_means)) + math.log(num_data)


class ConstantZNCELoss(nn.Module):
    """NCE whose ``Z`` is estimated on the first batch, then kept, also in checkpoints.

    ``log Z`` is the persistent buffer ``log_z`` (NaN until the first batch). The first batch's estimate is averaged
    over all processes, so that all of them use the same constant.

    Args:
        num_data: number of images in the training set.
        temperature: positive; 0.07 in C2L.
        normalized: the rows given to ``forward`` already have unit length.
    """

    distribution: ClassVar[DistributedKind] = "reduces_statistics"
    log_z: Tensor

    def __init__(self, num_data: int, temperature: float = 0.07, normalized: bool = False) -> None:
        super().__init__()
        check_temperature(temperature)
        _check_num_data(num_data)
        self.num_data = num_data
        self.temperature = temperature
        self.normalized = normalized
        self.register_buffer("log_z", torch.tensor(math.nan))
        self._estimated = False  # mirrors the buffer, so that a step need not read it back from the device

    def forward(self, query: Tensor, key: Tensor, negatives: Tensor, negative_mask: Tensor | None = None) -> Tensor:
        """Loss of ``query`` (B, D) against ``key`` (B, D) and ``negatives`` (K, D); see :func:`nce_constant_z`."""
        options = {
            "num_data": self.num_data,
            "temperature": self.temperature,
            "normalized": self.normalized,
            "negative_mask": negative_mask,
        }
        if not self._estimated:
            if self.log_z.isnan():
                self.log_z.copy_(estimate_log_z(query, key, negatives, **options))
            self._estimated = True
        return nce_constant_z(query, key, negatives, self.log_z, **options)

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._estimated = False

    def extra_repr(self) -> str:
        """Show the settings in ``repr``."""
        return f"num_data={self.num_data}, temperature={self.temperature}, normalized={self.normalized}"


def _logits(
    query: Tensor,
    key: Tensor,
    negatives: Tensor,
    temperature: float | Tensor,
    normalized: bool,
    negative_mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Positive logits (B,) and negative logits (B, K)."""
    query, key, negatives = prepare_contrast(query, key, negatives, temperature, normalized, negative_mask)
    return (query * key).sum(dim=1), query @ negatives.T


def _num_negatives(negative: Tensor, negative_mask: Tensor | None) -> Tensor:
    """Negatives left for each query: (B, K) logits -> (B,) counts in the logits' dtype."""
    if negative_mask is None:
        return negative.new_full((len(negative),), negative.shape[1])
    return (~negative_mask).sum(dim=1).to(negative.dtype)


def _check_num_data(num_data: int) -> None:
    if num_data < 1:
        raise ValueError(f"num_data must be the number of training images, at least 1, got {num_data}")
