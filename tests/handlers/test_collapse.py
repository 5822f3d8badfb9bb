# SPDX-License-Identifier: Apache-2.0
"""The monitor names a collapse that is one, stops it if asked, and leaves a healthy training alone."""

from __future__ import annotations

import copy

import pytest
import torch
from monai.networks.nets import ResNet
from torch import nn
from torch.nn.functional import interpolate, normalize
from toy_training import LossLog, ToyMethod, toy_trainer

from monai_ssl.engines import TrainingStopped
from monai_ssl.handlers import CollapseMonitor, judge_embeddings
from monai_ssl.methods import BYOL, SimSiam
from monai_ssl.networks import ImageEncoder


@pytest.mark.parametrize(
    "spread, rank, best_spread, best_rank, level, word",
    [
        (0.95, 60, 0.95, 65, "healthy", ""),
        (0.01, 60, 0.9, 65, "collapsed", "nearly the same embedding"),
        (0.9, 1.2, 0.9, 60, "collapsed", "on a line"),
        (0.9, 25, 0.9, 60, "shrinking", "60.0 directions were used before"),
        (0.4, 60, 0.9, 60, "shrinking", "up to 0.90"),
        (0.15, 60, 0.15, 60, "shrinking", "close"),
        (0.9, 10, 0.9, 10, "shrinking", "few"),
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


def test_wide_embeddings_are_not_on_a_line_with_ten_directions():
    assert judge_embeddings(0.9, 9.0, 512, 0.9, 9.0).level == "shrinking"
    assert judge_embeddings(0.9, 2.5, 512, 0.9, 2.5).level == "collapsed"


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


class Steps:
    """Which steps were measured, with the verdicts."""

    def __init__(self, monitor: CollapseMonitor) -> None:
        self.seen: list[tuple[int, str]] = []
        measure = monitor._measure

        def noted(engine):
            measure(engine)
            self.seen.append((engine.optimizer_steps, engine.state.embedding_health.split(":")[0]))

        monitor._measure = noted


def test_a_short_training_gets_a_verdict_after_its_first_epoch():
    monitor = CollapseMonitor(every_steps=100)
    trainer = toy_trainer(max_epochs=1, method=lambda: Scripted("sphere"), train_handlers=[monitor])
    trainer.run()
    assert trainer.optimizer_steps == 5 and trainer.state.embedding_health.startswith("healthy")

    monitor = CollapseMonitor(every_steps=100)
    steps = Steps(monitor)
    trainer = toy_trainer(max_epochs=21, method=lambda: Scripted("point"), train_handlers=[monitor])
    trainer.run()
    assert [step for step, _ in steps.seen] == [5, 10, 15, 20, 100], (
        "after each of the first epochs, then in its own pace"
    )


def test_a_collapsed_training_stops_with_advice_if_asked():
    monitor = CollapseMonitor(every_steps=5, samples=24, stop=True)
    steps = Steps(monitor)
    trainer = toy_trainer(max_epochs=20, method=lambda: Scripted("point"), train_handlers=[monitor])
    with pytest.raises(TrainingStopped, match=r"step 30, as its embeddings are collapsed.*learning rate.*Start anew"):
        trainer.run()
    assert steps.seen[-2:] == [(25, "collapsed"), (30, "collapsed")], "twice in a row"
    assert trainer.optimizer_steps == 30


@pytest.mark.parametrize("kind", ["sphere", "plane"])
def test_what_has_not_collapsed_goes_on(kind):
    monitor = CollapseMonitor(every_steps=5, samples=24, stop=True)
    trainer = toy_trainer(max_epochs=8, method=lambda: Scripted(kind), train_handlers=[monitor])
    trainer.run()
    assert trainer.optimizer_steps == 40


def test_one_bad_measurement_does_not_stop_a_training():
    class OnceBad(Scripted):
        def forward(self, batch):
            output = super().forward(batch)
            late = 20 <= len(self.progress) < 25
            return output | {"embedding": torch.ones(4, 16) / 4} if late else output

    monitor = CollapseMonitor(every_steps=5, samples=20, stop=True)
    steps = Steps(monitor)
    toy_trainer(max_epochs=8, method=lambda: OnceBad("sphere"), train_handlers=[monitor]).run()
    assert dict(steps.seen)[25] == "collapsed" and dict(steps.seen)[30] == "healthy"


def test_the_count_of_bad_measurements_comes_back():
    monitor = CollapseMonitor(every_steps=5, samples=24, stop=True)
    trainer = toy_trainer(max_epochs=5, method=lambda: Scripted("point"), train_handlers=[monitor])
    trainer.run()  # 25 steps: one measurement of a collapse
    state = copy.deepcopy(trainer.state_dict())
    del state["handlers"]["collapse_monitor"]["last_step"]  # as an older version would have written it
    resumed = toy_trainer(
        max_epochs=20, method=lambda: Scripted("point"), train_handlers=[CollapseMonitor(5, 24, stop=True)]
    )
    resumed.method.progress = [0.0] * 25
    resumed.load_state_dict(state)
    with pytest.raises(TrainingStopped, match="step 30"):
        resumed.run()


# ---- methods without negatives, with and without what keeps them from collapsing -----------------------------------


class Blobs(torch.utils.data.Dataset):
    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = interpolate(torch.randn(128, 1, 4, 4, generator=generator), size=(16, 16), mode="bilinear")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> dict:
        return {"image": self.images[i], "index": i}


def train_without_negatives(build, noise: float, predictor: bool, learning_rate: float, monitor: CollapseMonitor):
    """Views with much more noise than image: to agree, it is easiest to say the same of every image."""

    def method():
        layers = ResNet("basic", [1] * 4, [8, 16, 16, 32], conv1_t_size=3, spatial_dims=2, n_input_channels=1)
        method = build(ImageEncoder(layers))
        if not predictor:
            method.predictor = nn.Identity()
        return method

    def views(image, generator=None, extent=None):
        return [image + noise * torch.randn(image.shape, generator=generator) for _ in range(2)]

    trainer = toy_trainer(
        max_epochs=30,
        batch_size=32,
        dataset=Blobs(),
        method=method,
        views=views,
        learning_rate=learning_rate,
        train_handlers=[monitor],
    )
    trainer.run()
    return trainer


def byol(encoder):
    return BYOL(encoder, hidden_features=64, embedding_dim=32, momentum=0.95)


def simsiam(encoder):
    return SimSiam(encoder, hidden_features=64, embedding_dim=64, predictor_features=16)


def test_byol_without_its_predictor_collapses_and_is_stopped():
    options = {"noise": 2.0, "learning_rate": 0.2}
    trainer = train_without_negatives(byol, predictor=True, monitor=CollapseMonitor(20, 64, stop=True), **options)
    assert trainer.state.embedding_health.startswith("healthy")
    with pytest.raises(TrainingStopped, match="all images get nearly the same embedding"):
        train_without_negatives(byol, predictor=False, monitor=CollapseMonitor(20, 64, stop=True), **options)


def test_simsiam_without_its_predictor_shrinks():
    """The BatchNorm at the projector's end keeps the images from one point, but most of the spread goes."""
    verdicts, spreads = {}, {}
    for predictor in (True, False):
        monitor = CollapseMonitor(40, 128)
        steps = Steps(monitor)
        trainer = train_without_negatives(simsiam, noise=6.0, learning_rate=2.0, predictor=predictor, monitor=monitor)
        verdicts[predictor] = {verdict for _, verdict in steps.seen} - {"starting"}
        spreads[predictor] = trainer.state.metrics["embedding_std"]
    assert verdicts[True] == {"healthy"} and verdicts[False] & {"shrinking", "collapsed"}
    assert spreads[True] > 0.8 and spreads[False] < 0.5
