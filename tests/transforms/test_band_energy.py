# SPDX-License-Identifier: Apache-2.0
"""Band energies: a slow reference, exact identity, energies by the squared gain, and what each band holds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import monai_ssl.transforms as T
from monai_ssl.transforms import RandBatchTransform, RandBatchTransformd, RandomBandEnergy

SHAPES = [(4, 1, 40, 33), (3, 2, 9, 20, 17)]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def images(shape):
    return torch.rand(shape, generator=seeded(5))


def halve(line: np.ndarray) -> np.ndarray:
    """Every second value of a line smoothed by (1, 3, 3, 1) / 8, by loops."""
    n = len(line)
    at = [line[min(max(i, 0), n - 1 if n % 2 == 0 else n)] if i < n else line[n - 1] for i in range(n + 1)]
    half = (n + 1) // 2
    value = lambda i: at[min(max(i, 0), 2 * half - 1)]  # noqa: E731
    return np.array(
        [(value(2 * i - 1) + 3 * value(2 * i) + 3 * value(2 * i + 1) + value(2 * i + 2)) / 8 for i in range(half)]
    )


def double(line: np.ndarray, n: int) -> np.ndarray:
    """Linear interpolation at the pixels that ``halve`` averaged, by NumPy."""
    return np.interp((np.arange(n) - 0.5) / 2, np.arange(len(line)), line)


def reference_bands(image: np.ndarray, bands: int) -> list[np.ndarray]:
    """Bands of (*spatial) at full size, the rest about its mean last, and that mean."""
    levels = [image]
    for _ in range(bands - 1):
        level = levels[-1]
        for axis, side in enumerate(level.shape):
            if side > 1:
                level = np.apply_along_axis(halve, axis, level)
        levels.append(level)

    def enlarge(level, k):
        for finer in reversed(levels[:k]):
            for axis, side in enumerate(finer.shape):
                if side > 1:
                    level = np.apply_along_axis(double, axis, level, side)
        return level

    parts = [enlarge(levels[k], k) - enlarge(levels[k + 1], k + 1) for k in range(bands - 1)]
    mean = levels[-1].mean()
    return [*parts, enlarge(levels[-1] - mean, bands - 1), np.full_like(image, mean)]


@pytest.mark.parametrize("shape", [(2, 1, 13, 10), (2, 1, 5, 8, 7), (1, 1, 1, 12, 9)])
@pytest.mark.parametrize("bands", [2, 4])
def test_it_is_the_gains_times_the_bands(shape, bands):
    x = images(shape).double()
    transform = RandomBandEnergy(bands, (0.5, 2.0), prob=1)
    params = transform.draw(shape, seeded(1))
    got = transform.apply(x, params)
    for i in range(len(x)):
        *parts, mean = reference_bands(x[i, 0].numpy(), bands)
        np.testing.assert_allclose(sum(parts) + mean, x[i, 0], atol=1e-12)
        gains = params["gain"][i].double().numpy()
        np.testing.assert_allclose(
            got[i, 0], sum(g * part for g, part in zip(gains, parts, strict=True)) + mean, atol=1e-6
        )


@pytest.mark.parametrize("shape", [*SHAPES, (2, 1, 1, 7, 300), (1, 1, 2, 3)])
def test_gain_one_is_the_image_itself(shape):
    x = images(shape) * 3 - 1
    for transform in (RandomBandEnergy(gain=(1, 1), prob=1), RandomBandEnergy(prob=0)):
        assert torch.equal(transform(x, seeded()), x)
    ones = {"gain": torch.ones(shape[0], 5)}
    module = __import__("monai_ssl.transforms.band_energy", fromlist=["_scale_bands"])
    assert torch.equal(module._scale_bands(x, ones["gain"]), x)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_bands_energy_grows_with_the_squared_gain(shape):
    """Gains of 0 but for one band leave that band alone (and the mean)."""
    x, transform = images(shape), RandomBandEnergy(bands=4)
    axes = tuple(range(1, len(shape)))
    coarse = transform.apply(x, {"gain": torch.zeros(shape[0], 4)})
    for band in range(4):
        energies = []
        for gain in (1.0, 1.5, 0.6):
            gains = torch.zeros(shape[0], 4)
            gains[:, band] = gain
            energies.append((transform.apply(x, {"gain": gains}) - coarse).square().sum(axes))
        assert (energies[0] > 1e-4).all()
        torch.testing.assert_close(energies[1], 1.5**2 * energies[0], rtol=1e-4, atol=0)
        torch.testing.assert_close(energies[2], 0.6**2 * energies[0], rtol=1e-4, atol=0)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_each_band_is_twice_as_coarse_as_the_one_before(spatial_dims):
    """A wave of 5 * 2**k pixels answers to the gain of band k more than to any other."""
    side, transform = 64, RandomBandEnergy(bands=4)
    at = torch.arange(side) + 0.5
    for k in range(3):
        wave = (2 * math.pi * at / (5 * 2**k)).sin().expand(1, 1, *[side] * spatial_dims)
        answer = []
        for band in range(4):
            gains = torch.ones(1, 4)
            gains[:, band] = 2.0
            answer.append(float((transform.apply(wave, {"gain": gains}) - wave).std() / wave.std()))
        assert int(np.argmax(answer)) == k and answer[k] > 0.4, answer


def test_the_mean_and_flat_images_stay():
    flat = torch.full((6, 1, 30, 22), 0.3)
    torch.testing.assert_close(RandomBandEnergy(prob=1)(flat, seeded()), flat)
    x = images((6, 1, 64, 64))
    changed = RandomBandEnergy(prob=1)(x, seeded())
    torch.testing.assert_close(changed.mean((2, 3)), x.mean((2, 3)), atol=0.01, rtol=0)
    assert (changed - x).abs().amax((1, 2, 3)).min() > 0.02


def test_gains_are_log_uniform():
    gain = RandomBandEnergy(5, (0.5, 3.0), prob=0.7).draw((4000, 1, 8, 8), seeded())["gain"]
    assert gain.shape == (4000, 5)
    changed = (gain != 1).all(1)
    assert changed.float().mean() == pytest.approx(0.7, abs=0.03) and (gain[~changed] == 1).all()
    logs = gain[changed].log()
    assert logs.min() >= math.log(0.5) - 1e-6 and logs.max() <= math.log(3) + 1e-6
    assert logs.mean(0).tolist() == pytest.approx([(math.log(0.5) + math.log(3)) / 2] * 5, abs=0.04)
    assert logs.std(0).tolist() == pytest.approx([math.log(6) / 12**0.5] * 5, rel=0.05)
    assert torch.corrcoef(logs.T).fill_diagonal_(0).abs().max() < 0.08, "each band by itself"


def test_array_and_dictionary_faces():
    image = images((1, 1, 24, 20))[0]
    face = RandBatchTransform(RandomBandEnergy(prob=1))
    face.set_random_state(3)
    first = face(image)
    assert first.shape == image.shape and not torch.equal(first, image) and torch.equal(face(image, False), first)
    pair = RandBatchTransformd(["image", "label"], RandomBandEnergy(prob=1), mode=["bilinear", "nearest"])
    pair.set_random_state(3)
    label = (image > 0.5).to(torch.uint8)
    out = pair({"image": image, "label": label})
    torch.testing.assert_close(out["image"], first)
    assert torch.equal(out["label"], label)


@pytest.mark.parametrize(
    "make", [lambda **o: T.radiograph_views(16, **o), lambda **o: T.volume_views(16, "CT", 2, **o)]
)
def test_policies_have_it_when_asked(make):
    def steps(views):
        return [type(step).__name__ for step in views.chains[0].transforms]

    assert "RandomBandEnergy" not in steps(make())
    names = steps(make(band_energy_prob=0.4))
    assert names.index("RandomBandEnergy") == 1
    assert make(band_energy_prob=0.4).chains[0].transforms[1].prob == 0.4
