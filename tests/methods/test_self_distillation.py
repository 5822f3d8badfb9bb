# SPDX-License-Identifier: Apache-2.0
"""DINO, iBOT and DINOv2: the papers' formulas, schedules, 2D and 3D, learning without collapse, resuming."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import log_softmax
from torch.utils._python_dispatch import TorchDispatchMode

from monai_ssl.losses import koleo, sinkhorn
from monai_ssl.methods import DINO, IBOT, DINOv2
from monai_ssl.metrics import effective_rank
from monai_ssl.networks import build_encoder

SMALL_HEAD = {"num_outputs": 32, "hidden_features": 24, "bottleneck_features": 16}
SMALL_VIT = {"img_size": 16, "patch_size": 4, "hidden_size": 24, "mlp_dim": 32, "num_heads": 2, "num_layers": 2}
METHODS = {"DINO": DINO, "IBOT": IBOT, "DINOv2": DINOv2}
every_method = pytest.mark.parametrize("name", METHODS)


def vit(spatial_dims: int = 2, channels: int = 1, **options):
    return build_encoder("vit", spatial_dims, channels, **SMALL_VIT | {"interpolate_positions": True} | options)


def make(name: str, encoder=None, **options):
    torch.manual_seed(0)
    options = SMALL_HEAD | ({"num_patch_outputs": 20} if name == "DINOv2" else {}) | options
    return METHODS[name](vit() if encoder is None else encoder, **options)


def make_batch(sizes=(16, 16, 8, 8), images: int = 4, spatial_dims: int = 2, channels: int = 1, seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed)
    views = [torch.rand(images, channels, *[side] * spatial_dims, generator=generator) for side in sizes]
    return {"views": views, "index": torch.arange(images), "generator": generator}


def disturb_teacher(method) -> None:
    """So that teacher and student are not the same network."""
    with torch.no_grad():
        for name, parameter in method.named_parameters():
            if "teacher" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(7)))


@every_method
@pytest.mark.parametrize("spatial_dims, channels, sizes", [(2, 1, (16, 16, 8, 8)), (3, 2, (8, 8, 4))])
def test_what_comes_out(name, spatial_dims, channels, sizes):
    method = make(name, vit(spatial_dims, channels, img_size=sizes[0]))
    batch = make_batch(sizes, 4, spatial_dims, channels)
    state = copy.deepcopy(method.state_dict())
    out = method(batch)
    out["loss"].backward()
    assert out["embedding"].shape == out["embedding_pair"].shape == (4, 16)
    torch.testing.assert_close(out["embedding"].norm(dim=1), torch.ones(4))
    assert not any(value.requires_grad for key, value in out.items() if key != "loss")
    idle = [key for key, p in method.named_parameters() if p.requires_grad and p.grad is None]
    assert not idle, "DistributedDataParallel would wait for them"
    teacher = [p for key, p in method.named_parameters() if "teacher" in key]
    assert teacher and not any(p.requires_grad or p.grad is not None for p in teacher)
    changed = [key for key, value in method.state_dict().items() if not torch.equal(value, state[key])]
    assert not changed, "forward must leave the state alone"


@pytest.mark.parametrize("architecture, arguments", [("resnet10", {}), ("segresnet", {"blocks_down": [1, 1]})])
def test_dino_takes_convolutional_encoders(architecture, arguments):
    torch.manual_seed(0)
    method = DINO(build_encoder(architecture, **arguments), head_batch_norm=True, **SMALL_HEAD)
    out = method(make_batch((32, 32, 16)))
    out["loss"].backward()
    method.after_step(0.5)
    assert out["loss"].isfinite()
    with pytest.raises(ValueError, match=f"IBOT needs a 'vit' encoder, not '{architecture}'; DINO takes any"):
        IBOT(build_encoder(architecture, **arguments))


def dino_loss(scores: list[torch.Tensor], codes: list[torch.Tensor]) -> torch.Tensor:
    pairs = [(a, b) for a in range(len(codes)) for b in range(len(scores)) if a != b]
    return torch.stack([-(codes[a] * log_softmax(scores[b] / 0.1, 1)).sum(1).mean() for a, b in pairs]).mean()


@pytest.mark.parametrize("centering", ["mean", "sinkhorn"])
def test_dino_is_the_papers_formula(centering):
    method = make("DINO", centering=centering)
    disturb_teacher(method)
    if centering == "mean":
        method.codes.center.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    batch = make_batch()
    out = method(batch)
    teacher = method.teacher.module
    with torch.no_grad():
        outputs = [teacher["head"](teacher["encoder"](view)) for view in batch["views"][:2]]
        if centering == "mean":
            codes = [((t - method.codes.center) / 0.04).softmax(1) for t in outputs]
        else:
            codes = list(sinkhorn(torch.cat(outputs), 0.04, 3).chunk(2))
    loss = dino_loss([method.head(method.encoder(view)) for view in batch["views"]], codes)
    assert out["loss"].item() == pytest.approx(loss.item(), rel=1e-5)
    stacked = torch.stack(codes)
    entropy = -(stacked * stacked.clamp(min=1e-30).log()).sum(-1).mean()
    assert out["teacher_entropy"].item() == pytest.approx(entropy.item(), rel=1e-4)
    assert out["divergence"].item() == pytest.approx((loss - entropy).item(), rel=1e-3)
    mean = stacked.mean((0, 1))
    assert out["outputs_used"].item() == pytest.approx(math.exp(-(mean * mean.clamp(min=1e-30).log()).sum()), rel=1e-4)


@pytest.mark.parametrize("name", ["IBOT", "DINOv2"])
def test_ibot_and_dinov2_are_the_papers_formulas(name):
    method = make(name)
    disturb_teacher(method)
    batch = make_batch()
    out = method(batch)
    hidden = out["hidden_patches"]
    assert hidden.shape == (8, 1, 4, 4)
    masks = hidden.flatten(1).chunk(2)  # of the first and the second view's images
    student, teacher = method.encoder, method.teacher.module

    def states(encoder, view, mask=None):
        tokens = encoder.patch_tokens(view)
        if mask is not None:
            tokens[mask] = method.mask_token
        return encoder.encode_tokens(tokens + encoder.positions())

    def codes_of(outputs):
        return sinkhorn(outputs, 0.04, 3) if name == "DINOv2" else (outputs / 0.04).softmax(1)

    large = batch["views"][:2]
    seen = [states(student, view, mask) for view, mask in zip(large, masks, strict=True)]
    with torch.no_grad():
        whole = [states(teacher["encoder"], view) for view in large]
        codes = list(codes_of(torch.cat([teacher["head"](x.mean(1)) for x in whole])).chunk(2))
        patch_teacher = teacher["head"] if name == "IBOT" else method.patch_teacher.module
        patch_codes = codes_of(torch.cat([patch_teacher(x[mask]) for x, mask in zip(whole, masks, strict=True)]))
    pooled = [x.mean(1) for x in seen] + [student(view) for view in batch["views"][2:]]
    image_loss = dino_loss([method.head(z) for z in pooled], codes)
    patch_head = method.head if name == "IBOT" else method.patch_head
    terms, images, start = [], 0, 0
    for x, mask in zip(torch.cat(seen), torch.cat(masks), strict=True):
        count = int(mask.sum())
        if count:
            scores = patch_head(x[mask]) / 0.1
            terms.append(-(patch_codes[start : start + count] * log_softmax(scores, 1)).sum(1).mean())
            start, images = start + count, images + 1
    assert images == 4 and [int(n) for n in torch.cat(masks).sum(1).sort().values] == [0] * 4 + [2, 4, 6, 7]
    patch_loss = torch.stack(terms).mean()
    expected = image_loss + patch_loss
    if name == "DINOv2":
        spread = koleo(pooled[0]) + koleo(pooled[1])
        expected = expected + 0.1 * spread
        assert out["koleo_loss"].item() == pytest.approx(spread.item(), rel=1e-4)
    assert out["image_loss"].item() == pytest.approx(image_loss.item(), rel=1e-4)
    assert out["patch_loss"].item() == pytest.approx(patch_loss.item(), rel=1e-4)
    assert out["loss"].item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_initial_loss_is_near_log_k():
    """Cosines with K random directions of length d are normal with the variance 1 / d.

    Where student and teacher agree, as at the start, -sum q s / w is on average -1 / (u w d), and the logarithm of the
    sum log K + 1 / (2 w^2 d).
    """
    method = make("DINO", num_outputs=4096, bottleneck_features=256)
    out = method(make_batch(sizes=(16, 16)))
    expected = math.log(4096) + (1 / (2 * 0.1) - 1 / 0.04) / (0.1 * 256)
    assert out["loss"].item() == pytest.approx(expected, abs=0.25)
    with torch.no_grad():
        method.head.directions.copy_(method.head.directions[:1].expand(4096, -1))
    assert method(make_batch())["loss"].item() == pytest.approx(math.log(4096), rel=1e-4)


@every_method
def test_schedules(name):
    method = make(name, freeze_last_layer=0.1, momentum=0.9, final_momentum=1.0)
    assert method.last_layer_is_frozen and method.teacher_temperature == 0.04
    method(make_batch())["loss"].backward()
    assert method.head.directions.grad.abs().sum() == 0
    method.after_step(0.15)
    assert not method.last_layer_is_frozen and method.teacher_temperature == pytest.approx(0.055)
    method.zero_grad()
    method(make_batch())["loss"].backward()
    assert method.head.directions.grad.abs().sum() > 0
    for progress in (0.3, 0.9):
        method.after_step(progress)
        assert method.teacher_temperature == 0.07
    assert method.teacher_momentum(1e-9) == pytest.approx(0.9) and method.teacher_momentum(1.0) == 1
    assert not make(name, freeze_last_layer=0).last_layer_is_frozen
    assert make(name, temperature_warmup=0).teacher_temperature == 0.07


@every_method
def test_teacher_and_centre_move_after_the_step_only(name):
    method = make(name, momentum=0.75, final_momentum=0.75)
    disturb_teacher(method)
    gaps = lambda: [  # noqa: E731
        theirs - ours
        for ours, theirs in zip(method._taught_parts().parameters(), method.teacher.parameters(), strict=True)
    ]
    before = [gap.detach().clone() for gap in gaps()]
    method(make_batch())["loss"].backward()
    assert all(torch.equal(a, b) for a, b in zip(gaps(), before, strict=True))
    method.after_step(0.5)
    for now, start in zip(gaps(), before, strict=True):
        torch.testing.assert_close(now, 0.75 * start, atol=1e-6, rtol=1e-4)
    if name == "DINOv2":
        assert method.codes.center.numel() == 0
        assert method.patch_teacher is not None
    else:
        assert method.codes.center.abs().sum() > 0
    if name == "IBOT":
        assert method.patch_codes.center.abs().sum() > 0 and method.patch_teacher is None


def test_the_patches_own_teacher_follows_too():
    method = make("DINOv2", momentum=0.75, final_momentum=0.75)
    with torch.no_grad():
        method.patch_head.directions.add_(1)
    method.after_step(0.5)
    gap = method.patch_head.directions - method.patch_teacher.module.directions
    torch.testing.assert_close(gap, torch.full_like(gap, 0.75))


@pytest.mark.parametrize("name", ["IBOT", "DINOv2"])
def test_the_generator_draws_the_masks(name):
    method = make(name)
    first, same, other = (method(make_batch()) for _ in range(3))
    torch.testing.assert_close(first["loss"], same["loss"])
    batch = make_batch()
    batch["generator"].manual_seed(99)
    assert not torch.equal(method(batch)["hidden_patches"], other["hidden_patches"])
    state = torch.random.get_rng_state()
    method(make_batch())
    assert torch.equal(state, torch.random.get_rng_state()), "drawn from the global generator"


def test_weight_decay_spares_what_has_one_axis():
    groups = make("DINOv2").parameter_groups(0.04)
    assert [group["weight_decay"] for group in groups] == [0.04, 0.0]
    trained = {id(p) for group in groups for p in group["params"]}
    method = make("DINOv2")
    assert len(trained) == sum(p.requires_grad for p in method.parameters())
    assert any(method.mask_token is p for p in method.parameter_groups(0.04)[1]["params"])


def test_features_before_the_head_are_what_koleo_spreads():
    method = make("DINOv2", koleo_weight=1.0, patch_weight=0.0)
    out = method(make_batch())
    loss = out["loss"] - out["image_loss"]
    assert loss.item() == pytest.approx(out["koleo_loss"].item(), rel=1e-4)
    assert "koleo_loss" not in make("IBOT")(make_batch())


class FlatEncoder(nn.Module):
    """The least that a method asks of an encoder."""

    spatial_dims, in_channels, num_features = 2, 1, 32

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


def train(method, steps: int, start: int = 0, state: dict | None = None) -> tuple[list[dict], dict]:
    """Overfit 32 images with noise as the views' difference; a warm-up, as codes drift while the centre is far off."""
    images = 3 * torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    optimizer = torch.optim.AdamW(method.parameter_groups(1e-4), lr=2e-3)
    if state:
        method.load_state_dict(state["method"])
        optimizer.load_state_dict(state["optimizer"])
    outs = []
    for step in range(start, start + steps):
        generator = torch.Generator().manual_seed(step)
        views = [images + 0.1 * torch.randn(images.shape, generator=generator) for _ in range(2)]
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / 60)
        out = method({"views": views, "generator": generator})
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        method.after_step((step + 1) / 200)
        outs.append({key: value.detach() for key, value in out.items()})
    return outs, {"method": copy.deepcopy(method.state_dict()), "optimizer": copy.deepcopy(optimizer.state_dict())}


