"""Beam search on the device: one slot a prompt, its beams side by side; `engine` fills the slots and takes the results.

Nothing is reordered but masks and token ids: beams share the prompt's keys and the ring of generated keys, and `ancestors` says which
entries of the ring a beam continues. Two length rules:

- `generated`: `transformers` 5.24 `generate(num_beams=width, do_sample=False, length_penalty=1.0, early_stopping=False)`, token for token.
  A finished beam must be among the best `width` candidates of its step; it scores sum log p / generated length, the end token counted; a
  prompt is done when its pool of `width` finished beams is full and the best running beam, scored so at its present length, does not beat
  the worst.
- `total`: vLLM 0.5 (`engine/output_processor/single_step.py`), what the paper's released system decoded with. Any finished candidate may
  enter the pool; the length is prompt plus output, the end token not counted; a tie with the worst finished one ends the search too.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ilr_jax.models.cache import Cache, empty_part
from ilr_jax.sample import slots
from ilr_jax.sample.slots import Compute, Fill, Result
from ilr_jax.sample.topk import top_k
from ilr_jax.sharding import Layout

NOTHING = -1e9  # the score of a beam that is not there; a real one stays far above
REAL = NOTHING / 2


@dataclass(frozen=True)
class BeamSettings:
    """How beams are searched: `width` a prompt, `prompts` at once over all adapters, `chunk` steps between looks from the host.

    `length` is the rule that ranks beams (see the module). Prompts are padded to multiples of `bucket`.
    """

    max_new_tokens: int
    width: int = 4
    length: str = "total"
    prompts: int = 64
    chunk: int = 32
    bucket: int = 64

    def __post_init__(self):
        for name in ("max_new_tokens", "width", "prompts", "chunk", "bucket"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: wanted at least 1, got {getattr(self, name)}")
        if self.length not in ("generated", "total"):
            raise ValueError(f"length: wanted 'generated' or 'total', got {self.length!r}")


class Pool(NamedTuple):
    """The finished beams of each prompt, best first; `log_prob` is the sum, `score` what ranks them, `length` without the end token."""

    score: Float[Array, "G B"]
    log_prob: Float[Array, "G B"]
    tokens: Int[Array, "G B W"]
    length: Int[Array, "G B"]
    ended: Bool[Array, "G B"]


class Beams(NamedTuple):
    """The state of G prompts with B running beams each; the ring has B entries a step, S in all."""

    cache: Cache
    hidden: Float[Array, "G B D"]
    ancestors: Bool[Array, "G B S"]
    log_prob: Float[Array, "G B"]
    tokens: Int[Array, "G B W"]
    starts: Int[Array, " G"]
    drawn: Int[Array, " G"]
    limits: Int[Array, " G"]
    done: Bool[Array, " G"]
    pool: Pool


class Candidates(NamedTuple):
    """The best continuations of a prompt's beams, best first; `hit` says which cannot go on."""

    log_prob: Float[Array, "G C"]
    parent: Int[Array, "G C"]
    token: Int[Array, "G C"]
    ended: Bool[Array, "G C"]
    hit: Bool[Array, "G C"]


def _pick(x: Array, at: Int[Array, "G C"]) -> Array:
    """Entries `at` of the second axis of every prompt."""
    return jnp.take_along_axis(x, at.reshape(at.shape + (1,) * (x.ndim - 2)), axis=1)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def blank(compute: Compute, settings: BeamSettings, prompts: int, length: int) -> Beams:
    """Free slots with room for prompts of `length` tokens."""
    b, w, config, dtype = settings.width, settings.max_new_tokens, compute.config, compute.dtype
    cache = Cache(empty_part(config, prompts, length, dtype), empty_part(config, prompts, w * b, dtype), jnp.zeros((), jnp.int32))
    none, scores, tokens = jnp.zeros(prompts, jnp.int32), jnp.full((prompts, b), NOTHING), jnp.zeros((prompts, b, w), jnp.int32)
    lengths = jnp.zeros((prompts, b), jnp.int32)
    pool = Pool(scores, scores, tokens, lengths, lengths > 0)
    hidden, ancestors = jnp.zeros((prompts, b, config.hidden_size), dtype), jnp.zeros((prompts, b, w * b), bool)
    return compute.split(Beams(cache, hidden, ancestors, scores, tokens, none, none, none, none == 0, pool))


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def admit(compute: Compute, weights: Any, state: Beams, fill: Fill) -> Beams:
    """New prompts in free slots. All beams start alike, so only the first one counts in the first step."""
    hidden, cache = slots.prefill(compute, weights, state.cache, fill)
    at = lambda old, new: old.at[fill.target].set(new, mode="drop")
    first = jnp.where(jnp.arange(state.log_prob.shape[1]) == 0, 0.0, NOTHING)
    new = Beams(
        cache,
        at(state.hidden, hidden[fill.source][:, None]),
        at(state.ancestors, False),
        at(state.log_prob, first),
        state.tokens,
        at(state.starts, fill.lengths),
        at(state.drawn, 0),
        at(state.limits, fill.limits),
        at(state.done, fill.limits <= 0),
        state.pool._replace(score=at(state.pool.score, NOTHING)),
    )
    return compute.split(new)


