"""A workdir in a bucket: the run works in a folder of this machine, and what it finishes or saves there is copied to `gs://...`.

An object of a bucket appears whole or not at all, but there are no renames and no locks: so a folder's manifest goes up last, and a folder
without it is not there. What both have is the bucket's. Through fsspec, and gcsfs, which are imported only for a bucket.
Not here: what is copied when (`store`, `train.checkpoint`, `rounds`).
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ilr_jax.files import StorageError, explained, locked

CACHE = "~/.cache/ilr_jax/workdirs"
MANIFEST = "manifest.json"
HEAVY = ".safetensors"  # what reading a run does not need


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

    def pull(self, path: Path) -> bool:
        """Replace a file by the bucket's, if it has that, and say whether. StorageError if it cannot be had."""
        if not self.url:
            return False
        half = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with reached(self.twin(path), "read"):
            if not self._bucket.isfile(self.twin(path)):
                return False
            path.parent.mkdir(parents=True, exist_ok=True)
            self._bucket.get_file(self.twin(path), str(half))
            os.replace(half, path)
        return True

    def pull_files(self, folder: Path) -> None:
        """Replace the plain files of a folder by those that the bucket has, which is not asked for what is in folders below."""
        for path in [p for p in folder.glob("*") if p.is_file()] if self.url else []:
            path.unlink()
        for name in self._names(folder) if self.url else []:
            if "/" not in name:
                self.pull(folder / name)

    def push_files(self, folder: Path) -> None:
        """Copy the plain files of a folder that have changed since the bucket got them; sizes tell."""
        if self.url:
            there = self._names(folder)
            for path in sorted(p for p in folder.glob("*") if p.is_file()):
                if there.get(path.name, -1) != path.stat().st_size:
                    self.push(path)

    def exchange(self, folder: Path) -> bool:
        """Have a finished folder here as in the bucket; whether it had to be pushed. The bucket's is taken if they differ."""
        if not self.url or folder in self._same:
            return False
        manifest = folder / MANIFEST
        with locked(self.root / "partial" / f"{folder.name}.exchange", folder.name):
            mine = manifest.read_bytes() if manifest.exists() else None
            with reached(self.twin(manifest), "read"):
                theirs = self._bucket.cat_file(self.twin(manifest)) if self._bucket.isfile(self.twin(manifest)) else None
            if theirs is None and mine is not None:
                self.push(folder)
            elif theirs != mine:
                self._fetch(folder)
        if theirs or mine:
            self._same.add(folder)
        return theirs is None and mine is not None

    def _fetch(self, folder: Path) -> None:
        """The bucket's folder instead of ours, whole or not at all."""
        half = self.root / "partial" / f"{folder.name}.pulled"
        shutil.rmtree(half, ignore_errors=True)
        for name in self._names(folder):
            (half / name).parent.mkdir(parents=True, exist_ok=True)
            with reached(f"{self.twin(folder)}/{name}", "read"):
                self._bucket.get_file(f"{self.twin(folder)}/{name}", str(half / name))
        with explained(folder):
            shutil.rmtree(folder, ignore_errors=True)
            folder.parent.mkdir(parents=True, exist_ok=True)
            os.replace(half, folder)

    def pull_light(self) -> None:
        """Have here what reading needs: no weights, nothing half done; what never changes is not copied again."""
        for name, size in self._names(self.root).items():
            here, written_once = self.root / name, name.startswith(("stages/", "tensorboard/"))
            light = not name.startswith("partial/") and not name.endswith(HEAVY)
            if light and not (written_once and here.exists() and here.stat().st_size == size):
                self.pull(here)

    def drop(self, path: Path) -> None:
        """Remove a folder from the bucket, its manifest first, if it is there."""
        if self.url and self._names(path):
            with reached(self.twin(path), "write"):
                if self._bucket.isfile(self.twin(path / MANIFEST)):
                    self._bucket.rm_file(self.twin(path / MANIFEST))
                self._bucket.rm(self.twin(path), recursive=True)

    def _names(self, folder: Path) -> dict[str, int]:
        """Names below a folder of the bucket -> bytes, sorted."""
        url = self.twin(folder)
        with reached(url, "read"):
            found = self._bucket.find(url, detail=True)
        start = len(url.removeprefix("gs://")) + 1
        return {path[start:]: info["size"] for path, info in sorted(found.items())}


def readable(workdir: str | Path) -> Path:
    """The folder to read a run in: the workdir itself, or a copy of the bucket's without weights, beside `CACHE`."""
    mirror = Mirror(workdir)
    if mirror.url:
        home = Path(CACHE).expanduser()
        mirror.root = home.with_name("read") / mirror.root.relative_to(home)  # apart from where a run works
        mirror.pull_light()
    return mirror.root


@contextmanager
def reached(address: str, verb: str) -> Iterator[None]:
    """Turn what a bucket refuses into a StorageError. gcsfs, aiohttp and google.auth raise errors of their own, with no base in common."""
    with explained(address, verb):
        try:
            yield
        except Exception as error:
            if isinstance(error, OSError) and error.errno:  # this machine's disk
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
