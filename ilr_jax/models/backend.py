"""Which attention a device takes: what cannot be asked of it, and what it takes by itself.

Not here: the implementations (`attention`). From: what `jax.nn.dot_product_attention` and the splash kernel accept (jax 0.10).
"""

from collections.abc import Sequence
from typing import Literal

import jax

from ilr_jax.models.attention import Implementation
from ilr_jax.models.config import ModelConfig
from ilr_jax.models.platform import LANES, platform

CUDNN = 128  # heads no wider than this, and a multiple of 8, are what every GPU takes that cuDNN's attention runs on


def check(wanted: str, models: Sequence[ModelConfig], dtype: str) -> None:
    """Raise ValueError for an implementation that the device, the dtype or the heads of a model rule out.

    cuDNN needs an NVIDIA GPU, bfloat16 and heads up to 256 wide from Hopper on, up to 128 before. Splash needs a TPU, and heads that are a
    multiple of 128 wide.
    """
    sizes = sorted({model.head_dim for model in models})
    if wanted == "splash" and (platform() != "tpu" or any(size % LANES for size in sizes)):
        raise ValueError(
            f"compute.attention='splash': wanted a TPU and heads that are a multiple of {LANES} wide, got {platform()} and {sizes}; "
            "use 'auto', 'gemm' or 'xla'"
        )
    if wanted != "cudnn":
        return
    if not _nvidia() or dtype != "bfloat16":
        got = f"{jax.default_backend()} and {dtype}"
        raise ValueError(f"compute.attention='cudnn': wanted an NVIDIA GPU and bfloat16, got {got}; use 'gemm' or 'xla'")
    capability = jax.devices()[0].compute_capability
    most = 256 if float(capability) >= 9.0 else 128
    if sizes[-1] > most:
        raise ValueError(
            f"compute.attention='cudnn': wanted heads of at most {most} on a GPU of compute capability {capability}, got {sizes[-1]}; "
            "use 'gemm' or 'xla'"
        )


def choose(wanted: Implementation | Literal["auto"], model: ModelConfig, dtype: str, split: bool) -> Implementation:
    """`wanted`, or for "auto" what is best for the model; `split`: over several devices.

    Splash on TPUs, cuDNN on one NVIDIA GPU that has it (measured to be faster on an H100), where heads can be so wide.
    """
    if wanted != "auto":
        return wanted
    if platform() == "tpu":
        return "splash" if model.head_dim % LANES == 0 else "gemm"
    fits = model.head_dim <= CUDNN and model.head_dim % 8 == 0 and not split and dtype == "bfloat16" and _nvidia()
    return "cudnn" if fits and float(jax.devices()[0].compute_capability) >= 8.0 else "gemm"


def _nvidia() -> bool:
    """Whether this is an NVIDIA GPU; JAX calls AMD's "gpu" as well."""
    return jax.default_backend() == "gpu" and "cuda" in jax.devices()[0].client.platform_version
