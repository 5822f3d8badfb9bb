# SPDX-License-Identifier: Apache-2.0
"""Masked modelling: nothing hidden leaks, the loss is the formula, all variants learn, resume and export."""

from __future__ import annotations

import pytest
import torch
from monai.networks import nets
from torch.nn import functional
from toy_training import LossLog, ToyImages, toy_trainer

from monai_ssl.methods import MAEViT, MaskedAutoencoderCNN, SimMIM
from monai_ssl.networks import ImageEncoder, build_encoder
from monai_ssl.transforms import blocks_at, expand_blocks
from monai_ssl.weights import load_encoder, save_encoder

SEGRESNET = {"blocks_down": [1, 1, 1], "blocks_up": [1, 1]}
NETWORKS = {
    "segresnet": SEGRESNET,
    "unet": {"channels": [4, 8, 16]},
    "basicunet": {"features": [4, 4, 8, 8, 16, 4]},
    "dynunet": {"filters": [4, 8, 8], "strides": [1, 2, 2]},
    "flexibleunet": {"backbone": "resnet10", "decoder_channels": [8, 8, 8, 8, 8]},
}
VIT = {"img_size": 16, "patch_size": 4, "hidden_size": 24, "mlp_dim": 48, "num_layers": 2, "num_heads": 2}


def cnn(spatial_dims: int = 2, channels: int = 1, network: str = "segresnet", **options) -> MaskedAutoencoderCNN:
    encoder = build_encoder(network, spatial_dims, channels, out_channels=channels, **NETWORKS[network])
    return MaskedAutoencoderCNN(encoder, **{"block_size": 4} | options)


def sparse(spatial_dims: int = 2, channels: int = 1, **options) -> MaskedAutoencoderCNN:
    return cnn(spatial_dims, channels, sparse=True, **options)


def mae(spatial_dims: int = 2, channels: int = 1, **options) -> MAEViT:
    small = {"decoder_width": 24, "decoder_depth": 1, "decoder_heads": 2}
    return MAEViT(build_encoder("vit", spatial_dims, channels, **VIT), **small | options)


def simmim(spatial_dims: int = 2, channels: int = 1, **options) -> SimMIM:
    return SimMIM(build_encoder("vit", spatial_dims, channels, **VIT), **{"block_size": 4} | options)


METHODS = [cnn, sparse, mae, simmim]
every_method = pytest.mark.parametrize("make", METHODS, ids=lambda make: make.__name__)


def make_batch(spatial_dims: int = 2, channels: int = 1, batch: int = 3, seed: int = 0, **entries) -> dict:
    x = torch.rand(batch, channels, *[16] * spatial_dims, generator=torch.Generator().manual_seed(9))
    return {"views": [x], "generator": torch.Generator().manual_seed(seed), **entries}


@every_method
@pytest.mark.parametrize("spatial_dims, channels", [(2, 1), (2, 3), (3, 1), (3, 2)])
def test_what_comes_out(make, spatial_dims, channels):
    torch.manual_seed(0)
    method = make(spatial_dims, channels)
    batch = make_batch(spatial_dims, channels)
    out = method(batch)
    out["loss"].backward()
    x = batch["views"][0]
    assert out["prediction"].shape == x.shape and out["prediction"].dtype == torch.float32
    assert out["mask"].shape == (3, 1, *x.shape[2:]) and out["mask"].dtype == torch.bool
    assert not any(out[name].requires_grad for name in ("prediction", "mask", "embedding", "counted"))
    torch.testing.assert_close(out["embedding"].norm(dim=1), torch.ones(3))
    assert out["embedding"].shape == (3, method.encoder.num_features)
    # Exactly the stated share of whole blocks, not the same ones in all images.
    share = round(method.mask_ratio * 4**spatial_dims) / 4**spatial_dims
    assert out["mask"].flatten(1).float().mean(1).tolist() == pytest.approx([share] * 3)
    assert torch.equal(expand_blocks(out["mask"][(..., *[slice(None, None, 4)] * spatial_dims)], 4), out["mask"])
    assert out["counted"].item() == pytest.approx(share)
    assert not torch.equal(out["mask"][0], out["mask"][1])
    idle = [name for name, p in method.named_parameters() if p.requires_grad and p.grad is None]
    assert not idle, "DistributedDataParallel would wait for these"


