"""Splits that `datasets.save_to_disk` wrote: read, and their columns checked.

Not here: what rows mean (each task) and the Hugging Face Hub.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ilr_jax.files import read_json


def split(path: str, name: str, columns: Sequence[str]) -> Any:
    """The rows of one split of the DatasetDict saved in `path`. Raises ValueError for another folder, split or columns, and for no rows."""
    return checked(_saved(_folder(Path(path), name)), f"{path}, {name}", columns)


def checked(rows: Any, where: str, columns: Sequence[str]) -> Any:
    """The rows; ValueError if columns are missing or there are none."""
    if missing := [column for column in columns if column not in rows.column_names]:
        raise ValueError(f"{where}: wanted columns {columns}, missing {missing}, found {rows.column_names}; rename them")
    if not len(rows):
        raise ValueError(f"{where}: the split is empty; wanted at least one row")
    return rows


def _saved(folder: Path) -> Any:
    """One split that `save_to_disk` wrote; `datasets` is imported late because not every task needs it."""
    import datasets

    try:
        return datasets.load_from_disk(str(folder))
    except (OSError, ValueError) as error:  # pyarrow's errors among them
        raise ValueError(f"{folder} cannot be read ({error}); if it is damaged, save it again") from error


def _field(path: Path, name: str) -> Any:
    found = read_json(path)
    if not isinstance(found, dict) or name not in found:
        raise ValueError(f"{path}: wanted an object with {name!r}, got {found!r:.80}; the folder is damaged, save it again")
    return found[name]


def _folder(path: Path, split: str) -> Path:
    """The folder of one split of a saved DatasetDict."""
    listing = path / "dataset_dict.json"
    if not listing.is_file():
        raise ValueError(f"task.path={str(path)!r}: wanted a folder that DatasetDict.save_to_disk wrote, with splits train and test")
    if split not in (found := _field(listing, "splits")):
        raise ValueError(f"{path}: no split {split!r}; found {', '.join(found)}")
    # `datasets` writes an empty split without a data file, and then fails to read it.
    if not _field(path / split / "state.json", "_data_files"):
        raise ValueError(f"{path}, {split}: the split is empty; wanted at least one row")
    return path / split
