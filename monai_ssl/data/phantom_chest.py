# SPDX-License-Identifier: Apache-2.0
"""Project a made-up chest onto a detector: how much tissue and bone each ray meets.

Everything is a closed formula of the pixel's place in the patient, so any pose is as sharp as any other and nothing is
resampled except the lung texture. Effective attenuation per cm: 0.19 for soft tissue and 0.23 more for cortical bone,
about what a 110 kV beam sees behind a patient; inflated lung has a quarter of the density of soft tissue. Units and
axes as in ``phantom_patient``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import affine_transform

from monai_ssl.data.phantom_patient import CANVAS_HALF_WIDTH_CM, CANVAS_PIXELS_PER_CM, Lesion, Patient

MU_SOFT = 0.19
MU_BONE = 0.23
LUNG_DENSITY = 0.26

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Pose:
    """How the patient stood, breathed and was framed."""

    view: str  # "PA" or "AP"
    field_cm: float  # side of the square detector area
    rotation: float  # radians in the image plane
    shift: tuple[float, float]  # of the patient, cm
    twist: float  # cm by which the front of the chest moves against the spine
    breath: float  # cm by which the diaphragm is lower than at rest
    scapula: float  # cm by which the shoulder blades lie over the lungs


def draw_pose(rng: np.random.Generator) -> Pose:
    """One image in three is AP, taken lying: shallower breath, larger heart, shoulder blades over the lungs."""
    lying = rng.random() < 0.35
    return Pose(
        view="AP" if lying else "PA",
        field_cm=rng.uniform(32.0, 44.0),
        rotation=rng.normal(0, 0.12 if lying else 0.08),
        shift=(rng.normal(0, 2.0), rng.normal(0.3, 1.5)),
        twist=rng.normal(0, 1.2 if lying else 0.7),
        breath=rng.normal(-1.4 if lying else 0.4, 0.9),
        scapula=rng.uniform(1.0, 4.0) if lying else rng.uniform(-3.0, 1.0),
    )


def project(patient: Patient, pose: Pose, size: int, lesions: bool = True) -> tuple[np.ndarray, list[tuple[str, Box]]]:
    """Project one chest.

    Args:
        patient: whose chest.
        pose: how it is seen.
        size: rows and columns of the detector.
        lesions: False shows the same chest in good health.

    Returns:
        The attenuation (line integral, dimensionless) of each ray, (size, size) float32, and for each visible lesion
        its finding and box (first row, first column, last row + 1, last column + 1).
    """
    lung = _Lung(patient, pose, size)
    found = patient.lesions if lesions else ()
    enlarged = sum(lesion.strength for lesion in found if lesion.finding == "cardiomegaly")
    heart, silhouette = _heart(patient, pose, lung.x, lung.y, enlarged)
    # The heart pushes air away; a little lung stays in front of it and behind it.
    air = np.maximum(lung.air - heart * _step((lung.floor - lung.y) / 0.6 + 0.5), 0.08 * lung.air)
    blood = np.minimum(patient.vessel_gain * lung.sample(patient.vessels), 0.5 * air)
    density = LUNG_DENSITY * (1 + 0.12 * lung.sample(patient.grain))
    full = (1 - LUNG_DENSITY) * air  # what can be filled
    matter = np.zeros_like(air)
    boxes = []
    for lesion in found:
        if lesion.finding == "cardiomegaly":
            mark = silhouette
        elif lesion.finding == "pneumothorax":
            empty, surface, own = _pneumothorax(lesion, lung)
            blood = blood * (1 - empty)
            unfilled = np.clip(1 - matter / np.maximum(full, 0.1), 0, 1)
            density = density * (1 + unfilled * (lesion.size * (own - empty) - 0.75 * empty))  # what is left is denser
            matter = np.maximum(matter, surface * np.minimum(air, 1.0))
            mark = (empty > 0.5) & (air > 0.5)
        else:
            part = _OPACITIES[lesion.finding](lesion, patient, lung, air)
            matter += part
            mark = part > 0.3 * part.max(initial=1.0)
        box = _box(mark)
        if box is not None:
            boxes.append((lesion.finding, box))
    tissue = _body(patient, lung.x, lung.y, lung.base) - (1 - density) * air + blood
    tissue += np.minimum(matter, full + 2.0) - _other_air(patient, pose, lung)
    attenuation = MU_SOFT * np.maximum(tissue, 0) + MU_BONE * patient.bone * _bones(patient, pose, lung.x, lung.y)
    return attenuation.astype(np.float32, copy=False), boxes


class _Lung:
    """The chest cavity seen in one pose: pixel places, outlines and the air along each ray."""

    def __init__(self, p: Patient, pose: Pose, size: int) -> None:
        c, s = float(np.cos(pose.rotation)) / p.scale, float(np.sin(pose.rotation)) / p.scale
        grid = (((np.arange(size) + 0.5) / size - 0.5) * pose.field_cm).astype(np.float32)
        column, row = grid[None, :] - pose.shift[0], grid[:, None] - pose.shift[1]
        self.x, self.y = c * column + s * row, c * row - s * column
        self.apex, self.base = p.apex, p.base + pose.breath
        right = self.x < 0
        self.away = np.abs(self.x - 0.3 * pose.twist)
        # A rounded cone; the mediastinum is its inner side, wider at the top and at the hila.
        up = np.clip((p.base - self.y) / (p.base - p.apex), 0, 1)
        self.wall = p.half_width * np.sqrt(np.maximum(1 - up * up * (0.5 + 0.5 * up * up), 1e-3)) + 0.3
        inner = p.mediastinum + 1.4 * np.clip((p.apex + 5.0 - self.y) / 5.0, 0, 1) - 0.8 * _step(self.y / 5.0)
        inner += 0.5 * np.exp(-(((self.y + 1.5) / 2.2) ** 2))
        self.inner = inner + np.where(right, -0.25, 0.25).astype(np.float32) * pose.twist
        self.across = (self.away - self.inner) / np.maximum(self.wall - self.inner, 0.5)
        self.down = (self.y - self.apex) / (self.base - self.apex)
        # The diaphragm: two domes that fall steeply to the chest wall and gently to the heart.
        peak = 0.48 * self.wall
        slope = (self.away - peak) / (self.wall - peak)
        fall = np.minimum(np.where(self.away > peak, np.float32(1.0), np.float32(0.4)) * slope * slope, 1.3)
        self.floor = self.base - np.where(right, *np.float32(p.domes)) * (1 - fall)
        share = self.away / self.wall
        share *= share
        depth = p.depth * np.sqrt(np.maximum(1 - share * share * share, 0)) * (1 - np.clip(up - 0.25, 0, 1) ** 3)
        depth *= 1 - np.sqrt(np.clip((self.y - self.floor) / 4.5, 0, 1))  # the recess behind the domes
        self.air = depth * _step((self.away - self.inner) / 1.3 + 0.3) * _step((self.y - p.apex) / 1.0 + 0.5)
        # Canvas coordinates of pixel (row, column) are affine in it; breath stretches the lung below its apex.
        stretch = (p.base - p.apex) / (self.base - p.apex)
        step = pose.field_cm / size * CANVAS_PIXELS_PER_CM
        self._matrix = np.array([[c * stretch, -s * stretch], [s, c]]) * step
        top = p.apex + (float(self.y[0, 0]) - p.apex) * stretch
        self._offset = (np.array([top, float(self.x[0, 0])]) + CANVAS_HALF_WIDTH_CM) * CANVAS_PIXELS_PER_CM

    def sample(self, canvas: np.ndarray) -> np.ndarray:
        """Lung texture at the pixels; it moves with the breath."""
        return affine_transform(canvas, self._matrix, self._offset, self.x.shape, output=np.float32, order=1)

    def place(self, lesion: Lesion) -> tuple[float, float]:
        """Centre of a lesion in cm."""
        y = self.apex + lesion.down * (self.base - self.apex)
        row = int(np.abs(self.y[:, self.y.shape[1] // 2] - y).argmin())
        inner, wall = float(self.inner[row].mean()), float(self.wall[row].mean())
        return lesion.side * (inner + lesion.across * (wall - inner)), y


def _nodule(lesion: Lesion, p: Patient, lung: _Lung, air: np.ndarray) -> np.ndarray:
    """A solid ball."""
    x, y = lung.place(lesion)
    square = (((lung.x - x) / lesion.aspect) ** 2 + (lung.y - y) ** 2) / lesion.size**2
    return 2 * lesion.size * np.sqrt(np.maximum(1 - square, 0)) * np.minimum(air, 1)


def _consolidation(lesion: Lesion, p: Patient, lung: _Lung, air: np.ndarray) -> np.ndarray:
    """A patchy cloud of filled air spaces; larger airways stay open in it (air bronchograms)."""
    x, y = lung.place(lesion)
    square = (((lung.x - x) / lesion.aspect) ** 2 + (lung.y - y) ** 2) / lesion.size**2
    shape = _step((1.5 - square + 0.5 * lung.sample(p.cloud)) / 1.6)
    patches = 0.85 + 0.2 * lung.sample(p.grain.T) - 0.5 * lung.sample(p.vessels)
    filled = lesion.strength * shape * np.clip(patches, 0.1, 1.1) * (lung.x * lesion.side > 0)
    return (1 - LUNG_DENSITY) * air * filled


def _effusion(lesion: Lesion, p: Patient, lung: _Lung, air: np.ndarray) -> np.ndarray:
    """Fluid in the costophrenic angle; its surface climbs towards the chest wall (meniscus)."""
    rise = 1.0 * lesion.size * lesion.aspect * (0.45 - np.clip(lung.across, 0, 1.1) ** 3)
    filled = _step((lung.y - (lung.base - lesion.size - 0.8 + rise)) / 1.3) * (lung.x * lesion.side > 0)
    return 0.93 * (1 - LUNG_DENSITY) * air * filled


_OPACITIES = {"nodule": _nodule, "consolidation": _consolidation, "effusion": _effusion}


def _pneumothorax(lesion: Lesion, lung: _Lung) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the lung has left the chest wall (0 to 1), the thin line of its surface, and that side of the chest."""
    gap = lesion.size * np.maximum(1.15 - lesion.aspect * lung.down, 0)
    beside = (lung.across - 1 + gap) * (lung.wall - lung.inner)
    above = (0.45 * lesion.size - lung.down) * (lung.base - lung.apex)
    edge = 0.5 * (beside + above + np.sqrt((beside - above) ** 2 + 3.0))  # a rounded maximum, cm beyond the surface
    own = (lung.x * lesion.side > 0) & (lung.air > 0)
    return _step(edge / 0.5 + 0.5) * own, np.exp(-((edge / 0.22) ** 2)) * own, own


