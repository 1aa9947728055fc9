"""Logits that transformers computed (tools/make_golden.py), for machines without torch."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models as tiny

from ilr_jax.models import hf
from ilr_jax.types import Rows


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_golden_logits(name, tmp_path):
    golden = np.load(Path(__file__).parent / "golden" / f"{name}.npz")
    fields = json.loads(golden["config"].item())
    folder = tiny.write(tmp_path / name, fields, tiny.weights(fields, int(golden["seed"])))
    rows = Rows(golden["tokens"], golden["positions"], golden["segments"])
    logits = tiny.logits(*hf.load(folder, dtype=jnp.float32), rows)
    real = rows.segments > 0
    np.testing.assert_allclose(logits[real], golden["logits"][real], rtol=0, atol=3e-5)
