# SPDX-License-Identifier: Apache-2.0
"""Where a downstream training starts, and how images reach the network."""

from __future__ import annotations

import pytest
import torch

from monai_ssl.evaluation import Preprocessing, StartingPoint
from monai_ssl.networks import ImageEncoder, build_encoder
from monai_ssl.transforms import evaluation_view
from monai_ssl.weights import WeightsMismatchError, load_encoder, read_manifest, save_encoder


def test_weights_tell_network_size_and_intensity(encoder_file, toy_store):
    start = StartingPoint(encoder_weights=encoder_file)
    assert (start.mode, start.architecture) == ("finetune", "densenet121")
    assert start.preprocessing.image_size == (32, 32)
    assert (start.preprocessing.mean, start.preprocessing.std) == (0.4, 0.2)
    net = start.build(3)
    assert net.class_layers.out.out_features == 3
    assert start.lineage[-1]["method"] == "C2L" and start.lineage[-1]["images_seen"] == 640
    expected = build_encoder("densenet121", **read_manifest(encoder_file)["network"]["arguments"])
    load_encoder(expected, encoder_file)
    image = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ImageEncoder(net.eval())(image), expected.eval()(image))
    assert start.preprocessing.with_store(toy_store).policy == toy_store.policy.to_dict()
    assert StartingPoint("linear", encoder_file, image_size=48).preprocessing.image_size == (48, 48)


def test_scratch_has_defaults():
    start = StartingPoint()
    assert (start.mode, start.architecture, start.preprocessing.image_size) == ("scratch", "resnet18", (128, 128))
    assert start.manifest is None and start.preprocessing.policy is None
    assert StartingPoint(spatial_dims=3, image_size=(16, 24, 24)).preprocessing.image_size == (16, 24, 24)


def test_vit_is_built_for_the_images(tmp_path):
    small = {"hidden_size": 24, "mlp_dim": 24, "num_layers": 2, "num_heads": 2}
    save_encoder(
        build_encoder("vit", img_size=32, **small),
        tmp_path / "v.safetensors",
        {"method": "C2L", "patch_size": [32, 32]},
    )
    start = StartingPoint(encoder_weights=tmp_path / "v.safetensors", image_size=64)
    assert start.build(2)(torch.rand(1, 1, 64, 64)).shape == (1, 2)
    assert "interpolated" in str(start.report)


def test_checkpoint_with_torchvision_names(tmp_path):
    encoder = build_encoder("resnet18", in_channels=3, bias_downsample=False)
    torch.save(encoder.encoder_state_dict(), tmp_path / "resnet18.pth")
    start = StartingPoint("finetune", tmp_path / "resnet18.pth")
    net = start.build(2)
    torch.testing.assert_close(net.conv1.weight.sum(1), encoder.net.conv1.weight.sum(1))
    assert start.lineage[0]["method"] == "checkpoint"


