# SPDX-License-Identifier: Apache-2.0
"""What holds for every batched transform: determinism, independence of samples, types, clear errors."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest
import torch
from monai.data import MetaTensor

import monai_ssl.transforms as T
from monai_ssl.transforms import base

TRANSFORMS = {
    "resample": lambda: T.RandomResample(12, (0.2, 1.0), rotation_deg=20, flip_prob=0.5, translate=0.1),
    "elastic": lambda: T.RandomResample(12, zoom=(0.5, 1.2), rotation_deg=20, in_plane=True, elastic=0.3),
    "rescaled": lambda: T.RandomResample(12, (0.6, 1.0), rotation_deg=20, rescale=(0.8, 1.3), padding="zeros"),
    "center": lambda: T.CenterResample(12, "pad"),
    "random_center": lambda: T.RandomCenterResample(12, "native", (0.5, 1.2), 0.1, rotation_deg=20, flip_prob=0.5),
    "jitter": lambda: T.RandomBrightnessContrast(0.4, 0.4, prob=0.7),
    "gamma": lambda: T.RandomGamma(prob=0.5),
    "blur": lambda: T.RandomGaussianBlur(prob=0.5),
    "blur_per_axis": lambda: T.RandomGaussianBlur(prob=0.5, per_axis=True),
    "band_energy": lambda: T.RandomBandEnergy(4, (0.5, 2.0), prob=0.5),
    "bias": lambda: T.RandomBiasField(prob=0.5),
    "low_resolution": lambda: T.RandomLowResolution(prob=0.7, one_axis_prob=0.5),
    "window": lambda: T.RandomWindow((-1000, 1000), prob=0.7),
    "noise": lambda: T.RandomGaussianNoise((0.1, 0.2), prob=0.5),
    "speckle": lambda: T.RandomSpeckle((0.1, 0.2), prob=0.5),
    "depth_gain": lambda: T.RandomDepthGain(prob=0.5),
    "cutout": lambda: T.RandomCutout(2, 0.3),
    "intensity_map": lambda: T.RandomIntensityMap(prob=0.7),
    "local_shuffle": lambda: T.RandomLocalShuffle(prob=0.7),
    "painting": lambda: T.RandomPainting(),
    "block_drop": lambda: T.RandomBlockDrop(share=(0.1, 0.3)),
    "mirror": lambda: T.RandomMirror(prob=0.8),
    "fixed": lambda: T.IntensityStandardize(),
    "per_image": lambda: T.IntensityStandardize("per_image"),
    "chain": lambda: T.radiograph_views(12, noise_std=0.1, cutout_holes=1).chains[0],
}
RANDOM = [name for name in TRANSFORMS if name not in ("center", "fixed", "per_image", "chain")]
CORRUPTIONS = ["intensity_map", "local_shuffle", "painting", "block_drop", "mirror"]
SHAPES = [(6, 1, 40, 30), (6, 2, 14, 20, 18)]


def make(name, spatial_dims):
    if name == "chain":
        return T.radiograph_views(12, spatial_dims, noise_std=0.1, cutout_holes=1).chains[0]
    return TRANSFORMS[name]()


def images(shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_same_generator_same_result(name, shape):
    transform, x = make(name, len(shape) - 2), images(shape)
    first, second = transform(x, seeded(3)), transform(x, seeded(3))
    assert torch.equal(first, second)
    assert first.shape == transform.output_shape(shape)
    assert first.isfinite().all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", [*RANDOM, "chain"])
def test_samples_and_draws_differ(name, shape):
    transform = make(name, len(shape) - 2)
    x = images((1, *shape[1:])).expand(shape)
    generator = seeded(3)
    first, second = transform(x, generator), transform(x, generator)
    assert not torch.equal(first, second)
    assert not all(torch.equal(first[0], sample) for sample in first[1:])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_batch_equals_one_by_one(name, shape):
    transform, x = make(name, len(shape) - 2), images(shape)
    params = transform.draw(shape, seeded(1))
    whole = transform.apply(x, params)
    for i in range(len(x)):
        own = {key: value[i : i + 1] for key, value in params.items()}
        torch.testing.assert_close(transform.apply(x[i : i + 1], own), whole[i : i + 1], atol=1e-5, rtol=1e-5)


def test_chain_of_intensities_copies_once():
    x = images(SHAPES[0])
    before = x.clone()
    gamma, fixed = T.RandomGamma((0.5, 0.6), prob=1), T.IntensityStandardize()
    chain = T.ViewChain([gamma, T.ViewChain([fixed])])
    assert not chain.spatial
    params = chain.draw(x.shape, seeded())
    expected = fixed.apply(gamma.apply(x, {"gamma": params["0.gamma"]}), {})
    torch.testing.assert_close(chain.apply(x, params), expected)
    assert torch.equal(x, before)
    label = x.long()
    assert torch.equal(chain.apply(label, params, interpolation="nearest"), label)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_input_is_left_alone(name, shape):
    transform, x = make(name, len(shape) - 2), images(shape)
    before = x.clone()
    transform(x, seeded())
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_type_is_kept_and_metadata_dropped(name):
    transform, x = make(name, 2), images(SHAPES[0])
    params = transform.draw(x.shape, seeded(1))
    reference = transform.apply(x, params)
    for dtype, tolerance in ((torch.float64, 1e-4), (torch.bfloat16, 0.1)):
        result = transform.apply(x.to(dtype), params)
        assert result.dtype == dtype
        # A value of a few deviations in bfloat16 is good to 1 %.
        torch.testing.assert_close(result.float(), reference, atol=tolerance, rtol=tolerance)
    meta = transform.apply(MetaTensor(x), params)
    assert type(meta) is torch.Tensor
    torch.testing.assert_close(meta, reference)


@pytest.mark.parametrize("name", [name for name in TRANSFORMS if not TRANSFORMS[name]().spatial])
def test_intensity_leaves_labels_alone(name):
    transform = TRANSFORMS[name]()
    label = torch.randint(0, 5, SHAPES[0], dtype=torch.int16)
    params = transform.draw(label.shape, seeded())
    assert torch.equal(transform.apply(label, params, interpolation="nearest"), label)


def test_autocast_does_not_lower_precision():
    blur, x = T.RandomGaussianBlur((1.0, 2.0), prob=1.0), images(SHAPES[0])
    params = blur.draw(x.shape, seeded())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = blur.apply(x, params)
    assert torch.equal(inside, blur.apply(x, params))


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_everything_stays_on_the_images_device(spatial_dims):
    """Torch's meta device stands in for an accelerator: mixing devices, or looking at values, raises there."""
    views = T.radiograph_views(16, spatial_dims, noise_std=0.1, cutout_holes=2)
    x = torch.rand(2, 1, *[18] * spatial_dims, device="meta")
    params = views.draw(x.shape, device="meta")
    assert {value.device.type for own in params for value in own.values()} == {"meta"}
    assert [view.device.type for view in views.apply(x, params)] == ["meta", "meta"]
    x = torch.rand(2, 1, *[16] * spatial_dims, device="meta")
    for transform in (*[TRANSFORMS[name]() for name in CORRUPTIONS], T.RandomQuarterTurn()):
        params = transform.draw(x.shape, device="meta")
        assert {value.device.type for value in params.values()} == {"meta"}
        assert transform.apply(x, params).device.type == "meta"


