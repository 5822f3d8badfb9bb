# SPDX-License-Identifier: Apache-2.0
"""MONAI Label's local datastore with its doors closed: ids stay inside, labels are checked, nothing is overwritten."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

from filelock import FileLock
from monailabel.datastore.local import LocalDatastore
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.exception import MONAILabelError, MONAILabelException

from monai_ssl.label.annotation.folder import STATE
from monai_ssl.label.annotation.labels import check_label
from monai_ssl.weights import atomic_file

__all__ = ["GuardedDatastore", "invalid"]

# One name of a file: no separators, no dot in front.
_ID = re.compile(r"[\w][\w .+=@#-]{0,199}")
_TAG = re.compile(r"[A-Za-z][\w-]{0,31}")


def invalid(message: str) -> MONAILabelException:
    """Return the error that the server answers with status 400."""
    return MONAILabelException(MONAILabelError.INVALID_INPUT, message)


class GuardedDatastore(LocalDatastore):
    """A folder of studies.

    Ids and tags that could lead out of the folder are refused. A label is checked against its image before it is kept,
    and a label that another one replaces is kept in the app's hidden folder. The table of the datastore is written
    whole or not at all.
    """

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Add an image under an id that is not taken."""
        _checked(image_id, _ID, "image")
        if image_id in self._datastore.objects:
            raise invalid(f"there is an image {image_id!r} already; an image is not replaced, choose another id")
        _, extension = self._to_id(os.path.basename(image_filename))
        if f"*{extension}" not in self._extensions:
            raise invalid(f"images of the kind {extension!r} are not taken; use one of {', '.join(self._extensions)}")
        return super().add_image(image_id, image_filename, image_info)

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Check a label and keep it; the one it replaces goes to ``.monai_ssl/earlier_labels``."""
        _checked(label_tag, _TAG, "tag")
        image = self._known(image_id)
        try:
            check_label(image, label_filename)
        except ValueError as error:
            text = str(error).replace(os.path.basename(label_filename), f"of {image_id}")
            raise invalid(f"the label was not saved: {text}") from error
        self._keep_earlier(image_id, label_tag)
        return super().save_label(image_id, label_filename, label_tag, label_info)

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Take a label away; it is kept in ``.monai_ssl/earlier_labels``."""
        _checked(label_tag, _TAG, "tag")
        self._known(label_id)
        self._keep_earlier(label_id, label_tag)
        super().remove_label(label_id, label_tag)

    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        """Return the path of a label, "" if there is none."""
        _checked(label_tag, _TAG, "tag")
        return super().get_label_uri(label_id, label_tag)

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """Keep facts of an image; who was offered it last is not worth writing the whole table for."""
        self._known(image_id)
        if info.keys() == {"strategy"}:
            self._datastore.objects[image_id].image.info.update(info)
        else:
            super().update_image_info(image_id, info)

    def image_paths(self) -> dict[str, str]:
        """Path of every image by its id."""
        return {image: self.get_image_uri(image) for image in self.list_images()}

    def label_paths(self) -> dict[str, str]:
        """Path of every final label by its image's id."""
        return {image: self.get_label_uri(image, DefaultLabelTag.FINAL) for image in self.get_labeled_images()}

    def _known(self, image_id: str) -> str:
        path = self.get_image_uri(image_id) if isinstance(image_id, str) else ""
        if not path:
            raise invalid(f"there is no image {str(image_id)[:80]!r} in the studies")
        return path

    def _keep_earlier(self, image_id: str, tag: str) -> None:
        path = self.get_label_uri(image_id, tag)
        if not path or not os.path.isfile(path):
            return
        place = Path(self._datastore_path) / STATE / "earlier_labels" / tag
        place.mkdir(parents=True, exist_ok=True)
        name = os.path.basename(path)
        shutil.copy2(path, place / f"{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 10**6:06d}-{name}")

    def _update_datastore_file(self, lock: bool = True) -> None:
        """Write the table; a server that is killed meanwhile leaves the old one."""
        if lock:
            with FileLock(self._lock_file):
                self._update_datastore_file(lock=False)
            return
        self._ignore_event_config = True
        content = json.dumps(self._datastore.model_dump(exclude={"base_path"}), indent=2, default=str)
        with atomic_file(self._datastore_config_path) as file:
            file.write(content.encode())
        self._config_ts = os.stat(self._datastore_config_path).st_mtime


def _checked(name: str, allowed: re.Pattern, what: str) -> None:
    if not isinstance(name, str) or not allowed.fullmatch(name) or ".." in name:
        raise invalid(f"{str(name)[:80]!r} is no {what}: use letters, digits and '_', '-', '.', without folders")
