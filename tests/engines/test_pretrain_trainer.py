# SPDX-License-Identifier: Apache-2.0
"""What one iteration of the trainer does, and what it refuses."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from monai.handlers import CheckpointSaver, StatsHandler
from torch import nn
from torch.utils.data import DataLoader
from toy_training import LossLog, ToyImages, ToyMethod, toy_trainer, toy_views

from monai_ssl.engines import PretrainTrainer, build_optimizer, step_schedule
from monai_ssl.engines.random_state import stream_seed
from monai_ssl.transforms import MultiView, RandomResample, ViewChain


def test_it_learns_to_tell_32_images_apart_without_a_warning():
    log = LossLog()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        toy_trainer(
            dataset=ToyImages(32),
            batch_size=8,
            max_epochs=60,
            optimizer="adamw",
            learning_rate=0.03,
            method=lambda: ToyMethod(dropout=0.0),
            train_handlers=[log],
        ).run()
    losses = list(log.losses.values())
    chance = math.log(17)  # one key among 16 of the queue
    assert sum(losses[-16:]) / 16 < 0.55 * chance
    assert sum(losses[-16:]) / 16 < 0.8 * sum(losses[16:32]) / 16


def test_output_and_batch_are_what_handlers_expect():
    trainer = toy_trainer(max_epochs=1)
    trainer.run()
    output = trainer.state.output
    assert {"loss", "accuracy", "gradient_norm", "learning_rate"} == {k for k, v in output.items() if type(v) is float}
    assert output["embedding"].shape == (4, 4)
    assert not output["embedding"].requires_grad
    assert [tuple(view.shape) for view in trainer.state.batch["views"]] == [(4, 1, 8, 8)] * 2


def test_the_seed_decides_the_views():
    def losses(seed: int) -> list[float]:
        log = LossLog()
        trainer = toy_trainer(method=lambda: ToyMethod(dropout=0.0), train_handlers=[log], max_epochs=1)
        trainer.generator.manual_seed(stream_seed(seed, 0))
        trainer.run()
        return list(log.losses.values())

    assert losses(0) == losses(0)
    assert losses(0) != losses(1)


def test_accumulated_batches_equal_one_big_batch():
    """With a loss that is a mean over samples and no BatchNorm; the last group of an epoch is smaller."""

    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.layer = nn.Linear(64, 3)
            self.calls = 0

        def forward(self, batch):
            loss = self.layer(batch["views"][0].flatten(1)).pow(2).mean()
            return {"loss": loss, "embedding": batch["views"][0].flatten(1)}

        def after_step(self, progress):
            self.calls += 1

        def parameter_groups(self, weight_decay):
            return [{"params": list(self.parameters()), "weight_decay": weight_decay}]

    def trained(batches, accumulate):
        method = Mean()
        PretrainTrainer(
            "cpu",
            2,
            batches,
            method,
            build_optimizer(method, "sgd", 0.1),
            lambda image, **_: [image, image],
            precision="fp32",
            channels_last=False,
            accumulate=accumulate,
        ).run()
        return method

    images = ToyImages(20).images
    small = trained([{"image": part} for part in images.split(4)], 2)  # groups of 8, 8 and 4 images
    large = trained([{"image": part} for part in images.split(8)], 1)
    assert small.calls == large.calls == 6
    torch.testing.assert_close(small.layer.weight, large.layer.weight, rtol=1e-5, atol=1e-7)


def test_after_step_and_schedule_follow_optimizer_steps():
    log = LossLog()
    trainer = toy_trainer(
        accumulate=2,
        train_handlers=[log],
        max_epochs=2,
        learning_rate_schedule=step_schedule([0.5], 0.1),
        weight_decay_schedule=lambda step, total: 1 + step,
    )
    trainer.run()  # 5 iterations an epoch: 3 steps
    assert trainer.total_steps == trainer.optimizer_steps == 6
    assert trainer.method.progress == pytest.approx([step / 6 for step in range(1, 7)])
    assert log.rates == pytest.approx([0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.01])
    assert [group["weight_decay"] for group in trainer.optimizer.param_groups] == pytest.approx([6e-4, 0])


def test_clipping_limits_the_step():
    trainer = toy_trainer(clip_norm=1e-3, max_epochs=1)
    before = [p.detach().clone() for p in trainer.method.head.parameters()]
    trainer.run()
    assert trainer.state.output["gradient_norm"] > 1e-3, "the norm before clipping is reported"
    moved = max((a - b).norm().item() for a, b in zip(before, trainer.method.head.parameters(), strict=True))
    assert 0 < moved < 5 * 0.1 * 2e-2  # momentum 0.9 multiplies by 10 at most


@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_not_finite_stops_before_the_weights_are_spoilt(bad):
    class Broken(ToyMethod):
        def forward(self, batch):
            output = super().forward(batch)
            if len(self.progress) == 3:
                head = self.head.weight.sum()
                # sqrt at 0 has value 0 and an infinite slope
                output["loss"] = output["loss"] + (head * torch.nan if bad == "loss" else (head - head).abs().sqrt())
            return output

    trainer = toy_trainer(method=Broken)
    with pytest.raises(RuntimeError, match=r"is nan in epoch 1, step 4.*learning_rate"):
        trainer.run()
    assert all(p.isfinite().all() for p in trainer.method.parameters())


def test_epoch_length_shortens_every_epoch_alike():
    seen = []
    trainer = toy_trainer(epoch_length=2, max_epochs=3)
    from ignite.engine import Events

    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: seen.append(e.state.batch["index"].tolist()))
    trainer.run()
    whole = []
    longer = toy_trainer(max_epochs=3)
    longer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: whole.append(e.state.batch["index"].tolist()))
    longer.run()
    assert seen == [whole[i] for i in (0, 1, 5, 6, 10, 11)]


def test_channels_last_and_bf16_are_applied():
    seen = {}

    class Spy(ToyMethod):
        def forward(self, batch):
            seen["view"] = batch["views"][0].is_contiguous(memory_format=torch.channels_last_3d)
            seen["type"] = self.encoder(batch["views"][0]).dtype
            return super().forward(batch)

    trainer = toy_trainer(
        method=lambda: Spy(spatial_dims=3),
        dataset=ToyImages(spatial_dims=3),
        precision="bf16",
        channels_last=True,
        max_epochs=1,
    )
    trainer.run()
    assert seen == {"view": True, "type": torch.float32} or seen == {"view": True, "type": torch.bfloat16}
    assert trainer.method.encoder.net[3].weight.is_contiguous(memory_format=torch.channels_last_3d)
    with torch.autocast("cpu", torch.bfloat16):
        assert trainer.method.encoder.net[3](torch.rand(1, 8, 4, 4, 4)).dtype == torch.bfloat16


def test_a_weight_first_used_without_gradient_still_learns():
    """Autocast's own cache of cast weights would lose the gradient here."""

    class Peeks(ToyMethod):
        def forward(self, batch):
            with torch.no_grad():
                self.encoder(batch["views"][0])
            return super().forward(batch)

    trainer = toy_trainer(method=Peeks, precision="bf16", max_epochs=1)
    before = trainer.method.encoder.net[0].weight.detach().clone()
    trainer.run()
    assert not torch.equal(before, trainer.method.encoder.net[0].weight)


