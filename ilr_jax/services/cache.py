"""Answers that were paid for, on disk: one file of JSON lines that is only ever appended to, shared by runs and processes.

Not here: what a key is made of (`endpoint`). A kill loses nothing but the line that is being written, which then counts as not there; a
power cut loses what was put in the last second.
"""

import fcntl
import json
import logging
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ilr_jax.files import encode, explained

SYNC_SECONDS = 1.0


class Cache:
    """Key -> value, as JSON lines in `path`; safe to use from threads, and from several processes at a time."""

    def __init__(self, path: Path):
        self.path = path
        self._values: dict[str, Any] = {}
        self._read_to = 0
        self._synced = time.monotonic()
        self._lock = threading.Lock()

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def refresh(self) -> None:
        """Read what was appended since the last time, by whichever process. Lines that are torn or damaged are left out, with a warning."""
        with self._lock, explained(self.path, "read"):
            if not self.path.exists():
                return
            with open(self.path, "rb") as file:
                file.seek(self._read_to)
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]  # the rest is being written, or was when its writer was killed
            self._read_to += len(whole)
            lines = [line for line in whole.split(b"\n") if line]
            found = [entry for line in lines if (entry := _entry(line)) is not None]
        self._values.update(found)
        if len(found) < len(lines):
            logging.getLogger(__name__).warning("%s: %d damaged lines are not used", self.path, len(lines) - len(found))

    def put(self, values: Mapping[str, Any]) -> None:
        """Append `values`. StorageError if the disk refuses."""
        lines = b"".join(encode({"key": key, "value": value}, "an answer") + b"\n" for key, value in values.items())
        with self._lock, explained(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "ab+") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                size = file.seek(0, os.SEEK_END)
                if size:
                    file.seek(size - 1)
                    lines = lines if file.read(1) == b"\n" else b"\n" + lines  # ends the torn line, which no reader takes for an answer
                file.write(lines)
                file.flush()
                if time.monotonic() - self._synced > SYNC_SECONDS:  # after each answer it would be slower than the endpoint
                    os.fsync(file.fileno())
                    self._synced = time.monotonic()
            self._values.update(values)


def _entry(line: bytes) -> tuple[str, Any] | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return (found["key"], found["value"]) if isinstance(found, dict) and found.keys() == {"key", "value"} else None
