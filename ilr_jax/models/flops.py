"""How many floating-point operations training takes per token: those of the products with weights, which are nearly all.

Such a product is 2 operations per weight and token forward, as many backward for the gradient of what went in, and as many for the
gradient of the weight where that is trained. Attention's own products are left out; every token is counted as meeting the vocabulary.
From: the 6 N per token of Kaplan et al. (arXiv 2001.08361, section 2.1), less what frozen weights spare.
"""

from ilr_jax.models import lora
from ilr_jax.models.config import ModelConfig
from ilr_jax.models.lora import Lora

FORWARD, FROZEN, TRAINED = 2, 4, 6  # operations per weight and token: forward alone, and with backward


def layers(config: ModelConfig) -> int:
    """How many weights of all layers a token is multiplied with."""
    return config.num_layers * sum(i * o for i, o in lora.sizes(config).values())


def adapters(config: ModelConfig, shape: Lora) -> int:
    """Per token, of a step that trains adapters over the frozen base."""
    sizes, frozen = lora.sizes(config), layers(config) + config.hidden_size * config.vocab_size
    added = config.num_layers * sum(shape.rank * sum(sizes[name]) for name in shape.modules)
    return FROZEN * frozen + TRAINED * added


def classifier(config: ModelConfig) -> int:
    """Per token, of a step that trains all weights of an evaluator; its two classes cost nothing beside them."""
    return TRAINED * layers(config)
