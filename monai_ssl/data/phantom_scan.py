# SPDX-License-Identifier: Apache-2.0
"""CT and MR scans of made-up bodies: the grid, the pose, the contrast, blur and noise of each scan.

The body's fine grid is given the values of its tissues, blurred as far as the scan's voxels reach, and sampled where
they lie; so voxels at the edges of organs hold a mixture, as in a scanner. A voxel has the label of the organ that most
of it belongs to.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy.ndimage import affine_transform, gaussian_filter
from scipy.spatial.transform import Rotation

from monai_ssl.data.phantom_body import CANVAS_ENDS, CANVAS_MM, Tissue, smooth_noise
from monai_ssl.data.phantom_organs import LABEL_OF_TISSUE, ORGANS, Body
from monai_ssl.data.phantom_patient import random_stream


@dataclass(frozen=True, eq=False)
class Scan:
    """One volume.

    Args:
        array: float32 (D, H, W): slices to the head, rows to the back, columns to the left. CT in HU.
        labels: uint8, the same shape: 0, or 1 + the organ's place in ``ORGANS``.
        affine: float64 (4, 4) from (d, h, w, 1) to mm on DICOM's patient axes (LPS), at voxel centres.
    """

    array: np.ndarray = field(repr=False)
    labels: np.ndarray = field(repr=False)
    affine: np.ndarray

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance of neighbouring voxels along (D, H, W) in mm."""
        return tuple(float(length) for length in np.linalg.norm(self.affine[:3, :3], axis=0))


# Textbook values in HU without contrast medium, and what the phases after it add.
_PLAIN_HU = {
    Tissue.AIR: -1000, Tissue.FAT: -100, Tissue.MUSCLE: 55, Tissue.LUNG: -860, Tissue.HEART: 42, Tissue.ARTERY: 42,
    Tissue.VEIN: 42, Tissue.SPONGY_BONE: 190, Tissue.HARD_BONE: 450, Tissue.CARTILAGE: 85, Tissue.CORD: 25,
    Tissue.LIVER: 56, Tissue.LIVER_VESSEL: 42, Tissue.SPLEEN: 50, Tissue.KIDNEY_CORTEX: 33, Tissue.KIDNEY_MEDULLA: 31,
    Tissue.LESION: 30, Tissue.GUT_WALL: 40, Tissue.MEAL: 30, Tissue.STOOL: 20, Tissue.BOWEL: 28, Tissue.BILE: 8,
    Tissue.PANCREAS: 42, Tissue.GAS: -960, Tissue.FLUID: 12,
}  # fmt: skip
_PORTAL_HU = {
    Tissue.MUSCLE: 10, Tissue.HEART: 95, Tissue.ARTERY: 110, Tissue.VEIN: 112, Tissue.LIVER: 52,
    Tissue.LIVER_VESSEL: 105, Tissue.SPLEEN: 62, Tissue.KIDNEY_CORTEX: 150, Tissue.KIDNEY_MEDULLA: 125,
    Tissue.LESION: 35, Tissue.GUT_WALL: 50, Tissue.PANCREAS: 55, Tissue.SPONGY_BONE: 15,
}  # fmt: skip
_ARTERIAL_HU = {
    Tissue.MUSCLE: 5, Tissue.HEART: 170, Tissue.ARTERY: 250, Tissue.VEIN: 25, Tissue.LIVER: 14, Tissue.LIVER_VESSEL: 30,
    Tissue.SPLEEN: 70, Tissue.KIDNEY_CORTEX: 150, Tissue.KIDNEY_MEDULLA: 35, Tissue.GUT_WALL: 40, Tissue.PANCREAS: 60,
    Tissue.SPONGY_BONE: 8,
}  # fmt: skip
# How far the tissue's coarse and fine texture goes in HU.
_TEXTURE_HU = {
    Tissue.FAT: (5, 4), Tissue.MUSCLE: (4, 7), Tissue.LUNG: (25, 30), Tissue.HEART: (4, 3),
    Tissue.SPONGY_BONE: (25, 45), Tissue.HARD_BONE: (60, 110), Tissue.LIVER: (7, 2), Tissue.SPLEEN: (2, 7),
    Tissue.KIDNEY_CORTEX: (4, 5), Tissue.KIDNEY_MEDULLA: (4, 8), Tissue.LESION: (7, 7), Tissue.MEAL: (22, 18),
    Tissue.STOOL: (45, 60), Tissue.BOWEL: (14, 8), Tissue.PANCREAS: (8, 14),
}  # fmt: skip

