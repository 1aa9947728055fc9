"""Loading a checkpoint of two gigabytes: the peak memory of a process of its own."""

import json
import subprocess
import sys

import ml_dtypes
import numpy as np

from ilr_jax.models import tensors

LAYERS, WIDTH, MLP, VOCAB = 20, 2048, 5504, 1024
FIELDS = {"model_type": "llama", "vocab_size": VOCAB, "hidden_size": WIDTH, "intermediate_size": MLP, "num_hidden_layers": LAYERS}
FIELDS |= {"num_attention_heads": 16, "num_key_value_heads": 16, "max_position_embeddings": 64, "tie_word_embeddings": True}
KERNELS = {f"self_attn.{name}_proj": (WIDTH, WIDTH) for name in "qkvo"} | {f"mlp.{name}_proj": (MLP, WIDTH) for name in ("gate", "up")}
KERNELS |= {"mlp.down_proj": (WIDTH, MLP)}
LARGEST = 2 * WIDTH * MLP  # bytes

LOAD = """
import re, sys, threading, time
import jax, jax.numpy as jnp
from ilr_jax.models import hf

def resident():  # without pages of files, which the system takes back when it needs them
    return int(re.search(r"RssAnon:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024

def watch():
    while True:
        seen.append(resident())
        time.sleep(0.002)

jax.block_until_ready(jnp.zeros(4))
before, seen = resident(), [0]
threading.Thread(target=watch, daemon=True).start()
_, params = hf.load(sys.argv[1], dtype=jnp.bfloat16)
jax.block_until_ready(params)
print(max(seen) - before, sum(x.nbytes for x in jax.tree.leaves(params)))
"""


def checkpoint():
    """Name and array of every tensor; each is made when it is asked for."""
    for i in range(LAYERS):
        for name, shape in KERNELS.items():
            yield f"model.layers.{i}.{name}.weight", np.full(shape, i, ml_dtypes.bfloat16)
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"model.layers.{i}.{name}.weight", np.ones(WIDTH, ml_dtypes.bfloat16)
    yield "model.embed_tokens.weight", np.ones((VOCAB, WIDTH), ml_dtypes.bfloat16)
    yield "model.norm.weight", np.ones(WIDTH, ml_dtypes.bfloat16)


def test_two_gigabytes_need_little_more_than_their_own_room(tmp_path):
    """On a CPU the weights lie in the host's memory; beyond them there is room for a few tensors only."""
    (tmp_path / "config.json").write_text(json.dumps(FIELDS))
    tensors.write(tmp_path, "model", checkpoint(), limit=6 * 10**8)
    assert len(list(tmp_path.glob("model-*.safetensors"))) == 4
    done = subprocess.run([sys.executable, "-c", LOAD, str(tmp_path)], capture_output=True, text=True, check=True, timeout=300)
    peak, weights = map(int, done.stdout.split())
    assert weights > 2 * 10**9
    assert peak - weights < 20 * LARGEST  # seen: 12; a stack of layers that is there twice makes 32
