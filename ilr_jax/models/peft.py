"""LoRA adapters in and out of the folders of PEFT (0.21), one adapter a folder. What cannot be honoured is refused by name."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ilr_jax import files
from ilr_jax.models import tensors
from ilr_jax.models.config import FAMILIES, ModelConfig
from ilr_jax.models.lora import ALL_LINEAR, Adapters, Lora, sizes

STEM = "adapter_model"
NUMBERS = {"r", "lora_alpha"}
HONOURED = NUMBERS | {"target_modules", "peft_type", "init_lora_weights"}
# No effect on what the adapted model computes once its weights are in the file.
IGNORED = {"task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"}
IGNORED |= {"megatron_core", "qalora_group_size"}  # parts of features that are refused when they are on
# Initialisations that leave the base model as it is; the others change it, and the adapter alone would be wrong.
INITS = (True, False, None, "gaussian", "orthogonal")
OFF = (None, False, 0, "none", [], {})


def _names(config: ModelConfig, module: str, side: str) -> list[str]:
    key = FAMILIES[config.family].keys[f"layers.{module}.kernel"].removesuffix("weight")
    return [f"base_model.model.{key.format(i)}lora_{side.upper()}.weight" for i in range(config.num_layers)]


def save_adapter(folder: str | Path, config: ModelConfig, lora: Lora, adapters: Adapters, index: int, base_name: str) -> None:
    """Write adapter `index` of K as a folder that `peft.PeftModel.from_pretrained` and vLLM load over the base model `base_name`.

    The folder appears whole or not at all; ValueError where it exists and is not empty.
    """
    arrays = {}
    for module, pair in adapters.items():
        for side, stack in pair.items():
            layers = np.asarray(stack[index], np.float32)
            arrays |= {name: layer.T for name, layer in zip(_names(config, module, side), layers, strict=True)}
    alpha = int(lora.alpha) if float(lora.alpha).is_integer() else lora.alpha
    fields = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": lora.rank,
        "lora_alpha": alpha,
        "target_modules": list(lora.modules),
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }
    with tensors.new_folder(folder) as part:
        tensors.write(part, STEM, arrays.items())
        files.write_json(part / "adapter_config.json", fields)


def _modules(targets: Any, where: Path) -> tuple[str, ...]:
    if targets == "all-linear":
        return ALL_LINEAR
    if not isinstance(targets, list):
        raise ValueError(f"{where}: target_modules={targets!r}: only a list of modules or 'all-linear' is supported")
    named = {str(target).rpartition(".")[2] for target in targets}
    return tuple(module for module in ALL_LINEAR if module in named) + tuple(sorted(named - set(ALL_LINEAR)))


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and value > 0


def _read_config(path: Path) -> Lora:
    fields = tensors.read_json(path)
    problems = [
        f"{key}={value!r} is not supported" for key, value in sorted(fields.items()) if key not in HONOURED | IGNORED and value not in OFF
    ]
    if fields.get("init_lora_weights") not in INITS:
        problems.append(f"init_lora_weights={fields['init_lora_weights']!r} changes the base model, which is not in this folder")
    if fields.get("peft_type") != "LORA":
        problems.append(f"peft_type={fields.get('peft_type')!r}: only 'LORA' is supported")
    problems += [f"{key}: missing" for key in ("r", "lora_alpha", "target_modules") if key not in fields]
    problems += [f"{key}={value!r}: wanted a positive number" for key, value in fields.items() if key in NUMBERS and not _positive(value)]
    if problems:
        raise ValueError(f"{path} describes an adapter that cannot be applied faithfully:\n  " + "\n  ".join(problems))
    return Lora(int(fields["r"]), float(fields["lora_alpha"]), _modules(fields["target_modules"], path))


def load_adapter(folder: str | Path, config: ModelConfig) -> tuple[Lora, dict[str, dict[str, Array]]]:
    """Rank, alpha and modules of a PEFT folder, and its weights as float32 adapters with K = 1.

    Raises ValueError for a missing or damaged file, that lists every setting which is not plain LoRA, or every missing, extra
    or misshapen tensor.
    """
    folder = Path(folder)
    lora = _read_config(folder / "adapter_config.json")
    found = tensors.catalogue(folder, STEM)
    shapes = {m: {"a": (lora.rank, sizes(config)[m][0]), "b": (sizes(config)[m][1], lora.rank)} for m in lora.modules}
    names = {module: {side: _names(config, module, side) for side in pair} for module, pair in shapes.items()}
    tensors.check(folder, {name: shapes[m][s] for m, pair in names.items() for s, group in pair.items() for name in group}, found)
    everything = (slice(None), slice(None))
    read = lambda group: jnp.asarray(np.stack([found[name][everything].T for name in group])[None], jnp.float32)
    return lora, {module: {side: read(group) for side, group in pair.items()} for module, pair in names.items()}