def _heart(p: Patient, pose: Pose, x: np.ndarray, y: np.ndarray, enlarged: float) -> tuple[np.ndarray, np.ndarray]:
    """Depth in cm of the heart and the great vessels along each ray, and the heart's silhouette."""
    magnified = 1.15 if pose.view == "AP" else 1.0  # it lies farther from the detector
    half_width = magnified * (p.heart_ratio + 0.13 * enlarged) * p.half_width
    short = magnified * p.heart_height * (1 + 0.22 * enlarged)
    c, s = float(np.cos(p.heart_tilt)), float(np.sin(p.heart_tilt))
    long = max(half_width**2 - (short * s) ** 2, 0.6 * half_width**2) ** 0.5 / c  # the silhouette is `half_width` wide
    dx, dy = x - (0.34 * half_width + p.heart_shift + pose.twist), y - (p.base - 6.6 + 0.7 * pose.breath)
    along = (c * dx + s * dy) / long
    over = (c * dy - s * dx) / (short * (1 - 0.2 * np.clip(along, -1, 1)))  # narrower towards the apex
    inside = 1 - along * along - over * over
    depth = 2.3 * short * np.sqrt(np.maximum(inside, 0))
    # Aortic knob, pulmonary trunk, superior vena cava: (centre, how far it follows a twist, half axes, depth).
    for x0, y0, follows, a, b, deep in (
        (2.2, -6.0, 0.6, 1.2 + 0.7 * p.aortic_knob, 1.9, 4.0),
        (2.3, -1.5, 0.8, 2.5, 2.8, 4.0),
        (-1.8, -4.0, 0.6, 1.5, 5.0, 3.0),
    ):
        blob = 1 - ((x - x0 - follows * pose.twist) / a) ** 2 - ((y - y0) / b) ** 2
        np.maximum(depth, deep * np.sqrt(np.maximum(blob, 0)), out=depth)
    return depth, inside > 0


