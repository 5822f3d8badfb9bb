# SPDX-License-Identifier: Apache-2.0
"""A method in one file: the page's own file and fragment, saved as it says, train a bundle and leave an encoder."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from monai.bundle import ConfigWorkflow

from monai_ssl.data import make_example_radiographs
from monai_ssl.networks import build_encoder
from monai_ssl.weights import load_encoder, read_manifest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/how-to/add_a_method.md").read_text(encoding="utf-8")
BUNDLE = ROOT / "bundles/radiograph_c2l_pretraining"


def first_block(language: str) -> str:
    return re.search(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL).group(1)


@pytest.fixture
def saved(tmp_path, monkeypatch) -> Path:
    """The page's two files, in a folder that Python finds."""
    (tmp_path / "exemplar.py").write_text(first_block("python"), encoding="utf-8")
    (tmp_path / "exemplar.yaml").write_text(first_block("yaml"), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("exemplar", None)


def test_the_file_is_as_short_as_the_page_says():
    assert len(first_block("python").splitlines()) < 60


def test_a_bundle_trains_the_method_of_the_page(saved):
    folder, output, thin = saved / "images", saved / "run", {"widen_factor": 0.125}
    make_example_radiographs(folder, num_patients=12, size=64)
    run = ConfigWorkflow(
        config_file=[str(BUNDLE / "configs/train.yaml"), str(saved / "exemplar.yaml")],
        logging_file=False,
        workflow_type="train",
        bundle_root=str(BUNDLE),
        dataset_dir=str(folder),
        output_dir=str(output),
        network_args=thin,
        max_epochs=2,
        batch_size=4,
        stored_side=64,
        image_size=32,
        precision="fp32",
        channels_last=False,
    )
    run.initialize()
    run.run()
    run.finalize()
    method = run.parser.get_parsed_content("method")
    store = run.parser.get_parsed_content("store")
    assert type(method).__module__ == "exemplar" and method.head.out_features == len(store)
    manifest = read_manifest(output / "encoder.safetensors")
    assert manifest["method"] == "Exemplar" and manifest["images_seen"] > 0
    assert not load_encoder(build_encoder("resnet18", **thin), output / "encoder.safetensors").missing
    assert "recognised" in (output / "metrics.csv").read_text().splitlines()[0]
