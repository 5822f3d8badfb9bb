# SPDX-License-Identifier: Apache-2.0
"""The encoder is there after every epoch, the best one is kept, and the manifest says what it is."""

from __future__ import annotations

import copy
import errno

import pytest
import torch
from ignite.engine import Events
from text_cases import small_tokenizer, small_transformer
from toy_training import ToyImages, ToyMethod, toy_trainer

from monai_ssl.engines import TrainingStopped
from monai_ssl.handlers import EncoderExport, ImageTextExport, TrainingCheckpoint
from monai_ssl.networks import ImageTextModel, build_encoder
from monai_ssl.weights import load_image_text, open_encoder, read_manifest


class Records:
    """Stands for save_encoder: what was written where, in which epoch."""

    def __init__(self, full: int = 0) -> None:
        self.written, self.full = [], full

    def __call__(self, encoder, path, manifest):
        if self.full:
            self.full -= 1
            raise OSError(errno.ENOSPC, "no space on the disk")
        self.written.append((path.name, manifest))
        path.write_text(str(len(self.written)))


class Scores:
    """A metric that a probe would write, registered after the export on purpose."""

    def __init__(self, values) -> None:
        self.values = values

    def attach(self, engine):
        engine.add_event_handler(
            Events.EPOCH_COMPLETED, lambda: engine.state.metrics.update(knn_auc=self.values[engine.state.epoch - 1])
        )


def test_last_and_best(tmp_path):
    save = Records()
    export = EncoderExport(tmp_path, metric="knn_auc", save=save)
    toy_trainer(max_epochs=4, train_handlers=[export, Scores([0.6, 0.8, 0.7, float("nan")])]).run()
    names = [name for name, _ in save.written]
    assert names == [
        "encoder_best.safetensors",
        "encoder.safetensors",
        "encoder_best.safetensors",
        "encoder.safetensors",
        "encoder.safetensors",
        "encoder.safetensors",
    ]
    assert export.best == 0.8
    assert save.written[2][1]["metrics"]["knn_auc"] == 0.8


def test_prefer_best_and_lower_is_better(tmp_path):
    save = Records()
    export = EncoderExport(
        tmp_path, metric="knn_auc", higher_is_better=False, prefer_best=True, every_epochs=2, save=save
    )
    toy_trainer(max_epochs=3, train_handlers=[export, Scores([0.6, 0.8, 0.5])]).run()
    assert [name for name, _ in save.written] == [
        "encoder.safetensors",
        "encoder_last.safetensors",
        "encoder.safetensors",
        "encoder_last.safetensors",
    ]


def test_the_manifest_is_filled_in(tmp_path):
    save = Records()
    manifest = {"intensity": {"policy": "radiograph"}, "method": "C2L"}
    toy_trainer(max_epochs=2, seed=7, train_handlers=[EncoderExport(tmp_path, manifest, save=save)]).run()
    written = save.written[-1][1]
    assert written["method"] == "C2L"
    assert written["images_seen"] == 40
    assert written["patch_size"] == [8, 8]
    assert written["seeds"] == {"views": 7}
    assert written["intensity"] == {"policy": "radiograph"}


def test_a_resumed_training_goes_on_counting_and_comparing(tmp_path):
    def handlers(scores, resume):
        save = Records()
        return save, [
            EncoderExport(tmp_path, metric="knn_auc", save=save),
            Scores(scores),
            TrainingCheckpoint(tmp_path, resume=resume),
        ]

    _, first = handlers([0.9], False)
    toy_trainer(max_epochs=1, train_handlers=first).run()
    save, second = handlers([0.9, 0.8], True)
    toy_trainer(max_epochs=2, train_handlers=second).run()
    assert [name for name, _ in save.written] == ["encoder.safetensors"]
    assert save.written[0][1]["images_seen"] == 40
    save, third = handlers([], True)
    toy_trainer(max_epochs=2, train_handlers=third).run()
    assert not save.written, "resuming a finished training changes nothing"


