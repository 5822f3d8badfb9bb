# SPDX-License-Identifier: Apache-2.0
"""The batched transforms as MONAI transforms of one image ``(C, *spatial)``: array and dictionary (…d) faces.

They are ``Randomizable``, so that MONAI's caching datasets leave them out of the cache and MONAI's ``DataLoader`` seeds
them anew in each worker and epoch (torch's own ``DataLoader`` does not: use MONAI's). What comes out are plain tensors:
the affine of a ``MetaTensor`` would no longer be true of a turned and rescaled view.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Randomizable, Transform
from monai.utils import convert_to_tensor, ensure_tuple, ensure_tuple_rep

from monai_ssl.transforms.base import BatchTransform
from monai_ssl.transforms.views import MultiView


class RandBatchTransform(Randomizable, Transform):
    """Any :class:`BatchTransform` (a :class:`ViewChain` too) as a MONAI array transform, by a batch of one.

    Args:
        transform: what to apply.
    """

    def __init__(self, transform: BatchTransform) -> None:
        self.transform = transform
        self.params: Any = None

    def randomize(self, image: torch.Tensor) -> None:
        """Draw the parameters for an image (C, *spatial), from the state that MONAI seeds."""
        seed = int(self.R.randint(0, 2**31 - 1))
        generator = torch.Generator(device=image.device).manual_seed(seed)
        self.params = self.transform.draw((1, *image.shape), generator, image.device)

    def __call__(self, img: Any, randomize: bool = True, interpolation: str = "bilinear") -> torch.Tensor:
        """Transform one image.

        Args:
            img: (C, *spatial), tensor or array; whole numbers are taken as float32 unless interpolation is "nearest".
            randomize: draw new parameters; False applies the last ones once more.
            interpolation: "bilinear" or, for label maps, "nearest".
        """
        batch = self._prepare(img, randomize, interpolation)
        return self.transform.apply(batch, self.params, interpolation)[0]

    def _prepare(self, img: Any, randomize: bool, interpolation: str) -> torch.Tensor:
        """(1, C, *spatial) plain tensor, after drawing if asked for."""
        image = convert_to_tensor(img, track_meta=False)
        if interpolation == "bilinear" and not image.is_floating_point():
            image = image.float()
        if randomize:
            self.randomize(image)
        elif self.params is None:
            raise RuntimeError(f"{type(self).__name__}: nothing was drawn yet, so randomize=False has nothing to apply")
        return image[None]


class RandViews(RandBatchTransform):
    """A :class:`MultiView` as a MONAI array transform: one image in, a list of views (C, *size) out.

    Args:
        views: which views to make.
    """

    def __init__(self, views: MultiView) -> None:
        super().__init__(views)

    def __call__(self, img: Any, randomize: bool = True, interpolation: str = "bilinear") -> list[torch.Tensor]:
        """Make the views of one image; arguments as for :class:`RandBatchTransform`."""
        batch = self._prepare(img, randomize, interpolation)
        return [view[0] for view in self.transform.apply(batch, self.params, interpolation)]


class _RandDictionaryFace(MapTransform, Randomizable):
    """What the dictionary faces share: one array face that draws at the first key and repeats for the others."""

    def __init__(
        self, keys: KeysCollection, face: RandBatchTransform, mode: str | Sequence[str], allow_missing_keys: bool
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.face = face
        self.mode = ensure_tuple_rep(mode, len(self.keys))

    def set_random_state(self, seed: int | None = None, state: Any = None) -> _RandDictionaryFace:
        """Seed this face, and with it the array face that draws."""
        super().set_random_state(seed, state)
        self.face.set_random_state(seed, state)
        return self

    def _results(self, data: Mapping[Hashable, Any]) -> list[tuple[Hashable, Any]]:
        """(key, result) of every key at hand; all with the same parameters."""
        results = []
        for key, mode in self.key_iterator(data, self.mode):
            results.append((key, self.face(data[key], randomize=not results, interpolation=mode)))
        return results


class RandBatchTransformd(_RandDictionaryFace):
    """Dictionary face of :class:`RandBatchTransform`. All keys get the same parameters.

    Args:
        keys: images of the same spatial shape, such as an image and its label map.
        transform: what to apply.
        mode: "bilinear" or "nearest" (label maps), one for all keys or one for each.
        allow_missing_keys: do not raise when a key is missing.
    """

    def __init__(
        self,
        keys: KeysCollection,
        transform: BatchTransform,
        mode: str | Sequence[str] = "bilinear",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, RandBatchTransform(transform), mode, allow_missing_keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of ``data`` with the transformed images in place of the originals."""
        return {**data, **dict(self._results(data))}


class RandViewsd(_RandDictionaryFace):
    """Dictionary face of :class:`RandViews`. All keys get the same parameters, each view its own.

    Args:
        keys: images of the same spatial shape, such as an image and its label map.
        views: which views to make.
        view_keys: where to store them: one name stores the list of views under it, several name one view each. With
            more than one image key, ``key + "_"`` is put before the name.
        mode: "bilinear" or "nearest" (label maps), one for all keys or one for each.
        allow_missing_keys: do not raise when a key is missing.

    Raises:
        ValueError: if ``view_keys`` names another number of views than there are.
    """

    def __init__(
        self,
        keys: KeysCollection,
        views: MultiView,
        view_keys: str | Sequence[str] = "views",
        mode: str | Sequence[str] = "bilinear",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, RandViews(views), mode, allow_missing_keys)
        self.as_list = isinstance(view_keys, str)
        self.view_keys = ensure_tuple(view_keys)
        if not self.as_list and len(self.view_keys) != len(views):
            raise ValueError(f"view_keys {self.view_keys} name {len(self.view_keys)} views, but there are {len(views)}")

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of ``data`` with the views added; the images stay."""
        out = dict(data)
        for key, views in self._results(data):
            prefix = f"{key}_" if len(self.keys) > 1 else ""
            for name, value in zip(self.view_keys, [views] if self.as_list else views, strict=True):
                out[prefix + name] = value
        return out