def _other_air(p: Patient, pose: Pose, lung: _Lung) -> np.ndarray:
    """Trachea and gastric bubble, cm."""
    trachea = 1.5 * np.sqrt(np.maximum(1 - ((lung.x - 0.4 * pose.twist) / 0.95) ** 2, 0)) * _step((-3.0 - lung.y) / 2.0)
    bubble = 1 - ((lung.x - 6.0) / 3.2) ** 2 - ((lung.y - lung.floor - 2.4) / 1.6) ** 2
    return trachea + p.gastric_bubble * np.sqrt(np.maximum(bubble, 0))


def _body(p: Patient, x: np.ndarray, y: np.ndarray, base: float) -> np.ndarray:
    """Thickness in cm of the body before its air is taken away: trunk, shoulders, neck, breasts and arms."""
    outline = p.half_width + p.margin + 0.006 * np.maximum(y - 5, 0) ** 2 + 9.0 * _step((-3.0 - y) / 8.0)
    share = (x / outline) ** 2
    trunk = (
        (p.depth + 3.0 + 1.1 * p.margin)
        * np.sqrt(np.maximum(1 - share * share, 0))
        * (1 - 0.35 * _step((-8.0 - y) / 6.0))
    )
    away = np.abs(x)
    top = -15.2 + 0.16 * np.maximum(away - 5.5, 0) - 9.0 * _step((6.5 - away) / 2.5)
    trunk *= np.sqrt(_step((y - top) / 1.5))
    thick, wide, fold = p.breast
    breast = 1 - ((away - 7.5) / wide) ** 2 - ((y - fold + 5.0) / 5.0) ** 2
    trunk += thick * np.sqrt(np.maximum(breast, 0)) + 1.5 * _step((y - base + 2) / 8.0) * (trunk > 0)
    arm = 7.5 * np.sqrt(np.maximum(1 - ((away - 21.0 - 0.22 * (y + 6)) / 4.2) ** 2, 0)) * _step((y + 11) / 4)
    return np.maximum(trunk, arm)


