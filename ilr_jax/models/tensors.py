"""Folders of safetensors files: tensors by name, read piece by piece and written whole or not at all. Knows no model and no JAX.

The files may come from strangers: an index may name only plain files of its own folder, and a damaged file is an error that names it.
Layout of a folder: `huggingface_hub` 1.x (`STEM.safetensors`, or `STEM.safetensors.index.json` and the files that it names).
"""

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  numpy learns the name "bfloat16" from it, which safetensors asks numpy for
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ilr_jax import files

FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class Stored:
    """A tensor that lies in a file; `stored[index]` reads that piece of it, `index` a tuple of slices."""

    file: Path
    shape: tuple[int, ...]
    kind: str
    view: Any

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        return self.view[index]


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of the folder; ValueError where the file is missing, is not JSON or holds something else."""
    if not path.exists():
        raise ValueError(f"{path} is missing; a folder in Hugging Face format was wanted")
    value = files.read_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path}: wanted a JSON object, got {type(value).__name__}")
    return value


def _inside(folder: Path, name: Any) -> Path:
    """The file `name` of the folder. The Hub's cache links a snapshot's files to the blobs beside it, so those count as inside."""
    root = folder.resolve()
    root = root.parent.parent if root.parent.name == "snapshots" else root
    plain = isinstance(name, str) and name == os.path.basename(name) and "\0" not in name
    path = folder / name if plain else folder
    if not plain or not path.resolve().is_relative_to(root):
        raise ValueError(f"{folder}: {name!r} is not a plain file name inside the folder; weight files must lie beside their index")
    if not path.is_file():
        raise ValueError(f"{path} is missing or not a regular file; download the folder again, or choose a model that has it")
    return path


def _files(folder: Path, stem: str) -> list[Path]:
    index = folder / f"{stem}.safetensors.index.json"
    if not index.exists():
        if not (folder / f"{stem}.safetensors").exists() and (other := sorted(folder.glob(f"*{stem}*.bin"))):
            raise ValueError(f"{folder}: wanted {stem}.safetensors, found {other[0].name}; save the model anew with save_pretrained")
        return [_inside(folder, f"{stem}.safetensors")]
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise ValueError(f"{index}: wanted an object 'weight_map' from tensor to file name, got {names!r:.80}")
    return list(dict.fromkeys(_inside(folder, name) for name in names.values()))


def catalogue(folder: Path, stem: str = "model") -> dict[str, Stored]:
    """Every tensor of the folder's `stem` files by name, nothing read yet.

    Raises ValueError for a missing, damaged or foreign file, and for a tensor that two files hold.
    """
    found: dict[str, Stored] = {}
    for file in _files(folder, stem):
        try:
            handle = safe_open(file, framework="numpy")
            views = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118  the handle is no mapping
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file} is not a complete safetensors file ({error}); download it again") from None
        twice = sorted(views.keys() & found.keys())
        if twice:
            raise ValueError(f"{file} and {found[twice[0]].file} both hold {', '.join(twice)}")
        found |= {name: Stored(file, tuple(view.get_shape()), view.get_dtype(), view) for name, view in views.items()}
    return found


def check(folder: Path, wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, Stored]) -> None:
    """ValueError that lists every missing, extra and misshapen tensor, and every one that does not hold floats."""
    problems = [f"{name}: missing, wanted shape {wanted[name]}" for name in wanted if name not in found]
    for name, tensor in found.items():
        if name not in wanted:
            problems.append(f"{name}: not part of this model, got shape {tensor.shape}")
        elif tensor.shape != wanted[name]:
            problems.append(f"{name}: wanted shape {wanted[name]}, got {tensor.shape}")
        elif tensor.kind not in FLOATS:
            problems.append(f"{name}: wanted one of {', '.join(FLOATS)}, got {tensor.kind}")
    if problems:
        raise ValueError(f"the tensors in {folder} are not those that its configuration asks for:\n  " + "\n  ".join(problems))


def write(folder: Path, stem: str, tensors: Iterable[tuple[str, np.ndarray]], limit: int = 5 * 10**9) -> None:
    """Write `tensors` as one file, or as several of at most `limit` bytes with an index; at most one file's tensors are held at once."""
    groups: list[dict[str, int]] = []
    pending: dict[str, np.ndarray] = {}

    def flush() -> None:
        """Write what is pending as a file, which gets its name once their number is known."""
        groups.append({name: array.nbytes for name, array in pending.items()})
        path = folder / f"{len(groups)}.part"
        path.touch()
        mode = path.stat().st_mode
        # One metadata key only: with several, the bytes of the file would depend on the process.
        save_file(pending, path, metadata={"format": "pt"})
        path.chmod(mode)  # as any new file's: safetensors lets nobody else read what it writes
        pending.clear()

    for name, array in tensors:
        if pending and sum(x.nbytes for x in pending.values()) + array.nbytes > limit:
            flush()
        pending[name] = np.ascontiguousarray(array)
    flush()
    names = [f"{stem}-{i + 1:05d}-of-{len(groups):05d}.safetensors" for i in range(len(groups))]
    names = names if len(names) > 1 else [f"{stem}.safetensors"]
    for i, name in enumerate(names):
        os.replace(folder / f"{i + 1}.part", folder / name)
    if len(names) > 1:
        places = {tensor: name for name, group in zip(names, groups, strict=True) for tensor in group}
        total = sum(sum(group.values()) for group in groups)
        files.write_json(folder / f"{stem}.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": places})


@contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """A folder to fill, which becomes `folder` when the block ends well and vanishes when it does not.

    Raises ValueError where `folder` exists and is not an empty folder.
    """
    target = Path(folder).absolute()
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ValueError(f"{target} exists already and is not overwritten; remove it or choose another folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        yield part
        for path in (*part.iterdir(), part):  # a file is synced as a folder is
            files.sync_folder(path)
        os.replace(part, target)
        files.sync_folder(target.parent)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
