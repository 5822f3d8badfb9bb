# SPDX-License-Identifier: Apache-2.0
"""Seconds that a study's linear probes take once the features are there: 10 label subsets x 5 seeds on 2,000 images.

Everything that a cell does is in the time: the subset, the fit with its cross-validation, the score with its interval,
the files. Images are made up; the encoder is an untrained ResNet-18 with 512 features.

    python -m benchmarks.probe_cells --threads 2
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image

from monai_ssl.evaluation.study import read_study, run_cell, study_cells
from monai_ssl.networks import build_encoder
from monai_ssl.weights import save_encoder

FRACTIONS = [0.02, 0.03, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0]
BUNDLE = Path(__file__).parents[1] / "bundles/radiograph_classification"


def make_images(folder: Path, count: int, side: int = 32) -> None:
    """Noise with a blob whose place tells the class, not always; two images a patient."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    with open(folder / "labels.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "patient_id", "split", "label"])
        for number in range(count):
            patient = number // 2
            label = patient % 3
            pixels = rng.normal(100, 30, (side, side))
            shown = label if rng.random() < 0.8 else int(rng.integers(3))
            pixels[8:24, 4 + 8 * shown : 12 + 8 * shown] += 25
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / f"{number:05d}.png")
            split = ("train",) * 7 + ("val",) + ("test",) * 2
            writer.writerow([f"{number:05d}.png", f"P{patient}", split[(patient // 3) % 10], "abc"[label]])


def measure(folder: Path, images: int, fractions: list[float], seeds: int) -> tuple[float, float, int]:
    """Seconds of all cells once the features are there, those of the processor, and the number of cells."""
    make_images(folder / "images", images)
    torch.manual_seed(0)
    weights = folder / "encoder.safetensors"
    save_encoder(build_encoder("resnet18"), weights, {"method": "none", "patch_size": [32, 32]})
    task = {"bundle": str(BUNDLE), "dataset_dir": str(folder / "images"), "label_column": "label"}
    content = {
        "output_dir": str(folder / "study"),
        "encoders": {"resnet18": str(weights)},
        "tasks": {"blob": {**task, "store::progress": False, "store::drop_duplicates": False}},
        "modes": ["linear"],
        "fractions": fractions,
        "seeds": seeds,
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(content))
    study = read_study(folder / "study.yaml")
    cells = [cell for cell in study_cells(study) if cell.encoder == "resnet18"]
    stores: dict = {}
    run_cell(study, cells[0], stores)  # prepares the images and extracts the features
    start, busy = time.perf_counter(), time.process_time()
    (cells[0].folder(study) / "cell.json").unlink()
    for cell in cells:
        run_cell(study, cell, stores)
    return time.perf_counter() - start, time.process_time() - busy, len(cells)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--fractions", type=float, nargs="+", default=FRACTIONS)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        wall, busy, count = measure(Path(folder), options.images, options.fractions, options.seeds)
    print(f"{count} cells in {wall:.1f} s, of which the processor worked {busy:.1f} s")


if __name__ == "__main__":
    main()
