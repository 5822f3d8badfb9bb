# SPDX-License-Identifier: Apache-2.0
"""The online probe sees what the encoder knows, and the training does not see the probe."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from toy_training import LossLog, ToyMethod, toy_trainer

from monai_ssl.handlers import OnlineProbe, TrainingCheckpoint


class Labelled(torch.utils.data.Dataset):
    """Class 1 has vertical stripes, class 0 horizontal ones; the loader's shuffling draws from global generators."""

    def __init__(self, length: int = 24, unlabelled: int = 0) -> None:
        self.length, self.unlabelled = length, unlabelled

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> dict:
        stripes = torch.tensor([0.0, 1.0]).repeat(4).expand(8, 8)
        image = (stripes if i % 2 else stripes.T) + 0.01 * i
        label = -1 if i < self.unlabelled else i % 2
        return {"image": image[None].clone(), "label": label, "patient": i // 4, "extent": torch.tensor([8, 8])}


class StripeEncoder(nn.Module):
    def forward(self, x):
        return torch.stack([x.diff(dim=2).abs().mean((1, 2, 3)), x.diff(dim=3).abs().mean((1, 2, 3))], dim=1)


class KnowsStripes(ToyMethod):
    def __init__(self):
        super().__init__()
        self.encoder.forward = StripeEncoder()


def loader(**options) -> DataLoader:
    return DataLoader(Labelled(**options), batch_size=5, shuffle=True)


def test_a_good_encoder_scores_one(caplog):
    probe = OnlineProbe(loader(unlabelled=3), loader(), k=5)
    trainer = toy_trainer(max_epochs=1, method=KnowsStripes, train_handlers=[])
    probe.attach(trainer)
    with caplog.at_level("INFO"):
        assert probe.score(trainer) == {"knn_auc": 1.0, "linear_auc": 1.0}


def test_before_and_after_every_second_epoch(caplog):
    trainer = toy_trainer(max_epochs=5, train_handlers=[OnlineProbe(loader(), loader(), every_epochs=2, k=3)])
    with caplog.at_level("INFO", logger="monai_ssl"):
        trainer.run()
    lines = [record.message for record in caplog.records if "kNN AUC" in record.message]
    assert [line.split(":")[0] for line in lines] == [
        "untrained encoder",
        "after epoch 2",
        "after epoch 4",
        "after epoch 5",
    ]
    assert lines[-1].count("linear AUC") == 2, "beside the untrained one's"
    for name in ("knn_auc", "knn_auc_untrained", "linear_auc", "linear_auc_untrained"):
        assert 0 <= trainer.state.metrics[name] <= 1


def test_the_training_does_not_notice():
    plain, probed = LossLog(), LossLog()
    toy_trainer(train_handlers=[plain]).run()
    trainer = toy_trainer(train_handlers=[OnlineProbe(loader()), probed])
    trainer.run()
    assert plain.losses == probed.losses


def test_without_queries_each_image_is_asked_of_the_others():
    trainer = toy_trainer(method=KnowsStripes)
    probe = OnlineProbe(loader(), k=3)
    assert probe.score(trainer) == {"knn_auc": 1.0}
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("monai_ssl.handlers.probe.knn_auc", lambda *a, **k: seen.append(k) or 0.5)
        probe.score(trainer)
        OnlineProbe(loader(), group_key="patient").score(trainer)
    assert seen[0]["query_groups"].tolist() == list(range(24)), "no image is its own neighbour"
    assert sorted(seen[1]["bank_groups"].tolist()) == sorted(i // 4 for i in range(24))


def test_view_and_extent_reach_the_encoder():
    given = []

    def view(image, generator, extent):
        given.append((generator, extent.shape))
        return image[..., :4, :4]

    OnlineProbe(loader(), view=view, k=3).score(toy_trainer(method=KnowsStripes))
    assert given[0] == (None, (5, 2))


def test_the_untrained_score_is_kept_over_a_resume(tmp_path):
    probe = OnlineProbe(loader())
    toy_trainer(max_epochs=1, train_handlers=[probe, TrainingCheckpoint(tmp_path)]).run()
    other = OnlineProbe(loader())
    trainer = toy_trainer(max_epochs=2, train_handlers=[other, TrainingCheckpoint(tmp_path, resume=True)])
    trainer.run()
    assert other.untrained == probe.untrained == {"knn_auc": trainer.state.metrics["knn_auc_untrained"]}


def test_clear_errors():
    trainer = toy_trainer()
    with pytest.raises(ValueError, match="yields no 'disease'; it has image"):
        OnlineProbe(loader(), label_key="disease").score(trainer)
    with pytest.raises(ValueError, match="no batch"):
        OnlineProbe([]).score(trainer)
    with pytest.raises(ValueError, match="at least 1"):
        OnlineProbe(loader(), k=0)
