"""What a user would run on the same card instead: LoRA steps of SFT and DPO by transformers and PEFT, with the weights that ours has."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from flax.traverse_util import flatten_dict
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM
from trl.trainer.utils import selective_log_softmax

from benchmarks import peers
from benchmarks.card.training import BETA, HELD, Card, Row, dpo_step, full_rows, lora_step, params, preferences, seconds
from benchmarks.measure import agree
from benchmarks.shapes import LORA, MODELS, Shape
from ilr_jax.batches import Preference
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


@dataclass
class Step:
    """A step of what a user would run: the loss of each part and its gradients, then clipping and AdamW; `parts` of a micro-batch."""

    made: Shape
    ours: Row
    parts: Callable[[Any, int], list[Callable[[], torch.Tensor]]]
    micro: tuple[tuple[bool, int], ...]  # checkpointing, and how many examples at a time
    work: float  # FLOPs

    def rows(self) -> Iterator[tuple[str, Row]]:
        """One for each way; the first loss has to be ours."""
        if "loss" not in self.ours:
            raise SystemExit(f"our own step does not fit: {self.ours}")
        yield "ours", self.ours
        base = given(self.made, params(self.made))
        HELD.clear()
        modules = list(LORA.modules)
        chosen = LoraConfig(r=LORA.rank, lora_alpha=int(LORA.alpha), target_modules=modules, lora_dropout=0.0, bias="none")
        model = get_peft_model(base, chosen).train()
        optimizer, losses = peers.optimizer(model), []

        def step(parts: list[Callable[[], torch.Tensor]]) -> None:
            total = 0.0
            for part in parts:
                with peers.autocast("bfloat16"):
                    loss = part()
                loss.backward()
                total += float(loss.detach())
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            peers.wait()
            losses.append(total)

        for checkpointing, micro in self.micro:
            if checkpointing:
                base.gradient_checkpointing_enable({"use_reentrant": False})
                base.enable_input_require_grads()
                model.train()
            name = f"peft, micro-batch {micro}" + (", checkpointing" if checkpointing else "")
            parts = self.parts(model, micro)
            if peers.DEVICE == "cuda":
                torch.cuda.reset_peak_memory_stats()
            taken = None
            try:
                taken = float(np.median(seconds(lambda parts=parts: step(parts))))
            except torch.OutOfMemoryError:  # its traceback holds activations, so what follows is outside
                optimizer.zero_grad()
            if taken is None:
                torch.cuda.empty_cache()
                yield name, {"refused": "out of memory"}
                continue
            row = {"seconds": taken, "tokens_per_second": self.ours["tokens"] / taken, "flops_per_second": self.work / taken}
            row |= {"peak": torch.cuda.max_memory_allocated() if peers.DEVICE == "cuda" else None, "first_loss": losses[0]}
            agree("loss of the first step", self.ours["loss"][0], losses[0], 2e-2)
            yield name, row | {"ratio_of_ours": taken / float(np.median(self.ours["seconds"]))}


def sft(made: Shape, card: Card) -> Iterator[tuple[str, Row]]:
    """The same full rows as ours."""
    attention = "cudnn" if peers.DEVICE == "cuda" and made.config.head_dim <= 128 else "gemm"
    inputs = torch.tensor(full_rows(card, made.config), device=peers.DEVICE)
    loss = lambda model, part: model(input_ids=part, labels=part, use_cache=False).loss * len(part) / len(inputs)
    parts = lambda model, micro: [partial(loss, model, part) for part in inputs.split(micro)]
    ours = lora_step(card, made.name, attention=attention, remat="dots", microbatches=1)
    work = float(inputs.numel()) * flops.adapters(made.config, LORA)
    yield from Step(made, ours, parts, (*((False, n) for n in (1, 2, 4, 8) if n <= card.rows), (True, card.rows)), work).rows()


def dpo(made: Shape, card: Card) -> Iterator[tuple[str, Row]]:
    """The same preferences as ours with the same known reference, both sides of a pair in one pass, pairs of like length together."""
    attention = "cudnn" if peers.DEVICE == "cuda" else "gemm"
    pairs = sorted(preferences(card, made.config), key=lambda pair: max(len(pair.chosen[1]), len(pair.rejected[1])) + len(pair.chosen[0]))

    def loss(model: Any, part: list[Preference]) -> torch.Tensor:
        sides = [pair.chosen for pair in part] + [pair.rejected for pair in part]
        ids, mask = peers.padded([question + answer for question, answer in sides])
        answers, _ = peers.padded([[0] * len(question) + [1] * len(answer) for question, answer in sides])
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
        each = selective_log_softmax(logits, ids[:, 1:])
        chosen, rejected = (each * answers[:, 1:]).sum(1).split(len(part))
        known = torch.tensor([[pair.reference_chosen, pair.reference_rejected] for pair in part], device=peers.DEVICE)
        margin = (chosen - known[:, 0]) - (rejected - known[:, 1])
        return -torch.nn.functional.logsigmoid(BETA * margin).sum() / len(pairs)

    parts = lambda model, micro: [partial(loss, model, pairs[i : i + micro]) for i in range(0, len(pairs), micro)]
    ours = dpo_step(card, made.name, attention)
    micro = ((False, 4), (False, 8), (False, 12), (True, 32))
    yield from Step(made, ours, parts, micro, ours["tokens"] * flops.adapters(made.config, LORA)).rows()
