"""What the methods are made of, each a stage on disk: fine-tune and answer (preferences are in `dpo`, the evaluator in `evaluator`).

A stage is named by its settings and by hashes of the texts and weights that go in, so methods, rounds and runs that need the same work
share it. Here everything is about models; what is asked of them and in which order is in `lab` and `rounds`.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax

from ilr_jax import batches, hosts, interruption, sharding, tokenizer
from ilr_jax.batches import Epochs, Packing, Sample
from ilr_jax.files import explained, read_rows, write_rows
from ilr_jax.mirror import Mirror
from ilr_jax.models import backend, flops, lora
from ilr_jax.models.attention import Implementation
from ilr_jax.models.config import ModelConfig
from ilr_jax.models.lora import Lora
from ilr_jax.models.platform import platform
from ilr_jax.roles import Model, fingerprint
from ilr_jax.sample.beam import BeamSettings
from ilr_jax.sample.generate import generate
from ilr_jax.sample.requests import Request
from ilr_jax.sample.rollout import SamplingSettings
from ilr_jax.sharding import Layout
from ilr_jax.store import Build, Store
from ilr_jax.train import checkpoint, loop, state, steps
from ilr_jax.train.optimizer import OptimizerConfig
from ilr_jax.train.steps import Setup
from ilr_jax.types import Answer, Artifact, Config, Example, Stage

# Completion positions of every row that meet the vocabulary at a time: the more, the fuller are products with the head, and the more memory
# their logits take. 16 is best on a CPU; on an H100, 16 instead of 128 made a step of Mistral-7B 5 % longer.
CHUNK, CHUNK_CPU = 64, 16
ADAPTERS, SNAPSHOTS, METRICS = "adapters.safetensors", "snapshots.safetensors", "metrics.jsonl"


class Cost(NamedTuple):
    """What a stage took: seconds, and floating-point operations of training (`models.flops`)."""

    seconds: float
    training_flops: float


@dataclass
class Bench:
    """Where stages are built: the store, the settings, and the adapters' shape; `place` says which part of the experiment asks for them."""

    store: Store
    config: Config
    place: str = ""
    spent: dict[str, Cost] = field(default_factory=dict)  # stage asked for -> what it took, whenever that was
    layouts: Mapping[ModelConfig, Layout] = field(default_factory=dict)  # how each model is split over devices; none: one device

    @property
    def layout(self) -> Layout | None:
        """How rows are split over devices, whoever reads them; None: one device."""
        return next(iter(self.layouts.values()), None)

    def layout_of(self, model: ModelConfig) -> Layout | None:
        """How a model is split over devices; None: one device."""
        return self.layouts[model] if self.layouts else None

    @property
    def lora(self) -> Lora:
        """The adapters' shape, of SFT and DPO."""
        c = self.config.lora
        return Lora(c.rank, c.alpha, lora.ALL_LINEAR if c.modules == "all" else tuple(name.strip() for name in c.modules.split(",")))

    @property
    def dtype(self) -> str:
        """`compute.dtype`, with auto resolved by the platform."""
        wanted = self.config.compute.dtype
        return wanted if wanted != "auto" else "float32" if jax.default_backend() == "cpu" else "bfloat16"

    def rows(self, count: int, groups: int = 1, parts: int = 1) -> int:
        """`count` rows of each of `groups` adapters, rounded up to what divides evenly over devices and `parts`."""
        multiple = parts * sharding.row_multiple(self.layout, groups)
        return -(-count // multiple) * multiple

    def check(self, models: Sequence[ModelConfig]) -> None:
        """Raise ValueError for adapters or attention that cannot be."""
        _ = self.lora  # which refuses layers that are not there
        backend.check(self.config.compute.attention, models, self.dtype)

    def attention(self, model: ModelConfig) -> Implementation:
        """`compute.attention` for a model, with auto resolved."""
        return backend.choose(self.config.compute.attention, model, self.dtype, split=self.layout is not None)

    def setup(self, model: ModelConfig, lora: Lora | None = None) -> Setup:
        """What the training steps of a model are compiled for, of all its weights where no adapters are given."""
        c = self.config.compute
        how = {"attention": self.attention(model), "remat": c.remat, "microbatches": c.microbatches, "layout": self.layout_of(model)}
        if lora is None:
            how["remat"] = c.remat if c.evaluator.remat == "same" else c.evaluator.remat
            how["microbatches"] = c.evaluator.microbatches or c.microbatches
        return Setup(model, lora, self.dtype, chunk=CHUNK_CPU if platform() == "cpu" else CHUNK, **how)

    def optimizer(self, section: Config) -> OptimizerConfig:
        """The optimiser of a role (`weak`, `strong`, `evaluator`, `dpo`)."""
        return OptimizerConfig(section.optimizer, section.learning_rate, warmup=self.config.sft.warmup)

    def beam(self) -> BeamSettings:
        """Beam search, as all test answers are made."""
        c, compute = self.config.decoding, self.config.compute
        return BeamSettings(c.max_new_tokens, c.beams, c.length_rule, prompts=compute.beam_batch, bucket=compute.bucket)

    def sampled(self, temperature: float, n: int = 1) -> SamplingSettings:
        """Sampling of `n` answers a question."""
        c, compute = self.config.decoding, self.config.compute
        return SamplingSettings(c.max_new_tokens, temperature, c.top_k or None, c.top_p, n, slots=compute.slots, bucket=compute.bucket)

    def decoded(self, how: str, n: int = 1) -> BeamSettings | SamplingSettings:
        """Beam search or `n` samples, as `decoding.labels` and `decoding.proposals` say."""
        return self.beam() if how == "beam" else self.sampled(self.config.decoding.temperature, n)

    def packing(self, setup: Setup, adapters: int = 1) -> Packing:
        """How the rows of a training step are laid out, for each of its `adapters`."""
        return Packing(lora.even_length(setup.config), self.rows(1, adapters, setup.microbatches))

    def random_key(self) -> jax.Array:
        """The key of the config's seed."""
        return jax.random.key(self.config.seed)

    def run(self, name: str, settings: Mapping[str, Any], inputs: Mapping[str, str], build: Build, per_token: int = 0) -> Artifact:
        """The artifact of a stage that depends on `settings`, `inputs`, the seed and the texts of `tokenizer`: found, or built.

        `per_token` are the FLOPs of a training, whose tokens its `metrics.jsonl` tells.
        """

        def announced(folder: Path) -> Mapping[str, Any] | None:
            self.say(name)
            return build(folder)

        interruption.check()
        common = {"seed": self.config.seed, "texts": fingerprint([tokenizer.PROMPT, tokenizer.COMPARISON])}
        artifact = self.store.run(Stage(name, {**settings, **common}, inputs), announced)
        if artifact.folder not in self.spent:
            tokens = _tokens(Path(artifact.folder) / METRICS) if per_token else 0
            self.spent[artifact.folder] = Cost(self.store.seconds(artifact), float(per_token * tokens))
        return artifact

    def say(self, line: str) -> None:
        """Print a line that says which part of the experiment it is about."""
        if hosts.leads():
            print(f"{self.place}: {line}" if self.place else line, flush=True)


def fine_tune(
    bench: Bench, model: Model, section: Config, name: str, sets: Sequence[Sequence[tuple[str, str]]], snapshots: int = 0
) -> Artifact:
    """K adapters from the base, adapter k on the (question, answer) pairs `sets[k]`, all in one pass.

    The artifact holds them, and with `snapshots` also that many states of adapter 0 on the way, as K' = snapshots adapters.
    """
    optimizer = bench.optimizer(section)
    settings = {"lora": asdict(bench.lora), "optimizer": asdict(optimizer), "epochs": section.epochs, "sft": bench.config.sft.to_dict()}
    settings |= {"snapshots": snapshots}

    def build(folder: Path) -> Mapping[str, Any]:
        """Train the adapters, and gather the snapshots."""
        c = bench.config.sft
        data = [tokenised(model, pairs) for pairs in sets]
        epochs = Epochs(tuple(len(samples) for samples in data), c.batch, section.epochs, bench.config.seed)
        setup = bench.setup(model.config, bench.lora)
        at = batches.sft(data, epochs, model.tokenizer.pad, c.normalize, c.max_length, bench.packing(setup, len(data)))
        adapters = lora.init(model.config, bench.lora, jax.random.split(bench.random_key(), len(data)))
        start = state.init(sharding.put_weights(setup.layout, {"adapters": adapters}), optimizer, epochs.totals, layout=setup.layout)
        step = steps.sft_step(setup, optimizer)
        keep = partial(_keep_snapshot, folder / "resume")
        done = fit(bench, name, folder, step, start, model.params, at, epochs.steps, snapshots=snapshots, on_snapshot=keep)
        checkpoint.save_tree(folder / ADAPTERS, done.state.trainable)
        if snapshots:
            taken = [folder / "resume" / f"{i}.safetensors" for i in range(1, snapshots + 1)]
            hosts.told(lambda: checkpoint.join(taken, folder / SNAPSHOTS))
        cut = sum(0 < c.max_length < len(prompt) + len(answer) for samples in data for prompt, answer in samples)
        return {"examples": list(epochs.sizes), "steps": list(epochs.totals), "cut_to_max_length": cut}

    inputs = {"model": model.digest, "data": fingerprint(sets)}
    return bench.run(name, settings, inputs, build, flops.adapters(model.config, bench.lora))


def fit(bench: Bench, name: str, folder: Path, *args: Any, **options: Any) -> loop.Fitted:
    """`loop.fit` in what survives a kill; of its logs the metrics become part of the stage, TensorBoard's (with times in them) do not."""
    where = folder / "resume"
    options |= {"save_seconds": bench.config.compute.save_every, "keep": bench.config.compute.save_keep, "mirror": bench.store.mirror}
    done = loop.fit(*args, folder=where, name=name, put=partial(sharding.put_rows, bench.layout), **options)
    hosts.told(lambda: _keep_logs(where, folder, bench.store.root / "tensorboard" / folder.name, bench.store.mirror))
    return done


def _keep_logs(where: Path, folder: Path, board: Path, mirror: Mirror) -> None:
    shutil.copyfile(where / METRICS, folder / METRICS)
    shutil.rmtree(board, ignore_errors=True)
    shutil.copytree(where / "tensorboard", board)
    mirror.drop(board)
    mirror.push(board)


def _tokens(metrics: Path) -> int:
    """The tokens that a training saw, from its log."""
    with explained(metrics, "read"):
        lines = metrics.read_bytes().splitlines()
    return sum(count or 0 for line in lines for count in json.loads(line).get("tokens", ()))


def tokenised(model: Model, pairs: Sequence[tuple[str, str]]) -> list[Sample]:
    """(prompt ids, answer ids) of (question, answer) pairs."""
    questions, answers = [q for q, _ in pairs], [a for _, a in pairs]
    return list(zip(model.tokenizer.prompts(questions), model.tokenizer.answers(answers), strict=True))


def _keep_snapshot(folder: Path, number: int, trainable: Any) -> None:
    checkpoint.save_tree(folder / f"{number}.safetensors", state.take(trainable, 0))


def load_adapters(bench: Bench, model: Model, path: Path, k: int) -> Any:
    """The trained tree {"adapters": ...} of K adapters that a stage left in `path`."""
    like = jax.eval_shape(lambda: {"adapters": lora.init(model.config, bench.lora, jax.random.split(jax.random.key(0), k))})
    return checkpoint.load_tree(path, like, bench.layout_of(model.config))


def answer(
    bench: Bench,
    model: Model,
    name: str,
    groups: Sequence[Sequence[Example]],
    how: BeamSettings | SamplingSettings,
    adapters: Artifact,
    file: str = ADAPTERS,
    purpose: str = "",
) -> Artifact:
    """The answers of adapter k of `adapters` to the questions `groups[k]`, in one pass: `answers.jsonl`, in the groups' order.

    Samples are drawn for a `purpose`: another one, such as another round, draws others. Beam search draws nothing and knows none.
    """
    asked = [(k, example) for k, group in enumerate(groups) for example in group]
    settings = {"how": _identity(how), "lora": asdict(bench.lora), "file": file}
    settings |= {"purpose": purpose} if isinstance(how, SamplingSettings) else {}
    inputs = {
        "model": model.digest,
        "adapters": adapters.manifest["digest"],
        "questions": fingerprint([(k, e.id, e.prompt) for k, e in asked]),
    }

    def build(folder: Path) -> Mapping[str, Any]:
        """Ask, and write the answers as rows."""
        tokens = model.tokenizer
        prompts = tokens.prompts([example.prompt for _, example in asked])
        requests = [Request(ids, k, _request_id(purpose, k, example)) for ids, (k, example) in zip(prompts, asked, strict=True)]
        weights = load_adapters(bench, model, Path(adapters.folder) / file, len(groups))["adapters"]
        outputs = generate(
            model.config,
            model.params,
            weights,
            requests,
            how,
            eos=tokens.stops,
            lora=bench.lora,
            key=bench.config.seed,
            pad=tokens.pad,
            dtype=bench.dtype,
            attention=bench.attention(model.config),
            layout=bench.layout_of(model.config),
            progress=name,
        )
        rows = [
            Answer(example.id, k, i, tokens.decode(c.tokens), float(c.log_prob), c.finished)
            for (k, example), completions in zip(asked, outputs, strict=True)
            for i, c in enumerate(completions)
        ]
        write_rows(folder / "answers.jsonl", rows)
        return {"answers": len(rows), "unfinished": sum(not row.finished for row in rows)}

    return bench.run(name, settings, inputs, build)


def _identity(how: BeamSettings | SamplingSettings) -> dict[str, Any]:
    """What of the settings decides the answers; batch sizes do not."""
    sizes = ("slots", "prompts", "chunk", "bucket")
    return {"kind": type(how).__name__} | {name: value for name, value in asdict(how).items() if name not in sizes}


def _request_id(purpose: str, k: int, example: Example) -> int:
    """What a question's random numbers are keyed by, in 32 bits: the same whatever else is asked."""
    return int(fingerprint([purpose, k, example.id])[:8], 16)


def answers_of(artifact: Artifact) -> list[Answer]:
    """The rows that `answer` wrote."""
    return read_rows(Path(artifact.folder) / "answers.jsonl", Answer)
