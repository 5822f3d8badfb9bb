# SPDX-License-Identifier: Apache-2.0
"""All measures for one pair of source and target, computed on the same images for all pairs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from monai_ssl.evaluation import Preprocessing, extract_features
from monai_ssl.networks import ImageEncoder, build_encoder
from monai_ssl.weights import open_encoder, read_manifest
from monai_ssl.weights.files import read_tensors

from .bhattacharyya import gaussian_bhattacharyya
from .cka import linear_cka
from .frechet import frechet_distance
from .h_score import h_score, regularised_h_score
from .knn_transfer import knn_transfer
from .label_transport import label_transport_distance
from .labelled_set import LabelledSet
from .leep import leep
from .logme import log_me
from .mmd import squared_mmd
from .task2vec import task2vec, task2vec_asymmetric, task2vec_distance

__all__ = ["ENCODER_MEASURES", "SET_MEASURES", "Probe", "encoder_measures", "set_measures"]

SET_MEASURES = {
    "task2vec": "Task2Vec distance, scaled cosine",
    "task2vec_cosine": "Task2Vec distance, plain cosine (as in the Cats paper)",
    "task2vec_asymmetric": "Task2Vec distance, asymmetric",
    "frechet": "Fréchet distance",
    "mmd": "squared MMD (RBF)",
    "label_transport": "label-aware optimal transport",
}
"""Distances of two data sets by a probe network: lower should mean a better source."""

ENCODER_MEASURES = {
    "log_me": "LogME",
    "h_score": "H-score",
    "regularised_h_score": "regularised H-score",
    "knn": "nearest neighbours, AUC",
    "gbc": "Gaussian Bhattacharyya coefficient",
    "leep": "LEEP",
    "cka": "linear CKA with the probe (debiased)",
}
"""What a source's encoder makes of the target's labelled images: higher should mean a better source (of CKA nobody
says so; it only tells how far the encoder is from the probe)."""


class Probe:
    """A fixed network that all data sets are compared by.

    Args:
        weights: encoder file; None: random weights, with the normalisation's statistics of the images themselves. A
            pretrained network sees more; the papers take one from ImageNet.
        architecture: of the random network.
        network_args: its further arguments.
        image_size: side of the images in pixels; None: as the weights say.
        device: where to compute.
        seed: of the random weights.
    """

    def __init__(
        self,
        weights: str | Path | None = None,
        architecture: str = "resnet18",
        network_args: dict | None = None,
        image_size: int | None = None,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        self.device = torch.device(device)
        size = None if image_size is None else (image_size,) * 2
        if weights is None:
            torch.manual_seed(seed)
            self.encoder = build_encoder(architecture, 2, 1, **(network_args or {}))
            self.preprocessing = Preprocessing(size or (96, 96))
        else:
            self.encoder = open_encoder(weights)
            self.preprocessing = Preprocessing.from_manifest(read_manifest(weights), size)
        self.encoder.to(self.device)
        self.random = weights is None

    def settle(self, sets: list[tuple[LabelledSet, np.ndarray]]) -> None:
        """Let the statistics of a random network's normalisation be those of the images of all sets together."""
        if not self.random:
            return
        images = torch.cat([data.images(rows, self.preprocessing) for data, rows in sets])
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        norms = [m for m in self.encoder.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain mean over the batches
        self.encoder.train()
        with torch.no_grad():
            for batch in images[order].split(64):
                self.encoder(batch.to(self.device))
        self.encoder.eval()
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum

    def features(self, data: LabelledSet, rows: np.ndarray) -> np.ndarray:
        """Return (N, F) features of whole images."""
        return features_of(self.encoder, data, rows, self.preprocessing, self.device)

    def embedding(self, data: LabelledSet, rows: np.ndarray, seed: int = 0) -> np.ndarray:
        """Return the Task2Vec embeddings of three subsets."""
        images = data.images(rows, self.preprocessing)
        return task2vec(self.encoder, images, data.classes_of(rows), device=self.device, seed=seed)


def features_of(
    encoder: ImageEncoder, data: LabelledSet, rows: np.ndarray, preprocessing: Preprocessing, device: torch.device | str
) -> np.ndarray:
    """Return (N, F) features of whole images.

    Raises:
        ValueError: the encoder was trained on images of another intensity policy, or its features are not finite.
    """
    view = preprocessing.with_store(data.store).view()
    return extract_features(encoder, data.loader(rows), view, device)[0].numpy()


def set_measures(
    source: tuple[np.ndarray, np.ndarray, np.ndarray], target: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> tuple[dict[str, float], dict[str, str]]:
    """Compare two data sets.

    Args:
        source: the probe's features (N, F), the classes (N,) and the Task2Vec embeddings.
        target: likewise; the features of equally many images.

    Returns:
        Values by the names of :data:`SET_MEASURES`, and for those that are not defined the reason.
    """
    (x, x_labels, x_task), (y, y_labels, y_task) = source, target
    return _each(
        {
            "task2vec": lambda: task2vec_distance(x_task, y_task),
            "task2vec_cosine": lambda: task2vec_distance(x_task, y_task, scaled=False),
            "task2vec_asymmetric": lambda: task2vec_asymmetric(x_task, y_task),
            "frechet": lambda: frechet_distance(x, y),
            "mmd": lambda: squared_mmd(x, y),
            "label_transport": lambda: label_transport_distance(x, x_labels, y, y_labels),
        }
    )


def encoder_measures(
    encoder_file: str | Path,
    target: LabelledSet,
    rows: np.ndarray,
    probe_features: np.ndarray | None = None,
    image_size: int | None = None,
    device: torch.device | str = "cpu",
) -> tuple[dict[str, float], dict[str, str]]:
    """Ask what an encoder makes of a target's labelled images.

    Args:
        encoder_file: of the source; with ``head.safetensors`` beside it also LEEP is computed.
        target: the target.
        rows: of its store.
        probe_features: (N, F) of the same rows by the probe, for CKA.
        image_size: side of the images in pixels; None: as the file says.
        device: where to compute.

    Returns:
        Values by the names of :data:`ENCODER_MEASURES`, and for those that are not defined the reason.
    """
    size = None if image_size is None else (image_size,) * 2
    preprocessing = Preprocessing.from_manifest(read_manifest(encoder_file), size)
    x = features_of(open_encoder(encoder_file), target, rows, preprocessing, device)
    y, groups = target.classes_of(rows), target.patients_of(rows)
    wanted = {
        "log_me": lambda: log_me(x, y),
        "h_score": lambda: h_score(x, y),
        "regularised_h_score": lambda: regularised_h_score(x, y),
        "knn": lambda: knn_transfer(x, y, groups=groups),
        "gbc": lambda: gaussian_bhattacharyya(x, y),
    }
    head = Path(encoder_file).with_name("head.safetensors")
    if head.is_file():
        wanted["leep"] = lambda: leep(_probabilities(x, head), y)
    if probe_features is not None:
        wanted["cka"] = lambda: linear_cka(x, probe_features, debiased=True)
    return _each(wanted)


def _probabilities(x: np.ndarray, head: Path) -> np.ndarray:
    layer = read_tensors(head)
    logits = torch.from_numpy(x).double() @ layer["weight"].double().T + layer["bias"].double()
    return logits.softmax(1).numpy()


def _each(measures: dict[str, Callable[[], float]]) -> tuple[dict[str, float], dict[str, str]]:
    values, reasons = {}, {}
    for name, measure in measures.items():
        try:
            values[name] = measure()
        except ValueError as error:
            reasons[name] = str(error)
    return values, reasons
