# SPDX-License-Identifier: Apache-2.0
"""The verbs of the command line: ``python -m monai_ssl index | prepare | show-views | describe | doctor | ...``."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

import monai_ssl
from monai_ssl.command_line import run_verbs

__all__ = ["main"]

INTRODUCTION = f"""monai_ssl {monai_ssl.__version__}: self-supervised learning on medical images with MONAI.

The verbs below look at images, machines and results. Training is a bundle:
python -m monai.bundle run --bundle_root bundles/NAME --config_file bundles/NAME/configs/train.yaml"""


def index(
    folder: str, *, output: str = "index.parquet", labels_file: str | None = None, num_workers: int | None = None
) -> None:
    """Scan a folder of images into a table: what it holds, and what was refused and why.

    A second scan only reads what changed. Patients appear as salted hashes; keep the salt beside the table private.

    folder       with all its subfolders: DICOM (any name), PNG, JPEG, TIFF, BMP, NIfTI
    output       Parquet file to write
    labels_file  CSV or Parquet with a column 'file', to join; default: the one at the top of the folder
    num_workers  processes; default: one for each usable CPU
    """
    from monai_ssl.data import build_index, describe_index

    table = build_index(folder, output, labels=labels_file, num_workers=num_workers)
    print(f"{folder}: {describe_index(table)}\nwritten to {output}")


def prepare(
    folder: str,
    store: str,
    *,
    labels_file: str | None = None,
    max_side: int = 512,
    crop_borders: bool = False,
    keep_duplicates: bool = False,
    num_workers: int | None = None,
) -> None:
    """Decode the images of a folder once into a store, which training reads fast.

    Indexes the folder, sets duplicates aside, and splits by patient unless the labels say how. Safe to interrupt and
    to repeat: what is done is kept.

    folder           of images
    store            folder for the index and the store; it is made
    labels_file      CSV or Parquet with a column 'file', to join; default: the one at the top of the folder
    max_side         longest side of the stored images in pixels; smaller images stay as they are
    crop_borders     cut uniform borders off
    keep_duplicates  keep images that repeat another one
    num_workers      processes; default: one for each usable CPU
    """
    from monai_ssl.data import open_radiographs

    prepared = open_radiographs(
        folder,
        store,
        labels_file=labels_file,
        max_side=max_side,
        crop_borders=crop_borders,
        drop_duplicates=not keep_duplicates,
        num_workers=num_workers,
    )
    print(prepared.describe())


def show_views(
    folder_or_file: str,
    *,
    preset: str = "radiograph",
    size: int = 224,
    output: str = "views.png",
    num_images: int = 4,
    num_views: int = 5,
    seed: int = 0,
) -> None:
    """Draw a sheet with some images and the views that training makes of them.

    folder_or_file  an image, a folder of images, or a prepared store
    preset          radiograph, c2l or moco_v2
    size            side of the views in pixels
    output          PNG file to write
    num_images      images to take of a folder
    num_views       views of each image
    seed            of the views
    """
    from monai_ssl.show_views import save_view_sheet, some_images

    images = some_images(folder_or_file, num_images)
    save_view_sheet(images, output, preset, size, num_views, seed)
    for number, image in enumerate(images, 1):
        print(f"row {number}: {image.name}")
    print(f"written to {output}")


def describe(path: str) -> None:
    """Say what a file or folder is: weights, an index, a store, or an image; without identifiers.

    path  encoder.safetensors or another checkpoint, index.parquet, a store's folder, an image
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


VERBS = {
    "index": index,
    "prepare": prepare,
    "show-views": show_views,
    "describe": describe,
    "doctor": doctor,
    "export-nnunet": export_nnunet,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    return run_verbs(VERBS, sys.argv[1:] if arguments is None else arguments, INTRODUCTION)


if __name__ == "__main__":
    sys.exit(main())
