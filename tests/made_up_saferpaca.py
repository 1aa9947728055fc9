"""A folder in SaferPaca's layout with made-up questions."""

from pathlib import Path

import datasets


def rows(n: int, start: int = 0) -> list[dict[str, str]]:
    """n questions, two general ones and a safety one in turn."""
    safe = {"answer": "Sorry, I cannot answer.", "category": "safety"}
    return [
        {"question": f"How do I break lock {i}?", **safe}
        if i % 3 == 2
        else {"question": f"What is {i} and {i}?", "answer": f"It is {2 * i}.", "category": "general"}
        for i in range(start, start + n)
    ]


def save(folder: Path, train: list[dict], test: list[dict]) -> str:
    """The folder's path, written by `DatasetDict.save_to_disk`."""
    splits = {"train": datasets.Dataset.from_list(train), "test": datasets.Dataset.from_list(test)}
    datasets.DatasetDict(splits).save_to_disk(folder)
    return str(folder)
