"""What the tests of this room share: a tiny untied model with random adapters, and random batches of every kind."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from ilr_jax import batches
from ilr_jax.batches import Preference
from ilr_jax.models import config as configs
from ilr_jax.models import decoder, lora
from ilr_jax.models.lora import Lora
from ilr_jax.train import checkpoint
from ilr_jax.train.steps import Setup
from ilr_jax.types import Batch, ClassBatch, PairBatch, Rows

VOCAB = 61
FIELDS = {
    "model_type": "mistral",
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 64,
}
CONFIG = configs.from_fields(FIELDS)
LORA = Lora(rank=3, alpha=6.0, modules=("q_proj", "v_proj", "down_proj"))  # few, for the time that compiling takes
SETUP = Setup(CONFIG, LORA, chunk=4)
FULL = Setup(CONFIG, chunk=4)


def drawn(like, scale: float, seed: int):
    """Normal numbers in the shapes of `like`, made by numpy: nothing is compiled for them."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(scale * rng.normal(size=x.shape), jnp.float32), like)


@cache
def base(seed: int = 0) -> dict:
    """Parameters large enough for logits of order 1."""
    return drawn(decoder.abstract(CONFIG), 0.2, seed)


@cache
def adapters(k: int = 1, seed: int = 1, head: bool = False) -> dict:
    """K random adapters, `b` too, so that every gradient is non-zero from the start."""
    like = {"adapters": jax.eval_shape(lambda: lora.init(CONFIG, LORA, jax.random.split(jax.random.key(0), k)))}
    if head:
        like["head"] = jax.ShapeDtypeStruct((k, CONFIG.hidden_size, 2), jnp.float32)
    return drawn(like, 0.2, seed)


@cache
def full(seed: int = 0, head: bool = False) -> dict:
    """All weights as what trains, K = 1."""
    like = {"params": decoder.abstract(CONFIG)} | ({"head": jax.ShapeDtypeStruct((CONFIG.hidden_size, 2), jnp.float32)} if head else {})
    return jax.tree.map(lambda x: x[None], drawn(like, 0.2, seed))


def rows(lengths: list[int], t: int, seed: int = 0, left: bool = False) -> Rows:
    """Random rows of these lengths, padded to t with random tokens: what stands in the padding must not matter."""
    rng = np.random.default_rng(seed)
    real = [rng.integers(0, VOCAB, n) for n in lengths]
    tokens = np.random.default_rng(seed + 100).integers(0, VOCAB, (len(lengths), t)).astype(np.int32)
    positions, segments = np.zeros_like(tokens), np.zeros_like(tokens)
    for i, ids in enumerate(real):
        where = slice(t - len(ids), t) if left else slice(0, len(ids))
        tokens[i, where], positions[i, where], segments[i, where] = ids, np.arange(len(ids)), 1
    return Rows(tokens, positions, segments)


def batch(lengths: list[int], t: int = 14, c: int = 7, seed: int = 0, left: bool = False, normalize: str = "sequence") -> Batch:
    """A batch whose completion is the last half of each row; a row of length 0 counts nothing. Unused targets are -100."""
    r = rows(lengths, t, seed, left)
    places, targets = np.zeros((len(lengths), c), np.int32), np.full((len(lengths), c), -100, np.int32)
    weights, units = np.zeros((len(lengths), c), np.float32), np.zeros(len(lengths), np.float32)
    for i, n in enumerate(lengths):
        m, start = n // 2, t - n if left else 0
        if m:
            places[i, :m] = start + n - m - 1 + np.arange(m)
            targets[i, :m] = r.tokens[i, places[i, :m] + 1]
            weights[i, :m], units[i] = (1 / m, 1) if normalize == "sequence" else (1, m)
    return Batch(r, places, targets, weights, units)


def class_batch(lengths: list[int], t: int = 14, seed: int = 0) -> ClassBatch:
    classes = np.random.default_rng(seed).integers(0, 2, len(lengths)).astype(np.int32)
    last = np.maximum(np.array(lengths, np.int32) - 1, 0)
    return ClassBatch(rows(lengths, t, seed), last[:, None], classes[:, None], (np.array(lengths) > 0).astype(np.float32)[:, None])


def preferences(lengths: list[int], seed: int = 0) -> list[Preference]:
    """Random ones: the chosen answer is the last half of so many tokens, the rejected one a token shorter."""
    rng = np.random.default_rng(seed)
    ids = lambda n: rng.integers(0, VOCAB, n).tolist()
    made = []
    for n in lengths:
        prompt = ids(n - n // 2)
        made.append(Preference((prompt, ids(n // 2)), (prompt, ids(max(1, n // 2 - 1))), *rng.normal(-12, 2, 2).tolist()))
    return made


def pair_batch(lengths: list[int], seed: int = 0, t: int = 24, c: int = 14) -> PairBatch:
    """A preference a row; a row of length 0 holds none."""
    rows = [[preference] if n else [] for n, preference in zip(lengths, preferences(lengths, seed), strict=True)]
    return batches.pair_rows(rows, 0, t, c, 1)


def pair_sides(lengths: list[int], seed: int = 0) -> list[Batch]:
    """The same with each answer in a row of its own: the chosen ones, and the rejected ones."""
    made = preferences(lengths, seed)
    return [batches.documents([[getattr(p, side)] for p in made], 0, "token", 14, 7) for side in ("chosen", "rejected")]


def pick(tree, part: slice):
    """Some rows of a batch of any kind."""
    return jax.tree.map(lambda x: x[part], tree)


def stack(trees):
    """Trees of K_1, K_2, ... adapters side by side in one."""
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *trees)


def equal_bits(a, b) -> bool:
    leaves = [jax.tree.leaves(jax.tree.map(np.asarray, tree)) for tree in (a, b)]
    same = lambda x, y: x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()
    return len(leaves[0]) == len(leaves[1]) and all(map(same, *leaves))


def equations(jaxpr):
    """All equations of a jaxpr and of those that it calls."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, (list, tuple)) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


def save(folder, step: int, tree, note) -> None:
    """One save, waited for."""
    with checkpoint.Saver(folder) as saver:
        saver.begin(step, tree, note)
