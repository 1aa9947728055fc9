"""Starting as one of several processes, and going the same way in all: the engine is `jax.distributed`, and there is no scheduler of ours.

Every process runs the same program in the same order. What may turn out differently from one machine to the next (files that are there,
verdicts of programs and services) is asked of process 0 by `told`; what lies spread over them is brought together by `fetched`. On CPUs
the processes talk through gloo, JAX's default there (0.10).
"""

import itertools
import os
import pickle
import re
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, PartitionSpec
from orbax.checkpoint import multihost

LONGER = 60  # seconds that JAX may take beyond our own limit: its own aborts the process with a stack trace
HEARTBEAT = 60  # seconds without a sign of life after which a process counts as gone
STATUS = re.compile(r"(UNKNOWN|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED|INTERNAL): ")  # how XLA's errors begin
PATIENCE = 30 * 24 * 3600 * 1000  # milliseconds that a process waits for what process 0 finds out, from a judge, say
SHUTDOWN = 60  # seconds that a process which has ended waits for the others to end too

Told = TypeVar("Told")
_meetings = itertools.count()


def start(distributed: bool, address: str | None, count: int | None, number: int | None, timeout: float) -> None:
    """Join the other processes; must come before anything touches a device. Without any of the flags this is a process of its own.

    `address` (host:port of process 0), `count` and `number` belong together; with `distributed` alone JAX asks TPU metadata, SLURM,
    MPI or Kubernetes. Raises ValueError for flags that cannot be, where JAX finds or can start nothing, and if the processes have not
    all met after `timeout` seconds.
    """
    _check(address, count, number, timeout)
    if not distributed and address is None:
        return
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM away from `interruption`
    found = None if address is None else "deactivate"  # with an address, JAX shall look for nothing else
    missing = f"process {number} of {count} at {address}" if address else "a process of the cluster that JAX detected"
    message = (
        f"{missing} did not meet all the others within {timeout:g} s; start every process, see that they reach port and host of process 0, "
        "or raise --startup_timeout"
    )
    try:
        if number == 0 and address:
            _can_listen(int(address.rpartition(":")[2]))
        join = partial(jax.distributed.initialize, address, count, number, cluster_detection_method=found)
        limits = {"heartbeat_timeout_seconds": HEARTBEAT, "shutdown_timeout_seconds": SHUTDOWN}
        _waited(partial(join, initialization_timeout=int(timeout) + LONGER, **limits), timeout)
    except TimeoutError as error:
        raise ValueError(message) from error
    except (RuntimeError, ValueError, OSError) as error:
        raise ValueError(f"could not start as one of several processes: {_explained(error)}") from error


def _check(address: str | None, count: int | None, number: int | None, timeout: float) -> None:
    """Raise one ValueError with all that is wrong with the flags."""
    given = {"--coordinator_address": address, "--num_processes": count, "--process_id": number}
    absent = [name for name, value in given.items() if value is None]
    faults = []
    if 0 < len(absent) < len(given):
        faults.append(f"wanted {', '.join(given)} together, got no {' and no '.join(absent)}; or --distributed alone")
    if address is not None and not re.fullmatch(r"\S+:\d+", address):
        faults.append(f"--coordinator_address: wanted host:port of process 0, got {address!r}")
    elif address is not None and int(address.rpartition(":")[2]) > 65535:
        faults.append(f"--coordinator_address: wanted a port up to 65535, got {address!r}")
    if count is not None and count < 1:
        faults.append(f"--num_processes: wanted at least 1, got {count}")
    if number is not None and not 0 <= number < (count or sys.maxsize):
        faults.append(f"--process_id: wanted 0 to --num_processes - 1, got {number}")
    if not 0 < timeout < float("inf"):
        faults.append(f"--startup_timeout: wanted more than 0 seconds, got {timeout:g}")
    if faults:
        raise ValueError("; ".join(faults))


def _can_listen(port: int) -> None:
    """Raise OSError if process 0 cannot listen on its port: JAX 0.10 dies of that without a word."""
    both = socket.has_dualstack_ipv6()
    socket.create_server(("", port), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both).close()


def _explained(error: Exception) -> str:
    if "should be defined" in str(error) or "must be defined" in str(error):
        return (
            "--distributed: wanted TPU metadata, SLURM, MPI or Kubernetes to tell which processes there are, found none; "
            "give --coordinator_address, --num_processes and --process_id"
        )
    return f"{error}{'; choose another port' if isinstance(error, OSError) else ''}"


def leads() -> bool:
    """Whether this is process 0, which alone writes what all of them see."""
    return jax.process_index() == 0


class Lost(OSError):
    """Another process is gone, or cannot be reached any more."""


