# SPDX-License-Identifier: Apache-2.0
"""Embedding a folder and searching it, with a model that knows bright squares left and right."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toy_image_text import ToyImageText, ToyTokenizer
from toy_radiographs import make_toy_radiographs

import monai_ssl.evaluation.image_text_file as image_text_file
from monai_ssl.__main__ import main
from monai_ssl.data import ImageStore, open_radiographs
from monai_ssl.evaluation import OpenImageText, Preprocessing
from monai_ssl.search import EmbeddedFolder, embed_folder, search_by_image, search_by_text

MODEL = OpenImageText(ToyImageText(), ToyTokenizer(), Preprocessing((48, 48), mean=0.0, std=1.0), {}, "f" * 64)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Sixty images of thirty patients, in the folder "images"; prepared in "cache"."""
    folder = tmp_path_factory.mktemp("search")
    make_toy_radiographs(folder / "images")
    open_radiographs(folder / "images", folder / "cache", num_workers=0, drop_duplicates=False, progress=False)
    return folder


@pytest.fixture(scope="module")
def index(images) -> EmbeddedFolder:
    return embed_folder(ImageStore(images / "cache/store"), images / "index", MODEL, images / "model.safetensors")


def labels(images: Path) -> dict[str, str]:
    with open(images / "images/labels.csv") as file:
        return {row["file"]: row["label"] for row in csv.DictReader(file)}


class Counting(ToyImageText):
    """Counts the images it embeds, and stops after some."""

    def __init__(self, most: int = 1000) -> None:
        super().__init__()
        self.seen, self.most = 0, most

    def embed_images(self, x):
        self.seen += len(x)
        if self.seen > self.most:
            raise KeyboardInterrupt
        return super().embed_images(x)


def opened(model, fingerprint="f" * 64) -> OpenImageText:
    return OpenImageText(model, ToyTokenizer(), MODEL.preprocessing, {}, fingerprint)


def test_a_sentence_finds_its_images(images, index):
    label = labels(images)
    for text, wanted in (("a spot left", "left"), ("the chest is normal", "normal"), ("spot right", "right")):
        answer = search_by_text(index, MODEL, text, 15)
        assert [label[hit.path] for hit in answer.hits] == [wanted] * 15 and answer.notes == []
        cosines = [hit.similarity for hit in answer.hits]
        assert cosines == sorted(cosines, reverse=True) and len(answer.table().splitlines()) == 16
    assert all("P" not in hit.group_id and len(hit.group_id) == 20 for hit in answer.hits), "patients are hashes"


def test_nearest_is_exact_and_ties_keep_their_order(index):
    query = np.random.default_rng(0).normal(size=3).astype(np.float32)
    cosines = np.array(index.vectors) @ query
    expected = np.lexsort((np.arange(60), -cosines))
    for count in (1, 7, 60, 99):
        assert [hit.row for hit in index.nearest(query, count)] == expected[:count].tolist()
    with pytest.raises(ValueError, match=r"a vector of \(4,\) and 3 hits do not fit"):
        index.nearest(np.zeros(4), 3)


