# SPDX-License-Identifier: Apache-2.0
"""Task2Vec: a data set as the Fisher information that a fixed network's filters have for its task.

Achille et al., *Task2Vec: Task Embedding for Meta-Learning*, ICCV 2019, sections 2 and 3.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_ssl.evaluation import linear_probe
from monai_ssl.networks import ImageEncoder

from .inputs import Matrix, labelled_matrix

__all__ = ["task2vec", "task2vec_asymmetric", "task2vec_distance"]

ALPHA = 0.15
"""Weight of the source's complexity in the asymmetric distance: the paper's, for an ImageNet probe (section 3.5)."""


def task2vec(
    encoder: ImageEncoder,
    images: Tensor,
    labels: Matrix,
    *,
    num_subsets: int = 3,
    subset_size: int | None = None,
    passes: int = 1,
    batch_size: int = 32,
    c: float | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> np.ndarray:
    r"""Embed a classification data set.

    A linear classifier is fitted to the encoder's features of a random subset. Then labels are drawn from the model's
    own predictions, and the diagonal of the Fisher matrix of the encoder's weights,

    .. math:: F_j = E_x E_{\hat y \sim p_\theta(y \mid x)} \big(\partial_{\theta_j} \log p_\theta(\hat y \mid x)\big)^2,

    is averaged over each filter (row of a convolution or linear layer). Because drawn labels make the gradient zero on
    average, B times the square of a batch's mean gradient has the right expectation: one backward pass a batch.

    Other than in the authors' code the network is in evaluation mode, so that images do not mix through BatchNorm, and
    all images count alike.

    Args:
        encoder: the probe network, the same for all data sets that are compared. It is not changed.
        images: ``(N, C, *spatial)``, as the encoder wants them.
        labels: ``(N,)`` classes, -1 for unlabelled (left out).
        num_subsets: independent embeddings, each of a random subset: their spread tells what the distances are worth.
        subset_size: images in a subset; None: half of them for several subsets, all for one.
        passes: labels drawn for each image.
        batch_size: images of one backward pass.
        c: inverse regularisation of the classifier; None chooses it, see :func:`monai_ssl.evaluation.linear_probe`.
        device: where to compute.
        seed: of subsets and labels.

    Returns:
        ``(num_subsets, filters)`` float64, at least 0.

    Raises:
        ValueError: shapes do not fit, a class is missing from a subset, or a number is out of its range.
    """
    if min(num_subsets, passes, batch_size) < 1:
        raise ValueError("num_subsets, passes and batch_size must be at least 1")
    kept = np.nan_to_num(np.asarray(labels, dtype=np.float64), nan=-1) >= 0
    if len(kept) != len(images):
        raise ValueError(f"{len(images)} images and {len(kept)} labels must be equally many")
    images = images[torch.from_numpy(kept)]
    flat, y = labelled_matrix(images.flatten(1), np.asarray(labels)[kept])
    del flat
    size = subset_size or (len(y) if num_subsets == 1 else -(-len(y) // 2))
    if not 2 <= size <= len(y):
        raise ValueError(f"subset_size must lie in 2 .. {len(y)}, the number of labelled images, got {size}")
    probe = copy.deepcopy(encoder).to(device).eval()
    rng = np.random.default_rng(seed)
    embeddings = []
    for number in range(num_subsets):
        rows = _subset(y, size, rng)
        generator = torch.Generator(device).manual_seed(seed + 1009 * number)
        embeddings.append(_embed(probe, images[rows].to(device), y[rows], passes, batch_size, c, seed, generator))
    return np.stack(embeddings)


def task2vec_distance(a: Matrix, b: Matrix, *, scaled: bool = True) -> float:
    r"""Cosine distance of two embeddings, scaled as the paper does or plain.

    .. math:: d_{sym}(a, b) = 1 - \cos\Big(\frac{F_a}{F_a + F_b}, \frac{F_b}{F_a + F_b}\Big)

    Args:
        a: ``(filters,)``, or ``(num_subsets, filters)``: the mean over all pairs of subsets is taken.
        b: likewise.
        scaled: the paper's normalisation; without it a few filters with large values decide (as in *Cats, not CAT
            scans*, which uses the plain cosine).

    Returns:
        In [0, 1], as no entry is negative; 0 for the same embedding.

    Raises:
        ValueError: embeddings of different probes, negative or all zero.
    """
    first, second = _embeddings(a), _embeddings(b)
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"the embeddings are of different probe networks: {first.shape[1]} and {second.shape[1]}")
    return float(np.mean([_cosine(u, v, scaled) for u in first for v in second]))


def task2vec_asymmetric(source: Matrix, target: Matrix, *, alpha: float = ALPHA) -> float:
    r"""Distance from a source to a target that rewards complex sources (equation 5 of the paper).

    .. math:: d_{asym}(s \to t) = d_{sym}(s, t) - \alpha\, d_{sym}(s, t_0)

    The trivial embedding :math:`t_0` is, in the paper, the prior of a variational fit; here, where no prior takes part,
    a task for which all filters matter alike, as much as the source's do on average.

    Args:
        source: see :func:`task2vec_distance`.
        target: likewise.
        alpha: weight of the source's distance from the trivial task.

    Returns:
        In [-alpha, 1].
    """
    embeddings = _embeddings(source)
    trivial = np.broadcast_to(embeddings.mean(axis=1, keepdims=True), embeddings.shape)
    complexity = np.mean([_cosine(u, v, True) for u, v in zip(embeddings, trivial, strict=True)])
    return task2vec_distance(source, target) - alpha * float(complexity)


def _subset(y: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Random rows with at least one of each class, which small subsets of rare classes would miss."""
    first = np.array([rng.choice(np.flatnonzero(y == k)) for k in range(y.max() + 1)])
    if len(first) > size:
        raise ValueError(f"a subset of {size} images cannot hold all {len(first)} classes; raise subset_size")
    rest = rng.choice(np.setdiff1d(np.arange(len(y)), first), size - len(first), replace=False)
    return np.sort(np.concatenate([first, rest]))


