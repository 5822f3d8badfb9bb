# SPDX-License-Identifier: Apache-2.0
"""The bundle source_selection_study: its made-up sets, one cell alone, the report, the paper's settings, features."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from bundle_runs import BundleRuns

from monai_ssl.transferability import make_example_sets

BUNDLE = BundleRuns("source_selection_study")
QUICK = {"max_epochs": 1, "source_epochs": 1, "batch_size": 16, "image_size": 32, "num_workers": 0, "resamples": 20}


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> Path:
    return make_example_sets(tmp_path_factory.mktemp("sets") / "sets", num_patients=12, target_patients=8, size=32)


@pytest.fixture
def settings(sets, tmp_path) -> dict:
    chosen = {"sources": ["stripes", "cells"], "targets": ["cells"], "num_folds": 2, "measure_images": 12}
    places = {"dataset_dir": str(sets), "output_dir": str(tmp_path / "out"), "cache_dir": str(sets.parent / "cache")}
    return QUICK | chosen | places


def test_from_one_cell_to_the_report_and_features(settings, sets):
    out = Path(settings["output_dir"])
    BUNDLE.run("train", settings | {"cell": ["stripes", "cells"]})
    assert [path.name for path in (out / "cells").glob("[!.]*")] == ["stripes__cells.json"]
    assert not (out / "report.md").exists()
    first = (out / "cells/stripes__cells.json").read_bytes()
    BUNDLE.run("train", settings | {"steps": ["report"]})
    assert "Not trained yet: random to cells" in (out / "report.md").read_text()
    BUNDLE.run("train", settings)
    report = json.loads((out / "report.json").read_text())
    assert len(report["rows"]) == 3 and not report["missing"] and (out / "heat_map.png").is_file()
    assert (out / "cells/stripes__cells.json").read_bytes() == first
    new = {"dataset_dir": str(sets / "cells"), "output_dir": str(out), "store::num_workers": 0}
    BUNDLE.run("inference", new | {"source": "stripes"})
    assert pq.read_table(out / "features.parquet").num_rows == 16
    assert "resume=True" in BUNDLE.message("train", settings | {"resume": False})
    assert "other settings (recipe)" in BUNDLE.message("train", settings | {"learning_rate": 0.1})


def test_mistakes_are_answered(settings):
    assert "did you mean" in BUNDLE.message("train", settings | {"sourcs": ["stripes"]})
    assert "there is no cell [dots,cells]" in BUNDLE.message("train", settings | {"cell": ["dots", "cells"]})
    assert "steps are some of cells, measures, report" in BUNDLE.message("train", settings | {"steps": ["repot"]})
