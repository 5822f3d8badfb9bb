# SPDX-License-Identifier: Apache-2.0
"""Radiographs of made-up chests: beam, scatter, detector noise, logarithm and a vendor's processing.

The beam is weakened by ``exp(-attenuation)``; scatter (the blurred beam) and quantum noise are added, and the
detector's logarithm turns the signal into something to look at, bone bright. Edge enhancement, tone curve, window and
collimation then differ from image to image, as they do between rooms and vendors.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.ndimage import gaussian_filter

from monai_ssl.data.phantom_chest import Box, draw_pose, project
from monai_ssl.data.phantom_patient import Patient, random_stream

POOL = 8
"""Scatter and edge enhancement work on an image this much smaller; sizes are multiples of it."""


@dataclass(frozen=True)
class Exposure:
    """Beam, detector and display processing of one image."""

    scatter: float  # against the primary beam
    photons: float  # that reach a pixel behind nothing
    heel: tuple[float, float]  # log change of the beam from the middle to an edge, down and across
    blur: float  # pixels of a 256-pixel image
    sharpen: float
    gamma: float
    black: float  # percentile of the body that is shown black
    white: float  # percentile that is shown white
    grey: tuple[float, float]  # part of the display range that is used
    shutter: tuple[float, float, float, float]  # covered at top, bottom, left and right, fractions
    shutter_grey: float


@dataclass(frozen=True)
class PhantomRadiograph:
    """``pixels`` (rows, cols) float32 in [0, 1], bone bright; ``boxes`` as from ``project``."""

    pixels: np.ndarray
    view: str
    pixel_spacing_mm: float
    boxes: tuple[tuple[str, Box], ...]


def draw_exposure(rng: np.random.Generator, view: str) -> Exposure:
    """Every image has its own tube, tone curve and window; mobile units (AP) scatter more."""
    covered = rng.uniform(0.0, 0.07, 4) * (rng.random(4) < 0.7) * (rng.random() < 0.25)
    black = rng.uniform(0.0, 0.2)
    return Exposure(
        scatter=rng.uniform(0.3, 0.9) + (0.3 if view == "AP" else 0.0),
        photons=float(np.exp(rng.uniform(np.log(1e4), np.log(8e4)))),
        heel=(rng.normal(0, 0.15), rng.normal(0, 0.15)),
        blur=rng.uniform(0.0, 0.6),
        sharpen=rng.uniform(0.0, 0.8),
        gamma=float(np.exp(rng.normal(0, 0.25))),
        black=rng.uniform(0.0, 4.0),
        white=rng.uniform(95.0, 100.0),
        grey=(black, black + rng.uniform(0.45, 1.0) * (1 - black)),
        shutter=tuple(float(part) for part in covered),
        shutter_grey=0.0 if rng.random() < 0.8 else 1.0,
    )


def render_radiograph(
    patient: Patient, seed: int, number: int, image: int, size: int = 256, lesions: bool = True
) -> PhantomRadiograph:
    """Take one image of a patient.

    Args:
        patient: from ``draw_patient(seed, number)``.
        seed: names the cohort.
        number: the patient's position in it.
        image: which of the patient's images; pose, exposure and noise follow from it.
        size: rows and columns, a multiple of 8.
        lesions: False shows the same chest in good health.

    Returns:
        The radiograph and the places of the visible lesions.
    """
    pose = draw_pose(random_stream(seed, "pose", number, image))
    exposure = draw_exposure(random_stream(seed, "exposure", number, image), pose.view)
    attenuation, boxes = project(patient, pose, size, lesions)
    pixels = expose(attenuation, exposure, random_stream(seed, "noise", number, image))
    return PhantomRadiograph(pixels, pose.view, 10 * pose.field_cm / size, tuple(boxes))


def expose(attenuation: np.ndarray, exposure: Exposure, rng: np.random.Generator) -> np.ndarray:
    """Turn line integrals (size, size) into the processed image in [0, 1], float32."""
    size = attenuation.shape[0]
    ramp = np.linspace(-1, 1, size, dtype=np.float32)
    beam = np.exp(exposure.heel[0] * ramp[:, None] - attenuation + exposure.heel[1] * ramp[None, :])
    # Air around the body would flood it with scatter; the grid and the shutters hold most of that back.
    signal = beam + exposure.scatter * _blurred(np.minimum(beam, 0.3), 0.11)
    if exposure.blur > 0.3:
        signal = gaussian_filter(signal, exposure.blur * size / 256, truncate=3)
    noise = rng.standard_normal(signal.shape, dtype=np.float32)
    signal = np.maximum(signal + np.sqrt(signal / exposure.photons) * noise, 1e-4)
    shown = -np.log(signal)
    if exposure.sharpen:
        shown += exposure.sharpen * (shown - _blurred(shown, 0.03))
    body = shown[::4, ::4][attenuation[::4, ::4] > 0.7]
    low, high = (float(value) for value in np.percentile(body, (exposure.black, exposure.white)))
    pixels = np.clip((shown - low) / (high - low), 0, 1) ** np.float32(exposure.gamma)
    first, last = exposure.grey
    pixels = first + (last - first) * pixels
    top, bottom, left, right = (int(part * size) for part in exposure.shutter)
    pixels[:top] = pixels[size - bottom :] = exposure.shutter_grey
    pixels[:, :left] = pixels[:, size - right :] = exposure.shutter_grey
    return pixels


def _blurred(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of width ``sigma`` x size: pooled, then blurred and enlarged by one matrix on each side."""
    size = image.shape[0]
    small = image.reshape(size // POOL, POOL, size // POOL, POOL).mean(axis=(1, 3))
    matrix = _blur_matrix(size, sigma)
    return matrix @ small @ matrix.T


@lru_cache(maxsize=8)
def _blur_matrix(size: int, sigma: float) -> np.ndarray:
    fine = (np.arange(size) + 0.5) / size
    coarse = (np.arange(size // POOL) + 0.5) * POOL / size
    weights = np.exp(-0.5 * ((fine[:, None] - coarse[None, :]) / sigma) ** 2)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
