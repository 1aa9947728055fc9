"""Makes the embedded base models: trains the tokenizer and one of the two models on the synthetic corpus, and writes its folder.

    python tools/make_embedded.py --model gemma --out ilr_jax/embedded/gemma --checkpoints /tmp/embedded/gemma

Seeds, sizes and shares are in `RECIPES`; the log of the shipped models is in docs/embedded.md. Runs on one CPU core and prints a line every
100 steps. Fine-tuning formats are not part of it: the models are bases.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax.contrib import MuonDimensionNumbers, muon

sys.path.insert(0, str(Path(__file__).parent))
import embedded_corpus as corpus
import embedded_evals as evals
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from ilr_jax.models import config as model_config
from ilr_jax.models import decoder, hf
from ilr_jax.types import Rows

SPECIALS = ("<pad>", "<s>", "</s>")
WIDTHS = (64, 96, 112, 128, 144, 160, 192, 256, 320)


@dataclass(frozen=True)
class Phase:
    """A stretch of training: its layers, the shares of the corpus by documents, a cosine over `steps` steps that is left at `stop`.

    Layers beyond those of the phase before start as the identity. That is how the Gemma learns to compare: lines are judged in its fourth
    layer, so a verdict on whole answers needs layers behind that one.
    """

    layers: int
    shares: dict[str, float]
    steps: int
    seed: int
    stop: int | None = None
    rate: float = 0.015


@dataclass(frozen=True)
class Recipe:
    """How one model is made: its `config.json`, and its phases."""

    fields: dict[str, Any]
    phases: tuple[Phase, ...]


TOKENS, DECAY, EMBEDDING_RATE = 4096, 0.05, 0.2  # a step; weight decay of matrices; Adam's rate for all else, as a share of Muon's
COMMON = {
    "vocab_size": 1024,
    "max_position_embeddings": 1024,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-6,
    "head_dim": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}
GEMMA = {
    "architectures": ["GemmaForCausalLM"],
    "model_type": "gemma",
    "hidden_size": 96,
    "intermediate_size": 224,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "hidden_act": "gelu_pytorch_tanh",
}
MISTRAL = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "sliding_window": 512,
}
LEARN = {"solved": 0.3, "sums": 0.5, "marked_sums": 3.0, "compared_sums": 2.0, "marked": 4.0, "judged": 2.0, "compared": 1.0}
COMPARE = {"solved": 0.2, "sums": 0.2, "marked_sums": 1.5, "compared_sums": 2.0, "marked": 1.0, "judged": 2.0, "compared": 3.0}
SOLVE = {"solved": 6.0, "sums": 2.0, "marked_sums": 0.5, "compared_sums": 0.2, "marked": 0.3, "judged": 0.2, "compared": 0.3}
RECIPES = {
    "gemma": Recipe(COMMON | GEMMA, (Phase(4, LEARN, 5000, 11, stop=2000), Phase(6, COMPARE, 1200, 41, rate=0.008))),
    "mistral": Recipe(COMMON | MISTRAL, (Phase(4, SOLVE, 3000, 12),)),
}


def train_tokenizer(seed: int = 0) -> Tokenizer:
    """Byte-level BPE in which every digit is a token of its own; it encodes any text."""
    tokenizer = Tokenizer(models.BPE())
    digits, bytes_ = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, bytes_])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1024, special_tokens=list(SPECIALS), initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(corpus.tokenizer_texts(seed), trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, spans: list[corpus.Span]) -> tuple[list[int], list[float]]:
    """Ids of a document with end mark, and the loss weight of each: that of the span which its first character is in."""
    found = tokenizer.encode("".join(text for text, _ in spans))
    ends, weights = np.cumsum([len(text) for text, _ in spans]), [weight for _, weight in spans]
    which = np.searchsorted(ends, [start for start, _ in found.offsets], side="right")
    return [*found.ids, 2], [*(weights[i] for i in which), weights[-1] and 1.0]


def batches(tokenizer: Tokenizer, shares: dict[str, float], seed: int, tokens: int) -> Iterator[tuple[Rows, np.ndarray]]:
    """Unlimited batches of about `tokens` tokens, documents of like length together, and loss weights; longer ones are left out."""
    waiting: dict[int, list] = {width: [] for width in WIDTHS}
    for _, spans in corpus.documents(shares, seed):
        document = encode(tokenizer, spans)
        width = next((w for w in WIDTHS if len(document[0]) <= w), None)
        if width is None:
            continue
        waiting[width].append(document)
        if len(waiting[width]) * width >= tokens:
            yield arrays(waiting[width], width)
            waiting[width] = []


def arrays(documents: list[tuple[list[int], list[float]]], width: int) -> tuple[Rows, np.ndarray]:
    rows, _ = evals.rows_of([ids for ids, _ in documents], width)
    weights = np.zeros((len(documents), width), np.float32)
    for n, (_, weight) in enumerate(documents):
        weights[n, : len(weight)] = weight
    return rows, weights


def initial(config: model_config.ModelConfig, seed: int) -> dict[str, Any]:
    """Random parameters; kernels at 1/sqrt(inputs), since 0.02 is far too little at such widths."""
    params = decoder.init(config, jax.random.key(seed))
    for name, module in params["layers"].items():
        if "kernel" in module:
            module["kernel"] = module["kernel"] * (
                50.0 / module["kernel"].shape[1] ** 0.5 / (2.0 if name in ("o_proj", "down_proj") else 1.0)
            )
    return params


def grown(params: dict[str, Any], layers: int) -> dict[str, Any]:
    """The model with layers added on top whose output kernels are zero, so that it computes what it did."""
    rng = np.random.default_rng(0)
    for name, module in params["layers"].items():
        for leaf, old in module.items():
            shape = (layers - old.shape[0], *old.shape[1:])
            silent = leaf == "scale" or name in ("o_proj", "down_proj")
            new = np.zeros(shape) if silent else rng.normal(0, float(old.std()), shape)
            module[leaf] = jnp.concatenate([old, jnp.asarray(new, old.dtype)])
    return params


def make_optimizer(rate: optax.Schedule) -> optax.GradientTransformation:
    """Muon for the layers' kernels, AdamW for the rest: at these sizes it halves the loss that AdamW reaches in the same time."""
    matrices = lambda tree: jax.tree.map(lambda x: MuonDimensionNumbers(1, 2) if x.ndim == 3 else None, tree)
    muon_ = muon(
        rate,
        beta=0.95,
        weight_decay=DECAY,
        weight_decay_mask=lambda tree: jax.tree.map(lambda x: x.ndim > 2, tree),
        adam_b1=0.9,
        adam_b2=0.98,
        adam_learning_rate=lambda i: rate(i) * EMBEDDING_RATE,
        muon_weight_dimension_numbers=matrices,
        consistent_rms=None,
    )
    return optax.chain(optax.clip_by_global_norm(1.0), muon_)