@contextmanager
def together() -> Iterator[None]:
    """What all processes do together: one that fails ends on the spot, and the others, as they talk to it, find out and raise Lost.

    Where they wait for it in JAX's coordination service, that ends them, with a message of its own, after HEARTBEAT seconds.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:  # which of them XLA's status becomes depends on where it is noticed
        if jax.process_count() == 1 or not STATUS.match(str(error)):
            raise
        reason = str(error).splitlines()[0][:200]
        raise Lost(
            f"process {jax.process_index()} lost the others, or failed itself ({reason}); see what they said, and start all of them again"
        ) from error
    except Exception as error:
        if jax.process_count() > 1 and not isinstance(error, OSError):  # the way out of Python would wait for the others
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        raise


def told(ask: Callable[[], Told]) -> Told:
    """What `ask()` is in process 0, in all processes, which must all come here.

    A process that comes first waits for the others. The answer has to be one that can be pickled. What `ask` raises is raised in process 0;
    the others raise Lost, which says what it was.
    """
    if jax.process_count() == 1:
        return ask()
    if not leads():
        _meet()
        answer, failed = pickle.loads(_sent(b""))
        if failed:
            raise Lost(f"process 0 failed: {failed}")
        return answer
    try:
        answer = ask()
        data = pickle.dumps((answer, ""))
    except Exception as error:
        _meet()
        _sent(pickle.dumps((None, f"{type(error).__name__}: {error}")))
        raise
    _meet()
    _sent(data)
    return answer


def alike(facts: Mapping[str, Any], remedy: str) -> None:
    """See that all processes, which must all come here, have the same facts. ValueError in all if not; one that differs says in what."""
    if jax.process_count() == 1:
        return
    wanted = told(lambda: facts)
    names = [name for name in sorted({*wanted, *facts}) if wanted.get(name, "(absent)") != facts.get(name, "(absent)")]
    apart = np.flatnonzero(multihost_utils.process_allgather(np.array(bool(names)))).tolist()
    here = "; ".join(f"{name}: wanted {wanted.get(name, '(absent)')!r}, got {facts.get(name, '(absent)')!r}" for name in names)
    if apart:
        raise ValueError(f"process {', '.join(map(str, apart))} differs from process 0{f' ({here})' if here else ''}; {remedy}")


def _meet() -> None:
    """Wait for the other processes in JAX's coordination service, as long as they live; waiting on devices has a limit (gloo: 30 s)."""
    _waited(partial(multihost.get_barrier_sync_fn(), key=f"told-{next(_meetings)}", timeout_ms=PATIENCE))


def _waited(wait: Callable[[], Told], seconds: float | None = None) -> Told:
    """What `wait()` gives: on a thread, for while this one waits in C++ code no signal would be noticed. TimeoutError after `seconds`."""
    done = Future[Told]()

    def work() -> None:
        try:
            done.set_result(wait())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return done.result(seconds)


def _sent(data: bytes) -> bytes:
    """The bytes of process 0; sent in sizes that are powers of two, so that few programs are compiled."""
    size = int(multihost_utils.broadcast_one_to_all(np.array(len(data), np.int32)))
    room = np.zeros(1 << size.bit_length(), np.uint8)
    room[: len(data)] = np.frombuffer(data, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(room), np.uint8)[:size].tobytes()


def fetched(tree: Any) -> Any:
    """The tree's arrays whole, as NumPy's, in every process; what is spread over processes is gathered on every device on the way."""
    spread = lambda x: isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated)
    return jax.device_get(jax.tree.map(lambda x: multihost_utils.process_allgather(x, tiled=True) if spread(x) else x, tree))


def voting() -> Callable[..., list[bool]]:
    """`ask(after, wish, ...)` tells which of the wishes any process has: the same answer in all of them, if all ask equally often.

    With several processes the answer is to the question before, so that nobody waits for the step that is under way; the first is no.
    `after` is an array that the step computes, whole on every device: where a lost process made the step fail, nothing is asked. Otherwise
    the question would reach a process that still waits for its part of the step, and gloo aborts on that, without a word of ours.
    """
    if jax.process_count() == 1:
        return lambda after, *wishes: list(wishes)
    mesh = Mesh(np.array(jax.devices()), "all")
    spread, whole = (jax.NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("all",), ()))
    held = jax.jit(lambda wishes, after: wishes | (after != after).any())  # the wishes, once `after` is there
    any_of = jax.jit(lambda wishes: wishes.any(axis=0), out_shardings=whole)
    asked: list[jax.Array] = []

    def ask(after: jax.Array, *wishes: bool) -> list[bool]:
        here = [held(np.array([wishes]), shard.data) for shard in after.addressable_shards]
        asked.append(any_of(jax.make_array_from_single_device_arrays((mesh.size, len(wishes)), spread, here)))
        return np.asarray(asked.pop(0)).tolist() if len(asked) > 1 else [False] * len(wishes)

    return ask
