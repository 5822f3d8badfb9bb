# SPDX-License-Identifier: Apache-2.0
"""Dense contrast: pairs are places, the loss is the formula, places are learned, decoders too, in 2D and 3D."""

from __future__ import annotations

import math

import pytest
import torch
from monai.networks import nets
from torch.nn.functional import cosine_similarity, normalize
from toy_training import LossLog, ToyImages, toy_trainer

from monai_ssl.losses import info_nce, point_contrast
from monai_ssl.methods import DenseContrast
from monai_ssl.networks import build_encoder
from monai_ssl.transforms import MultiView, RandomGaussianNoise, RandomResample, ViewChain
from monai_ssl.weights import load_encoder, save_encoder

SEGRESNET = {"blocks_down": [1, 1, 1], "blocks_up": [1, 1]}
SMALL = {"hidden_features": 32, "embedding_dim": 16, "queue_size": 24, "global_dim": 8}
MODES = {"encoder": {}, "encoder, sampled": {"num_points": 9}, "decoder": {"num_points": 40}}
MODES["inner level and global"] = {"level": 1, "global_weight": 0.5}
every_mode = pytest.mark.parametrize("mode", MODES)


def make(mode: str = "encoder", spatial_dims: int = 2, channels: int = 1, **options) -> DenseContrast:
    whole = {"out_channels": 12} if mode == "decoder" else {}
    return DenseContrast(
        build_encoder("segresnet", spatial_dims, channels, **SEGRESNET, **whole), **SMALL | MODES[mode] | options
    )


def policy(spatial_dims: int, scale=(0.3, 0.8), **options) -> MultiView:
    resample = RandomResample((16,) * spatial_dims, scale, rotation_deg=15, flip_prob=0.5, elastic=0.1, **options)
    return MultiView([ViewChain([resample, RandomGaussianNoise((0.0, 0.02))])] * 2)


def make_batch(method: DenseContrast, batch: int = 4, seed: int = 0, scale=(0.3, 0.8)) -> dict:
    generator = torch.Generator().manual_seed(seed)
    dims = method.encoder.spatial_dims
    x = torch.rand(batch, method.encoder.in_channels, *[24] * dims, generator=generator)
    views = policy(dims, scale)
    params = views.draw(x.shape, generator)
    places = views.positions(x.shape, params, method.positions_stride)
    return {"views": views.apply(x, params), "positions": places, "generator": generator}


@every_mode
@pytest.mark.parametrize("spatial_dims, channels", [(2, 1), (3, 2)])
def test_what_comes_out(mode, spatial_dims, channels):
    torch.manual_seed(0)
    method = make(mode, spatial_dims, channels)
    batch = make_batch(method)
    state = {key: value.clone() for key, value in method.state_dict().items() if "running" not in key}
    out = method(batch)
    out["loss"].backward()
    changed = [key for key, value in state.items() if not torch.equal(value, method.state_dict()[key])]
    assert not [key for key in changed if "num_batches" not in key], "forward changes the state"
    assert out["embedding"].shape == (4, 32) and not out["embedding"].requires_grad
    torch.testing.assert_close(out["embedding"].norm(dim=1), torch.ones(4))
    assert 0 < out["overlap"] <= 1 and 0 <= out["matched"] <= 1
    idle = [name for name, p in method.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not [name for name in idle if "norm" not in name and "bias" not in name], idle
    assert not [name for name, p in method.named_parameters() if p.requires_grad and p.grad is None]
    assert not [name for name, p in method.named_parameters() if name.startswith("teacher.") and p.requires_grad]
    dims = (4,) if mode.startswith("encoder") else (1,) if mode == "decoder" else (2,)
    assert method.positions_stride == dims * spatial_dims


def nudge(method: DenseContrast) -> None:
    """Let teacher and student differ."""
    with torch.no_grad():
        for parameter in method.teacher.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


def embedded(encoder, head, x) -> torch.Tensor:
    """(N, cells, 16) unit features of all cells of the last map."""
    cells = encoder.feature_maps(x)[-1].flatten(2).transpose(1, 2)
    return normalize(head(cells.flatten(0, 1)).view(*cells.shape[:2], 16), dim=2)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_on_a_small_map_the_loss_is_the_papers_formula(spatial_dims):
    """Equations 1 and 2, with all cells of the map; in half of the cases the views hardly overlap."""
    torch.manual_seed(0)
    method = make(spatial_dims=spatial_dims)
    nudge(method)
    for scale in ((0.3, 0.8), (0.1, 0.2)):
        batch = make_batch(method, scale=scale)
        out = method(batch)
        x = torch.cat(batch["views"])
        student = embedded(method.encoder, method.point_head, x)
        teacher = embedded(method.teacher.module.encoder, method.teacher.module.point_head, x).detach()
        places = [p.flatten(2) for p in batch["positions"]]
        sides = [p.diff(dim=axis).norm(dim=1) for p in batch["positions"] for axis in range(2, 2 + spatial_dims)]
        losses = []
        for b in range(4):
            diagonals = [
                math.sqrt(sum(s[b].nanmean() ** 2 for s in part))
                for part in (sides[:spatial_dims], sides[spatial_dims:])
            ]
            apart = (places[0][b, :, :, None] - places[1][b, :, None]).norm(dim=0) / max(diagonals)
            same = apart <= 0.7
            if same.any():
                terms = []
                for query, key, pairs in ((student[b], teacher[4 + b], same), (student[4 + b], teacher[b], same.T)):
                    e = (cosine_similarity(query[:, None], key[None], dim=2) / 0.3).exp()
                    rows = pairs.any(1)
                    terms.append(-((e * pairs).sum(1) / e.sum(1))[rows].log().mean())
                losses.append(sum(terms) / 2)
        assert out["loss"].item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-4)
        assert out["overlap"].item() == pytest.approx(len(losses) / 4)


