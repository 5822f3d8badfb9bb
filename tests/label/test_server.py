# SPDX-License-Identifier: Apache-2.0
"""The real server, by HTTP: what an annotator's client asks, and what it must survive."""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import io
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from toy_volumes import make_toy_volumes

from monai_ssl.label import STRATEGIES
from monai_ssl.label.launcher import server_command
from monai_ssl.networks import build_encoder
from monai_ssl.weights import save_encoder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("monailabel") is None,
        reason="MONAI Label is not installed: python -m monai_ssl label --install",
    ),
]
BUNDLES = Path(__file__).parents[2] / "bundles"


class Client:
    """A few calls of the server."""

    def __init__(self, port: int) -> None:
        self.base = f"http://127.0.0.1:{port}"

    def call(self, method: str, path: str, body: bytes | None = None, kind: str = "application/json"):
        """Status and content, JSON if it is."""
        request = urllib.request.Request(self.base + path, data=body, method=method, headers={"Content-Type": kind})
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                status, content = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, content = error.code, error.read()
        with contextlib.suppress(ValueError):
            return status, json.loads(content)
        return status, content

    def post(self, path: str, **params):
        return self.call("POST", path, json.dumps(params).encode())

    def infer(self, model: str, image: str, output: str = "json", **params):
        query = urllib.parse.urlencode({"image": image, "output": output})
        body, kind = _form({"params": json.dumps(params)}, {})
        return self.call("POST", f"/infer/{model}?{query}", body, kind)

    def label(self, image: str, name: str, content: bytes, tag: str = "final"):
        query = urllib.parse.urlencode({"image": image, "tag": tag})
        body, kind = _form({"params": "{}"}, {"label": (name, content)})
        return self.call("PUT", f"/datastore/label?{query}", body, kind)

    def wait(self, what: str, seconds: float = 120) -> dict:
        """Wait until no training or scoring runs; the last one's status."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            status, tasks = self.call("GET", f"/{what}/?all=true")
            if status == 200 and all(task["status"] not in ("SUBMITTED", "RUNNING") for task in tasks):
                return tasks[-1]
            time.sleep(0.5)
        raise AssertionError(f"{what} did not end")


def _form(fields: dict[str, str], files: dict[str, tuple[str, bytes]]) -> tuple[bytes, str]:
    mark = uuid.uuid4().hex
    body = io.BytesIO()
    for name, value in fields.items():
        body.write(f'--{mark}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode())
    for name, (filename, content) in files.items():
        head = f'Content-Disposition: form-data; name="{name}"; filename="{filename}"'
        body.write(f"--{mark}\r\n{head}\r\nContent-Type: application/octet-stream\r\n\r\n".encode() + content + b"\r\n")
    body.write(f"--{mark}--\r\n".encode())
    return body.getvalue(), f"multipart/form-data; boundary={mark}"


@contextlib.contextmanager
def served(studies: Path, log: Path, **options):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command, environment = server_command(studies, port=port, **options)
    with open(log, "ab") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    client = Client(port)
    try:
        for _ in range(240):
            with contextlib.suppress(OSError):
                if client.call("GET", "/info/")[0] == 200:
                    break
            assert process.poll() is None, log.read_text()[-3000:]
            time.sleep(0.5)
        yield client
        assert process.poll() is None, "the server stays up"
    finally:
        process.terminate()
        process.wait(20)


def truth_of(folder: Path) -> dict[str, str]:
    with open(folder / "labels.csv", newline="") as file:
        return {Path(row["file"]).stem: row["label"] for row in csv.DictReader(file)}


def test_an_annotator_labels_radiographs(toy_folder, toy_encoder, tmp_path):
    studies = tmp_path / "studies"
    studies.mkdir()
    for path in sorted(toy_folder.glob("*.png"))[:24]:
        shutil.copy(path, studies)
    (studies / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nthis is no picture")
    secret = tmp_path / "secret.png"
    shutil.copy(toy_folder / "p00_0.png", secret)
    truth = truth_of(toy_folder)
    with served(studies, tmp_path / "log.txt", encoder=str(toy_encoder), num_classes=3) as client:
        status, info = client.call("GET", "/info/")
        assert set(info["strategies"]) == set(STRATEGIES) and set(info["trainers"]) == {"classification"}
        status, first = client.post("/activelearning/typicality")  # perhaps before anything is embedded
        assert status == 200 and first["id"] in {*truth, "broken"}
        assert client.wait("scoring")["status"] == "DONE"
        images = client.call("GET", "/info/")[1]["images"]
        assert images["embedded"] == 24 and [one["id"] for one in images["refused_images"]] == ["broken"]

        for strategy in STRATEGIES:
            status, found = client.post(f"/activelearning/{strategy}")
            assert status == 200 and found["id"] in truth, found
            expected = "typicality" if STRATEGIES[strategy].needs else strategy
            assert found["chosen_by"] == expected
        status, found = client.call("GET", "/similar?image=p00_0&num=3")
        assert status == 200 and len(found["similar"]) == 3
        status, found = client.infer("embedding", "p00_0")
        assert status == 200 and len(found["embedding"]) == 8

        # nothing labelled yet
        assert client.post("/train/classification")[0] == 200
        failed = client.wait("train")
        assert failed["status"] == "ERROR" and any("no image has a class yet" in line for line in failed["details"])
        status, found = client.infer("classification", "p00_0")
        assert status == 400 and "there is no classification model yet" in found["detail"]

        # labels, good and bad
        for _ in range(8):
            image = client.post("/activelearning/core_set")[1]["id"]
            status, found = client.label(image, "label.json", json.dumps({"label": truth[image]}).encode())
            assert status == 200, found
        for content, words in ((b"{", "no JSON"), (b'{"label": "../../x"}', "must be")):
            status, found = client.label("p00_0", "label.json", content)
            assert status == 400 and words in found["detail"]
        status, found = client.label("nobody", "label.json", b'{"label": "normal"}')
        assert status == 400 and "there is no image 'nobody'" in found["detail"]

        # ids and tags that lead out
        for image in ("../secret", str(secret), "..%2Fsecret", "p00_0/../../secret"):
            status, found = client.infer("embedding", image)
            assert status == 400 and "there is no image" in found["detail"], image
            assert client.call("GET", "/datastore/image?" + urllib.parse.urlencode({"image": image}))[0] == 404
        status, found = client.label("p00_0", "label.json", b'{"label": "normal"}', tag="../../../escaped")
        assert status == 400 and "is no tag" in found["detail"]
        body, kind = _form({"params": "{}"}, {"file": ("x.png", secret.read_bytes())})
        assert client.call("PUT", "/datastore/image?image=..%2F..%2Fescaped", body, kind)[0] == 400
        assert client.call("PUT", "/datastore/image?image=p00_0", body, kind)[0] == 400, "no image is replaced"
        assert not list(tmp_path.glob("**/escaped*"))
        assert client.post("/activelearning/nothing")[0] == 400
        status, found = client.post("/train/classification", max_epochs="$__import__('os').abort()")
        assert client.wait("train")["status"] == "ERROR"

        # learn, twice at once, and be stopped
        assert client.post("/train/classification")[0] == 200
        assert client.post("/train/classification")[0] in (200, 429), "the second waits or is refused"
        assert client.wait("train")["status"] == "DONE"
        client.wait("scoring")
        status, found = client.infer("classification", "p01_0")
        assert status == 200 and sum(found["prediction"].values()) == pytest.approx(1, abs=1e-4)
        model = (studies / ".monai_ssl/models/classification/model.pt").read_bytes()
        client.post("/train/classification")
        client.call("DELETE", "/train/")
        client.wait("train")
        assert client.infer("classification", "p01_0")[0] == 200 and model
        assert client.call("GET", "/datastore/")[1]["completed"] == 8
        client.post("/scoring/embedding")
        client.wait("scoring")
        assert client.post("/activelearning/margin")[1]["chosen_by"] == "margin"
        status, found = client.infer("classification", "broken")
        assert status == 400 and "broken.png" in found["detail"]

        # a label that another one replaces is kept
        image = client.call("GET", "/datastore/?output=all")[1]["objects"]
        labelled = next(name for name, one in image.items() if one["labels"].get("final"))
        client.label(labelled, "label.json", b'{"label": "normal"}')
        assert len(list((studies / ".monai_ssl/earlier_labels/final").iterdir())) == 1
    with served(studies, tmp_path / "log.txt", encoder=str(toy_encoder)) as client:  # labels outlive the server
        assert client.call("GET", "/datastore/")[1]["completed"] == 8


def test_an_annotator_labels_volumes(tmp_path):
    make_toy_volumes(tmp_path / "toy")
    studies = tmp_path / "studies"
    studies.mkdir()
    torch.manual_seed(0)
    encoder = build_encoder("segresnet", 3, 1, init_filters=8, blocks_down=[1, 1], blocks_up=[1])
    weights = tmp_path / "encoder.safetensors"
    save_encoder(encoder, weights, {"method": "test", "patch_size": [16, 16, 16]})
    files = sorted(
        path for path in (tmp_path / "toy").rglob("*.nii.gz") if "label" not in str(path.relative_to(tmp_path))
    )
    maps = {path.name.replace(".nii.gz", ""): path for path in (tmp_path / "toy").rglob("*.nii.gz")}
    assert files, sorted(maps)
    for path in files:
        shutil.copy(path, studies)
    options = {"encoder": str(weights), "bundles": [str(BUNDLES / "volume_segmentation")], "modality": "CT"}
    with served(studies, tmp_path / "log.txt", **options) as client:
        assert client.wait("scoring")["status"] == "DONE", (tmp_path / "log.txt").read_text()[-3000:]
        image = client.post("/activelearning/typicality")[1]["id"]
        own = nib.load(studies / f"{image}.nii.gz")
        mask = np.zeros(own.shape, np.uint8)
        mask[tuple(slice(side // 4, side // 2) for side in own.shape)] = 1

        def packed(array, affine):
            return nib.Nifti1Image(array, affine).to_bytes()

        moved = own.affine.copy()
        moved[0, 3] += 5
        for array, affine, words in ((mask[:-1], own.affine, "voxels, its image"), (mask, moved, "mm from the image")):
            status, found = client.label(image, "label.nii", packed(array, affine))
            assert status == 400 and "another grid" in found["detail"] and words in found["detail"]
        status, found = client.label(image, "label.nii", packed(mask, own.affine))
        assert status == 200, found
        settings = {"max_epochs": 1, "steps_per_epoch": 2}
        assert client.post("/train/segmentation", **settings)[0] == 200
        done = client.wait("train")
        assert done["status"] == "DONE", done["details"]
        client.wait("scoring")
        other = client.post("/activelearning/entropy")[1]
        assert other["id"] != image
        status, content = client.infer("segmentation", other["id"], output="image")
        assert status == 200
        (tmp_path / "answer.nii.gz").write_bytes(content)
        answer, asked = nib.load(tmp_path / "answer.nii.gz"), nib.load(studies / f"{other['id']}.nii.gz")
        assert answer.shape == asked.shape and np.allclose(answer.affine, asked.affine, atol=1e-3)


def test_the_verb_says_what_is_wrong(tmp_path, toy_encoder):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(RuntimeError, match=f"port {port} of 127.0.0.1 can't be used"):
            server_command(tmp_path, encoder=str(toy_encoder), port=port)
    with pytest.raises(FileNotFoundError, match="no folder"):
        server_command(tmp_path / "nothing", encoder=str(toy_encoder))
    with pytest.raises(ValueError, match="give --encoder"):
        server_command(tmp_path)
    assert sys.executable
