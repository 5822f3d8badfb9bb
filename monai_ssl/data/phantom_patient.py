# SPDX-License-Identifier: Apache-2.0
"""Made-up chest patients: anatomy, disease and lung texture, drawn from named random streams.

Lengths are centimetres at the detector. ``x`` grows to the right of the image (the patient's left), ``y`` grows
downwards, and the origin lies in the middle of the chest. Proportions follow textbook adult chests (cardiothoracic
ratio below one half, chest 25 to 30 cm wide). They are meant to look right and to vary; they describe no population.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
from scipy.ndimage import gaussian_filter

FINDINGS = ("nodule", "consolidation", "effusion", "cardiomegaly", "pneumothorax")
"""Findings a made-up patient can have, in the order of the label columns."""

URGENCY = ("pneumothorax", "consolidation", "effusion", "nodule", "cardiomegaly")
"""Which finding names an image that shows several: the one to act on first."""

CANVAS_PIXELS_PER_CM = 8.0
CANVAS_HALF_WIDTH_CM = 18.0
CANVAS_SIZE = int(2 * CANVAS_HALF_WIDTH_CM * CANVAS_PIXELS_PER_CM)


def random_stream(seed: int, name: str, *numbers: int) -> np.random.Generator:
    """Generator for one named purpose; it is the same whatever was drawn before, in whatever process or order."""
    return np.random.default_rng([seed, zlib.crc32(name.encode()), *numbers])


@dataclass(frozen=True)
class Lesion:
    """One site of disease; ``size`` is in cm unless noted, ``side`` is -1 (patient's right, image's left) or 1."""

    finding: str
    side: int = 1
    across: float = 0.0  # 0 at the mediastinum, 1 at the chest wall
    down: float = 0.0  # 0 at the apex of the lung, 1 at its base
    size: float = 1.0  # radius; height of an effusion; collapsed share of the lung's width for a pneumothorax
    aspect: float = 1.0
    strength: float = 1.0  # share of the air that is replaced; how much a heart is enlarged


@dataclass(frozen=True)
class Patient:
    """What stays the same from one image of a patient to the next."""

    female: bool
    age: int
    scale: float  # of the whole skeleton
    half_width: float  # of the chest cavity at its base
    depth: float  # of the cavity, front to back
    margin: float  # soft tissue outside the ribs
    apex: float
    base: float
    domes: tuple[float, float]  # height of the diaphragm above the base, right and left
    heart_ratio: float  # cardiothoracic ratio without disease, seen PA
    heart_height: float
    heart_tilt: float
    heart_shift: float
    mediastinum: float
    aortic_knob: float
    rib_pitch: float
    rib_drop: float
    rib_radius: float
    bone: float
    breast: tuple[float, float, float]  # thickness, half width, lower fold
    gastric_bubble: float
    vessel_gain: float
    curve: tuple[float, float]  # amplitude and phase of the spine's
    lesions: tuple[Lesion, ...]
    vessels: np.ndarray = field(repr=False)  # cm of blood on the canvas, (CANVAS_SIZE, CANVAS_SIZE)
    cloud: np.ndarray = field(repr=False)  # coarse noise of zero mean and unit variance on the same canvas
    grain: np.ndarray = field(repr=False)  # the same, finer


def draw_patient(seed: int, number: int) -> Patient:
    """Draw one patient.

    Args:
        seed: names the cohort.
        number: the patient's position in it; patients do not depend on one another.

    Returns:
        Anatomy, lesions and lung texture.
    """
    rng = random_stream(seed, "anatomy", number)
    texture = random_stream(seed, "texture", number)
    female = bool(rng.random() < 0.5)
    return Patient(
        female=female,
        age=int(rng.integers(19, 88)),
        scale=rng.normal(1.0, 0.05),
        half_width=rng.normal(12.8 if female else 13.8, 0.7),
        depth=rng.uniform(13.0, 17.0),
        margin=rng.gamma(3.0, 0.8) + 1.5,
        apex=rng.normal(-13.0, 0.7),
        base=rng.normal(12.0, 0.9),
        domes=(rng.uniform(2.8, 5.0), rng.uniform(2.0, 4.2)),
        heart_ratio=rng.uniform(0.38, 0.46),
        heart_height=rng.uniform(4.4, 5.4),
        heart_tilt=rng.uniform(0.35, 0.75),
        heart_shift=rng.normal(0, 0.4),
        mediastinum=rng.uniform(1.9, 2.8),
        aortic_knob=rng.uniform(0.3, 1.6),
        rib_pitch=rng.uniform(2.1, 2.5),
        rib_drop=rng.uniform(7.5, 10.5),
        rib_radius=rng.uniform(0.55, 0.75),
        bone=rng.uniform(0.75, 1.3),
        breast=(
            rng.uniform(1.0, 4.0) if female else rng.uniform(0.0, 0.8),
            rng.uniform(5.0, 6.5),
            rng.uniform(7.5, 12),
        ),
        gastric_bubble=rng.uniform(0.0, 2.6),
        vessel_gain=rng.uniform(1.2, 1.9),
        curve=(rng.normal(0, 0.5), rng.uniform(0, 6.3)),
        lesions=draw_lesions(random_stream(seed, "lesions", number)),
        vessels=_vessel_trees(texture),
        cloud=_smooth_noise(texture, 1.3),
        grain=_smooth_noise(texture, 0.3),
    )


def draw_lesions(rng: np.random.Generator) -> tuple[Lesion, ...]:
    """Three patients in ten are healthy; each finding is present in about three in ten, often beside others."""
    if rng.random() < 0.3:
        return ()
    present = np.zeros(len(FINDINGS), dtype=bool)
    while not present.any():
        present = rng.random(len(FINDINGS)) < 0.4
    makers = (_nodules, _consolidation, _effusions, _cardiomegaly, _pneumothorax)
    found = [lesion for maker, wanted in zip(makers, present, strict=True) if wanted for lesion in maker(rng)]
    return tuple(_moved_with_collapsed_lung(lesion, found[-1]) for lesion in found)


def dominant_finding(lesions: tuple[Lesion, ...]) -> str:
    """``normal``, or the most urgent of the findings present."""
    present = {lesion.finding for lesion in lesions}
    return next((finding for finding in URGENCY if finding in present), "normal")


def _moved_with_collapsed_lung(lesion: Lesion, last: Lesion) -> Lesion:
    """A lung that leaves the chest wall takes what is in it along; ``last`` may be its pneumothorax."""
    inside_lung = lesion.finding in ("nodule", "consolidation")
    if last.finding != "pneumothorax" or lesion.side != last.side or not inside_lung:
        return lesion
    return replace(lesion, across=lesion.across * (1 - last.size), down=0.3 + 0.7 * lesion.down)


def _side(rng: np.random.Generator) -> int:
    return 1 if rng.random() < 0.5 else -1


def _nodules(rng: np.random.Generator) -> list[Lesion]:
    return [
        Lesion(
            "nodule",
            _side(rng),
            rng.uniform(0.25, 0.85),
            rng.uniform(0.15, 0.8),
            rng.uniform(1.3, 2.4),
            rng.uniform(0.85, 1.2),
        )
        for _ in range(rng.integers(3, 9))
    ]


def _consolidation(rng: np.random.Generator) -> list[Lesion]:
    place = rng.uniform(0.3, 0.6), rng.uniform(0.25, 0.8)
    return [
        Lesion(
            "consolidation", _side(rng), *place, rng.uniform(3.8, 6.0), rng.uniform(0.8, 1.4), rng.uniform(0.6, 0.95)
        )
    ]


def _effusions(rng: np.random.Generator) -> list[Lesion]:
    first = _side(rng)
    sides = (first, -first) if rng.random() < 0.3 else (first,)
    return [Lesion("effusion", side, 0.9, 0.9, rng.uniform(4.0, 9.0), rng.uniform(0.4, 1.0)) for side in sides]


def _cardiomegaly(rng: np.random.Generator) -> list[Lesion]:
    return [Lesion("cardiomegaly", strength=rng.uniform(0.7, 1.3))]


def _pneumothorax(rng: np.random.Generator) -> list[Lesion]:
    return [Lesion("pneumothorax", _side(rng), 1.0, 0.2, rng.uniform(0.28, 0.6), rng.uniform(0.2, 0.9))]


def _smooth_noise(rng: np.random.Generator, width_cm: float) -> np.ndarray:
    """Noise on the canvas with zero mean, unit variance and features about ``width_cm`` wide."""
    knots = int(min(CANVAS_SIZE, 4 * CANVAS_HALF_WIDTH_CM / width_cm))  # two for each width
    matrix = _interpolation(knots, width_cm)
    noise = matrix @ rng.standard_normal((knots, knots), dtype=np.float32) @ matrix.T
    return (noise - noise.mean()) / noise.std()


@lru_cache(maxsize=4)
def _interpolation(knots: int, width_cm: float) -> np.ndarray:
    """Gaussian weights that spread values at ``knots`` evenly spaced places over the canvas: (CANVAS_SIZE, knots)."""
    fine = (np.arange(CANVAS_SIZE) + 0.5) / CANVAS_SIZE
    coarse = (np.arange(knots) + 0.5) / knots
    distance = (fine[:, None] - coarse[None, :]) * 2 * CANVAS_HALF_WIDTH_CM / width_cm
    return np.exp(-0.5 * distance**2).astype(np.float32)


def _vessel_trees(rng: np.random.Generator, levels: int = 6) -> np.ndarray:
    """Vessels branching from both hila: cm of blood on the canvas.

    Each branch splits in two that are shorter and thinner (near Murray's law, radius x 2^(-1/3)). A generation is drawn
    as points along its branches and then blurred to its radius.
    """
    canvas = np.zeros((CANVAS_SIZE, CANVAS_SIZE), dtype=np.float32)
    steps = np.linspace(0, 1, 28)
    side = np.repeat([-1.0, 1.0], 8)
    angle = np.tile(np.linspace(-1.5, 1.6, 8), 2) + rng.normal(0, 0.12, 16)  # 0 is outwards, positive is down
    start = np.stack([side * 3.2, np.where(side < 0, -1.5, -2.5)], axis=1) + rng.normal(0, 0.4, (16, 2))
    length = rng.uniform(2.6, 4.2, 16)
    radius = 0.42
    for _ in range(levels):
        heading = angle[:, None] + rng.normal(0, 0.35, (angle.size, 1)) * steps  # (branches, steps)
        reach = length[:, None] * steps
        x = start[:, :1] + side[:, None] * reach * np.cos(heading)
        y = start[:, 1:] + reach * np.sin(heading)
        columns = ((x + CANVAS_HALF_WIDTH_CM) * CANVAS_PIXELS_PER_CM).astype(int)
        rows = ((y + CANVAS_HALF_WIDTH_CM) * CANVAS_PIXELS_PER_CM).astype(int)
        inside = (columns >= 0) & (columns < CANVAS_SIZE) & (rows >= 0) & (rows < CANVAS_SIZE)
        # A line of one unit per pixel, blurred by sigma, is 1 / (sigma sqrt(2 pi)) high; it shall be 2 radii high.
        sigma = 0.6 * radius * CANVAS_PIXELS_PER_CM
        weight = 2 * radius * sigma * np.sqrt(2 * np.pi) * length * CANVAS_PIXELS_PER_CM / steps.size
        weights = np.broadcast_to(weight[:, None], x.shape)[inside]
        drawn = np.bincount(rows[inside] * CANVAS_SIZE + columns[inside], weights, minlength=canvas.size)
        canvas += gaussian_filter(drawn.reshape(canvas.shape).astype(np.float32), sigma, truncate=2.5)
        start = np.repeat(np.stack([x[:, -1], y[:, -1]], axis=1), 2, axis=0)
        fork = np.tile([-1.0, 1.0], angle.size) * rng.uniform(0.15, 0.55, 2 * angle.size)
        angle, side = np.repeat(heading[:, -1], 2) + fork, np.repeat(side, 2)
        length = np.repeat(length, 2) * rng.uniform(0.6, 0.9, side.size)
        radius *= 0.74
    return canvas
