"""Gemma 1 (arXiv 2403.08295): RMSNorm times 1 + w, GeGLU with tanh, embeddings scaled by sqrt(d), head_dim apart from d / heads.

The released files say `hidden_act: gelu`, yet the weights were trained with the tanh form (google-deepmind/gemma), so both names mean it.
"""

from ilr_jax.models.family import Family

FAMILY = Family(
    name="gemma",
    norm_offset=1.0,
    embed_scale=True,
    activations={"gelu": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"},
    windowed=False,
    defaults={
        "hidden_act": "gelu_pytorch_tanh",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "head_dim": 256,
        "tie_word_embeddings": True,
        "max_position_embeddings": 8192,
        "num_key_value_heads": 16,
    },
    hidden_activation=True,
    null_means_default=frozenset({"rope_theta"}),
)
