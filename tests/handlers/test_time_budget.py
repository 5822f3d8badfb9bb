# SPDX-License-Identifier: Apache-2.0
"""A training of some minutes: epochs that fit, schedules that end, a clock that goes on after a resume."""

from __future__ import annotations

import pytest
from ignite.engine import Events
from toy_training import toy_trainer

from monai_ssl.handlers import TimeBudget
from monai_ssl.handlers import time_budget as module


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only as told."""

    class Clock:
        now = 100.0

        def perf_counter(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def trainer_of(clock, budget, pace, max_epochs=1000):
    """A trainer whose iteration number i takes ``pace(i)`` seconds."""
    trainer = toy_trainer(max_epochs=max_epochs)

    def work(engine):
        clock.now += pace(engine.state.iteration + 1)  # it counts when the batch is there

    trainer.add_event_handler(Events.GET_BATCH_COMPLETED, work)
    budget.attach(trainer)
    return trainer


def test_as_many_epochs_as_fit_and_the_schedule_ends(clock):
    budget = TimeBudget(minutes=2)
    trainer = trainer_of(clock, budget, lambda iteration: 20 if iteration == 1 else 1)  # the first one measures
    length = trainer.state.epoch_length
    trainer.run()
    assert trainer.state.epoch == trainer.state.max_epochs == (120 - 20 + 1) // length
    assert trainer.optimizer_steps == trainer.total_steps and trainer.method.progress[-1] == 1
    assert 120 - length <= budget.seconds <= 120


def test_it_follows_a_machine_that_slows_down(clock):
    budget = TimeBudget(minutes=2)
    trainer = trainer_of(clock, budget, lambda iteration: 1 if iteration < 30 else 3)
    trainer.run()
    assert trainer.method.progress[-1] == 1, "whole epochs"
    assert budget.seconds <= 120 and trainer.optimizer_steps < 80


def test_the_time_is_up_in_the_middle_of_an_epoch(clock, caplog):
    budget, ended = TimeBudget(minutes=2), []
    trainer = trainer_of(clock, budget, lambda iteration: 50)
    trainer.add_event_handler(Events.COMPLETED, lambda: ended.append(True))
    trainer.run()
    assert trainer.state.iteration == 3 and ended, "handlers of the end act"
    assert "the time is up after 2.5 minutes" in caplog.text


def test_a_resumed_training_has_the_rest(clock):
    whole = TimeBudget(minutes=2)
    trainer_of(clock, whole, lambda iteration: 1).run()
    budget = TimeBudget(minutes=2)
    trainer = trainer_of(clock, budget, lambda iteration: 1)
    trainer.add_event_handler(Events.EPOCH_COMPLETED(once=3), lambda engine: engine.request_stop("enough"))
    with pytest.raises(SystemExit):
        trainer.run()
    state, passed = trainer.state_dict(), budget.seconds
    clock.now += 1e6  # between the runs
    again = TimeBudget(minutes=2)
    resumed = trainer_of(clock, again, lambda iteration: 1)
    resumed.load_state_dict(state)
    assert again.seconds == passed
    resumed.run()
    assert again.seconds == pytest.approx(whole.seconds, abs=resumed.state.epoch_length)


def test_refuses_no_time():
    with pytest.raises(ValueError, match="minutes must be positive"):
        TimeBudget(0)
