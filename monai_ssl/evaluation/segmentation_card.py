# SPDX-License-Identifier: Apache-2.0
"""The card of a trained segmentation network, and the store of the volumes that it is to segment."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from monai.inferers import SlidingWindowInferer
from torch import Tensor, nn

from monai_ssl.data.store import ImageStore
from monai_ssl.data.volume_store import open_volume_store
from monai_ssl.evaluation.model_card import ModelCard, find_model, load_model, read_model_card, save_model
from monai_ssl.evaluation.preprocessing import Preprocessing
from monai_ssl.evaluation.segmentation_labels import SegmentationLabels
from monai_ssl.evaluation.segmentation_start import SegmentationStart, build_segmenter
from monai_ssl.transforms import IntensityStandardize

__all__ = [
    "SegmenterCard",
    "StandardizedWindows",
    "find_segmenter",
    "load_segmenter",
    "open_unlabelled_volumes",
    "read_segmenter_card",
    "save_segmenter",
    "sliding_window",
]


@dataclass(frozen=True, kw_only=True)
class SegmenterCard(ModelCard):
    """What ``model.json`` says about the ``model.pt`` of a segmentation network.

    Attributes:
        label_values: for each class the values that meant it in the label maps of the training.
        overlap: of neighbouring windows, in [0, 1).
    """

    label_values: list[list[int]]
    overlap: float = 0.5

    kind: ClassVar[str] = "segmenter"

    @classmethod
    def describe(
        cls,
        start: SegmentationStart,
        labels: SegmentationLabels,
        preprocessing: Preprocessing,
        seed: int,
        modality: str | None = None,
        crop_foreground: bool = False,
        overlap: float = 0.5,
    ) -> SegmenterCard:
        """Make the card of a training; call it after ``start.build``, which knows the lineage."""
        return cls(
            architecture=start.architecture,
            network_args=start.complete_args(),
            spatial_dims=start.spatial_dims,
            in_channels=start.in_channels,
            class_names=list(labels.class_names),
            label_values=[list(values) for values in labels.label_values],
            preprocessing=preprocessing.to_dict(),
            modality=modality,
            crop_foreground=crop_foreground,
            overlap=overlap,
            mode=start.mode,
            lineage=list(start.lineage),
            label_fraction=labels.label_fraction,
            num_labels=len(labels.rows["train"]),
            seed=seed,
            split_hash=labels.split_hash,
            subset_hash=labels.subset_hash,
        )

    @property
    def classes(self) -> dict[str, list[int]]:
        """The names of the classes with the values of the label maps."""
        return dict(zip(self.class_names, self.label_values, strict=True))

    def classes_in(self, classes: Mapping[str, int | Sequence[int]] | None) -> dict[str, int | Sequence[int]]:
        """Return the classes in their order with the values that mean them in other label maps.

        Args:
            classes: names with their values there; None: they are the training's.

        Raises:
            ValueError: these are other classes than the network's.
        """
        if classes is None:
            return self.classes
        if not isinstance(classes, Mapping) or set(classes) != set(self.class_names):
            raise ValueError(
                f"the network knows the classes {', '.join(self.class_names)}: give their values in these label maps, "
                f"for example {{'{self.class_names[0]}': 1, ...}}, got {classes!r}"
            )
        return {name: classes[name] for name in self.class_names}

    def build(self) -> nn.Module:
        """Build the network, with random weights: (B, C, *spatial) -> (B, 1 + K, *spatial) logits."""
        arguments = self.network_args
        return build_segmenter(
            self.architecture, len(self.class_names), self.spatial_dims, self.in_channels, **arguments
        ).net

    def inferer(self, batch_size: int = 2) -> SlidingWindowInferer:
        """Return the sliding window that the network looks at whole volumes through."""
        return sliding_window(self.prepared(), batch_size, self.overlap)


class StandardizedWindows(SlidingWindowInferer):
    """MONAI's sliding window, each window standardised by itself: what the network saw of a patch in training.

    A window may reach beyond its volume, and the black there counts in the statistics of ``"per_image"`` as it does in
    training; standardising the whole volume first would give the network other numbers.

    Args:
        standardize: of a batch of windows.
        options: of ``monai.inferers.SlidingWindowInferer``.
    """

    def __init__(self, standardize: IntensityStandardize, **options: Any) -> None:
        super().__init__(**options)
        self.standardize = standardize

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run ``network`` over volumes (B, C, *spatial) in the store's range, [0, 1]."""

        def standardized(windows: Tensor, *further: Any, **named: Any) -> Any:
            return network(self.standardize(windows), *further, **named)

        return super().__call__(inputs, standardized, *args, **kwargs)


def sliding_window(preprocessing: Preprocessing, batch_size: int = 2, overlap: float = 0.5) -> StandardizedWindows:
    """Return a sliding window of the network's input size, windows blended by a Gaussian.

    A volume that is smaller than the window is padded with black, as its patches are in training. Volumes of more than
    512 x 512 x 512 voxels are stitched on the CPU.

    Args:
        preprocessing: of the network.
        batch_size: windows at a time.
        overlap: of neighbouring windows, in [0, 1).
    """
    return StandardizedWindows(
        preprocessing.standardize(),
        roi_size=preprocessing.image_size,
        sw_batch_size=batch_size,
        overlap=overlap,
        mode="gaussian",
        padding_mode="constant",
        cval=0.0,
        cpu_thresh=512**3,
    )


def save_segmenter(network: nn.Module, card: SegmenterCard, path: str | os.PathLike, **metrics: float) -> None:
    """Write a segmentation network, see :func:`monai_ssl.evaluation.save_model`."""
    save_model(network, card, path, **metrics)


def read_segmenter_card(path: str | os.PathLike) -> SegmenterCard:
    """Read the card beside a segmentation network's weights, see :func:`monai_ssl.evaluation.read_model_card`."""
    return read_model_card(path, SegmenterCard)


def load_segmenter(network: nn.Module, path: str | os.PathLike) -> SegmenterCard:
    """Load a trained segmentation network, see :func:`monai_ssl.evaluation.load_model`."""
    return load_model(network, path, SegmenterCard)


def find_segmenter(folders: Sequence[str | os.PathLike], name: str = "model.pt") -> str:
    """Return the path of the first trained network in the folders; the last folder's path if there is none."""
    return find_model(folders, name)


def open_unlabelled_volumes(
    dataset_dir: str | os.PathLike | None,
    cache_dir: str | os.PathLike,
    card: ModelCard,
    modality: str | None = None,
    num_workers: int | None = None,
    progress: bool = True,
) -> ImageStore:
    """Index and prepare volumes without labels as the network's own were; copies stay.

    Args:
        dataset_dir: folder of volumes, DICOM, NIfTI, NRRD or MetaImage; None: the embedded example data.
        cache_dir: for the index and the store.
        card: of the network, whatever its task.
        modality: of files that do not say theirs; None: the training's.
        num_workers: processes; None: all CPUs.
        progress: show progress bars.

    Returns:
        The store; files that can't be used are in its ``refused``, with reasons.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds no volume.
        RuntimeError: none of its volumes can be used.
    """
    prepared = card.prepared()
    return open_volume_store(
        dataset_dir,
        cache_dir,
        modality=modality or card.modality,
        policy=card.intensity_policy() or "auto",
        orientation=prepared.orientation,
        spacing_mm=prepared.spacing_mm,
        crop_foreground=card.crop_foreground,
        drop_duplicates=False,
        num_workers=num_workers,
        max_refused_fraction=1.0,
        progress=progress,
    )
