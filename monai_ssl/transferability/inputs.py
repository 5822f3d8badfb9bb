# SPDX-License-Identifier: Apache-2.0
"""What the measures of this room accept: finite feature matrices, and labels whose classes have enough samples."""

from __future__ import annotations

import numpy as np
from torch import Tensor

Matrix = np.ndarray | Tensor


def feature_matrix(features: Matrix, name: str = "features", least: int = 2) -> np.ndarray:
    """Return features as float64 ``(N, F)``.

    Raises:
        ValueError: another shape, fewer than ``least`` rows, or a value that is not finite.
    """
    x = np.asarray(features.detach().cpu() if isinstance(features, Tensor) else features, dtype=np.float64)
    if x.ndim != 2 or x.shape[1] == 0:
        raise ValueError(f"{name} must have shape (N, F), one row a sample, got {x.shape}")
    if len(x) < least:
        raise ValueError(f"{name}: {len(x)} samples are too few, at least {least} are needed")
    if not np.isfinite(x).all():
        bad = int((~np.isfinite(x)).any(axis=1).sum())
        raise ValueError(f"{name}: {bad} of {len(x)} samples have NaN or infinite values; compute them in fp32")
    return x


def two_matrices(x: Matrix, y: Matrix, least: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Return two sets of features of one network, ``(N, F)`` and ``(M, F)``.

    Raises:
        ValueError: see :func:`feature_matrix`, or they have different numbers of features.
    """
    x, y = feature_matrix(x, "the first set's features", least), feature_matrix(y, "the second set's features", least)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"both sets need features of one network: these have {x.shape[1]} and {y.shape[1]} features")
    return x, y


def labelled_matrix(features: Matrix, labels: Matrix, least: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Return the labelled rows of the features, and their classes numbered ``0 .. K-1`` without gaps.

    Args:
        features: ``(N, F)``.
        labels: ``(N,)`` whole numbers, -1 (or NaN) where unknown.
        least: fewest samples of each class.

    Raises:
        ValueError: shapes do not fit, fewer than two classes, a class with too few samples (it is named), or all
            samples have the same features.
    """
    x = feature_matrix(features)
    y = class_numbers(labels, len(x))
    known = y >= 0
    x, y = x[known], y[known]
    classes, y, counts = np.unique(y, return_inverse=True, return_counts=True)
    if len(classes) < 2:
        raise ValueError(f"at least two classes are needed, the labels have {len(classes)}")
    few = [f"{name} ({count})" for name, count in zip(classes, counts, strict=True) if count < least]
    if few:
        raise ValueError(
            f"each class needs at least {least} labelled samples; too few have the classes {', '.join(few)}: leave "
            "them out, or label more"
        )
    if not np.ptp(x, axis=0).any():
        raise ValueError("all samples have the same features: the encoder has collapsed, or was given one image")
    return x, y


def class_numbers(labels: Matrix, rows: int) -> np.ndarray:
    """Return ``(N,)`` int64 labels, -1 where unknown.

    Raises:
        ValueError: another shape, or values that are no whole numbers from -1 on.
    """
    y = np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels)
    if y.dtype.kind not in "biuf" or y.shape != (rows,):
        raise ValueError(f"labels must be numbers of shape ({rows},), got {y.dtype} {y.shape}")
    y = np.nan_to_num(y.astype(np.float64), nan=-1)
    if (y < -1).any() or (y != np.round(y)).any():
        raise ValueError("labels must be whole numbers 0, 1, ..., or -1 for unknown")
    return y.astype(np.int64)