@pytest.mark.parametrize("mode", ["encoder, sampled", "decoder"])
def test_sampled_points_are_cells_of_one_place(mode):
    method = make(mode, 2)
    batch = make_batch(method)
    cells, positive = method._pairs(batch["positions"], torch.Generator().manual_seed(1))
    first, second = (
        places.flatten(2).gather(2, number[:, None].expand(-1, 2, -1))
        for places, number in zip(batch["positions"], cells.chunk(2), strict=True)
    )
    apart = (first - second).norm(dim=1)  # (B, P), of a point and the cell that was found for it
    paired = positive.diagonal(dim1=1, dim2=2)
    assert paired.float().mean() > 0.5
    sides = [p.diff(dim=axis).norm(dim=1).flatten(1).nanmean(1) for p in batch["positions"] for axis in (2, 3)]
    limit = 0.7 * torch.maximum((sides[0] ** 2 + sides[1] ** 2).sqrt(), (sides[2] ** 2 + sides[3] ** 2).sqrt())
    assert torch.equal(paired, apart <= limit[:, None])


def test_the_global_term_is_infonce_against_the_queue():
    torch.manual_seed(0)
    method = make("inner level and global", global_weight=0.25)
    nudge(method)
    batch = make_batch(method)
    out = method(batch)
    views, branch = torch.cat(batch["views"]), method.teacher.module
    q_1, q_2 = method.global_head(method.encoder(views)).chunk(2)
    k_1, k_2 = branch.global_head(branch.encoder(views)).detach().chunk(2)
    queue = method.queue.features
    expected = (info_nce(q_1, k_2, queue, 0.2) + info_nce(q_2, k_1, queue, 0.2)) / 2
    # The queue starts with vectors whose norm is only about 1, which the method takes as they are.
    normed = (
        info_nce(normalize(q_1), normalize(k_2), queue, 0.2, normalized=True)
        + info_nce(normalize(q_2), normalize(k_1), queue, 0.2, normalized=True)
    ) / 2
    assert out["global_loss"].item() == pytest.approx(normed.item(), rel=1e-4)
    assert out["global_loss"].item() == pytest.approx(expected.item(), rel=0.2)
    assert out["loss"].item() == pytest.approx((0.75 * out["dense_loss"] + 0.25 * normed).item(), rel=1e-4)
    method.after_step(0.1)
    torch.testing.assert_close(method.queue.features[:8], torch.cat([normalize(k_1), normalize(k_2)]))
    method.eval()
    method(batch)
    method.after_step(0.2)
    assert int(method.queue.total_enqueued) == 8, "keys of an evaluation entered the queue"


