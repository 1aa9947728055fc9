"""What the fields of a config may be, checked before anything else: a misspelt value is an error and never another experiment.

Names of fields are checked by the config itself, which is locked; models and data by the `lab`. Imports no JAX.
"""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from math import inf
from typing import Any

from ilr_jax.tasks import FACTORIES, GRADERS
from ilr_jax.tasks.graders import FUNCTION
from ilr_jax.types import Config

METHODS = ("sft", "ilr", "naive", "dpo", "sft_chosen", "dpo_pairs", "weak")
OPTIMIZERS = ("adamw", "adafactor", "rmsprop")
CHOICES = {
    "feedback": ("evaluator", "oracle", "judge"),
    "judge.kind": ("endpoint", "model", "evaluator"),
    "embed.kind": ("local", "endpoint"),
    "demos": ("weak", "correct", "gold", "given"),
    "given": ("untrusted", "all"),
    "alpha_of": ("disagreeing", "all", "none"),
    "task.name": tuple(FACTORIES),
    "task.answers": ("trusted", "given"),
    **{f"{section}.optimizer": OPTIMIZERS for section in ("weak", "strong", "evaluator", "dpo")},
    **{f"{section}.template": ("plain", "chat") for section in ("weak", "strong", "judge")},
    "sft.normalize": ("sequence", "token"),
    **dict.fromkeys(("decoding.labels", "decoding.proposals"), ("beam", "sample")),
    "decoding.length_rule": ("total", "generated"),
    "dpo.scoring": ("symmetric", "released"),
    "dpo.reference": ("previous", "base"),
    "dpo.loss": ("sigmoid", "ipo", "robust", "hinge"),
    "refine.proposer": ("cross", "same", "ensemble"),
    "refine.pick": ("log_prob", "feedback"),
    "refine.rule": ("replace", "filter", "add"),
    "compute.dtype": ("auto", "float32", "bfloat16"),
    "compute.attention": ("auto", "gemm", "xla", "cudnn", "splash"),
    "compute.remat": ("none", "dots", "full"),
    "compute.evaluator.remat": ("same", "none", "dots", "full"),
}
SHARE, COUNT, POSITIVE, NOT_NEGATIVE = (0, 1), (1, inf), (1e-30, 1e30), (0, 1e30)
BOUNDS: dict[str, tuple[int | float, int | float]] = {
    "rounds": NOT_NEGATIVE,
    "folds": (2, inf),
    "seed": (0, 2**32 - 1),
    **dict.fromkeys(("task.train_examples", "task.test_examples", "task.seed"), NOT_NEGATIVE),
    **{f"{section}.epochs": COUNT for section in ("weak", "strong", "evaluator", "dpo")},
    **{f"{section}.learning_rate": NOT_NEGATIVE for section in ("weak", "strong", "evaluator", "dpo")},
    **dict.fromkeys(("alpha", "demos_error", "oracle.error", "sft.warmup", "evaluator.validation", "dpo.share"), SHARE),
    **dict.fromkeys(("sft.batch", "evaluator.batch", "dpo.batch", "evaluator.patience", "evaluator.checkpoints"), COUNT),
    **dict.fromkeys(("sft.max_length", "dpo.samples"), (2, inf)),
    "dpo.smoothing": (0, 0.5),
    **dict.fromkeys(("refine.samples", "lora.rank", "decoding.beams", "decoding.max_new_tokens"), COUNT),
    **dict.fromkeys(("lora.alpha", "dpo.beta"), POSITIVE),
    "judge.top_logprobs": (0, 20),
    "judge.max_invalid": SHARE,
    "endpoint.timeout": POSITIVE,
    **dict.fromkeys(("endpoint.attempts", "endpoint.workers"), COUNT),
    **dict.fromkeys(("endpoint.max_requests", "endpoint.max_tokens"), NOT_NEGATIVE),
    "decoding.top_k": NOT_NEGATIVE,
    "decoding.top_p": (POSITIVE[0], 1),
    **dict.fromkeys(("evaluator.temperature", "decoding.temperature", "dpo.temperature", "compute.save_every"), NOT_NEGATIVE),
    **dict.fromkeys(("sharding.data", "sharding.fsdp", "sharding.tensor", "compute.evaluator.microbatches"), NOT_NEGATIVE),
    **dict.fromkeys(("compute.microbatches", "compute.slots", "compute.beam_batch", "compute.bucket", "compute.score_batch"), COUNT),
    "compute.save_keep": COUNT,
}


