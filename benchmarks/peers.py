"""What a user would pick instead, set up as its documentation advises: transformers, PEFT and TRL on PyTorch."""

import os
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # else PyTorch's idle threads would take the cores while the other side runs
import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from peft import PeftModel, get_peft_model_state_dict  # noqa: E402
from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: E402
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedTokenizerFast  # noqa: E402

from benchmarks.shapes import LORA, Shape, Texts  # noqa: E402
from ilr_jax.models import peft  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
RATE = 1e-4


def model(shape: Shape, dtype: str = "float32") -> Any:
    """The causal language model, attention by `scaled_dot_product_attention`."""
    kind = getattr(torch, dtype)
    made: Any = AutoModelForCausalLM.from_pretrained(shape.folder, dtype=kind, attn_implementation="sdpa")
    return made.to(DEVICE)


def classifier(shape: Shape, dtype: str = "float32") -> Any:
    """The same body under two classes."""
    kind = getattr(torch, dtype)
    made: Any = AutoModelForSequenceClassification.from_pretrained(shape.folder, num_labels=2, dtype=kind, attn_implementation="sdpa")
    return made.to(DEVICE)


def with_adapter(shape: Shape, dtype: str = "float32", checkpointing: bool = False) -> Any:
    """The model with our own first adapter, to be trained."""
    folder = shape.folder.parent / "adapter"
    if not folder.is_dir():
        peft.save_adapter(folder, shape.config, LORA, shape.adapters()["adapters"], 0, str(shape.folder))
    base = model(shape, dtype)
    if checkpointing:
        base.gradient_checkpointing_enable({"use_reentrant": False})
        base.enable_input_require_grads()
    return PeftModel.from_pretrained(base, folder, is_trainable=True).train()


def adapter(trained: Any) -> dict[str, Any]:
    """Its weights, by the keys of PEFT's files."""
    return {key: value.float().cpu().numpy() for key, value in get_peft_model_state_dict(trained).items()}


def autocast(dtype: str) -> Any:
    """As the trainers' `bf16=True`: products in bfloat16, adapters kept in float32."""
    return torch.autocast(DEVICE, torch.bfloat16, enabled=dtype == "bfloat16")


def optimizer(trained: Any) -> torch.optim.Optimizer:
    """AdamW, fused, on what trains."""
    return torch.optim.AdamW([p for p in trained.parameters() if p.requires_grad], lr=RATE, weight_decay=0.0, fused=True)


def wait() -> None:
    """Until the device is done."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def padded(rows: list[list[int]], left: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask of rows, padded to the longest."""
    longest = max(map(len, rows))
    fill = lambda row, x: [*[0] * (longest - len(row)), *x] if left else [*x, *[0] * (longest - len(row))]
    ids = torch.tensor([fill(row, row) for row in rows], device=DEVICE)
    return ids, torch.tensor([fill(row, [1] * len(row)) for row in rows], device=DEVICE)


def words(vocabulary: int) -> PreTrainedTokenizerFast:
    """A tokenizer whose words are the token ids themselves, for trainers that take text."""
    table = {"<pad>": 0, "<s>": 1, "</s>": 2} | {str(i): i for i in range(3, vocabulary)}
    made = Tokenizer(models.WordLevel(table, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def settings(batch: int, micro: int, epochs: int = 1, **more: Any) -> dict[str, Any]:
    """What all of TRL's trainers are given: `batch` examples a step, `micro` at a time, nothing written or reported."""
    quiet = {"report_to": "none", "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True, "output_dir": "unused"}
    sizes = {"per_device_train_batch_size": micro, "gradient_accumulation_steps": batch // micro, "num_train_epochs": epochs}
    plain = {"gradient_checkpointing": False, "learning_rate": RATE, "lr_scheduler_type": "constant", "optim": "adamw_torch_fused"}
    return quiet | sizes | plain | {"use_cpu": DEVICE == "cpu", "bf16": DEVICE == "cuda", "max_grad_norm": 1.0} | more


class Sft:
    """An epoch of TRL's SFTTrainer on the answers, with a fresh optimiser, examples of like length together if `by_length`.

    `loss` is the steps' mean.
    """

    def __init__(self, shape: Shape, texts: Texts, batch: int, micro: int, by_length: bool = False):
        from trl.trainer.sft_config import SFTConfig

        self.rows = [{"input_ids": q + a, "completion_mask": [0] * len(q) + [1] * len(a)} for q, a in texts.samples]
        self.trained, self.tokens = with_adapter(shape, "bfloat16" if DEVICE == "cuda" else "float32"), words(shape.config.vocab_size)
        order: dict[str, Any] = {"train_sampling_strategy": "group_by_length"} if by_length else {}
        self.arguments = SFTConfig(**settings(batch, micro, **order), completion_only_loss=True, max_length=None)
        self.work, self.loss = float(texts.tokens), float("nan")

    def trainer(self) -> Any:
        """A fresh one, with the examples as it takes them."""
        from trl.trainer.sft_trainer import SFTTrainer

        return SFTTrainer(self.trained, args=self.arguments, train_dataset=Dataset.from_list(self.rows), processing_class=self.tokens)

    def targets(self) -> int:
        """How many tokens the loss of an epoch is on."""
        return sum(int((part["labels"] != -100).sum()) for part in self.trainer().get_train_dataloader())

    def __call__(self) -> float:
        self.loss = self.trainer().train().training_loss
        wait()
        return self.work