def test_views_that_do_not_meet_add_nothing():
    torch.manual_seed(0)
    method = make()
    batch = make_batch(method)
    apart = batch | {"positions": [batch["positions"][0], batch["positions"][1] + 100]}
    out = method(apart)
    assert out["loss"] == 0 and out["overlap"] == 0 and out["matched"] == 0
    out["loss"].backward()
    assert all(not p.grad.any() for p in method.parameters() if p.requires_grad)
    half = [batch["positions"][0], batch["positions"][1].clone()]
    half[1][:2] = torch.nan
    _, positive = method._pairs(half, None)
    assert not positive[:2].any() and positive[2:].any()
    assert method(batch | {"positions": half})["loss"].isfinite()
    sampled = make("encoder, sampled")
    assert sampled(apart)["loss"] == 0


def test_random_features_start_at_the_logarithm_of_the_candidates():
    """log(Q / n) for n positives of Q cells, and a little for the spread of the cosines."""
    torch.manual_seed(0)
    method = make(embedding_dim=256)
    batch = make_batch(method, 16)
    _, positive = method._pairs(batch["positions"], None)
    both = torch.cat([positive, positive.mT])
    chance = point_contrast(torch.ones(32, 16, 2), torch.ones(32, 16, 2), both).item()
    assert math.log(16 / 5) < chance < math.log(16)
    assert method(batch)["loss"].item() == pytest.approx(chance, abs=0.35)


def test_the_teacher_follows_after_the_step_on_a_cosine():
    method = make(momentum=0.5)
    with torch.no_grad():
        method.point_head.layers[-1].weight.add_(1)
    gap = lambda: method.point_head.layers[-1].weight - method.teacher.module.point_head.layers[-1].weight  # noqa: E731
    before = gap().detach().clone()
    method.after_step(0.5)  # 1 - 0.5 * (1 + cos(pi / 2)) / 2 = 0.75
    torch.testing.assert_close(gap(), 0.75 * before)
    method.after_step(1.0)
    torch.testing.assert_close(gap(), 0.75 * before)
    assert {key.split(".")[0] for key in method.state_dict()} == {"encoder", "point_head", "teacher"}


@pytest.mark.parametrize("mode", ["encoder", "decoder"])
def test_places_are_learned(mode):
    """32 images: the share of points whose best match is right rises far above chance, and features stay apart."""
    torch.manual_seed(0)
    method = make(mode, temperature=0.1, momentum=0.9)
    coarse = torch.rand(32, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    images = torch.nn.functional.interpolate(coarse, (24, 24), mode="bicubic").clamp(0, 1)
    optimizer = torch.optim.AdamW(method.parameter_groups(1e-4), lr=1e-2)
    generator, views = torch.Generator().manual_seed(0), policy(2, (0.5, 0.9))
    losses, matched = [], []
    for step in range(30):
        params = views.draw(images.shape, generator)
        places = views.positions(images.shape, params, method.positions_stride)
        out = method({"views": views.apply(images, params), "positions": places, "generator": generator})
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        method.after_step((step + 1) / 30)
        losses.append(out["loss"].item())
        matched.append(out["matched"].item())
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10]), losses
    assert sum(matched[-10:]) / 10 > 1.6 * sum(matched[:3]) / 3, matched
    assert (out["embedding"] @ out["embedding"].T).mean() < 0.999


def train(mode: str, spatial_dims: int, **options):
    dataset = ToyImages(8, 24, spatial_dims)
    defaults = {"method": lambda: make(mode, spatial_dims), "dataset": dataset, "views": policy(spatial_dims)}
    return toy_trainer(**defaults | {"optimizer": "adamw", "learning_rate": 1e-3, "max_epochs": 2} | options)


