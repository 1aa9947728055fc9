"""What is measured on: models of random weights that both sides load from one folder, and questions and answers of GSM8K's lengths."""

import os
import re
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ilr_jax.models import config as configs
from ilr_jax.models import decoder, hf, lora
from ilr_jax.models.config import ModelConfig
from ilr_jax.models.lora import Lora
from ilr_jax.tasks import gsm8k

LORA = Lora(64, 128.0)
COMMON = {"max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "rms_norm_eps": 1e-5}
MISTRAL = COMMON | {"model_type": "mistral", "hidden_act": "silu", "sliding_window": None, "rope_theta": 10000.0}
GEMMA = COMMON | {"model_type": "gemma", "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"}


def _fields(base: dict, hidden: int, inner: int, layers: int, heads: tuple[int, int, int], vocabulary: int) -> dict[str, Any]:
    names = ("num_attention_heads", "num_key_value_heads", "head_dim")
    sizes = {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "vocab_size": vocabulary}
    return base | sizes | dict(zip(names, heads, strict=True))


MODELS = {
    "mistral": _fields(MISTRAL, 512, 1408, 6, (8, 4, 64), 32000),
    "gemma": _fields(GEMMA, 256, 1024, 4, (4, 1, 64), 256000),
    "small": _fields(MISTRAL, 128, 352, 4, (4, 2, 32), 1024),  # as the embedded ones
    "tiny": _fields(MISTRAL, 32, 64, 2, (2, 1, 16), 128),
    "mistral-7b": _fields(MISTRAL, 4096, 14336, 32, (32, 8, 128), 32000),
    "gemma-2b": _fields(GEMMA, 2048, 16384, 18, (8, 1, 256), 256000),
}


@dataclass(frozen=True)
class Size:
    """How large the cases are. `examples` train, `answers` are sampled, `searched` found by beam search, `pairs` compared.

    Full rows are `rows` of `length` tokens.
    """

    name: str
    model: str
    wide: str  # the model with the large vocabulary
    rows: int
    length: int
    examples: int
    answers: int
    searched: int
    pairs: int
    scored: int
    queue: int
    micro: tuple[int, ...]  # what to try as a peer's batch in training and scoring
    batches: tuple[int, ...]  # and in decoding, in rows
    slots: int
    repeats: int


SIZES = {
    "cpu": Size("cpu", "mistral", "gemma", 8, 256, 64, 192, 16, 64, 1000, 3736, (1, 4, 16), (16, 32, 64, 96, 192), 32, 5),
    "smoke": Size("smoke", "mistral", "gemma", 4, 128, 32, 12, 4, 32, 16, 1024, (4,), (8,), 16, 3),
}


class Shape:
    """A model of random weights: its config, its parameters, and for the other side its folder in the HF layout."""

    def __init__(self, name: str):
        self.name = name
        self.config: ModelConfig = configs.from_fields(MODELS[name])
        self._home = TemporaryDirectory(prefix="benchmark-")

    def params(self, dtype: str) -> Any:
        """The parameters on our side; made in bfloat16, so that both sides have the same numbers in either dtype."""
        return jax.tree.map(lambda x: x.astype(dtype), decoder.init(self.config, jax.random.key(0), "bfloat16"))

    @cached_property
    def folder(self) -> Path:
        """The model's folder."""
        folder = Path(self._home.name) / "model"
        hf.save_model(folder, self.config, self.params("bfloat16"))
        return folder

    def adapters(self, k: int = 1) -> dict[str, Any]:
        """K fresh adapters on our side, all alike: the other side starts from the first."""
        one = lora.init(self.config, LORA, jax.random.split(jax.random.key(1), 1))
        return {"adapters": jax.tree.map(lambda x: jnp.repeat(x, k, axis=0), one)}


@cache
def shape(name: str) -> Shape:
    """The model of that name, written once per process."""
    return Shape(name)


# Logarithms of the lengths of GSM8K's 7,473 training questions (with the prompt's own words) and answers (without calculator marks, with
# the end token), counted in words, digits and signs: means, standard deviations and their correlation.
MEANS, DEVIATIONS, CORRELATION = (4.11, 4.32), (0.30, 0.44), 0.54
LONGEST = (215, 256)
TOKEN, MARKS, WORDING = re.compile(r"\d|[^\W\d]+|[^\w\s]"), re.compile("<<.*?>>"), 9


@dataclass(frozen=True)
class Texts:
    """Random token ids in place of questions and answers; an answer ends with the end token."""

    questions: list[list[int]]
    answers: list[list[int]]

    @property
    def samples(self) -> list[tuple[list[int], list[int]]]:
        """(prompt ids, answer ids)."""
        return list(zip(self.questions, self.answers, strict=True))

    @property
    def tokens(self) -> int:
        """All of them."""
        return sum(map(len, self.questions)) + sum(map(len, self.answers))


def _lengths(count: int, rng: np.random.Generator) -> np.ndarray:
    """[count, 2], of questions and answers: the real ones where ILR_GSM8K_PATH names their folder, chosen at random, else drawn."""
    if path := os.environ.get("ILR_GSM8K_PATH"):
        examples = gsm8k.GSM8K(path=path).train()
        size = lambda text: len(TOKEN.findall(MARKS.sub("", text)))
        return np.array([(WORDING + size(e.prompt), size(e.reference or "") + 1) for e in rng.choice(np.array(examples, object), count)])
    covariance = np.array([[1, CORRELATION], [CORRELATION, 1]]) * np.outer(DEVIATIONS, DEVIATIONS)
    return np.rint(np.exp(rng.multivariate_normal(MEANS, covariance, count)))


def texts(count: int, vocabulary: int, seed: int = 0) -> Texts:
    """As many questions and answers, of GSM8K's lengths."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(_lengths(count, rng), 4, LONGEST).astype(int)
    ids = lambda n: rng.integers(4, vocabulary, n).tolist()
    return Texts([ids(q) for q, _ in lengths], [[*ids(a - 1), 2] for _, a in lengths])
