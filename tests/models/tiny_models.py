"""Tiny models for the tests of this room: configs that differ from every default, and weights that numpy makes again from a seed.

The weights come from `np.random.RandomState`, whose stream numpy promises never to change, so golden logits need no weights beside them.
Their scale makes logits of order 1: a wrong constant anywhere shows far above the tolerance.
"""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from ilr_jax.models import decoder, lora
from ilr_jax.models.config import ModelConfig
from ilr_jax.types import Rows

BASE = {
    "vocab_size": 61,
    "hidden_size": 48,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
SCALING = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 3.0,
    "original_max_position_embeddings": 24,
}
CONFIGS = {
    "gemma": BASE
    | {
        "model_type": "gemma",
        "num_key_value_heads": 1,
        "head_dim": 16,
        "hidden_act": "gelu_pytorch_tanh",
        "rms_norm_eps": 3e-3,
        "rope_theta": 700.0,
    },
    "mistral": BASE
    | {"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": 7, "rms_norm_eps": 1e-3, "rope_theta": 300.0, "head_dim": 20},
    "llama": BASE | {"model_type": "llama", "num_key_value_heads": 2, "rms_norm_eps": 2e-3, "rope_theta": 2000.0, "rope_scaling": SCALING},
    "smollm": BASE
    | {"model_type": "llama", "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 10}  # 60 in all, not the hidden size
    | {"rms_norm_eps": 1e-5, "rope_theta": 100.0, "tie_word_embeddings": True},
}


def drawn(family: str, seed: int) -> dict:
    """A config of a family with everything drawn at random; rows of the tests are longer than its window."""
    random = np.random.RandomState(seed)
    pick = lambda *options: options[random.randint(len(options))]
    kv_heads, size = pick(1, 2, 3), pick(8, 12, 18)
    fields = {"model_type": family, "num_key_value_heads": kv_heads, "num_attention_heads": kv_heads * pick(1, 2, 3), "head_dim": size}
    fields |= {"hidden_size": pick(36, 72), "intermediate_size": pick(20, 64), "num_hidden_layers": pick(1, 3)}
    fields |= {"rms_norm_eps": float(10 ** -random.uniform(2, 6)), "rope_theta": float(10 ** random.uniform(1.5, 6))}
    fields |= {"sliding_window": pick(None, 3, 10)} if family == "mistral" else {}
    fields |= {"hidden_act": "gelu_pytorch_tanh"} if family == "gemma" else {"tie_word_embeddings": bool(random.randint(2))}
    return BASE | fields | ({"rope_scaling": SCALING | {"factor": 8.0}} if family == "llama" and random.randint(2) else {})


SEED = 11
LENGTH = 24  # more than three windows of the Mistral


def tied(fields: dict) -> bool:
    return fields.get("tie_word_embeddings", fields["model_type"] == "gemma")


def weights(fields: dict, seed: int = SEED) -> dict[str, np.ndarray]:
    """Float32 tensors by HF name, [outputs, inputs]."""
    random = np.random.RandomState(seed)
    d, f, heads = fields["hidden_size"], fields["intermediate_size"], fields["num_attention_heads"]
    size = fields.get("head_dim", d // heads)
    q, kv = heads * size, fields["num_key_value_heads"] * size
    normal = lambda *shape: (random.standard_normal(shape) / shape[-1] ** 0.5).astype(np.float32)
    scale = lambda: ((fields["model_type"] != "gemma") + 0.3 * random.standard_normal(d)).astype(np.float32)
    tensors = {"model.embed_tokens.weight": normal(fields["vocab_size"], d)}
    shapes = {"self_attn.q_proj": (q, d), "self_attn.k_proj": (kv, d), "self_attn.v_proj": (kv, d), "self_attn.o_proj": (d, q)}
    shapes |= {"mlp.gate_proj": (f, d), "mlp.up_proj": (f, d), "mlp.down_proj": (d, f)}
    for layer in range(fields["num_hidden_layers"]):
        tensors |= {f"model.layers.{layer}.{name}.weight": 1.5 * normal(*shape) for name, shape in shapes.items()}
        tensors |= {f"model.layers.{layer}.{name}.weight": scale() for name in ("input_layernorm", "post_attention_layernorm")}
    tensors["model.norm.weight"] = scale()
    return tensors if tied(fields) else tensors | {"lm_head.weight": normal(fields["vocab_size"], d)}


def write(folder: Path, fields: dict, tensors: dict[str, np.ndarray]) -> Path:
    """A model folder of one file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(fields))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def rows(seed: int = 5, length: int = LENGTH) -> Rows:
    """One row without padding, two with padding on the left, two on the right; pad tokens are ids that occur in the text too."""
    spans = [(0, length), (7, length), (length - 3, length), (0, 9), (0, length - 1)]
    tokens = np.random.RandomState(seed).randint(0, BASE["vocab_size"], (len(spans), length)).astype(np.int32)
    segments, positions = np.zeros_like(tokens), np.zeros_like(tokens)
    for row, (start, stop) in enumerate(spans):
        segments[row, start:stop] = 1
        positions[row, start:stop] = np.arange(stop - start)
    return Rows(tokens, positions, segments)


def params(fields: dict, seed: int = SEED) -> dict:
    """The same weights as decoder parameters, put together by hand: what `hf.load` must come to."""
    tensors = weights(fields, seed)
    short = {"input_layernorm": "attention_norm", "post_attention_layernorm": "mlp_norm"}
    layers = {}
    for key in tensors:
        if key.startswith("model.layers.0."):
            stack = jnp.stack([tensors[key.replace("s.0.", f"s.{i}.")].T for i in range(fields["num_hidden_layers"])])
            name = key.split(".")[-2]
            layers[short.get(name, name)] = {"kernel" if stack.ndim == 3 else "scale": stack}
    tree = {"embed": {"table": jnp.asarray(tensors["model.embed_tokens.weight"])}, "layers": layers}
    tree["norm"] = {"scale": jnp.asarray(tensors["model.norm.weight"])}
    return tree if tied(fields) else tree | {"head": {"table": jnp.asarray(tensors["lm_head.weight"])}}


def adapters(settings: ModelConfig, shape: lora.Lora, k: int) -> dict:
    """K random adapters, both sides at work."""
    random = np.random.RandomState(2)
    tree = {}
    for name in shape.modules:
        inputs, outputs = lora.sizes(settings)[name]
        sides = {"a": (inputs, shape.rank, inputs**-0.5), "b": (shape.rank, outputs, 0.05)}
        tree[name] = {
            side: jnp.asarray(std * random.randn(k, settings.num_layers, m, n), jnp.float32) for side, (m, n, std) in sides.items()
        }
    return tree


@partial(jax.jit, static_argnames=("config", "options"))
def _hidden(config, params, rows, adapters, options):
    return decoder.bind(config, params)(rows, adapters, **dict(options))[0]


def hidden(config: ModelConfig, params, rows: Rows, adapters=None, **options) -> np.ndarray:
    """Our hidden states [N, T, D]; compiled once per shape and options in the whole run."""
    return np.asarray(_hidden(config, params, rows, adapters, tuple(options.items())))


def logits(config: ModelConfig, params, rows: Rows, adapters=None) -> np.ndarray:
    """Our logits [N, T, V]; padding's are garbage."""
    table = params["embed" if config.tied else "head"]["table"]
    return hidden(config, params, rows, adapters) @ np.asarray(table).T
