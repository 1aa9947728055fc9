"""Tiny models of the three families with weights that numpy makes again from a seed, and the slowest way to decode: the whole forward at
every token."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from ilr_jax.models import decoder
from ilr_jax.models.config import from_fields
from ilr_jax.models.lora import Lora
from ilr_jax.sample.requests import Request
from ilr_jax.types import Rows

BASE = {
    "vocab_size": 24,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
FIELDS = {
    "gemma": BASE | {"model_type": "gemma", "num_key_value_heads": 1},
    "mistral": BASE | {"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": 6, "tie_word_embeddings": False},
    "llama": BASE | {"model_type": "llama", "num_key_value_heads": 2, "rope_theta": 500.0},
}
CONFIGS = {name: from_fields(fields) for name, fields in FIELDS.items()}
LENGTH = 48


def params(name: str, seed: int = 0) -> dict:
    """Weights that make logits of order 2: distributions neither flat nor certain."""
    random = np.random.RandomState(seed)
    make = lambda x: jnp.asarray(random.standard_normal(x.shape).astype(np.float32) * (0.25 if x.ndim > 2 or x.shape[0] == 24 else 0.1))
    tree = jax.tree.map(make, decoder.abstract(CONFIGS[name]))
    scale = lambda x: x if name == "gemma" else 1 + x
    norms = {key: {"scale": scale(value["scale"])} for key, value in tree["layers"].items() if "scale" in value}
    return {**tree, "layers": tree["layers"] | norms, "norm": {"scale": scale(tree["norm"]["scale"])}}


def adapters(name: str, count: int, seed: int = 1) -> tuple[dict, Lora]:
    """`count` adapters that change the answers."""
    lora, random, config = Lora(rank=3, alpha=6.0, modules=("q_proj", "v_proj", "down_proj")), np.random.RandomState(seed), CONFIGS[name]
    kernels = decoder.abstract(config)["layers"]
    make = lambda *shape: jnp.asarray(random.standard_normal((count, config.num_layers, *shape)).astype(np.float32) * 0.3)
    sizes = {module: kernels[module]["kernel"].shape[1:] for module in lora.modules}
    return {module: {"a": make(inputs, 3), "b": make(3, outputs)} for module, (inputs, outputs) in sizes.items()}, lora


def requests(count: int, seed: int = 2, adapters: int = 1, longest: int = 20) -> list[Request]:
    """Ragged prompts, in no order of length."""
    random = np.random.RandomState(seed)
    lengths = random.randint(1, longest + 1, count)
    return [Request(random.randint(0, 24, length).tolist(), i % adapters, 100 + i) for i, length in enumerate(lengths)]


@partial(jax.jit, static_argnums=0)
def _logits(config, params, rows, last):
    model = decoder.bind(config, params)
    hidden, _ = model(rows)
    return model.logits(jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0])


def next_logits(config, params, texts: list[list[int]]) -> np.ndarray:
    """Logits [N, V] of the token after each text, by the whole forward; four texts a call, so that there is one shape."""
    found = []
    for start in range(0, len(texts), 4):
        part = (texts[start : start + 4] + [[0]] * 4)[:4]
        tokens = np.array([text + [0] * (LENGTH - len(text)) for text in part], np.int32)
        positions = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), tokens.shape)
        last = np.array([len(text) - 1 for text in part], np.int32)
        segments = (positions <= last[:, None]).astype(np.int32)
        found.append(np.asarray(_logits(config, params, Rows(tokens, positions, segments), last)))
    return np.concatenate(found)[: len(texts)]
