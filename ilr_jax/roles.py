"""Base models in memory, with their tokenizers, and the hashes that stand for them in the stages' names."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from ilr_jax import hosts, sharding
from ilr_jax.files import encode, sha256_of
from ilr_jax.models import config as model_config
from ilr_jax.models import decoder, hf
from ilr_jax.models.config import ModelConfig
from ilr_jax.sharding import Layout
from ilr_jax.tokenizer import Tokenizer
from ilr_jax.types import Config, Example

EMBEDDED = Path(__file__).parent / "embedded"
Ask = Callable[[Sequence[tuple[str, str, str]]], list[list[int]]]  # [(question, answer A, answer B)] -> token ids


def fingerprint(value: Any) -> str:
    """SHA-256 (hex) of anything that JSON can hold."""
    return hashlib.sha256(encode(value, "an input of a stage")).hexdigest()


def folder_of(source: str) -> Path:
    """The local folder of `embedded:NAME`, a path, or a model on the Hub (fetched)."""
    if not source.startswith("embedded:"):
        return hf.resolve(source)
    folder = EMBEDDED / source.removeprefix("embedded:")
    if not folder.is_dir():
        raise ValueError(f"model {source!r}: the embedded models are {', '.join(sorted(path.name for path in EMBEDDED.iterdir()))}")
    return folder


def config_of(source: str) -> ModelConfig:
    """The config of a model as `folder_of` names it, of which nothing else is fetched."""
    local = source.startswith("embedded:") or Path(source).is_dir()
    return model_config.read(folder_of(source) if local else hf.resolve(source, ("config.json",)))


def _file_hash(path: Path) -> str:
    """SHA-256 of a file; the Hub's cache names its large files by it, which spares reading them."""
    name = path.resolve().name
    return name if path.is_symlink() and len(name) == 64 else sha256_of(path)


@dataclass
class Memory:
    """Where the parameters of models go: how those of each are split over devices, and whose are there at present."""

    layouts: Mapping[ModelConfig, Layout] = field(default_factory=dict)
    held: dict[Path, Mapping[str, Any]] = field(default_factory=dict)  # folder -> parameters, of one model at most


def comparers(config: Config, graded: bool) -> set[str]:
    """Who is asked to compare answers: evaluator, oracle or judge, and for a judge who that is: evaluator, endpoint or model.

    Where the task grades no test answers, a judge compares them with the references.
    """
    judged = config.feedback == "judge" or not graded
    return {config.feedback} | ({config.judge.kind} if judged else set())


def needed(config: Config, graded: bool) -> list[str]:
    """The models of an experiment: given demonstrations need no supervisor, but where the evaluator learns from its answers.

    The supervisors alone (`method=weak`) need no strong model.
    """
    who, strong = comparers(config, graded), {name.strip() for name in config.method.split(",")} != {"weak"}
    weak = "evaluator" in who or config.demos != "given" or not strong
    return ["weak"] * weak + ["strong"] * strong + ["evaluator"] * ("evaluator" in who) + ["judge"] * ("model" in who)


UNKNOWN_MEMORY = 16 * 2**30  # bytes of a device that does not say, such as a CPU