@pytest.mark.parametrize("name, steps", [("DINO", 80), ("IBOT", 110), ("DINOv2", 60)])
def test_overfits_a_few_images_without_collapse_and_resumes_exactly(name, steps):
    def fresh():
        torch.manual_seed(0)
        encoder = FlatEncoder() if name == "DINO" else vit(img_size=8, num_layers=1)
        steady = {"momentum": 0.95, "final_momentum": 0.95, "center_momentum": 0.6, "teacher_temperature": (0.04, 0.05)}
        return make(name, encoder, num_outputs=64, bottleneck_features=32, temperature_warmup=0.9, **steady)

    outs, _ = train(fresh(), steps)
    losses, last = [out["loss"].item() for out in outs], outs[-1]
    assert losses[-1] < 0.6 * max(losses), losses[::10]
    assert last["outputs_used"] > 8
    assert effective_rank(last["embedding"], center=True) > 4
    found = (last["embedding"] @ last["embedding_pair"].T).argmax(1) == torch.arange(32)
    assert found.float().mean() > 0.5, "one view does not find the other among 32 images"
    _, state = train(fresh(), 7)
    again = train(fresh(), 3, start=7, state=state)[0]
    assert [out["loss"].item() for out in again] == losses[7:10]


class WaitsForTheDevice(TorchDispatchMode):
    """Fail on operations whose result's shape or value the host must know."""

    waiting = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "unique")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        assert not any(word in name for word in self.waiting), name
        if name in ("index", "index_put"):
            assert all(i is None or i.dtype != torch.bool for i in args[1]), "indexed by a mask"
        return function(*args, **kwargs or {})


