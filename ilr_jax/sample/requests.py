"""What goes into and comes out of decoding, and how requests are ordered and padded; numpy and plain Python only.

Not here: when a request gets its slot (`engine`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ilr_jax.models.config import ModelConfig
from ilr_jax.types import Rows


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt's token ids, the adapter that answers it, and the id that its random draws come from: equal ids give equal answers."""

    tokens: Sequence[int]
    adapter: int = 0
    id: int = 0


@dataclass(frozen=True, slots=True)
class Completion:
    """Generated token ids without the end token, and the sum of their log-probabilities (the end token's included) at temperature 1.

    `finished` is False where the limit on new tokens cut it off. `score` is what beam search ranks by; of a sample, `log_prob`.
    """

    tokens: list[int]
    log_prob: float
    finished: bool
    score: float


def check(config: ModelConfig, adapters: int, requests: Sequence[Request], eos: Sequence[int]) -> None:
    """ValueError that names the first request that the model cannot answer."""
    for i, request in enumerate(requests):
        name, length = f"request {i} (id {request.id})", len(request.tokens)
        if not 1 <= length < config.context:
            raise ValueError(
                f"{name}: wanted a prompt of 1 to {config.context - 1} tokens (the model's context is {config.context}), got {length}; "
                "shorten the prompt or leave it out"
            )
        if not (min(request.tokens) >= 0 and max(request.tokens) < config.vocab_size):
            raise ValueError(
                f"{name}: wanted token ids from 0 to {config.vocab_size - 1}, got {min(request.tokens)} to {max(request.tokens)}; "
                "is this the model's own tokenizer?"
            )
        if not 0 <= request.id < 2**32:
            raise ValueError(f"{name}: wanted an id from 0 to {2**32 - 1}, got {request.id}")
        if not 0 <= request.adapter < adapters:
            raise ValueError(f"{name}: wanted an adapter from 0 to {adapters - 1}, got {request.adapter}")
    outside = [token for token in eos if not 0 <= token < config.vocab_size]
    if not eos or outside:
        raise ValueError(f"eos: wanted one or more token ids from 0 to {config.vocab_size - 1}, got {list(eos)}")


def padded(length: int, step: int) -> int:
    """`length` rounded up to a multiple of `step`, or of an eighth to a quarter of itself where that is coarser: shapes stay few."""
    step = max(step, 2 ** (length.bit_length() - 3))
    return -(-length // step) * step


def by_adapter(requests: Sequence[Request], adapters: int) -> list[list[int]]:
    """For each adapter the places of its requests, short prompts first."""
    order = sorted(range(len(requests)), key=lambda i: len(requests[i].tokens))
    return [[i for i in order if requests[i].adapter == k] for k in range(adapters)]


def prompt_rows(prompts: Sequence[Sequence[int]], length: int, pad: int) -> Rows:
    """Prompts [N, length], padded on the right."""
    tokens = np.full((len(prompts), length), pad, np.int32)
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape)
    return Rows(tokens, positions, (positions < lengths[:, None]).astype(np.int32))
