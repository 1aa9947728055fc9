"""SFT and the evaluator: steps on full rows, an epoch of ragged examples, and scoring."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from benchmarks import peers
from benchmarks.measure import Side, agree, best, near, race
from benchmarks.shapes import LORA, Shape, Size, Texts, shape, texts
from ilr_jax import batches, evaluator
from ilr_jax.batches import Epochs, Packing
from ilr_jax.models import flops, lora, peft
from ilr_jax.train import loop, state, steps
from ilr_jax.train.optimizer import OptimizerConfig
from ilr_jax.train.steps import Setup
from ilr_jax.types import Batch

OPTIMIZER = OptimizerConfig("adamw", peers.RATE, warmup=0.0, schedule="constant", clip=1.0)
BATCH = 32  # the paper's
EPOCH_LOSS = 1e-2  # how far losses of an epoch may be apart: the two sides take its examples in different order
STEP_LOSS = {"float32": 1e-4, "bfloat16": 1e-2}  # and those of a step on the same examples
TURNED = {"float32": 1e-3, "bfloat16": 0.2}  # the share of weights that rounding may move the other way in it


def trained(setup: Setup, tree: Any, total: int = 1000) -> Any:
    """A state before its first step."""
    return state.init(tree, OPTIMIZER, [total] * state.adapters_in(tree))


class Steps:
    """Our step, repeated on one batch; `loss` is of the last."""

    def __init__(self, step: steps.Step, begin: Any, frozen: Any, batch: Any, work: float):
        self.step, self.state, self.frozen, self.batch, self.work = step, begin, frozen, jax.device_put(batch), work
        self.loss = float("nan")

    def __call__(self) -> float:
        self.state, metrics = self.step(self.state, self.frozen, self.batch)
        self.loss = float(metrics["loss"][0])
        return self.work


class TorchSteps:
    """The peer's step, repeated on one batch: the loss of each of its parts and backward, then clip and AdamW; losses add up."""

    def __init__(self, model: Any, parts: list[Callable[[], Any]], work: float, dtype: str = "float32"):
        self.model, self.parts, self.work, self.dtype = model, parts, work, dtype
        self.optimizer = peers.optimizer(model)
        self.loss = float("nan")

    def __call__(self) -> float:
        self.loss = 0.0
        for part in self.parts:
            with peers.autocast(self.dtype):
                loss = part()
            loss.backward()
            self.loss += float(loss.detach())
        peers.torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        peers.wait()
        return self.work


def full_rows(size: Size, dtype: str, remat: bool = False) -> dict[str, Any]:
    """A LoRA SFT step on full rows, the loss on every token but the first; the peer's as many rows at a time as suits it best."""
    made = shape(size.model)
    ids = np.random.default_rng(0).integers(4, made.config.vocab_size, (size.rows, size.length))
    tokens = float(ids.size)
    batch = batches.completions([(row[:1].tolist(), row[1:].tolist()) for row in ids], 0, "sequence")
    setup = Setup(made.config, LORA, dtype, remat="full" if remat else "none")
    ours = Steps(steps.sft_step(setup, OPTIMIZER), trained(setup, made.adapters()), made.params(dtype), batch, tokens)
    inputs = peers.torch.tensor(ids, device=peers.DEVICE)

    def steps_of(micro: int) -> TorchSteps:
        model = peers.with_adapter(made, dtype, remat)
        loss = lambda part: model(input_ids=part, labels=part, use_cache=False).loss * len(part) / len(inputs)
        return TorchSteps(model, [partial(loss, part) for part in inputs.split(micro)], tokens, dtype)

    micro = best(sorted({*(n for n in size.micro if n < size.rows), size.rows}), steps_of)
    peer = steps_of(micro)

    def same() -> None:
        agree("loss of the first step", ours.loss, peer.loss, STEP_LOSS[dtype])
        moved_alike(made, ours.state.trainable["adapters"], 0, peer.model, dtype)

    row = race(ours, peer, "tokens", size.repeats, same).row()
    return row | {"peer_batch": micro, "roof": roof(flops.adapters(made.config, LORA) * row["ours"], dtype)}


def roof(rate: float, dtype: str) -> dict[str, Any]:
    """FLOPs per second of useful work, to be compared with what products of matrices reach."""
    return {"kind": dtype, "rate": rate}


def fitted(step: steps.Step, begin: Any, params: Any, at: Callable[[int], Any], count: int) -> tuple[list[float], Any]:
    """Trains as a stage does, saving and logging included: each adapter's mean loss over the steps, and the adapters."""
    with TemporaryDirectory(prefix="benchmark-") as folder:
        done = loop.fit(step, begin, params, at, count, folder=folder)
        jax.block_until_ready(done.state.trainable)
        lines = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
    return np.mean([line["loss"] for line in lines], axis=0).tolist(), done.state.trainable["adapters"]


