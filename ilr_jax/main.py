"""Flags and one call: `python -m ilr_jax.main --config=configs/quickstart.py --workdir=DIR`.

Every field of the config is a flag, `--config.rounds=3`; a misspelt one is an error that names the nearest.
"""

import sys

from absl import app, flags, logging
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment: a file of configs/, any field of which may be overridden.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the experiment; the same command continues what was interrupted.")


def main(argv: list[str]) -> None:
    """Run the experiment; bad input ends it with one message and exit code 2."""
    if len(argv) > 1:
        raise app.UsageError(f"flags were wanted, got {argv[1:]}")
    from ilr_jax import rounds  # after the flags, so that --help needs no JAX
    from ilr_jax.files import StorageError

    logging.set_verbosity(logging.WARNING)  # orbax tells of every save
    workdir = WORKDIR.value
    assert workdir is not None
    try:
        rounds.run(CONFIG.value, workdir)
    except (ValueError, StorageError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def parsed(argv: list[str]) -> list[str]:
    """Flags as absl parses them; a field that the config does not have is a message with the nearest one, not a traceback."""
    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError) as error:
        print(f"error: no such field in the config: {error.args[0]}", file=sys.stderr)
        sys.exit(2)


def run(argv: list[str] | None = None) -> None:
    """Entry point of `ilr run` and of `python -m ilr_jax.main`."""
    flags.mark_flags_as_required(["config", "workdir"])
    sys.argv = argv or sys.argv  # ml_collections looks for `--config.FIELD` there, whatever app.run is given
    app.run(main, sys.argv, flags_parser=parsed)


if __name__ == "__main__":
    run()
