# SPDX-License-Identifier: Apache-2.0
"""Organs of made-up bodies: liver, spleen, kidneys and lesions, which are labelled, and the gut, which is not.

Every organ differs from patient to patient in place, size and shape, and gives way to its neighbours: the liver and the
spleen lie against the diaphragm and the wall, the stomach dents the spleen, and the gut fills the room that is left.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from monai_ssl.data.phantom_body import CANVAS_ENDS, CANVAS_MM, Canvas, Frame, Tissue, blend, build_trunk

ORGANS = ("liver", "spleen", "kidneys", "lesion")
"""Labels 1 to 4 of the label maps, in this order."""

LABEL_OF_TISSUE = np.zeros(len(Tissue), dtype=np.uint8)
LABEL_OF_TISSUE[[Tissue.LIVER, Tissue.LIVER_VESSEL]] = 1
LABEL_OF_TISSUE[Tissue.SPLEEN] = 2
LABEL_OF_TISSUE[[Tissue.KIDNEY_CORTEX, Tissue.KIDNEY_MEDULLA]] = 3
LABEL_OF_TISSUE[Tissue.LESION] = 4


@dataclass(frozen=True, eq=False)
class Body:
    """One made-up trunk on the fine grid (z, y, x), see ``phantom_body`` for the axes.

    Args:
        female, age: for the header.
        lesion: whether the liver holds a lesion.
        tissue: uint8, values of ``Tissue``.
        mottle, grain: coarse and fine noise of zero mean and unit variance, float32: the texture of the tissues.
        half_width: of the skin, in mm.
        back: y of the skin at the back, in mm.
    """

    female: bool
    age: int
    lesion: bool
    tissue: np.ndarray = field(repr=False)
    mottle: np.ndarray = field(repr=False)
    grain: np.ndarray = field(repr=False)
    half_width: float
    back: float


def build_body(seed: int, number: int) -> Body:
    """Draw one body.

    Args:
        seed: names the cohort.
        number: the patient's position in it; patients do not depend on one another.
    """
    canvas = Canvas(seed, number)
    rng = canvas.stream("person")
    female, age, lesion = bool(rng.random() < 0.5), int(rng.integers(25, 88)), bool(rng.random() < 0.5)
    frame = build_trunk(canvas)
    room = (frame.outside < -3) & (frame.below_diaphragm > 4) & (canvas.tissue == Tissue.FAT)
    stomach = _stomach(canvas, frame)
    kidneys = _kidneys(canvas, frame)
    spleen = _spleen(canvas, frame)
    liver = _liver(canvas, frame)
    _paint_bowel(canvas, frame, room & (np.minimum(kidneys, np.minimum(liver, spleen)) > 4) & (stomach > 3))
    _paint_pancreas(canvas, frame, room)
    _paint_stomach(canvas, room & (spleen > 2), stomach)
    canvas.paint(room & (spleen < 0) & (stomach > -9) & (kidneys > 2), Tissue.SPLEEN)
    inside = room & (liver < 0) & (kidneys > 2.5)
    canvas.paint(inside, Tissue.LIVER)
    _paint_liver_parts(canvas, frame, inside, liver, lesion)
    _paint_kidneys(canvas, room & (kidneys < 0), kidneys)
    texture = canvas.stream("texture")
    (first_y, _), (first_x, _) = CANVAS_ENDS[1:]
    skin = canvas.tissue != Tissue.AIR
    columns, rows = np.flatnonzero(skin.any(axis=(0, 1))), np.flatnonzero(skin.any(axis=(0, 2)))
    return Body(
        female,
        age,
        lesion,
        canvas.tissue,
        canvas.noise(texture, 16.0),
        canvas.noise(texture, 7.0),
        half_width=float(np.abs(first_x + CANVAS_MM * columns[[0, -1]]).max()),
        back=float(first_y + CANVAS_MM * rows[-1]),
    )


def _liver(canvas: Canvas, frame: Frame) -> np.ndarray:
    """Right lobe against the wall, left lobe across the midline, and the slanting lower face."""
    rng = canvas.stream("liver")
    size = frame.scale * rng.normal(1.0, 0.07)
    right = canvas.ball(
        (-(72 + rng.normal(0, 4)) * frame.scale, 2 + rng.normal(0, 5), 18 + rng.normal(0, 9)),
        (76 * size, 84 * size, rng.uniform(74, 104) * size),
        tilt=rng.normal(0.1, 0.08),
    )
    left = canvas.ball(
        (rng.uniform(-5, 22) * frame.scale, -40 + rng.normal(0, 6), 42 + rng.normal(0, 7)),
        (rng.uniform(50, 112) * size, 40 * size, rng.uniform(22, 40) * size),
        tilt=rng.normal(-0.15, 0.1),
        yaw=rng.normal(-0.15, 0.15),
    )
    lower = (
        0.8 * (-canvas.z - rng.uniform(8, 28)) + rng.uniform(0.35, 0.75) * canvas.x + rng.uniform(-0.1, 0.25) * canvas.y
    ) - 12
    shape = blend(right, left, 24.0) + rng.uniform(2.5, 5) * canvas.noise(rng, 45.0)
    shape = -blend(-shape, -lower, 10.0)
    fissure = np.hypot(canvas.x + 18 * frame.scale, 0.6 * (canvas.y + 75))  # of the round ligament
    return np.maximum(shape, 9 - fissure)


def _spleen(canvas: Canvas, frame: Frame) -> np.ndarray:
    rng = canvas.stream("spleen")
    size = frame.scale * rng.lognormal(0, 0.17)
    centre = (frame.half_width - rng.uniform(28, 42), rng.uniform(12, 44), 20 + rng.normal(0, 13))
    radii = (rng.uniform(27, 36) * size, rng.uniform(42, 56) * size, rng.uniform(46, 62) * size)
    shape = canvas.ball(centre, radii, tilt=rng.normal(0.2, 0.15), yaw=rng.normal(-0.35, 0.15))
    return shape + rng.uniform(2, 4) * canvas.noise(rng, 36.0)


def _kidneys(canvas: Canvas, frame: Frame) -> np.ndarray:
    rng = canvas.stream("kidneys")
    sizes = frame.scale * rng.normal(1.0, 0.08) * rng.lognormal(0, 0.05, 2)
    pair = []
    for side, size in zip((-1, 1), sizes, strict=True):
        centre = (
            side * (63 + rng.normal(0, 4)) * frame.scale,
            42 * frame.scale + rng.normal(0, 4),
            -42 + 10 * side + rng.normal(0, 13),
        )
        radii = (rng.uniform(25, 30) * size, rng.uniform(21, 26) * size, rng.uniform(46, 58) * size)
        lean, turn = side * rng.normal(-0.22, 0.07), side * rng.normal(0.5, 0.12)
        kidney = canvas.ball(centre, radii, tilt=lean, yaw=turn)
        hilum = (centre[0] - side * 22 * size, centre[1] - 11 * size, centre[2])
        sinus = canvas.ball(hilum, (20 * size, 12 * size, 24 * size), tilt=lean, yaw=turn)
        pair.append(np.maximum(kidney, -sinus))
    return np.minimum(*pair) + rng.uniform(1, 2) * canvas.noise(rng, 22.0)


def _stomach(canvas: Canvas, frame: Frame) -> np.ndarray:
    rng = canvas.stream("stomach")
    full = frame.scale * rng.uniform(0.72, 1.12)
    low = rng.uniform(-45, -5)
    fundus = canvas.ball((58 + rng.normal(0, 6), 4 + rng.normal(0, 8), 50), (38 * full, 38 * full, 36 * full))
    middle = canvas.ball(
        (52 + rng.normal(0, 6), -36, 12 + 0.4 * low), (30 * full, 27 * full, 48 * full), tilt=rng.normal(0.2, 0.1)
    )
    outlet = canvas.ball((8, -48, low - 8), (44 * full, 20 * full, 19 * full), tilt=rng.normal(0.25, 0.1))
    shape = blend(blend(fundus, middle, 22.0), outlet, 22.0)
    return shape + rng.uniform(2, 4) * canvas.noise(rng, 30.0)


def _paint_stomach(canvas: Canvas, room: np.ndarray, stomach: np.ndarray) -> None:
    """Wall, meal, and the gas that rises to the front of somebody who lies on the back."""
    rng = canvas.stream("meal")
    canvas.paint(room & (stomach < 0), Tissue.GUT_WALL)
    inside = room & (stomach < -4.5)
    canvas.paint(inside, Tissue.MEAL)
    canvas.paint(inside & (canvas.y < rng.uniform(-62, -20)), Tissue.GAS)


def _paint_bowel(canvas: Canvas, frame: Frame, room: np.ndarray) -> None:
    """Loops of small bowel in the lower half, the colon as a frame around them."""
    rng = canvas.stream("bowel")
    x, y, z = canvas.x, canvas.y, canvas.z
    loops = canvas.tubes(rng, 30.0)
    middle = room & (z < rng.uniform(-25, 5)) & (y < 38) & (frame.outside < -8)
    canvas.paint(middle & (loops < 19), Tissue.GUT_WALL)
    canvas.paint(middle & (loops < 15.5), Tissue.BOWEL)
    gas = canvas.noise(rng, 30.0) - y / 60
    canvas.paint(middle & (loops < 14) & (gas > rng.uniform(1.6, 2.6)), Tissue.GAS)
    bulges = 1 + 0.16 * np.sin(np.hypot(x, z) / 5.5)
    far = frame.half_width - 27
    right = np.hypot(x + far, y - 12) + 0 * z
    right[z > rng.uniform(-55, -25)] = 1e3
    left = np.hypot(x - far, y - 26) + 8
    left[z > rng.uniform(-25, 20)] = 1e3
    sag = rng.uniform(-75, -35) + 30 * (x / far) ** 2
    across = np.hypot(z - sag, y + frame.front - 34 - 22 * (x / far) ** 2)
    across[np.abs(x) > far] = 1e3
    colon = np.minimum(np.minimum(right, left), across) / bulges
    size = rng.uniform(17, 25) * frame.scale
    canvas.paint(room & (colon < size), Tissue.GUT_WALL)
    inside = room & (colon < size - 3.5)
    canvas.paint(inside, Tissue.STOOL)
    canvas.paint(inside & (canvas.noise(rng, 26.0) - y / 70 > rng.uniform(0.3, 1.4)), Tissue.GAS)


def _paint_pancreas(canvas: Canvas, frame: Frame, room: np.ndarray) -> None:
    """A bar in front of the vessels, from the right of the spine to the spleen."""
    rng = canvas.stream("pancreas")
    bow = -6 - 26 * np.exp(-(((canvas.x - 5) / 32) ** 2)) + 8
    height = rng.normal(2, 8) + 0.22 * canvas.x
    bar = np.hypot(canvas.y - bow, (canvas.z - height) / 1.25) + 1.5 * canvas.noise(rng, 16.0)
    canvas.paint(room & (bar < rng.uniform(9, 13)) & (canvas.x > -38) & (canvas.x < 78), Tissue.PANCREAS)


def _paint_liver_parts(canvas: Canvas, frame: Frame, inside: np.ndarray, liver: np.ndarray, lesion: bool) -> None:
    """Vessels, the gallbladder at the lower face, and the lesions."""
    rng = canvas.stream("liver parts")
    vessels = canvas.tubes(rng, 30.0) < rng.uniform(2.6, 4.0)
    canvas.paint(inside & vessels & (liver < -5), Tissue.LIVER_VESSEL)
    if rng.random() < 0.85:
        size = rng.uniform(0.7, 1.15) * frame.scale
        bottom = np.flatnonzero((inside & (np.abs(canvas.x + 45) < 12) & (canvas.y < -15)).any(axis=(1, 2)))
        height = CANVAS_ENDS[0][0] + CANVAS_MM * bottom[0] if bottom.size else -40.0
        centre = (-45 + rng.normal(0, 5), -42 + rng.normal(0, 6), height + 8)
        sac = canvas.ball(centre, (15 * size, 17 * size, 28 * size))
        belongs = (frame.outside < -4) & np.isin(canvas.tissue, (Tissue.FAT, Tissue.LIVER, Tissue.LIVER_VESSEL))
        canvas.paint((sac < 0) & belongs & (frame.below_diaphragm > 6), Tissue.BILE)
    deep = np.argwhere(inside & (liver < -10) & (canvas.tissue == Tissue.LIVER))
    ragged = canvas.noise(rng, 14.0)
    for _ in range(int(rng.integers(1, 5)) if lesion else 0):
        z, y, x = (
            first + CANVAS_MM * place
            for place, (first, _) in zip(deep[rng.integers(len(deep))], CANVAS_ENDS, strict=True)
        )
        radii = rng.uniform(13, 30) * rng.uniform(0.8, 1.2, 3)
        site = canvas.ball((x, y, z), tuple(radii), yaw=rng.uniform(0, 3)) + rng.uniform(1, 3) * ragged
        canvas.paint((site < 0) & inside & np.isin(canvas.tissue, (Tissue.LIVER, Tissue.LIVER_VESSEL)), Tissue.LESION)


def _paint_kidneys(canvas: Canvas, inside: np.ndarray, kidneys: np.ndarray) -> None:
    """Cortex outside and between the pyramids of the medulla."""
    rng = canvas.stream("kidney parts")
    canvas.paint(inside, Tissue.KIDNEY_CORTEX)
    canvas.paint(inside & (kidneys < -7) & (canvas.noise(rng, 13.0) > -0.3), Tissue.KIDNEY_MEDULLA)