def test_without_a_value_the_newest_is_the_best_there_is(tmp_path):
    save = Records()
    toy_trainer(
        max_epochs=1, train_handlers=[EncoderExport(tmp_path, metric="nothing", prefer_best=True, save=save)]
    ).run()
    assert {name for name, _ in save.written} == {"encoder.safetensors", "encoder_last.safetensors"}


def test_a_full_disk_is_no_end_until_the_end(tmp_path, caplog, capfd):
    save = Records(full=1)
    toy_trainer(max_epochs=2, train_handlers=[EncoderExport(tmp_path, save=save)]).run()
    assert "no space on the disk" in caplog.text
    assert len(save.written) == 1
    with pytest.raises(TrainingStopped, match="could not be written"):
        toy_trainer(max_epochs=1, train_handlers=[EncoderExport(tmp_path, save=Records(full=9))]).run()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"prefer_best": True}, "needs the name of a metric"),
        ({"every_epochs": 0}, "every_epochs"),
        ({"manifest": {"methd": "C2L"}}, "did you mean 'method'"),
        ({"manifest": {"versions": {}}}, "filled in"),
    ],
)
def test_wrong_arguments_are_refused_before_the_training(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        EncoderExport(tmp_path, **options)


def test_a_real_encoder_is_written_and_read_back(tmp_path):
    class WithEncoder(ToyMethod):
        def __init__(self):
            super().__init__()
            self.encoder = build_encoder("resnet18")

        def after_step(self, progress):
            pass

    class Pooled(WithEncoder):
        def forward(self, batch):
            features = self.encoder(batch["views"][0])
            return {"loss": features.pow(2).mean(), "embedding": features.detach()}

    trainer = toy_trainer(
        method=Pooled, max_epochs=1, epoch_length=2, dataset=ToyImages(8, 32), train_handlers=[EncoderExport(tmp_path)]
    )
    trainer.run()
    manifest = read_manifest(tmp_path / "encoder.safetensors")
    assert manifest["method"] == "Pooled"
    assert manifest["images_seen"] == 8
    encoder = open_encoder(tmp_path / "encoder.safetensors")
    for key, value in trainer.method.encoder.encoder_state_dict().items():
        assert torch.equal(value, encoder.encoder_state_dict()[key])


def test_a_model_of_images_and_text_is_written_beside_its_encoder(tmp_path):
    tokenizer = small_tokenizer()

    class Method(ToyMethod):
        def __init__(self):
            super().__init__()
            self.encoder = build_encoder("resnet10", widen_factor=0.125)
            self.head = torch.nn.Linear(64, 4)
            self.teacher = copy.deepcopy(torch.nn.Sequential(self.encoder, self.head)).requires_grad_(False)
            text = small_transformer(vocab_size=tokenizer.vocab_size)
            self.model = ImageTextModel(self.encoder, text, embedding_dim=8)

    export = ImageTextExport(tmp_path, tokenizer, {"method": "ConVIRT"}, metric="knn_auc", prefer_best=True)
    dataset = ToyImages(size=32)
    trainer = toy_trainer(
        dataset=dataset, method=Method, max_epochs=2, train_handlers=[export, Scores([0.8, 0.6])], batch_size=10
    )
    trainer.run()
    names = {"encoder.safetensors", "encoder_last.safetensors", "image_text.safetensors", "image_text_last.safetensors"}
    assert {path.name for path in tmp_path.iterdir()} == names
    for ending in ("", "_last"):
        model, _, manifest = load_image_text(tmp_path / f"image_text{ending}.safetensors")
        alone = open_encoder(tmp_path / f"encoder{ending}.safetensors").eval()
        image = dataset.images[:2]
        torch.testing.assert_close(model.image_encoder(image), alone(image))
        assert manifest["metrics"]["knn_auc"] == (0.6 if ending else 0.8)
    torch.testing.assert_close(
        model.text_projector.layers[0].weight, trainer.method.model.text_projector.layers[0].weight
    )
