# SPDX-License-Identifier: Apache-2.0
"""Two gloo processes with half the batch each train like one process with the whole batch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from distributed_helper import run_processes
from ignite.engine import Events
from text_cases import draw_tokens, small_transformer
from toy_training import LossLog, ToyEncoder, ToyImages, ToyMethod, toy_trainer

from monai_ssl.engines import TrainingStopped, end_distributed, start_distributed
from monai_ssl.handlers import CollapseMonitor, ValidationLoss
from monai_ssl.methods import BYOL, C2L, BarlowTwins, ConVIRT, MoCoV2, SimSiam, VICReg
from monai_ssl.networks import ImageTextModel, build_encoder

BATCH = 8


class RowViews:
    """Views that depend on the image alone, so that it does not matter which process draws them."""

    def __call__(self, image, generator=None, extent=None):
        return [image + 0.1 * image.sin(), image.flip(-1)]


class Plain(ToyMethod):
    """Without what differs by process on purpose: dropout, and a queue of own keys."""

    def __init__(self) -> None:
        super().__init__(dropout=0.0)

    def after_step(self, progress):
        self._keys = self._keys[:0]
        super().after_step(progress)


def moco() -> MoCoV2:
    return MoCoV2(build_encoder("resnet18"), queue_size=32, embedding_dim=16)


def c2l() -> C2L:
    """As the bundle's default, without the mixtures: each process would draw its own partners."""
    return C2L(build_encoder("resnet18"), keys="student", terms=["homogeneous"], queue_size=32, embedding_dim=16)


class SmallEncoder(ToyEncoder):
    spatial_dims, in_channels = 2, 1


def byol() -> BYOL:
    return BYOL(SmallEncoder(), hidden_features=16, embedding_dim=8)


def simsiam() -> SimSiam:
    return SimSiam(SmallEncoder(), hidden_features=16, embedding_dim=8, predictor_features=4)


def barlow_twins() -> BarlowTwins:
    return BarlowTwins(SmallEncoder(), hidden_features=16, embedding_dim=24, redundancy_weight=0.1)


def vicreg() -> VICReg:
    return VICReg(SmallEncoder(), hidden_features=16, embedding_dim=8)


def convirt() -> ConVIRT:
    """With a frozen layer, a learned temperature and studies, the sentences being the images' own in any process."""
    text = small_transformer(num_layers=2, dropout=0.0, frozen_layers=1)
    model = ImageTextModel(SmallEncoder(), text, embedding_dim=16)
    return ConVIRT(model, learn_temperature=True, exclude_own_study=True, image_weight=0.5)


WITHOUT_NEGATIVES = [byol, simsiam, barlow_twins, vicreg]


