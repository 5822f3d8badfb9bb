# SPDX-License-Identifier: Apache-2.0
"""ProbCover: the image whose ball covers most images that no labelled image's ball covers.

Yehuda, Dekel, Hacohen, Weinshall, *Active Learning Through a Covering Lens*, NeurIPS 2022, arXiv 2205.11320,
algorithm 1. The radius is the largest at which a share ``purity = 0.95`` of the balls hold images of one k-means
cluster only (the clusters stand for the classes). A ball is pure while its radius is below the distance d(x) of its
centre to the nearest image of another cluster, so that radius is a quantile::

    radius = quantile(d, 1 - purity)
"""

from __future__ import annotations

import numpy as np

from monai_ssl.label.clusters import cluster_numbers
from monai_ssl.label.core_set import core_set_images
from monai_ssl.label.pool import LabelPool

__all__ = ["coverage_radius", "covering_images"]

_CHUNK = 1024


def coverage_radius(embeddings: np.ndarray, num_classes: int, purity: float = 0.95, seed: int = 0) -> float:
    """Return the radius of the balls, a distance between unit vectors in (0, 2].

    Args:
        embeddings: ``(N, D)``, rows of length 1.
        num_classes: clusters that stand for the classes.
        purity: share of the balls that hold one cluster only, in (0, 1].
        seed: of k-means.

    Raises:
        ValueError: ``purity`` is out of its range.
    """
    if not 0 < purity <= 1:
        raise ValueError(f"purity must lie above 0 and at most at 1, got {purity}")
    cluster = cluster_numbers(embeddings, num_classes, seed)
    if cluster.max() == 0:
        return 2.0
    other = np.empty(len(embeddings))
    for start in range(0, len(embeddings), _CHUNK):
        rows = slice(start, start + _CHUNK)
        cosine = embeddings[rows] @ embeddings.T
        cosine[cluster[rows, None] == cluster[None, :]] = -1
        other[rows] = np.sqrt(np.maximum(2 - 2 * cosine.max(axis=1), 0))
    return float(max(np.quantile(other, 1 - purity, method="lower"), 1e-3))


def covering_images(
    pool: LabelPool, num: int, seed: int = 0, *, radius: float | None = None, purity: float = 0.95
) -> np.ndarray:
    """Choose the images whose balls cover most.

    When everything is covered, core-set goes on: the paper's budgets end before that.

    Args:
        pool: see :class:`LabelPool`; its ``num_classes`` serves the radius.
        num: images to choose.
        seed: of k-means.
        radius: of the balls; None: :func:`coverage_radius`.
        purity: for :func:`coverage_radius`.

    Returns:
        ``(num,)`` rows, fewer if no more are left.
    """
    x, offered = pool.embeddings, pool.offered
    radius = coverage_radius(x, pool.num_classes, purity, seed) if radius is None else radius
    starts, covers = _balls(x, radius)
    degree = np.diff(starts)  # images in each ball that are not covered; balls are mutual
    covered = np.zeros(len(x), dtype=bool)

    def cover(centre: int) -> None:
        inside = covers[starts[centre] : starts[centre + 1]]
        new = inside[~covered[inside]]
        covered[new] = True
        for row in new:
            degree[covers[starts[row] : starts[row + 1]]] -= 1

    for centre in np.flatnonzero(pool.labelled):
        cover(int(centre))
    chosen: list[int] = []
    wanted = min(num, int(offered.sum()))
    while len(chosen) < wanted:
        best = int(np.where(offered, degree, -1).argmax())
        if degree[best] <= 0:
            break
        chosen.append(best)
        offered[best] = False
        cover(best)
    if len(chosen) < wanted:
        taken = pool.labelled.copy()
        taken[chosen] = True
        rest = LabelPool(x, taken, pool.closed)
        chosen += core_set_images(rest, wanted - len(chosen), seed).tolist()
    return np.array(chosen, dtype=np.int64)


def _balls(x: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Rows within the radius of each row, itself included, one after another: starts (N + 1,) and members."""
    least = np.float32(1 - radius**2 / 2)
    counts, members = [], []
    for start in range(0, len(x), _CHUNK):
        near = x[start : start + _CHUNK] @ x.T >= least
        near[np.arange(len(near)), start + np.arange(len(near))] = True  # rounding must not lose the centre
        counts.append(near.sum(axis=1))
        members.append(np.nonzero(near)[1].astype(np.int32))
    return np.concatenate([[0], np.cumsum(np.concatenate(counts))]), np.concatenate(members)