# Signal in fractions of the brightest tissue, as in T1-weighted gradient echo and T2-weighted fast spin echo.
_T1_SIGNAL = {
    Tissue.FAT: 0.95, Tissue.MUSCLE: 0.42, Tissue.LUNG: 0.05, Tissue.HEART: 0.32, Tissue.ARTERY: 0.25,
    Tissue.VEIN: 0.28, Tissue.SPONGY_BONE: 0.55, Tissue.HARD_BONE: 0.10, Tissue.CARTILAGE: 0.35, Tissue.CORD: 0.22,
    Tissue.LIVER: 0.55, Tissue.LIVER_VESSEL: 0.34, Tissue.SPLEEN: 0.42, Tissue.KIDNEY_CORTEX: 0.47,
    Tissue.KIDNEY_MEDULLA: 0.36, Tissue.LESION: 0.36, Tissue.GUT_WALL: 0.42, Tissue.MEAL: 0.36, Tissue.STOOL: 0.48,
    Tissue.BOWEL: 0.33, Tissue.BILE: 0.25, Tissue.PANCREAS: 0.60, Tissue.GAS: 0.02, Tissue.FLUID: 0.16,
}  # fmt: skip
_T2_SIGNAL = {
    Tissue.FAT: 0.72, Tissue.MUSCLE: 0.17, Tissue.LUNG: 0.06, Tissue.HEART: 0.26, Tissue.ARTERY: 0.06,
    Tissue.VEIN: 0.12, Tissue.SPONGY_BONE: 0.38, Tissue.HARD_BONE: 0.08, Tissue.CARTILAGE: 0.40, Tissue.CORD: 0.85,
    Tissue.LIVER: 0.30, Tissue.LIVER_VESSEL: 0.14, Tissue.SPLEEN: 0.48, Tissue.KIDNEY_CORTEX: 0.52,
    Tissue.KIDNEY_MEDULLA: 0.66, Tissue.LESION: 0.52, Tissue.GUT_WALL: 0.32, Tissue.MEAL: 0.62, Tissue.STOOL: 0.35,
    Tissue.BOWEL: 0.60, Tissue.BILE: 1.00, Tissue.PANCREAS: 0.38, Tissue.GAS: 0.03, Tissue.FLUID: 0.95,
}  # fmt: skip


def scan_ct(body: Body, seed: int, number: int) -> Scan:
    """Take a CT of a body on a curved table, without contrast medium or in the portal venous phase.

    Args:
        body: from ``build_body(seed, number)``.
        seed: names the cohort.
        number: the patient's position in it; pose, grid, contrast and noise follow from both.
    """
    rng = random_stream(seed, "ct", number)
    columns = int(rng.integers(64, 81))
    affine, shape = _draw_grid(rng, body, columns, columns)
    values = _ct_values(rng)
    coarse, fine = _column(_TEXTURE_HU, 0), _column(_TEXTURE_HU, 1)
    canvas = values[body.tissue] + coarse[body.tissue] * body.mottle + fine[body.tissue] * body.grain
    _put_on_table(canvas, body)
    body_from_scanner = _draw_pose(rng, body, affine, shape, degrees=8.0)
    array = _sample(canvas, affine, body_from_scanner, shape, rng.uniform(0.32, 0.5), -1000.0)
    grain = gaussian_filter(rng.standard_normal(shape, dtype=np.float32), (0.2, *(rng.uniform(0.35, 0.7),) * 2))
    dose = float(np.exp(rng.uniform(np.log(9), np.log(30))))  # noise in HU in the middle of the body
    thickness = gaussian_filter((array > -300).astype(np.float32), (1, 10, 10))  # thick parts let less through
    array += grain / grain.std() * dose * (0.3 + 0.9 * thickness)
    return Scan(np.clip(array, -1024, 3071), _sample_labels(body, affine, body_from_scanner, shape), affine)


