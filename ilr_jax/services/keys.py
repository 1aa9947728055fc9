"""Where an endpoint's key comes from: the environment, or a `.env` file in the folder where the command is started.

Read here and not by python-dotenv: one name is wanted, and what is never put into the environment is not inherited by child processes.
"""

import os
from pathlib import Path

from ilr_jax.files import explained


def read_key(name: str, folder: Path = Path(".")) -> str:
    """The value of `name`; "" for an empty name, which means that the endpoint wants no key.

    Lines of `.env` are `NAME=value`, `export` before and quotes around allowed. Raises ValueError, which never shows the key, where there
    is none or where it cannot be sent in a header.
    """
    if not name:
        return ""
    if not name.isidentifier():
        raise ValueError(
            "key_name: wanted the name of a variable that holds the key, such as OPENAI_API_KEY, got something else, which is not shown, "
            "as it may be the key itself"
        )
    key = (os.environ.get(name) or _from_file(folder / ".env", name)).strip()
    if not key:
        raise ValueError(
            f"wanted a key in the environment variable {name} or in a line {name}=... of {(folder / '.env').resolve()}, found none; "
            "set it, or set key_name='' if the endpoint wants no key"
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ValueError(f"the key in {name} holds blanks or characters that no HTTP header may hold; copy it again")
    return key


def _from_file(path: Path, name: str) -> str:
    if not path.is_file():
        return ""
    with explained(path, "read"):
        lines = path.read_bytes().decode(errors="replace").splitlines()
    pairs = [line.strip().removeprefix("export ").partition("=") for line in lines if not line.lstrip().startswith("#")]
    values = [value.strip() for found, _, value in pairs if found.strip() == name]
    quoted = lambda value: len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    return next((value[1:-1] if quoted(value) else value for value in reversed(values)), "")
