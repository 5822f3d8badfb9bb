# SPDX-License-Identifier: Apache-2.0
"""Hybrid and supervised pretraining: exact at both ends, masked in between, in 2D and 3D; they learn and resume."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from toy_training import toy_trainer

from monai_ssl.losses import IGNORED_LABEL, masked_cross_entropy
from monai_ssl.methods import (
    C2L,
    ClassTask,
    FindingsTask,
    Hybrid,
    MaskedAutoencoderCNN,
    MoCoV2,
    ModelsGenesis,
    SegmentationTask,
    SSLMethod,
    Supervised,
    VoCo,
)
from monai_ssl.metrics import effective_rank
from monai_ssl.networks import build_encoder
from monai_ssl.transforms import MultiView, RandomBrightnessContrast, RandomResample, ViewChain

THIN = {"widen_factor": 0.125}
SMALL_UNET = {"channels": (4, 8, 16), "strides": (2, 2)}


def thin_resnet(spatial_dims: int = 2):
    return build_encoder("resnet10", spatial_dims, **THIN)


def moco(spatial_dims: int = 2, encoder=None, **options) -> MoCoV2:
    return MoCoV2(encoder or thin_resnet(spatial_dims), embedding_dim=16, queue_size=32, momentum=0.9, **options)


def three_classes(**options) -> ClassTask:
    return ClassTask("label", num_classes=3, **options)


def make(build, seed: int = 0):
    torch.manual_seed(seed)
    return build()


def make_batch(labels=(0, 2, -1, 1, -1, 2), side: int = 32, spatial_dims: int = 2, num_views: int = 2) -> dict:
    generator = torch.Generator().manual_seed(1)
    shape = (len(labels), 1) + (side,) * spatial_dims
    return {
        "views": [torch.rand(shape, generator=generator) for _ in range(num_views)],
        "index": torch.arange(len(labels)),
        "label": torch.tensor(labels),
        "generator": generator,
    }


def with_maps(batch: dict, num_classes: int = 2, known=None) -> dict:
    """Label maps of each view: bright voxels are of a class; images that are not known have no label."""
    maps = [(view * (num_classes + 1)).long().clamp(max=num_classes).byte() for view in batch["views"]]
    for place, shown in enumerate(known or ()):
        for each in maps:
            each[place] = each[place] if shown else IGNORED_LABEL
    return batch | {"label_map": maps}


def gradients(module: nn.Module) -> dict:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def assert_same(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    different = [key for key in one if not torch.equal(one[key], other[key])]
    assert not different


# ---- what it is ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_runs_in_2d_and_3d_with_gradients_where_they_belong(spatial_dims):
    method = Hybrid(moco(spatial_dims), [three_classes(), SegmentationTask(2, width=8)], weight=0.5)
    batch = with_maps(make_batch(spatial_dims=spatial_dims), known=[True, False, True, False, False, False])
    out = method(batch)
    out["loss"].backward()
    assert out["embedding"].shape == (6, 16) and not out["embedding"].requires_grad
    torch.testing.assert_close(out["embedding"].norm(dim=1), torch.ones(6))
    assert out["labelled"] == pytest.approx(5 / 6)
    names = {"label_accuracy", "label_loss", "label_map_dice", "label_map_loss", "ssl_loss", "task_loss", "task_weight"}
    assert names < out.keys() and not any(out[name].requires_grad for name in names)
    trained = gradients(method)
    assert trained.keys() == {name for name, _ in method.named_parameters() if "teacher" not in name}
    assert all(grad.abs().sum() > 0 for grad in trained.values())


def test_the_loss_is_the_methods_and_the_weighted_tasks():
    method = make(lambda: Hybrid(moco(), three_classes(), weight=0.3))
    reference = copy.deepcopy(method)
    batch = make_batch()
    out = method(batch)
    ssl = reference.method(batch)["loss"]
    features = reference.encoder(batch["views"][0])
    head = reference.heads.tasks["label"].head
    known = batch["label"] >= 0
    task = F.cross_entropy(head(features)[known], batch["label"][known])
    assert out["ssl_loss"] == ssl
    torch.testing.assert_close(out["task_loss"], task.detach())
    torch.testing.assert_close(out["loss"], ssl + 0.3 * task)
    right = (head(features).argmax(1) == batch["label"])[known]
    assert out["accuracy"] == right.float().mean()


@pytest.mark.parametrize(
    "build",
    [
        lambda: C2L(thin_resnet(), keys="student", embedding_dim=8),
        lambda: MaskedAutoencoderCNN(build_encoder("unet", out_channels=1, **SMALL_UNET), block_size=8),
        lambda: ModelsGenesis(build_encoder("unet", out_channels=1, **SMALL_UNET)),
        lambda: VoCo(thin_resnet(), grid=(2, 2), crop_size=16, hidden_features=8, embedding_dim=8),
    ],
    ids=["c2l", "mae", "genesis", "voco"],
)
@pytest.mark.parametrize("on", ["all", "unlabelled"])
def test_wraps_any_method_and_passes_on_what_it_says(build, on):
    inner = build()
    views = 2 if isinstance(inner, C2L) else 1
    method = Hybrid(inner, three_classes(), self_supervised_on=on)
    batch = make_batch(num_views=views)
    out = method(batch)
    out["loss"].backward()
    plain = copy.deepcopy(inner)(make_batch(num_views=views))
    assert set(plain) - {"embedding"} <= set(out)
    assert len(out["embedding"]) == 6
    if on == "unlabelled":
        assert out["embedding"].shape == (6, inner.encoder.num_features)
        if "prediction" in out:
            assert len(out["prediction"]) == len(out["target"]) == 2
    method.after_step(0.5)


# ---- the two ends ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_weight_zero_is_the_method_bit_for_bit(spatial_dims):
    """Gradients, running statistics, queue and teacher, over three steps; the optimiser has the same parameters."""
    plain = make(lambda: moco(spatial_dims))
    hybrid = Hybrid(make(lambda: moco(spatial_dims)), three_classes(), weight=0.0)
    assert hybrid.method_name == "MoCoV2"
    optimizers = [torch.optim.SGD(m.parameter_groups(1e-4), lr=0.1, momentum=0.9) for m in (plain, hybrid)]
    batch = make_batch(spatial_dims=spatial_dims)
    for step in range(3):
        losses = []
        for method, optimizer in zip((plain, hybrid), optimizers, strict=True):
            optimizer.zero_grad()
            out = method(batch)
            out["loss"].backward()
            optimizer.step()
            method.after_step((step + 1) / 3)
            losses.append(out["loss"])
        assert torch.equal(*losses)
        assert_same(gradients(plain), gradients(hybrid.method))
        assert not gradients(hybrid.heads)
    assert_same(plain.state_dict(), hybrid.method.state_dict())


@pytest.mark.parametrize("weight", [1.0, 0.25])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_without_unlabelled_images_it_is_supervised_bit_for_bit(spatial_dims, weight):
    hybrid = make(lambda: Hybrid(moco(spatial_dims), three_classes(), weight=weight, self_supervised_on="unlabelled"))
    supervised = Supervised(copy.deepcopy(hybrid.encoder), three_classes())
    supervised.heads.load_state_dict(hybrid.heads.state_dict())
    batch = make_batch((0, 2, 1, 1, 0, 2), spatial_dims=spatial_dims)
    out, expected = hybrid(batch), supervised(batch)
    out["loss"].backward()
    (weight * expected["loss"]).backward()
    assert torch.equal(out["loss"], weight * expected["loss"]) and "ssl_loss" not in out
    assert_same(gradients(supervised.encoder), gradients(hybrid.encoder))
    assert_same(gradients(supervised.heads), gradients(hybrid.heads))
    assert not gradients(hybrid.method.head)
    assert_same(supervised.encoder.state_dict(), hybrid.encoder.state_dict())
    assert torch.equal(out["embedding"], expected["embedding"])


def test_only_unlabelled_images_reach_the_method():
    method = make(lambda: Hybrid(moco(), three_classes(), weight=2.0, self_supervised_on="unlabelled"))
    reference = copy.deepcopy(method)
    batch = make_batch() | {"group_id": torch.arange(6)}
    out = method(batch)
    out["loss"].backward()
    rows = [2, 4]
    part = {"views": [view[rows] for view in batch["views"]], "label": batch["label"][rows]}
    ssl = reference.method(part)["loss"]
    (ssl + 2 * reference.heads(reference.encoder, batch, 0)[0]).backward()
    assert torch.equal(out["ssl_loss"], ssl.detach())
    assert_same(gradients(reference), gradients(method))
    method.after_step(0.1)
    assert method.method.queue.total_enqueued == 2

    one = make_batch((0, 2, -1, 1, 0, 2))
    assert "ssl_loss" not in method(one), "a single image has nothing to be told apart from"


def test_a_batch_without_labels_teaches_the_method_alone():
    method = make(lambda: Hybrid(moco(), [three_classes(), FindingsTask(["a", "b"]), SegmentationTask(1, width=8)]))
    batch = with_maps(make_batch((-1,) * 4), 1, known=[False] * 4)
    batch |= {"a": torch.full((4,), math.nan), "b": torch.full((4,), -1)}
    out = method(batch)
    out["loss"].backward()
    assert out["loss"] == out["ssl_loss"] and out["task_loss"] == 0 and out["labelled"] == 0
    assert out["label_accuracy"].isnan() and out["label_map_dice"].isnan()
    assert all((grad == 0).all() for grad in gradients(method.heads).values())
    assert all(grad.isfinite().all() for grad in gradients(method).values())
    alone = Supervised(thin_resnet(), three_classes())
    out = alone(batch)
    out["loss"].backward()
    assert out["loss"] == 0 and all((grad == 0).all() for grad in gradients(alone).values())


# ---- the weight ------------------------------------------------------------------------------------------------------


def test_the_weight_ramps_by_progress_and_forward_changes_nothing():
    method = make(lambda: Hybrid(moco(), three_classes(), weight=0.0, final_weight=2.0, ramp=(0.2, 0.6)))
    batch = make_batch()
    for progress, weight in ((0.0, 0.0), (0.2, 0.0), (0.3, 0.5), (0.4, 1.0), (0.6, 2.0), (1.0, 2.0)):
        method.progress.fill_(progress)
        out = method(batch)
        assert out["task_weight"].item() == pytest.approx(weight, abs=1e-6)
        torch.testing.assert_close(out["loss"], out["ssl_loss"] + weight * out["task_loss"])
    assert method.progress == 1.0
    method.after_step(0.4)
    other = make(lambda: Hybrid(moco(), three_classes(), weight=0.0, final_weight=2.0, ramp=(0.2, 0.6)), seed=5)
    other.load_state_dict(method.state_dict())
    assert other.task_weight().item() == pytest.approx(1.0)


def test_the_encoder_is_in_the_state_once():
    method = Hybrid(moco(), three_classes())
    keys = set(method.state_dict())
    assert {key.split(".")[0] for key in keys} == {"method", "heads", "progress"}
    assert "heads.tasks.label.head.weight" in keys
    assert method.encoder is method.method.encoder and "encoder" not in dict(method.named_children())
    counted = [p for group in method.parameter_groups(1e-4) for p in group["params"]]
    assert len(counted) == len({id(p) for p in counted}) == sum(p.requires_grad for p in method.parameters())
    assert {group["weight_decay"] for group in method.parameter_groups(1e-4)} == {0.0, 1e-4}


# ---- tasks -----------------------------------------------------------------------------------------------------------


def test_findings_from_one_entry_or_several():
    torch.manual_seed(0)
    encoder = thin_resnet()
    columns = torch.tensor([[1.0, 0.0], [math.nan, 1.0], [-1.0, -1.0], [0.0, 1.0]])
    batch = make_batch((0,) * 4) | {
        "both": columns,
        "edema": columns[:, 0],
        "mass": columns[:, 1].nan_to_num(-1).long(),
    }
    one, several = FindingsTask("both", 2), FindingsTask(["edema", "mass"])
    assert (one.name, several.name) == ("both", "findings")
    first, second = Supervised(encoder, one), Supervised(encoder, several)
    second.heads.tasks["findings"].load_state_dict(first.heads.tasks["both"].state_dict())
    a, b = first.eval()(batch), second.eval()(batch)
    assert torch.equal(a["loss"], b["loss"]) and a["labelled"] == 0.75
    logits = first.heads.tasks["both"].head(encoder(batch["views"][0]))
    known = columns >= 0
    torch.testing.assert_close(a["loss"], F.binary_cross_entropy_with_logits(logits[known], columns[known]))
    assert a["accuracy"] == ((logits > 0) == (columns > 0))[known].float().mean()
    binary = Supervised(encoder, FindingsTask("mass")).eval()
    assert binary(batch)["loss"].isfinite()


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_segmentation_by_the_networks_decoder_or_a_light_one(spatial_dims):
    encoder = build_encoder("unet", spatial_dims, out_channels=3, **SMALL_UNET)
    batch = with_maps(make_batch((0,) * 4, spatial_dims=spatial_dims), known=[True, False, True, False])
    own = Supervised(encoder, SegmentationTask(2))
    assert own.heads.tasks["label_map"].head is None
    out = own(batch)
    out["loss"].backward()
    assert all(p.grad is not None for p in encoder.parameters()), "the decoder learns"
    predicted = encoder.net(batch["views"][0])[[0, 2]].argmax(1)
    true = batch["label_map"][0][[0, 2], 0]
    dice = [2 * ((predicted == c) & (true == c)).sum() / ((predicted == c).sum() + (true == c).sum()) for c in (1, 2)]
    assert out["dice"].item() == pytest.approx(sum(dice).item() / 2, abs=1e-3)
    assert out["labelled"] == 0.5
    light = Supervised(encoder, SegmentationTask(2, decoder="light", width=8))
    assert light(batch)["loss"].isfinite()

    flagged = batch | {"labelled": torch.tensor([1, 0, 0, 0])}
    padded = [each.clone() for each in batch["label_map"]]
    padded[0][1, :, :5] = 0  # what a view reads beyond an image of which nothing is known
    assert own(batch | {"label_map": padded})["labelled"] == 0.75
    assert own(flagged | {"label_map": padded})["labelled"] == 0.25


def test_several_tasks_take_one_pass_and_the_same_features():
    class Counts(nn.Module):
        calls = 0

        def forward(self, x):
            Counts.calls += 1
            return x

    for name, arguments in (("resnet10", THIN), ("segresnet", {"init_filters": 8}), ("efficientnet-b0", {})):
        torch.manual_seed(0)
        method = Supervised(build_encoder(name, **arguments), [three_classes(), SegmentationTask(2, width=8)]).eval()
        alone = Supervised(method.encoder, three_classes()).eval()
        alone.heads.tasks["label"].load_state_dict(method.heads.tasks["label"].state_dict())
        batch = with_maps(make_batch(side=64))
        torch.testing.assert_close(method(batch)["label_loss"], alone(batch)["loss"].detach(), msg=name)
        torch.testing.assert_close(
            method.heads._encode(method.encoder, batch["views"][0])[0], method.encoder(batch["views"][0])
        )
    encoder = thin_resnet()
    encoder.net.conv1 = nn.Sequential(Counts(), encoder.net.conv1)
    Supervised(encoder, [three_classes(), SegmentationTask(2, width=8)])(with_maps(make_batch()))
    assert Counts.calls - 1 == 1, "one pass to learn the maps' channels, one for the batch"


def test_the_tasks_may_have_a_view_of_their_own():
    class Spy(SSLMethod):
        def forward(self, batch):
            self.seen = batch
            return {"loss": self.encoder(batch["views"][0]).sum()}

    spy = Spy(thin_resnet())
    method = Hybrid(spy, [three_classes(), SegmentationTask(2, width=8)], own_view=True).eval()
    batch = with_maps(make_batch(num_views=3))
    batch["views"][2] = batch["views"][2] * 2
    out = method(batch)
    assert len(spy.seen["views"]) == len(spy.seen["label_map"]) == 2 and spy.seen["label"] is batch["label"]
    features = method.encoder(batch["views"][2])
    expected = masked_cross_entropy(method.heads.tasks["label"].head(features), batch["label"])
    torch.testing.assert_close(out["label_loss"], expected.detach())
    with pytest.raises(ValueError, match="two views or more"):
        method(make_batch(num_views=1))


class NothingIsReadBack(TorchDispatchMode):
    """Refuses what would wait for a device: to read a value, or to make a shape of one."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket._qualified_op_name
        assert name not in ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select"), name
        booleans = name == "aten::index" and any(x is not None and x.dtype == torch.bool for x in args[1])
        assert not booleans, "boolean index"
        return function(*args, **(kwargs or {}))


