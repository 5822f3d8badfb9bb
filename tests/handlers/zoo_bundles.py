# SPDX-License-Identifier: Apache-2.0
"""Bundles in the form that the model zoo's segmentation bundles have, made small, on synthetic NIfTI volumes."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np

UNET = {"_target_": "UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": [4, 8, 16]}
UNET |= {"strides": [2, 2], "num_res_units": 1, "norm": "batch"}
SWIN = {"_target_": "SwinUNETR", "spatial_dims": 3, "in_channels": 1, "out_channels": 2, "feature_size": 12}
SWIN |= {"depths": [1, 1, 1, 1], "num_heads": [2, 2, 2, 2], "window_size": 4}
BOTH = ["image", "label"]


def make_volumes(folder: Path, shape: tuple[int, ...] = (66, 36, 34)) -> Path:
    """Three volumes with a bright ball, and the ball as their label map, in the folders of a Decathlon task."""
    random = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(side) for side in shape], indexing="ij"), -1)
    for number in range(3):
        ball = np.linalg.norm(grid - random.uniform(12, 20, 3), axis=-1) < 8
        for name, array in (("imagesTr", ball * 100 + random.normal(0, 20, shape)), ("labelsTr", ball)):
            (folder / name).mkdir(parents=True, exist_ok=True)
            image = nibabel.Nifti1Image(array.astype(np.int16), np.diag([1.5, 1.5, 2.0, 1.0]))
            nibabel.save(image, folder / name / f"{number}.nii.gz")
    return folder


def write_bundle(folder: Path, data: Path, network: dict, old_form: bool = False) -> Path:
    """Write ``configs/train.json``; older bundles of the zoo have a list ``training`` in place of two."""
    roi = [64, 32, 32] if network["_target_"] == "SwinUNETR" else [16, 16, 16]
    log = {"_target_": "StatsHandler", "tag_name": "train_loss"}
    log["output_transform"] = "$monai.handlers.from_engine(['loss'], first=True)"
    config = {
        "imports": ["$import glob", "$import os"],
        "bundle_root": str(folder),
        "ckpt_dir": "$@bundle_root + '/models'",
        "dataset_dir": str(data),
        "images": "$list(sorted(glob.glob(@dataset_dir + '/imagesTr/*.nii.gz')))",
        "labels": "$list(sorted(glob.glob(@dataset_dir + '/labelsTr/*.nii.gz')))",
        "val_interval": 1,
        "device": "$torch.device('cpu')",
        "network_def": network,
        "network": "$@network_def.to(@device)",
        "loss": {"_target_": "DiceCELoss", "to_onehot_y": True, "softmax": True, "batch": True},
        "optimizer": {"_target_": "torch.optim.Adam", "params": "$@network.parameters()", "lr": 0.001},
        "train": {
            "deterministic_transforms": [
                {"_target_": "LoadImaged", "keys": BOTH},
                {"_target_": "EnsureChannelFirstd", "keys": BOTH},
                {"_target_": "Orientationd", "keys": BOTH, "axcodes": "RAS", "labels": None},
                {
                    "_target_": "ScaleIntensityRanged",
                    "keys": "image",
                    "a_min": -57,
                    "a_max": 164,
                    "b_min": 0,
                    "b_max": 1,
                },
                {"_target_": "EnsureTyped", "keys": BOTH},
            ],
            "random_transforms": [
                {"_target_": "RandCropByPosNegLabeld", "keys": BOTH, "label_key": "label", "spatial_size": roi}
            ],
            "preprocessing": {
                "_target_": "Compose",
                "transforms": "$@train#deterministic_transforms + @train#random_transforms",
            },
            "dataset": {
                "_target_": "CacheDataset",
                "data": "$[{'image': i, 'label': l} for i, l in zip(@images[:-1], @labels[:-1])]",
                "transform": "@train#preprocessing",
                "num_workers": 0,
                "progress": False,
            },
            "dataloader": {"_target_": "DataLoader", "dataset": "@train#dataset", "batch_size": 1, "shuffle": True},
            "inferer": {"_target_": "SimpleInferer"},
            "postprocessing": {
                "_target_": "Compose",
                "transforms": [
                    {"_target_": "Activationsd", "keys": "pred", "softmax": True},
                    {"_target_": "AsDiscreted", "keys": ["pred", "label"], "argmax": [True, False], "to_onehot": 2},
                ],
            },
            "handlers": [
                {"_target_": "ValidationHandler", "validator": "@validate#evaluator", "interval": "@val_interval"},
                log,
            ],
            "key_metric": {
                "train_dice": {
                    "_target_": "MeanDice",
                    "output_transform": "$monai.handlers.from_engine(['pred', 'label'])",
                }
            },
            "trainer": {
                "_target_": "SupervisedTrainer",
                "max_epochs": 1,
                "device": "@device",
                "train_data_loader": "@train#dataloader",
                "network": "@network",
                "loss_function": "@loss",
                "optimizer": "@optimizer",
                "inferer": "@train#inferer",
                "postprocessing": "@train#postprocessing",
                "key_train_metric": "@train#key_metric",
                "train_handlers": "@train#handlers",
            },
        },
        "validate": {
            "preprocessing": {"_target_": "Compose", "transforms": "%train#deterministic_transforms"},
            "dataset": {
                "_target_": "CacheDataset",
                "data": "$[{'image': i, 'label': l} for i, l in zip(@images[-1:], @labels[-1:])]",
                "transform": "@validate#preprocessing",
                "num_workers": 0,
                "progress": False,
            },
            "dataloader": {"_target_": "DataLoader", "dataset": "@validate#dataset", "batch_size": 1},
            "inferer": {"_target_": "SlidingWindowInferer", "roi_size": roi, "sw_batch_size": 2, "overlap": 0},
            "postprocessing": "%train#postprocessing",
            "handlers": [
                {
                    "_target_": "CheckpointSaver",
                    "save_dir": "@ckpt_dir",
                    "save_dict": {"model": "@network"},
                    "save_key_metric": True,
                    "key_metric_filename": "model.pt",
                }
            ],
            "key_metric": {
                "val_mean_dice": {
                    "_target_": "MeanDice",
                    "output_transform": "$monai.handlers.from_engine(['pred', 'label'])",
                }
            },
            "evaluator": {
                "_target_": "SupervisedEvaluator",
                "device": "@device",
                "val_data_loader": "@validate#dataloader",
                "network": "@network",
                "inferer": "@validate#inferer",
                "postprocessing": "@validate#postprocessing",
                "key_val_metric": "@validate#key_metric",
                "val_handlers": "@validate#handlers",
            },
        },
    }
    first, last = "$monai.utils.set_determinism(seed=123)", "$@train#trainer.run()"
    config |= {"training": [first, last]} if old_form else {"initialize": [first], "run": [last]}
    (folder / "configs").mkdir(parents=True)
    path = folder / "configs" / "train.json"
    path.write_text(json.dumps(config, indent=4))
    return path
