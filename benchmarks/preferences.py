"""DPO: an epoch of pairs against TRL, the reference's log-probabilities computed before or in every step."""

from functools import partial
from typing import Any

import numpy as np
from datasets import Dataset
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from benchmarks import peers
from benchmarks.measure import Side, agree, best, race
from benchmarks.shapes import LORA, Shape, Size, shape, texts
from benchmarks.training import BATCH, EPOCH_LOSS, OPTIMIZER, fitted, moved_alike, roof
from ilr_jax import batches
from ilr_jax.batches import Epochs, Packing, Preference, Sample
from ilr_jax.models import flops, lora
from ilr_jax.train import state, steps
from ilr_jax.train.steps import Setup

BETA = 0.1
Sides = list[tuple[Sample, Sample]]


def pairs(count: int, vocabulary: int) -> Sides:
    """Questions with two answers of GSM8K's lengths."""
    made = texts(count, vocabulary)
    answers = [*made.answers[1:], made.answers[0]]
    return [((q, a), (q, b)) for q, a, b in zip(made.questions, made.answers, answers, strict=True)]


def tokens(data: Sides) -> float:
    """Of both sides, the question counted with each."""
    return float(sum(len(q) + len(a) for pair in data for q, a in pair))


def ours(made: Shape, data: Sides, dtype: str, reference: bool, found: dict[str, Any]) -> Side:
    """Our epoch, from the reference's log-probabilities on if `reference`, else given them; mean loss and adapters go to `found`."""
    setup, params = Setup(made.config, LORA, dtype), made.params(dtype)
    scored = steps.sequence_log_probs(setup)

    def log_probs() -> np.ndarray:
        samples = [side for pair in data for side in pair]
        out, tree = np.empty(len(samples)), made.adapters()
        for taken, batch in batches.likelihoods(samples, 16, 0, 0):
            out[taken] = np.asarray(scored(tree, params, batch))[: len(taken)]
        return out.reshape(-1, 2)

    known = log_probs()

    def run() -> float:
        values = log_probs() if reference else known
        rows = [Preference(*pair, *map(float, value)) for pair, value in zip(data, values, strict=True)]
        epochs = Epochs((len(rows),), BATCH, 1, 0)
        step = steps.dpo_step(setup, OPTIMIZER, BETA)
        at = batches.preferences(rows, epochs, 0, 0, Packing(lora.even_length(made.config)))
        ((found["ours"],), found["adapters"]) = fitted(
            step, state.init(made.adapters(), OPTIMIZER, epochs.totals), params, at, epochs.steps
        )
        return tokens(data)

    return run


def trl(made: Shape, data: Sides, precomputed: bool, micro: int, found: dict[str, Any]) -> Side:
    """TRL's epoch, mean loss and model in `found`; the reference is the base under the adapter as it was, TRL's way for PEFT models."""
    words = lambda ids: " ".join(map(str, ids))
    rows = [{"prompt": words(a[0]), "chosen": " " + words(a[1][:-1]), "rejected": " " + words(b[1][:-1])} for a, b in data]
    given = peers.settings(BATCH, micro) | {"beta": BETA, "precompute_ref_log_probs": precomputed, "max_length": None}
    vocabulary, trained = peers.words(made.config.vocab_size), peers.with_adapter(made, "bfloat16" if peers.DEVICE == "cuda" else "float32")
    trainer = DPOTrainer(trained, args=DPOConfig(**given), train_dataset=Dataset.from_list(rows), processing_class=vocabulary)
    tokenised: Any = trainer.train_dataset
    seen = sum(2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in tokenised)
    agree("tokens", tokens(data), seen, 0.0)

    def run() -> float:
        found["peer"], found["trained"] = trainer.train().training_loss, trained
        peers.wait()
        return tokens(data)

    return run


def epoch(size: Size, precomputed: bool) -> dict[str, Any]:
    """An epoch over pairs; where TRL computes the reference in its steps, ours computes it before them."""
    made, dtype = shape(size.model), "bfloat16" if peers.DEVICE == "cuda" else "float32"
    data = pairs(size.pairs, made.config.vocab_size)
    micro, found = best(size.micro, lambda n: trl(made, data[:BATCH], precomputed, n, {})), {}
    sides = ours(made, data, dtype, not precomputed, found), trl(made, data, precomputed, micro, found)

    def same() -> None:
        agree("mean loss of an epoch", found["ours"], found["peer"], EPOCH_LOSS)
        first: dict[str, Any] = {}  # of a single step: the loss of a fresh adapter is that of any pairs, which way it moves is not
        for side in (ours(made, data[:BATCH], dtype, False, first), trl(made, data[:BATCH], precomputed, micro, first)):
            side()
        moved_alike(made, first["adapters"], 0, first["trained"], dtype)

    row = race(*sides, "tokens", size.repeats, same).row()
    per_token = flops.adapters(made.config, LORA) + (0 if precomputed else flops.FORWARD * flops.layers(made.config))
    shared = tokens(data) - sum(len(a[0]) for a, _ in data)  # a prompt is computed once, and counted twice in the rate
    return row | {"peer_batch": micro, "roof": roof(per_token * row["ours"] * shared / tokens(data), dtype)}


epoch_precomputed = partial(epoch, precomputed=True)
epoch_in_step = partial(epoch, precomputed=False)
