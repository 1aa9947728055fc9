"""A workdir in a bucket: the run works in a folder of this machine, and what it finishes or saves there is copied to `gs://...`.

An object of a bucket appears whole or not at all, but there are no renames and no locks: so a folder's manifest goes up last, and a folder
without it is not there. What both have is the bucket's. Through fsspec, and gcsfs, which are imported only for a bucket.
Not here: what is copied when (`store`, `train.checkpoint`, `rounds`).
"""

import base64
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ilr_jax.files import StorageError, explained, locked

CACHE = "~/.cache/ilr_jax/workdirs"
MANIFEST = "manifest.json"
HEAVY = ".safetensors"  # what reading a run does not need
MADE = ("report.html", "results.json", "results.csv")  # what it leaves


class Mirror:
    """`root`, the folder to work in, and the bucket that it mirrors; a plain folder is its own, and nothing is copied."""

    def __init__(self, workdir: str | Path):
        """ValueError for what is neither a folder nor gs://BUCKET/NAME, or if gcsfs is not installed."""
        scheme, mark, name = str(workdir).partition("://")
        self.root, self.url = Path(workdir), ""
        if not mark:
            return
        parts = name.rstrip("/").split("/")
        wanted = "wanted a folder or gs://BUCKET/NAME as workdir"
        if scheme != "gs" or len(parts) < 2 or not set(parts).isdisjoint({"", ".", ".."}):
            raise ValueError(f"{wanted}, got {str(workdir)!r}")
        self.root, self.url = Path(CACHE).expanduser().joinpath(*parts), f"gs://{'/'.join(parts)}"
        self._bucket, self._same = bucket(), set[Path]()

    def twin(self, path: Path) -> str:
        """Where `path` of the workdir outlives this machine: its address in the bucket, or its own, absolute."""
        return "/".join([self.url, *path.relative_to(self.root).parts]) if self.url else str(path.resolve())

    def push(self, path: Path) -> None:
        """Copy a file, or what is in a folder, to the bucket. StorageError if it refuses."""
        if not self.url:
            return
        found = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
        for file in sorted(found, key=lambda p: (p == path / MANIFEST, p)):
            with reached(self.twin(file), "write"):
                self._bucket.put_file(str(file), self.twin(file))

    def pull(self, path: Path) -> None:
        """Have a file here as in the bucket: its bytes, or none. StorageError if the bucket cannot be asked."""
        if not self.url:
            return
        with reached(self.twin(path), "read"):
            try:
                self._bucket.info(self.twin(path))
            except FileNotFoundError:
                path.unlink(missing_ok=True)
                return
            half = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            try:
                self._copy(self.twin(path), half)
                os.replace(half, path)
            finally:
                half.unlink(missing_ok=True)

    def pull_files(self, folder: Path) -> None:
        """Have the plain files of a folder here as in the bucket."""
        if self.url:
            there = self._listed(folder, below=False)
            for path in [p for p in folder.glob("*") if p.is_file() and p.name not in there]:
                path.unlink()
            for name in there:
                self.pull(folder / name)

    def push_files(self, folder: Path) -> None:
        """Copy the plain files of a folder that the bucket has not, or not the same."""
        if self.url:
            there = self._listed(folder, below=False)
            for path in sorted(p for p in folder.glob("*") if p.is_file()):
                if not _is(path, there.get(path.name)):
                    self.push(path)

    def fetch(self, folder: Path) -> None:
        """Take a finished folder from the bucket, whole or not at all, if it has one and ours is another, or missing."""
        if not self.url or folder in self._same:
            return
        with locked(self.root / "partial" / f"{folder.name}.exchange", folder.name):
            theirs = contents(self._bucket, self.twin(folder / MANIFEST))
            if theirs is None or ((folder / MANIFEST).exists() and (folder / MANIFEST).read_bytes() == theirs):
                return
            half = self.root / "partial" / f"{folder.name}.pulled"
            shutil.rmtree(half, ignore_errors=True)
            for name in self._listed(folder):
                self._copy(f"{self.twin(folder)}/{name}", half / name)
            with explained(folder):
                shutil.rmtree(folder, ignore_errors=True)
                folder.parent.mkdir(parents=True, exist_ok=True)
                os.replace(half, folder)

    def share(self, folder: Path, partial: Path) -> None:
        """Give the bucket a finished folder that it has not, and let go of what it was made from."""
        if self.url and folder not in self._same:
            if contents(self._bucket, self.twin(folder / MANIFEST)) is None:
                self.push(folder)
            self.drop(partial)
            self._same.add(folder)

    def pull_light(self) -> None:
        """Have here what reading needs, and nothing else: no weights, nothing half done."""
        there = self._listed(self.root)
        whole = {name.rpartition("/")[0] for name in there if name.startswith("stages/") and name.endswith(f"/{MANIFEST}")}
        stage = lambda name: "/".join(name.split("/")[:2])
        light = {
            name: info
            for name, info in there.items()
            if not name.endswith(HEAVY) and not name.startswith("partial/") and (stage(name) in whole or not name.startswith("stages/"))
        }
        for path in [p for p in self.root.rglob("*") if p.is_file() and p.relative_to(self.root).as_posix() not in {*light, *MADE}]:
            path.unlink()
        for name, info in light.items():
            if not _is(self.root / name, info):
                self.pull(self.root / name)

    def drop(self, folder: Path) -> None:
        """Remove a folder from the bucket, if it is there."""
        if self.url and self._listed(folder):
            with reached(self.twin(folder), "write"):
                self._bucket.rm(self.twin(folder), recursive=True)

    def _copy(self, address: str, path: Path) -> None:
        with reached(address, "read"):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._bucket.get_file(address, str(path))

    def _listed(self, folder: Path, below: bool = True) -> dict[str, Mapping[str, Any]]:
        """Files in a folder of the bucket, and below it -> what the bucket says of them, sorted by name."""
        url = self.twin(folder)
        with reached(url, "read"):
            try:
                found = self._bucket.find(url, maxdepth=None if below else 1, detail=True)
            except FileNotFoundError:
                return {}
        start = len(url.removeprefix("gs://")) + 1
        return {path[start:]: info for path, info in sorted(found.items()) if path[start:] and info["type"] == "file"}


