# SPDX-License-Identifier: Apache-2.0
"""The trainer: a MONAI engine that draws views on the device and trains a self-supervised method on them."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from monai.engines import Trainer
from monai.engines.utils import IterationEvents
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from monai_ssl.engines.distributed import is_main_process
from monai_ssl.engines.epochs import EpochBatches
from monai_ssl.engines.precision import AUTOCAST_TYPES, choose_precision, to_memory_format
from monai_ssl.engines.random_state import stream_seed
from monai_ssl.engines.schedules import StepSchedule
from monai_ssl.engines.stopping import StopSignals, TrainingStopped
from monai_ssl.engines.training_state import load_training_state, training_state
from monai_ssl.networks.sync_batch_norm import convert_sync_batch_norm

__all__ = ["PretrainTrainer"]

logger = logging.getLogger(__name__)


class PretrainTrainer(Trainer):
    """Train a self-supervised method. MONAI's and ignite's handlers work with it.

    An iteration: batch to the device, views, forward under autocast, backward; and after ``accumulate`` iterations (or
    at the epoch's end) clip, one optimiser step, ``method.after_step(progress)``. ``engine.state.output`` is a
    dictionary: what the method returned, scalars as floats and the others (``embedding``) as tensors, plus
    ``learning_rate`` and, in iterations that end with a step, ``gradient_norm``. ``engine.state.batch`` has the views.

    In a process group the method is wrapped in ``DistributedDataParallel`` and the gradient is the mean over processes.

    Args:
        device: where to train.
        max_epochs: epochs in all, those before a resume counted. 0 trains nothing: handlers act at start and end,
            so the encoder is exported as it started, bit for bit.
        train_data_loader: yields ``{"image": (B, C, *spatial) float32, "index": (B,), "extent": (B, spatial_dims)}``;
            ``extent`` may be absent. A ``DataLoader``, or any iterable that can be iterated again.
        method: a :class:`monai_ssl.methods.SSLMethod`; moved to ``device``.
        optimizer: over the method's parameters; its learning rate is the schedule's peak.
        views: ``views(image, generator=..., extent=...) -> list of (B, C, *size)``, for example a
            :class:`monai_ssl.transforms.MultiView`. A generator on ``device`` is passed. A method with
            ``wants_positions`` needs views that also have ``positions``, as that class has. Views with a true
            ``wants_source``, as :class:`monai_ssl.transforms.SourceViews`, also get ``source=batch["source"]``, which
            stays where the loader put it.
        seed: of the views' generator (each process draws its own stream of it).
        map_keys: entries of a batch that are maps of its images, (B, 1, *spatial) of any type: label maps, or where
            voxels are valid. Views that can ``draw`` and ``apply``, as a :class:`monai_ssl.transforms.MultiView`, take
            it through the same draw as its image, with nearest interpolation, to a list with one map for each view;
            other views leave it as it is.
        precision: ``"fp32"``, ``"bf16"``, ``"fp16"`` (CUDA only, with loss scaling), or ``"auto"``: measured on the
            first batch, see :func:`monai_ssl.engines.choose_precision`.
        channels_last: memory format of images and weights, or ``"auto"``, likewise.
        accumulate: iterations whose gradients are averaged into one step.
        clip_norm: largest gradient norm; None does not clip.
        epoch_length: iterations an epoch, at most ``len(train_data_loader)``, which is the default.
        learning_rate_schedule: factor on each group's learning rate, see :mod:`monai_ssl.engines.schedules`; groups
            with ``"constant_lr": True`` keep the optimiser's.
        weight_decay_schedule: factor on each group's weight decay.
        synchronize_batch_norm: in a process group, let BatchNorm use the batches of all processes.
        find_unused_parameters: for methods some of whose parameters get no gradient in some steps (distributed only).
        key_train_metric: see ``monai.engines.SupervisedTrainer``.
        additional_metrics: likewise.
        train_handlers: handlers with ``attach(engine)``; None (disabled in a configuration) is skipped. One with a true
            ``restores_state`` is attached first.
        event_names: further events to register.

    Attributes:
        method: the method itself.
        network: what is called: the method, or its distributed wrapper.
        optimizer_steps: optimiser steps so far, over all epochs.
        generator: the views' random numbers.
        world_size: number of processes.

    Raises:
        ValueError: an argument is out of its range.
        RuntimeError: (in :meth:`run`) the loss or the gradient is not finite.
        TrainingStopped: (in :meth:`run`) after SIGINT or SIGTERM, or :meth:`request_stop`; a ``SystemExit``.
    """

    def __init__(
        self,
        device: torch.device | str,
        max_epochs: int,
        train_data_loader: Iterable[dict[str, Any]],
        method: nn.Module,
        optimizer: torch.optim.Optimizer,
        views: Callable[..., list[Tensor]],
        *,
        seed: int = 0,
        map_keys: Sequence[str] = ("label_map", "valid"),
        precision: str = "auto",
        channels_last: bool | str = "auto",
        accumulate: int = 1,
        clip_norm: float | None = None,
        epoch_length: int | None = None,
        learning_rate_schedule: StepSchedule | None = None,
        weight_decay_schedule: StepSchedule | None = None,
        synchronize_batch_norm: bool = True,
        find_unused_parameters: bool = False,
        key_train_metric: dict[str, Any] | None = None,
        additional_metrics: dict[str, Any] | None = None,
        train_handlers: Sequence[Any] | None = None,
        event_names: list[Any] | None = None,
    ) -> None:
        device = torch.device(device)
        _check(device, precision, channels_last, accumulate, clip_norm, epoch_length, train_data_loader)
        super().__init__(
            device=device,
            max_epochs=max_epochs,
            data_loader=train_data_loader,
            epoch_length=epoch_length,
            non_blocking=True,
            key_metric=key_train_metric,
            additional_metrics=additional_metrics,
            event_names=event_names,
            decollate=False,
        )
        if self.state.epoch_length is None:
            raise ValueError("the loader has no length: give epoch_length, the schedules need it")
        self.state.seed = seed
        self.world_size = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        self.distributed = self.world_size > 1
        self.method = method.to(device)
        if self.distributed and synchronize_batch_norm:
            self.method = convert_sync_batch_norm(self.method)
        self.network: nn.Module = self.method
        self.optimizer = optimizer
        self.views = views
        self.map_keys = tuple(map_keys)
        self.generator = torch.Generator(device).manual_seed(stream_seed(seed, self.state.rank))
        self.precision, self.channels_last = precision, channels_last
        self.accumulate, self.clip_norm = accumulate, clip_norm
        self.learning_rate_schedule, self.weight_decay_schedule = learning_rate_schedule, weight_decay_schedule
        self.find_unused_parameters = find_unused_parameters
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
            group.setdefault("initial_weight_decay", group.get("weight_decay", 0.0))
        self.scaler = torch.amp.GradScaler("cuda") if precision == "fp16" else None
        self.optimizer_steps = 0
        self.stateful: dict[str, Any] = {}
        self.batches = EpochBatches(train_data_loader, self.state.epoch_length, device)
        self._wrapped = False
        self._step_made = True
        self._signals = StopSignals()
        self._stop: TrainingStopped | None = None
        self.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)
        self.add_event_handler(Events.ITERATION_COMPLETED, self._heed_signals)
        handlers = [handler for handler in train_handlers or () if handler is not None]
        self._register_handlers(sorted(handlers, key=lambda handler: not getattr(handler, "restores_state", False)))

    # ---- running -----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Train until ``max_epochs``, from the start or from what was loaded."""
        if self.total_iterations == 0:  # a stage of no epochs hands on what it started from; ignite refuses it
            self.fire_event(Events.STARTED)
            self.fire_event(Events.COMPLETED)
            return
        if self.total_iterations <= self.state.iteration:
            logger.info("nothing to train: all %d epochs are done", self.state.max_epochs)
            return
        self._stop = None
        self.should_terminate = False  # or ignite, after an early end, would count the epoch's iterations from 0
        with self._signals:
            Engine.run(self, data=self.batches, max_epochs=self.state.max_epochs)
        # Ended early, perhaps: another run() goes on from here.
        self.state.epoch, in_epoch = divmod(self.state.iteration, self.state.epoch_length)
        self.batches.continue_at(in_epoch, self.batches.state_dict())
        if self._stop is not None:
            if is_main_process():
                print(self._stop.message, file=sys.stderr, flush=True)
            raise self._stop

    def request_stop(self, message: str, code: int = 1) -> None:
        """End the run after this iteration; :meth:`run` then shows the message and raises :class:`TrainingStopped`."""
        self._stop = TrainingStopped(message, code)
        self.terminate(skip_completed=True)

    @property
    def stop(self) -> TrainingStopped | None:
        """Why the run is ending early, if it is."""
        return self._stop

    @property
    def total_iterations(self) -> int:
        """Iterations of the whole training."""
        return self.state.max_epochs * self.state.epoch_length

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole training."""
        return self.state.max_epochs * math.ceil(self.state.epoch_length / self.accumulate)

    @property
    def at_step_boundary(self) -> bool:
        """Whether the last iteration ended with an optimiser step, so that the state can be saved."""
        return self._step_made

    def _start_epoch(self, _: Engine) -> None:
        self.batches.epoch = self.state.epoch - 1

    def _heed_signals(self, _: Engine) -> None:
        if self.at_step_boundary and self._stop is None:
            number = self._signals.agreed(self.optimizer_steps, self.state.device)
            if number is not None:
                name = {2: "Ctrl-C", 15: "SIGTERM"}.get(number, f"signal {number}")
                where = f"epoch {self.state.epoch} of {self.state.max_epochs}, step {self.optimizer_steps}"
                self.request_stop(f"training stopped by {name} in {where}", 128 + number)

    # ---- one iteration -----------------------------------------------------------------------------------------------

    def _iteration(self, engine: PretrainTrainer, batchdata: dict[str, Any]) -> dict[str, Any]:
        batch = self._prepared(batchdata)
        if not self._wrapped:
            self._wrap(batch)
        batch["views"] = [to_memory_format(view, bool(self.channels_last)) for view in batch["views"]]
        self.state.batch = batch
        position = (self.state.iteration - 1) % self.state.epoch_length
        group_start = position - position % self.accumulate
        group_size = min(self.accumulate, self.state.epoch_length - group_start)
        last = position + 1 == group_start + group_size

        self.network.train()
        if position == group_start:
            self.optimizer.zero_grad(set_to_none=True)
        self._step_made = False
        with self._gradient_exchange(last):
            with self.autocast():
                output = self.network(batch)
            self.fire_event(IterationEvents.FORWARD_COMPLETED)
            loss = output["loss"] / group_size
            (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        self.fire_event(IterationEvents.LOSS_COMPLETED)
        self.fire_event(IterationEvents.BACKWARD_COMPLETED)
        if last:
            output["gradient_norm"] = self._clipped_norm()
        values = _as_floats(output)
        self._refuse_not_finite(values)
        if last:
            self._step()
        values["learning_rate"] = self.optimizer.param_groups[0]["lr"]
        self.state.output = values
        self.fire_event(IterationEvents.MODEL_COMPLETED)
        return values

    def _prepared(self, batchdata: dict[str, Any]) -> dict[str, Any]:
        """Move a batch to the device, as plain tensors, and add its views and their generator."""
        if not isinstance(batchdata, dict) or "image" not in batchdata:
            raise ValueError("the loader must yield dictionaries with the entry 'image': (B, C, *spatial)")
        if hasattr(self.method, "check_batch"):
            self.method.check_batch(batchdata)
        batch = {key: self._moved(value) for key, value in batchdata.items()}
        image, extent, maps = batch["image"], batch.get("extent"), [key for key in self.map_keys if key in batch]
        placed = getattr(self.method, "wants_positions", False)
        if placed and not hasattr(self.views, "positions"):
            raise ValueError(
                f"{type(self.method).__name__} must know where its views were read: give views that can draw, apply "
                "and tell positions, as monai_ssl.transforms.MultiView"
            )
        # Not the moved one: views are chosen by its values, and looking at them must not wait for the device.
        told = {"source": batchdata.get("source")} if getattr(self.views, "wants_source", False) else {}
        with torch.no_grad():
            if placed or (maps and hasattr(self.views, "draw")):
                params = self.views.draw(image.shape, self.generator, image.device, extent, **told)
                views = self.views.apply(image, params)
                batch |= {key: self.views.apply(batch[key], params, "nearest") for key in maps}
                if placed:
                    batch["positions"] = self.views.positions(image.shape, params, self.method.positions_stride)
            else:
                views = self.views(image, generator=self.generator, extent=extent, **told)
        return batch | {"views": views, "generator": self.generator}

    def _moved(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        plain = value.as_tensor() if hasattr(value, "as_tensor") else value  # MONAI's MetaTensor
        return plain.to(self.state.device, non_blocking=self.non_blocking)

    def _wrap(self, batch: dict[str, Any]) -> None:
        """Settle precision and memory format with the first batch; then wrap for several processes."""
        if "auto" in (self.precision, self.channels_last):
            device = self.state.device
            bf16 = device.type == "cpu" or (device.type == "cuda" and torch.cuda.is_bf16_supported())
            names = [self.precision] if self.precision != "auto" else ["fp32", "bf16"] if bf16 else ["fp32"]
            formats = [False, True] if self.channels_last == "auto" else [bool(self.channels_last)]
            choice = choose_precision(self.method, batch, precisions=names, channels_last=formats)
            self.precision, self.channels_last = choice.precision, choice.channels_last
            logger.info("precision and memory format, measured on this machine and network:\n%s", choice.table)
        for parameter in self.method.parameters():
            parameter.data = to_memory_format(parameter.data, bool(self.channels_last))
        if self.distributed:
            for buffer in self.method.buffers():
                dist.broadcast(buffer, src=0)
            # Buffers (queue, teacher's statistics) are the method's own business: no broadcast in each step.
            self.network = DistributedDataParallel(
                self.method,
                device_ids=[self.state.device] if self.state.device.type == "cuda" else None,
                broadcast_buffers=False,
                find_unused_parameters=self.find_unused_parameters,
            )
        self._wrapped = True

    def autocast(self) -> torch.autocast:
        """Return a new autocast context of the training's precision, for probes that compute as it does."""
        dtype = AUTOCAST_TYPES.get(self.precision, torch.float32)  # "auto" is settled with the first batch
        # Without the cache: it would hand a weight that was first used under no_grad to the pass that needs gradients.
        return torch.autocast(self.state.device.type, dtype=dtype, enabled=dtype != torch.float32, cache_enabled=False)

    def _gradient_exchange(self, last: bool):
        return nullcontext() if last or not self.distributed else self.network.no_sync()

    def _clipped_norm(self) -> Tensor:
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in parameters])
        if self.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(parameters, self.clip_norm, norm)
        return norm

    def _step(self) -> None:
        for group in self.optimizer.param_groups:
            if self.learning_rate_schedule is not None and not group.get("constant_lr", False):
                group["lr"] = group["initial_lr"] * self.learning_rate_schedule(self.optimizer_steps, self.total_steps)
            if self.weight_decay_schedule is not None:
                factor = self.weight_decay_schedule(self.optimizer_steps, self.total_steps)
                group["weight_decay"] = group["initial_weight_decay"] * factor
        self.optimizer_steps += 1
        if self.scaler is None:
            self.optimizer.step()
        else:
            scale = self.scaler.get_scale()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            if self.scaler.get_scale() < scale:
                return  # fp16 overflowed and the optimiser skipped this step
        self._step_made = True
        self.method.after_step(self.optimizer_steps / self.total_steps)

    def _refuse_not_finite(self, values: dict[str, Any]) -> None:
        names = ["loss"] if self.scaler is not None else ["loss", "gradient_norm"]
        bad = [name for name in names if not math.isfinite(values.get(name, 0.0))]
        if bad:
            raise RuntimeError(
                f"the {bad[0].replace('_', ' ')} is {values[bad[0]]} in epoch {self.state.epoch}, step "
                f"{self.optimizer_steps + 1}: training stops before it spoils the weights. Try a lower learning_rate, "
                f"a longer warm-up, clip_norm=1, precision='fp32' (now {self.precision}), and look at the images for "
                "constant or not finite ones"
            )

    # ---- state -------------------------------------------------------------------------------------------------------

    def register_state(self, name: str, part: Any) -> None:
        """Keep the state of a handler (it has ``state_dict`` and ``load_state_dict``) with the training's."""
        if name in self.stateful:
            raise ValueError(f"two handlers of the kind {name!r} can't keep their states apart; use one")
        self.stateful[name] = part

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next step depends on, see :mod:`monai_ssl.engines.training_state`."""
        return training_state(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to where :meth:`state_dict` was called; the next loss is the same number.

        Raises:
            ValueError: the state is of another method, optimiser or loader.
        """
        load_training_state(self, state)