@every_method
def test_a_step_does_not_wait_for_the_device(name):
    method, batch = make(name), make_batch()
    with WaitsForTheDevice():
        method(batch)["loss"].backward()
        method.teacher.update(method._taught_parts(), 0.9)
        method.codes.update()


@every_method
def test_half_precision_gives_a_like_loss(name):
    method, batch = make(name, num_outputs=256, bottleneck_features=128), make_batch(images=8)
    plain = method(batch)["loss"].item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = method(make_batch(images=8))
    out["loss"].backward()
    assert out["loss"].dtype == torch.float32 and out["embedding"].dtype == torch.float32
    assert out["loss"].item() == pytest.approx(plain, rel=0.1)


@every_method
def test_plain_errors(name):
    method = make(name)
    large = torch.rand(2, 1, 16, 16)
    for views in ([large], []):
        with pytest.raises(ValueError, match=f"{name} takes 2 or more views of each image"):
            method({"views": views})
    with pytest.raises(ValueError, match=rf"{name} takes two large views of one size.* \(16, 16\) and \(8, 8\)"):
        method({"views": [large, large[..., :8, :8]]})
    with pytest.raises(ValueError, match=f"{name} on a 2D encoder takes views"):
        method({"views": [large, large, torch.rand(2, 3, 8, 8)]})
    with pytest.raises(ValueError, match="interpolate_positions=True lets it take other sizes"):
        make(name, vit(interpolate_positions=False))({"views": [large, large, large[..., :8, :8]]})
    for options, word in [
        ({"student_temperature": 0}, "temperatures must be positive"),
        ({"teacher_temperature": (0.04, -1)}, "temperatures must be positive"),
        ({"temperature_warmup": 2}, "temperature_warmup"),
        ({"freeze_last_layer": -0.1}, "freeze_last_layer"),
        ({"momentum": 1.1}, "momentum"),
        ({"final_momentum": -1}, "final_momentum"),
        ({"centering": "none"}, "centering"),
        ({"center_momentum": 7}, "center_momentum"),
    ]:
        with pytest.raises(ValueError, match=word):
            make(name, **options)


def test_plain_errors_of_masks():
    for options, word in [
        ({"mask_ratio": (0.5, 0.1)}, "ratio within"),
        ({"mask_share": 0}, "share must be"),
        ({"patch_weight": -1}, "weights must be at least 0"),
        ({"koleo_weight": -1}, "weights must be at least 0"),
        ({"min_block": 0}, "min_block"),
    ]:
        with pytest.raises(ValueError, match=word):
            make("IBOT", **options)(make_batch())
    with pytest.raises(ValueError, match="KoLeo needs at least two images"):
        make("DINOv2")(make_batch(images=1))
