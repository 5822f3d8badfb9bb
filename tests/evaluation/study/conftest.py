# SPDX-License-Identifier: Apache-2.0
"""The toy radiographs, and one whole study of them, computed once."""

from __future__ import annotations

from pathlib import Path

import pytest
from study_files import toy_study
from toy_radiographs import make_toy_radiographs

from monai_ssl.evaluation.study import Study, run_study, write_study_report


@pytest.fixture(scope="session")
def toy_images(tmp_path_factory) -> Path:
    return make_toy_radiographs(tmp_path_factory.mktemp("toy_study") / "images")


@pytest.fixture(scope="session")
def whole_study(tmp_path_factory, toy_images, encoder_file) -> Study:
    """Both starts, every mode, and two seeds, with everything that a report can show."""
    study = toy_study(
        tmp_path_factory.mktemp("whole"),
        toy_images,
        encoder_file,
        modes=["linear", "knn", "finetune"],
        fractions=[0.5],
        seeds=2,
        robustness=["rotation", "noise"],
        subgroups=["site", "sex"],
        min_patients=4,
        pictures=True,
    )
    counts = run_study(study)
    assert counts == {"done": 12}
    write_study_report(study)
    return study
