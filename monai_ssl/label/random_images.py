# SPDX-License-Identifier: Apache-2.0
"""Images in a random order: what every strategy must beat."""

from __future__ import annotations

import numpy as np

from monai_ssl.label.pool import LabelPool

__all__ = ["random_images"]


def random_images(pool: LabelPool, num: int, seed: int = 0) -> np.ndarray:
    """Choose images at random.

    The order of one seed does not depend on what is labelled, so that the choices of successive rounds are the
    beginning of one order.

    Args:
        pool: see :class:`LabelPool`.
        num: images to choose.
        seed: of the order.

    Returns:
        ``(num,)`` rows, fewer if no more are left.
    """
    order = np.random.default_rng(seed).permutation(len(pool))
    return order[pool.offered[order]][:num]
