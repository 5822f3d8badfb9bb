# SPDX-License-Identifier: Apache-2.0
"""Task2Vec: the Fisher information against one backward pass an image and class, and its distances."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_ssl.evaluation import linear_probe
from monai_ssl.networks import build_encoder
from monai_ssl.transferability import task2vec, task2vec_asymmetric, task2vec_distance

TINY = {"init_features": 8, "growth_rate": 4, "block_config": [1, 1, 1, 1]}


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    made = build_encoder("densenet121", **TINY)
    with torch.no_grad():
        for _ in range(20):
            made(torch.randn(8, 1, 32, 32))
    return made.eval()


@pytest.fixture(scope="module")
def images() -> tuple[torch.Tensor, np.ndarray]:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(24, 1, 32, 32, generator=generator), np.arange(24) % 3
    x[:, 0, :, 8:24] += 1.5 * torch.from_numpy(y - 1.0).float()[:, None, None]
    return x, y


def exact_fisher(encoder, images: torch.Tensor, y: np.ndarray, c: float) -> np.ndarray:
    """The expectation over all labels, image by image, with the classifier on the same features."""
    with torch.no_grad():
        head = linear_probe(encoder(images), y, c=c).as_linear_layer()
    weights = [p for name, p in encoder.net.named_parameters() if p.ndim > 1 and "class_layers.out" not in name]
    total = [0.0] * len(weights)
    for image in images:
        logp = head(encoder(image[None])).log_softmax(1)[0]
        for k in range(len(logp)):
            gradients = torch.autograd.grad(logp[k], weights, retain_graph=True)
            for n, gradient in enumerate(gradients):
                total[n] = total[n] + logp[k].exp().item() * gradient.double().square().flatten(1).mean(1)
    return torch.cat(total).numpy() / len(images)


@pytest.mark.parametrize("batch_size", [1, 8])
def test_monte_carlo_finds_the_fisher_information(encoder, images, batch_size):
    x, y = images
    passes = 10 if batch_size == 1 else 60
    found = task2vec(encoder, x, y, num_subsets=1, passes=passes, batch_size=batch_size, c=0.01)[0]
    expected = exact_fisher(encoder, x, y, 0.01)
    filters = sum(p.shape[0] for p in encoder.net.parameters() if p.ndim > 1)
    assert found.shape == expected.shape == (filters,) and found.min() >= 0
    assert found.sum() == pytest.approx(expected.sum(), rel=0.25)
    assert np.corrcoef(found, expected)[0, 1] > 0.98


def test_the_encoder_stays_as_it_was_and_a_seed_gives_one_embedding(encoder, images):
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    first, again, other = (task2vec(encoder, *images, num_subsets=1, c=0.01, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())


def test_subsets_differ_and_hold_every_class(encoder, images):
    x, y = images
    rare = np.where(np.arange(24) == 5, 2, np.arange(24) % 2)  # one image of class 2
    embeddings = task2vec(encoder, x, rare, num_subsets=3, subset_size=8, c=0.01)
    assert len(np.unique(embeddings[:, 0])) == 3
    with pytest.raises(ValueError, match="cannot hold all 3 classes"):
        task2vec(encoder, x, y, subset_size=2)
    with pytest.raises(ValueError, match=r"subset_size must lie in 2 \.\. 24"):
        task2vec(encoder, x, y, subset_size=25)
    with pytest.raises(ValueError, match="24 images and 3 labels"):
        task2vec(encoder, x, y[:3])
    with pytest.raises(ValueError, match="NaN"):
        task2vec(encoder, x * torch.nan, y)


def test_distances_of_known_embeddings():
    a, b = np.array([1.0, 0.0, 3.0, 1.0]), np.array([0.0, 1.0, 3.0, 1.0])
    assert task2vec_distance(a, a) == task2vec_distance(a, a, scaled=False) == 0
    assert task2vec_distance(a, b, scaled=False) == pytest.approx(1 - 10 / 11)
    assert task2vec_distance(a, b) == task2vec_distance(b, a) == pytest.approx(1 - 0.5 / 1.5)
    assert task2vec_distance(a, 7 * a) == pytest.approx(0)  # scaling a task as a whole changes no direction
    assert task2vec_distance(a * 1e-9, b * 1e-9) == pytest.approx(task2vec_distance(a, b))
    several = np.stack([a, b])
    assert task2vec_distance(several, a) == pytest.approx(task2vec_distance(a, b) / 2)
    even = np.ones(4)
    assert task2vec_asymmetric(even, b) == pytest.approx(task2vec_distance(even, b))  # a trivial source
    assert task2vec_asymmetric(a, b) < task2vec_distance(a, b)
    with pytest.raises(ValueError, match="different probe networks"):
        task2vec_distance(a, b[:3])
    with pytest.raises(ValueError, match="not all 0"):
        task2vec_distance(a, np.zeros(4))
