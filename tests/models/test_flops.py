"""The arithmetic of training, against figures known from outside."""

import pytest
from published import GEMMA_2B, MISTRAL_7B

from ilr_jax.models import flops
from ilr_jax.models.config import from_fields
from ilr_jax.models.lora import Lora


def test_adapters_on_mistral():
    """7.11e9 weights are multiplied with (7.24e9 less the embedding), 1.68e8 of adapters of rank 64: 29.4e9 per token."""
    assert flops.adapters(from_fields(MISTRAL_7B), Lora(64)) == pytest.approx(29.45e9, rel=1e-3)


def test_adapters_on_fewer_layers_cost_less():
    config = from_fields(MISTRAL_7B)
    saved = flops.adapters(config, Lora(64)) - flops.adapters(config, Lora(64, modules=("q_proj",)))
    assert saved == 6 * 64 * 32 * (2 * (4096 + 1024) + 8192 + 3 * (4096 + 14336))


def test_the_evaluator_meets_no_vocabulary():
    """Gemma-2B has 1.98e9 weights beside its table of 256,000 x 2,048."""
    assert flops.classifier(from_fields(GEMMA_2B)) == pytest.approx(6 * 1.98e9, rel=5e-3)
