# SPDX-License-Identifier: Apache-2.0
"""Made-up bodies from the lower chest to the hips: the canvas, the wall of the trunk, lungs and skeleton.

A body is a map of tissues on a fine grid; what a scanner makes of it is in ``phantom_scan``, the organs inside are in
``phantom_organs``. Lengths are millimetres on DICOM's patient axes: ``x`` grows to the left, ``y`` to the back and
``z`` to the head; the origin lies in the middle of the cavity of the belly. Proportions follow textbook adults. Bodies
are meant to look right and to vary; they describe no population.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from monai_ssl.data.phantom_patient import random_stream

CANVAS_MM = 4.0
"""Side of a voxel of the fine grid."""
CANVAS_ENDS = ((-164.0, 164.0), (-164.0, 168.0), (-216.0, 216.0))
"""First and last place along z, y and x."""


class Tissue(IntEnum):
    """What a voxel of the canvas holds."""

    AIR = 0
    FAT = 1
    MUSCLE = 2
    LUNG = 3
    HEART = 4
    ARTERY = 5
    VEIN = 6
    SPONGY_BONE = 7
    HARD_BONE = 8
    CARTILAGE = 9
    CORD = 10
    LIVER = 11
    LIVER_VESSEL = 12
    SPLEEN = 13
    KIDNEY_CORTEX = 14
    KIDNEY_MEDULLA = 15
    LESION = 16
    GUT_WALL = 17
    MEAL = 18
    STOOL = 19
    BOWEL = 20
    BILE = 21
    PANCREAS = 22
    GAS = 23
    FLUID = 24


@dataclass(frozen=True, eq=False)
class Frame:
    """Size and shape of one trunk, the same for all its tissues.

    Args:
        scale: of the whole body.
        half_width, front, back: of the cavity of the belly, from the origin.
        outside: (z, y, x) mm from the cavity's outline along the line from the body's axis; negative inside.
        angle: 0 at the spine, pi at the navel.
        below_diaphragm: (z, y, x) mm below the dome of the diaphragm; negative in the chest.
        skin: (z, y, x) value of ``outside`` at the skin.
    """

    scale: float
    half_width: float
    front: float
    back: float
    outside: np.ndarray
    angle: np.ndarray
    below_diaphragm: np.ndarray
    skin: np.ndarray


class Canvas:
    """The fine grid of one patient, its tissues, and coordinates that are bent by a smooth warp of the patient's own.

    Args:
        seed: names the cohort.
        number: the patient's position in it.
    """

    def __init__(self, seed: int, number: int):
        self.seed, self.number = seed, number
        lines = [np.arange(first, last, CANVAS_MM, dtype=np.float32) for first, last in CANVAS_ENDS]
        self.shape = tuple(line.size for line in lines)
        self.tissue = np.zeros(self.shape, dtype=np.uint8)
        rng = self.stream("warp")
        bent = [
            line + 6 * self.noise(rng, 130.0) for line in np.meshgrid(*lines, indexing="ij", sparse=True, copy=False)
        ]
        self.z, self.y, self.x = bent

    def stream(self, name: str) -> np.random.Generator:
        """Generator of one purpose for this patient."""
        return random_stream(self.seed, f"body {name}", self.number)

    def noise(self, rng: np.random.Generator, width_mm: float) -> np.ndarray:
        """Smooth noise (z, y, x) float32 of zero mean and unit variance with features about ``width_mm`` wide."""
        return smooth_noise(rng, self.shape, (CANVAS_MM,) * 3, width_mm)

    def ball(
        self,
        centre: tuple[float, float, float],
        radii: tuple[float, float, float],
        tilt: float = 0.0,
        yaw: float = 0.0,
    ) -> np.ndarray:
        """Distance in mm (roughly) outside an ellipsoid, negative inside, and 1e3 far away from it.

        Args:
            centre: (x, y, z).
            radii: along its own axes.
            tilt: radians that its z axis leans towards x.
            yaw: radians that its x axis is turned towards y.
        """
        result = np.full(self.shape, 1e3, dtype=np.float32)
        reach = max(radii) + 25.0
        box = []
        for place, (first, last) in zip(centre[::-1], CANVAS_ENDS, strict=True):
            ends = (np.clip((place - reach, place + reach), first, last) - first) / CANVAS_MM
            box.append(slice(int(ends[0]), int(ends[1]) + 2))
        part = tuple(box)
        x, y, z = (axis[part] - np.float32(at) for axis, at in zip((self.x, self.y, self.z), centre, strict=True))
        if tilt:
            x, z = np.cos(tilt) * x - np.sin(tilt) * z, np.sin(tilt) * x + np.cos(tilt) * z
        if yaw:
            x, y = np.cos(yaw) * x + np.sin(yaw) * y, np.cos(yaw) * y - np.sin(yaw) * x
        scaled = [axis / np.float32(radius) for axis, radius in zip((x, y, z), radii, strict=True)]
        length = np.sqrt(sum(axis**2 for axis in scaled))
        slope = np.sqrt(sum((axis / np.float32(radius)) ** 2 for axis, radius in zip(scaled, radii, strict=True)))
        result[part] = length * (length - 1) / np.maximum(slope, 1e-6)
        return result

    def tubes(self, rng: np.random.Generator, width_mm: float) -> np.ndarray:
        """Distance in mm (roughly) from winding lines that are about 1.5 ``width_mm`` apart.

        They are the lines where two smooth noises are zero at once; such a noise rises by about 1 / ``width_mm``.
        """
        return width_mm * np.hypot(self.noise(rng, width_mm), self.noise(rng, width_mm))

    def paint(self, where: np.ndarray, tissue: Tissue) -> None:
        """Put a tissue where the mask says."""
        self.tissue[where] = tissue


def smooth_noise(
    rng: np.random.Generator, shape: tuple[int, ...], spacing_mm: tuple[float, ...], width_mm: float
) -> np.ndarray:
    """Noise on a grid, float32, of zero mean and unit variance with features about ``width_mm`` wide."""
    matrices = [_spread(size, width_mm / spacing) for size, spacing in zip(shape, spacing_mm, strict=True)]
    field = rng.standard_normal([matrix.shape[1] for matrix in matrices], dtype=np.float32)
    for matrix in matrices:  # the first axis is spread and goes to the end, so that all are in order again
        field = np.tensordot(field, matrix, axes=(0, 1))
    field -= field.mean()
    return field / np.sqrt(np.vdot(field, field) / field.size)


def _spread(size: int, width: float) -> np.ndarray:
    """Gaussian weights that spread values at evenly spaced knots over an axis: (size, knots); width in voxels."""
    inner = max(round(2 * size / width), 2)  # two for each width, and two more outside
    knots = (np.arange(-1, inner + 1) + 0.5) * size / inner
    return np.exp(-0.5 * ((np.arange(size)[:, None] + 0.5 - knots) / (0.6 * width)) ** 2).astype(np.float32)


def blend(first: np.ndarray, second: np.ndarray, width_mm: float) -> np.ndarray:
    """Distance outside the union of two bodies, with the crease between them filled over ``width_mm``."""
    share = np.clip(0.5 + 0.5 * (second - first) / np.float32(width_mm), 0, 1)
    return second + (first - second) * share - np.float32(width_mm) * share * (1 - share)


def build_trunk(canvas: Canvas) -> Frame:
    """Paint fat, muscles, lungs, heart and skeleton; gives the frame for the organs."""
    frame = _draw_frame(canvas)
    canvas.paint(frame.outside < frame.skin, Tissue.FAT)
    rng = canvas.stream("wall")
    muscle = rng.uniform(9, 15) * (0.6 + 0.5 * np.sin(frame.angle) ** 2) + 26 * _back_muscles(frame.angle)
    canvas.paint(frame.outside < np.minimum(muscle, frame.skin - 5), Tissue.MUSCLE)
    canvas.paint(frame.outside < 0, Tissue.FAT)
    psoas = np.clip((8 - canvas.z) / 90, 0, 1) * 21 * frame.scale
    side = np.abs(canvas.x) - (30 + 0.12 * np.clip(-canvas.z, 0, 150)) * frame.scale
    canvas.paint(np.hypot(side, canvas.y - 48 * frame.scale) < psoas, Tissue.MUSCLE)
    _fill_chest(canvas, frame)
    _build_spine(canvas, frame)
    _build_ribs(canvas, frame)
    return frame


def _draw_frame(canvas: Canvas) -> Frame:
    rng = canvas.stream("frame")
    scale = rng.normal(1.0, 0.045)
    half_width, front = rng.normal(128, 6) * scale, rng.normal(86, 7) * scale
    back = 76 * scale
    fat = float(np.clip(rng.gamma(3.0, 6.0), 6, 36))
    front += 0.5 * fat  # fat inside comes with fat outside
    half_width += 0.25 * fat
    x, y, z = canvas.x, canvas.y, canvas.z
    waist = 1 - 0.06 * np.exp(-(((z + 65) / 45) ** 2)) - 0.10 * np.clip((z - 90) / 90, 0, 1)
    power = np.float32(rng.uniform(2.1, 2.6))
    across = np.abs(x) / (half_width * waist)
    along = np.abs(y) / np.where(y < 0, front * waist, back)
    around = np.maximum((across**power + along**power) ** (1 / power), 1e-3)
    outside = np.hypot(x, y) * (1 - 1 / around)
    angle = np.arctan2(np.abs(x), y)
    wall = 12 + 24 * _back_muscles(angle) - 4 * np.exp(-((angle / 0.12) ** 2))
    skin = wall + fat * (0.85 + 0.35 * np.sin(angle) ** 2) * (1 + 0.15 * canvas.noise(rng, 90.0))
    tops = rng.normal(86, 8), rng.normal(78, 8)  # right and left dome
    across = np.abs(x) - 55 * scale
    reach = np.where(across > 0, np.float32(82), np.float32(140)), np.where(y > -5, np.float32(98), np.float32(104))
    bulge = (across / reach[0]) ** 2 + ((y + 5) / reach[1]) ** 2
    dome = tops[0] + (tops[1] - tops[0]) * np.clip(x / 60 + 0.5, 0, 1) - 92 * bulge / scale**2
    dome += 2.5 * canvas.noise(rng, 60.0)
    return Frame(scale, half_width, front, back, outside, angle, (dome - z).astype(np.float32), skin)


def _back_muscles(angle: np.ndarray) -> np.ndarray:
    """1 beside the spine, falling to 0 at the flanks."""
    return np.exp(-(((angle / 0.85) ** 2) ** 2))


def _fill_chest(canvas: Canvas, frame: Frame) -> None:
    """Lungs, diaphragm, heart and the great vessels."""
    rng = canvas.stream("chest")
    x, y, z, below = canvas.x, canvas.y, canvas.z, frame.below_diaphragm
    chest = (below < 0) & (frame.outside < -2)
    top = rng.normal(40, 5)
    heart_size = rng.uniform(0.9, 1.12) * frame.scale
    heart = canvas.ball(
        (20 * frame.scale, -32, 60 + top),
        (66 * heart_size, 44 * heart_size, 46 * heart_size),
        tilt=-0.3,
        yaw=rng.normal(0.45, 0.1),
    )
    middle = np.abs(x - 4) < 17 + 0.06 * np.abs(y)
    lung = chest & ~middle & (heart > 5)
    canvas.paint(lung, Tissue.LUNG)
    canvas.paint(lung & (canvas.tubes(rng, 26.0) < rng.uniform(2.2, 3.4)), Tissue.VEIN)
    level = rng.uniform(5, 60) if rng.random() < 0.22 else 1e3
    side = x * rng.choice([-1, 1]) > (0 if rng.random() < 0.6 else -1e3)
    canvas.paint(lung & side & (y > level), Tissue.FLUID)  # an effusion runs to the back
    canvas.paint((np.abs(below) < 2.5) & (frame.outside < 0), Tissue.MUSCLE)
    canvas.paint((heart < 0) & (below < -2), Tissue.MUSCLE)
    chamber = (heart < -11) & (np.abs(canvas.noise(rng, 40.0)) > 0.12)
    canvas.paint(chamber & (below < -2), Tissue.HEART)
    bend = 6 * np.sin(z / 70 + rng.uniform(0, 6))
    front_of_spine = (48 - 31) * frame.scale
    canvas.paint(np.hypot(x - 11 - bend, y - front_of_spine) < rng.uniform(8.5, 12.5) * frame.scale, Tissue.ARTERY)
    cava = np.hypot((x + 22 + 0.5 * bend) / 1.25, y - front_of_spine + np.clip(z, 0, 90) * 0.12)
    canvas.paint((cava < rng.uniform(8.5, 11.5) * frame.scale) & (below > -20), Tissue.VEIN)
    gullet = np.hypot(x - 6, y - front_of_spine + 20)
    canvas.paint((gullet < 7) & (z > 45), Tissue.GUT_WALL)


def _build_spine(canvas: Canvas, frame: Frame) -> None:
    rng = canvas.stream("spine")
    size = frame.scale * rng.uniform(0.93, 1.08)
    x = canvas.x - rng.normal(0, 4) * np.sin(canvas.z / 80 + rng.uniform(0, 6))
    y = canvas.y - 48 * frame.scale - 0.0004 * (canvas.z + 20) ** 2  # lumbar curve
    pitch = 34 * size
    place = (canvas.z / pitch + rng.random()) % 1.0
    height = np.abs(place - 0.5) * pitch  # from the middle of a vertebra
    thick = pitch / 2 - 4.5
    body = np.hypot(x / 1.25, np.maximum(1.15 * y, -y)) + np.clip(2 - 0.18 * height, 0, 2)  # a waist
    width = 17.5 * size
    back = y - 25 * size  # from the canal's middle
    ring = np.hypot(x / 1.2, back)
    arch = (ring < 16 * size) & (height < thick)
    process = (np.abs(x) < 4) & (back > 6) & (back < 30 * size) & (np.abs(place - 0.36) * pitch < 9)
    wings = (np.abs(x) < 38 * size) & (np.abs(back - 4) < 5) & (height < 6)
    canvas.paint(arch | process | wings, Tissue.HARD_BONE)
    canvas.paint((body < width) & (height >= thick), Tissue.CARTILAGE)
    canvas.paint((body < width) & (height < thick), Tissue.HARD_BONE)
    canvas.paint((body < width - 3.5) & (height < thick - 3), Tissue.SPONGY_BONE)
    canvas.paint((process | wings) & (np.abs(x) < 3), Tissue.SPONGY_BONE)
    canvas.paint(ring < 9.5 * size, Tissue.CORD)


def _build_ribs(canvas: Canvas, frame: Frame) -> None:
    """Ribs in the muscles around the chest, the arch of cartilage in front, and the wings of the hips."""
    rng = canvas.stream("ribs")
    pitch, drop = rng.uniform(26, 31) * frame.scale, rng.uniform(140, 180)
    lowest = rng.normal(-8, 7)  # height of the last rib at the spine
    angle, outside = frame.angle, frame.outside
    along = (canvas.z - lowest + drop * np.sin(np.minimum(angle, 2.2) * 0.6)) / pitch
    rank = np.floor(along + 0.5)
    reach = np.interp(rank, [-1, 0, 1, 2, 3, 5], [-1, 1.2, 1.7, 2.1, 2.35, 2.6]).astype(np.float32)
    across = np.hypot((along - rank) * pitch / 1.5, outside - 5.5)
    bone = (across < 4.6) & (angle < reach) & (angle > 0.22)
    canvas.paint(bone, Tissue.HARD_BONE)
    canvas.paint(bone & (across < 1.6), Tissue.SPONGY_BONE)
    front = (across < 5) & (angle >= reach) & (rank > 1) & (np.abs(outside - 5.5) < 5)
    canvas.paint(front & (angle < 2.9), Tissue.CARTILAGE)
    hip = (np.abs(outside - 5 - 6 * np.sin(canvas.z / 25)) < 5) & (angle > 0.45) & (angle < 1.75)
    crest = -118 + 22 * np.sin((angle - 0.45) * 2.2) + rng.normal(0, 5)
    canvas.paint(hip & (canvas.z < crest), Tissue.HARD_BONE)
