# SPDX-License-Identifier: Apache-2.0
"""Supervised tasks in pretraining: a head, a masked loss and a score each; labels are optional for each image.

A label of -1, or NaN, is unknown (contract of the batches: class columns and findings columns of
:class:`monai_ssl.data.StoreDataset`, one entry of the batch each). Of a label map the voxels with
:data:`monai_ssl.losses.IGNORED_LABEL` are unknown, and all voxels of images whose entry ``"labelled"`` is 0.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from monai_ssl.losses import (
    IGNORED_LABEL,
    MaskedBinaryCrossEntropyLoss,
    MaskedCrossEntropyLoss,
    MaskedDiceCrossEntropyLoss,
)
from monai_ssl.networks import EncoderDecoder, ImageEncoder, PyramidHead, measure_maps

__all__ = ["ClassTask", "FindingsTask", "SegmentationTask", "SupervisedTask"]


class SupervisedTask(nn.Module, ABC):
    """One question that labels answer. It is made without an encoder and gets its head by :meth:`build`.

    Args:
        name: under which its head is kept and, beside other tasks, its score is logged.
        weight: of its loss among the tasks' losses.

    Raises:
        ValueError: the weight is not positive, or the name has a dot.
    """

    score_name: ClassVar[str] = "accuracy"
    needs_maps: ClassVar[bool] = False
    """Whether it looks at the pyramid of maps, not only at the pooled features."""

    def __init__(self, name: str, weight: float) -> None:
        super().__init__()
        if not weight > 0:
            raise ValueError(f"the weight of the task {name!r} must be positive, got {weight}")
        if "." in name or not name:
            raise ValueError(f"a task's name is kept among the state's keys and must have no dot, got {name!r}")
        self.name, self.weight = name, float(weight)

    @abstractmethod
    def build(self, encoder: ImageEncoder) -> None:
        """Make the head for an encoder's features; torch's global generator makes its weights."""

    @abstractmethod
    def known(self, batch: Mapping[str, Any], view: int) -> Tensor:
        """Return (B,) bool: which images have a label, of some finding or voxel at least."""

    @abstractmethod
    def check(self, labels: Mapping[str, Any]) -> None:
        """Look at labels on the CPU, of a batch or of a whole dataset (``dataset.labels``).

        Raises:
            ValueError: an entry is missing, or a label is of no class.
        """

    @abstractmethod
    def forward(
        self, encoder: ImageEncoder, pooled: Tensor | None, maps: list[Tensor] | None, batch: dict[str, Any], view: int
    ) -> tuple[Tensor, Tensor]:
        """Return loss and score (NaN without a label), scalars over the known labels.

        Args:
            encoder: whose decoder may be used.
            pooled: (B, F) features; None if only maps are needed.
            maps: the pyramid; None if no task needs it.
            batch: with the labels.
            view: number of the view that the features are of.
        """

    def entry(self, batch: Mapping[str, Any], key: str) -> Any:
        """Return an entry of the batch.

        Raises:
            ValueError: there is none.
        """
        if key not in batch:
            raise ValueError(
                f"the task {self.name!r} needs the entry {key!r} in a batch, there are {', '.join(map(str, batch))}: "
                "give it by label_columns (or label_maps) of the dataset"
            )
        return batch[key]


class ClassTask(SupervisedTask):
    """Which of K classes, by one linear layer on the pooled features and the cross entropy.

    Args:
        label: entry of the batch, (B,) int64 classes 0 .. K - 1, negative where unknown.
        num_classes: K, at least 2.
        class_weights: K numbers, or None.
        label_smoothing: in [0, 1).
        weight: see :class:`SupervisedTask`.

    Raises:
        ValueError: a number is out of its range.
    """

    def __init__(
        self,
        label: str = "label",
        num_classes: int = 2,
        *,
        class_weights: Sequence[float] | Tensor | None = None,
        label_smoothing: float = 0.0,
        weight: float = 1.0,
    ) -> None:
        super().__init__(label, weight)
        _check_weights(class_weights, num_classes, least=2)
        self.label, self.num_classes = label, num_classes
        self.criterion = MaskedCrossEntropyLoss(class_weights, label_smoothing)

    def build(self, encoder: ImageEncoder) -> None:
        """See :meth:`SupervisedTask.build`."""
        self.head = nn.Linear(encoder.num_features, self.num_classes)

    def known(self, batch: Mapping[str, Any], view: int) -> Tensor:
        """See :meth:`SupervisedTask.known`."""
        return self.entry(batch, self.label) >= 0

    def check(self, labels: Mapping[str, Any]) -> None:
        """See :meth:`SupervisedTask.check`."""
        values = self.entry(labels, self.label)
        if values.ndim != 1 or values.is_floating_point():
            raise ValueError(f"{self.label!r} must be whole numbers (B,), got {values.dtype} {tuple(values.shape)}")
        if len(values) and int(values.max()) >= self.num_classes:
            raise ValueError(
                f"{self.label!r} has the class {int(values.max())}, but the task has {self.num_classes} classes, "
                f"0 to {self.num_classes - 1}: set num_classes, or the classes of the label column"
            )

    def forward(self, encoder, pooled, maps, batch, view) -> tuple[Tensor, Tensor]:
        """See :meth:`SupervisedTask.forward`; the score is the accuracy."""
        labels = self.entry(batch, self.label)
        logits = self.head(pooled).float()
        right = logits.detach().argmax(1) == labels
        return self.criterion(logits, labels), _share(right, labels >= 0)


class FindingsTask(SupervisedTask):
    """Which of K findings, that do not exclude each other; one alone is a binary question. Binary cross entropy.

    Args:
        labels: entries of the batch, one for each finding: (B,) 0 or 1, negative or NaN where unknown. Or one entry:
            (B,) of a single finding, or (B, K).
        num_findings: K, where a single entry has several columns.
        name: see :class:`SupervisedTask`. Default: the entry's, or ``"findings"`` for several.
        positive_weights: K factors on the loss of positive labels, or None.
        weight: see :class:`SupervisedTask`.

    Raises:
        ValueError: a number is out of its range, or ``num_findings`` is given for several entries.
    """

    def __init__(
        self,
        labels: str | Sequence[str],
        num_findings: int | None = None,
        *,
        name: str | None = None,
        positive_weights: Sequence[float] | Tensor | None = None,
        weight: float = 1.0,
    ) -> None:
        entries = (labels,) if isinstance(labels, str) else tuple(labels)
        super().__init__(name or (entries[0] if len(entries) == 1 else "findings"), weight)
        if num_findings is not None and len(entries) != 1:
            raise ValueError(f"{len(entries)} entries are as many findings; num_findings is for a single entry")
        self.labels, self.num_findings = entries, num_findings or len(entries)
        _check_weights(positive_weights, self.num_findings, least=1)
        self.criterion = MaskedBinaryCrossEntropyLoss(positive_weights)

    def build(self, encoder: ImageEncoder) -> None:
        """See :meth:`SupervisedTask.build`."""
        self.head = nn.Linear(encoder.num_features, self.num_findings)

    def known(self, batch: Mapping[str, Any], view: int) -> Tensor:
        """See :meth:`SupervisedTask.known`."""
        return (self._columns(batch) >= 0).any(1)

    def check(self, labels: Mapping[str, Any]) -> None:
        """See :meth:`SupervisedTask.check`."""
        values = self._columns(labels)
        if bool((values > 1).any()):
            raise ValueError(
                f"the findings of {self.name!r} hold {values[values > 1][0]:g}: they must be 0 or 1, and -1 or NaN "
                "where unknown; classes that exclude each other are a ClassTask"
            )

    def forward(self, encoder, pooled, maps, batch, view) -> tuple[Tensor, Tensor]:
        """See :meth:`SupervisedTask.forward`; the score is the accuracy over all known findings."""
        labels = self._columns(batch)
        logits = self.head(pooled).float()
        right = (logits.detach() > 0) == (labels > 0.5)
        return self.criterion(logits, labels), _share(right, labels >= 0)

    def _columns(self, batch: Mapping[str, Any]) -> Tensor:
        """(B, K) float32."""
        if len(self.labels) > 1:
            return torch.stack([self.entry(batch, key).float() for key in self.labels], 1)
        values = self.entry(batch, self.labels[0]).float()
        values = values[:, None] if values.ndim == 1 else values
        if values.ndim != 2 or values.shape[1] != self.num_findings:
            raise ValueError(
                f"{self.labels[0]!r} must have shape (B, {self.num_findings}), got {tuple(values.shape)}: "
                "set num_findings"
            )
        return values


class SegmentationTask(SupervisedTask):
    """Which class each voxel has, by Dice and cross entropy over the voxels that have a label.

    The label map must follow the view: the trainer takes it through the view's own draw (``map_keys``).

    Args:
        num_classes: K, without the background.
        label_map: entry of the batch: list with one map for each view, (B, 1, *spatial) of 0 .. K, and
            :data:`monai_ssl.losses.IGNORED_LABEL` where unknown.
        decoder: ``"network"``: the encoder's own decoder, which must give 1 + K channels, and which is exported with
            the encoder if the export is asked to (all but its last layer); ``"light"``: a
            :class:`monai_ssl.networks.PyramidHead` beside the encoder; None: the network's own if it fits.
        include_background: count the background in the Dice part.
        dice_weight: of the Dice part.
        ce_weight: of the cross entropy.
        class_weights: 1 + K numbers, background first, or None.
        width: of the light decoder.
        weight: see :class:`SupervisedTask`.

    Raises:
        ValueError: a number is out of its range; (by :meth:`build`) the network's decoder does not fit.
    """

    score_name: ClassVar[str] = "dice"
    needs_maps: ClassVar[bool] = True

    def __init__(
        self,
        num_classes: int,
        label_map: str = "label_map",
        *,
        decoder: Literal["network", "light"] | None = None,
        include_background: bool = False,
        dice_weight: float = 1.0,
        ce_weight: float = 1.0,
        class_weights: Sequence[float] | Tensor | None = None,
        width: int = 64,
        weight: float = 1.0,
    ) -> None:
        super().__init__(label_map, weight)
        if decoder not in (None, "network", "light"):
            raise ValueError(f"decoder must be 'network', 'light' or None, got {decoder!r}")
        _check_weights(class_weights, 1 + num_classes, least=2)
        self.label_map, self.num_classes, self.decoder, self.width = label_map, num_classes, decoder, width
        self.criterion = MaskedDiceCrossEntropyLoss(include_background, dice_weight, ce_weight, class_weights)

    def build(self, encoder: ImageEncoder) -> None:
        """See :meth:`SupervisedTask.build`."""
        outputs = 1 + self.num_classes
        fits = isinstance(encoder, EncoderDecoder) and encoder.out_channels == outputs
        if self.decoder == "network" and not fits:
            raise ValueError(
                f"decoder='network' needs {outputs} output channels (background and {self.num_classes} classes), this "
                f"{encoder.architecture} has {getattr(encoder, 'out_channels', None)}: build_encoder("
                f"{encoder.architecture!r}, ..., out_channels={outputs}), or take decoder='light'"
            )
        own = fits and self.decoder != "light"
        self.head = (
            None
            if own
            else PyramidHead([width for width, _ in measure_maps(encoder)], outputs, encoder.spatial_dims, self.width)
        )

    def known(self, batch: Mapping[str, Any], view: int) -> Tensor:
        """See :meth:`SupervisedTask.known`."""
        target, known = self._target(batch, view)
        return (known & (target != IGNORED_LABEL)).flatten(1).any(1)

    def check(self, labels: Mapping[str, Any]) -> None:
        """See :meth:`SupervisedTask.check`; a dataset's ``labels`` hold no label maps, and only batches are checked."""
        values = labels.get(self.label_map)
        for each in values if isinstance(values, list) else [values] if isinstance(values, Tensor) else []:
            wrong = (each > self.num_classes) & (each != IGNORED_LABEL)
            if bool(wrong.any()):
                raise ValueError(
                    f"the {self.label_map!r} has the value {int(each[wrong][0])}, but the task has the classes 1 to "
                    f"{self.num_classes} (and {IGNORED_LABEL}: no label): set num_classes, or map the values first"
                )

    def forward(self, encoder, pooled, maps, batch, view) -> tuple[Tensor, Tensor]:
        """See :meth:`SupervisedTask.forward`; the score is the mean Dice of the classes that occur."""
        target, known = self._target(batch, view)
        logits = (encoder.decode(maps) if self.head is None else self.head(maps, target.shape[2:])).float()
        score = _batch_dice(logits.detach().argmax(1), target[:, 0], known[:, 0], 1 + self.num_classes)
        return self.criterion(logits, target, known), score

    def _target(self, batch: Mapping[str, Any], view: int) -> tuple[Tensor, Tensor]:
        """The view's map (B, 1, *spatial), and which of its images have one at all, (B, 1, ...) bool."""
        target = self.entry(batch, self.label_map)
        if not isinstance(target, list):
            raise ValueError(
                f"{self.label_map!r} must be a list with one map for each view: name it in the trainer's map_keys and "
                "take views that can draw and apply (MultiView)"
            )
        target = target[view]
        shape = (-1,) + (1,) * (target.ndim - 1)
        known = torch.ones_like(target[:, :1, ...], dtype=torch.bool)
        if "labelled" in batch:
            known = known & (batch["labelled"] > 0).view(shape)
        return target, known


def _share(right: Tensor, known: Tensor) -> Tensor:
    """Share of the known that are right; NaN if none is known."""
    return (right & known).sum() / known.sum()


def _batch_dice(predicted: Tensor, true: Tensor, known: Tensor, num_outputs: int) -> Tensor:
    """Mean Dice over the classes that occur in truth or prediction, over the known voxels; NaN if none occurs."""
    counted = known & (true < num_outputs)
    sums = []
    for number in range(1, num_outputs):
        ours, theirs = (predicted == number) & counted, (true == number) & counted
        sums.append(torch.stack([(ours & theirs).sum(), ours.sum() + theirs.sum()]))
    both, sizes = torch.stack(sums, 1)
    return (2 * both / sizes.clamp(min=1)).sum() / (sizes > 0).sum()


def _check_weights(weights: Sequence[float] | Tensor | None, count: int, least: int) -> None:
    if count < least:
        raise ValueError(f"a task needs at least {least} output(s), got {count}")
    if weights is not None and (len(weights) != count or min(float(weight) for weight in weights) < 0):
        raise ValueError(f"the weights must be {count} numbers, at least 0, got {list(weights)}")
