"""Mistral (arXiv 2310.06825): Llama's layers with grouped queries and a sliding window; a null window means full attention."""

from ilr_jax.models.family import Family

FAMILY = Family(
    name="mistral",
    norm_offset=0.0,
    embed_scale=False,
    activations={"silu": "silu"},
    windowed=True,
    defaults={
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "tie_word_embeddings": False,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
    },
    null_means_default=frozenset({"rope_theta"}),
)
