# SPDX-License-Identifier: Apache-2.0
"""Label efficiency of an encoder: what it gives at several shares of the labels, beside training from scratch.

Every cell is one run of a downstream bundle in a process of its own; finished cells are kept, so the same command goes
on where it stopped. All cells of a fraction and seed share the same labelled images.

    python -m benchmarks.label_efficiency --dataset_dir FOLDER --output_dir OUT --encoder_weights encoder.safetensors \
        --where "source=Kermany*" --label_column label
    python -m benchmarks.label_efficiency --bundle volume_segmentation --dataset_dir FOLDER --output_dir OUT \
        --encoder_weights encoder.safetensors --fractions 5 15 1.0 --modality MR
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from monai_ssl.evaluation import collect_reports, report_table

BUNDLES = Path(__file__).parents[1] / "bundles"
# The frozen encoder has a baseline of its own where only a linear layer is fitted: the untrained network's features.
FROZEN = {"radiograph_classification": "linear", "volume_classification": "linear", "volume_segmentation": "frozen"}


def cells(arguments: argparse.Namespace) -> list[tuple[str, list[str]]]:
    """Name and overrides of each run."""
    frozen = FROZEN[arguments.bundle]
    starts = {"scratch": ["--mode", "scratch"]}
    if frozen == "linear":
        starts["linear-untrained"] = ["--mode", "linear"]
    if arguments.encoder_weights:
        weights = ["--encoder_weights", str(Path(arguments.encoder_weights).resolve())]
        starts |= {frozen: ["--mode", frozen, *weights], "finetune": ["--mode", "finetune", *weights]}
        if arguments.backbone_factor is not None:
            starts["finetune"] += ["--backbone_factor", f"{arguments.backbone_factor}"]
    chosen = arguments.starts or list(starts)
    return [
        (
            f"{name}/fraction-{fraction:g}/seed-{seed}",
            [*starts[name], "--label_fraction", f"{fraction}", "--seed", f"{seed}"],
        )
        for seed, fraction, name in itertools.product(range(arguments.seeds), arguments.fractions, chosen)
    ]


def run_cell(arguments: argparse.Namespace, name: str, overrides: list[str], further: list[str]) -> int:
    """Run one cell, unless its report is there; its output goes to ``log.txt`` in its folder."""
    folder, bundle = Path(arguments.output_dir).resolve() / name, BUNDLES / arguments.bundle
    if (folder / "test_report.json").is_file():
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "monai.bundle", "run", "--bundle_root", str(bundle)]
    command += ["--config_file", str(bundle / "configs/train.yaml"), "--output_dir", str(folder)]
    command += ["--cache_dir", str(Path(arguments.output_dir).resolve() / "data")]
    command += ["--dataset_dir", str(Path(arguments.dataset_dir).resolve()), *overrides, *further]
    for key in ("where", "label_column", "image_size"):
        if getattr(arguments, key) is not None:
            command += [f"--{key}", str(getattr(arguments, key))]
    with open(folder / "log.txt", "w") as log:
        status = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT).returncode
    print(f"{name}: {'done' if status == 0 else f'FAILED ({status}), see {folder}/log.txt'}", flush=True)
    return status


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", default="radiograph_classification", choices=sorted(FROZEN))
    parser.add_argument("--dataset_dir", required=True)
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--encoder_weights")
    parser.add_argument("--starts", nargs="+", help="of scratch, linear-untrained, linear or frozen, finetune; all")
    parser.add_argument("--where")
    parser.add_argument("--label_column", help="of a classification; label for radiographs")
    parser.add_argument("--image_size", help="of a classification; 96 for radiographs")
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.01, 0.1, 1.0], help="shares, or numbers")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--backbone_factor", type=float, help="encoder's learning rate in fine-tuning; the bundle's")
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time; set OMP_NUM_THREADS to match")
    arguments, further = parser.parse_known_args()  # anything else is an override of the bundle
    if arguments.bundle == "radiograph_classification":
        arguments.label_column = arguments.label_column or "label"
        arguments.image_size = arguments.image_size or "96"
    with ThreadPoolExecutor(arguments.jobs) as pool:
        statuses = list(pool.map(lambda cell: run_cell(arguments, *cell, further), cells(arguments)))
    print(report_table(collect_reports(arguments.output_dir)))
    return max(statuses)


if __name__ == "__main__":
    sys.exit(main())
