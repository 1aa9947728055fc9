"""Stages on disk: each finished stage is a folder, named by what it was made from, with a manifest written last.

`root/stages/NAME-KEY/` holds finished artifacts only; `root/partial/NAME-KEY/` holds what is being built, and its `resume/`
what a killed build continues from. A folder becomes an artifact by one rename, after every byte of it has been synced.
Not here: what a stage does, how models are saved, and how one file is written (`files`, whose readers and writers are offered too).
"""

import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

from ilr_jax.files import (
    FULL,
    StorageError,
    encode,
    explained,
    flat,
    locked,
    read_json,
    read_rows,
    sha256_of,
    sync_folder,
    without,
    write_json,
    write_rows,
)
from ilr_jax.mirror import MANIFEST, Mirror
from ilr_jax.types import Artifact, Stage

__all__ = ["Store", "StorageError", "claim", "read_json", "read_rows", "write_json", "write_rows"]

FORMAT = 2  # Part of every key: raise it when the meaning of a stage's files changes, and nothing older is reused.
ABOUT, RESUME = "about.json", "resume"
PACKAGES = ("ilr-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "transformers", "tokenizers", "ml-collections")

Build = Callable[[Path], Mapping[str, Any] | None]
"""Fills the folder given (continuing from its `resume/` if there is one) and returns metrics, the same for the same stage."""


class Store:
    """The artifacts under `root`, or in a bucket (`mirror`). Before its first use a file's SHA-256 is checked, afterwards its size is.

    Of several processes that build together, one `leads` and writes; `told(ask)` is what `ask()` is in that one (`hosts.told`).
    """

    def __init__(self, root: str | Path, leads: bool = True, told: Callable[[Callable[[], Any]], Any] = lambda ask: ask()):
        self.mirror, self.leads, self.told = Mirror(root), leads, told
        self.root = self.mirror.root
        self.how: Mapping[str, str] = {}  # what about.json notes too: on which devices, and how, stages are built
        self._verified: set[Path] = set()
        self._warned: set[tuple[str, ...]] = set()

    def key(self, stage: Stage) -> str:
        """SHA-256 (hex) of the stage's name, settings and inputs' hashes. ValueError for what JSON cannot hold, NaN too."""
        if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]*", stage.name):
            raise ValueError(f"wanted a stage name of a-z, 0-9, '_', '.', '-', got {stage.name!r}")
        identity = {"format": FORMAT, "name": stage.name, "settings": stage.settings, "inputs": stage.inputs}
        return hashlib.sha256(encode(identity, f"stage {stage.name!r}")).hexdigest()

    def find(self, stage: Stage) -> Artifact | None:
        """The stage's artifact if it is finished, else None. ValueError, naming the file, if it is damaged."""
        key = self.key(stage)
        folder = self.root / "stages" / f"{stage.name}-{key[:12]}"
        self.mirror.fetch(folder)
        if not folder.exists():
            return None
        artifact = self.read(folder, key)
        if self.leads:
            self.mirror.share(folder, self.root / "partial" / folder.name)
        self._tell_versions(folder)
        return artifact

    def read(self, folder: Path, key: str | None = None) -> Artifact:
        """The artifact in a folder of `stages/`. ValueError, naming the file, if it is damaged."""
        try:
            manifest = _check(folder, key, hashes=folder not in self._verified)
        except ValueError as error:
            if not self.mirror.url:
                raise
            raise ValueError(f"{error}; if it is damaged again, delete {self.mirror.twin(folder)} too") from error
        self._verified.add(folder)
        return Artifact(str(folder), manifest["key"], manifest)

    def _tell_versions(self, folder: Path) -> None:
        """Warn, once for the same ones, of other versions of the packages than this stage was made with: it is used all the same."""
        made, now = _read_about(folder)["packages"], packages()
        others = tuple(f"{name} {version} (now {now[name]})" for name, version in made.items() if version != now.get(name, version))
        if others and others not in self._warned:
            self._warned.add(others)
            logging.getLogger(__name__).warning("%s and others are reused; they were made with %s", folder.name, ", ".join(others))

    def seconds(self, artifact: Artifact) -> float:
        """How long its build took."""
        return _read_about(Path(artifact.folder))["seconds"]

    def run(self, stage: Stage, build: Build) -> Artifact:
        """The stage's artifact: found, or built. Two runs never build one stage at a time: the second waits and reads.

        The artifact's `manifest['digest']` stands for its files and is what later stages name as their input.
        Raises ValueError for a damaged artifact, StorageError if the disk refuses, and whatever `build` raises.
        """
        key = self.key(stage)
        theirs, artifact = self.told(lambda: (key, self.find(stage)))
        if theirs != key:
            raise ValueError(f"stage {stage.name!r} is not that of process 0: give both machines the same models, data and packages")
        if artifact:
            return self._here(artifact)
        partial = self.root / "partial" / f"{stage.name}-{key[:12]}"
        lock = locked(partial.with_name(f"{partial.name}.lock"), f"stage {stage.name!r}") if self.leads else nullcontext()
        with lock:
            # Asked again: another run may have built it while this one waited.
            if not self.told(lambda: self.find(stage) is not None or _sealed(partial, key)):
                self._fill(partial, stage, key, build)
            return self._here(self.told(lambda: self._committed(partial, stage)))

    def _here(self, artifact: Artifact) -> Artifact:
        """The artifact of the process that leads, in this one, which has a folder of its own if there is a bucket."""
        if self.leads or not self.mirror.url:
            return artifact
        folder = self.root / "stages" / Path(artifact.folder).name
        self.mirror.fetch(folder)
        return self.read(folder, artifact.key)

    def _fill(self, partial: Path, stage: Stage, key: str, build: Build) -> None:
        """Build into `partial`, and seal it with its manifest."""
        self.told(lambda: self._emptied(partial))
        began = time.monotonic()
        with explained(partial, only=FULL), nullcontext(partial) if self.leads else _aside() as folder:
            metrics = build(folder)
        self.told(lambda: _seal_up(partial, stage, key, metrics, _about(time.monotonic() - began, self.how)))

    def _committed(self, partial: Path, stage: Stage) -> Artifact:
        if (artifact := self.find(stage)) is None:
            _commit(partial, final := self.root / "stages" / partial.name)
            self._verified.add(final)  # its bytes were hashed as they were written
            artifact = self.find(stage)
        assert artifact is not None
        return artifact

    def _emptied(self, partial: Path) -> None:
        """Make the folder, and keep nothing of an earlier attempt in it but `resume/`; what of that is in a bucket is taken from there."""
        with explained(partial):
            partial.mkdir(parents=True, exist_ok=True)
            for path in partial.iterdir():
                if path.name != RESUME:
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        self.mirror.pull_files(partial / RESUME)

    def finished(self) -> list[Artifact]:
        """Every finished artifact, by folder name, checked as in `find`."""
        return [self.read(folder) for folder in sorted(path for path in (self.root / "stages").glob("*") if path.is_dir())]