def _is(path: Path, info: Mapping[str, Any] | None) -> bool:
    """Whether a file has the bytes that a bucket has, as far as it tells their MD5."""
    if info is None or not path.is_file() or path.stat().st_size != info["size"]:
        return False
    with open(path, "rb") as file:
        return base64.b64encode(hashlib.file_digest(file, "md5").digest()).decode() == info.get("md5Hash")


def readable(workdir: str | Path) -> Path:
    """The folder to read a run in: the workdir itself, or a copy of the bucket's without weights, beside `CACHE`."""
    mirror = Mirror(workdir)
    if mirror.url:
        home = Path(CACHE).expanduser()
        mirror.root = home.with_name("read") / mirror.root.relative_to(home)  # apart from where a run works
        mirror.pull_light()
    return mirror.root


def contents(system: Any, address: str) -> bytes | None:
    """A file's bytes, None if it is not there. StorageError if it cannot be asked for."""
    with reached(address, "read"):
        try:
            return system.cat_file(address)
        except FileNotFoundError:
            return None


@contextmanager
def reached(address: str, verb: str) -> Iterator[None]:
    """Turn what a bucket refuses into a StorageError. gcsfs, aiohttp and google.auth raise errors of their own, with no base in common."""
    with explained(address, verb):
        try:
            yield
        except Exception as error:
            if isinstance(error, StorageError) or (isinstance(error, OSError) and error.errno):  # told already; this machine's disk
                raise
            reason = f"{type(error).__name__}: {error}"
            hint = f"see that the bucket is there and that you may {verb} it, and start the same command again: what is finished is kept"
            raise StorageError(f"could not {verb} {address} ({reason}); {hint}") from error


def bucket() -> Any:
    """The file system of Google's buckets; credentials are those that google.auth finds. ValueError if gcsfs is not installed."""
    import fsspec  # a quarter of a second

    try:
        return fsspec.filesystem("gs", use_listings_cache=False)
    except ImportError as error:
        raise ValueError("a workdir in a bucket needs gcsfs: pip install 'ilr_jax[gcs]'") from error
