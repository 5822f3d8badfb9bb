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


def slow_image_text(images, texts, temperature, weight, study=None, text=None) -> float:
    """Pair by pair, direction by direction; targets are shared out among the pairs of equal texts."""
    count = len(images)
    total = 0.0
    for i in range(count):
        same = [j for j in range(count) if j == i or (text is not None and text[i] == text[j] and text[i] >= 0)]
        counted = [j for j in range(count) if j in same or study is None or study[i] != study[j] or study[i] < 0]
        for share, anchor, others in ((weight, images[i], texts), (1 - weight, texts[i], images)):
            terms = {j: np.exp(cosine(anchor, others[j]) / temperature) for j in counted}
            total -= share * sum(np.log(terms[j] / sum(terms.values())) for j in same) / len(same)
    return float(total / count)


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


def slow_distillation(student, codes, temperature) -> float:
    """Pair by pair, image by image: a code of each large crop against every crop but itself."""
    losses = []
    for a, b, image in np.ndindex(len(codes), len(student), student.shape[1]):
        if a != b:
            scores = np.exp(student[b, image] / temperature)
            losses.append(-np.sum(codes[a, image] * np.log(scores / scores.sum())))
    return float(np.mean(losses))


def slow_patch_distillation(student, codes, image, temperature) -> float:
    """Mean over the masked patches of each image, then over the images that have some."""
    losses: dict[int, list[float]] = {}
    for i, scores, code in zip(image, np.exp(student / temperature), codes, strict=True):
        losses.setdefault(i, []).append(-np.sum(code * np.log(scores / scores.sum())))
    return float(np.mean([np.mean(values) for values in losses.values()]))


def slow_koleo(features) -> float:
    units = [row / np.linalg.norm(row) for row in features]
    distances = [min(np.linalg.norm(a - b) for j, b in enumerate(units) if j != i) for i, a in enumerate(units)]
    return float(-np.mean(np.log(distances)))


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


def slow_redundancy_reduction(a, b, weight) -> float:
    """Dimension by dimension, sample by sample; no eps."""
    a, b = a - a.mean(0), b - b.mean(0)
    loss = 0.0
    for i in range(a.shape[1]):
        for j in range(a.shape[1]):
            correlation = sum(a[n, i] * b[n, j] for n in range(len(a)))
            correlation /= np.sqrt(sum(a[n, i] ** 2 for n in range(len(a))))
            correlation /= np.sqrt(sum(b[n, j] ** 2 for n in range(len(a))))
            loss += (1 - correlation) ** 2 if i == j else weight * correlation**2
    return float(loss)


def slow_vicreg_terms(a, b, target_std, eps) -> tuple[float, float, float]:
    size, dim = a.shape
    invariance = sum((a[n, i] - b[n, i]) ** 2 for n in range(size) for i in range(dim)) / (size * dim)
    variance = covariance = 0.0
    for z in (a, b):
        mean = [sum(z[n, i] for n in range(size)) / size for i in range(dim)]
        for i in range(dim):
            own = sum((z[n, i] - mean[i]) ** 2 for n in range(size)) / (size - 1)
            variance += max(0.0, target_std - np.sqrt(own + eps)) / dim
            for j in range(dim):
                if i != j:
                    products = [(z[n, i] - mean[i]) * (z[n, j] - mean[j]) for n in range(size)]
                    covariance += (sum(products) / (size - 1)) ** 2 / dim
    return float(invariance), float(variance), float(covariance)
