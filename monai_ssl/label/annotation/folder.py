# SPDX-License-Identifier: Apache-2.0
"""The folder of studies: where the app keeps what it makes, and the images as a store that training reads.

Everything of the app lies in the hidden folder ``.monai_ssl`` below the studies. Images are linked to there under their
own names, so that label maps and files of other programs beside them are not taken for images.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai_ssl.data import ImageStore, open_radiographs, open_volume_store
from monai_ssl.evaluation import Preprocessing
from monai_ssl.weights import read_manifest

__all__ = ["StudiesFolder"]

STATE = ".monai_ssl"


class StudiesFolder:
    """Paths of the app's files below a folder of studies.

    Args:
        studies: the folder.
        encoder: file of the encoder the annotator began with; None: none yet.
        modality: of volumes whose files do not say theirs, such as NIfTI: CT or MR.
    """

    def __init__(
        self, studies: str | os.PathLike, encoder: str | os.PathLike | None = None, modality: str | None = None
    ) -> None:
        self.studies = Path(studies)
        self.state, self.modality = self.studies / STATE, modality
        self._given = None if encoder is None else Path(encoder)

    @property
    def encoder(self) -> Path:
        """The newest encoder: of a pretraining on these images if there was one, else the given one.

        Raises:
            FileNotFoundError: there is none.
        """
        own = self.state / "encoder.safetensors"
        path = own if own.is_file() else self._given
        if path is None or not path.is_file():
            raise FileNotFoundError(
                "there is no encoder to embed the images with: start the server with --encoder, or run the training "
                "'pretraining' (needs --bundle with a pretraining bundle)"
            )
        return path

    def model(self, task: str) -> Path:
        """Where the trained model of a task is, ``model.pt`` with ``model.json`` beside it; it need not be there."""
        return self.state / "models" / task / "model.pt"

    def open_store(self, images: Mapping[str, str], manifest: dict[str, Any] | None = None) -> ImageStore:
        """Prepare images as an encoder's own were; what was prepared before is kept, what can't be read is refused.

        Args:
            images: path of each image by its id.
            manifest: of the encoder; None: that of :attr:`encoder`.

        Returns:
            The store; ``path`` of its table is the file's name.

        Raises:
            ValueError: there is no image, none that can be used, or the encoder is for others.
        """
        if not images:
            raise ValueError(f"there is no image in {self.studies}")
        folder = self.link_images(images)
        manifest = manifest or read_manifest(self.encoder)
        preprocessing = Preprocessing.from_manifest(manifest)
        common = {"drop_duplicates": False, "num_workers": 0, "max_refused_fraction": 1.0, "progress": False}
        try:
            if manifest["network"]["spatial_dims"] == 2:
                policy = preprocessing.intensity_policy()
                store = open_radiographs(folder, self.state / "data", policy=policy, **common)
                deep = [one["kind"] == "nifti" and one["frames"] != 1 for one in _kinds(store)]
                if sum(deep) > len(deep) / 2:
                    raise ValueError(
                        f"the encoder is for images of 2 dimensions, and {sum(deep)} of {len(deep)} files are volumes: "
                        "start the server with an encoder of volumes"
                    )
                return store
            return open_volume_store(
                folder,
                self.state / "data",
                modality=self.modality,
                policy=preprocessing.intensity_policy() or "auto",
                orientation=preprocessing.orientation or "SPL",
                spacing_mm=preprocessing.spacing_mm,
                **common,
            )
        except RuntimeError as error:
            raise ValueError(f"none of the {len(images)} images can be used: {error}") from error

    def link_images(self, images: Mapping[str, str]) -> Path:
        """Return a folder with a link to each image and nothing else."""
        folder = self.state / "images"
        folder.mkdir(parents=True, exist_ok=True)
        wanted = {Path(path).name: Path(path) for path in images.values()}
        for old in folder.iterdir():
            if old.name not in wanted or not old.exists():
                old.unlink()
        for name, path in wanted.items():
            place = folder / name
            if not place.exists():
                try:
                    place.symlink_to(path.resolve())
                except OSError:  # no links on this file system
                    shutil.copy2(path, place)
        return folder


def _kinds(store: ImageStore) -> list[dict[str, Any]]:
    return store.table.select(["kind", "frames"]).to_pylist()
