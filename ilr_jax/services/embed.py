"""How alike two answers are, as the cosine of their embeddings: for tasks in which nothing can be read off an answer.

Two embedders: `local`, TF-IDF of hashed character n-grams, which needs no model and no network, and an OpenAI-compatible endpoint. Another
one is a function of the type `Similarity`. Not here: how alike is alike enough (`refine.agree.above_median`).
From: term weighting of Salton and Buckley (1988); the hashing trick of Weinberger et al. (arXiv 0902.2206).
"""

import base64
import math
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from ilr_jax.services.endpoint import Endpoint, Form
from ilr_jax.services.transport import EndpointError

Similarity = Callable[[Sequence[str], Sequence[str]], Float[np.ndarray, " N"]]
"""(a, b) -> cosine of a[i] and b[i], in [-1, 1]."""

SIZES = (3, 4, 5)  # characters of an n-gram
BUCKETS = 1 << 18
VERSION = "char-3-5 tf-idf 1"  # of `local`: another one measures otherwise
GROUP = 64  # texts in one request

_MIX = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9))


def local(a: Sequence[str], b: Sequence[str]) -> Float[np.ndarray, " N"]:
    """Cosines of hashed character n-grams, weighed by (1 + log count) * log((1 + texts) / (1 + texts that have it)) + that again.

    Case, width and blanks of the texts do not count. A text is rare or common relative to all texts given, so a pair's cosine depends on
    the other pairs; their order does not matter. A text without any n-gram, a blank one, is like none.
    """
    counts = {text: _counts(text) for text in dict.fromkeys([*a, *b])}
    seen = np.zeros(BUCKETS, np.int64)
    for ids, _ in counts.values():
        seen[ids] += 1
    rarity = 1 + np.log((1 + len(counts)) / (1 + seen))
    vectors = {text: _unit(ids, (1 + np.log(times)) * rarity[ids]) for text, (ids, times) in counts.items()}
    return np.array([_dot(*vectors[x], *vectors[y]) for x, y in zip(a, b, strict=True)], np.float64)


def of_endpoint(endpoint: Endpoint) -> Similarity:
    """Cosines of an endpoint's embeddings. Raises EndpointError as `Endpoint.ask` does, and where a text gets no embedding."""
    form = Form("embeddings", lambda texts: {"input": list(texts), "encoding_format": "float"}, _read, GROUP)

    def similarity(a: Sequence[str], b: Sequence[str]) -> Float[np.ndarray, " N"]:
        texts = list(dict.fromkeys(text or " " for text in [*a, *b]))  # endpoints refuse the empty text
        vectors = {text: _vector(kept) for text, kept in zip(texts, endpoint.ask(texts, form, "embeddings"), strict=True)}
        if len(sizes := {vector.size for vector in vectors.values()}) > 1:
            raise EndpointError(f"{endpoint.model}: wanted embeddings of one size, got {sorted(sizes)}; did the model behind it change?")
        return np.array([vectors[x or " "] @ vectors[y or " "] for x, y in zip(a, b, strict=True)], np.float64)

    return similarity


def _counts(text: str) -> tuple[Int[np.ndarray, " M"], Int[np.ndarray, " M"]]:
    """The buckets of a text's n-grams, each once, and how often each occurs."""
    words = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    codes = np.array([ord(c) for c in f" {words} "] if words else [], np.uint64)
    hashes = [np.zeros(0, np.uint64)]
    for size in SIZES:
        value = np.full(max(len(codes) - size + 1, 0), size, np.uint64)
        for j in range(size if value.size else 0):
            value = (value ^ codes[j : j + value.size]) * _MIX[0]  # wraps around
            value = (value ^ (value >> np.uint64(29))) * _MIX[1]
        hashes.append(value >> np.uint64(64 - int(math.log2(BUCKETS))))
    ids, times = np.unique(np.concatenate(hashes), return_counts=True)
    return ids.astype(np.int64), times.astype(np.int64)


def _unit(ids: Int[np.ndarray, " M"], weights: Float[np.ndarray, " M"]) -> tuple[Int[np.ndarray, " M"], Float[np.ndarray, " M"]]:
    return ids, weights / max(float(np.linalg.norm(weights)), 1e-30)


def _dot(ids: Any, weights: Any, others: Any, their: Any) -> float:
    """The product of two sparse vectors, with their buckets in order."""
    _, here, there = np.intersect1d(ids, others, assume_unique=True, return_indices=True)
    return float(weights[here] @ their[there])


def _read(reply: Mapping[str, Any], n: int) -> list[str]:
    """The unit vectors of a reply, one for each text in order, as base64 of float32; ValueError if one is missing or cannot be."""
    found = {entry.get("index", i): np.asarray(entry["embedding"], np.float64) for i, entry in enumerate(reply["data"])}
    if sorted(found) != list(range(n)) or len(reply["data"]) != n:
        raise ValueError(f"wanted {n} embeddings, got {len(reply['data'])} with the indices {sorted(found)[:9]}")
    norms = [float(np.linalg.norm(found[i])) if found[i].ndim == 1 else 0.0 for i in range(n)]
    if bad := [i for i, norm in enumerate(norms) if not 0 < norm < math.inf]:
        raise ValueError(f"wanted finite embeddings that are not zero, got another as number {bad[0]}")
    return [base64.b64encode((found[i] / norms[i]).astype("<f4").tobytes()).decode() for i in range(n)]


def _vector(kept: str) -> Float[np.ndarray, " D"]:
    return np.frombuffer(base64.b64decode(kept), "<f4").astype(np.float64)
