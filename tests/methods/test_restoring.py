# SPDX-License-Identifier: Apache-2.0
"""Models Genesis and SwinUNETR's three tasks: the losses are the formulas, the copies are right, both methods learn."""

from __future__ import annotations

import math

import pytest
import torch
from monai.networks import nets
from torch.nn import functional
from toy_training import LossLog, ToyImages, toy_trainer

from monai_ssl.losses import nt_xent
from monai_ssl.methods import ModelsGenesis, SwinUNETRPretext
from monai_ssl.methods.swin_unetr_pretext import _partners
from monai_ssl.networks import ImageEncoder, build_encoder
from monai_ssl.transforms import RandomBlockDrop, RandomGaussianNoise
from monai_ssl.weights import load_encoder, save_encoder

SEGRESNET = {"blocks_down": [1, 1, 1], "blocks_up": [1, 1]}
DECODERS = {
    "segresnet": SEGRESNET,
    "unet": {"channels": [4, 8, 16]},
    "basicunet": {"features": [4, 4, 8, 8, 16, 4]},
    "dynunet": {"filters": [4, 8, 8], "strides": [1, 2, 2]},
}


def genesis(spatial_dims: int = 2, channels: int = 1, network: str = "segresnet", **options) -> ModelsGenesis:
    encoder = build_encoder(network, spatial_dims, channels, out_channels=channels, **DECODERS[network])
    return ModelsGenesis(encoder, **options)


def pretext(spatial_dims: int = 2, channels: int = 1, **options) -> SwinUNETRPretext:
    return SwinUNETRPretext(build_encoder("segresnet", spatial_dims, channels, **SEGRESNET), **options)


METHODS = [genesis, pretext]
every_method = pytest.mark.parametrize("make", METHODS, ids=lambda make: make.__name__)


def make_batch(spatial_dims: int = 2, channels: int = 1, batch: int = 4, seed: int = 0) -> dict:
    x = torch.rand(batch, channels, *[16] * spatial_dims, generator=torch.Generator().manual_seed(9))
    return {"views": [x], "generator": torch.Generator().manual_seed(seed)}


@every_method
@pytest.mark.parametrize("spatial_dims, channels", [(2, 1), (2, 3), (3, 1), (3, 2)])
def test_what_comes_out(make, spatial_dims, channels):
    torch.manual_seed(0)
    method, batch = make(spatial_dims, channels), make_batch(spatial_dims, channels)
    x = batch["views"][0].requires_grad_()
    before = x.detach().clone()
    out = method(batch)
    out["loss"].backward()
    assert torch.equal(x, before) and x.grad is None
    for name in ("target", "corrupted", "prediction"):
        assert out[name].shape == x.shape and out[name].dtype == torch.float32 and not out[name].requires_grad
    assert not out["embedding"].requires_grad
    torch.testing.assert_close(out["embedding"].norm(dim=1), torch.ones(4))
    # The target has the image's own values, moved about as a whole; what is seen of it is spoiled.
    torch.testing.assert_close(out["target"].flatten(2).sort()[0], x.detach().flatten(2).sort()[0])
    assert not torch.equal(out["target"], out["corrupted"])
    idle = [name for name, p in method.named_parameters() if p.requires_grad and p.grad is None]
    assert not idle, "DistributedDataParallel would wait for these"


@every_method
def test_the_generator_decides(make):
    torch.manual_seed(0)
    method = make()
    first, same, other = (method(make_batch(seed=seed)) for seed in (3, 3, 4))
    for name, value in first.items():
        assert torch.equal(value, same[name]), name
    assert not torch.equal(first["corrupted"], other["corrupted"]) and first["loss"] != other["loss"]
    state = torch.random.get_rng_state()
    method(make_batch())
    assert torch.equal(state, torch.random.get_rng_state()), "drawn from the global generator"


def test_the_loss_of_genesis_is_the_mean_squared_error():
    torch.manual_seed(0)
    method = genesis(3)
    out = method(make_batch(3))
    assert out["loss"].item() == pytest.approx((out["prediction"] - out["target"]).square().mean().item(), rel=1e-6)
    assert out["corrupted"].min() >= 0 and out["corrupted"].max() <= 1


