"""The comparison model as a stage: trained on pairs of answers, and as a function that scores them.

Which pairs it learns from is in `refine.pairs`, what its scores lead to in `refine.select`.
From: paper appendix (evaluator training).
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ilr_jax import batches, hosts, sharding
from ilr_jax.batches import Epochs
from ilr_jax.models import decoder, flops, heads
from ilr_jax.progress import Progress
from ilr_jax.roles import Model, fingerprint
from ilr_jax.stages import Bench, fit
from ilr_jax.train import checkpoint, state, steps
from ilr_jax.types import Artifact

CLASSIFIER = "classifier.safetensors"
Request3 = tuple[str, str, str]
Comparisons = Sequence[tuple[str, str, str, int]]  # question, answer A, answer B, class


def train(bench: Bench, model: Model, train: Comparisons, held_out: Comparisons) -> Artifact:
    """The two-class evaluator: all weights and a head, early stopping on the loss of the comparisons held out, the best state kept."""
    section = bench.config.evaluator
    optimizer = bench.optimizer(section)
    settings = {"optimizer": asdict(optimizer), "epochs": section.epochs, "patience": section.patience, "batch": section.batch}

    def build(folder: Path) -> Mapping[str, Any]:
        """Train, and keep the best state."""
        pad, size = model.tokenizer.pad, bench.rows(bench.config.compute.score_batch)
        rows, checks = (
            list(zip(model.tokenizer.comparisons([r[:3] for r in part]), [r[3] for r in part], strict=True)) for part in (train, held_out)
        )
        epochs = Epochs((len(rows),), section.batch, section.epochs, bench.config.seed)
        setup = bench.setup(model.config)
        classifier = sharding.put_weights(setup.layout, initial(model.params, bench.random_key()))
        start = state.init(classifier, optimizer, epochs.totals, layout=setup.layout)
        model.release()  # all weights train in a copy of their own
        held = [sharding.put_rows(bench.layout, batch) for _, batch in batches.scoring(checks, size, pad)]
        evaluate = partial(_class_metrics, steps.class_evaluation(setup), held)
        done = fit(
            bench,
            "evaluator",
            folder,
            steps.evaluator_step(setup, optimizer),
            start,
            {},
            batches.classes(rows, epochs, pad, bench.packing(setup)),
            epochs.steps,
            validate=lambda now: evaluate(now.trainable)["loss"],
            validate_every=epochs.per_epoch[0],
            patience=section.patience,
        )
        checkpoint.save_tree(folder / CLASSIFIER, done.state.trainable)
        final = evaluate(done.state.trainable)
        return {
            "comparisons": len(train),
            "held_out": len(held_out),
            "validation_loss": final["loss"],
            "validation_accuracy": final["right"],
        }

    data = fingerprint([[list(row) for row in part] for part in (train, held_out)])
    return bench.run("evaluator", settings, {"model": model.digest, "data": data}, build, flops.classifier(model.config))


def initial(params: Mapping[str, Any], key: jax.Array) -> dict[str, Any]:
    """What an evaluator's training starts from: a base's weights in float32, without the output head, and a random head of two classes."""
    body = {name: part for name, part in params.items() if name != "head"}
    head = heads.init(body["norm"]["scale"].shape[0], 2, key)
    return {"params": jax.tree.map(lambda w: jnp.asarray(w, jnp.float32)[None], body), "head": head[None]}


def _class_metrics(evaluation: Callable, data: Sequence, trainable: Any) -> dict[str, float]:
    sums = []
    with Progress("evaluator validation", len(data), "batches", quiet=sys.stderr.isatty()) as progress:  # a terminal shows training's bar
        for batch in data:
            sums.append(hosts.fetched(evaluation(trainable, {}, batch)))
            progress.advance()
    units = sum(float(s["units"][0]) for s in sums)
    return {name: sum(float(s[name][0]) for s in sums) / units for name in ("loss", "right")}


def score_fn(bench: Bench, model: Model, evaluator: Artifact) -> Callable[[Sequence[Request3]], Float[np.ndarray, " n"]]:
    """The evaluator as a function: for each (question, A, B) the probability that the holder of A accepts to change to B."""
    setup = bench.setup(model.config)
    like = jax.eval_shape(initial, decoder.abstract(model.config), jax.random.key(0))
    trained = checkpoint.load_tree(Path(evaluator.folder) / CLASSIFIER, like, setup.layout)
    probabilities = steps.class_probabilities(setup)

    def score(requests: Sequence[Request3]) -> Float[np.ndarray, " n"]:
        """A probability a request, in their order."""
        out = np.full(len(requests), np.nan)
        with Progress("comparisons", len(requests), "scores") as progress:
            comparisons = [(ids, 0) for ids in model.tokenizer.comparisons(requests)]
            for taken, batch in batches.scoring(comparisons, bench.rows(bench.config.compute.score_batch), model.tokenizer.pad):
                found = probabilities(trained, {}, sharding.put_rows(bench.layout, batch))
                out[taken] = hosts.fetched(found)[: len(taken), 0, 1]
                progress.advance(len(taken))
        return out

    return score