def _candidates(
    layout: Layout | None, state: Beams, logits: Float[Array, "N V"], settings: BeamSettings, eos: tuple[int, ...]
) -> Candidates:
    """The best continuations over all beams of a prompt, through the best of each beam: never a sort over beams times vocabulary."""
    (g, b), v = state.log_prob.shape, logits.shape[1]
    count = b * (2 if settings.length == "total" else 1 + len(eos))
    values, ids = top_k(layout, logits, min(count, v), "vocab")
    values = (values - jax.nn.logsumexp(logits, axis=1, keepdims=True)).reshape(g, b, -1) + state.log_prob[:, :, None]
    log_prob, best = top_k(layout, values.reshape(g, -1), min(count, values.size // g))
    token = _pick(ids.reshape(g, -1), best)
    ended = jnp.isin(token, jnp.array(eos))
    last = (state.drawn + 1 >= state.limits)[:, None]
    return Candidates(log_prob, best // values.shape[2], token, ended, ended | last)


def _grown(
    tokens: Int[Array, "G B W"], drawn: Int[Array, " G"], parent: Int[Array, "G C"], token: Int[Array, "G C"]
) -> Int[Array, "G C W"]:
    here = jnp.arange(tokens.shape[2])[None, None, :] == drawn[:, None, None]
    return jnp.where(here, token[:, :, None], _pick(tokens, parent))


def _finish(layout: Layout | None, state: Beams, found: Candidates, settings: BeamSettings) -> Pool:
    """The pool with this step's finished candidates competing for its places."""
    width, length = settings.width, (state.drawn + 1)[:, None] - found.ended
    if settings.length == "generated":
        eligible, counted = jnp.arange(found.hit.shape[1])[None, :] < width, (state.drawn + 1)[:, None]
    else:
        eligible, counted = True, state.starts[:, None] + length
    enters = found.hit & eligible & (found.log_prob > REAL) & ~state.done[:, None]
    tokens = _grown(state.tokens, state.drawn, found.parent, found.token)
    new = Pool(jnp.where(enters, found.log_prob / counted, NOTHING), found.log_prob, tokens, length, found.ended)
    both = jax.tree.map(lambda old, new: jnp.concatenate([old, new], axis=1), state.pool, new)
    _, best = top_k(layout, both.score, width)
    return jax.tree.map(lambda x: _pick(x, best), both)


def _is_done(state: Beams, best: Float[Array, " G"], pool: Pool, settings: BeamSettings) -> Bool[Array, " G"]:
    """Whether nothing runs, or the best running beam (sum of log-probabilities `best`) cannot enter the full pool as things stand."""
    worst, drawn = pool.score[:, -1], state.drawn + 1
    hopeless = best / drawn <= worst if settings.length == "generated" else best / (state.starts + drawn) <= worst
    return state.done | (best <= REAL) | ((worst > REAL) & hopeless)


def _choose(
    layout: Layout | None, state: Beams, logits: Float[Array, "N V"], settings: BeamSettings, eos: tuple[int, ...]
) -> tuple[Beams, Int[Array, "G B"]]:
    """The state with the beams of the next step, and their newest tokens."""
    found = _candidates(layout, state, logits, settings, eos)
    pool = _finish(layout, state, found, settings)
    log_prob, best = top_k(layout, jnp.where(found.hit, NOTHING, found.log_prob), settings.width)
    parent, token = _pick(found.parent, best), _pick(found.token, best)
    state = state._replace(
        ancestors=_pick(state.ancestors, parent),
        log_prob=log_prob,
        tokens=_grown(state.tokens, state.drawn, parent, token),
        drawn=state.drawn + 1,
        done=_is_done(state, log_prob[:, 0], pool, settings),
        pool=pool,
    )
    return state, token


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=4)
def advance(
    compute: Compute, settings: BeamSettings, eos: tuple[int, ...], weights: Any, state: Beams, wanted: Any
) -> tuple[Beams, Bool[Array, " G"], Result]:
    """Up to `chunk` steps, fewer if none is busy or prompts, `wanted` slots a group [K], have room; who is free, and the best of each."""
    params, adapters = weights
    model = compute.bind(params)
    layers = slots.layers(model, adapters)

    def step(s: Beams) -> Beams:
        """One token more for every running beam."""
        positions = jnp.repeat(s.starts + s.drawn, settings.width)[:, None]
        s, token = _choose(compute.layout, s, model.logits(s.hidden.reshape(-1, s.hidden.shape[2])), settings, eos)
        ancestors = s.ancestors.reshape(positions.shape[0], -1)
        hidden, cache = model.step(
            token.reshape(-1, 1), positions, s.cache, adapters, dtype=compute.dtype, layers=layers, ancestors=ancestors
        )
        written = jnp.arange(ancestors.shape[1])[None, :] == s.cache.cursor + jnp.arange(settings.width)[:, None]
        cache = cache._replace(cursor=cache.cursor % ancestors.shape[1])
        return s._replace(cache=cache, hidden=hidden.reshape(s.hidden.shape), ancestors=s.ancestors | written[None])

    go = lambda carry: (carry[0] < settings.chunk) & slots.busy(carry[1].done, wanted)
    _, state = jax.lax.while_loop(go, lambda carry: (carry[0] + 1, step(carry[1])), (jnp.zeros((), jnp.int32), state))
    best = jax.tree.map(lambda x: x[:, 0], state.pool)
    return compute.split(state), *compute.gather((state.done, Result(best.tokens, best.length, best.log_prob, best.score, best.ended)))
