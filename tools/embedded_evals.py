"""What an embedded base model can do so far, on problems outside its corpus: solve them, and tell right answers from wrong."""

import random
from functools import cache, partial
from itertools import islice
from typing import Any

import embedded_corpus as corpus
import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

from ilr_jax.models import decoder
from ilr_jax.models.cache import Cache, empty_part
from ilr_jax.models.config import ModelConfig
from ilr_jax.tasks import wordmath
from ilr_jax.types import Rows

COUNT, NEW, SEED = 200, 104, 987_654


def rows_of(encoded: list[list[int]], width: int) -> tuple[Rows, np.ndarray]:
    """Right-padded rows and the position of each last token."""
    ids, segments = (np.zeros((len(encoded), width), np.int32) for _ in range(2))
    for n, tokens in enumerate(encoded):
        ids[n, : len(tokens)], segments[n, : len(tokens)] = tokens, 1
    return Rows(ids, np.tile(np.arange(width, dtype=np.int32), (len(encoded), 1)), segments), segments.sum(1) - 1


@partial(jax.jit, static_argnames=("config", "new", "eos"))
def greedy(config: ModelConfig, params: Any, rows: Rows, last: Any, new: int, eos: int = 2) -> Any:
    """The `new` most likely next tokens [N, new] of every row."""
    model = decoder.bind(config, params)
    hidden, part = model(rows, keep=True)
    assert part is not None
    first = model.logits(jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]).argmax(-1).astype(jnp.int32)
    blank = Cache(part, empty_part(config, len(last), new, jnp.float32), jnp.zeros((), jnp.int32))

    def one(carry):
        i, token, store, out, done = carry
        out = out.at[:, i].set(token)
        hidden, store = model.step(token[:, None], (last + 1 + i)[:, None], store)
        return i + 1, model.logits(hidden[:, 0]).argmax(-1).astype(jnp.int32), store, out, done | (token == eos)

    out = jnp.full((len(last), new), eos, jnp.int32)
    go = lambda c: (c[0] < new) & ~c[4].all()  # noqa: E731
    return jax.lax.while_loop(go, one, (0, first, blank, out, jnp.zeros(len(last), bool)))[3]


def texts(tokenizer: Tokenizer, out: Any, eos: int = 2) -> list[str]:
    """Decoded rows up to the end mark."""
    rows = [list(row) for row in np.asarray(out)]
    return tokenizer.decode_batch([row[: row.index(eos)] if eos in row else row for row in rows])


@partial(jax.jit, static_argnames="config")
def last_logits(config: ModelConfig, params: Any, rows: Rows, last: Any) -> Any:
    """Logits [N, V] of what follows each row."""
    model = decoder.bind(config, params)
    hidden, _ = model(rows)
    return model.logits(jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0])


@cache
def held_out() -> list[wordmath.Problem]:
    return list(islice(wordmath.problems("train", SEED), COUNT))


def solves(config: ModelConfig, params: Any, tokenizer: Tokenizer, layout: int = 0) -> float:
    """Share of problems solved when asked in a layout of the corpus."""
    before, work, mark = corpus.LAYOUTS[layout]
    encoded = [tokenizer.encode(before + p.prompt + work).ids for p in held_out()]
    rows, last = rows_of(encoded, 128)
    answers = texts(tokenizer, greedy(config, params, rows, last, NEW))
    wanted = [f"{mark}{wordmath.run(p.steps)[-1]}" for p in held_out()]
    return float(np.mean([a.endswith(w) for a, w in zip(answers, wanted, strict=True)]))


def compares(config: ModelConfig, params: Any, tokenizer: Tokenizer, layout: int) -> float:
    """Share of held-out comparisons, both orders equally often, in which the better answer gets the higher logit."""
    rng, encoded, pairs = random.Random(layout), [], []
    first, second, ask, one, two = corpus.COMPARED[layout]
    one_id, two_id = (tokenizer.encode(ask + word).ids[-1] for word in (one, two))
    for i, p in enumerate(held_out()):
        right = wordmath.run(p.steps)
        steps, values, _ = corpus.wrong(rng, p)
        answers = [corpus.solution(p.steps, right, right[-1]), corpus.solution(steps, values, values[-1])][:: 1 if i % 2 else -1]
        tokens = tokenizer.encode(f"Problem: {p.prompt}{first}{answers[0]}{second}{answers[1]}{ask}").ids
        if len(tokens) <= 320:
            encoded.append(tokens)
            pairs.append(i % 2)
    logits = np.asarray(last_logits(config, params, *rows_of(encoded, 320)))
    return float(np.mean((logits[:, one_id] > logits[:, two_id]) == np.array(pairs, bool)))


@partial(jax.jit, static_argnames="config")
def all_logits(config: ModelConfig, params: Any, rows: Rows) -> Any:
    """Logits [N, T, V]."""
    model = decoder.bind(config, params)
    return model.logits(model(rows)[0])


def marks(config: ModelConfig, params: Any, tokenizer: Tokenizer) -> float:
    """Share of lines, of solutions of which about half are wrong, whose mark gets the higher logit."""
    rng, encoded = random.Random(0), []
    ok, wrong = (tokenizer.encode(f"=7{mark}").ids[-1] for mark in (" ok", " wrong"))
    for p in held_out():
        tokens = tokenizer.encode("".join(text for text, _ in corpus.marked(rng, p))).ids
        if len(tokens) <= 192:
            encoded.append(tokens)
    rows, _ = rows_of(encoded, 192)
    logits, after = np.asarray(all_logits(config, params, rows))[:, :-1], rows.tokens[:, 1:]
    asked = (after == ok) | (after == wrong)
    return float(np.mean((logits[..., ok] > logits[..., wrong])[asked] == (after == ok)[asked]))


def report(config: ModelConfig, params: Any, tokenizer: Tokenizer) -> str:
    """One line: solved share, share of lines marked rightly, compared share by layout."""
    compared = " ".join(f"{compares(config, params, tokenizer, layout):.2f}" for layout in range(len(corpus.COMPARED)))
    return f"solves {solves(config, params, tokenizer):.3f} marks {marks(config, params, tokenizer):.3f} compares {compared}"
