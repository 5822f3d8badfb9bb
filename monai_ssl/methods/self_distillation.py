# SPDX-License-Identifier: Apache-2.0
"""The machine that DINO, iBOT and DINOv2 share: a student with DINO's head, a slow teacher, and codes from it.

Caron et al., *Emerging Properties in Self-Supervised Vision Transformers (DINO)*, ICCV 2021, arXiv 2104.14294, section
3.1 and the training settings of section 3.2.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from monai_ssl.losses import TeacherCodes
from monai_ssl.networks import DINOHead, ImageEncoder, MomentumCopy, cosine_momentum

from .base import SSLMethod
from .requirements import check_momentum

__all__ = ["SelfDistillation"]


class SelfDistillation(SSLMethod):
    """Student and teacher (encoder + head), the codes' centre, and the schedules; subclasses write the losses.

    Schedules go by the share of the training that is done. It is kept in the buffer ``progress``, so that a resumed
    training goes on with the same temperature.

    Args:
        encoder: the network to pretrain.
        num_outputs: K, of the head.
        hidden_features: width of the head's hidden layers.
        bottleneck_features: width of the unit vectors before the head's last layer.
        head_batch_norm: BatchNorm in the head, see :class:`monai_ssl.networks.DINOHead`.
        student_temperature: positive.
        teacher_temperature: at the start, and after the warm-up; positive.
        temperature_warmup: share of the training over which the teacher's temperature rises linearly.
        freeze_last_layer: share of the training at the start in which the head's last layer keeps still; the paper
            freezes it for one epoch.
        momentum: m of the teacher's update ``g <- m g + (1 - m) f`` at the start, in [0, 1].
        final_momentum: m at the end of a half cosine.
        centering: ``"mean"`` or ``"sinkhorn"``, see :class:`monai_ssl.losses.TeacherCodes`.
        center_momentum: of the centre.

    Raises:
        ValueError: a number is out of its range.
    """

    progress: Tensor

    def __init__(
        self,
        encoder: ImageEncoder,
        *,
        num_outputs: int,
        hidden_features: int,
        bottleneck_features: int,
        head_batch_norm: bool,
        student_temperature: float,
        teacher_temperature: tuple[float, float],
        temperature_warmup: float,
        freeze_last_layer: float,
        momentum: float,
        final_momentum: float,
        centering: Literal["mean", "sinkhorn"],
        center_momentum: float,
    ) -> None:
        super().__init__(encoder)
        if not student_temperature > 0 or len(teacher_temperature) != 2 or not min(teacher_temperature) > 0:
            raise ValueError(
                "the temperatures must be positive, two for the teacher (at the start and after the warm-up), got "
                f"student_temperature {student_temperature} and teacher_temperature {teacher_temperature}"
            )
        for name, share in (("temperature_warmup", temperature_warmup), ("freeze_last_layer", freeze_last_layer)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} is a share of the training, in [0, 1], got {share}")
        check_momentum(momentum=momentum, final_momentum=final_momentum, center_momentum=center_momentum)
        self.head = DINOHead(
            encoder.num_features, num_outputs, hidden_features, bottleneck_features, batch_norm=head_batch_norm
        )
        self.codes = TeacherCodes(num_outputs, centering, center_momentum)
        self.student_temperature = student_temperature
        self.teacher_temperatures = tuple(teacher_temperature)
        self.temperature_warmup = temperature_warmup
        self.freeze_last_layer = freeze_last_layer
        self.momentum = momentum
        self.final_momentum = final_momentum
        self.register_buffer("progress", torch.zeros(()))
        self._progress = 0.0  # mirrors the buffer, so that a step need not read it back from the device
        self.teacher = MomentumCopy(self._taught_parts())

    @property
    def last_layer_is_frozen(self) -> bool:
        """Whether the last layer keeps still in this step."""
        return self._progress < self.freeze_last_layer

    @property
    def teacher_temperature(self) -> float:
        """The teacher's temperature in this step."""
        start, end = self.teacher_temperatures
        if self._progress >= self.temperature_warmup:
            return end
        return start + (end - start) * self._progress / self.temperature_warmup

    def teacher_momentum(self, progress: float) -> float:
        """Return m after the step with which ``progress`` of the training is done."""
        return cosine_momentum(self.momentum, self.final_momentum, progress)

    def after_step(self, progress: float) -> None:
        """Move teacher and centre, and note how far the training is."""
        self.teacher.update(self._taught_parts(), self.teacher_momentum(progress))
        self.codes.update()
        self.progress.fill_(progress)
        self._progress = torch.tensor(progress, dtype=torch.float32).item()  # rounded as the buffer is

    @torch.no_grad()
    def health(self, codes: Tensor, loss: Tensor) -> dict[str, Tensor]:
        """Return what tells a collapse (the paper's section 5.3 and figure 7), from codes (G, B, K) and their loss.

        Returns:
            ``"teacher_entropy"``: of a code, from 0 to log K, which means that all codes are uniform; ``"divergence"``:
            the loss less that entropy, 0 when the student has nothing to learn; ``"outputs_used"``: exponential of the
            mean code's entropy, from 1, when all images have one code, to K.
        """
        entropy = torch.special.entr(codes).sum(-1).mean()
        used = torch.special.entr(codes.mean((0, 1))).sum().exp()
        return {"teacher_entropy": entropy, "divergence": loss.detach() - entropy, "outputs_used": used}

    def _taught_parts(self) -> nn.ModuleDict:
        return nn.ModuleDict({"encoder": self.encoder, "head": self.head})

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._progress = self.progress.item()
