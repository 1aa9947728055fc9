"""What a model is, read from the `config.json` of its Hugging Face folder and from nowhere else.

Every field of the file is honoured, known to have no effect on the computation, or refused by name; where the file is silent the
family's own table says what `transformers` takes (5.24: `GemmaConfig`, `MistralConfig`, `LlamaConfig`).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ilr_jax.models import gemma, llama, mistral
from ilr_jax.models.family import Family
from ilr_jax.models.tensors import read_json

FAMILIES = {family.name: family for family in (gemma.FAMILY, mistral.FAMILY, llama.FAMILY)}

# Bookkeeping of the file format or of other programs: no effect on the function that the model computes.
IGNORED = frozenset(
    {"architectures", "_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache", "model_type", "id2label", "label2id"}
    | {"num_labels", "problem_type", "output_attentions", "output_hidden_states", "return_dict", "is_encoder_decoder"}
    | {"chunk_size_feed_forward", "initializer_range", "is_llama_config"}
)
# Fields whose only honoured value is "off"; the tuple holds what counts as off.
OFF = {
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "attention_dropout": (0.0, None),
    "pretraining_tp": (1, None),
    "use_bidirectional_attention": (False, None),
    "rope_interleaved": (False, None),
    "quantization_config": (None,),
    "layer_types": (None,),
}
SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "max_position_embeddings": "context",
}
Kind = tuple[str, Callable[[Any], bool]]
SIZE: Kind = "an integer >= 1", lambda x: type(x) is int and x > 0
NUMBER: Kind = "a finite number > 0", lambda x: type(x) in (int, float) and 0 < x < math.inf
FLAG: Kind = "true or false", lambda x: type(x) is bool
NAME: Kind = "a name", lambda x: type(x) is str
TOKEN: Kind = "a token id", lambda x: type(x) is int and x >= 0
TOKENS: Kind = "a token id or a list of them", lambda x: all(map(TOKEN[1], x if isinstance(x, list) else [x]))
OBJECT: Kind = "an object", lambda x: isinstance(x, dict)
KINDS: Mapping[str, Kind] = dict.fromkeys(SIZES, SIZE) | {
    "rms_norm_eps": NUMBER,
    "rope_theta": NUMBER,
    "tie_word_embeddings": FLAG,
    "hidden_act": NAME,
}
NULLABLE: dict[str, Kind] = dict.fromkeys(("num_key_value_heads", "head_dim", "sliding_window"), SIZE)
NULLABLE |= {"rope_scaling": OBJECT, "rope_parameters": OBJECT, "hidden_activation": NAME}
NULLABLE |= {"bos_token_id": TOKEN, "eos_token_id": TOKENS, "pad_token_id": TOKEN}
LLAMA3: dict[str, Kind] = {
    "factor": NUMBER,
    "low_freq_factor": NUMBER,
    "high_freq_factor": NUMBER,
    "original_max_position_embeddings": SIZE,
}


@dataclass(frozen=True)
class RopeScaling:
    """Llama-3's frequency scaling: wavelengths over `original / low` are stretched by `factor`, those under `original / high` stay."""

    factor: float
    low: float
    high: float
    original: int


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and constants of one decoder; hashable, so that it can be a static argument of a jitted function."""

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    context: int
    activation: str
    norm_eps: float
    norm_offset: float
    embed_scale: bool
    rope_theta: float
    rope_scaling: RopeScaling | None
    window: int | None
    tied: bool
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None

    @property
    def units(self) -> dict[str, int]:
        """Of how many units, which cannot be split, each logical axis of `sharding` consists."""
        heads = {"heads": self.num_heads, "kv_heads": self.num_kv_heads}
        return {"embed": self.hidden_size, "mlp": self.intermediate_size, "vocab": self.vocab_size, **heads}


def _unfit(fields: Mapping[str, Any], kinds: Mapping[str, Kind], nullable: bool = False, inside: str = "") -> list[str]:
    """What is wrong with those of `fields` that are not of their kind."""
    or_null = " or null" if nullable else ""
    return [
        f"{inside}{key}={fields[key]!r}: wanted {wanted}{or_null}"
        for key, (wanted, fits) in kinds.items()
        if key in fields and not (nullable and fields[key] is None) and not fits(fields[key])
    ]


def _malformed(fields: Mapping[str, Any]) -> list[str]:
    """What is wrong with each field by itself: unknown, not off, missing, or of the wrong type or sign."""
    known = IGNORED | OFF.keys() | KINDS.keys() | NULLABLE.keys()
    problems = [f"{key}={fields[key]!r}: unknown field" for key in sorted(fields.keys() - known)]
    problems += [f"{key}={fields[key]!r}: only {off[0]!r} is supported" for key, off in OFF.items() if fields.get(key, off[0]) not in off]
    problems += [f"{key}: missing" for key in sorted(SIZES.keys() - fields.keys())]
    return problems + _unfit(fields, KINDS) + _unfit(fields, NULLABLE, nullable=True)


def _rope_fields(fields: Mapping[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    """Theta, type and constants from the fields of `transformers` 4 (rope_theta, rope_scaling) or 5 (rope_parameters)."""
    rope = dict(fields.get("rope_scaling") or {}) | dict(fields.get("rope_parameters") or {})
    kinds = [rope.pop(key) for key in ("rope_type", "type") if key in rope]
    return rope.pop("rope_theta", fields["rope_theta"]), kinds[0] if kinds else "default", rope


def _rope_problems(theta: Any, kind: Any, rope: Mapping[str, Any]) -> list[str]:
    problems = _unfit({"rope_theta": theta}, {"rope_theta": NUMBER})
    if kind == "default" and not rope:
        return problems
    if kind != "llama3" or rope.keys() != LLAMA3.keys():
        wanted = f"supported: 'default', 'llama3' with {sorted(LLAMA3)}"
        return [*problems, f"rope_scaling: RoPE of type {kind!r} with {sorted(rope)} is not supported; {wanted}"]
    problems += _unfit(rope, LLAMA3, inside="rope_scaling.")
    if not problems and rope["high_freq_factor"] <= rope["low_freq_factor"]:
        problems.append(f"rope_scaling.high_freq_factor={rope['high_freq_factor']!r}: wanted more than low_freq_factor")
    return problems


def _at_odds(fields: Mapping[str, Any], family: Family) -> list[str]:
    """What is wrong between fields that are each well formed."""
    problems, (hidden, heads) = _rope_problems(*_rope_fields(fields)), (fields["hidden_size"], fields["num_attention_heads"])
    kv_heads, size = fields.get("num_key_value_heads") or heads, fields.get("head_dim")
    if heads % kv_heads:
        problems.append(f"num_key_value_heads={kv_heads}: wanted a divisor of num_attention_heads={heads}")
    if size is None and hidden % heads:
        problems.append(f"hidden_size={hidden}: wanted a multiple of num_attention_heads={heads}, or head_dim")
    elif (size or hidden // heads) % 2:
        problems.append(f"head_dim={size or hidden // heads}: wanted an even number, which RoPE halves")
    if fields.get("sliding_window") is not None and not family.windowed:
        problems.append(f"sliding_window={fields['sliding_window']!r}: not part of the {family.name} family; only null is supported")
    field = _activation_field(fields)
    if field == "hidden_activation" and not family.hidden_activation:
        problems.append(f"{field}={fields[field]!r}: not part of the {family.name} family; only null is supported")
    elif fields[field] not in family.activations:
        problems.append(f"{field}={fields[field]!r}: {family.name} models use one of {sorted(family.activations)}")
    vocabulary = fields["vocab_size"]
    tokens = {key: _ids(fields.get(key)) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return problems + [
        f"{key}={fields[key]!r}: wanted less than vocab_size={vocabulary}" for key in tokens if max(tokens[key], default=0) >= vocabulary
    ]


def _scaling(rope: Mapping[str, Any]) -> RopeScaling:
    factor, low, high, original = (rope[key] for key in LLAMA3)
    return RopeScaling(float(factor), float(low), float(high), original)


def _activation_field(fields: Mapping[str, Any]) -> str:
    """Which field names the activation: `hidden_activation` where it is set (Gemma's, of transformers 4)."""
    return "hidden_act" if fields.get("hidden_activation") is None else "hidden_activation"


def _ids(value: Any) -> tuple[int, ...]:
    return () if value is None else tuple(value) if isinstance(value, list) else (value,)


def _refuse(problems: list[str], where: str) -> None:
    if problems:
        raise ValueError(f"{where} describes a model that cannot be computed faithfully:\n  " + "\n  ".join(problems))


def from_fields(fields: Mapping[str, Any], where: str = "config.json") -> ModelConfig:
    """The model that the fields of a `config.json` describe; `where` names the file in errors.

    Raises ValueError that lists every unknown, missing, malformed or unsupported field; if there is none of these, every one at odds with
    another.
    """
    name = fields.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise ValueError(f"{where}: model_type {name!r} is not supported; supported: {', '.join(sorted(FAMILIES))}")
    family = FAMILIES[name]
    given = {key: value for key, value in fields.items() if not (value is None and key in family.null_means_default)}
    fields = dict(family.defaults) | given
    _refuse(_malformed(fields), where)
    _refuse(_at_odds(fields, family), where)
    sizes = {ours: fields[theirs] for theirs, ours in SIZES.items()}
    theta, _, rope = _rope_fields(fields)
    return ModelConfig(
        family=name,
        num_kv_heads=fields.get("num_key_value_heads") or sizes["num_heads"],
        head_dim=fields.get("head_dim") or sizes["hidden_size"] // sizes["num_heads"],
        activation=family.activations[fields[_activation_field(fields)]],
        norm_eps=float(fields["rms_norm_eps"]),
        norm_offset=family.norm_offset,
        embed_scale=family.embed_scale,
        rope_theta=float(theta),
        rope_scaling=_scaling(rope) if rope else None,
        window=fields.get("sliding_window"),
        tied=fields["tie_word_embeddings"],
        bos_token_id=fields.get("bos_token_id"),
        eos_token_ids=_ids(fields.get("eos_token_id")),
        pad_token_id=fields.get("pad_token_id"),
        **sizes,
    )


def read(folder: str | Path) -> ModelConfig:
    """The config of a local Hugging Face model folder; ValueError where the file is missing, is not JSON or is not supported."""
    path = Path(folder) / "config.json"
    return from_fields(read_json(path), str(path))
