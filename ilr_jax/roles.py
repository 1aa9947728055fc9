"""Base models in memory, with their tokenizers, and the hashes that stand for them in the stages' names."""

import hashlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from ilr_jax.files import encode, sha256_of
from ilr_jax.models import config as model_config
from ilr_jax.models import hf
from ilr_jax.models.config import ModelConfig
from ilr_jax.tokenizer import Tokenizer

EMBEDDED = Path(__file__).parent / "embedded"


def fingerprint(value: Any) -> str:
    """SHA-256 (hex) of anything that JSON can hold."""
    return hashlib.sha256(encode(value, "an input of a stage")).hexdigest()


def folder_of(source: str) -> Path:
    """The local folder of `embedded:NAME`, a path, or a model on the Hub (fetched)."""
    if not source.startswith("embedded:"):
        return hf.resolve(source)
    folder = EMBEDDED / source.removeprefix("embedded:")
    if not folder.is_dir():
        raise ValueError(f"model {source!r}: the embedded models are {', '.join(sorted(path.name for path in EMBEDDED.iterdir()))}")
    return folder


def _file_hash(path: Path) -> str:
    """SHA-256 of a file; the Hub's cache names its large files by it, which spares reading them."""
    name = path.resolve().name
    return name if path.is_symlink() and len(name) == 64 else sha256_of(path)


class Model:
    """A base model: its folder, config and tokenizer, and its parameters once they are asked for."""

    def __init__(self, source: str, dtype: str):
        self.folder, self.dtype = folder_of(source), dtype
        self.config: ModelConfig = model_config.read(self.folder)
        self.tokenizer = Tokenizer(self.folder, self.config)

    @cached_property
    def digest(self) -> str:
        """Stands for every byte of weights, config and tokenizer, and for the compute dtype."""
        files = sorted(p for p in self.folder.iterdir() if p.suffix in (".safetensors", ".json", ".model"))
        return fingerprint([self.dtype, [[path.name, _file_hash(path)] for path in files]])

    @cached_property
    def params(self) -> Mapping[str, Any]:
        """The decoder's parameters in the compute dtype."""
        return hf.load(self.folder, dtype=self.dtype)[1]