def test_genesis_without_any_corruption_sees_the_target():
    none = {"mirror_prob": 0, "shuffle_prob": 0, "intensity_prob": 0, "painting_prob": 0}
    batch = make_batch()
    out = genesis(**none)(batch)
    assert torch.equal(out["target"], batch["views"][0]) and torch.equal(out["corrupted"], out["target"])
    noisy = genesis(corruptions=RandomGaussianNoise((0.1, 0.1), prob=1.0))(make_batch())
    assert (noisy["corrupted"] - noisy["target"]).std().item() == pytest.approx(0.1, rel=0.1)


def test_genesis_takes_the_range_of_the_views():
    method = genesis(value_range=(-1000, 400), shuffle_prob=0)
    batch = make_batch()
    batch["views"] = [batch["views"][0] * 1400 - 1000]
    seen = method(batch)["corrupted"]
    assert seen.min() >= -1000.1 and seen.max() <= 400.1 and seen.min() < -800 and seen.max() > 200


@pytest.mark.parametrize("network", DECODERS)
def test_every_network_with_a_decoder(network):
    torch.manual_seed(0)
    method = genesis(network=network)
    out = method({"views": [torch.rand(2, 1, 32, 32)], "generator": torch.Generator().manual_seed(0)})
    out["loss"].backward()
    assert out["loss"].isfinite() and not [name for name, p in method.named_parameters() if p.grad is None]


@pytest.mark.parametrize("options", [{}, {"error_on": "hidden"}, {"weights": (2, 0.5, 3)}, {"head_features": "token"}])
def test_the_pretext_loss_is_the_sum_of_its_formulas(options):
    torch.manual_seed(0)
    method = pretext(**options)
    seen = {}
    method.rotation_head.register_forward_hook(lambda module, inputs, output: seen.update(rotation=output))
    method.contrast_head.register_forward_hook(lambda module, inputs, output: seen.update(contrast=output))
    method.decoder.register_forward_hook(lambda module, inputs, output: seen.update(image=output, last=inputs[0]))
    out = method(make_batch())
    target, turns, corrupted, hidden = method._copies(make_batch()["views"], make_batch()["generator"])
    error = (seen["image"] - target).abs()
    if options.get("error_on") == "hidden":
        assert 0.1 < hidden.float().mean() < 0.6 and torch.equal(corrupted[~hidden], target[~hidden])
        error = error[hidden]
    losses = {
        "inpainting": error.mean(),
        "contrast": nt_xent(*seen["contrast"].chunk(2), 0.5),
        "rotation": functional.cross_entropy(seen["rotation"], turns),
    }
    for name, expected in losses.items():
        assert out[name].item() == pytest.approx(expected.item(), rel=1e-5), name
    weights = options.get("weights", (1, 1, 1))
    expected = sum(weight * loss.item() for weight, loss in zip(weights, losses.values(), strict=True))
    assert out["loss"].item() == pytest.approx(expected, rel=1e-5)
    assert out["rotation_accuracy"] == (seen["rotation"].argmax(1) == turns).float().mean()
    mean, first = seen["last"].flatten(2).mean(2), seen["last"].flatten(2)[:, :, 0]
    read = first if options.get("head_features") == "token" else mean
    torch.testing.assert_close(method.rotation_head.forward(read), seen["rotation"])


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_rotation_starts_at_log_4(spatial_dims):
    torch.manual_seed(0)
    batch = make_batch(spatial_dims, batch=24)
    losses = [pretext(spatial_dims)(batch)["rotation"].item() for _ in range(4)]
    assert sum(losses) / 4 == pytest.approx(math.log(4), abs=0.06)


@pytest.mark.parametrize("spatial_dims, axis", [(2, 0), (3, 0), (3, 2)])
def test_both_copies_are_turned_as_they_are_labelled(spatial_dims, axis):
    method, batch = pretext(spatial_dims, rotation_axis=axis), make_batch(spatial_dims, batch=16)
    target, turns, _, _ = method._copies(batch["views"], batch["generator"])
    plane = (-2, -1) if axis == 0 else (-3, -2)
    assert not torch.equal(turns[:16], turns[16:]) and set(turns.tolist()) == {0, 1, 2, 3}
    for copy, image, count in zip(target, batch["views"][0].repeat(2, *[1] * (spatial_dims + 1)), turns, strict=True):
        assert torch.equal(copy, torch.rot90(image, int(count), plane))


