# SPDX-License-Identifier: Apache-2.0
"""The monitor names a collapse that is one, keeps quiet about a healthy training, and disturbs neither."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.functional import normalize
from toy_training import LossLog, ToyMethod, toy_trainer

from monai_ssl.handlers import CollapseMonitor, judge_embeddings


@pytest.mark.parametrize(
    "spread, rank, best_spread, best_rank, level, word",
    [
        (0.95, 60, 0.95, 65, "healthy", ""),
        (0.01, 60, 0.9, 65, "collapsed", "nearly the same embedding"),
        (0.9, 1.2, 0.9, 60, "collapsed", "on a line"),
        (0.9, 25, 0.9, 60, "shrinking", "60.0 directions were used before"),
        (0.4, 60, 0.9, 60, "shrinking", "up to 0.90"),
        (0.15, 60, 0.15, 60, "shrinking", "close"),
    ],
)
def test_verdicts(spread, rank, best_spread, best_rank, level, word):
    verdict = judge_embeddings(spread, rank, 128, best_spread, best_rank)
    assert verdict.level == level
    assert word in verdict.advice
    assert str(verdict).startswith(f"{level}: spread {spread:.2f} of 1")


def test_no_alarm_at_the_start():
    assert judge_embeddings(0.01, 1.0, 128, 0, 0, starting=True).level == "starting"
    assert judge_embeddings(0.9, 60, 128, 0, 0, starting=True).level == "healthy"


class Scripted(ToyMethod):
    """Embeddings as told, whatever the network does: ``spread`` of 1 is the whole sphere."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, batch):
        output = super().forward(batch)
        generator = torch.Generator().manual_seed(len(self.progress))
        x = torch.randn(4, 16, generator=generator)
        late = len(self.progress) > 15
        if self.kind == "point" and late:
            x = torch.ones(4, 16) + 0.001 * x
        if self.kind == "plane" and late:
            x[:, 2:] = 0
        return output | {"embedding": normalize(x, dim=1), "embedding_pair": normalize(x + 0.1, dim=1)}


@pytest.mark.parametrize("kind, level", [("sphere", "healthy"), ("point", "collapsed"), ("plane", "shrinking")])
def test_in_a_training(kind, level, caplog):
    monitor = CollapseMonitor(every_steps=5, samples=24)
    trainer = toy_trainer(max_epochs=6, method=lambda: Scripted(kind), train_handlers=[monitor])
    with caplog.at_level("INFO", logger="monai_ssl"):
        trainer.run()
    assert trainer.state.embedding_health.startswith(level), trainer.state.embedding_health
    records = [record for record in caplog.records if "embeddings after step" in record.message]
    assert len(records) <= 3, "once a change, not once a measurement"
    assert any(record.levelname == "WARNING" for record in records) == (level != "healthy")
    metrics = trainer.state.metrics
    assert {"embedding_std", "embedding_rank", "uniformity", "alignment"} <= metrics.keys()
    assert 0 <= metrics["alignment"] < 0.5


def test_it_does_not_change_the_training():
    plain, watched = LossLog(), LossLog()
    toy_trainer(train_handlers=[plain]).run()
    trainer = toy_trainer(train_handlers=[CollapseMonitor(every_steps=1), watched])
    modes = []
    trainer.method.encoder.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    trainer.run()
    assert plain.losses == watched.losses
    assert False in modes, "alignment is measured in evaluation mode"
    assert trainer.method.training
    assert "alignment" in trainer.state.metrics


def test_state_comes_back():
    monitor = CollapseMonitor(every_steps=1)
    toy_trainer(max_epochs=1, train_handlers=[monitor]).run()
    other = CollapseMonitor()
    other.load_state_dict(copy.deepcopy(monitor.state_dict()))
    assert other.state_dict() == monitor.state_dict()
    assert other.best_rank > 0


@pytest.mark.parametrize("options", [{"every_steps": 0}, {"samples": 1}, {"grace": -1}])
def test_refused_arguments(options):
    with pytest.raises(ValueError, match="at least"):
        CollapseMonitor(**options)
