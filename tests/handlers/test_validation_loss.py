# SPDX-License-Identifier: Apache-2.0
"""The loss on held-out data: measured without a trace, it lowers the rate, keeps the best and ends the training."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Events
from toy_training import LossLog, ToyImages, ToyMethod, toy_trainer

from monai_ssl.engines import TrainingStopped
from monai_ssl.handlers import EncoderExport, TrainingCheckpoint, TrainingCurves, ValidationEvents, ValidationLoss


class Told(ValidationLoss):
    """Values that a test decides on, in place of measured ones."""

    def __init__(self, values, **options) -> None:
        super().__init__([], **options)
        self.values = values

    def measure(self, engine):
        return {"val_loss": float(self.values[self.evaluations])}


def held_out(length: int = 10, batch: int = 5) -> list[dict]:
    images = ToyImages(length).images
    return [{"image": images[i : i + batch]} for i in range(0, length, batch)]


def no_dropout() -> ToyMethod:
    return ToyMethod(dropout=0)


def train(*handlers, **options) -> LossLog:
    log = LossLog()
    toy_trainer(train_handlers=[*handlers, log], learning_rate_schedule=None, **options).run()
    return log


def test_the_loss_is_the_methods_in_evaluation_mode_and_the_training_does_not_notice():
    plain = train(method=no_dropout)
    measured = ValidationLoss(held_out(), num_views=2, every_steps=2)
    log = LossLog()
    trainer = toy_trainer(train_handlers=[measured, log], method=no_dropout, learning_rate_schedule=None)
    trainer.run()
    assert log.losses == plain.losses
    assert measured.evaluations == 8, "every 2 of 15 steps, and the last"
    measured_again = measured.measure(trainer)
    assert trainer.method.training and measured_again.keys() == {"val_loss", "val_accuracy"}
    trainer.method.eval()
    with torch.no_grad():
        values = [trainer.method({"views": [batch["image"]] * 2})["loss"].item() for batch in held_out()]
    assert measured_again["val_loss"] == pytest.approx(sum(values) / 2)


def test_batches_count_by_their_images():
    class Mean(ToyMethod):
        def forward(self, batch):
            out = super().forward(batch)
            return out | {"loss": out["loss"] * 0 + batch["views"][0].mean()}

    images = torch.cat([torch.zeros(3, 1, 8, 8), torch.ones(1, 1, 8, 8)])
    loader = [{"image": images[:3]}, {"image": images[3:]}]
    handler = ValidationLoss(loader, num_views=2)
    assert handler.measure(toy_trainer(method=Mean))["val_loss"] == pytest.approx(0.25)


def test_the_view_is_the_given_one_and_knows_the_extent():
    seen = []

    def view(image, generator, extent):
        seen.append((generator, extent))
        return image

    loader = [batch | {"extent": torch.full((5, 2), 8)} for batch in held_out()]
    ValidationLoss(loader, view, num_views=2).measure(toy_trainer())
    assert len(seen) == 2 and all(generator is None and (extent == 8).all() for generator, extent in seen)


def test_the_rate_is_halved_after_so_many_evaluations_without_improvement():
    values = [5, 4, 4, 4.1, 3, 3.5, 3.2, 3.1, 3.0, 2, 2, 2, 2, 2, 2]
    log = train(Told(values, every_steps=1, patience=2), learning_rate=0.1)
    # Evaluation i decides on the rate of step i + 1: it falls after 4, 4.1; 3.5, 3.2; 3.1, 3.0; 2, 2; 2, 2.
    factors = [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125, 0.125, 0.0625, 0.0625, 0.03125]
    assert log.rates == pytest.approx([0.1 * factor for factor in factors])


def test_the_rate_does_not_fall_below_a_floor_nor_where_it_is_to_stay():
    class Constant(ToyMethod):
        def parameter_groups(self, weight_decay):
            first, second = super().parameter_groups(weight_decay)
            return [first, second | {"constant_lr": True}]

    handler = Told([1] * 15, every_steps=1, patience=1, factor=0.1, min_learning_rate=0.004)
    trainer = toy_trainer(method=Constant, train_handlers=[handler], learning_rate_schedule=None, learning_rate=0.1)
    trainer.run()
    assert [group["lr"] for group in trainer.optimizer.param_groups] == pytest.approx([0.004, 0.1])


def test_the_training_ends_without_improvement_and_after_so_many_evaluations():
    early = Told([3, 2, 2.5, 2.5, 2.5, 1], every_steps=1, stop_patience=3)
    assert len(train(early).losses) == 5 and early.ended
    counted = Told(range(15, 0, -1), every_steps=2, max_evaluations=3)
    assert len(train(counted).losses) == 6 and counted.ended
    never = Told(range(15, 0, -1), every_steps=1, stop_patience=1)
    assert len(train(never).losses) == 15 and not never.ended


def test_once_an_epoch_unless_told_and_at_the_end_in_any_case():
    for options, expected in (({}, 3), ({"every_steps": 4}, 4), ({"every_steps": 100}, 1)):
        handler = Told([1] * 9, **options)
        train(handler)
        assert handler.evaluations == expected, options
    handler = Told([1] * 9)
    train(handler, accumulate=2)  # 3 steps an epoch
    assert handler.evaluations == 3


def test_the_event_is_no_other_one():
    """Ignite compares events by their names: one called COMPLETED would end the training's files and writers."""
    fired = []

    class Counting:
        def attach(self, engine):
            engine.add_event_handler(Events.COMPLETED, lambda: fired.append("end"))
            engine.add_event_handler(ValidationEvents.VALIDATION_COMPLETED, lambda: fired.append("evaluation"))

    train(Told([1] * 3), Counting())
    assert fired == ["evaluation"] * 3 + ["end"]