def test_an_image_finds_itself_and_its_like(images, index):
    label = labels(images)
    path = next(name for name, own in label.items() if own == "right")
    answer = search_by_image(index, MODEL, images / "images" / path, 10)
    assert answer.hits[0].path == path and answer.hits[0].similarity == pytest.approx(1, abs=1e-5)
    assert {label[hit.path] for hit in answer.hits} == {"right"} and answer.pixels.shape[0] == 48
    (images / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(ValueError, match=r"broken\.png"):
        search_by_image(index, MODEL, images / "broken.png")


def test_words_the_model_does_not_know(index):
    answer = search_by_text(index, MODEL, "zebra left", 3)
    assert answer.notes == ["1 of 2 pieces of the text are unknown to the model"]
    assert "cut after 8 pieces" in search_by_text(index, MODEL, "left " * 20, 3).notes[0]
    with pytest.raises(ValueError, match="knows none of the words") as caught:
        search_by_text(index, MODEL, "zebra", 3)
    assert "zebra" not in str(caught.value)
    with pytest.raises(ValueError, match="is empty"):
        search_by_text(index, MODEL, "  ", 3)


def test_only_new_images_are_embedded_and_only_for_the_same_model(images, index, tmp_path):
    shutil.copytree(images / "index", tmp_path / "index")
    store = ImageStore(images / "cache/store")
    for fingerprint, expected in (("f" * 64, 0), ("e" * 64, 60), ("e" * 64, 0)):
        model = Counting()
        again = embed_folder(store, tmp_path / "index", opened(model, fingerprint), "m", batch_size=8)
        assert model.seen == expected and again.key["model_sha256"] == fingerprint
        np.testing.assert_array_equal(again.vectors, index.vectors)
    assert len(list((tmp_path / "index").glob("vectors_*"))) == 1 and not (tmp_path / "index/parts").exists()


def test_an_interrupted_embedding_goes_on(images, index, tmp_path, monkeypatch):
    monkeypatch.setattr("monai_ssl.search.embed._SECONDS", 0.0)
    store, model = ImageStore(images / "cache/store"), Counting(most=40)
    with pytest.raises(KeyboardInterrupt):
        embed_folder(store, tmp_path, opened(model), "m", batch_size=8)
    with pytest.raises(FileNotFoundError, match="holds no search index"):
        EmbeddedFolder(tmp_path)
    (tmp_path / "parts/000004.txt").unlink()  # as if killed between its vectors and its names
    model = Counting()
    whole = embed_folder(store, tmp_path, opened(model), "m", batch_size=8)
    assert model.seen == 28
    np.testing.assert_allclose(whole.vectors, index.vectors, atol=1e-6)
    first = Counting(most=40)
    with pytest.raises(KeyboardInterrupt):
        embed_folder(store, tmp_path, opened(first, "e" * 64), "m", batch_size=8)
    other = Counting()
    embed_folder(store, tmp_path, opened(other, "d" * 64), "m", batch_size=8)
    assert other.seen == 60, "parts of another model are not used"


def test_a_stale_index_is_noticed(images, tmp_path):
    for name in ("images", "cache"):
        shutil.copytree(images / name, tmp_path / name)
    store = ImageStore(tmp_path / "cache/store")
    made = embed_folder(store, tmp_path / "index", MODEL, "m")
    assert made.open_store() is not None
    (tmp_path / "images/p00_0.png").unlink()
    table = (tmp_path / "images/labels.csv").read_text().splitlines()
    (tmp_path / "images/labels.csv").write_text("\n".join(line for line in table if not line.startswith("p00_0")))
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 255, (48, 48), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"images/new{number}.png")
    open_radiographs(tmp_path / "images", tmp_path / "cache", num_workers=0, drop_duplicates=False, progress=False)
    with pytest.raises(ValueError, match=r"is out of date: .* 2 images came and 1 went since; embed again"):
        made.open_store()
    model = Counting()
    again = embed_folder(ImageStore(tmp_path / "cache/store"), tmp_path / "index", opened(model), "m")
    assert model.seen == 2 and len(again) == 61 and again.open_store() is not None
    shutil.rmtree(tmp_path / "cache")
    assert again.open_store() is None


def test_damaged_files_are_told(index, tmp_path):
    shutil.copytree(index.folder, tmp_path / "i")
    facts = tmp_path / "i/search_index.json"
    content = json.loads(facts.read_text())
    facts.write_text(json.dumps(content | {"count": 3}))
    with pytest.raises(ValueError, match="do not fit; embed again"):
        EmbeddedFolder(tmp_path / "i")
    facts.write_text(json.dumps(content | {"format": 99}))
    with pytest.raises(ValueError, match="newer monai_ssl"):
        EmbeddedFolder(tmp_path / "i")
    facts.write_text("{")
    with pytest.raises(ValueError, match="is damaged; delete it"):
        EmbeddedFolder(tmp_path / "i")
    facts.write_text(json.dumps(content))
    next((tmp_path / "i").glob("vectors_*")).write_bytes(b"no array")
    with pytest.raises(ValueError, match="the search index is damaged"):
        EmbeddedFolder(tmp_path / "i")


