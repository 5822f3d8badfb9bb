# SPDX-License-Identifier: Apache-2.0
"""Slow, literal NumPy versions of the losses: one loop per formula symbol, float64, no tricks."""

from __future__ import annotations

import numpy as np


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b))


def slow_info_nce(query, key, negatives, temperature, mask=None) -> float:
    losses = []
    for i in range(len(query)):
        positive = np.exp(cosine(query[i], key[i]) / temperature)
        denominator = positive
        for j in range(len(negatives)):
            if mask is None or not mask[i, j]:
                denominator += np.exp(cosine(query[i], negatives[j]) / temperature)
        losses.append(-np.log(positive / denominator))
    return float(np.mean(losses))


def slow_z(query, key, negatives, num_data, temperature, mask=None) -> float:
    values = []
    for i in range(len(query)):
        values.append(np.exp(cosine(query[i], key[i]) / temperature))
        for j in range(len(negatives)):
            if mask is None or not mask[i, j]:
                values.append(np.exp(cosine(query[i], negatives[j]) / temperature))
    return float(np.mean(values) * num_data)


def slow_nce(query, key, negatives, z, num_data, temperature, mask=None) -> float:
    losses = []
    for i in range(len(query)):
        used = [j for j in range(len(negatives)) if mask is None or not mask[i, j]]
        noise = len(used) / num_data  # K * Pn
        p = np.exp(cosine(query[i], key[i]) / temperature) / z
        loss = -np.log(p / (p + noise))
        for j in used:
            p = np.exp(cosine(query[i], negatives[j]) / temperature) / z
            loss -= np.log(noise / (p + noise))
        losses.append(loss)
    return float(np.mean(losses))


def slow_nt_xent(view_a, view_b, temperature) -> float:
    views = np.concatenate([view_a, view_b])
    count = len(view_a)
    losses = []
    for i in range(2 * count):
        positive = np.exp(cosine(views[i], views[(i + count) % (2 * count)]) / temperature)
        denominator = sum(np.exp(cosine(views[i], views[j]) / temperature) for j in range(2 * count) if j != i)
        losses.append(-np.log(positive / denominator))
    return float(np.mean(losses))


def slow_masked_reconstruction(prediction, target, counted, power, patch_size=None) -> float:
    """Voxel by voxel; ``counted`` is (B, 1, *spatial)."""
    target = target.astype(np.float64).copy()
    if patch_size is not None:
        normalized = np.empty_like(target)
        for index in np.ndindex(counted.shape[:1] + counted.shape[2:]):
            patch = tuple(slice(i // p * p, i // p * p + p) for i, p in zip(index[1:], patch_size, strict=True))
            values = target[(index[0], slice(None), *patch)]
            at = (index[0], slice(None), *index[1:])
            normalized[at] = (target[at] - values.mean()) / np.sqrt(values.var() + 1e-6)
        target = normalized
    errors = [abs(prediction[i] - target[i]) ** power for i in np.ndindex(target.shape) if counted[(i[0], 0, *i[2:])]]
    return float(np.mean(errors)) if errors else 0.0


def slow_overlap_prediction(similarity, overlap, formula) -> float:
    """Image by image, crop by crop, base crop by base crop."""
    images = []
    for i in range(len(similarity)):
        near = far = weights = zeros = 0.0
        for r, j in np.ndindex(similarity.shape[1:]):
            value, share = similarity[i, r, j], overlap[i, r, j]
            if formula == "paper":
                near -= np.log(max(1 - abs(share - value), 1e-6))
                weights += 1
                continue
            value = max(value, 0.0)
            near -= share * np.log(max(1 - abs(share - value), 1e-6))
            weights += share
            if share == 0:
                far += value**2
                zeros += 1
        images.append(near / weights + far / max(zeros, 1))
    return float(np.mean(images))


def slow_base_orthogonality(base, formula) -> float:
    values = []
    for image in base:
        for i in range(len(image)):
            for j in range(i + 1, len(image)):
                value = cosine(image[i], image[j])
                values.append(abs(value) if formula == "paper" else max(value, 0.0) ** 2)
    return float(np.mean(values))


def slow_point_contrast(query, key, positive, temperature) -> float:
    """Image by image, point by point; what has no positive does not count."""
    images = []
    for i in range(len(query)):
        points = []
        for p in range(query.shape[1]):
            if not positive[i, p].any():
                continue
            terms = [np.exp(cosine(query[i, p], key[i, q]) / temperature) for q in range(key.shape[1])]
            near = sum(term for term, same in zip(terms, positive[i, p], strict=True) if same)
            points.append(-np.log(near / sum(terms)))
        if points:
            images.append(np.mean(points))
    return float(np.mean(images)) if images else 0.0
