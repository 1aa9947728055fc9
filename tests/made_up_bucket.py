"""An emulator of Google's storage on this machine, at which gcsfs, orbax and tensorstore of a process and its children can look."""

import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

NAME = "made-up"


@contextmanager
def emulated() -> Iterator[None]:
    """`gs://made-up/...` is there."""
    from gcp_storage_emulator import server
    from gcp_storage_emulator.handlers import objects

    for _, verbs in server.HANDLERS:
        verbs.update({verb: partial(_dated, answer) for verb, answer in verbs.items() if answer in (objects.get, objects.download)})
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
    running = server.create_server("localhost", port, in_memory=True, default_bucket=NAME)
    running.start()
    ours = dict.fromkeys(("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL"), f"http://localhost:{port}")
    ours["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"  # or it asks Google what kind of bucket this is
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        running.stop()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _dated(answer: Callable[..., None], request: Any, response: Any, storage: Any, *rest: Any, **named: Any) -> None:
    """Tell an object's generation with its bytes, as Google does and the emulator (2026.7) does not; tensorstore needs it."""
    answer(request, response, storage, *rest, **named)
    if response.status < 300:
        response["x-goog-generation"] = storage.get_file_obj(request.params["bucket_name"], request.params["object_id"])["generation"]