def make_step(config: model_config.ModelConfig, optimizer: optax.GradientTransformation):
    """The jitted training step: (params, state, rows, weights) -> (params, state, loss)."""

    def loss(params, rows, weights):
        model = decoder.bind(config, params)
        hidden, _ = model(rows)
        logits = model.logits(hidden[:, :-1])
        terms = optax.softmax_cross_entropy_with_integer_labels(logits, rows.tokens[:, 1:]) * weights[:, 1:]
        return terms.sum() / weights[:, 1:].sum()

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, rows, weights):
        value, gradient = jax.value_and_grad(loss)(params, rows, weights)
        update, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, update), state, value

    return step


def save_checkpoint(path: Path, params: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    flat = jax.tree_util.tree_flatten_with_path(params)[0]
    np.savez(path, allow_pickle=False, **{jax.tree_util.keystr(key, simple=True, separator="/"): np.asarray(value) for key, value in flat})


def pretrain(recipe: Recipe, tokenizer: Tokenizer, checkpoints: Path) -> dict[str, Any]:
    """Parameters after all phases; checkpoints go to a folder per phase."""
    fields = recipe.fields | {"num_hidden_layers": recipe.phases[0].layers}
    params = initial(model_config.from_fields(fields), recipe.phases[0].seed)
    for number, phase in enumerate(recipe.phases, 1):
        config = model_config.from_fields(recipe.fields | {"num_hidden_layers": phase.layers})
        if phase.layers > params["layers"]["q_proj"]["kernel"].shape[0]:
            params = grown(params, phase.layers)
        params = train(config, params, phase, tokenizer, checkpoints / str(number))
    return params


def train(
    config: model_config.ModelConfig, params: dict[str, Any], phase: Phase, tokenizer: Tokenizer, checkpoints: Path
) -> dict[str, Any]:
    """One phase; a line every 100 steps, evals and a checkpoint every 10 %."""
    print(json.dumps(vars(phase)), f"{sum(x.size for x in jax.tree.leaves(params)):,} parameters", flush=True)
    rate = optax.warmup_cosine_decay_schedule(0.0, phase.rate, max(phase.steps // 30, 1), phase.steps, phase.rate * 0.02)
    optimizer = make_optimizer(rate)
    state, step, losses, seen, start = optimizer.init(params), make_step(config, optimizer), [], 0, time.time()
    stream = islice(batches(tokenizer, phase.shares, phase.seed, TOKENS), phase.stop or phase.steps)
    for i, (rows, weights) in enumerate(stream, 1):
        params, state, value = step(params, state, rows, weights)
        losses.append(value)
        seen += int((rows.segments > 0).sum())
        if i % 100 == 0:
            mean = float(np.mean(jax.device_get(losses[-100:])))
            print(f"step {i} loss {mean:.4f} tokens {seen:,} tokens/s {seen / (time.time() - start):,.0f}", flush=True)
        if i % max(phase.steps // 10, 1) == 0:
            print(f"step {i} {evals.report(config, params, tokenizer)} minutes {(time.time() - start) / 60:.1f}", flush=True)
            save_checkpoint(checkpoints / f"{i:06d}.npz", params)
    return params


def export(recipe: Recipe, params: dict[str, Any], tokenizer: Tokenizer, folder: Path) -> None:
    """The model's folder as `transformers` reads it, weights in bfloat16."""
    hf.save_model(folder, model_config.from_fields(recipe.fields), params, dtype=jnp.bfloat16)
    pad, bos, eos = SPECIALS
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pad, bos_token=bos, eos_token=eos)
    wrapped.save_pretrained(str(folder))


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--model", choices=RECIPES, required=True)
    flags.add_argument("--out", type=Path, required=True)
    flags.add_argument("--checkpoints", type=Path, required=True)
    args = flags.parse_args()
    tokenizer = train_tokenizer()
    export(RECIPES[args.model], pretrain(RECIPES[args.model], tokenizer, args.checkpoints), tokenizer, args.out)


if __name__ == "__main__":
    main()