def _bones(p: Patient, pose: Pose, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Bone in cm along each ray: ribs as tilted hoops of hollow rods, spine, collar bones and shoulder blades."""
    bent = x - p.curve[0] * np.sin(y / 7.0 + p.curve[1])
    away = np.abs(bent)
    hang = y - 0.16 * (away - 7)
    back = _step((away - 1.7) / 0.8)
    front = 0.85 * _step((away - 5.0 - 0.15 * (y + 8)) / 2.0)  # the cartilage near the breastbone does not show
    bone = np.zeros_like(x)
    middle_column = y[:, y.shape[1] // 2]
    for rib in range(11):
        drop = p.rib_drop * (0.35 + 0.065 * rib)
        middle = p.apex + 0.2 + rib * p.rib_pitch + 0.5 * drop
        rows = slice(*np.searchsorted(middle_column, [middle - drop / 2 - 5, middle + drop / 2 + 5]))
        up = min(max((p.base - middle) / (p.base - p.apex), 0.0), 0.99)
        a, b = p.half_width * (1 - up * up * (0.5 + 0.5 * up * up)) ** 0.5 + 0.6, 0.5 * drop
        height = hang[rows] - middle
        u2, w2 = (away[rows] / a) ** 2, (height / b) ** 2
        gap = (u2 + w2 - 1) ** 2 / (4 * (u2 / a**2 + w2 / b**2) + 1e-6)  # squared distance to the hoop, first order
        gap *= 1 / p.rib_radius**2
        rod = np.sqrt(np.maximum(1 - gap, 0)) - 0.45 * np.sqrt(np.maximum(1 - 1.9 * gap, 0))
        bone[rows] += 2.4 * p.rib_radius * rod * np.where(height > 0, front[rows], back[rows])
    end_plates = np.cos((np.pi / 2.3) * y + p.curve[1]) ** 2
    bone += 1.5 * (1 + 0.35 * end_plates**4) * np.sqrt(np.maximum(1 - (bent + 0.5 * pose.twist) ** 2 / 3.6, 0))
    out = np.abs(x - 0.5 * pose.twist)
    rise = p.apex + 3.4 - 0.2 * np.maximum(out - 2, 0) + 0.6 * np.sin(0.5 * out) - (1.2 if pose.view == "AP" else 0.0)
    bone += (
        1.8 * np.sqrt(np.maximum(1 - ((y - rise) / 0.75) ** 2, 0)) * _step((out - 1.6) / 0.8) * _step((16 - out) / 2)
    )
    medial = out - (p.half_width + 0.4 - pose.scapula - 0.32 * np.clip(y + 6, -5, 9))
    extent = _step((y + 11.0) / 2) * _step((2.5 - y) / 2)
    bone += (
        0.35 * _step(medial / 0.6) * _step((6 - medial) / 3) + 0.4 * np.exp(-(((medial - 0.4) / 0.5) ** 2))
    ) * extent
    return bone


def _step(t: np.ndarray) -> np.ndarray:
    """0 below 0, 1 above 1 and smooth in between."""
    t = np.clip(t, 0, 1)
    return t * t * (3 - 2 * t)


def _box(mark: np.ndarray) -> Box | None:
    rows, columns = np.flatnonzero(mark.any(axis=1)), np.flatnonzero(mark.any(axis=0))
    if rows.size == 0:
        return None
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1
