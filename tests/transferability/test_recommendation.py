# SPDX-License-Identifier: Apache-2.0
"""Recommending a source: a planted best one comes first, and the user reads how sure that is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from monai_ssl.__main__ import main
from monai_ssl.networks import build_encoder
from monai_ssl.transferability import recommend_sources
from monai_ssl.weights import save_encoder

TINY = {"init_features": 8, "growth_rate": 4, "block_config": [1, 1, 1, 1]}


def make_set(folder: Path, coarse: bool, seed: int, patients: int = 14) -> Path:
    """Grey noise, fine or coarse; the second class is brighter on the left."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    lines = ["file,patient_id,label"]
    for patient in range(patients):
        for image in range(2):
            noise = rng.normal(0, 40, (8, 8) if coarse else (32, 32))
            pixels = 110 + np.kron(noise, np.ones((4, 4))) if coarse else 110 + noise
            pixels[:, :16] += 60 * (patient % 2)
            name = f"{patient}_{image}.png"
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / name)
            lines.append(f"{name},P{patient},{('dark', 'bright')[patient % 2]}")
    (folder / "labels.csv").write_text("\n".join(lines))
    return folder


def make_encoder(path: Path, seed: int, blind: bool = False) -> Path:
    """Random weights; a blind one does not see how bright a place is."""
    torch.manual_seed(seed)
    encoder = build_encoder("densenet121", **TINY)
    with torch.no_grad():
        for _ in range(20):
            encoder(torch.randn(8, 1, 32, 32))
        if blind:  # the first filters add up to 0: a bright and a dark half look alike
            stem = encoder.net.get_submodule(encoder.stem_key.rpartition(".")[0]).weight
            stem -= stem.mean(dim=(2, 3), keepdim=True)
    save_encoder(encoder, path, {"method": "C2L", "patch_size": [32, 32]})
    return path


@pytest.fixture(scope="module")
def target(tmp_path_factory) -> Path:
    return make_set(tmp_path_factory.mktemp("target") / "target", coarse=True, seed=0)


def test_the_planted_data_set_comes_first(target, tmp_path):
    kin, other = make_set(tmp_path / "kin", True, 1), make_set(tmp_path / "other", False, 2)
    found = recommend_sources(target, [other, kin], tmp_path / "cache", resamples=10, image_size=32, num_workers=0)
    first, second = found.data_sets
    assert (first.name, first.rank, first.low, first.high, first.best) == ("kin", 1, 1, 1, 1)
    assert second.low == 2 and all(first.values[name] < second.values[name] for name in first.values)
    text = found.as_text()
    assert "kin comes first in all but few half-samples" in text and "random network" in text
    assert "predict poorly" in text.splitlines()[-1] and "r = -0.11, p = 0.61" in text


def test_the_planted_encoder_comes_first(target, tmp_path):
    blind = make_encoder(tmp_path / "blind.safetensors", 1, blind=True)
    sources = [blind, make_encoder(tmp_path / "sees.safetensors", 1)]
    found = recommend_sources(target, sources, tmp_path / "cache", resamples=10, num_workers=0)
    assert [one.name for one in found.encoders] == ["sees", "blind"] and found.encoders[0].best > 0.7
    assert not found.data_sets


def test_equal_encoders_are_not_told_apart(target, tmp_path):
    for name in ("a", "b"):
        make_encoder(tmp_path / name / "encoder.safetensors", 3)
    sources = [tmp_path / "a/encoder.safetensors", tmp_path / "b/encoder.safetensors"]
    found = recommend_sources(target, sources, tmp_path / "cache", resamples=6, num_workers=0)
    assert [one.name for one in found.encoders] == ["a", "b"]
    assert [one.best for one in found.encoders] == [0.5, 0.5]
    assert "a is not clearly ahead of b: the intervals overlap" in found.as_text()


def test_the_verb(target, tmp_path, capsys):
    make_encoder(tmp_path / "mine.safetensors", 1)
    make_set(tmp_path / "kin", True, 1)
    study = tmp_path / "study"
    study.mkdir()
    row = {"measure": "frechet", "self_pairs": False, "verdict": "did not predict the transfer (r = 0.10)"}
    (study / "report.json").write_text(json.dumps({"correlations": [row, row | {"self_pairs": True}]}))
    arguments = [
        "recommend",
        "--target",
        str(target),
        "--sources",
        str(tmp_path / "mine.safetensors"),
        str(tmp_path / "kin"),
    ]
    options = ["--resamples", "3", "--num_workers", "0", "--cache_dir", str(tmp_path / "cache")]
    assert main([*arguments, *options, "--study", str(study)]) == 0
    out = capsys.readouterr().out
    assert "Encoders" in out and "| mine |" in out and "Data sets" in out and "| kin |" in out
    assert out.count("In that study Fréchet did not predict the transfer (r = 0.10).") == 1
    for wrong, words in [
        ([*arguments[:-1], str(tmp_path / "none"), *options], "there is no such file or folder"),
        ([*arguments[:-1], *options], "at least two sources"),
        ([*arguments, str(tmp_path / "kin"), *options], "two sources are called 'kin'"),
        ([*arguments, *options, "--label_column", "lable"], "did you mean 'label'"),
        ([*arguments, *options, "--study", str(tmp_path)], "has no report yet"),
    ]:
        assert main(wrong) == 2
        assert words in capsys.readouterr().err


@pytest.mark.realdata
def test_real_sets(real_data, tmp_path):
    """Malaria cells are nearer to other blood cells than to natural images."""
    sets = real_data / "sets2d"
    found = recommend_sources(
        sets / "malaria_cells",
        [sets / "bccd_cells", sets / "caltech101"],
        tmp_path,
        max_images=100,
        image_size=48,
        resamples=5,
        num_workers=0,
    )
    assert [one.name for one in found.data_sets] == ["bccd_cells", "caltech101"]