def claim(workdir: str | Path, config: Mapping[str, Any], ignore: Sequence[str] = ("method", "seed")) -> None:
    """Write `config` to workdir/config.json at first use; later refuse a config that differs in anything but `ignore`.

    Names are dotted ("task.seed"), and to ignore "dpo" ignores all below it. Raises ValueError that lists what differs.
    """
    path = Path(workdir) / "config.json"
    with locked(Path(workdir) / "partial" / "config.lock", "config.json"):
        if not path.exists():
            return write_json(path, config)
    old, new = (without(flat(found), ignore) for found in (read_json(path), json.loads(encode(config, "the config"))))
    names = [name for name in sorted({*old, *new}) if old.get(name, "(absent)") != new.get(name, "(absent)")]
    if names:
        lines = [f"  {name}: wanted {old.get(name, '(absent)')!r}, got {new.get(name, '(absent)')!r}" for name in names]
        raise ValueError("\n".join([f"{workdir} was made by a different config; choose another workdir or set these back:", *lines]))


@contextmanager
def _aside() -> Iterator[Path]:
    """A folder for what a process that does not lead writes beside the others."""
    with tempfile.TemporaryDirectory(prefix="ilr-") as name:
        yield Path(name)


def _seal_up(partial: Path, stage: Stage, key: str, metrics: Mapping[str, Any] | None, about: Mapping[str, Any]) -> None:
    files = _synced_files(partial)
    digest = hashlib.sha256(encode([[name, entry["sha256"]] for name, entry in files.items()], "files")).hexdigest()
    manifest = {"name": stage.name, "key": key, "settings": stage.settings, "inputs": stage.inputs, "format": FORMAT}
    manifest |= {"metrics": metrics or {}, "files": files, "digest": digest}
    manifest = json.loads(encode(manifest, f"manifest of stage {stage.name!r}"))  # as it will be read: plain values, text keys
    write_json(partial / ABOUT, about)
    write_json(partial / MANIFEST, manifest | {"seal": _seal(manifest)})


