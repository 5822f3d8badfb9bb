# SPDX-License-Identifier: Apache-2.0
"""What a cell measures on the test images, and the file that keeps it."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from monai_ssl.evaluation.run_facts import bounded_value
from monai_ssl.metrics import (
    area_under_roc,
    calibration_per_class,
    delong_interval,
    expected_calibration_error,
    roc_per_class,
)
from monai_ssl.weights import atomic_file

__all__ = ["Predictions", "classification_result"]

FILE = "predictions.npz"


@dataclass(frozen=True)
class Predictions:
    """Probabilities of the test images: what every later comparison is made from. No path and no patient is kept.

    Attributes:
        rows: ``(N,)`` rows of the store.
        truth: ``(N,)`` classes or ``(N, K)`` findings; -1 is unknown.
        probabilities: ``(N, K)``.
        patients: ``(N,)`` numbers of the patients, counted from 0 in the order in which they come.
    """

    rows: np.ndarray
    truth: np.ndarray
    probabilities: np.ndarray
    patients: np.ndarray

    def save(self, folder: Path) -> None:
        """Write ``predictions.npz``."""
        content = io.BytesIO()
        np.savez_compressed(content, **vars(self))
        with atomic_file(folder / FILE) as file:
            file.write(content.getvalue())

    @classmethod
    def load(cls, folder: Path) -> Predictions:
        """Read it.

        Raises:
            FileNotFoundError: it is not there.
            ValueError: it is damaged.
        """
        try:
            with np.load(folder / FILE, allow_pickle=False) as content:
                return cls(**{name: content[name] for name in ("rows", "truth", "probabilities", "patients")})
        except FileNotFoundError:
            raise
        except Exception as error:
            raise ValueError(f"{folder / FILE} is damaged; delete {folder} and run the study again") from error


def numbered(groups: np.ndarray) -> np.ndarray:
    """Return numbers in place of names, in the order in which they come: what hashes a patient stays behind.

    >>> numbered(np.array(["b", "a", "b"])).tolist()
    [0, 1, 0]
    """
    _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]


def classification_result(
    predictions: Predictions, class_names: list[str], *, resamples: int, confidence: float, seed: int = 0
) -> dict[str, Any]:
    """Return areas under the ROC curve with intervals by patient, and calibration, as JSON values.

    Args:
        predictions: of the test images.
        class_names: K names.
        resamples: of the bootstrap of the area over all classes; each class has DeLong's interval.
        confidence: of the intervals.
        seed: of the bootstrap.

    Raises:
        ValueError: a class has no positive or no negative test image (it is named).
    """
    y, p, patients = predictions.truth, predictions.probabilities, predictions.patients
    findings = y.ndim == 2

    def overall(labels: np.ndarray, scores: np.ndarray) -> float:
        return area_under_roc(labels, scores, class_names=class_names)

    result: dict[str, Any] = {"measure": "auc", "num_scored": len(y), "num_patients": len(np.unique(patients))}
    result |= bounded_value("score", overall, y, p, groups=patients, n=resamples, confidence=confidence, seed=seed)
    for binning in ("width", "mass"):
        result[f"ece_{binning}"] = expected_calibration_error(y, p, binning=binning)
    errors = calibration_per_class(y, p)
    result["classes"] = {}
    binary = not findings and p.shape[1] == 2
    areas = roc_per_class(y, p)
    for k in [1] if binary else range(p.shape[1]):
        truth = y[:, k] if findings else np.where(y < 0, -1, y == k)
        result["classes"][str(class_names[k])] = {
            "positives": int((truth == 1).sum()),
            "negatives": int((truth == 0).sum()),
            **_delong(truth, p[:, k], patients, confidence),
            "auc": float(areas[0 if binary else k]),
            "calibration_error": float(errors[k]),
        }
    return result


def _delong(truth: np.ndarray, scores: np.ndarray, patients: np.ndarray, confidence: float) -> dict[str, float | None]:
    try:
        found = delong_interval(truth, scores, groups=patients, confidence=confidence)
    except ValueError:  # fewer than two patients with or without it
        return {"auc_low": None, "auc_high": None}
    return {"auc_low": found.low, "auc_high": found.high}


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file of a study.

    Raises:
        ValueError: it is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged; delete it and run the study again") from error


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, whole or not at all."""
    with atomic_file(path) as file:
        file.write(json.dumps(content, indent=1).encode())