@pytest.mark.parametrize(
    "name",
    [
        *("gamma", "blur", "blur_per_axis", "bias", "low_resolution", "window", "noise"),
        *("intensity_map", "local_shuffle", "band_energy", "speckle", "depth_gain"),
    ],
)
def test_accelerator_path_gives_the_same(name, monkeypatch):
    transform, x = TRANSFORMS[name](), images(SHAPES[0]) - 0.3
    params = transform.draw(x.shape, seeded(2))
    expected = transform.apply(x, params)
    module = importlib.import_module(type(transform).__module__)
    monkeypatch.setattr(module, "on_selected", base._choose_selected)
    torch.testing.assert_close(transform.apply(x, params), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", TRANSFORMS)
def test_gpu_equals_cpu(name):
    transform, x = make(name, 2), images(SHAPES[0])
    params = transform.draw(x.shape, seeded(1))
    on_gpu = transform.apply(x.cuda(), {key: value.cuda() for key, value in params.items()})
    torch.testing.assert_close(on_gpu.cpu(), transform.apply(x, params), atol=1e-4, rtol=1e-4)
    again = torch.Generator("cuda").manual_seed(0)
    assert transform(x.cuda(), again).device.type == "cuda"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: T.RandomGamma()(torch.rand(3, 20, 20)), "expected a batch"),
        (lambda: T.RandomGamma()(torch.zeros(1, 1, 8, 8, dtype=torch.uint8)), "floating point"),
        (lambda: T.RandomGamma().apply(torch.rand(1, 1, 8, 8), {}, "cubic"), "interpolation"),
        (lambda: T.RandomGamma().draw((1, 1, 8, 8), seeded(), "meta"), "generator lives on cpu"),
        (lambda: T.RandomResample(0), "size must be positive"),
        (lambda: T.RandomResample((8, 8, 8))(torch.rand(1, 1, 9, 9)), "one number per axis"),
        (lambda: T.RandomResample(8, scale=(0.5, 1.2)), "scale"),
        (lambda: T.RandomResample(8, ratio=(2, 1)), "ratio"),
        (lambda: T.RandomResample(8, rotation_deg=-1), "negative"),
        (lambda: T.RandomResample(8, flip_prob=1.5), "flip_prob"),
        (lambda: T.RandomResample(8, flip_prob=(0.5,))(torch.rand(1, 1, 9, 9)), "flip_prob"),
        (lambda: T.RandomResample(8, padding="reflect"), "padding"),
        (lambda: T.RandomResample(8)(torch.rand(2, 1, 9, 9), extent=torch.tensor([[9, 9]])), "extent must have shape"),
        (lambda: T.CenterResample(8, fit="cover"), "fit"),
        (lambda: T.RandomCenterResample(8, fit="cover"), "fit"),
        (lambda: T.RandomCenterResample(8, translate=-0.1), "negative"),
        (lambda: T.RandomCenterResample(8, zoom=(2, 1)), "zoom"),
        (lambda: T.RandomBrightnessContrast(-0.1), "negative"),
        (lambda: T.RandomGamma((0.0, 1.0)), "gamma"),
        (lambda: T.RandomGaussianBlur((2.0, 1.0)), "sigma"),
        (lambda: T.RandomGaussianNoise(prob=2), "prob"),
        (lambda: T.RandomResample(8, zoom=(0, 1)), "zoom"),
        (lambda: T.RandomResample(8, elastic=0.5), "elastic must be within"),
        (lambda: T.RandomBiasField((-0.1, 0.2)), "strength"),
        (lambda: T.RandomBiasField(degree=0), "degree"),
        (lambda: T.RandomBandEnergy(1), "bands"),
        (lambda: T.RandomBandEnergy(gain=(0, 1)), "gain"),
        (lambda: T.RandomLowResolution((0.5, 1.5)), "zoom"),
        (lambda: T.RandomWindow((40, 40)), "two different"),
        (lambda: T.RandomWindow((-160, 240), width_hu=(100, 500)), "does not fit"),
        (lambda: T.RandomWindow((-160, 240), level_hu=(-600, 0)), "level_hu"),
        (lambda: T.RandomCutout(fraction=0), "fraction"),
        (lambda: T.IntensityStandardize("global"), "mode"),
        (lambda: T.IntensityStandardize(std=0), "std"),
        (lambda: T.IntensityStandardize(mean=(0, 0))(torch.rand(1, 1, 8, 8)), "1 channels"),
        (lambda: T.RandomIntensityMap(prob=2), "prob"),
        (lambda: T.RandomIntensityMap(value_range=(1, 1)), "value_range"),
        (lambda: T.RandomLocalShuffle(fraction=0), "fraction"),
        (lambda: T.RandomLocalShuffle(coverage=1.1), "coverage"),
        (lambda: T.RandomPainting(outer_share=-0.1), "outer_share"),
        (lambda: T.RandomPainting(inner_sides=(0.5, 2)), "inner_sides"),
        (lambda: T.RandomBlockDrop(share=(0.5, 0.1)), "share"),
        (lambda: T.RandomBlockDrop(fill="mean"), "fill"),
        (lambda: T.RandomMirror(rounds=0), "rounds"),
        (lambda: T.RandomQuarterTurn(axis=3), "axis must be"),
        (lambda: T.RandomQuarterTurn()(torch.rand(1, 1, 8, 9)), r"one length .* images \(8, 9\)"),
        (lambda: T.RandomQuarterTurn(2)(torch.rand(1, 1, 8, 9, 9)), r"images \(8, 9, 9\) and axis 2"),
        (lambda: T.grid_box_centers((8, 8), (1, 2, 2)), "grid"),
        (lambda: T.ViewChain([]), "at least one"),
        (lambda: T.MultiView([]), "at least one"),
        (lambda: T.c2l_views(8, spatial_dims=4), "spatial_dims"),
        (lambda: T.c2l_views((8, 8), spatial_dims=3), "3 axes"),
    ],
)
def test_clear_errors(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_examples_in_docstrings():
    total = 0
    for module in pkgutil.iter_modules(T.__path__):
        loaded = importlib.import_module(f"{T.__name__}.{module.name}")
        result = doctest.testmod(loaded, extraglobs={"torch": torch, **{name: getattr(T, name) for name in T.__all__}})
        assert result.failed == 0
        total += result.attempted
    assert total >= 3
