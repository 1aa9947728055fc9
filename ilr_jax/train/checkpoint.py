"""Saving: the state of a run that may be killed (orbax, under `folder/resume/<step>`), and trained weights as one safetensors file.

Not here: when to save (`loop`), which saves there are and whether they are undamaged (`saves`), and what a stage's artefact is (`store`).
"""

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from safetensors import SafetensorError
from safetensors.numpy import load_file
from safetensors.numpy import save as safetensors_bytes

from ilr_jax import files, hosts
from ilr_jax.files import StorageError
from ilr_jax.mirror import Mirror
from ilr_jax.sharding import Layout, paths, put_weights
from ilr_jax.train.saves import KEEP, Saves

HERE = Mirror(".")  # of folders that no bucket stands behind


def _names(tree: Any) -> dict[str, Any]:
    """Leaves of a tree by dotted path."""
    return dict(zip(jax.tree.leaves(paths(tree)), jax.tree.leaves(tree), strict=True))


def _described(tree: Any) -> dict[str, list]:
    return {name: [list(leaf.shape), str(leaf.dtype)] for name, leaf in _names(tree).items()}


def _compare(found: Mapping[str, Any], wanted: Mapping[str, Any], where: str | os.PathLike[str]) -> None:
    problems = [f"{name}: wanted {wanted.get(name)}, got {found.get(name)}" for name in sorted(found.keys() | wanted.keys())]
    problems = [p for p, name in zip(problems, sorted(found.keys() | wanted.keys()), strict=True) if found.get(name) != wanted.get(name)]
    if problems:
        raise ValueError(f"{where} holds other arrays than this run has; use another folder, or delete it:\n  " + "\n  ".join(problems))


class Saver:
    """The saves of one run in `folder`, written while it goes on: when `begin` returns, the arrays are on the host and may be donated.

    All processes use it alike. One save is under way at a time; leaving the block waits for it.
    """

    def __init__(self, folder: Path, mirror: Mirror = HERE, keep: int = KEEP):
        """With a bucket, arrays go straight there, from every process, and the files of `folder` with each save; `keep` saves stay."""
        self._folder, self._mirror = folder, mirror
        self._saves, self._writer = _saves(folder, mirror, keep), ocp.StandardCheckpointer()
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
        """Commit `tree` (arrays) and `note` (JSON) as the state after `step` steps; older saves go, but those to keep.

        All or nothing: a save counts when its manifest is written, last. StorageError if the disk refuses, or refused the save before.
        """
        self.finish()
        body = {"note": note, "arrays": _described(tree)}
        hosts.told(lambda: self._make_room(step))
        with self._whole(step):
            self._writer.save(self._saves.of(step) / "tree", tree)
        self._under_way = self._pool.submit(self._committed, step, body)

    def _make_room(self, step: int) -> None:
        self._saves.clear(step)
        self._mirror.push_files(self._folder)  # a save must never be ahead of them

    def finish(self) -> None:
        """Wait until the save that is under way is committed."""
        done, self._under_way = self._under_way, None
        if done is None:
            return
        if done.done():
            done.result()  # so that a process whose own part failed says that, and not that it lost the others
        hosts.told(done.result)
        done.result()

    def _committed(self, step: int, body: Mapping[str, Any]) -> None:
        """On a thread: orbax is done in process 0 once it is in all."""
        with self._whole(step):
            self._writer.wait_until_finished()
            if hosts.leads():
                self._saves.commit(step, body)

    @contextmanager
    def _whole(self, step: int) -> Iterator[None]:
        """Write a save, or leave nothing of it, which would keep a full disk full; what the disk says becomes a StorageError."""
        try:
            with files.explained(self._saves.of(step)):
                try:
                    yield
                except ValueError as error:  # so orbax reports what the system said
                    number = re.search(r"os_error_code='(\d+)'", str(error))
                    if number is None:
                        raise
                    raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
        except BaseException:
            if hosts.leads():
                with suppress(StorageError):  # the error that is told is the first
                    self._saves.remove(step)
            raise


def _saves(folder: Path, mirror: Mirror, keep: int = KEEP) -> Saves:
    """Where process 0 has the saves of the run in `folder`, in all processes."""
    return Saves(hosts.told(lambda: mirror.twin(folder / "resume")), keep)


def _not_raised_too(record: logging.LogRecord) -> bool:
    """Orbax tells an error in absl's log, with its traceback, that it raises as well."""
    return record.levelno < logging.ERROR or "orbax" not in record.pathname


def restore(folder: Path, like: Any, mirror: Mirror = HERE) -> tuple[int, Any, dict[str, Any]] | None:
    """Step, tree and note of the newest undamaged save, the arrays placed as those of `like`; None where there is none.

    The arrays of `like` are deleted once such a save is found: what is read takes their room.
    Logs a warning that names the file for each damaged save that is passed over. ValueError where a save has other names, shapes or dtypes.
    """
    saves = _saves(folder, mirror)
    body = hosts.told(saves.newest)
    if body is None:
        return None
    path = saves.of(body["step"])
    _compare(body["arrays"], _described(like), path)
    blank = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
    for leaf in jax.tree.leaves(like):
        leaf.delete()
    with ocp.StandardCheckpointer() as checkpointer:
        return body["step"], checkpointer.restore(path / "tree", blank), body["note"]


def save_tree(path: Path, tree: Any, note: str | None = None) -> None:
    """Write a nested dict of arrays as one safetensors file with dotted names; the same tree gives the same bytes.

    `note` goes into the header (one key: the order of several is random). StorageError if the disk refuses.
    """
    arrays = {name: np.ascontiguousarray(hosts.fetched(leaf)) for name, leaf in _names(tree).items()}
    hosts.told(lambda: files.write_bytes(path, safetensors_bytes(arrays, None if note is None else {"note": note})))


def join(parts: Sequence[Path], path: Path) -> None:
    """Write files of `save_tree` with the same names, K_1, K_2, ... adapters, as one of them all, side by side; in one process.

    ValueError for what is no safetensors file, StorageError if the disk refuses.
    """
    arrays = [_loaded(part) for part in parts]
    joined = {name: np.concatenate([each[name] for each in arrays]) for name in arrays[0]}
    files.write_bytes(path, safetensors_bytes(joined))


def load_tree(path: Path, like: Any, layout: Layout | None = None) -> Any:
    """The tree that `save_tree` wrote, with the structure of `like` (arrays, or shapes from `jax.eval_shape`), split as in `layout`.

    Raises ValueError for a file that is no safetensors file, and one for all names, shapes and dtypes that differ.
    """
    arrays = _loaded(path)
    _compare(_described(arrays), _described(like), path)
    return put_weights(layout, jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in _names(like)]))


def _loaded(path: Path) -> dict[str, np.ndarray]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"wanted trained weights in {path}, got: {error}; delete it and train again") from error