@every_method
def test_nothing_of_a_hidden_block_is_seen(make):
    torch.manual_seed(0)
    method = make(normalize_targets=False) if make is mae else make()
    batch = make_batch()
    out = method(batch)
    other = torch.where(out["mask"], torch.randn_like(batch["views"][0]), batch["views"][0])
    again = method(make_batch() | {"views": [other]})
    assert torch.equal(again["mask"], out["mask"])
    torch.testing.assert_close(again["prediction"], out["prediction"])
    torch.testing.assert_close(again["embedding"], out["embedding"])
    assert again["loss"] != out["loss"]


@every_method
def test_the_loss_is_the_error_where_it_was_hidden(make):
    torch.manual_seed(0)
    method = make(normalize_targets=False) if make is mae else make()
    batch = make_batch()
    out = method(batch)
    difference = (out["prediction"] - batch["views"][0])[out["mask"]]
    expected = difference.abs().mean() if make is simmim else difference.square().mean()
    assert out["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("make", [cnn, mae])
def test_normalised_targets_show_in_the_images_own_range(make):
    torch.manual_seed(0)
    method = make(normalize_targets=True)
    batch = make_batch()
    batch["views"] = [500 + 100 * batch["views"][0]]
    out = method(batch)
    patches = batch["views"][0].view(3, 1, 4, 4, 4, 4)
    std = patches.var((3, 5), correction=0, keepdim=True).sqrt().expand_as(patches).reshape(3, 1, 16, 16)
    error = ((out["prediction"] - batch["views"][0]) / std)[out["mask"]].square().mean()
    assert out["loss"].item() == pytest.approx(error.item(), rel=1e-3)
    assert (out["prediction"] - 550).abs().mean() < 100


@every_method
def test_what_is_not_valid_costs_nothing(make):
    torch.manual_seed(0)
    method = make(normalize_targets=False) if make is mae else make()
    valid = torch.zeros(3, 1, 16, 16, dtype=torch.bool)
    valid[0, :, :9] = valid[1] = True  # the first image's lower rows and all of the third are outside
    batch = make_batch(valid=valid)
    out = method(batch)
    if make is mae:  # all images hide equally many
        assert out["mask"].flatten(1).sum(1).tolist() == [192] * 3
    else:  # twelve blocks of the first image touch what is valid
        ratio = method.mask_ratio
        assert out["mask"].flatten(1).sum(1).tolist() == [16 * round(ratio * n) for n in (12, 16, 0)]
    changed = torch.where(valid, batch["views"][0], 7.0)
    hidden_only = torch.where(out["mask"], changed, batch["views"][0])
    again = method(make_batch(valid=valid) | {"views": [hidden_only]})
    assert again["loss"].item() == pytest.approx(out["loss"].item(), rel=1e-6)
    assert out["counted"].item() == pytest.approx((out["mask"] & valid).float().mean().item())


@every_method
def test_a_limit_of_brightness_is_a_valid_mask(make):
    batch = make_batch()
    batch["views"][0][:, :, :, :6] = -1.0
    torch.manual_seed(0)
    limited = make(valid_above=-1.0)(batch)
    torch.manual_seed(0)
    told = make()(make_batch(valid=batch["views"][0] > -1) | {"views": batch["views"]})
    assert torch.equal(limited["mask"], told["mask"]) and limited["loss"] == told["loss"]
    nothing = make(valid_above=5.0)(batch)
    nothing["loss"].backward()
    assert nothing["loss"] == 0 and nothing["counted"] == 0


def test_sparse_maps_stay_empty_and_are_filled_for_the_decoder():
    torch.manual_seed(0)
    method = sparse()
    with torch.no_grad():
        for value, token in enumerate(method.mask_tokens, 1):
            token.fill_(value)
    seen, given = [], []
    method.encoder.net.down_layers[1].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    decode = method.encoder.decode
    method.encoder.decode = lambda maps: given.extend(maps) or decode(maps)
    mask = method(make_batch())["mask"]
    hidden = mask.expand_as(seen[0])
    assert (seen[0][hidden] == 0).all() and (seen[0][~hidden] != 0).any()
    assert [m.shape[2] for m in given] == [16, 8, 4]
    for value, m in enumerate(given, 1):
        hidden = (~blocks_at(~mask[:, :, ::4, ::4], m.shape[2:])).expand_as(m)
        assert (m[hidden] == value).all() and (m[~hidden] != value).any()


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("is_sparse", [False, True])
def test_every_network_with_a_decoder(network, is_sparse):
    torch.manual_seed(0)
    method = cnn(network=network, sparse=is_sparse, block_size=16, mask_ratio=0.5)
    x = torch.rand(2, 1, 32, 32)
    out = method({"views": [x], "generator": torch.Generator().manual_seed(0)})
    out["loss"].backward()
    assert out["loss"].isfinite()
    assert not [name for name, p in method.named_parameters() if p.grad is None]
    assert len(method.mask_tokens) == (len(method.encoder.map_channels) if is_sparse else 0)


@pytest.mark.parametrize("make", [cnn, sparse, mae, simmim])
def test_blocks_need_not_be_cubes(make):
    torch.manual_seed(0)
    side = (2, 4, 8)
    if make in (mae, simmim):
        encoder = build_encoder("vit", 3, **VIT | {"patch_size": [2, 4, 4]})
        method = MAEViT(encoder, decoder_width=24, decoder_heads=2) if make is mae else SimMIM(encoder, block_size=side)
        side = (2, 4, 4) if make is mae else side
    else:
        method = make(3, block_size=side)
    out = method(make_batch(3))
    assert torch.equal(expand_blocks(out["mask"][..., :: side[0], :: side[1], :: side[2]], side), out["mask"])
    again = torch.where(out["mask"], 5.0, make_batch(3)["views"][0])
    changed = method(make_batch(3) | {"views": [again]})
    torch.testing.assert_close(changed["embedding"], out["embedding"])


def test_mae_encodes_visible_patches_only():
    method = mae()
    seen = []
    method.encoder.net.blocks[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    batch = make_batch()
    mask = method(batch)["mask"][:, 0, ::4, ::4].flatten(1)
    tokens = method.encoder.patch_tokens(batch["views"][0]) + method.encoder.positions()
    assert seen[0].shape == (3, 4, 24)
    torch.testing.assert_close(seen[0].flatten(0, 1), tokens[~mask])


def test_mae_starts_where_theory_says():
    """1 for patches of variance 1, and 1/3 for the output of a fresh linear layer on normalised inputs."""
    torch.manual_seed(0)
    assert mae()(make_batch(batch=16))["loss"].item() == pytest.approx(4 / 3, abs=0.1)


def test_a_class_token_goes_along():
    net = nets.ViT(in_channels=1, spatial_dims=2, classification=True, **VIT)
    for method in (
        MAEViT(ImageEncoder(net), decoder_width=24, decoder_heads=2),
        SimMIM(ImageEncoder(net), block_size=4),
    ):
        assert method(make_batch())["loss"].isfinite()


def test_tokens_are_not_decayed():
    for method in (sparse(), mae(), simmim()):
        spared = {id(p) for p in method.parameter_groups(0.1)[1]["params"]}
        tokens = [p for name, p in method.named_parameters() if "mask_token" in name]
        assert tokens and all(id(p) in spared for p in tokens)


def smooth_images(count: int, spatial_dims: int, side: int = 16) -> torch.Tensor:
    """Each image is one slow wave: what is hidden can be told from what is not."""
    coarse = torch.randn(count, 1, *[2] * spatial_dims, generator=torch.Generator().manual_seed(4))
    mode = "bilinear" if spatial_dims == 2 else "trilinear"
    return functional.interpolate(coarse, [side] * spatial_dims, mode=mode, align_corners=True)


@every_method
def test_overfits_eight_images(make):
    torch.manual_seed(0)
    method = make(mask_ratio=0.5)
    images, generator = smooth_images(8, 2), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(method.parameter_groups(1e-4), lr=5e-3)
    losses = []
    for _ in range(150):
        loss = method({"views": [images], "generator": generator})["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.35 * sum(losses[:10])


class OneNoisyView:
    def __call__(self, image, generator=None, extent=None):
        return [image + 0.02 * torch.randn(image.shape, generator=generator)]


def train(make, spatial_dims: int, **options):
    images = ToyImages(8, 16, spatial_dims)
    defaults = {"method": lambda: make(spatial_dims), "dataset": images, "optimizer": "adamw", "learning_rate": 1e-3}
    return toy_trainer(**defaults | {"views": OneNoisyView(), "max_epochs": 2} | options)


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
    assert set(resumed.state.output) >= {"loss", "embedding", "prediction", "mask", "counted"}


@every_method
def test_half_precision_stays_near(make):
    losses = []
    for precision in ("fp32", "bf16"):
        log = LossLog()
        train(make, 2, precision=precision, max_epochs=1, train_handlers=[log]).run()
        losses.append(log.losses[1])
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


@every_method
def test_precision_can_be_measured_with_a_valid_mask(make):
    class WithValid(ToyImages):
        def __getitem__(self, i):
            return super().__getitem__(i) | {"valid": torch.ones(1, 16, 16, dtype=torch.bool)}

    trainer = train(make, 2, dataset=WithValid(16, 16), batch_size=16, precision="auto", max_epochs=1)
    trainer.run()
    assert trainer.precision in ("fp32", "bf16")


@every_method
@torch.no_grad()
def test_the_exported_encoder_loads_completely(make, tmp_path):
    torch.manual_seed(0)
    method = make()
    path = tmp_path / "encoder.safetensors"
    save_encoder(method.encoder, path, {"method": type(method).__name__})
    on_vit = make in (mae, simmim)
    net = nets.ViT(1, spatial_dims=2, **VIT) if on_vit else nets.SegResNet(2, out_channels=5, **SEGRESNET)
    report = load_encoder(net, path)
    assert report.coverage == 1 and not report.missing and not report.unexpected
    x = torch.rand(2, 1, 16, 16)
    torch.testing.assert_close(ImageEncoder(net).eval()(x), method.encoder.eval()(x))


@every_method
def test_misuse_is_named(make):
    flat, deep = make(2), make(3)
    with pytest.raises(ValueError, match=r"on a 2D encoder takes views \(B, 1, H, W\), got \(3, 1, 16, 16, 16\)"):
        flat(make_batch(3))
    with pytest.raises(ValueError, match=r"on a 3D encoder takes views \(B, 1, D, H, W\), got \(3, 1, 16, 16\)"):
        deep(make_batch(2))
    with pytest.raises(ValueError, match=r"takes views \(B, 1, H, W\), got \(3, 2, 16, 16\)"):
        flat(make_batch(2, 2))
    with pytest.raises(ValueError, match="takes one view of each image, got 2"):
        flat({"views": make_batch()["views"] * 2})
    with pytest.raises(ValueError, match="'valid' must be boolean with shape"):
        flat(make_batch(valid=torch.ones(3, 1, 8, 8, dtype=torch.bool)))
    with pytest.raises(ValueError, match=r"size \(18, 18\) must be a multiple of the block size \(4, 4\)"):
        flat({"views": [torch.rand(1, 1, 18, 18)]})
    with pytest.raises(ValueError, match="mask_ratio must be greater than 0"):
        make(mask_ratio=1.0)


def test_encoders_that_do_not_fit():
    with pytest.raises(ValueError, match=r"needs a network with a decoder .* not 'resnet10'"):
        MaskedAutoencoderCNN(build_encoder("resnet10"))
    with pytest.raises(ValueError, match=r"image's 2 channel\(s\), it has None: .*out_channels=2"):
        MaskedAutoencoderCNN(build_encoder("segresnet", in_channels=2))
    for method in (MAEViT, SimMIM):
        with pytest.raises(ValueError, match="needs a 'vit' encoder, not 'segresnet'"):
            method(build_encoder("segresnet"))
    with pytest.raises(ValueError, match=r"block_size \(6, 6\) must be a multiple of the ViT's patch size \(4, 4\)"):
        simmim(block_size=6)
    with pytest.raises(ValueError, match=r"positive integer or 2 of them \(the encoder is 2D\)"):
        cnn(block_size=(4, 4, 4))
    with pytest.raises(ValueError, match="error must be"):
        cnn(error="huber")
    with pytest.raises(ValueError, match=r"multiple of the network's \(4, 4\)"):
        cnn(block_size=3)({"views": [torch.rand(1, 1, 18, 18)]})
    with pytest.raises(ValueError, match="make 64 patches"):
        mae()({"views": [torch.rand(1, 1, 32, 32)]})