def test_boxes_come_from_another_image_always():
    for size in (2, 3, 7):
        own = torch.arange(size)
        drawn = torch.stack([_partners(size, None, torch.device("cpu")) for _ in range(200)])
        assert (drawn[:, :size] != own).all() and (drawn[:, size:] != own + size).all()
        assert (drawn[:, :size] < size).all() and (drawn[:, size:] >= size).all()
        assert {tuple(row) for row in drawn[:, :1].tolist()} == {(i,) for i in range(1, size)}
    method = pretext(drop=RandomBlockDrop(share=(0.3, 0.3), fill=-1.0))
    x = torch.arange(1.0, 7).view(6, 1, 1, 1).expand(-1, 1, 32, 32)
    _, _, corrupted, _ = method._copies([x], torch.Generator().manual_seed(0))
    for number, copy in zip([*range(1, 7)] * 2, corrupted, strict=True):
        others = set(copy.unique().tolist()) - {number, -1.0}
        assert len(others) == 1, "each copy has boxes of exactly one other image"
    unmixed = pretext(drop=RandomBlockDrop(share=(0.3, 0.3), fill=-1.0), mix=False)
    _, _, corrupted, _ = unmixed._copies([x], torch.Generator().manual_seed(0))
    assert all(
        set(copy.unique().tolist()) == {float(n), -1.0} for n, copy in zip([*range(1, 7)] * 2, corrupted, strict=True)
    )


def test_two_views_make_one_copy_each():
    method, batch = pretext(), make_batch()
    second = 1 + batch["views"][0]
    target, _, _, _ = method._copies([batch["views"][0], second], batch["generator"])
    assert target[:4].max() <= 1 and target[4:].min() >= 1
    assert method(batch | {"views": [batch["views"][0], second]})["loss"].isfinite()


@pytest.mark.parametrize("decoder", ["vae", "deconv", "large_kernel_deconv"])
@pytest.mark.parametrize("rotation_head", ["linear", "mlp"])
def test_heads(decoder, rotation_head):
    torch.manual_seed(0)
    method = pretext(3, 2, decoder=decoder, rotation_head=rotation_head)
    out = method(make_batch(3, 2))
    out["loss"].backward()
    assert out["prediction"].shape == (4, 2, 16, 16, 16)
    assert not [name for name, p in method.named_parameters() if p.grad is None]


@pytest.mark.parametrize(
    ("network", "options"),
    [("resnet10", {}), ("vit", {"img_size": 64, "patch_size": 16, "hidden_size": 24, "mlp_dim": 32, "num_heads": 2})],
)
def test_pretext_on_other_encoders(network, options):
    torch.manual_seed(0)
    method = SwinUNETRPretext(build_encoder(network, **options))
    out = method({"views": [torch.rand(2, 1, 64, 64)]})
    assert out["prediction"].shape == (2, 1, 64, 64) and out["loss"].isfinite()


def test_swin_unetr_goes_back_into_monai(tmp_path):
    torch.manual_seed(0)
    small = {"feature_size": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8]}
    method, path = SwinUNETRPretext(build_encoder("swinunetr", **small)), tmp_path / "encoder.safetensors"
    out = method({"views": [torch.rand(2, 1, 64, 64)], "generator": torch.Generator().manual_seed(0)})
    out["loss"].backward()
    assert not [name for name, p in method.named_parameters() if p.requires_grad and p.grad is None]
    save_encoder(method.encoder, path, {"method": "SwinUNETRPretext"})
    net = nets.SwinUNETR(in_channels=1, out_channels=3, spatial_dims=2, **small)
    assert load_encoder(net, path).coverage == 1
    pretrained = method.encoder.net.swinViT.state_dict()
    assert all(torch.equal(value, pretrained[key]) for key, value in net.swinViT.state_dict().items())


def smooth_images(count: int, spatial_dims: int, side: int = 16) -> torch.Tensor:
    """Each image is one slow wave in [0, 1], brighter below than above, as if all lay alike."""
    coarse = torch.rand(count, 1, *[2] * spatial_dims, generator=torch.Generator().manual_seed(4))
    mode = "bilinear" if spatial_dims == 2 else "trilinear"
    wave = functional.interpolate(coarse, [side] * spatial_dims, mode=mode, align_corners=True)
    return 0.65 * wave + 0.35 * torch.linspace(0, 1, side)[:, None]