class Epoch:
    """Our SFT of K = len(data) adapters for an epoch as a stage does it; `losses` are the steps' mean, one of each of `adapters`."""

    def __init__(self, made: Shape, data: list[list[batches.Sample]], dtype: str = "float32"):
        self.made, self.data, self.setup, self.params = made, data, Setup(made.config, LORA, dtype), made.params(dtype)
        self.work = float(sum(len(q) + len(a) for samples in data for q, a in samples))
        self.losses: list[float] = []
        self.adapters: Any = None

    def batches(self) -> tuple[Epochs, Callable[[int], Batch]]:
        """The epoch, and its batches."""
        epochs = Epochs(tuple(map(len, self.data)), BATCH, 1, 0)
        return epochs, batches.sft(self.data, epochs, 0, "token", 0, Packing(lora.even_length(self.made.config)))

    def targets(self) -> int:
        """How many tokens the loss of the epoch is on."""
        epochs, at = self.batches()
        return sum(int((np.asarray(at(i).weights) > 0).sum()) for i in range(epochs.steps))

    def __call__(self) -> float:
        epochs, at = self.batches()
        begin = state.init(self.made.adapters(len(self.data)), OPTIMIZER, epochs.totals)
        self.losses, self.adapters = fitted(steps.sft_step(self.setup, OPTIMIZER), begin, self.params, at, epochs.steps)
        return self.work


def stepped(ours: Epoch, k: int, peer: peers.Sft) -> None:
    """After a single step on the same examples, adapter k and the peer's have the same loss and have moved the same way."""
    agree("loss of a step", ours.losses[k], peer.loss, STEP_LOSS[ours.setup.dtype])
    moved_alike(ours.made, ours.adapters, k, peer.trained, ours.setup.dtype)


def moved_alike(made: Shape, adapters: Any, k: int, peer: Any, dtype: str) -> None:
    """Adapter k and the peer's have moved the same way in their first step.

    Random weights find all tokens nearly as likely, so the loss alone tells little of what was trained. But Adam's first step moves each
    weight of a fresh B by its gradient's sign, and in a share of them other targets turn it round.
    """
    with TemporaryDirectory(prefix="benchmark-") as folder:
        peft.save_adapter(Path(folder), made.config, LORA, adapters, k, "")
        mine = load_file(Path(folder, "adapter_model.safetensors"))
    same = [np.ravel(np.sign(mine[key]) == np.sign(x)) for key, x in peers.adapter(peer).items() if "lora_B" in key]
    agree("share of weights that moved the same way", float(np.concatenate(same).mean()), 1.0, TURNED[dtype])


def same_step(made: Shape, data: Texts, dtype: str, *how: Any) -> None:
    """Both sides take a step on the same examples from the same weights."""
    first = Texts(data.questions[:BATCH], data.answers[:BATCH])
    ours, peer = Epoch(made, [first.samples], dtype), peers.Sft(made, first, BATCH, *how)
    ours()
    peer()
    stepped(ours, 0, peer)


def sft_epoch(size: Size, released: bool) -> dict[str, Any]:
    """An epoch of SFT on ragged examples against TRL, one example at a time as the paper's released code, or as many as suits it best."""
    made = shape(size.model)
    dtype = "bfloat16" if peers.DEVICE == "cuda" else "float32"
    data = texts(size.examples, made.config.vocab_size)
    ways = [(n, by_length) for n in size.micro for by_length in (False, True) if n > 1 or not by_length]
    how = (1, False) if released else best(ways, lambda way: peers.Sft(made, data, BATCH, *way))
    ours, peer = Epoch(made, [data.samples], dtype), peers.Sft(made, data, BATCH, *how)

    def same() -> None:
        agree("tokens that the loss is on", ours.targets(), peer.targets(), 0.0)
        agree("mean loss of an epoch", ours.losses[0], peer.loss, EPOCH_LOSS)
        same_step(made, data, dtype, *how)

    row = race(ours, peer, "tokens", size.repeats, same).row()
    return row | {"peer_batch": how[0], "peer_by_length": how[1], "roof": roof(flops.adapters(made.config, LORA) * row["ours"], dtype)}


