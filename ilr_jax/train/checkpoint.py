"""Saving: the state of a run that may be killed (orbax, under `folder/resume/<step>`), and trained weights as one safetensors file.

Not here: when to save (`loop`) and what a stage's artefact is (`store`). Orbax 0.12 is safe against crashes but restores flipped bits in
silence, so a SHA-256 manifest of our own stands beside every save and is checked before anything is read.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from safetensors import SafetensorError
from safetensors.numpy import load_file
from safetensors.numpy import save as safetensors_bytes

from ilr_jax import files, hosts
from ilr_jax.sharding import Layout, paths, put_weights

KEPT = 2
MANIFEST = "manifest.json"


class Damaged(ValueError):
    """A saved file is not what was written; the message names it."""


def _names(tree: Any) -> dict[str, Any]:
    """Leaves of a tree by dotted path."""
    return dict(zip(jax.tree.leaves(paths(tree)), jax.tree.leaves(tree), strict=True))


def _described(tree: Any) -> dict[str, list]:
    return {name: [list(leaf.shape), str(leaf.dtype)] for name, leaf in _names(tree).items()}


def _compare(found: Mapping[str, Any], wanted: Mapping[str, Any], where: Path) -> None:
    problems = [f"{name}: wanted {wanted.get(name)}, got {found.get(name)}" for name in sorted(found.keys() | wanted.keys())]
    problems = [p for p, name in zip(problems, sorted(found.keys() | wanted.keys()), strict=True) if found.get(name) != wanted.get(name)]
    if problems:
        raise ValueError(f"{where} holds other arrays than this run has; use another folder, or delete it:\n  " + "\n  ".join(problems))


def _steps(resume: Path) -> list[int]:
    """Steps that were saved completely, newest first."""
    return sorted((int(path.name) for path in resume.glob("*") if path.name.isdigit()), reverse=True)


def _hashes(folder: Path) -> dict[str, str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {str(path.relative_to(folder)): files.sha256_of(path) for path in paths}


class Saver:
    """The saves of one run in `folder`, written while it goes on: when `begin` returns, the arrays are on the host and may be donated.

    All processes use it alike. One save is under way at a time; leaving the block waits for it.
    """

    def __init__(self, folder: Path):
        self._resume, self._writer = (folder / "resume").resolve(), ocp.StandardCheckpointer()
        self._pool = ThreadPoolExecutor(1)
        self._under_way: Future[None] | None = None

    def __enter__(self) -> "Saver":
        logging.getLogger("absl").addFilter(_not_raised_too)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        try:
            if kind is None:
                self.finish()
        finally:
            self._pool.shutdown()
            self._writer.close()
            logging.getLogger("absl").removeFilter(_not_raised_too)
            if self._under_way and (error := self._under_way.exception()):
                logging.getLogger(__name__).warning("the save that was under way is lost: %s", error)

    def begin(self, step: int, tree: Any, note: Mapping[str, Any]) -> None:
        """Commit `tree` (arrays) and `note` (JSON) as the state after `step` steps; the step before it stays, older ones go.

        All or nothing: the numbered folder appears by a rename when its files and manifest are on the disk. StorageError if the disk
        refuses, or refused the save before.
        """
        self.finish()
        target = self._resume / str(step)
        half = target.with_name(f"{step}.half")
        body = {"step": step, "note": note, "arrays": _described(tree)}
        hosts.told(lambda: _cleared(target, half))
        with _whole(target, half):
            self._writer.save(half / "tree", tree)
        self._under_way = self._pool.submit(self._committed, half, target, body)

    def finish(self) -> None:
        """Wait until the save that is under way is committed."""
        done, self._under_way = self._under_way, None
        if done is None:
            return
        if done.done():
            done.result()  # so that a process whose own part failed says that, and not that it lost the others
        hosts.told(done.result)
        done.result()

    def _committed(self, half: Path, target: Path, body: Mapping[str, Any]) -> None:
        """On a thread: orbax is done in process 0 once it is in all."""
        with _whole(target, half):
            self._writer.wait_until_finished()
            if hosts.leads():
                _commit(half, target, body)


@contextmanager
def _whole(target: Path, half: Path) -> Iterator[None]:
    """Write `target`, or leave nothing of it, which would keep a full disk full; what the disk says becomes a StorageError."""
    try:
        with files.explained(target):
            try:
                yield
            except ValueError as error:  # so orbax reports what the system said
                number = re.search(r"os_error_code='(\d+)'", str(error))
                if number is None:
                    raise
                raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
    except BaseException:
        if hosts.leads():
            shutil.rmtree(half, ignore_errors=True)
        raise


def _not_raised_too(record: logging.LogRecord) -> bool:
    """Orbax tells an error in absl's log, with its traceback, that it raises as well."""
    return record.levelno < logging.ERROR or "orbax" not in record.pathname


