# SPDX-License-Identifier: Apache-2.0
"""The verbs of the command line: ``python -m monai_ssl VERB``."""

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
    preset          of images: radiograph, c2l, moco_v2 or convirt; of volumes: volume, masked, whole or segmentation
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


def embed(
    folder: str,
    index: str,
    *,
    model_file: str = "image_text.safetensors",
    batch_size: int = 32,
    num_workers: int = 0,
    device: str = "auto",
) -> None:
    """Compute the vectors of a folder's images once, for search; an interrupted or repeated call does what is left.

    folder       of radiographs, or a prepared store
    index        folder for the search index; it is made. Images of a folder are prepared in it
    model_file   image_text.safetensors of a training on images and reports
    batch_size   images at once
    num_workers  processes that read
    device       auto, cpu, cuda, cuda:1
    """
    from pathlib import Path

    from monai_ssl.data import open_radiographs
    from monai_ssl.data.store import store_in
    from monai_ssl.engines import named_device
    from monai_ssl.evaluation import open_image_text
    from monai_ssl.search import embed_folder

    opened = open_image_text(model_file)
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    store = store_in(Path(folder))
    if store is None:
        policy = opened.preprocessing.intensity_policy()
        store = open_radiographs(folder, Path(index) / "images", policy=policy, drop_duplicates=False)
    flags = {"batch_size": batch_size, "num_workers": num_workers, "device": named_device(device)}
    made = embed_folder(store, index, opened, model_file, **flags)
    refused = f"\n{len(store.refused)} files were refused: python -m monai_ssl describe {store.folder}"
    print(made.describe() + (refused if len(store.refused) else ""))


def search(
    index: str,
    text: str | None = None,
    *,
    image: str | None = None,
    top: int = 12,
    output: str = "hits",
    model_file: str | None = None,
    device: str = "auto",
) -> None:
    """Find images of an embedded folder by a sentence or by an image; prints a table, draws a sheet.

    index       folder that embed made
    text        a sentence as it might stand in a report, in quotes
    image       instead of a text: find images like this file
    top         number of hits
    output      files to write, without suffix: a sheet (.png), a page (.html) and a table (.csv)
    model_file  where the model of the index is now, if it was moved
    device      auto, cpu, cuda, cuda:1
    """
    from monai_ssl.engines import named_device
    from monai_ssl.search import EmbeddedFolder, open_model_of, search_by_image, search_by_text

    if (text is None) == (image is None):
        raise ValueError("search needs a text in quotes, or --image FILE, and not both")
    found = EmbeddedFolder(index)
    store = found.open_store()
    opened, place = open_model_of(found, model_file), named_device(device)
    ask = search_by_text if image is None else search_by_image
    answer = ask(found, opened, text if image is None else image, top, place)
    print("\n".join([*(f"note: {note}" for note in answer.notes), answer.table()]))
    written = answer.save(output, store)
    if store is None:
        print(f"note: {found.store_folder} is not there, so there are no pictures")
    print("written to " + ", ".join(map(str, written)))


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


def recommend(
    *,
    target: str,
    sources: list[str],
    label_column: str | None = None,
    where: str | None = None,
    probe: str | None = None,
    study: str | None = None,
    cache_dir: str | None = None,
    max_images: int = 500,
    size: int | None = None,
    resamples: int = 100,
    device: str = "cpu",
    seed: int = 0,
    num_workers: int | None = None,
) -> None:
    """Rank encoders and data sets as sources for a target, without training, and say how sure that is.

    Encoders are ranked by what their features tell about the target's labels, data sets by their distance from it.

    target        folder of labelled images
    sources       two or more: encoder.safetensors files, folders of labelled images
    label_column  of the tables; default: label
    where         which rows of the target count, for example source=Kermany*
    probe         encoder file that data sets are compared by; default: the first one of the sources
    study         folder of a finished source_selection_study, to cite what the measures were worth there
    cache_dir     for prepared images, to be used again; default: a temporary one
    max_images    most images of a set that are looked at
    size          side of the images in pixels; default: as the weights say
    resamples     half-samples for the uncertainty
    device        cpu, cuda, cuda:1
    seed          of the draws
    num_workers   processes that read; default: one for each usable CPU
    """
    from tempfile import TemporaryDirectory

    from monai_ssl.transferability import recommend_sources

    with TemporaryDirectory(prefix="monai_ssl_") as temporary:
        found = recommend_sources(
            target,
            sources,
            cache_dir or temporary,
            label_column=label_column,
            where=where,
            probe_weights=probe,
            study=study,
            max_images=max_images,
            image_size=size,
            resamples=resamples,
            device=device,
            seed=seed,
            num_workers=num_workers,
        )
    print(found.as_text())


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
    "embed": embed,
    "search": search,
    "export-nnunet": export_nnunet,
    "evaluate": evaluate,
    "label": label,
    "label-study": label_study,
    "recommend": recommend,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    return run_verbs(VERBS, sys.argv[1:] if arguments is None else arguments, INTRODUCTION)


if __name__ == "__main__":
    sys.exit(main())