@pytest.mark.parametrize("mode, dims", [("encoder", 3), ("decoder", 2), ("inner level and global", 2)])
def test_trains_and_resumes_to_the_same_numbers(mode, dims):
    whole, first, second = LossLog(), LossLog(3), LossLog()
    train(mode, dims, train_handlers=[whole]).run()
    interrupted = train(mode, dims, train_handlers=[first])
    interrupted.run()
    resumed = train(mode, dims, train_handlers=[second], seed=99)
    resumed.load_state_dict(interrupted.state_dict())
    resumed.run()
    assert first.losses | second.losses == whole.losses and len(whole.losses) == 4


def test_precision_is_measured_without_changing_the_run():
    def losses(**options) -> list[float]:
        log = LossLog()
        train("encoder", 2, train_handlers=[log], max_epochs=1, **options).run()
        return list(log.losses.values())

    assert losses(precision="auto") == pytest.approx(losses(precision="fp32"), rel=0.05)


@torch.no_grad()
def test_the_decoder_is_exported_and_loads_completely(tmp_path):
    torch.manual_seed(0)
    method, path = make("decoder", 3), tmp_path / "encoder.safetensors"
    save_encoder(method.encoder, path, {"method": "DenseContrast"}, with_decoder=True)
    net = nets.SegResNet(3, out_channels=5, **SEGRESNET)
    assert load_encoder(net, path).coverage == 1
    ours, theirs = method.encoder.net.state_dict(), net.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours if not key.startswith("conv_final"))
    assert any(key.startswith("up_layers") for key in ours)


@pytest.mark.parametrize("name", ["resnet10", "densenet121", "vit"])
def test_other_networks(name):
    sizes = {"img_size": 32, "patch_size": 8, "hidden_size": 8, "mlp_dim": 8, "num_heads": 2}
    encoder = build_encoder(name, **sizes if name == "vit" else {})
    method = DenseContrast(encoder, **SMALL)
    views = MultiView([ViewChain([RandomResample(32 if name == "vit" else 64, (0.5, 1))])] * 2)
    params = views.draw((2, 1, 80, 80), torch.Generator().manual_seed(0))
    places = views.positions((2, 1, 80, 80), params, method.positions_stride)
    out = method({"views": views.apply(torch.rand(2, 1, 80, 80), params), "positions": places})
    out["loss"].backward()
    assert not [name for name, p in method.named_parameters() if p.requires_grad and p.grad is None]


def test_misuse_is_named():
    method = make()
    batch = make_batch(method)
    with pytest.raises(ValueError, match="DenseContrast takes 2 views of each image, got 1"):
        method({"views": batch["views"][:1], "positions": batch["positions"]})
    with pytest.raises(ValueError, match=r"takes two views of one size, got \(16, 16\), \(8, 8\)"):
        method({"views": [batch["views"][0], batch["views"][1][..., :8, :8]], "positions": batch["positions"]})
    with pytest.raises(ValueError, match=r"needs batch\['positions'\]: train with PretrainTrainer and views of"):
        method({"views": batch["views"]})
    with pytest.raises(
        ValueError, match=r"positions of shape \(4, 2, 4, 4\) .* is \(4, 4\)\), got \(4, 2, 4, 4\), \(4"
    ):
        method(batch | {"positions": [batch["positions"][0], torch.zeros(4, 2, 8, 8)]})
    with pytest.raises(ValueError, match=r"must be a multiple of the network's \(4, 4\)"):
        method({"views": [torch.rand(2, 1, 18, 18)] * 2})
    with pytest.raises(ValueError, match="there is no level 9"):
        make(level=9, global_weight=0.5)
    with pytest.raises(ValueError, match="leaves the layers after it without gradient"):
        make(level=0)
    with pytest.raises(ValueError, match="leaves the decoder of this 'segresnet' without gradient"):
        make("decoder", level=-1)
    with pytest.raises(ValueError, match=r"needs a network with a decoder.*this 'segresnet' has none"):
        make(level="decoder")
    with pytest.raises(ValueError, match="level must be 'decoder', a number or None, got 'last'"):
        make(level="last")
    with pytest.raises(ValueError, match=r"final_momentum must be in \[0, 1\], got 2"):
        make(final_momentum=2)
    for options in ({"max_distance": 0}, {"num_points": 1}, {"global_weight": 1}):
        with pytest.raises(ValueError, match="max_distance must be positive, num_points at least 2"):
            make(**options)