def _cleared(target: Path, half: Path) -> None:
    for left_over in [target, *target.parent.glob("*.half")]:
        shutil.rmtree(left_over, ignore_errors=True)
    with files.explained(target):
        half.mkdir(parents=True)


def _commit(half: Path, target: Path, body: Mapping[str, Any]) -> None:
    text = json.dumps({**body, "files": _hashes(half)}, sort_keys=True)
    files.write_bytes(half / MANIFEST, f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}".encode())
    os.replace(half, target)
    files.sync_folder(target.parent)
    for old in _steps(target.parent)[KEPT:]:
        shutil.rmtree(target.with_name(str(old)))


def _verified(folder: Path) -> dict[str, Any]:
    """The manifest of one save, after every file has been compared with it; Damaged names the first that differs."""
    try:
        digest, text = (folder / MANIFEST).read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise Damaged(f"{folder / MANIFEST} cannot be read ({error})") from error
    if hashlib.sha256(text.encode()).hexdigest() != digest:
        raise Damaged(f"{folder / MANIFEST} was changed after it was written")
    body = json.loads(text)
    found = _hashes(folder)
    for name in sorted(found.keys() | body["files"].keys()):
        if found.get(name) != body["files"].get(name):
            what = "is missing" if name not in found else "was changed after it was written" if name in body["files"] else "was added"
            raise Damaged(f"{folder / name} {what}")
    return body


def restore(folder: Path, like: Any) -> tuple[int, Any, dict[str, Any]] | None:
    """Step, tree and note of the newest undamaged save, the arrays placed as those of `like`; None where there is none.

    The arrays of `like` are deleted once such a save is found: what is read takes their room.
    Logs a warning that names the file for each damaged save that is passed over. ValueError where a save has other names, shapes or dtypes.
    """
    resume = (folder / "resume").resolve()
    body = hosts.told(lambda: _newest(resume))
    if body is None:
        return None
    path = resume / str(body["step"])
    _compare(body["arrays"], _described(like), path)
    blank = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
    for leaf in jax.tree.leaves(like):
        leaf.delete()
    with ocp.StandardCheckpointer() as checkpointer:
        return body["step"], checkpointer.restore(path / "tree", blank), body["note"]


def _newest(resume: Path) -> dict[str, Any] | None:
    """What the newest undamaged save says of itself."""
    for step in _steps(resume):
        try:
            return _verified(resume / str(step))
        except Damaged as error:
            logging.getLogger(__name__).warning("%s; going back to the save before it", error)
    return None


def save_tree(path: Path, tree: Any, note: str | None = None) -> None:
    """Write a nested dict of arrays as one safetensors file with dotted names; the same tree gives the same bytes.

    `note` goes into the header (one key: the order of several is random). StorageError if the disk refuses.
    """
    arrays = {name: np.ascontiguousarray(hosts.fetched(leaf)) for name, leaf in _names(tree).items()}
    hosts.told(lambda: files.write_bytes(path, safetensors_bytes(arrays, None if note is None else {"note": note})))


def load_tree(path: Path, like: Any, layout: Layout | None = None) -> Any:
    """The tree that `save_tree` wrote, with the structure of `like` (arrays, or shapes from `jax.eval_shape`), split as in `layout`.

    Raises ValueError for a file that is no safetensors file, and one for all names, shapes and dtypes that differ.
    """
    try:
        arrays = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"wanted trained weights in {path}, got: {error}; delete it and train again") from error
    _compare(_described(arrays), _described(like), path)
    return put_weights(layout, jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in _names(like)]))
