"""The list of what is measured: against whom, and which ratio is wanted. Imports neither JAX nor PyTorch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """`run` is module:function. The ratio is our speed over the peer's, or, where `least`, a share that should be small."""

    number: str
    what: str
    peer: str
    run: str
    floor: float
    goal: float
    least: bool = False
    sizes: tuple[str, ...] = ("cpu",)

    def passes(self, ratio: float) -> bool:
        """Whether the floor is kept."""
        return ratio <= self.floor if self.least else ratio >= self.floor


SMOKE = ("cpu", "smoke")
TORCH, TRL, GENERATE = "transformers + peft", "TRL SFTTrainer", "transformers generate, prompts by length"
CASES = {
    "step": Case("C1", "LoRA step, full rows, float32", TORCH, "training:step_float32", 1.0, 1.2, sizes=SMOKE),
    "step-bf16": Case("C1", "LoRA step, full rows, bfloat16", TORCH, "training:step_bfloat16", 1.2, 1.6),
    "step-remat": Case("C2", "LoRA step, full rows, remat", TORCH + " + checkpointing", "training:step_remat", 1.2, 1.6),
    "epoch-released": Case("C3", "SFT epoch, ragged", TRL + ", one example at a time", "training:epoch_released", 2.5, 4.0),
    "epoch": Case("C3", "SFT epoch, ragged", TRL + ", best batch", "training:epoch_best", 1.2, 1.6),
    "dpo-given": Case("C4", "DPO epoch, reference known", "TRL DPOTrainer", "preferences:epoch_precomputed", 1.5, 2.0),
    "dpo": Case("C4", "DPO epoch with its reference", "TRL DPOTrainer, reference in the step", "preferences:epoch_in_step", 2.0, 3.0),
    "evaluator": Case("C5", "evaluator step, all weights, ragged", "transformers", "training:evaluator_step", 1.0, 1.3),
    "scores": Case("C5", "scores of ragged comparisons, both orders", "transformers, by length", "training:scoring", 1.3, 2.0),
    "sample": Case("C6", "one sample, ragged", GENERATE, "decoding:sample_one", 1.6, 3.0),
    "sample-6": Case("C7", "six samples, ragged", GENERATE, "decoding:sample_six", 3.0, 6.0, sizes=SMOKE),
    "beam": Case("C8", "beam search of width 4", GENERATE, "decoding:beam", 3.0, 8.0, sizes=SMOKE),
    "draw": Case("C9", "a draw from 256,000 tokens", "torch.multinomial", "operations:draw_plain", 10, 25),
    "draw-top-p": Case(
        "C9", "a draw with top-p 0.9, a few tokens left", "transformers top-p", "operations:draw_nucleus", 10, 50, sizes=SMOKE
    ),
    "draw-wide": Case("C9", "a draw with top-p 0.9, hundreds of tokens left", "transformers top-p", "operations:draw_wide", 10, 50),
    "loss-memory": Case("C10", "memory of loss and gradient", "full logits", "operations:loss_memory", 0.25, 0.12, True, SMOKE),
    "loss-speed": Case("C10", "time of loss and gradient, vocabulary 256,000", "full logits, by JAX", "operations:loss_speed", 1.0, 1.2),
    "compiles": Case("C11", "programs compiled in an epoch", "one", "operations:compiles", 1, 1, True),
    "warm-start": Case("C11", "start, compilation cache warm", "cold", "operations:warm_start", 0.3, 0.3, True),
    "filled": Case("C12", "useful tokens of all that slots decode", "all useful", "decoding:filled", 0.85, 0.95),
    "round": Case("C13", "a round: halves, proposals, scores", "TRL, generate, transformers", "rounds:refinement", 2.5, 5.0),
    "adapters": Case("C14", "two adapters in one pass", "ourselves, one after the other", "operations:adapters", 1.3, 1.8),
}
