# SPDX-License-Identifier: Apache-2.0
"""The verbs of the command line: ``python -m monai_ssl index | prepare | show-views | describe | evaluate | ...``."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Sequence
from typing import Any

import monai_ssl
from monai_ssl.command_line import run_verbs

__all__ = ["main"]

INTRODUCTION = f"""monai_ssl {monai_ssl.__version__}: self-supervised learning on medical images with MONAI.

The verbs below look at images, machines and results. Training is a bundle:
python -m monai.bundle run --bundle_root bundles/NAME --config_file bundles/NAME/configs/train.yaml"""


def index(
    folder: str,
    *,
    output: str = "index.parquet",
    labels_file: str | None = None,
    num_workers: int | None = None,
    spatial_dims: int = 2,
) -> None:
    """Scan a folder of images or volumes into a table: what it holds, and what was refused and why.

    A second scan only reads what changed. Patients appear as salted hashes; keep the salt beside the table private.

    folder        with all its subfolders: DICOM (any name), PNG, JPEG, TIFF, BMP, NIfTI; of volumes NRRD and MetaImage
    output        Parquet file to write
    labels_file   CSV or Parquet with a column 'file', to join; of volumes also with 'label_map', or a Decathlon's
                  dataset.json; default: the one at the top of the folder
    num_workers   processes; default: one for each usable CPU
    spatial_dims  2: every file is an image; 3: DICOM series and files of three axes are volumes
    """
    from monai_ssl.data import build_index, build_volume_index, describe_index

    build = _choose(spatial_dims, build_index, build_volume_index)
    table = build(folder, output, labels=labels_file, num_workers=num_workers)
    print(f"{folder}: {describe_index(table)}\nwritten to {output}")
    if spatial_dims == 2 and _mostly_volumes(table):
        print("most of these are slices or volumes of CT, MR or PET: --spatial_dims 3 puts them together as volumes")


def prepare(
    folder: str,
    store: str,
    *,
    labels_file: str | None = None,
    keep_duplicates: bool = False,
    num_workers: int | None = None,
    spatial_dims: int = 2,
    max_side: int | None = None,
    crop_borders: bool = False,
    modality: str | None = None,
    policy: str | None = None,
    orientation: str | None = None,
    spacing_mm: str | None = None,
    crop_foreground: bool = False,
) -> None:
    """Decode the images or volumes of a folder once into a store, which training reads fast.

    Indexes the folder, sets duplicates aside, and splits by patient unless the labels say how. Safe to interrupt and
    to repeat: what is done is kept.

    folder           of images or volumes
    store            folder for the index and the store; it is made
    labels_file      CSV or Parquet with a column 'file', to join; of volumes also with 'label_map', or a Decathlon's
                     dataset.json; default: the one at the top of the folder
    keep_duplicates  keep images that repeat another one
    num_workers      processes; default: one for each usable CPU
    spatial_dims     2: every file is an image; 3: DICOM series and files of three axes are volumes
    max_side         of images: longest side in pixels, smaller ones stay as they are; default: 512
    crop_borders     of images: cut uniform borders off
    modality         of volumes that do not say theirs, such as NIfTI: CT or MR
    policy           of volumes, what becomes black and white: mr, ct, ct_abdomen, ...; default: auto, by modality
    orientation      of volumes, where the axes run to; default: SPL, slices from the feet up
    spacing_mm       of volumes, distance of the voxels along slices, rows and columns: 3,1,1; default: their own
    crop_foreground  of volumes: keep the box of the body
    """
    flat = _given(max_side=max_side, crop_borders=crop_borders)
    deep = _given(modality=modality, policy=policy, orientation=orientation, crop_foreground=crop_foreground)
    deep |= {} if spacing_mm is None else {"spacing_mm": _numbers("spacing_mm", spacing_mm)}
    if wrong := _choose(spatial_dims, deep, flat):
        raise ValueError(f"--{next(iter(wrong))} is for --spatial_dims {_choose(spatial_dims, 3, 2)}")
    from monai_ssl.data import open_radiographs, open_volume_store

    prepared = _choose(spatial_dims, open_radiographs, open_volume_store)(
        folder,
        store,
        labels_file=labels_file,
        drop_duplicates=not keep_duplicates,
        num_workers=num_workers,
        **_choose(spatial_dims, flat, deep),
    )
    print(prepared.describe())


def show_views(
    folder_or_file: str,
    *,
    preset: str = "radiograph",
    size: str | None = None,
    output: str = "views.png",
    num_images: int | None = None,
    num_views: int = 5,
    seed: int = 0,
    modality: str | None = None,
) -> None:
    """Draw a sheet with some images or volumes and the views that training makes of them.

    folder_or_file  an image or a volume, a folder of them, a DICOM folder, or a prepared store
    preset          of images: radiograph, c2l or moco_v2; of volumes: volume, masked, whole or segmentation
    size            side of the views in pixels; default: 224, of volumes 96, or three sides: 32,96,96
    output          PNG file to write
    num_images      images to take of a folder; default: 4, of volumes 2
    num_views       views of each image
    seed            of the views
    modality        of volumes that do not say theirs, such as NIfTI: CT or MR
    """
    from monai_ssl.show_views import VOLUME_PRESETS, save_view_sheet, save_volume_sheet, some_images, some_volumes

    if preset in VOLUME_PRESETS:
        images = some_volumes(folder_or_file, 2 if num_images is None else num_images, modality)
        save_volume_sheet(images, output, preset, _sides(size or "96", 3), num_views, seed)
    elif modality is not None:
        raise ValueError(f"--modality is for volumes; their presets are {', '.join(VOLUME_PRESETS)}")
    else:
        images = some_images(folder_or_file, 4 if num_images is None else num_images)
        save_view_sheet(images, output, preset, *_sides(size or "224", 1), num_views, seed)
    what = "rows" if preset in VOLUME_PRESETS else "row"
    for number, image in enumerate(images, 1):
        print(f"{what} {number if what == 'row' else f'{3 * number - 2} to {3 * number}'}: {image.name}")
    print(f"written to {output}")


def _sides(size: str, most: int) -> tuple[int, ...]:
    """Sides of a view, of an image its only one."""
    words = size.split(",")
    if len(words) not in (1, most) or not all(word.strip().isdecimal() for word in words):
        raise ValueError(f"--size is {size!r}; use a whole number" + (", or three such as 32,96,96" * (most == 3)))
    return tuple(int(word) for word in words) * (most // len(words))


def describe(path: str) -> None:
    """Say what a file or folder is: weights, an index, a store, an image or a volume; without identifiers.

    path  encoder.safetensors or another checkpoint, index.parquet, a store's folder, an image, a volume, a DICOM folder
    """
    from monai_ssl.describe import describe_path

    print(describe_path(path))


def doctor(
    *,
    folder: str | None = None,
    device: str = "auto",
    architecture: str = "resnet18",
    size: int = 224,
    batch_size: int = 8,
) -> None:
    """Look at packages and machine, time reading, views and a training step, and say what to change.

    folder        of images or a store, to measure its disk and how fast it is read; default: made-up images
    device        auto, cpu, cuda, cuda:1
    architecture  resnet18, resnet34, resnet50, densenet121, ...
    size          side of the views in pixels
    batch_size    images in the timed step
    """
    from monai_ssl.doctor import examine

    print(examine(folder, device, architecture, size, batch_size))


def export_nnunet(encoder: str, output: str, *, in_channels: int | None = None) -> None:
    """Write a dynunet's weights as a checkpoint that nnU-Net fine-tunes.

    encoder      encoder.safetensors of a dynunet without residual blocks
    output       folder for checkpoint_final.pth and adaptation_plan.json, or a .pth file
    in_channels  of the data set it is for; default: as in the file
    """
    from monai_ssl.weights import export_nnunet as export

    checkpoint = export(encoder, output, in_channels=in_channels)
    print(
        f"written to {checkpoint}\n\nTo fine-tune the encoder, for the nnU-Net data set ID:\n"
        f"    nnUNetv2_preprocess_like_nnssl -d ID -n monai_ssl -pc {checkpoint} -am like_pretrained\n"
        "    nnUNetv2_train_pretrained ID 3d_fullres FOLD -p ptPlans__monai_ssl____... -tr PretrainedTrainer"
    )


def evaluate(
    config: str,
    *,
    cell: str | None = None,
    report_only: bool = False,
    slurm: str | None = None,
    dataset_dir: str | None = None,
    output_dir: str | None = None,
) -> None:
    """Find out whether an encoder was worth it: probes and fine-tuning over label counts and seeds, and a report.

    Compares encoders with the same network from random weights. What is computed is kept: the same command goes on
    where it stopped, and several processes may share the work.

    config       YAML file: encoders, tasks, modes, fractions, seeds, ...; see docs/how-to/evaluate.md
    cell         compute this cell alone, by its number or its name
    report_only  write the report of the cells that are done, and compute none
    slurm        write a script for a SLURM job array to this file, and compute nothing
    dataset_dir  of a study with one task: folder of its images, instead of the file's
    output_dir   folder for cells and report, instead of the file's
    """
    from monai_ssl.evaluation.study import (
        find_cell,
        read_study,
        run_cell,
        run_study,
        study_cells,
        write_slurm_array,
        write_study_report,
    )

    if sum((cell is not None, report_only, slurm is not None)) > 1:
        raise ValueError("--cell, --report_only and --slurm exclude each other")
    study = read_study(config, dataset_dir=dataset_dir, output_dir=output_dir)
    if slurm is not None:
        given = _given(dataset_dir=dataset_dir, output_dir=output_dir)
        words = [sys.executable, "-m", "monai_ssl", "evaluate", config, *(f"--{k}={v}" for k, v in given.items())]
        path = write_slurm_array(study, shlex.join(words), slurm)
        print(f"{len(study_cells(study))} cells; submit them with: sbatch {path}")
        return
    if cell is not None:
        chosen = find_cell(study, cell)
        print(f"{chosen.name}: {run_cell(study, chosen)}")
        return
    counts = {} if report_only else run_study(study)
    print(f"report: {write_study_report(study)}")
    if counts.get("failed"):
        raise RuntimeError(f"{counts['failed']} of {len(study_cells(study))} cells failed; see above, or the report")


def label(
    *,
    studies: str | None = None,
    encoder: str | None = None,
    bundle: str | None = None,
    port: int = 8000,
    host: str = "127.0.0.1",
    num_classes: int = 2,
    modality: str | None = None,
    dicom: str | None = None,
    spatial_dims: int = 2,
    install: bool = False,
) -> None:
    """Serve a folder of images to annotators by MONAI Label: the most useful image first, a better model each round.

    Everything that it makes lies in the folder's hidden .monai_ssl. Whoever reaches the port sees the images: there is
    no password unless MONAI Label's own authentication is set up.

    studies       folder of NIfTI, NRRD, PNG, JPEG or TIFF files
    encoder       encoder.safetensors of a pretraining on such images
    bundle        folders of bundles, by commas: for pretraining, classification and segmentation, one of each
    port          to listen at
    host          address to listen at; the default is this machine alone
    num_classes   classes that are expected
    modality      of volumes that do not say theirs, such as NIfTI: CT or MR
    dicom         folder of DICOM to convert into the studies first; their names are not taken over
    spatial_dims  of the DICOM: 2 for radiographs, 3 for series
    install       install MONAI Label and what it needs, and stop
    """
    import subprocess

    from monai_ssl.label.annotation.dicom import convert_dicom
    from monai_ssl.label.launcher import install_server, server_command

    if install:
        install_server()
        return
    if studies is None:
        raise ValueError("label needs --studies FOLDER")
    if dicom is not None:
        counts = convert_dicom(dicom, studies, spatial_dims)
        print(f"{dicom}: " + ", ".join(f"{count} {what}" for what, count in counts.items()), flush=True)
    bundles = [name for name in (bundle or "").split(",") if name]
    command, environment = server_command(
        studies, bundles=bundles, encoder=encoder, port=port, host=host, num_classes=num_classes, modality=modality
    )
    print(f"serving {studies} at http://{host}:{port}; stop with Ctrl-C", flush=True)
    if code := subprocess.run(command, env=environment).returncode:
        raise RuntimeError(f"the server ended with code {code}; its words are above")


def label_study(
    config: str, *, output_dir: str | None = None, dataset_dir: str | None = None, encoder: str | None = None
) -> None:
    """Simulate annotation: how good a model gets with so many labels, by the strategy that chose the images.

    Safe to interrupt and to repeat: finished rounds are kept. Several processes may share the work.

    config       YAML file: task (a bundle and its settings), encoder, strategies, budgets, seeds
    output_dir   folder for rounds and report; default: the file's
    dataset_dir  folder of images; default: the file's
    encoder      encoder.safetensors; default: the file's
    """
    from monai_ssl.label.study import read_label_study, run_label_study, write_label_report

    study = read_label_study(config, output_dir=output_dir, dataset_dir=dataset_dir, encoder=encoder)
    counts = run_label_study(study)
    print(", ".join(f"{count} {status}" for status, count in counts.items()) + " chains of rounds")
    print(f"written to {write_label_report(study)}")
    if counts["failed"]:
        raise RuntimeError(f"{counts['failed']} chains of rounds failed; the report shows the others")


def _choose(spatial_dims: int, flat: Any, deep: Any) -> Any:
    if spatial_dims not in (2, 3):
        raise ValueError(f"--spatial_dims is {spatial_dims}; use 2 for images, 3 for volumes")
    return flat if spatial_dims == 2 else deep


def _given(**flags: Any) -> dict[str, Any]:
    return {name: value for name, value in flags.items() if value is not None and value is not False}


def _numbers(name: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--{name} is three numbers such as 3,1,1, not {text!r}") from None


def _mostly_volumes(table: Any) -> bool:
    rows = table.select(["modality", "kind", "frames"]).to_pylist()
    deep = [row["modality"] in ("CT", "MR", "PT") or (row["kind"] == "nifti" and row["frames"] != 1) for row in rows]
    return 2 * sum(deep) > len(rows)


VERBS = {
    "index": index,
    "prepare": prepare,
    "show-views": show_views,
    "describe": describe,
    "doctor": doctor,
    "export-nnunet": export_nnunet,
    "evaluate": evaluate,
    "label": label,
    "label-study": label_study,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    return run_verbs(VERBS, sys.argv[1:] if arguments is None else arguments, INTRODUCTION)


if __name__ == "__main__":
    sys.exit(main())
