"""Preference optimisation as two stages: the reference's log-probabilities, computed once, and the training.

Which preferences there are is in `preference`, what a step does in `train.steps`. From: paper appendix (SFT + DPO); arXiv 2305.18290.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ilr_jax import batches, hosts, sharding
from ilr_jax.batches import Epochs, Preference
from ilr_jax.files import read_json, write_json
from ilr_jax.models import flops
from ilr_jax.progress import Progress
from ilr_jax.roles import Model, fingerprint
from ilr_jax.stages import ADAPTERS, Bench, fit, load_adapters, tokenised
from ilr_jax.train import checkpoint, state, steps
from ilr_jax.types import Artifact, Pair

SIDES = ("better", "worse")  # of a pair


def optimise(bench: Bench, model: Model, policy: Artifact, chosen: Sequence[Pair]) -> Artifact:
    """DPO by `dpo.loss`: the adapter of `policy` trained on; the reference is that adapter as it was, or the base (`dpo.reference`)."""
    section = bench.config.dpo
    optimizer = bench.optimizer(section)
    settings = {"optimizer": asdict(optimizer), "epochs": section.epochs, "batch": section.batch, "beta": section.beta}
    settings |= {"loss": section.loss, "smoothing": section.smoothing}
    settings |= {"lora": asdict(bench.lora), "max_length": bench.config.sft.max_length, "reference": section.reference}
    reference = _reference(bench, model, policy, chosen)

    def build(folder: Path) -> Mapping[str, Any]:
        """Train on from the policy."""
        start = load_adapters(bench, model, Path(policy.folder) / ADAPTERS, 1)
        setup, pad = bench.setup(model.config, bench.lora), model.tokenizer.pad
        sides = [tokenised(model, [(p.prompt, getattr(p, side)) for p in chosen]) for side in SIDES]
        data = [Preference(*row) for row in zip(*sides, *reference, strict=True)]
        epochs = Epochs((len(data),), section.batch, section.epochs, bench.config.seed)
        at = batches.preferences(data, epochs, pad, bench.config.sft.max_length, bench.packing(setup))
        begin = state.init(start, optimizer, epochs.totals, layout=setup.layout)
        step = steps.dpo_step(setup, optimizer, section.beta, section.loss, section.smoothing)
        done = fit(bench, "dpo", folder, step, begin, model.params, at, epochs.steps)
        checkpoint.save_tree(folder / ADAPTERS, done.state.trainable)
        return {"pairs": len(chosen), "steps": epochs.steps}

    return bench.run("dpo", settings, _preferred(model, policy, chosen), build, flops.adapters(model.config, bench.lora))


def _preferred(model: Model, policy: Artifact, chosen: Sequence[Pair]) -> dict[str, str]:
    return {"model": model.digest, "policy": policy.manifest["digest"], "pairs": fingerprint([asdict(pair) for pair in chosen])}


def _reference(bench: Bench, model: Model, policy: Artifact, chosen: Sequence[Pair]) -> list[list[float]]:
    """The reference's log-probabilities of the better answers and of the worse ones, computed once: a stage of its own."""
    kind, limit = bench.config.dpo.reference, bench.config.sft.max_length

    def build(folder: Path) -> None:
        """Score both answers of every pair."""
        tree = load_adapters(bench, model, Path(policy.folder) / ADAPTERS, 1) if kind == "previous" else {}
        samples = [row for side in SIDES for row in tokenised(model, [(p.prompt, getattr(p, side)) for p in chosen])]
        out, run = np.empty(len(samples)), steps.sequence_log_probs(bench.setup(model.config, bench.lora))
        with Progress("dpo reference", len(samples), "answers") as progress:
            for taken, batch in batches.likelihoods(samples, bench.rows(bench.config.compute.score_batch), model.tokenizer.pad, limit):
                out[taken] = hosts.fetched(run(tree, model.params, sharding.put_rows(bench.layout, batch)))[: len(taken)]
                progress.advance(len(taken))
        write_json(folder / "log_probs.json", out.reshape(len(SIDES), -1).tolist())

    settings = {"reference": kind, "lora": asdict(bench.lora), "max_length": limit}
    artifact = bench.run("dpo-reference", settings, _preferred(model, policy, chosen), build)
    return read_json(Path(artifact.folder) / "log_probs.json")
