# SPDX-License-Identifier: Apache-2.0
"""Stages after one another: the backbone goes on, heads start anew, and each file tells what came before it."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.utils.data import DataLoader
from toy_training import ToyImages, toy_trainer

from monai_ssl.handlers import (
    CollapseMonitor,
    EncoderExport,
    OnlineProbe,
    Throughput,
    TrainingCheckpoint,
    TrainingCurves,
)
from monai_ssl.methods import C2L, ClassTask, Hybrid, MoCoV2, SimCLR, Supervised
from monai_ssl.networks import build_encoder
from monai_ssl.weights import describe_weights, open_encoder, read_manifest, save_encoder, start_from


class LabelledImages(ToyImages):
    """Every third image has no label."""

    def __getitem__(self, i: int) -> dict:
        return super().__getitem__(i) | {"label": -1 if i % 3 == 2 else i % 2}


def encoder():
    return build_encoder("resnet10", widen_factor=0.125)


HEADS = {
    "Supervised": lambda e: Supervised(e, ClassTask("label", 2)),
    "SimCLR": lambda e: SimCLR(e),
    "MoCoV2": lambda e: MoCoV2(e, embedding_dim=8, queue_size=16),
    "C2L": lambda e: C2L(e, embedding_dim=8, queue_size=16),
    "Hybrid(MoCoV2)": lambda e: Hybrid(MoCoV2(e, embedding_dim=8, queue_size=16), ClassTask("label", 2)),
}


def stage(folder, name: str, start=None, max_epochs: int = 1, seed: int = 0, handlers=()):
    """Train one stage from a file (or random weights); return its folder's encoder and the method at its start."""
    begun = {}

    def build():
        method = HEADS[name](start_from(encoder(), start))
        begun.update({key: value.clone() for key, value in method.state_dict().items()})
        return method

    export = EncoderExport(folder / name, {"data_fingerprint": "0123456789abcdef"})
    trainer = toy_trainer(
        max_epochs=max_epochs,
        dataset=LabelledImages(20, 32),
        method=build,
        seed=seed,
        train_handlers=[export, *handlers],
    )
    trainer.run()
    return folder / name / "encoder.safetensors", begun, trainer.method


@pytest.fixture(scope="module")
def chain(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("chain")
    path, stages = None, {}
    for seed, name in enumerate(("Supervised", "SimCLR", "C2L", "Hybrid(MoCoV2)")):
        path, begun, method = stage(folder, name, path, max_epochs=1 + seed % 2, seed=seed)
        stages[name] = (path, begun, method)
    return stages


def test_every_manifest_lists_the_stages_before_with_method_and_images(chain):
    before: list[tuple] = []
    for seed, (name, (path, _, _)) in enumerate(chain.items()):
        manifest = read_manifest(path)
        assert manifest["method"] == name
        assert manifest["images_seen"] == 20 * (1 + seed % 2)
        assert [(s["method"], s["images_seen"]) for s in manifest["lineage"] or ()] == before
        assert all(s["data_fingerprint"] == "0123456789abcdef" for s in manifest["lineage"] or ())
        before.append((name, manifest["images_seen"]))
    assert "Supervised -> SimCLR -> C2L" in describe_weights(chain["Hybrid(MoCoV2)"][0])


def test_the_backbone_is_carried_over_and_heads_are_new(chain):
    for earlier, later in itertools.pairwise(chain):
        path, _, method = chain[earlier]
        begun = chain[later][1]
        prefix = "method.encoder.net." if later.startswith("Hybrid") else "encoder.net."
        saved = open_encoder(path).encoder_state_dict()
        for key, value in saved.items():
            assert torch.equal(begun[prefix + key], value), key
        trained = {key: value for key, value in method.state_dict().items() if "head" in key and value.ndim == 2}
        for key, value in trained.items():
            assert key not in begun or not torch.equal(begun[key], value)
    for path, _, method in chain.values():
        state = open_encoder(path).encoder_state_dict()
        assert not any("head" in key or "tasks" in key for key in state)
        for key, value in method.encoder.encoder_state_dict().items():
            assert torch.equal(state[key], value)


@pytest.mark.parametrize("start", ["ours", "pth"])
@pytest.mark.parametrize("name", ["MoCoV2", "Hybrid(MoCoV2)"])
def test_zero_epochs_hand_the_start_on_bit_for_bit(chain, tmp_path, start, name):
    """A supervised start, continued by no epoch, is what it was; with every handler of a usual run."""
    if start == "ours":
        path, source = chain["Supervised"][0], open_encoder(chain["Supervised"][0])
        lineage = ["Supervised"]
    else:
        torch.manual_seed(5)
        path = tmp_path / "imagenet.pth"  # torchvision's names are MONAI's here, of three channels
        torch.save(build_encoder("resnet10", in_channels=3, widen_factor=0.125).net.state_dict(), path)
        source = start_from(encoder(), path)
        lineage = ["checkpoint"]
    images = DataLoader(LabelledImages(8, 32), 4)
    handlers = [
        TrainingCheckpoint(tmp_path / "runs"),
        OnlineProbe([{**batch, "label": torch.tensor([0, 1, 0, 1])} for batch in images], k=2),
        CollapseMonitor(),
        Throughput(),
        TrainingCurves(tmp_path / "curves"),
    ]
    (tmp_path / name).mkdir()
    old = tmp_path / name / "encoder.safetensors"
    save_encoder(encoder(), old, {"method": "old"})
    written, _, _ = stage(tmp_path, name, path, max_epochs=0, handlers=handlers)
    manifest = read_manifest(written)
    assert manifest["images_seen"] == 0 and manifest["method"] == name
    assert [s["method"] for s in manifest["lineage"]] == lineage
    ours, theirs = open_encoder(written).encoder_state_dict(), source.encoder_state_dict()
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        assert torch.equal(ours[key], value), key
