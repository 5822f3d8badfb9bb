# SPDX-License-Identifier: Apache-2.0
"""After a resume every following loss is the same number, whatever draws random numbers and wherever it stopped."""

from __future__ import annotations

import pytest
import torch
from monai.data import DataLoader as MonaiDataLoader
from torch.utils.data import DataLoader, RandomSampler
from toy_training import LossLog, ToyEpochSampler, ToyImages, ToyMethod, toy_trainer

from monai_ssl.data import EpochSampler
from monai_ssl.engines import step_schedule
from monai_ssl.networks import FeatureQueue


def sampled_by_position(workers: int) -> DataLoader:
    images = ToyImages()
    return DataLoader(images, 4, sampler=ToyEpochSampler(len(images)), num_workers=workers)


def shuffled_and_noisy(workers: int) -> DataLoader:
    """Shuffling and noise from global generators, in this process or in the workers: batches are read again."""
    images = ToyImages(noisy=True)
    return MonaiDataLoader(images, batch_size=4, sampler=RandomSampler(images), num_workers=workers)


def real_sampler_and_lasting_workers(workers: int) -> DataLoader:
    images = ToyImages()
    sampler = EpochSampler(len(images), seed=3)
    return DataLoader(images, 4, sampler=sampler, num_workers=workers, persistent_workers=workers > 0)


def saved_to_disk(state: dict, path) -> dict:
    torch.save(state, path)
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize(
    "loader, workers",
    [(sampled_by_position, 0), (sampled_by_position, 2), (shuffled_and_noisy, 0), (shuffled_and_noisy, 2)],
)
@pytest.mark.parametrize("stop", [7, 10])
def test_the_next_losses_are_the_same_numbers(loader, workers, stop, tmp_path):
    whole, first, second = LossLog(), LossLog(stop), LossLog()
    toy_trainer(loader=loader(workers), train_handlers=[whole]).run()
    interrupted = toy_trainer(loader=loader(workers), train_handlers=[first])
    interrupted.run()
    state = saved_to_disk(interrupted.state_dict(), tmp_path / "state.pt")
    resumed = toy_trainer(loader=loader(workers), train_handlers=[second], seed=99)  # all generators elsewhere
    resumed.load_state_dict(state)
    resumed.run()
    assert first.losses | second.losses == whole.losses
    assert list(second.losses) == list(range(stop + 1, 16))


@pytest.mark.parametrize("optimizer", ["adamw", "lars"])
def test_optimizers_schedules_and_accumulation_resume(optimizer, tmp_path):
    options = {
        "optimizer": optimizer,
        "accumulate": 2,
        "clip_norm": 1.0,
        "precision": "bf16",
        "channels_last": True,
        "learning_rate_schedule": step_schedule([0.3, 0.7]),
        "weight_decay_schedule": lambda step, total: step / total,
    }
    whole, first, second = LossLog(), LossLog(7), LossLog()
    toy_trainer(train_handlers=[whole], **options).run()
    interrupted = toy_trainer(train_handlers=[first], **options)
    interrupted.run()
    resumed = toy_trainer(train_handlers=[second], **options)
    resumed.load_state_dict(saved_to_disk(interrupted.state_dict(), tmp_path / "state.pt"))
    resumed.run()
    assert first.losses | second.losses == whole.losses
    assert first.rates + second.rates == whole.rates
    assert resumed.method.progress[-1] == 1.0


def test_an_automatic_precision_is_not_chosen_again():
    trainer = toy_trainer(precision="auto", channels_last="auto", max_epochs=1)
    state = toy_trainer(max_epochs=1).state_dict() | {"precision": "bf16", "channels_last": True}
    trainer.load_state_dict(state)
    trainer.run()
    assert (trainer.precision, trainer.channels_last) == ("bf16", True)


def test_a_training_can_be_prolonged():
    trainer = toy_trainer(max_epochs=1)
    trainer.run()
    log = LossLog()
    longer = toy_trainer(max_epochs=2, train_handlers=[log])
    longer.load_state_dict(trainer.state_dict())
    longer.run()
    assert list(log.losses) == list(range(6, 11))


def test_state_between_steps_only():
    trainer = toy_trainer(accumulate=2, train_handlers=[LossLog(1)])
    trainer.run()
    with pytest.raises(RuntimeError, match="between two optimiser steps"):
        trainer.state_dict()


def test_states_of_registered_parts_come_back():
    class Counter:
        value = 0

        def state_dict(self):
            return {"value": self.value}

        def load_state_dict(self, state):
            self.value = state["value"]

    trainers = [toy_trainer(), toy_trainer()]
    counters = [Counter(), Counter()]
    for trainer, counter in zip(trainers, counters, strict=True):
        trainer.register_state("counter", counter)
    counters[0].value = 5
    trainers[1].load_state_dict(trainers[0].state_dict())
    assert counters[1].value == 5
    with pytest.raises(ValueError, match="two handlers"):
        trainers[0].register_state("counter", Counter())


@pytest.mark.parametrize(
    "options, message",
    [
        ({"method": lambda: ToyMethod(spatial_dims=3)}, "another method or network"),
        ({"batch_size": 5}, "saved with epoch_length 5, and now it is 4"),
        ({"accumulate": 5}, "saved with accumulate 1, and now it is 5"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(options, message):
    state = toy_trainer().state_dict()
    with pytest.raises(ValueError, match=message):
        toy_trainer(**options).load_state_dict(state)


def test_a_state_that_lacks_what_a_part_can_fill_in_is_taken():
    trainer = toy_trainer()
    trainer.method.memory = FeatureQueue(4, 2)
    state = toy_trainer().state_dict()
    older = {f"memory.{name}": value for name, value in FeatureQueue(4, 2).state_dict().items() if name != "groups"}
    trainer.load_state_dict(state | {"method": state["method"] | older})
    assert trainer.method.memory.groups.tolist() == [-1] * 4
    assert torch.equal(trainer.method.memory.features, older["memory.features"])


def test_a_state_of_another_optimizer_or_program_is_refused():
    state = toy_trainer().state_dict()
    fewer = dict(state["optimizer"], param_groups=state["optimizer"]["param_groups"][:1])
    with pytest.raises(ValueError, match="another optimiser"):
        toy_trainer().load_state_dict(state | {"optimizer": fewer})
    with pytest.raises(ValueError, match="not the state of a training"):
        toy_trainer().load_state_dict({"state_dict": {}})
    with pytest.raises(ValueError, match="format 99"):
        toy_trainer().load_state_dict(state | {"format": 99})


def test_another_learning_rate_is_named(caplog):
    state = toy_trainer().state_dict()
    toy_trainer(learning_rate=0.5).load_state_dict(state)
    assert "learning rate 0.1; 0.5 is not used" in caplog.text
