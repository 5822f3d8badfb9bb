# SPDX-License-Identifier: Apache-2.0
"""Random crops of CT volumes: our store beside the transform chain of MONAI's tutorial on self-supervised pretraining.

The chain (Project-MONAI/tutorials, self_supervised_pretraining) loads, turns, resamples to 2 mm, windows and crops
every volume anew in every epoch, and takes two crops from each. Both sides go through a ``DataLoader``: in this process
with one thread, else with as many workers as threads. The files are in the page cache.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import nibabel as nib
import numpy as np
import pyarrow as pa
from monai.data import Dataset as MonaiDataset
from monai.data import list_data_collate
from monai.transforms import (
    Compose,
    CropForegroundd,
    EnsureChannelFirstd,
    LoadImaged,
    Orientationd,
    RandSpatialCropSamplesd,
    ScaleIntensityRanged,
    Spacingd,
    SpatialPadd,
)
from scipy import ndimage
from torch.utils.data import DataLoader

from benchmarks.rounds import Row, compare_rates, interleaved, rate_of, torch_threads
from monai_ssl.data import (
    CTIntensity,
    ImageStore,
    PadCollate,
    PatchSampler,
    VolumePatchDataset,
    build_volume_index,
    prepare_volumes,
)

_POLICY = CTIntensity(name="ct_monai_ssl")
_SPACING_MM = 2.0
_EPOCHS = 5


@dataclass(frozen=True)
class Sizes:
    """How much one round does."""

    volumes: int
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    patch: int
    our_epochs: int

    @property
    def setting(self) -> str:
        """For the table."""
        return (
            f"{self.volumes} CT of {' x '.join(map(str, self.shape))} int16 (.nii.gz), 2 crops of {self.patch}^3 each"
        )


FULL = Sizes(volumes=4, shape=(160, 320, 320), spacing_mm=(2.0, 0.8, 0.8), patch=96, our_epochs=10)
TINY = Sizes(volumes=2, shape=(12, 24, 24), spacing_mm=(2.0, 1.6, 1.6), patch=8, our_epochs=1)


def run(rounds: int, threads: list[int], tiny: bool = False) -> Iterator[Row]:
    """Yield, for each number of threads, rows for reading and for five epochs with all that goes before them."""
    sizes = TINY if tiny else FULL
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "volumes"
        uncompressed = write_volumes(root, sizes)
        store = store_of(root, Path(folder) / "store", (_SPACING_MM,) * 3, 0)
        whole = store_of(root, Path(folder) / "whole", None, 0)
        disk = (
            f"on disk, of the uncompressed sources' bytes: {_bytes(store) / uncompressed:.2f} at 2 mm, "
            f"{_bytes(whole) / uncompressed:.2f} as acquired"
        )
        for number in threads:
            contestants = {
                "ours": _reading(store, sizes, number, "memory"),
                "uncached": _reading(store, sizes, number, "none"),
                "theirs": _tutorial(root, sizes, number, 1),
            }
            with torch_threads(number):
                figures = interleaved(contestants, rounds)
            shared = {"unit": "crops/s", "setting": sizes.setting, "threads": number, "peer": "MONAI's tutorial chain"}
            for name, bench in (("ours", "crops, cached"), ("uncached", "crops, from the store")):
                goal = 100.0 if name == "ours" else None
                yield compare_rates(figures[name], figures["theirs"], bench=bench, goal=goal, note=disk, **shared)
            contestants = {
                "ours": _from_scratch(root, Path(folder), sizes, number),
                "theirs": _tutorial(root, sizes, number, _EPOCHS),
            }
            with torch_threads(number):
                figures = interleaved(contestants, max(1, rounds // 2), warm_up=False)
            note = "ours from nothing: index, prepare, five epochs"
            bench = f"crops, {_EPOCHS} epochs with prepare"
            yield compare_rates(figures["ours"], figures["theirs"], bench=bench, goal=20.0, note=note, **shared)


def write_volumes(folder: Path, sizes: Sizes) -> int:
    """Write CT-like volumes: an ellipse of tissue in air, smooth structure and noise, in Hounsfield units.

    Returns:
        Bytes of their voxels, uncompressed.
    """
    folder.mkdir(parents=True)
    grid = np.meshgrid(
        *(np.linspace(-1, 1, side, dtype=np.float32) for side in sizes.shape), indexing="ij", sparse=True
    )
    body = (grid[0] * 0.9) ** 2 + (grid[1] * 1.4) ** 2 + (grid[2] * 1.15) ** 2 < 1
    for number in range(sizes.volumes):
        random = np.random.default_rng(number)
        organs = ndimage.zoom(random.normal(20, 80, (8, 8, 8)), [side / 8 for side in sizes.shape], order=1)
        values = np.where(body, organs, -1000) + random.normal(0, 20, sizes.shape)
        image = np.rint(values).astype(np.int16).transpose(2, 1, 0)
        affine = np.diag([-sizes.spacing_mm[2], -sizes.spacing_mm[1], sizes.spacing_mm[0], 1.0])
        nib.save(nib.Nifti1Image(image, affine), folder / f"{number:03d}.nii.gz")
    return sizes.volumes * int(np.prod(sizes.shape)) * 2


def store_of(root: Path, folder: Path, spacing_mm: tuple[float, ...] | None, workers: int) -> ImageStore:
    """Index and prepare the volumes."""
    index = build_volume_index(root, num_workers=workers, progress=False)
    place = index.schema.get_field_index("modality")
    index = index.set_column(place, "modality", pa.array(["CT"] * len(index)))
    options = {"policy": _POLICY, "spacing_mm": spacing_mm, "crop_foreground": spacing_mm is not None}
    return prepare_volumes(index, root, folder, num_workers=workers, progress=False, **options)


def _bytes(store: ImageStore) -> int:
    return sum(store.table["store_bytes"].to_pylist())


def _loader(store: ImageStore, sizes: Sizes, threads: int, cache: str) -> DataLoader:
    workers = 0 if threads == 1 else threads
    data = VolumePatchDataset(store, read_size=sizes.patch, cache=cache)
    sampler = PatchSampler(len(data), 2 * len(data))
    return DataLoader(
        data, 2, sampler=sampler, num_workers=workers, persistent_workers=workers > 0, collate_fn=PadCollate()
    )


def _read_epochs(loader: DataLoader, epochs: int) -> int:
    for epoch in range(epochs):
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            assert batch["image"].shape[0] == 2
    return epochs * len(loader) * 2


def _reading(store: ImageStore, sizes: Sizes, threads: int, cache: str) -> Callable[[], float]:
    loader = _loader(store, sizes, threads, cache)
    return rate_of(lambda: _read_epochs(loader, sizes.our_epochs))


def _from_scratch(root: Path, folder: Path, sizes: Sizes, threads: int) -> Callable[[], float]:
    """Index, prepare and read five epochs, in a folder of its own each time."""
    fresh = count()

    def work() -> int:
        place = folder / f"fresh{threads}-{next(fresh)}"
        store = store_of(root, place, (_SPACING_MM,) * 3, 0 if threads == 1 else threads)
        return _read_epochs(_loader(store, sizes, threads, "memory"), _EPOCHS)

    return rate_of(work)


def _tutorial(root: Path, sizes: Sizes, threads: int, epochs: int) -> Callable[[], float]:
    patch, (low, high) = (sizes.patch,) * 3, _POLICY.window_hu
    chain = Compose(
        [
            LoadImaged("image"),
            EnsureChannelFirstd("image"),
            Orientationd("image", axcodes="RAS"),
            Spacingd("image", pixdim=(_SPACING_MM,) * 3, mode="bilinear"),
            ScaleIntensityRanged("image", a_min=low, a_max=high, b_min=0.0, b_max=1.0, clip=True),
            CropForegroundd("image", source_key="image", allow_smaller=True),
            SpatialPadd("image", spatial_size=patch),
            RandSpatialCropSamplesd("image", roi_size=patch, random_size=False, num_samples=2),
        ]
    )
    files = [{"image": str(path)} for path in sorted(root.iterdir())]
    workers = 0 if threads == 1 else threads
    loader = DataLoader(
        MonaiDataset(files, chain),
        1,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=list_data_collate,
    )

    def read() -> int:
        return sum(len(batch["image"]) for _ in range(epochs) for batch in loader)

    return rate_of(read)