def _commit(partial: Path, final: Path) -> None:
    """Make a sealed folder an artifact. Killed anywhere in here, the next run finds the seal and only repeats this."""
    with explained(final):
        if (partial / RESUME).exists():
            shutil.rmtree(partial / RESUME)
        final.parent.mkdir(parents=True, exist_ok=True)
        os.rename(partial, final)
        sync_folder(final.parent)
        sync_folder(partial.parent)


def _sealed(partial: Path, key: str) -> bool:
    """Whether a killed run left `partial` complete but for the rename; if its seal does not hold, nothing of it is kept."""
    if not (partial / MANIFEST).exists():
        return False
    try:
        _check(partial, key, hashes=True)
    except ValueError as error:
        logging.getLogger(__name__).warning("building again: %s", error)
        with explained(partial):
            shutil.rmtree(partial)
        return False
    return True


def _check(folder: Path, key: str | None, hashes: bool) -> dict[str, Any]:
    """The manifest of a folder whose files are all there, unchanged as far as sizes (and hashes) tell; else ValueError."""
    if not (folder / MANIFEST).exists():
        raise _damaged(folder, MANIFEST, "it is missing")
    try:
        manifest = read_json(folder / MANIFEST)
        sealed = manifest.pop("seal") == _seal(manifest)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise _damaged(folder, MANIFEST, f"it cannot be read ({error!r})") from error
    if not sealed or (key and manifest["key"] != key):
        raise _damaged(folder, MANIFEST, "it was changed")
    for name, entry in manifest["files"].items():
        size = (folder / name).stat().st_size if (folder / name).is_file() else None
        if size != entry["size"]:
            raise _damaged(folder, name, f"wanted {entry['size']} bytes, got {'no such file' if size is None else size}")
        if hashes and sha256_of(folder / name) != entry["sha256"]:
            raise _damaged(folder, name, "its bytes were changed (the SHA-256 differs)")
    return manifest


def _read_about(folder: Path) -> dict[str, Any]:
    """What `_about` noted; ValueError, naming the file, if it is damaged."""
    try:
        about = read_json(folder / ABOUT)
        return {name: about[name] for name in ("seconds", "packages")}
    except (ValueError, KeyError, TypeError, StorageError) as error:
        raise _damaged(folder, ABOUT, f"it cannot be read ({error!r})") from error


def _damaged(folder: Path, name: str, why: str) -> ValueError:
    return ValueError(f"{folder / name} is damaged: {why}. It was not used. Delete {folder} and start again: the stage is then rebuilt")


def _synced_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Sync every file and folder below `folder`; name -> sha256 and size, sorted, `resume/` left out."""
    files, folders = {}, [folder]
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name.split("/")[0] == RESUME:
            continue
        if path.is_symlink() or name in (MANIFEST, ABOUT) or not (path.is_dir() or path.is_file()):
            raise ValueError(f"wanted plain files not named {MANIFEST} or {ABOUT} from the stage, got {path}; write a copy or rename it")
        if path.is_dir():
            folders.append(path)
            continue
        with explained(path), open(path, "rb") as file:
            os.fsync(file.fileno())
        files[name] = {"sha256": sha256_of(path), "size": path.stat().st_size}
    for path in folders:
        with explained(path):
            sync_folder(path)
    return files


def _about(seconds: float, how: Mapping[str, str]) -> dict[str, Any]:
    """What differs between two runs with the same result; no hash covers it."""
    finished = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    noted = {"seconds": seconds, "finished": finished, "python": platform.python_version()}
    return noted | {"packages": dict(packages()), "how": dict(how)}


@cache
def packages() -> Mapping[str, str | None]:
    """The versions of the packages that results may depend on; None: not installed."""
    return {package: _version(package) for package in PACKAGES}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _seal(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(encode(manifest, MANIFEST)).hexdigest()
