"""Runs an experiment, or continues it: flags and one call.

Example: python -m ilr_jax.main --config=configs/quickstart.py --config.method=ilr --workdir=runs/quickstart
Every field of the config is a flag, `--config.rounds=3`; a misspelt one is an error that names the nearest.
"""

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from ilr_jax import interruption, progress
from ilr_jax.types import Config

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment: a file of configs/, any field of which may be overridden.")
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the experiment, or gs://BUCKET/NAME; the same command continues what was interrupted."
)
TRACEBACK = flags.DEFINE_bool("traceback", False, "On an error, show where in the code it was raised, not the message alone.")
DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "One of several processes; JAX finds the others: TPU metadata, SLURM, MPI, Kubernetes."
)
ADDRESS = flags.DEFINE_string("coordinator_address", None, "host:port of process 0, where JAX finds nothing; with the next two.")
COUNT = flags.DEFINE_integer("num_processes", None, "How many processes there are.")
NUMBER = flags.DEFINE_integer("process_id", None, "Which of them this one is, from 0.")
TIMEOUT = flags.DEFINE_float("startup_timeout", 300.0, "Seconds to wait for the other processes.")
flags.register_validator("workdir", lambda name: name != "", "wanted a folder, got an empty name")


def run(argv: Sequence[str] | None = None) -> int:
    """Run the experiment of a command line; returns the exit code: 2, after one message, for what a user can put right."""
    sys.argv = list(argv or sys.argv)  # ml_collections looks for `--config.FIELD` there
    try:
        parse(sys.argv)
        from ilr_jax import hosts  # after the flags, so that --help needs no JAX
        from ilr_jax.models.platform import take_memory

        take_memory()
        hosts.start(DISTRIBUTED.value, ADDRESS.value, COUNT.value, NUMBER.value, TIMEOUT.value)
        from ilr_jax import rounds

        logging.set_verbosity(logging.WARNING)  # orbax tells of every save
        if not hosts.leads():
            progress.mute()
        assert WORKDIR.value
        with interruption.listening(), hosts.together():
            rounds.run(CONFIG.value, WORKDIR.value)
    except KeyboardInterrupt:  # before there was anything to listen for
        print("stopped; the same command continues", file=sys.stderr)
        return 130
    except interruption.Interrupted as notice:
        print(f"{notice}; the same command continues", file=sys.stderr)
        return notice.code
    except (ValueError, OSError) as error:  # settings, data, models, loss; disk and network
        fault = isinstance(error, ValueError) and flags.FLAGS.is_parsed() and not _raised_by(error, "ilr_jax", "configs")
        if fault or (flags.FLAGS.is_parsed() and TRACEBACK.value):
            raise  # a ValueError out of a library is nobody's input that was found wanting
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def leave(code: int) -> NoReturn:
    """End the process. One that failed or was interrupted ends on the spot.

    XLA may be compiling on its own threads, and would crash on the way out; and other processes would wait for this one.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if code:
        os._exit(code)
    sys.exit(code)


def parse(argv: list[str]) -> None:
    """Set the flags. ValueError for one that is unknown, missing or bad, and for a field that the config does not have."""
    app.define_help_flags()
    _set(flags.FLAGS, argv)


def config_of(words: Sequence[str]) -> tuple[Config, str]:
    """(config, workdir) that a run with these flags would have; nothing is run, no flag of this process set. ValueError as by `parse`."""
    values, argv = flags.FlagValues(), ["ilr run", *words]
    config_flags.DEFINE_config_file("config", None, flag_values=values, sys_argv=argv)
    flags.DEFINE_string("workdir", None, "as of a run", flag_values=values)
    _set(values, argv)
    return values.config, values.workdir


def _set(values: flags.FlagValues, argv: list[str]) -> None:
    lacking = [f"--{name}" for name in ("config", "workdir") if not any(re.match(f"--?{name}(=|$)", word) for word in argv)]
    lacks = ValueError(f"wanted {' and '.join(lacking)}, as in --config=configs/quickstart.py --workdir=runs/mine") if lacking else None
    for path in (word.partition("=")[2].partition(":")[0] for word in argv if re.match("--?config=", word)):
        if not Path(path).is_file():
            raise ValueError(f"--config={path}: no such file")
    try:
        rest = values(argv)[1:]
    except flags.UnrecognizedFlagError as error:
        if lacks and "--config" in lacking:  # without which no field is known
            raise lacks from error
        raise ValueError(f"{error}; a field of the config is given as --config.FIELD=VALUE, configs/base.py lists them") from error
    except flags.Error as error:
        raise ValueError(f"{error}; configs/base.py says what each field takes") from error
    except (AttributeError, KeyError, TypeError) as error:
        if not _raised_by(error, "ml_collections"):
            raise  # a fault in the config's file keeps its traceback
        raise ValueError(f"no such field in the config: {_reason(error)}") from error
    if rest:
        raise ValueError(f"wanted flags (--name=value), got {' '.join(rest)}")
    if lacks:
        raise lacks


def _raised_by(error: BaseException, *packages: str) -> bool:
    place = error.__traceback__
    while place and place.tb_next:
        place = place.tb_next
    return place is not None and place.tb_frame.f_globals.get("__name__", "").startswith(tuple(f"{package}." for package in packages))


def _reason(error: BaseException) -> str:
    """The words of an error that may be wrapped in others, on one line."""
    inner = error.args[0] if error.args else error
    return _reason(inner) if isinstance(inner, BaseException) else ". ".join(str(inner).splitlines())


if __name__ == "__main__":
    leave(run())
