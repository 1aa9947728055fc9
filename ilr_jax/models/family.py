"""What makes a model family: a table. The decoder is one; `gemma.py`, `mistral.py` and `llama.py` fill this in.

Not here: the sizes of a model, which its config.json alone decides (`config`). From: the models of `transformers` 5.24.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# Our path of a tensor -> its name in the HF file; `{}` is the layer. The three families share the names.
KEYS: Mapping[str, str] = {
    "embed.table": "model.embed_tokens.weight",
    "layers.attention_norm.scale": "model.layers.{}.input_layernorm.weight",
    "layers.q_proj.kernel": "model.layers.{}.self_attn.q_proj.weight",
    "layers.k_proj.kernel": "model.layers.{}.self_attn.k_proj.weight",
    "layers.v_proj.kernel": "model.layers.{}.self_attn.v_proj.weight",
    "layers.o_proj.kernel": "model.layers.{}.self_attn.o_proj.weight",
    "layers.mlp_norm.scale": "model.layers.{}.post_attention_layernorm.weight",
    "layers.gate_proj.kernel": "model.layers.{}.mlp.gate_proj.weight",
    "layers.up_proj.kernel": "model.layers.{}.mlp.up_proj.weight",
    "layers.down_proj.kernel": "model.layers.{}.mlp.down_proj.weight",
    "norm.scale": "model.norm.weight",
    "head.table": "lm_head.weight",
}


@dataclass(frozen=True)
class Family:
    """How a family differs: constants of its layers, and what `transformers` takes where its config.json is silent."""

    name: str
    norm_offset: float
    embed_scale: bool
    activations: Mapping[str, str]
    windowed: bool
    defaults: Mapping[str, Any]
    hidden_activation: bool = False  # whether that field, where it is set, overrules hidden_act
    null_means_default: frozenset[str] = frozenset()
    keys: Mapping[str, str] = field(default_factory=lambda: KEYS)
