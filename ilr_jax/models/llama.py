"""Llama 1 to 3.x (arXiv 2407.21783) and models of its shape such as SmolLM2: grouped queries, llama3 RoPE scaling, tied or untied."""

from ilr_jax.models.family import Family

FAMILY = Family(
    name="llama",
    norm_offset=0.0,
    embed_scale=False,
    activations={"silu": "silu"},
    windowed=False,
    defaults={
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "max_position_embeddings": 2048,
    },
    null_means_default=frozenset({"rope_theta"}),
)
