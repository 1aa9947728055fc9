"""What a user would run on the same card instead: a LoRA step of transformers and PEFT, with the weights that ours has."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from flax.traverse_util import flatten_dict
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks import peers
from benchmarks.card.training import HELD, Card, Row, full_rows, lora_step, params, seconds
from benchmarks.measure import agree
from benchmarks.shapes import LORA, MODELS, Shape
from ilr_jax.models import flops
from ilr_jax.models.config import FAMILIES


def given(made: Shape, params: Any) -> Any:
    """The peer's model with the values of `params`, copied on the device."""
    config = AutoConfig.for_model(**MODELS[made.name], tie_word_embeddings=made.config.tied)
    with torch.device(peers.DEVICE):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    tensors, keys = dict(model.named_parameters()), FAMILIES[made.config.family].keys
    with torch.no_grad():
        leaves: Any = flatten_dict(params, sep=".")
        for path, leaf in leaves.items():
            if not path.startswith("layers."):
                tensors[keys[path]].copy_(torch.from_dlpack(leaf))
                continue
            for i in range(made.config.num_layers):
                tensors[keys[path].format(i)].copy_(torch.from_dlpack(leaf[i]).t())
    return model


def steps(made: Shape, card: Card) -> Iterator[tuple[str, Row]]:
    """Steps on the same full rows as ours, in micro-batches, with and without checkpointing; the first loss has to be ours."""
    attention = "cudnn" if peers.DEVICE == "cuda" and made.config.head_dim <= 128 else "gemm"
    ours = lora_step(card, made.name, attention=attention, remat="dots", microbatches=1)
    if "loss" not in ours:
        raise SystemExit(f"our own step does not fit: {ours}")
    base = given(made, params(made))
    HELD.clear()
    modules = list(LORA.modules)
    model = get_peft_model(base, LoraConfig(r=LORA.rank, lora_alpha=int(LORA.alpha), target_modules=modules, lora_dropout=0.0, bias="none"))
    inputs, optimizer = torch.tensor(full_rows(card, made.config), device=peers.DEVICE), peers.optimizer(model)
    losses: list[float] = []

    def step(micro: int) -> None:
        total = 0.0
        for part in inputs.split(micro):
            with peers.autocast("bfloat16"):
                loss = model(input_ids=part, labels=part, use_cache=False).loss * len(part) / len(inputs)
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        peers.wait()
        losses.append(total)

    for checkpointing, micro in ((False, 1), (False, 2), (True, card.rows)):
        if checkpointing:
            base.gradient_checkpointing_enable({"use_reentrant": False})
            base.enable_input_require_grads()
        model.train()
        name = f"peft, micro-batch {micro}" + (", checkpointing" if checkpointing else "")
        if peers.DEVICE == "cuda":
            torch.cuda.reset_peak_memory_stats()
        try:
            taken = float(np.median(seconds(lambda micro=micro: step(micro))))
        except torch.OutOfMemoryError as error:
            optimizer.zero_grad()
            yield name, {"refused": str(error)[:300]}
            continue
        tokens = float(inputs.numel())
        row = {
            "seconds": taken,
            "tokens_per_second": tokens / taken,
            "flops_per_second": tokens * flops.adapters(made.config, LORA) / taken,
        }
        row |= {"peak": torch.cuda.max_memory_allocated() if peers.DEVICE == "cuda" else None, "first_loss": losses[0]}
        agree("loss of the first step", ours["loss"][0], losses[0], 2e-2)
        yield name, row | {"ratio_of_ours": ours["tokens_per_second"] * taken / tokens}