def _embed(
    probe: ImageEncoder,
    images: Tensor,
    y: np.ndarray,
    passes: int,
    batch_size: int,
    c: float | None,
    seed: int,
    generator: torch.Generator,
) -> np.ndarray:
    with torch.no_grad():
        features = torch.cat([probe(batch) for batch in images.split(batch_size)])
    head = linear_probe(features, y, c=c, seed=seed).as_linear_layer().to(images.device)
    weights = filter_weights(probe)
    fisher = [torch.zeros(len(weight), dtype=torch.float64, device=images.device) for weight in weights]
    for _ in range(passes):
        for batch in images.split(batch_size):
            logits = head(probe(batch)).float()
            drawn = torch.multinomial(logits.detach().softmax(1), 1, generator=generator).squeeze(1)
            gradients = torch.autograd.grad(F.cross_entropy(logits, drawn), weights)
            for total, gradient in zip(fisher, gradients, strict=True):
                # (filters, ...) -> (filters,); a batch of B counts B times in the mean, and B G^2 is its estimate
                total += len(batch) ** 2 * gradient.double().flatten(1).square().mean(1)
    return torch.cat(fisher).cpu().numpy() / (passes * len(images))


def filter_weights(encoder: ImageEncoder) -> list[Tensor]:
    """Return the weights of the convolutions and linear layers that make the pooled features, in order."""
    convolutions = (nn.modules.conv._ConvNd, nn.Linear)
    return [
        module.weight.requires_grad_(True)
        for name, module in encoder.net.named_modules()
        if isinstance(module, convolutions) and encoder.is_encoder_key(f"{name}.weight")
    ]


def _embeddings(values: Matrix) -> np.ndarray:
    e = np.atleast_2d(np.asarray(values, dtype=np.float64))
    if e.ndim != 2 or not e.size or not np.isfinite(e).all() or (e < 0).any() or not e.any(axis=1).all():
        raise ValueError("Task2Vec embeddings are finite numbers of at least 0, and not all 0")
    return e


def _cosine(u: np.ndarray, v: np.ndarray, scaled: bool) -> float:
    if scaled:
        total = u + v
        used = total > 0
        u, v = u[used] / total[used], v[used] / total[used]
    return max(0.0, 1 - float(u @ v / np.sqrt((u @ u) * (v @ v))))