@every_method
def test_overfits_eight_images(make):
    torch.manual_seed(0)
    method = make() if make is pretext else make(intensity_prob=0)  # a random map can't be undone from one image
    images, generator = smooth_images(8, 2), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(method.parameter_groups(1e-4), lr=1e-3 if make is pretext else 3e-3)
    history: dict[str, list[float]] = {}
    for _ in range(100):
        out = method({"views": [images], "generator": generator})
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        for name in {"loss", "inpainting", "contrast", "rotation"} & out.keys():
            history.setdefault(name, []).append(out[name].item())
    ratio = {name: sum(values[-15:]) / sum(values[:15]) for name, values in history.items()}
    if make is genesis:
        assert ratio["loss"] < 0.5
    else:
        assert ratio["inpainting"] < 0.5 and ratio["rotation"] < 0.75 and ratio["contrast"] < 0.9, ratio


class OneNoisyView:
    def __call__(self, image, generator=None, extent=None):
        return [image + 0.02 * torch.randn(image.shape, generator=generator)]


def train(make, spatial_dims: int, **options):
    defaults = {"method": lambda: make(spatial_dims), "dataset": ToyImages(8, 16, spatial_dims), "optimizer": "adamw"}
    return toy_trainer(**defaults | {"learning_rate": 1e-3, "views": OneNoisyView(), "max_epochs": 2} | options)


@every_method
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_trains_and_resumes_to_the_same_numbers(make, spatial_dims):
    whole, first, second = LossLog(), LossLog(3), LossLog()
    train(make, spatial_dims, train_handlers=[whole]).run()
    interrupted = train(make, spatial_dims, train_handlers=[first])
    interrupted.run()
    resumed = train(make, spatial_dims, train_handlers=[second], seed=99)
    resumed.load_state_dict(interrupted.state_dict())
    resumed.run()
    assert first.losses | second.losses == whole.losses and len(whole.losses) == 4


@every_method
def test_half_precision_stays_near(make):
    losses = []
    for precision in ("fp32", "bf16"):
        log = LossLog()
        train(make, 2, precision=precision, max_epochs=1, train_handlers=[log]).run()
        losses.append(log.losses[1])
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


@every_method
@torch.no_grad()
def test_the_exported_encoder_loads_completely(make, tmp_path):
    torch.manual_seed(0)
    method, path = make(), tmp_path / "encoder.safetensors"
    save_encoder(method.encoder, path, {"method": type(method).__name__}, with_decoder=make is genesis)
    net = nets.SegResNet(2, out_channels=5, **SEGRESNET)
    report = load_encoder(net, path)
    assert report.coverage == 1 and not report.unexpected
    x = torch.rand(2, 1, 16, 16)
    torch.testing.assert_close(ImageEncoder(net).eval()(x), method.encoder.eval()(x))


@every_method
def test_misuse_is_named(make):
    with pytest.raises(ValueError, match=r"on a 2D encoder takes views \(B, 1, H, W\), got \(4, 1, 16, 16, 16\)"):
        make(2)(make_batch(3))
    with pytest.raises(ValueError, match=r"takes one view of each image.*, got 3"):
        make()({"views": make_batch()["views"] * 3})
    with pytest.raises(ValueError, match=r"size \(18, 18\) must be a multiple of the network's \(4, 4\)"):
        make()({"views": [torch.rand(2, 1, 18, 18)]})


def test_other_misuse_is_named():
    with pytest.raises(ValueError, match=r"ModelsGenesis needs a network with a decoder .* not 'resnet10'"):
        ModelsGenesis(build_encoder("resnet10"))
    with pytest.raises(ValueError, match=r"image's 1 channel\(s\), it has None"):
        ModelsGenesis(build_encoder("segresnet"))
    with pytest.raises(ValueError, match="at least two samples"):
        pretext()(make_batch(batch=1))
    for options in ({"error_on": "some"}, {"head_features": "max"}, {"rotation_head": "deep"}, {"weights": (1, 1)}):
        with pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
            pretext(**options)
    with pytest.raises(ValueError, match="form must be"):
        pretext(decoder="shuffle")