def test_weights_of_another_network(encoder_file):
    start = StartingPoint("finetune", encoder_file, architecture="resnet18")
    with pytest.raises(WeightsMismatchError, match="densenet121"):
        start.build(2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "finetune"}, "needs encoder_weights"),
        ({"mode": "scratch", "encoder_weights": "x"}, "takes no encoder_weights"),
        ({"mode": "probe"}, "mode must be one of"),
        ({"image_size": (3, 4, 5)}, "image_size must be one side or 2"),
        ({"fit": "cover"}, "fit must be one of"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        StartingPoint(**arguments)


def test_missing_and_damaged_weights(encoder_file, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no\.safetensors"):
        StartingPoint(encoder_weights=tmp_path / "no.safetensors")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(encoder_file.read_bytes()[:2000])
    with pytest.raises(ValueError, match="truncated"):
        StartingPoint(encoder_weights=cut)


def test_preprocessing_round_trip_and_view():
    made = Preprocessing((24, 32), {"kind": "radiograph"}, mean=0.4, std=0.2, fit="pad")
    assert Preprocessing.from_dict(made.to_dict()) == made
    again = Preprocessing.from_manifest({"intensity": made.intensity(), "patch_size": [24, 32]})
    assert again == made
    image = torch.rand(2, 1, 40, 50)
    torch.testing.assert_close(made.view()(image), evaluation_view((24, 32), 2, "pad", made.standardize())(image))


def test_another_intensity_policy_is_refused(toy_store):
    policy = {**toy_store.policy.to_dict(), "stretch_percentiles": [1.0, 99.0]}
    with pytest.raises(ValueError, match=r"another intensity policy.*stretch_percentiles: \[1.0, 99.0\] and None"):
        Preprocessing((32, 32), policy).with_store(toy_store)
    with pytest.raises(ValueError, match="2 dimensions"):
        Preprocessing((8, 8, 8)).with_store(toy_store)
    with pytest.raises(ValueError, match="does not describe"):
        Preprocessing.from_dict({"image_size": [8, 8], "men": 0.5})
    with pytest.raises(ValueError, match="give image_size"):
        Preprocessing.from_manifest({"intensity": None, "patch_size": None})


DECODED = [
    ("segresnet", {"blocks_down": [1, 1, 1], "blocks_up": [1, 1]}),
    ("unet", {"channels": [4, 8, 16], "num_res_units": 1}),
    ("dynunet", {"filters": [4, 8, 16], "strides": [1, 2, 2]}),
    ("flexibleunet", {"backbone": "resnet10", "decoder_channels": [8, 8, 8, 8, 8]}),
    ("unetr", {"img_size": [16, 16, 32], "hidden_size": 24, "mlp_dim": 32, "num_heads": 2, "feature_size": 4}),
]


@pytest.mark.parametrize(("architecture", "arguments"), DECODED, ids=[name for name, _ in DECODED])
def test_encoder_of_a_segmentation_network_classifies(architecture, arguments, tmp_path):
    """Its file holds the decoder too and another number of output channels; a classifier takes the encoder."""
    segmenting = build_encoder(architecture, 3, out_channels=5, **arguments)
    path = tmp_path / "encoder.safetensors"
    save_encoder(segmenting, path, {"method": "volume_segmentation", "patch_size": [16, 16, 32]}, with_decoder=True)
    start = StartingPoint("finetune", path)
    net = start.build(2)
    assert start.report.coverage == 1 and set(start.report.loaded) == segmenting.encoder_state_dict().keys()
    assert "out_channels" not in start.complete_args()
    image = torch.rand(2, 1, 16, 16, 32)
    with torch.no_grad():
        torch.testing.assert_close(ImageEncoder(net.eval())(image), segmenting.eval()(image))
        assert net(image).shape == (2, 2)
    if architecture == "unetr":  # built for its images
        assert StartingPoint("finetune", path, image_size=32).build(2)(torch.rand(1, 1, 32, 32, 32)).shape == (1, 2)


def test_fit_and_the_other_word_for_linear(encoder_file, tmp_path):
    assert StartingPoint("frozen", encoder_file).mode == "linear"
    assert StartingPoint("frozen", encoder_file, fit="pad").preprocessing.fit == "pad"
    weights = tmp_path / "padded.safetensors"
    manifest = {"method": "C2L", "patch_size": [8, 8, 8], "spacing_mm": [3, 1, 1], "intensity": {"fit": "native"}}
    save_encoder(build_encoder("segresnet", 3), weights, manifest)
    start = StartingPoint(encoder_weights=weights)
    assert (start.preprocessing.fit, start.preprocessing.spacing_mm) == ("native", (3.0, 1.0, 1.0))
    assert StartingPoint(encoder_weights=weights, fit="stretch").preprocessing.fit == "stretch"


@pytest.mark.parametrize(
    ("fit", "spacing", "words"),
    [
        ("stretch", None, "the whole, stretched to 8 x 16 x 16 voxels, from voxels of each volume's own spacing"),
        (
            "pad",
            (2.0, 2.0, 2.0),
            "the whole in its proportions, padded to 8 x 16 x 16 voxels, from voxels of 2 x 2 x 2 mm",
        ),
        ("native", (2.5, 0.7, 0.7), "the middle of 8 x 16 x 16 voxels as they are, at 2.5 x 0.7 x 0.7 mm"),
    ],
)
def test_what_the_network_sees_in_words(fit, spacing, words):
    assert Preprocessing((8, 16, 16), fit=fit, spacing_mm=spacing).describe() == words


def test_field_of_view_of_unknown_size_is_warned_of(volume_store, caplog):
    volume_store.recipe["spacing_mm"], kept = None, volume_store.recipe["spacing_mm"]
    try:
        Preprocessing((8, 8, 8), fit="native").with_store(volume_store)
        assert "not equally large" in caplog.text
        caplog.clear()
        Preprocessing((8, 8, 8)).with_store(volume_store)
    finally:
        volume_store.recipe["spacing_mm"] = kept
    Preprocessing((8, 8, 8), fit="native").with_store(volume_store)
    assert not caplog.text


def test_the_range_of_views_is_known_unless_each_is_standardised_by_itself():
    assert Preprocessing((8, 8)).value_range() == (-2.0, 2.0)
    assert Preprocessing((8, 8), mean=0.0, std=1.0).value_range() == (0.0, 1.0)
    with pytest.raises(ValueError, match="use 'fixed'"):
        Preprocessing((8, 8), standardize_mode="per_image").value_range()