def _as_floats(output: dict[str, Any]) -> dict[str, Any]:
    """Detach everything and turn scalar tensors into floats, with one transfer from the device."""
    scalars = {key: value for key, value in output.items() if isinstance(value, Tensor) and value.numel() == 1}
    device = output["loss"].device
    numbers = torch.stack([value.detach().float().reshape(()).to(device) for value in scalars.values()]).tolist()
    others = {key: value.detach() if isinstance(value, Tensor) else value for key, value in output.items()}
    return others | dict(zip(scalars, numbers, strict=True))


def _check(device, precision, channels_last, accumulate, clip_norm, epoch_length, loader) -> None:
    if precision != "auto" and precision not in AUTOCAST_TYPES:
        raise ValueError(f"precision must be 'auto' or one of {', '.join(AUTOCAST_TYPES)}, got {precision!r}")
    if precision == "fp16" and device.type != "cuda":
        raise ValueError(f"precision 'fp16' needs a CUDA device, not {device.type!r}; use 'bf16', 'fp32' or 'auto'")
    if channels_last not in (True, False, "auto"):
        raise ValueError(f"channels_last must be True, False or 'auto', got {channels_last!r}")
    if accumulate < 1:
        raise ValueError(f"accumulate must be at least 1, got {accumulate}")
    if clip_norm is not None and not clip_norm > 0:
        raise ValueError(f"clip_norm must be positive or None, got {clip_norm}")
    length = len(loader) if hasattr(loader, "__len__") else None
    if length == 0:
        raise ValueError("the loader yields no batch: are there fewer images than batch_size, with drop_last?")
    if epoch_length is not None and (epoch_length < 1 or (length is not None and epoch_length > length)):
        raise ValueError(f"epoch_length must be from 1 to the loader's {length} batches, got {epoch_length}")
