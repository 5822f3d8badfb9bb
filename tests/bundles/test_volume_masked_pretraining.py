# SPDX-License-Identifier: Apache-2.0
"""The bundle of masked pretraining on a few tiny volumes: every config runs, resumes and leaves weights for U-Nets."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest
from monai.networks.nets import UNETR, SegResNet
from pretraining_runs import PretrainingBundle, mistake

from monai_ssl.weights import load_encoder, read_manifest

SMALL_NET = {
    "architecture": "segresnet",
    "network_args": {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]},
}
TINY_VIT = {
    "img_size": [16, 16, 16],
    "patch_size": 8,
    "hidden_size": 24,
    "mlp_dim": 32,
    "num_layers": 2,
    "num_heads": 2,
}

SMALL_DYNUNET = {"kernel_size": [3] * 3, "strides": [1, 2, 2], "upsample_kernel_size": [2, 2], "filters": [4, 8, 8]}


BUNDLE = PretrainingBundle("volume_masked_pretraining", patch_size=[16, 16, 16], **SMALL_NET)
train, started = BUNDLE.train, BUNDLE.started


def test_training_leaves_weights_for_a_plain_network_and_pictures(folder, prepared, tmp_path, capsys):
    train(folder, prepared, tmp_path, max_epochs=2)
    for name in ("encoder.safetensors", "summary.json", "loss_curve.png", "metrics.csv", "reconstructions.png"):
        assert (tmp_path / name).is_file(), name
    manifest = read_manifest(tmp_path / "encoder.safetensors")
    assert (manifest["method"], manifest["patch_size"]) == ("MaskedAutoencoderCNN", [16, 16, 16])
    assert (manifest["orientation"], manifest["spacing_mm"], manifest["images_seen"]) == ("SPL", None, 12)
    assert set(manifest["intensity"]["policy"]["policies"]) >= {"CT", "MR"}
    net = SegResNet(3, out_channels=4, init_filters=8, blocks_down=[1, 1], blocks_up=[1])
    report = load_encoder(net, tmp_path / "encoder.safetensors")
    assert report.coverage == 1 and not report.missing
    assert "volume_segmentation" in capsys.readouterr().out
    # The same voxels may be read again for features.
    table = pq.read_table(BUNDLE.features(folder, tmp_path, **SMALL_NET))
    assert len(table) > 10
    assert len(table["features"][0].as_py()) == manifest["network"]["num_features"]


def test_properties_of_the_workflow_are_complete(folder, prepared, tmp_path):
    assert not started(folder, prepared, tmp_path).check_properties()


@pytest.mark.parametrize(
    ("fragments", "overrides"),
    [
        (["sparse.yaml"], {}),
        (["segresnet.yaml"], {}),
        (["simmim.yaml"], {"architecture": "vit", "network_args": TINY_VIT}),
        (["openmind.yaml"], {"architecture": "dynunet", "network_args": SMALL_DYNUNET}),
        (["multi_gpu_train.yaml"], {"balance_by": ["modality"]}),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_every_fragment_trains(folder, prepared, tmp_path, fragments, overrides):
    train(folder, prepared, tmp_path, *fragments, **({"block_size": 8} | overrides))
    assert (tmp_path / "encoder.safetensors").is_file()


def test_a_vit_goes_into_unetr(folder, prepared, tmp_path):
    train(
        folder,
        prepared,
        tmp_path,
        "vit.yaml",
        architecture="vit",
        network_args=TINY_VIT | {"patch_size": 16, "img_size": [32] * 3},
        patch_size=[32] * 3,
    )
    assert read_manifest(tmp_path / "encoder.safetensors")["method"] == "MAEViT"
    unetr = UNETR(1, 3, [32] * 3, feature_size=4, hidden_size=24, mlp_dim=32, num_heads=2)
    with pytest.raises(ValueError, match="blocks"):
        load_encoder(unetr, tmp_path / "encoder.safetensors")  # two blocks of its twelve are too few
    report = load_encoder(unetr, tmp_path / "encoder.safetensors", min_coverage=0.1)
    assert report.loaded


def test_resumed_training_repeats_the_losses(folder, prepared, tmp_path):
    BUNDLE.assert_resumes(folder, prepared, tmp_path)


def test_only_the_patient_counts(folder, prepared, tmp_path):
    run = started(folder, prepared, tmp_path, valid_above=0.3)
    trainer = run.parser.get_parsed_content("train#trainer")
    trainer.run()
    output, (valid,) = trainer.state.output, trainer.state.batch["valid"]
    counted = (output["mask"] & valid).float().mean().item()
    assert output["counted"] == pytest.approx(counted)
    assert 0 < counted < output["mask"].float().mean()


def test_a_stage_continues_another(folder, prepared, tmp_path):
    train(folder, prepared, tmp_path / "first")
    weights = str(tmp_path / "first/encoder.safetensors")
    train(folder, prepared, tmp_path / "second", "sparse.yaml", encoder_weights=weights)
    assert [stage["method"] for stage in read_manifest(tmp_path / "second/encoder.safetensors")["lineage"]] == [
        "MaskedAutoencoderCNN"
    ]


def test_mistakes_are_explained(folder, prepared, tmp_path):
    assert "'mask_ratio'" in mistake(lambda: started(folder, prepared, tmp_path, mask_ratoi=0.5))
    assert "block size" in mistake(lambda: train(folder, prepared, tmp_path, block_size=7))
    assert "wide" in mistake(lambda: train(folder, prepared, tmp_path, policy="ct_brian"))
    (tmp_path / "empty").mkdir()
    assert "no volumes" in mistake(lambda: train(tmp_path / "empty", tmp_path / "cache", tmp_path))


def test_summary_names_no_path_of_an_image(folder, prepared, tmp_path):
    train(folder, prepared, tmp_path)
    assert "EXAMPLE" not in json.dumps(json.loads((tmp_path / "summary.json").read_text()))