def comparisons(data: Texts, count: int) -> list[batches.Verdict]:
    """Questions with two answers each, and a class."""
    q, a, n = data.questions, data.answers, len(data.questions)
    return [(q[i % n] + a[i % n][:-1] + a[(i + 1 + i // n) % n], i % 2) for i in range(count)]


def evaluator_step(size: Size) -> dict[str, Any]:
    """A training step of the evaluator, all weights, on ragged comparisons; the peer's as many at a time as suits it best, by length."""
    made = shape(size.model)
    rows = comparisons(texts(BATCH // 2, made.config.vocab_size), BATCH // 2)
    tokens = float(sum(len(ids) for ids, _ in rows))
    batch = batches.classes(rows, Epochs((len(rows),), len(rows), 1, 0), 0, Packing(lora.even_length(made.config)))(0)
    setup = Setup(made.config)
    tree = evaluator.initial(made.params("float32"), jax.random.key(0))
    head, by_length = peers.torch.tensor(np.array(tree["head"][0].T)), sorted(rows, key=lambda row: len(row[0]))

    def steps_of(micro: int) -> TorchSteps:
        model = peers.classifier(made)
        with peers.torch.no_grad():
            model.score.weight.copy_(head)

        def loss(part: list[batches.Verdict]) -> Any:
            ids, mask = peers.padded([ids for ids, _ in part])
            labels = peers.torch.tensor([label for _, label in part], device=peers.DEVICE)
            return model(input_ids=ids, attention_mask=mask, labels=labels).loss * len(part) / len(rows)

        return TorchSteps(model, [partial(loss, by_length[i : i + micro]) for i in range(0, len(rows), micro)], tokens)

    micro = best([n for n in size.micro if n <= len(rows)], steps_of)
    ours, peer = Steps(steps.evaluator_step(setup, OPTIMIZER), trained(setup, tree), {}, batch, tokens), steps_of(micro)
    same = lambda: agree("loss of the first step", ours.loss, peer.loss, STEP_LOSS["float32"])
    row = race(ours, peer, "tokens", size.repeats, same).row()
    return row | {"peer_batch": micro, "roof": roof(flops.classifier(made.config) * row["ours"], "float32")}


def ours_scored(made: Shape, rows: list[batches.Verdict], dtype: str, batch: int = 16) -> tuple[Side, list[float]]:
    """Our scoring of comparisons, and where the probabilities appear."""
    tree = evaluator.initial(made.params("float32"), jax.random.key(0))
    probabilities, out = steps.class_probabilities(Setup(made.config, dtype=dtype)), [0.0] * len(rows)

    def run() -> float:
        for taken, part in batches.scoring(rows, batch, 0):
            for i, p in zip(taken, np.asarray(probabilities(tree, {}, part))[:, 0, 1], strict=False):
                out[i] = float(p)
        return float(len(rows))

    return run, out


def peer_scored(made: Shape, rows: list[batches.Verdict], dtype: str, batch: int) -> tuple[Side, list[float]]:
    """The peer's scoring, batches sorted by length."""
    model, out = peers.classifier(made, dtype).eval(), [0.0] * len(rows)
    head = evaluator.initial(made.params("float32"), jax.random.key(0))["head"]
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i][0]))

    def run() -> float:
        with peers.torch.inference_mode():
            for start in range(0, len(order), batch):
                taken = order[start : start + batch]
                ids, mask = peers.padded([rows[i][0] for i in taken])
                found = model(input_ids=ids, attention_mask=mask).logits.float().softmax(-1)[:, 1].tolist()
                for i, p in zip(taken, found, strict=True):
                    out[i] = p
        return float(len(rows))

    with peers.torch.no_grad():
        model.score.weight.copy_(peers.torch.tensor(np.array(jnp.asarray(head[0].T, jnp.float32))))
    return run, out


def agree_scores(ours: list[float], peer: list[float], dtype: str) -> None:
    """Every score of both sides is the same, up to rounding."""
    near("scores", ours, peer, 1e-3 if dtype == "float32" else 5e-2)


def scoring(size: Size) -> dict[str, Any]:
    """The evaluator's scores of ragged comparisons in both orders."""
    made, dtype = shape(size.model), "bfloat16" if peers.DEVICE == "cuda" else "float32"
    rows = comparisons(texts(size.scored, made.config.vocab_size), 2 * size.scored)
    ours, mine = ours_scored(made, rows, dtype)
    batch = best(size.micro, lambda n: peer_scored(made, rows, dtype, n)[0])
    peer, theirs = peer_scored(made, rows, dtype, batch)
    row = race(ours, peer, "comparisons", size.repeats, lambda: agree_scores(mine, theirs, dtype)).row()
    rate = flops.FORWARD * flops.layers(made.config) * sum(len(ids) for ids, _ in rows) / len(rows) * row["ours"]
    return row | {"peer_batch": batch, "roof": roof(rate, dtype)}


step_float32 = partial(full_rows, dtype="float32")
step_bfloat16 = partial(full_rows, dtype="bfloat16")
step_remat = partial(full_rows, dtype="float32", remat=True)
epoch_released = partial(sft_epoch, released=True)
epoch_best = partial(sft_epoch, released=False)