def test_monai_handlers_work(tmp_path, caplog):
    trainer = toy_trainer(
        max_epochs=1,
        train_handlers=[StatsHandler(output_transform=lambda output: output["loss"], tag_name="loss")],
    )
    CheckpointSaver(str(tmp_path), {"trainer": trainer, "net": trainer.method}, save_final=True).attach(trainer)
    trainer.run()
    saved = torch.load(tmp_path / "checkpoint_final_iteration=5.pt", weights_only=True)
    assert saved["trainer"]["optimizer_steps"] == 5


def test_run_again_goes_on_and_a_finished_run_stays_finished(caplog):
    whole, parts = LossLog(), LossLog(stop_after=7)
    toy_trainer(train_handlers=[whole]).run()
    trainer = toy_trainer(train_handlers=[parts])
    trainer.run()
    assert trainer.state.iteration == 7
    parts.stop_after = None
    trainer.run()
    assert parts.losses == whole.losses
    with caplog.at_level("INFO"):
        trainer.run()
    assert "nothing to train" in caplog.text
    assert trainer.state.iteration == 15


@pytest.mark.parametrize(
    "options, message",
    [
        ({"precision": "fp16"}, "needs a CUDA device"),
        ({"precision": "half"}, "precision must be"),
        ({"channels_last": "yes"}, "channels_last must be"),
        ({"accumulate": 0}, "accumulate"),
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"epoch_length": 6}, "1 to the loader's 5 batches"),
        ({"loader": DataLoader(ToyImages(3), 4, drop_last=True)}, "yields no batch"),
    ],
)
def test_refused_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        toy_trainer(**options)