def test_forward_does_not_wait_for_the_device(monkeypatch):
    tasks = [three_classes(class_weights=[1, 2, 3]), FindingsTask(["a"]), SegmentationTask(2, width=8)]
    batch = with_maps(make_batch(), known=[True] * 3 + [False] * 3)
    batch |= {"a": torch.tensor([1.0, 0, math.nan, -1, 1, 0]), "labelled": torch.ones(6, dtype=torch.int64)}
    hybrid = Hybrid(moco(), tasks, weight=0.0, final_weight=1.0)
    monkeypatch.setattr(type(hybrid.heads), "_check_on_cpu", staticmethod(lambda task, batch: None))
    with NothingIsReadBack():
        hybrid(batch)["loss"].backward()
        with pytest.raises(AssertionError, match="nonzero"):
            Hybrid(moco(), three_classes(), self_supervised_on="unlabelled")(batch)


# ---- learning and resuming -------------------------------------------------------------------------------------------


def pictures(count: int = 32, side: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise with a bright bar: upright (0), lying (1) or none (2)."""
    generator = torch.Generator().manual_seed(3)
    images = 0.4 * torch.rand(count, 1, side, side, generator=generator)
    labels = torch.arange(count) % 3
    for image, label in zip(images, labels, strict=True):
        start = int(torch.randint(4, side - 8, (), generator=generator))
        if label == 0:
            image[..., start : start + 4] += 0.6
        elif label == 1:
            image[..., start : start + 4, :] += 0.6
    return images, labels


@pytest.mark.parametrize("build", [lambda: C2L(thin_resnet(), keys="student", terms=["homogeneous"]), None])
def test_learns_the_labels_of_some_images_without_collapse(build):
    torch.manual_seed(0)
    task = three_classes()
    method = Supervised(thin_resnet(), task) if build is None else Hybrid(build(), task)
    images, labels = pictures()
    shown = torch.where(torch.arange(32) < 24, labels, -1)
    optimizer = torch.optim.AdamW(method.parameter_groups(0.01), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    first = None
    for step in range(40):
        noise = [0.1 * torch.randn(images.shape, generator=generator) for _ in range(2)]
        out = method({"views": [images + noise[0], images.flip(-1) + noise[1]], "label": shown})
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        method.after_step((step + 1) / 40)
        first = first or out
    assert first["task_loss" if build else "loss"].item() == pytest.approx(math.log(3), abs=0.4)
    assert out["accuracy"] > 0.95
    if build:
        assert out["ssl_loss"] < 0.7 * first["ssl_loss"]
    assert effective_rank(out["embedding"]) > 2
    with torch.no_grad():
        predicted = method.heads.tasks["label"].head(method.encoder(images)).argmax(1)
    assert (predicted == labels)[24:].float().mean() > 0.7, "the labels that were hidden are found too"


@pytest.mark.parametrize("spatial_dims, decoder", [(2, "light"), (3, "network")])
def test_segmentation_learns_from_the_volumes_that_have_a_map(spatial_dims, decoder):
    """Through the trainer: maps follow the view's own draw; its zeros beyond an unlabelled image do not count."""
    generator = torch.Generator().manual_seed(0)
    side = 16
    images = 0.3 * torch.rand(8, 1, *[side] * spatial_dims, generator=generator)
    maps = torch.zeros(images.shape, dtype=torch.uint8)
    for place in range(8):
        starts = torch.randint(0, 9, (spatial_dims,), generator=generator).tolist()
        box = (place, 0, *[slice(start, start + 7) for start in starts])
        images[box] += 0.6
        maps[box] = 1
    labelled = torch.arange(8) % 2
    maps[labelled == 0] = IGNORED_LABEL
    loader = [{"image": images, "label_map": maps, "labelled": labelled, "index": torch.arange(8)}] * 10
    chain = ViewChain([RandomResample(side, (0.7, 1.0), rotation_deg=10, padding="zeros"), RandomBrightnessContrast()])

    def build():
        encoder = build_encoder("unet", spatial_dims, **SMALL_UNET, out_channels=2)
        return Hybrid(moco(encoder=encoder), SegmentationTask(1, decoder=decoder, width=8, include_background=True))

    trainer = toy_trainer(
        loader=loader, method=build, max_epochs=4, optimizer="adam", learning_rate=1e-2, views=MultiView([chain] * 2)
    )
    trainer.run()
    assert trainer.state.output["dice"] > 0.75
    assert trainer.state.output["labelled"] == 0.5


class RandomLabels:
    """A loader of images of which a third has a label."""

    def __init__(self) -> None:
        images, labels = pictures(12, 16)
        self.batches = [
            {
                "image": images[start : start + 4],
                "label": torch.where(torch.arange(4) < 2, labels[start : start + 4], -1),
            }
            for start in (0, 4, 8)
        ]

    def __len__(self) -> int:
        return 3

    def __iter__(self):
        return iter(self.batches)


@pytest.mark.parametrize("on", ["all", "unlabelled"])
def test_resumes_to_the_same_number_in_the_middle_of_the_ramp(on):
    def build():
        return Hybrid(moco(), three_classes(), weight=0.0, final_weight=3.0, self_supervised_on=on)

    def trainer():
        return toy_trainer(loader=RandomLabels(), method=build, max_epochs=4, optimizer="adam", learning_rate=1e-3)

    unbroken = trainer()
    unbroken.state.max_epochs = 4
    unbroken.run()
    short = trainer()
    states = {}
    from ignite.engine import Events

    short.add_event_handler(
        Events.ITERATION_COMPLETED(once=7), lambda: states.update(copy.deepcopy(short.state_dict()))
    )
    short.run()
    resumed = trainer()
    resumed.load_state_dict(states)
    assert resumed.method.progress.item() == pytest.approx(7 / 12)
    resumed.run()
    assert_same(unbroken.method.state_dict(), resumed.method.state_dict())
    assert unbroken.state.output["loss"] == resumed.state.output["loss"]
    assert unbroken.state.output["task_weight"] == pytest.approx(3 * 11 / 12)


# ---- errors ----------------------------------------------------------------------------------------------------------


def test_errors_say_what_is_wrong():
    with pytest.raises(ValueError, match="two ascending shares"):
        Hybrid(moco(), three_classes(), ramp=(0.5, 0.5))
    with pytest.raises(ValueError, match="at least 0"):
        Hybrid(moco(), three_classes(), weight=-1.0)
    with pytest.raises(ValueError, match="'all' or 'unlabelled'"):
        Hybrid(moco(), three_classes(), self_supervised_on="labelled")
    with pytest.raises(ValueError, match="would not use labelled images"):
        Hybrid(moco(), three_classes(), weight=0.0, self_supervised_on="unlabelled")
    with pytest.raises(ValueError, match="one or more of ClassTask"):
        Supervised(thin_resnet(), [])
    with pytest.raises(ValueError, match="two tasks have one name: label, label"):
        Supervised(thin_resnet(), [three_classes(), three_classes()])
    with pytest.raises(ValueError, match="no dot"):
        ClassTask("finding.a")
    with pytest.raises(ValueError, match="must be positive"):
        ClassTask("label", weight=0)
    with pytest.raises(ValueError, match="3 numbers"):
        three_classes(class_weights=[1.0, 2.0])
    with pytest.raises(ValueError, match="at least 2 output"):
        ClassTask("label", num_classes=1)
    with pytest.raises(ValueError, match="single entry"):
        FindingsTask(["a", "b"], num_findings=2)
    with pytest.raises(ValueError, match=r"needs 3 output channels.*out_channels=3"):
        Supervised(build_encoder("unet", out_channels=1, **SMALL_UNET), SegmentationTask(2, decoder="network"))
    with pytest.raises(ValueError, match="2D encoder takes views"):
        Supervised(thin_resnet(), three_classes())(make_batch(spatial_dims=3))


def test_labels_of_no_class_are_refused_before_they_reach_the_device():
    method = Hybrid(moco(), [three_classes(), FindingsTask(["a"]), SegmentationTask(1, width=8)])
    good = with_maps(make_batch(), 1) | {"a": torch.ones(6)}
    for change, words in (
        ({"label": torch.tensor([0, 3, -1, 0, 0, 0])}, "'label' has the class 3, but the task has 3 classes, 0 to 2"),
        ({"label": torch.zeros(6)}, "must be whole numbers"),
        ({"a": torch.full((6,), 2.0)}, "the findings of 'a' hold 2: they must be 0 or 1"),
        ({"label_map": [torch.full((6, 1, 32, 32), 7, dtype=torch.uint8)] * 2}, "'label_map' has the value 7"),
    ):
        with pytest.raises(ValueError, match=words):
            method(good | change)
        with pytest.raises(ValueError, match=words):
            method.check_batch(good | change)
    with pytest.raises(ValueError, match=r"needs the entry 'label'.*label_columns"):
        method({key: value for key, value in good.items() if key != "label"})
    with pytest.raises(ValueError, match="map_keys"):
        method(good | {"label_map": good["label_map"][0]})
    loader = [{"image": torch.rand(4, 1, 16, 16), "label": torch.tensor([0, 5, 1, 1])}]
    with pytest.raises(ValueError, match="class 5, but the task has 3"):
        toy_trainer(loader=loader, method=lambda: Hybrid(moco(), three_classes()), max_epochs=1).run()
    Hybrid(moco(), three_classes(), weight=0.0).check_batch({"image": torch.rand(1)})  # no supervised pass, no label