def layouts(
    wanted: Config, models: Mapping[str, ModelConfig], dtype: str, devices: Sequence[Any] | None = None, memory: int | None = None
) -> dict[ModelConfig, Layout]:
    """The layout of each model as the section `sharding` asks for it, all on one mesh, none for one device.

    What is left open is chosen for the models' weights and the evaluator's training; `auto` rules for each model by itself: Gemma-2B's one
    KV head is whole on every device, beside it Mistral's eight are split. All weights of the evaluator train: weights, gradient, two
    moments and the best state, in float32. `devices` and their `memory` [bytes] are this machine's, or described. Raises ValueError for
    what cannot be split.
    """
    here = hosts.told(lambda: (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", UNKNOWN_MEMORY))
    largest = max(size(model) * (20 if role == "evaluator" else np.dtype(dtype).itemsize) for role, model in models.items())
    units = [model.units for model in models.values()]
    axes = {"data": wanted.data, "fsdp": wanted.fsdp, "tensor": wanted.tensor}
    rules = wanted.rules.to_dict()
    common = sharding.choose(axes, rules, units, largest, here if memory is None else memory, devices)
    if common is None:
        return {}
    sizes, chosen = common.mesh.shape, list(common.mesh.devices.flat)
    found = {model: sharding.choose(sizes, rules, [model.units], 0, 0, chosen) for model in models.values()}
    return {model: layout for model, layout in found.items() if layout}


def size(config: ModelConfig) -> int:
    """The number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(decoder.abstract(config)))


class Model:
    """A base model: its folder, config and tokenizer, and its parameters once they are asked for.

    Of the models that share a memory, the parameters of one at a time are in it: two would not fit one accelerator beside a training.
    `template` is how the tokenizer puts a prompt.
    """

    def __init__(self, source: str, dtype: str, memory: Memory | None = None, template: Literal["plain", "chat"] = "plain"):
        self.folder, self.dtype = folder_of(source), dtype
        self._memory = memory or Memory()
        self.config: ModelConfig = model_config.read(self.folder)
        self.tokenizer = Tokenizer(self.folder, self.config, template)

    def check_weights(self) -> None:
        """Raise ValueError, listing them, for tensors that are missing, extra or misshapen; only the files' headers are read."""
        hf.check(self.folder, self.config)

    def check_prompts(self, examples: Sequence[Example], max_length: int | None = None) -> None:
        """Raise ValueError for the first question that leaves no room for an answer in the model's context, or in `max_length` tokens."""
        limits = {f"the context of {self.folder}": self.config.context} | ({"sft.max_length": max_length} if max_length else {})
        what, limit = min(limits.items(), key=lambda item: item[1])
        for example, length in zip(examples, self.tokenizer.lengths([e.prompt for e in examples]), strict=True):
            if length >= limit:
                raise ValueError(
                    f"example {example.id!r}: its prompt has {length} tokens, wanted at most {limit - 1}, one less than {what}; "
                    "shorten or drop it, or raise that limit"
                )

    def check_comparisons(self, pairs: Sequence[tuple[str, str]], longest: int, ask: Ask) -> None:
        """Raise ValueError for the first (question, reference) that leaves no room for two answers in a comparison.

        An answer has up to `longest` tokens, or is the reference ("" where it is never compared). `ask` makes the ids of comparisons of
        two answers.
        """
        bare = ask([(question, "", "") for question, _ in pairs])
        references = self.tokenizer.encode([reference for _, reference in pairs])
        for (question, _), ids, reference in zip(pairs, bare, references, strict=True):
            needed = len(ids) + max(len(reference), longest) + longest
            if needed > self.config.context:
                raise ValueError(
                    f"comparing two answers to the question that begins {question[:80]!r} may take {needed} tokens, wanted at most the "
                    f"context of {self.folder}, {self.config.context}; drop it, lower decoding.max_new_tokens, or take another model"
                )

    @cached_property
    def digest(self) -> str:
        """Stands for every byte of weights, config and tokenizer, for the chat template if it is used, and for the compute dtype.

        Process 0 alone reads the files whole; the others, which must all come here, have to have files of the same names and sizes.
        """
        files = sorted(p for p in self.folder.iterdir() if p.suffix in (".safetensors", ".json", ".model"))
        hosts.alike({path.name: path.stat().st_size for path in files}, f"give all of them the same files in {self.folder}")
        template = [self.tokenizer.chat_template] if self.tokenizer.chat_template else []
        return hosts.told(lambda: fingerprint([self.dtype, [[path.name, _file_hash(path)] for path in files], *template]))

    @property
    def params(self) -> Mapping[str, Any]:
        """The decoder's parameters in the compute dtype."""
        held, layouts = self._memory.held, self._memory.layouts
        if self.folder not in held:
            self.release()
            places = sharding.shardings(layouts[self.config], decoder.abstract(self.config)) if layouts else None
            held[self.folder] = hf.load(self.folder, dtype=self.dtype, sharding=places)[1]
        return held[self.folder]

    def release(self) -> None:
        """Let go of what is loaded; it is read again when it is asked for."""
        self._memory.held.clear()