def test_a_loader_of_pairs_is_refused():
    trainer = toy_trainer(loader=[(torch.rand(2, 1, 8, 8), torch.zeros(2))])
    with pytest.raises(ValueError, match="'image'"):
        trainer.run()


def test_disabled_handlers_are_skipped():
    log = LossLog()
    toy_trainer(max_epochs=1, train_handlers=[None, log]).run()
    assert len(log.losses) == 5


def test_views_get_extent_and_generator():
    given = {}

    def views(image, generator=None, extent=None):
        given.update(extent=extent, generator=generator)
        return toy_views(image, generator)

    method = ToyMethod()
    trainer = PretrainTrainer(
        "cpu",
        1,
        [{"image": torch.rand(4, 1, 8, 8), "extent": torch.full((4, 2), 7)}],
        method,
        build_optimizer(method, "sgd", 0.1),
        views,
        precision="fp32",
        channels_last=False,
    )
    trainer.run()
    assert given["extent"].tolist() == [[7, 7]] * 4
    assert given["generator"] is trainer.generator


class ImagesWithMaps(ToyImages):
    """Images whose map tells each pixel's place, so that it shows what a view did."""

    def __getitem__(self, i: int) -> dict:
        place = torch.arange(self.images[i].numel(), dtype=torch.int32).view_as(self.images[i])
        return {"image": place.float(), "index": i, "label_map": place, "valid": place % 2 == 0}


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_maps_go_through_the_draw_of_their_image(spatial_dims: int):
    chain = ViewChain([RandomResample(8, scale=(1.0, 1.0), flip_prob=[0.5] * spatial_dims)])
    trainer = toy_trainer(
        dataset=ImagesWithMaps(8, spatial_dims=spatial_dims),
        method=lambda: ToyMethod(spatial_dims),
        views=MultiView([chain, chain]),
        max_epochs=1,
        precision="auto",
    )
    trainer.run()
    batch = trainer.state.batch
    assert len(batch["label_map"]) == len(batch["valid"]) == 2
    for view, label_map, valid in zip(batch["views"], batch["label_map"], batch["valid"], strict=True):
        torch.testing.assert_close(view, label_map.float())
        assert label_map.dtype == torch.int32
        assert valid.dtype == torch.bool
        assert torch.equal(valid, label_map % 2 == 0)
    assert not torch.equal(*batch["label_map"]), "each view has a draw of its own"


def test_views_of_a_batch_without_maps_may_be_any_function():
    toy_trainer(max_epochs=1, views=lambda image, generator, extent: toy_views(image, generator)).run()


class Placed(ToyMethod):
    """Keeps what it was given, as a method that contrasts places."""

    wants_positions = True
    positions_stride = (2, 4)

    def forward(self, batch):
        self.batch = batch
        return super().forward(batch)


def test_a_method_that_asks_gets_the_positions_of_its_views():
    size = 16
    place = torch.stack(torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij"))
    loader = [{"image": ToyImages(4, size).images, "label_map": place.sum(0).expand(4, 1, -1, -1)}]
    views = MultiView([ViewChain([RandomResample(8, (0.3, 0.6), rotation_deg=10)])] * 2)
    trainer = toy_trainer(loader=loader, method=Placed, views=views, max_epochs=1)
    trainer.run()
    batch = trainer.method.batch
    assert [tuple(p.shape) for p in batch["positions"]] == [(4, 2, 4, 2)] * 2
    for places, shown in zip(batch["positions"], batch["label_map"], strict=True):  # from one draw: rows + columns
        mean = nn.functional.avg_pool2d(shown.float(), (2, 4))
        assert (places.sum(1, keepdim=True) - 1 - mean).abs().nanmean() < 0.5
    without = toy_trainer(loader=loader, views=views, max_epochs=1)
    without.run()
    assert "positions" not in without.state.batch
    for view, same in zip(batch["views"], without.state.batch["views"], strict=True):
        assert torch.equal(view, same), "asking for positions changed the draw"
    with pytest.raises(ValueError, match="Placed must know where its views were read: give views"):
        toy_trainer(loader=loader, method=Placed, max_epochs=1).run()
