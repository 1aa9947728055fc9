"""The programs of an experiment, with shapes in place of arrays: which there are, what each is compiled for, and how often it runs.

They are the very functions that an experiment runs, for rows of one length; here nothing has a value. Not here: what they cost (`hlo`), and
what is said of it.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from ilr_jax import batches, evaluator, sharding
from ilr_jax.batches import Epochs, Preference
from ilr_jax.models import decoder, flops, lora
from ilr_jax.models.config import ModelConfig
from ilr_jax.plan.counts import counted
from ilr_jax.sample import beam, rollout, slots
from ilr_jax.sample.beam import BeamSettings
from ilr_jax.sample.engine import PREFILLS
from ilr_jax.sample.generate import merges
from ilr_jax.sample.requests import padded, prompt_rows
from ilr_jax.sample.rollout import SamplingSettings
from ilr_jax.sample.slots import Compute, Fill
from ilr_jax.services.judge import LETTERS
from ilr_jax.sharding import Layout
from ilr_jax.stages import Bench
from ilr_jax.train import state, steps

Decoding = SamplingSettings | BeamSettings


@dataclass(frozen=True)
class Load:
    """How much there is: examples and test questions; tokens of a prompt and of an answer, of which a training row holds `length`."""

    examples: int
    tests: int
    prompt: int
    answer: int
    length: int

    @property
    def sample(self) -> int:
        """Tokens of a training sample."""
        return self.prompt + self.answer

    @property
    def comparison(self) -> int:
        """Tokens of a question with two answers."""
        return self.prompt + 2 * self.answer

    def rows(self, samples: int, tokens: int) -> int:
        """Rows that so many samples of so many tokens are packed into."""
        return -(-samples // max(self.length // tokens, 1))


@dataclass(frozen=True)
class Program:
    """One compiled program: `function` of `given()`, which runs `times` times in all, each on `tokens` and with `flops` in matrix products.

    `field` is what to lower or raise in the config where it does not fit; `beside` are bytes of a device that its stage holds beside it.
    """

    stage: str
    function: Any
    given: Callable[[], tuple[Any, ...]]
    times: int
    tokens: int
    flops: float
    trains: bool
    field: str
    beside: int = 0

    def lower(self) -> Any:
        """Ready to be compiled."""
        return self.function.lower(*self.given())

    def arguments(self) -> int:
        """Bytes of a device that its arguments take."""
        return slots.bytes_here([x for x in jax.tree.leaves(self.given()) if isinstance(x, jax.ShapeDtypeStruct)])


@dataclass(frozen=True)
class Planned:
    """The experiment whose programs these are."""

    bench: Bench
    models: dict[str, ModelConfig]
    load: Load
    devices: Sequence[Any]
    memory: float = math.inf  # bytes of a device
    graded: bool = True  # whether the task says which answers are right

    def _layout(self, role: str) -> Layout | None:
        return self.bench.layout_of(self.models[role])

    def programs(self) -> Iterator[Program]:
        """Those that the experiment runs, in their order; what several stages share stands once, with all its runs.

        Left out, as they are small or like the ones that stand here: the evaluator's validation, the supervisor's own test, and prefill of
        anything but proposals.
        """
        c, load = self.bench.config, self.load
        n = counted(c, load.examples, load.tests, self.graded)
        bench, d = self.bench, c.decoding
        k = 1 if c.refine.proposer == "same" else c.folds
        labels, proposals = bench.decoded(d.labels), bench.decoded(d.proposals, c.refine.samples)
        drawn, policy = bench.sampled(c.evaluator.temperature), bench.sampled(c.dpo.temperature, c.dpo.samples)
        made: tuple[tuple[int, Callable[[int], Program]], ...] = (
            (n.weak, lambda times: self._sft("weak SFT", "weak", 1, times)),
            (n.weak_labels, lambda asked: self._answers(f"weak labels, {d.labels}", "weak", 1, labels, asked)),
            (n.evaluator_answers, lambda asked: self._answers("evaluator's answers", "weak", c.evaluator.checkpoints, drawn, asked)),
            (n.evaluator, self._evaluator),
            (n.sft, lambda times: self._sft("SFT", "strong", 1, times)),
            (n.folds, lambda times: self._sft(f"{k} fold models", "strong", k, times)),
            (n.proposals, lambda asked: self._prefill("prefill of proposals", "strong", k, proposals, asked)),
            (n.proposals, lambda asked: self._answers(f"proposals, {d.proposals}", "strong", k, proposals, asked)),
            (n.compared, lambda asked: self._score("comparisons", 2 * asked)),
            (n.judged, lambda asked: self._judge("the judge's comparisons", 2 * asked)),
            (n.tests, lambda asked: self._answers("test, beam", "strong", 1, bench.beam(), asked)),
            (n.dpo_samples, lambda asked: self._answers("DPO's samples", "strong", 1, policy, asked)),
            (n.dpo_reference, lambda asked: self._reference("DPO's reference", asked)),
            (n.dpo, self._dpo),
        )
        return (make(times) for times, make in made if times)

    # Shapes, each placed on its devices.

    def _placed(self, layout: Layout | None, x: Any, *names: str | None) -> Any:
        where = layout.sharding(*names) if layout else jax.sharding.SingleDeviceSharding(self.devices[0])
        return jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=where)

    def _weights(self, role: str, tree: Any) -> Any:
        if (layout := self._layout(role)) is None:
            return jax.tree.map(lambda x: self._placed(None, x), tree)
        put = lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
        return jax.tree.map(put, tree, sharding.shardings(layout, tree))

    def _rows(self, batch: Any) -> Any:
        return jax.tree.map(lambda x: self._placed(self.bench.layout, x, "batch", *(None,) * (np.ndim(x) - 1)), batch)

    def _params(self, role: str) -> Any:
        return self._weights(role, decoder.abstract(self.models[role], self.bench.dtype))

    def _adapters(self, role: str, k: int) -> Any:
        return jax.eval_shape(lambda: lora.init(self.models[role], self.bench.lora, jax.random.split(jax.random.key(0), k)))

    def _setup(self, role: str, adapters: bool) -> steps.Setup:
        return self.bench.setup(self.models[role], self.bench.lora if adapters else None)

    def _state(self, role: str, trainable: Any, section: Any) -> Any:
        k = jax.tree.leaves(trainable)[0].shape[0]
        return self._weights(role, jax.eval_shape(lambda tree: state.init(tree, self.bench.optimizer(section), [1] * k), trainable))

    # Training.

    def _sft(self, stage: str, role: str, k: int, times: int) -> Program:
        c, load = self.bench.config, self.load
        setup = self._setup(role, True)
        rows = k * self.bench.rows(load.rows(c.sft.batch, load.sample), k, setup.microbatches)
        per_row = max(load.length // load.sample, 1)
        sample = [0] * (min(load.length, load.sample) - load.answer), [0] * load.answer
        batch = batches.documents([[sample] * per_row] * rows, 0, "sequence", load.length, batches.bucket(per_row * load.answer))
        tree = {"adapters": self._adapters(role, k)}
        step: Any = steps.sft_step(setup, self.bench.optimizer(c[role]))
        given = lambda: (self._state(role, tree, c[role]), self._params(role), self._rows(batch))
        work = float(flops.adapters(self.models[role], self.bench.lora) * rows * load.length)
        return Program(stage, step, given, times, rows * load.length, work, True, "compute.microbatches")

    def _dpo(self, times: int) -> Program:
        c, load, role = self.bench.config, self.load, "strong"
        side = [0] * load.prompt, [0] * load.answer
        tokens = load.prompt + 2 * load.answer
        setup = self._setup(role, True)
        rows, length = self.bench.rows(load.rows(c.dpo.batch, tokens), parts=setup.microbatches), max(load.length, tokens)
        per_row = length // tokens
        pairs = [[Preference(side, side, 0.0, 0.0)] * per_row] * rows
        batch = batches.pair_rows(pairs, 0, length, batches.bucket(2 * per_row * load.answer), per_row)
        step: Any = steps.dpo_step(setup, self.bench.optimizer(c.dpo), c.dpo.beta, c.dpo.loss, c.dpo.smoothing)
        given = lambda: (self._state(role, {"adapters": self._adapters(role, 1)}, c.dpo), self._params(role), self._rows(batch))
        work = float(flops.adapters(self.models[role], self.bench.lora) * rows * length)
        return Program("DPO", step, given, times, rows * length, work, True, "compute.microbatches")

    def _classifier(self) -> Any:
        return jax.eval_shape(evaluator.initial, decoder.abstract(self.models["evaluator"]), jax.random.key(0))

    def _evaluator(self, times: int) -> Program:
        c, load, role = self.bench.config, self.load, "evaluator"
        setup = self._setup(role, False)
        rows = self.bench.rows(load.rows(c.evaluator.batch, load.comparison), parts=setup.microbatches)
        length = max(load.length, load.comparison)
        data = [([0] * length, 0)] * rows
        batch = batches.classes(data, Epochs((rows,), rows, 1, 0), 0, batches.Packing())(0)
        step: Any = steps.evaluator_step(setup, self.bench.optimizer(c.evaluator))
        given = lambda: (self._state(role, self._classifier(), c.evaluator), {}, self._rows(batch))
        size = rows * batch.rows.tokens.shape[1]
        best = slots.bytes_here(self._weights(role, self._classifier()))  # which early stopping keeps
        work = float(flops.classifier(self.models[role]) * size)
        return Program("evaluator", step, given, times, size, work, True, "compute.evaluator.microbatches", best)

    # Scoring and decoding.

    def _score(self, stage: str, requests: int) -> Program:
        load, role = self.load, "evaluator"
        n = self.bench.rows(self.bench.config.compute.score_batch)
        batch = next(iter(batches.scoring([([0] * load.comparison, 0)] * n, n, 0)))[1]
        run: Any = steps.class_probabilities(self._setup(role, False))
        given = lambda: (self._weights(role, self._classifier()), {}, self._rows(batch))
        work = float(flops.FORWARD * flops.layers(self.models[role]) * batch.rows.tokens.size)
        base = slots.bytes_here(self._params("strong")) if "strong" in self.models else 0  # stays for the next training
        return Program(stage, run, given, -(-requests // n), batch.rows.tokens.size, work, False, "compute.score_batch", base)

    def _judge(self, stage: str, requests: int) -> Program:
        load, role = self.load, "judge"
        n = self.bench.rows(self.bench.config.compute.score_batch)
        batch = next(iter(batches.options([[0] * load.comparison] * n, [0] * len(LETTERS), n, 0)))[1]
        run: Any = steps.token_log_probs(self._setup(role, False))
        given = lambda: ({}, self._params(role), self._rows(batch))
        return self._read(stage, role, run, given, -(-requests // n), batch.rows.tokens.size, "compute.score_batch")

    def _reference(self, stage: str, requests: int) -> Program:
        c, load, role = self.bench.config, self.load, "strong"
        n = self.bench.rows(c.compute.score_batch)
        samples = [([0] * load.prompt, [0] * load.answer)] * n
        batch = next(iter(batches.likelihoods(samples, n, 0, c.sft.max_length)))[1]
        run: Any = steps.sequence_log_probs(self._setup(role, True))
        given = lambda: (self._weights(role, {"adapters": self._adapters(role, 1)}), self._params(role), self._rows(batch))
        return self._read(stage, role, run, given, -(-requests // n), batch.rows.tokens.size, "compute.score_batch")

    def _compute(self, role: str) -> Compute:
        return Compute(self.models[role], self.bench.dtype, self.bench.attention(self.models[role]), self._layout(role))

    def _decoder(self, role: str, k: int, how: Decoding) -> tuple[Any, Any]:
        """Weights as decoding has them: adapters are merged where that is faster and there is room for it."""
        params, adapters, made = self._params(role), self._adapters(role, k), self.bench.lora
        if merges(self.models[role], made, k, how, self._layout(role)) and slots.has_room_for(params, k, self.memory):
            copies = params if k == 1 else jax.eval_shape(lambda p, a: lora.merge(p, a, made, None), params, adapters)
            return self._weights(role, copies), None
        return params, self._weights(role, jax.eval_shape(lambda tree: lora.prepare(tree, made, self.bench.dtype), adapters))

    def _beside(self, role: str, weights: tuple[Any, Any]) -> int:
        """Bytes of the base that stays in memory beside merged weights."""
        return slots.bytes_here(self._params(role)) if weights[1] is None else 0

    def _split(self, role: str, tree: Any) -> Any:
        return jax.tree.map(lambda x: self._placed(self._layout(role), x, *slots.axes(x.ndim)), tree)

    def _read(
        self, stage: str, role: str, function: Any, given: Callable[[], tuple], times: int, tokens: int, field: str, beside: int = 0
    ) -> Program:
        """A program that reads or writes so many tokens each time."""
        config = self.models[role]
        work = float(flops.FORWARD * tokens * (flops.layers(config) + config.hidden_size * config.vocab_size))
        return Program(stage, function, given, times, tokens, work, False, field, beside)

    def _slots(self, role: str, k: int, how: Decoding) -> tuple[int, Any]:
        """How many answers are under way, and the state of decoding them."""
        multiple, compute, length = sharding.row_multiple(self.bench.layout, k), self._compute(role), padded(self.load.prompt, how.bucket)
        n = k * (-(-max((how.slots if isinstance(how, SamplingSettings) else how.prompts) // k, 1) // multiple) * multiple)
        if isinstance(how, SamplingSettings):
            return n, self._split(role, jax.eval_shape(lambda: rollout.blank(compute, n, length, how.max_new_tokens)))
        return n, self._split(role, jax.eval_shape(lambda: beam.blank(compute, how, n, length)))

    def _answers(self, stage: str, role: str, k: int, how: Decoding, answers: int) -> Program:
        """A chunk of steps; answers of the mean length keep all slots full."""
        compute, weights, (n, blank) = self._compute(role), self._decoder(role, k, how), self._slots(role, k, how)
        chunks, wanted, beside = -(-answers * self.load.answer // (n * how.chunk)), np.ones(k, np.int32), self._beside(role, weights)
        if isinstance(how, SamplingSettings):
            given = lambda: (compute, how.rule, (0,), how.chunk, weights, blank, wanted)
            return self._read(stage, role, rollout.advance, given, chunks, n * how.chunk, "compute.slots", beside)
        given = lambda: (compute, how, (0,), weights, blank, wanted)
        return self._read(stage, role, beam.advance, given, chunks, n * how.width * how.chunk, "compute.beam_batch", beside)

    def _prefill(self, stage: str, role: str, k: int, how: Decoding, answers: int) -> Program:
        """Prompts into free slots, each once for all its samples."""
        compute, weights, (n, blank) = self._compute(role), self._decoder(role, k, how), self._slots(role, k, how)
        sampled = isinstance(how, SamplingSettings)
        copies, length, key = how.n if sampled else 1, padded(self.load.prompt, how.bucket), jax.eval_shape(lambda: jax.random.key(0))
        rows = max(1, n // k // copies // PREFILLS) * k
        fill = Fill(prompt_rows([[0]] * rows, length, 0), *(np.zeros(rows * copies, np.int32) for _ in range(6)))
        times, beside = -(-answers // copies // rows), self._beside(role, weights)
        field = "compute.slots" if sampled else "compute.beam_batch"
        given = lambda: (compute, weights, blank, fill, *([self._placed(None, key)] * sampled))
        return self._read(stage, role, (rollout if sampled else beam).admit, given, times, rows * length, field, beside)
