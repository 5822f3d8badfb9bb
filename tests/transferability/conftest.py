# SPDX-License-Identifier: Apache-2.0
"""The example sets, tiny, and one small finished study on them, shared by the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_recipe import RECIPE

from monai_ssl.transferability import SourceStudy, make_example_sets, run_study


@pytest.fixture(scope="session")
def example_sets(tmp_path_factory) -> Path:
    return make_example_sets(tmp_path_factory.mktemp("sets") / "sets", num_patients=18, target_patients=12, size=32)


@pytest.fixture(scope="session")
def set_cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("set_cache")


@pytest.fixture(scope="session")
def small_study(example_sets, set_cache):
    """Make a study in a folder; what is not said is small."""

    def make(output_dir: Path, **settings) -> SourceStudy:
        defaults = {
            "sources": ["stripes", "fibres"],
            "targets": ["fibres", "cells"],
            "dataset_dir": example_sets,
            "cache_dir": set_cache,
            "recipe": RECIPE,
            "num_folds": 2,
            "measure_images": 20,
            "num_workers": 0,
        }
        return SourceStudy(output_dir, **defaults | settings)

    return make


@pytest.fixture(scope="session")
def finished_study(small_study, tmp_path_factory) -> SourceStudy:
    study = small_study(tmp_path_factory.mktemp("study"))
    run_study(study, resamples=20)
    return study
