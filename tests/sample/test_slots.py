"""Where the weights of a decoding loop are taken from."""

from types import SimpleNamespace

import jax
import pytest
import sample_models as tiny

from ilr_jax.models import decoder
from ilr_jax.models.platform import described
from ilr_jax.sample import slots


@pytest.mark.parametrize("kind, copies, taken", [("cpu", None, True), ("gpu", 5.0, True), ("gpu", 3.0, False), ("tpu", 5.0, False)])
def test_layers_are_taken_out_of_the_loop_where_two_copies_leave_room(kind, copies, taken, monkeypatch):
    """`copies` of the layers are what the device holds."""
    params = tiny.params("gemma")
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(params["layers"]))
    stats = None if copies is None else {"bytes_limit": copies * held}
    monkeypatch.setattr(jax, "local_devices", lambda: [SimpleNamespace(memory_stats=lambda: stats)])
    with described(kind):
        found = slots.layers(decoder.bind(tiny.CONFIGS["gemma"], params), None)
    assert (found is not None) is taken
