"""The numbered saves of a run, on a disk or in a bucket (`gs://...`): which are whole, which are undamaged, and what goes when.

A save is a folder that its manifest, written last, makes whole. The manifest holds a checksum of every file: orbax 0.12 is safe against
crashes but restores flipped bits in silence. On a disk that is SHA-256; in a bucket CRC32C, which the bucket itself keeps.
Not here: what is in a save (`checkpoint`). All methods raise StorageError if disk or bucket refuses.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec
from etils import epath

from ilr_jax import files
from ilr_jax.mirror import MANIFEST, bucket, contents, reached

KEEP = 2  # unless a run says otherwise


class Damaged(ValueError):
    """A saved file is not what was written; the message names it."""


class Saves:
    """The saves under `address`, an absolute path or the address of a folder in a bucket; the newest `keep` stay."""

    def __init__(self, address: str, keep: int = KEEP):
        self.address, self._keep = address, keep
        self._remote = "://" in address
        self._files = bucket() if self._remote else fsspec.filesystem("file")

    def of(self, step: int) -> epath.Path:
        """The folder of one save."""
        return epath.Path(self.address) / str(step)

    def steps(self) -> list[int]:
        """Steps that were saved completely, newest first."""
        with reached(self.address, "read"):
            return [number for number in self._begun() if self._files.exists(str(self.of(number) / MANIFEST))]

    def _begun(self) -> list[int]:
        return sorted((int(name) for name in self._names() if name.isdigit()), reverse=True)

    def _names(self) -> list[str]:
        with reached(self.address, "read"):
            try:
                return [Path(path).name for path in self._files.ls(self.address, detail=False)]
            except FileNotFoundError:
                return []

    def clear(self, step: int) -> None:
        """Make room for a save: what is there of it goes, what others left unfinished, and what is of later steps, which did not hold."""
        whole = {str(number) for number in self.steps() if number < step}
        for name in self._names():
            if name not in whole:
                self._remove(f"{self.address}/{name}")
        if not self._remote:
            with files.explained(self.of(step)):
                self._files.makedirs(str(self.of(step)), exist_ok=True)

    def remove(self, step: int) -> None:
        """Leave nothing of one save."""
        if str(step) in self._names():
            self._remove(str(self.of(step)))

    def _remove(self, folder: str) -> None:
        with reached(folder, "write"):
            if self._files.exists(f"{folder}/{MANIFEST}"):
                self._files.rm_file(f"{folder}/{MANIFEST}")  # so that what is left, if this is cut short, is no save
            self._files.rm(folder, recursive=True)

    def commit(self, step: int, body: Mapping[str, Any]) -> None:
        """Make what was written a save that says `body` of itself (JSON), and remove all but the newest."""
        text = json.dumps({**body, "step": step, "files": self._checksums(step)}, sort_keys=True)
        data, path = f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}".encode(), self.of(step) / MANIFEST
        if self._remote:
            with reached(str(path), "write"):
                self._files.pipe_file(str(path), data)
        else:
            files.write_bytes(Path(path), data)
            files.sync_folder(Path(self.address))
        for old in self.steps()[self._keep :]:
            self.remove(old)

    def newest(self) -> dict[str, Any] | None:
        """What the newest undamaged save says of itself, with its `step`. Logs a warning for each other that is passed over."""
        for step in self._begun():
            try:
                return self._verified(step)
            except Damaged as error:
                logging.getLogger(__name__).warning("%s; going back to the save before it", error)
        return None

    def _verified(self, step: int) -> dict[str, Any]:
        """The manifest of one save, after every file has been compared with it; Damaged names the first that differs."""
        path = self.of(step) / MANIFEST
        data = contents(self._files, str(path))
        if data is None:
            raise Damaged(f"{self.of(step)} is not finished, having no {MANIFEST}")
        try:
            digest, text = data.decode().split("\n")
        except ValueError as error:
            raise Damaged(f"{path} cannot be read ({error})") from error
        if hashlib.sha256(text.encode()).hexdigest() != digest:
            raise Damaged(f"{path} was changed after it was written")
        body = json.loads(text)
        found = self._checksums(step)
        for name in sorted(found.keys() | body["files"].keys()):
            if found.get(name) != body["files"].get(name):
                what = "is missing" if name not in found else "was changed after it was written" if name in body["files"] else "was added"
                raise Damaged(f"{self.of(step) / name} {what}")
        return body

    def _checksums(self, step: int) -> dict[str, str]:
        """Name -> checksum of every file of a save but its manifest."""
        root = str(self.of(step)).removeprefix("gs://")
        with reached(str(self.of(step)), "read"):
            found = {path[len(root) + 1 :]: info for path, info in self._files.find(root, detail=True).items()}
        take = lambda name, info: info["crc32c"] if self._remote else files.sha256_of(Path(self.of(step) / name))
        return {name: take(name, info) for name, info in sorted(found.items()) if name != MANIFEST}
