"""Folders that `datasets.DatasetDict.save_to_disk` wrote: one split, with every fault of the folder told in words.

Not here: what the columns mean (the tasks). From: the layout that `datasets` 4 writes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ilr_jax.files import read_json


def is_saved(folder: Path) -> bool:
    """Whether a DatasetDict was saved there."""
    return (folder / "dataset_dict.json").is_file()


def read(folder: Path, split: str, columns: Sequence[str]) -> Any:
    """The `datasets.Dataset` of one split, not empty, with these columns among others. ValueError for what is missing or damaged."""
    import datasets  # late, because only tasks with such a folder need it

    part = _part(folder, split)
    try:
        rows = datasets.load_from_disk(str(part))
    except (OSError, ValueError) as error:  # pyarrow's errors among them
        raise ValueError(f"{part} cannot be read ({error}); if it is damaged, save it again") from error
    return checked(rows, f"{folder}, {split}", columns)


def checked(rows: Any, where: str, columns: Sequence[str]) -> Any:
    """The rows, if there are some and they have the columns; else ValueError."""
    if missing := [column for column in columns if column not in rows.column_names]:
        raise ValueError(f"{where}: wanted columns {tuple(columns)}, missing {missing}, found {rows.column_names}; rename them")
    if not len(rows):
        raise ValueError(f"{where}: the split is empty; wanted at least one row")
    return rows


def _part(folder: Path, split: str) -> Path:
    """The folder of one split of a saved DatasetDict."""
    if not is_saved(folder):
        raise ValueError(f"task.path={str(folder)!r}: wanted a folder that DatasetDict.save_to_disk wrote, with splits train and test")
    if split not in (found := _field(folder / "dataset_dict.json", "splits")):
        raise ValueError(f"{folder}: no split {split!r}; found {', '.join(found)}")
    # `datasets` writes an empty split without a data file, and then fails to read it.
    if not _field(folder / split / "state.json", "_data_files"):
        raise ValueError(f"{folder}, {split}: the split is empty; wanted at least one row")
    return folder / split


def _field(path: Path, name: str) -> Any:
    found = read_json(path)
    if not isinstance(found, dict) or name not in found:
        raise ValueError(f"{path}: wanted an object with {name!r}, got {found!r:.80}; the folder is damaged, save it again")
    return found[name]