@pytest.mark.parametrize(("values", "rows"), [([3, 3, 3], 2), ([3, 2, 2], 3)])
def test_an_end_after_an_epoch_lets_its_handlers_do_their_part(tmp_path, values, rows):
    train(Told(values, stop_patience=1), TrainingCurves(tmp_path))
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 1 + rows


@pytest.mark.parametrize("prefer_best", [True, False])
def test_the_weights_of_the_lowest_loss_are_kept_from_the_middle_of_an_epoch(tmp_path, prefer_best):
    kept = {}

    def save(encoder, path, manifest):
        kept[path.name] = (encoder.net[0].weight.detach().clone(), manifest["metrics"]["val_loss"])
        path.write_text("")

    class Weights:
        def __init__(self):
            self.at = {}

        def attach(self, engine):
            def note():
                self.at[engine.state.metrics["val_loss"]] = engine.method.encoder.net[0].weight.detach().clone()

            engine.add_event_handler(ValidationEvents.VALIDATION_COMPLETED, note)

    weights = Weights()
    export = EncoderExport(
        tmp_path,
        metric="val_loss",
        higher_is_better=False,
        prefer_best=prefer_best,
        metric_event=ValidationEvents.VALIDATION_COMPLETED,
        save=save,
    )
    train(export, Told([9, 8, 7, 1.5, 2, 3, 4, 5], every_steps=2), weights)
    best, last = ("encoder", "encoder_last") if prefer_best else ("encoder_best", "encoder")
    assert export.best == 1.5
    weight, value = kept[f"{best}.safetensors"]
    assert value == 1.5 and torch.equal(weight, weights.at[1.5])
    weight, value = kept[f"{last}.safetensors"]
    assert value == 5 and torch.equal(weight, weights.at[5]) and not torch.equal(weight, weights.at[1.5])


@pytest.mark.parametrize("stop", [4, 7, 9])
def test_a_resumed_training_goes_on_to_the_same_numbers(tmp_path, stop):
    values = [5, 6, 6, 4, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6]
    settings = {"every_steps": 1, "patience": 2, "stop_patience": 8}
    whole = train(Told(values, **settings), learning_rate=0.1)
    assert len(whole.losses) == 12

    class Stop(LossLog):
        def __call__(self, engine):
            super().__call__(engine)
            if engine.state.iteration == stop:
                engine.request_stop("stopped by the test")

    first, second = Stop(), LossLog()
    options = {"learning_rate_schedule": None, "learning_rate": 0.1}
    with pytest.raises(TrainingStopped):
        toy_trainer(train_handlers=[TrainingCheckpoint(tmp_path), Told(values, **settings), first], **options).run()
    again = Told(values, **settings)
    toy_trainer(train_handlers=[TrainingCheckpoint(tmp_path, resume=True), again, second], seed=9, **options).run()
    assert first.losses | second.losses == whole.losses
    assert first.rates + second.rates == whole.rates
    assert again.best == 4 and again.ended
    third = LossLog()
    ended = Told(values, **settings)
    toy_trainer(train_handlers=[TrainingCheckpoint(tmp_path, resume=True), ended, third], **options).run()
    assert not third.losses, "what had ended does not go on"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every_steps": 0}, "every_steps must be at least 1"),
        ({"patience": 0}, "patience must be at least 1"),
        ({"stop_patience": 0}, "stop_patience must be at least 1"),
        ({"max_evaluations": 0}, "max_evaluations must be at least 1"),
        ({"num_views": 0}, "num_views must be at least 1"),
        ({"factor": 1.0}, r"factor must be in \(0, 1\)"),
        ({"min_learning_rate": -1}, "min_learning_rate at least 0"),
    ],
)
def test_wrong_settings_name_themselves(options, message):
    with pytest.raises(ValueError, match=message):
        ValidationLoss([], **options)


def test_two_masters_of_the_rate_are_refused():
    with pytest.raises(ValueError, match="learning_rate_schedule=None, or set patience to None"):
        toy_trainer(train_handlers=[ValidationLoss(held_out(), patience=5)])
    toy_trainer(train_handlers=[ValidationLoss(held_out())])


def test_no_batch_is_an_error():
    with pytest.raises(ValueError, match="yields no batch"):
        ValidationLoss([]).measure(toy_trainer())