def check(config: Config) -> list[str]:
    """The methods to run. Raises one ValueError that lists every field whose value cannot be: wanted, got, and the nearest."""
    methods = [name.strip() for name in config.method.split(",")]
    faults = [_choice("method", name, METHODS, "some of ") for name in methods if name not in METHODS]
    faults += [_choice(name, value, wanted) for name, wanted in CHOICES.items() if (value := _value(config, name)) not in wanted]
    faults += [_bound(name, value, *ends) for name, ends in BOUNDS.items() if not ends[0] <= (value := _value(config, name)) <= ends[1]]
    faults += _grader(config)
    faults += _together(config) if not faults else []
    if faults:
        raise ValueError("\n  ".join(["the config cannot be run:", *faults]))
    return methods


def _grader(config: Config) -> list[str]:
    """The fault of a grader that the task does not have; a name with a colon is a function of the user's, where the task takes one."""
    wanted, got = GRADERS.get(config.task.name, ()), config.task.grader
    known = not wanted or got in ("", *wanted) or (FUNCTION in wanted and ":" in got)
    return [] if known else [_choice("task.grader", got, wanted)]


def incidental(config: Config | Mapping[str, Any]) -> tuple[str, ...]:
    """The fields in which runs of one workdir may differ: methods and seeds have their own records, the rest changes no result."""
    endpoints = ("endpoint", *(f"{section}.{name}" for section in ("judge", "embed") for name in ("base_url", "key_name")))
    return ("method", "seed", "sharding", *endpoints, *(f"compute.{name}" for name in config.get("compute", ()) if name != "dtype"))


def _value(config: Config, name: str) -> Any:
    for part in name.split("."):
        config = config[part]
    return config


def _choice(name: str, got: Any, wanted: tuple[str, ...], some: str = "one of ") -> str:
    near = get_close_matches(str(got), wanted, n=1, cutoff=0.5)
    return f"{name}: wanted {some}{', '.join(wanted)}; got {got!r}" + (f"; did you mean {near[0]!r}?" if near else "")


def _bound(name: str, got: int | float, low: int | float, high: int | float) -> str:
    if low == POSITIVE[0]:
        return f"{name}: wanted a number above 0{'' if high == POSITIVE[1] else f' and at most {high}'}; got {got}"
    return f"{name}: wanted " + (f"at least {low}" if high >= 1e30 else f"{low} to {high}") + f"; got {got}"


def _together(config: Config) -> Iterator[str]:
    """Faults of fields that must fit each other."""
    if config.dpo.samples % 2:
        yield f"dpo.samples: wanted an even number, to pair them; got {config.dpo.samples}"
    if config.demos_error and config.demos != "gold":
        yield f"demos_error: wanted 0 unless demos='gold', whose references it corrupts; got {config.demos_error} with {config.demos!r}"
    if config.oracle.error and config.feedback != "oracle":
        yield f"oracle.error: wanted 0 unless feedback='oracle', whose verdicts it turns round; got {config.oracle.error}"
    if config.refine.samples > 1 and config.decoding.proposals == "beam":
        yield f"refine.samples: wanted 1 with decoding.proposals='beam', which gives one answer, or 'sample'; got {config.refine.samples}"
    if config.dpo.smoothing and config.dpo.loss not in ("sigmoid", "robust"):
        yield f"dpo.smoothing: wanted 0 with dpo.loss={config.dpo.loss!r}, or the loss sigmoid or robust; got {config.dpo.smoothing}"
    if config.dpo.loss == "robust" and config.dpo.smoothing == 0.5:
        yield "dpo.smoothing: wanted less than 0.5 with dpo.loss='robust', which divides by 1 - 2 * smoothing; got 0.5"
    at_once = "compute.beam_batch" if config.decoding.proposals == "beam" else "compute.slots"
    for rows, needed in (
        ("compute.slots", "evaluator.checkpoints"),
        ("compute.slots", "dpo.samples"),
        ("compute.slots", "refine.samples"),
        (at_once, "folds"),
    ):
        if _value(config, rows) < _value(config, needed):
            yield f"{rows}: wanted at least {needed}={_value(config, needed)}, which share them; got {_value(config, rows)}"