def scan_mr(body: Body, seed: int, number: int) -> Scan:
    """Take an MR of a body, T1- or T2-weighted, with or without fat suppression; grey values have a scale of their own.

    Args:
        body: from ``build_body(seed, number)``.
        seed: names the cohort.
        number: the patient's position in it; pose, grid, contrast, coil and noise follow from both.
    """
    rng = random_stream(seed, "mr", number)
    columns = int(rng.integers(66, 81))
    affine, shape = _draw_grid(rng, body, max(64, int(columns * rng.uniform(0.8, 1.0))), columns, oblique=5.0)
    values = _mr_values(rng)
    canvas = values[body.tissue] * (1 + 0.05 * body.mottle + 0.05 * body.grain)
    body_from_scanner = _draw_pose(rng, body, affine, shape, degrees=8.0)
    array = _sample(canvas, affine, body_from_scanner, shape, rng.uniform(0.35, 0.5), 0.0)
    spacing = tuple(float(length) for length in np.linalg.norm(affine[:3, :3], axis=0))
    array *= np.exp(rng.uniform(0.1, 0.3) * smooth_noise(rng, shape, spacing, 190.0))  # sensitivity of the coils
    ghost = rng.uniform(0.0, 0.05)
    array += ghost * np.roll(array, shape[1] // int(rng.integers(2, 4)), axis=1)  # breathing, along the phases
    sigma = rng.uniform(0.012, 0.035)
    noise = rng.standard_normal((2, *shape), dtype=np.float32) * np.float32(sigma)
    array = np.hypot(array + noise[0], noise[1])  # magnitude: Rician noise
    scale = np.exp(rng.uniform(np.log(150), np.log(4000)))  # arbitrary, as MR's is
    labels = _sample_labels(body, affine, body_from_scanner, shape)
    return Scan((array * scale).astype(np.float32), labels, affine)


def _ct_values(rng: np.random.Generator) -> np.ndarray:
    """HU of each tissue in one scan."""
    values = _column(_PLAIN_HU)
    values[Tissue.LIVER] -= rng.choice([rng.uniform(-6, 8), rng.uniform(8, 40)], p=[0.7, 0.3])  # fat in the liver
    phase = rng.choice(["plain", "portal", "arterial"], p=[0.35, 0.45, 0.2])
    if phase != "plain":
        values += rng.uniform(0.7, 1.3) * _column(_PORTAL_HU if phase == "portal" else _ARTERIAL_HU)
    for tissue, spread in ((Tissue.MUSCLE, 5), (Tissue.HARD_BONE, 70), (Tissue.SPONGY_BONE, 40), (Tissue.FAT, 5)):
        values[tissue] += rng.normal(0, spread)
    if phase != "arterial":
        values[Tissue.SPLEEN] = values[Tissue.LIVER] + rng.normal(0, 6)
    values[Tissue.LESION] = values[Tissue.LIVER] - rng.uniform(28, 65)
    values[Tissue.MEAL] = rng.uniform(10, values[Tissue.LIVER] + 20)
    values[Tissue.BOWEL] = rng.uniform(10, 70)
    if rng.random() < 0.25:  # contrast medium was drunk
        values[[Tissue.MEAL, Tissue.BOWEL]] = rng.uniform(110, 320), rng.uniform(90, 260)
    values[Tissue.STOOL] += rng.normal(0, 25)
    values[Tissue.LUNG] += rng.normal(0, 30)
    return values


def _mr_values(rng: np.random.Generator) -> np.ndarray:
    """Signal of each tissue in one scan."""
    weighting = rng.random() < 0.5
    values = _column(_T1_SIGNAL if weighting else _T2_SIGNAL)
    values *= np.exp(rng.normal(0, 0.09, values.size)).astype(np.float32)
    values[Tissue.AIR] = 0
    values[Tissue.MEAL] *= np.exp(rng.normal(0, 0.3))
    values[Tissue.BOWEL] *= np.exp(rng.normal(0, 0.3))
    if rng.random() < 0.35:
        values[Tissue.FAT] *= rng.uniform(0.18, 0.4)
        values[Tissue.SPONGY_BONE] *= rng.uniform(0.4, 0.7)
    return values


def _column(table: dict, place: int | None = None) -> np.ndarray:
    """Values of a table at the tissues' numbers, 0 where it says nothing."""
    column = np.zeros(len(Tissue), dtype=np.float32)
    for tissue, value in table.items():
        column[tissue] = value if place is None else value[place]
    return column


def _put_on_table(canvas: np.ndarray, body: Body) -> None:
    """Add the scanner's table: a thin shell around foam."""
    _, y, x = (np.arange(first, last, CANVAS_MM, dtype=np.float32) for first, last in CANVAS_ENDS)
    depth = y[:, None] - body.back - 5 + (x[None, :] / 38) ** 2
    inside = (depth > 0) & (depth < 34 - (x[None, :] / 40) ** 2) & (np.abs(x) < 200)
    core = (depth > 4) & (depth < 30 - (x[None, :] / 40) ** 2) & (np.abs(x) < 196)
    outside = body.tissue == Tissue.AIR
    canvas[outside & inside] = -150
    canvas[outside & core] = -930


def _draw_grid(
    rng: np.random.Generator, body: Body, rows: int, columns: int, oblique: float = 0.0
) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Place a grid around the body: affine (LPS) and shape; slices are at least 1.25 times as far apart as columns."""
    pixel = round(float(np.clip(2 * body.half_width * rng.uniform(1.0, 1.12) / columns, 4.0, 6.4)), 2)
    slices = int(rng.integers(32, 41))
    step = round(max(rng.uniform(245, 285) / slices, 1.25 * pixel), 1)
    turn = np.eye(3)
    if oblique:
        turn = Rotation.from_euler("xyz", rng.normal(0, oblique / 2, 3), degrees=True).as_matrix()
    shape = slices, rows, columns
    affine = np.eye(4)
    affine[:3, :3] = turn[:, ::-1] * (step, pixel, pixel)
    centre = np.array([rng.normal(0, 8), rng.normal(0, 8) - 30, rng.uniform(-600, 300)])
    affine[:3, 3] = np.round(centre - affine[:3, :3] @ ((np.array(shape) - 1) / 2), 2)
    return affine, shape


def _draw_pose(
    rng: np.random.Generator, body: Body, affine: np.ndarray, shape: tuple[int, int, int], degrees: float
) -> np.ndarray:
    """Lay the body into the scanner: affine (4, 4) from the scanner's to the body's axes, both (x, y, z)."""
    turn = Rotation.from_euler("xyz", rng.normal(0, degrees / 2, 3), degrees=True).as_matrix()
    middle = affine[:3, :3] @ ((np.array(shape) - 1) / 2) + affine[:3, 3]
    aimed_at = np.array([rng.normal(0, 6), 8 + rng.normal(0, 6), rng.normal(2, 9)])
    pose = np.eye(4)
    pose[:3, :3] = turn
    pose[:3, 3] = aimed_at - turn @ middle
    return pose


def _canvas_from_voxel(affine: np.ndarray, body_from_scanner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Matrix and offset from voxels of the scan (d, h, w) to those of the canvas (z, y, x)."""
    to_body = body_from_scanner @ affine
    first = np.array([ends[0] for ends in CANVAS_ENDS])
    return to_body[2::-1, :3] / CANVAS_MM, (to_body[2::-1, 3] - first) / CANVAS_MM


def _sample(
    canvas: np.ndarray,
    affine: np.ndarray,
    body_from_scanner: np.ndarray,
    shape: tuple[int, int, int],
    blur: float,
    outside: float,
) -> np.ndarray:
    """Blur the canvas by ``blur`` voxels of the scan and read it at their centres."""
    matrix, offset = _canvas_from_voxel(affine, body_from_scanner)
    sigma = blur * np.linalg.norm(affine[:3, :3], axis=0) / CANVAS_MM
    blurred = gaussian_filter(canvas, sigma, mode="nearest", truncate=2.5)
    return affine_transform(blurred, matrix, offset, shape, order=1, cval=outside)


def _sample_labels(
    body: Body, affine: np.ndarray, body_from_scanner: np.ndarray, shape: tuple[int, int, int]
) -> np.ndarray:
    """Label of the organ that has the greatest share of each voxel."""
    matrix, offset = _canvas_from_voxel(affine, body_from_scanner)
    labels = LABEL_OF_TISSUE[body.tissue]
    best = affine_transform((labels == 0).astype(np.float32), matrix, offset, shape, order=1, cval=1.0)
    result = np.zeros(shape, dtype=np.uint8)
    for label in range(1, len(ORGANS) + 1):
        share = affine_transform((labels == label).astype(np.float32), matrix, offset, shape, order=1)
        result[share > best] = label
        np.maximum(best, share, out=best)
    return result