@pytest.fixture
def command(capsys, images, monkeypatch):
    """Run a verb with the toy model in place of the file ``model.safetensors``."""
    model = images / "model.safetensors"
    model.write_bytes(b"weights")

    def open_toy(path, image_size=None):
        assert Path(path).is_file()
        digest = image_text_file.hashlib.sha256(Path(path).read_bytes()).hexdigest()
        return OpenImageText(ToyImageText(), ToyTokenizer(), MODEL.preprocessing, {}, digest)

    monkeypatch.setattr("monai_ssl.evaluation.open_image_text", open_toy)
    monkeypatch.setattr("monai_ssl.search.queries.open_image_text", open_toy)

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


def test_the_verbs(command, images, tmp_path):
    model = images / "model.safetensors"
    code, out, err = command("embed", images / "cache", tmp_path / "i", "--model_file", model, "--device", "cpu")
    assert (code, "search index of 60 images, vectors of 3 numbers" in out) == (0, True), err
    assert "search index of 60 images" in command("describe", tmp_path / "i")[1]
    code, out, err = command("search", tmp_path / "i", "a spot left", "--top", 5, "--output", tmp_path / "out/a.png")
    assert code == 0 and len(out.splitlines()) == 7, err
    rows = list(csv.DictReader((tmp_path / "out/a.csv").open()))
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4", "5"]
    assert {labels(images)[row["path"]] for row in rows} == {"left"}
    assert Image.open(tmp_path / "out/a.png").format == "PNG"
    assert (tmp_path / "out/a.html").read_text().count("data:image/png") == 5
    code, out, _ = command("search", tmp_path / "i", "--image", images / "images/p01_0.png", "--output", tmp_path / "b")
    assert code == 0 and "1   1.000" in out and (tmp_path / "b.html").read_text().count("data:image/png") == 13


def test_verbs_explain_mistakes(command, images, tmp_path):
    model = images / "model.safetensors"
    assert "needs a text in quotes, or --image FILE" in command("search", tmp_path / "i")[2]
    assert "needs a text in quotes" in command("search", tmp_path / "i", "left", "--image", "x.png")[2]
    assert "holds no search index: 'python -m monai_ssl embed FOLDER" in command("search", tmp_path / "i", "left")[2]
    assert "no such folder" in command("embed", tmp_path / "no", tmp_path / "i", "--model_file", model)[2]
    command("embed", images / "cache", tmp_path / "i", "--model_file", model)
    (tmp_path / "other").write_bytes(b"other weights")
    error = command("search", tmp_path / "i", "left", "--model_file", tmp_path / "other")[2]
    assert "was made with other weights than those of" in error and "embed the folder again" in error
    model.unlink()
    assert "is not there (any more); give it by --model_file" in command("search", tmp_path / "i", "left")[2]


def test_a_folder_of_images_is_prepared_in_the_index(command, images, tmp_path):
    make_toy_radiographs(tmp_path / "images", num_patients=3)
    (tmp_path / "images/broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    model = images / "model.safetensors"
    code, out, err = command("embed", tmp_path / "images", tmp_path / "i", "--model_file", model)
    assert code == 0 and "search index of 6 images" in out and "1 files were refused" in out, err
    code, _, err = command("search", tmp_path / "i", "left", "--top", 2, "--output", tmp_path / "hits")
    assert code == 0 and (tmp_path / "hits.png").is_file(), err
    moved = tmp_path / "elsewhere"
    (tmp_path / "i").rename(moved)
    code, _, err = command("search", moved, "left", "--top", 2, "--output", tmp_path / "h", "--model_file", model)
    assert code == 0 and (tmp_path / "h.png").is_file(), f"index and images move together: {err}"