def train(
    rank: int,
    world_size: int,
    synchronize: bool = True,
    accumulate: int = 1,
    size: int = 8,
    method=Plain,
    handlers=(),
    **options,
) -> dict:
    images = ToyImages(2 * BATCH, size).images
    tokens, mask = draw_tokens(2 * BATCH)
    share = BATCH // world_size
    batches = []
    for start in (0, BATCH):
        rows = slice(start + rank * share, start + (rank + 1) * share)
        parts = {"image": images, "tokens": tokens, "token_mask": mask, "study_id": torch.arange(len(images)) // 3}
        split = [{name: value[rows].split(share // accumulate) for name, value in parts.items()}]
        batches += [dict(zip(one, values, strict=True)) for one in split for values in zip(*one.values(), strict=True)]
    log = LossLog()
    trainer = toy_trainer(
        loader=batches,
        method=method,
        max_epochs=2,
        train_handlers=[log, *handlers],
        accumulate=accumulate,
        synchronize_batch_norm=synchronize,
        **options,
    )
    trainer.views = RowViews()
    gradients = []
    trainer.optimizer.register_step_pre_hook(
        lambda *_: gradients.append([p.grad.clone() for p in trainer.method.parameters() if p.grad is not None])
    )
    trainer.run()
    return {
        "gradients": gradients,
        "state": {k: v.clone() for k, v in trainer.method.state_dict().items()},
        "losses": list(log.losses.values()),
        "rates": log.rates,
        "precision": (trainer.precision, trainer.channels_last),
        "drawn": torch.rand(1, generator=trainer.generator).item(),
    }


def train_pairs(rank: int, world_size: int) -> dict:
    """The learning rate falls by the validation loss, which the first process measures for all."""
    tokens, mask = draw_tokens(BATCH, seed=5)
    held_out = {"image": ToyImages(BATCH).images, "tokens": tokens, "token_mask": mask, "study_id": torch.arange(BATCH)}
    watch = ValidationLoss([held_out], num_views=2, every_steps=1, patience=1)
    options = {"learning_rate_schedule": None, "learning_rate": 3.0, "clip_norm": 1.0}
    result = train(rank, world_size, method=convirt, handlers=[watch], **options)
    return result | {"best": watch.best}


class SignalToItself:
    def attach(self, engine):
        engine.add_event_handler(Events.ITERATION_COMPLETED(once=3), lambda: os.kill(os.getpid(), signal.SIGTERM))


def interrupted(rank: int, world_size: int) -> str:
    """One process is asked to stop; both do, after the same step."""
    trainer = toy_trainer(max_epochs=50, train_handlers=[SignalToItself()] if rank == 1 else [])
    try:
        trainer.run()
    except TrainingStopped as stopped:
        return f"{stopped.code} {trainer.optimizer_steps}"
    return "not stopped"


class OnePoint(ToyMethod):
    """Gives all images one embedding."""

    def forward(self, batch):
        output = super().forward(batch)
        return output | {"embedding": torch.ones_like(output["embedding"]) / 2}


def collapsed(rank: int, world_size: int) -> str:
    """Only the first process measures embeddings, and its verdict ends both."""
    monitor = CollapseMonitor(every_steps=5, stop=True)
    trainer = toy_trainer(max_epochs=8, method=OnePoint if rank == 0 else ToyMethod, train_handlers=[monitor])
    try:
        trainer.run()
    except TrainingStopped as stopped:
        return f"{trainer.optimizer_steps} {stopped}"
    return "not stopped"


def worker(rank: int, world_size: int) -> dict:
    return {
        "synchronized": train(rank, world_size),
        "apart": train(rank, world_size, synchronize=False),
        "accumulated": train(rank, world_size, accumulate=2),
        "measured": train(rank, world_size, precision="auto", channels_last="auto"),
        "moco": train(rank, world_size, size=32, method=moco),
        "c2l": train(rank, world_size, size=32, method=c2l),
        "convirt": train_pairs(rank, world_size),
        "stopped": interrupted(rank, world_size),
        "collapsed": collapsed(rank, world_size),
        **{method.__name__: train(rank, world_size, method=method, learning_rate=0.01) for method in WITHOUT_NEGATIVES},
    }


@pytest.fixture(scope="module")
def results() -> list[dict]:
    return run_processes(worker, timeout=300)  # many small trainings: a busy machine needs its time


def test_gradients_and_weights_equal_the_whole_batch(results):
    whole = train(0, 1)
    for result in (results[0]["synchronized"], results[1]["synchronized"]):
        assert len(result["gradients"]) == len(whole["gradients"]) == 4
        for ours, wanted in zip(result["gradients"], whole["gradients"], strict=True):
            for a, b in zip(ours, wanted, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
        for key, wanted in whole["state"].items():
            torch.testing.assert_close(result["state"][key], wanted, rtol=1e-3, atol=1e-5, msg=key)
    mean = [sum(pair) / 2 for pair in zip(*(result["synchronized"]["losses"] for result in results), strict=True)]
    assert mean == pytest.approx(whole["losses"], rel=1e-4)


@pytest.mark.parametrize("method", [moco, c2l], ids=lambda method: method.__name__)
def test_gradients_of_methods_equal_the_whole_batch(results, method):
    whole = train(0, 1, size=32, method=method)
    for result in results:
        for a, b in zip(result[method.__name__]["gradients"][0], whole["gradients"][0], strict=True):
            assert (a - b).norm() <= 1e-2 * b.norm() + 1e-5


@pytest.mark.parametrize("method", WITHOUT_NEGATIVES, ids=lambda method: method.__name__)
def test_methods_without_negatives_train_as_on_the_whole_batch(results, method):
    """Their statistics are those of all processes: the loss, the gradients and, after four steps, the weights."""
    whole = train(0, 1, method=method, learning_rate=0.01)
    results = [result[method.__name__] for result in results]
    mean = [sum(pair) / 2 for pair in zip(*(result["losses"] for result in results), strict=True)]
    assert mean == pytest.approx(whole["losses"], rel=5e-3, abs=1e-4)
    wanted = torch.cat([gradient.flatten() for gradient in whole["gradients"][0]])
    for result in results:
        ours = torch.cat([gradient.flatten() for gradient in result["gradients"][0]])
        assert (ours - wanted).norm() <= 1e-4 * wanted.norm()
        for key, value in whole["state"].items():
            torch.testing.assert_close(result["state"][key], value, rtol=1e-2, atol=1e-3, msg=key)


def test_pairs_of_images_and_text_train_as_on_the_whole_batch(results):
    whole, results = train_pairs(0, 1), [result["convirt"] for result in results]
    mean = [sum(pair) / 2 for pair in zip(*(result["losses"] for result in results), strict=True)]
    assert mean == pytest.approx(whole["losses"], rel=1e-3)
    assert results[0]["rates"] == results[1]["rates"] == whole["rates"]
    assert whole["rates"][-1] < whole["rates"][0], "the rate has to fall for the comparison to say something"
    for result in results:
        assert result["best"] == pytest.approx(whole["best"], rel=1e-3)
        for key, value in whole["state"].items():
            torch.testing.assert_close(result["state"][key], value, rtol=1e-2, atol=1e-3, msg=key)


def test_moco_state_equals_the_whole_batch(results):
    """The real thing: ResNet-18, momentum teacher, Shuffle-BN, a queue that takes all processes' keys."""
    whole = train(0, 1, size=32, method=moco)
    for result in (results[0]["moco"], results[1]["moco"]):
        for key in ("queue.features", "queue.position", "teacher.module.0.net.bn1.running_mean"):
            torch.testing.assert_close(result["state"][key], whole["state"][key], rtol=0.05, atol=0.05, msg=key)
        assert torch.equal(result["state"]["queue.features"], results[0]["moco"]["state"]["queue.features"])


def test_without_synchronised_batch_norm_the_gradients_differ(results):
    """The comparison above can fail: this is the error it would show."""
    whole, apart = train(0, 1)["gradients"][0], results[0]["apart"]["gradients"][0]
    assert max((a - b).norm() / b.norm() for a, b in zip(apart, whole, strict=True) if b.norm() > 1e-4) > 0.01


def test_accumulation_exchanges_the_mean_over_all(results):
    for a, b in zip(results[0]["accumulated"]["gradients"], results[1]["accumulated"]["gradients"], strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_processes_agree_on_precision_and_draw_different_views(results):
    assert results[0]["measured"]["precision"] == results[1]["measured"]["precision"]
    assert results[0]["synchronized"]["drawn"] != results[1]["synchronized"]["drawn"]


def test_a_signal_to_one_stops_all_after_the_same_step(results):
    assert results[0]["stopped"] == results[1]["stopped"] == "143 10"


def test_a_collapse_ends_all_after_the_same_step(results):
    for result in results:
        assert result["collapsed"].startswith("25 training stopped") and "are collapsed" in result["collapsed"]


def test_without_torchrun_there_is_one_process(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert start_distributed().type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert not torch.distributed.is_initialized()
    end_distributed()


@pytest.mark.slow
def test_under_torchrun(tmp_path):
    """Ignite must know the group: a handler made on one process only would hang otherwise."""
    script = tmp_path / "train.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
        "import torch; torch.set_num_threads(1)\n"
        "from monai_ssl.engines import start_distributed, end_distributed, is_main_process\n"
        "start_distributed(); start_distributed()\n"
        "from toy_training import toy_trainer\n"
        "from monai.handlers import CheckpointSaver\n"
        "trainer = toy_trainer(max_epochs=1)\n"
        "if is_main_process():\n"
        f"    CheckpointSaver({str(tmp_path)!r}, {{'net': trainer.method}}, save_final=True).attach(trainer)\n"
        "trainer.run(); end_distributed()\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, env=environment)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("*final*.pt"))
