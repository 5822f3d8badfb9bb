# SPDX-License-Identifier: Apache-2.0
"""Files of weights: written whole or not at all, and read with clear errors."""

from __future__ import annotations

import errno
import os
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file
from weight_cases import FIELDS, saved, thin_resnet

from monai_ssl.networks import build_encoder
from monai_ssl.weights import WeightsFileError, atomic_file, load_encoder, read_manifest, save_encoder
from monai_ssl.weights.files import read_header


def test_round_trip_is_exact_under_monais_keys(tmp_path):
    encoder = thin_resnet()
    path = saved(encoder, tmp_path)
    stored = load_file(path)
    own = encoder.net.state_dict()
    assert stored.keys() == own.keys()
    assert all(torch.equal(stored[key], own[key]) for key in own)
    assert read_header(path)[1]["conv1.weight"] == ("F32", (8, 1, 7, 7))
    assert [p.name for p in tmp_path.iterdir()] == ["encoder.safetensors"]


def test_the_memory_format_does_not_matter(tmp_path):
    encoder = thin_resnet().to(memory_format=torch.channels_last)
    stored = load_file(saved(encoder, tmp_path))
    assert torch.equal(stored["layer1.0.conv1.weight"], encoder.net.layer1[0].conv1.weight)


def test_task_heads_are_not_stored(tmp_path):
    from monai.networks.nets import resnet10

    from monai_ssl.networks import ImageEncoder

    net = resnet10(spatial_dims=2, n_input_channels=1, num_classes=3, widen_factor=0.125)
    path = tmp_path / "encoder.safetensors"
    save_encoder(ImageEncoder(net), path, FIELDS)
    assert set(net.state_dict()) - set(load_file(path)) == {"fc.weight", "fc.bias"}


@pytest.mark.parametrize("part", [0.0, 2e-5, 4e-5, 1e-3, 5e-3, 0.3, 0.9, 0.99999])
def test_truncated_files_are_refused_by_name(tmp_path, part):
    path = saved(thin_resnet(), tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    for read in (read_manifest, lambda p: load_encoder(build_encoder("resnet10", widen_factor=0.125), p)):
        with pytest.raises(WeightsFileError, match=r"encoder\.safetensors .*is truncated, damaged or no safetensors"):
            read(path)


def test_bytes_after_the_end_and_garbage_are_refused(tmp_path):
    path = saved(thin_resnet(), tmp_path)
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(WeightsFileError, match="truncated, damaged"):
        read_manifest(path)
    path.write_bytes(os.urandom(5000))
    with pytest.raises(WeightsFileError, match="truncated, damaged"):
        read_manifest(path)


def test_other_kinds_of_file_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file of weights at .*nothing\.safetensors"):
        read_manifest(tmp_path / "nothing.safetensors")
    with pytest.raises(FileNotFoundError, match="no file of weights"):
        read_manifest(tmp_path)
    path = tmp_path / "model.pt"
    torch.save({"a": torch.zeros(3)}, path)
    with pytest.raises(WeightsFileError, match=r"model\.pt is a PyTorch checkpoint .*load_imagenet_weights"):
        read_manifest(path)
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(WeightsFileError, match="is a PyTorch checkpoint"):
        read_manifest(path)
    save_file({"a": torch.zeros(3)}, path)
    with pytest.raises(WeightsFileError, match=r"model\.pt has no monai_ssl manifest"):
        read_manifest(path)


def full_disk(*args):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_full_disk_keeps_the_old_file(tmp_path, monkeypatch):
    path = saved(thin_resnet(), tmp_path)
    before = path.read_bytes()
    monkeypatch.setattr("monai_ssl.weights.files.os.fsync", full_disk)
    with pytest.raises(
        OSError, match=r"not enough space .* MB free\): .*was not written; the file .* is unchanged"
    ) as e:
        saved(thin_resnet(), tmp_path)
    assert e.value.errno == errno.ENOSPC
    assert path.read_bytes() == before and os.listdir(tmp_path) == [path.name]
    with pytest.raises(OSError, match="nothing was left behind"):
        save_encoder(thin_resnet(), tmp_path / "new" / "encoder.safetensors", FIELDS)
    assert os.listdir(tmp_path / "new") == []


def test_full_disk_behind_a_librarys_error_is_recognised(tmp_path):
    """torch.save reports a failed write as a RuntimeError of its own."""
    with pytest.raises(OSError, match="not enough space"), atomic_file(tmp_path / "state.pt") as file:
        file.write(b"the beginning")
        try:
            full_disk()
        except OSError as error:
            raise RuntimeError("PytorchStreamWriter failed writing file data/3") from error
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("kind", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_write_leaves_the_old_file(tmp_path, kind):
    path = tmp_path / "state.pt"
    path.write_bytes(b"old")
    with pytest.raises(kind, match="stop"), atomic_file(path) as file:
        file.write(b"half")
        raise kind("stop")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["state.pt"]


def test_atomic_file_replaces_and_makes_folders(tmp_path):
    path = tmp_path / "a" / "b" / "state.pt"
    for content in (b"one", b"two"):
        with atomic_file(path) as file:
            file.write(content)
            assert not path.exists() or path.read_bytes() == b"one"
        assert path.read_bytes() == content
    assert os.listdir(path.parent) == ["state.pt"]
    with atomic_file(path) as file:
        torch.save({"epoch": 3}, file)
    assert torch.load(path, weights_only=True) == {"epoch": 3}
