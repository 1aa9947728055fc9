"""The door to Hugging Face folders: models and classifiers in and out, from a local folder or the Hub.

Tensors stream from the files to where they are to live, one at a time. Names and layouts are those of `transformers` 5.24;
linear kernels are stored [outputs, inputs] there and [inputs, outputs] here. No tokenizer is read here; adapters are in `peft.py`.
"""

import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ilr_jax import files
from ilr_jax.models import decoder, tensors
from ilr_jax.models.config import FAMILIES, ModelConfig, read
from ilr_jax.models.tensors import Stored

Placement = Callable[[str], NamedSharding] | Mapping[str, Any] | None
ASIDE = ("tokenizer*", "special_tokens_map.json", "chat_template*", "generation_config.json")
WEIGHTS = ("config.json", "model*.safetensors", "model.safetensors.index.json")
# Buffers that old versions of transformers saved beside the weights; they follow from config.json.
HARMLESS = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")


def resolve(source: str | Path, patterns: Sequence[str] = (*WEIGHTS, *ASIDE)) -> Path:
    """The local folder of a model: `source` itself if it is a folder, else a snapshot of the Hub's model of that name, files by `patterns`.

    Raises ValueError where it is neither, or cannot be fetched.
    """
    if Path(source).is_dir():
        return Path(source)
    if str(source).startswith((".", "/", "~")) or str(source).count("/") > 1:  # what no name on the Hub can be
        raise ValueError(f"{str(source)!r}: no such folder; wanted a model's folder, or its name on the Hugging Face Hub, OWNER/NAME")
    try:
        return Path(snapshot_download(str(source), allow_patterns=[*patterns]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise ValueError(
            f"{str(source)!r} is neither a local folder nor a model that the Hugging Face Hub hands out here; check the spelling, the "
            f"network, HF_HUB_OFFLINE, and for gated models `hf auth login`\n  {error}"
        ) from error


def _flat(tree: Any) -> dict[str, Any]:
    return flatten_dict(tree, sep=".")  # pyright: ignore[reportReturnType]


def _layout(config: ModelConfig, *, head: bool = True) -> dict[str, tuple[tuple[str, ...], tuple[int, ...]]]:
    """Our path -> (names of the HF tensors, their shape); a path under `layers` stacks one tensor per layer."""
    keys, layout = FAMILIES[config.family].keys, {}
    for path, leaf in _flat(decoder.abstract(config)).items():
        if path.startswith("layers."):
            layout[path] = tuple(keys[path].format(i) for i in range(config.num_layers)), leaf.shape[:0:-1]
        elif head or not path.startswith("head."):
            layout[path] = (keys[path],), leaf.shape
    return layout


def _whole(part: Stored, turned: bool, dtype: DTypeLike, sharding: NamedSharding | None) -> Array:
    """One tensor of the files in `dtype`, `turned` to our [inputs, outputs]; each device's piece of it is read by itself."""
    shape, pieces = part.shape[::-1] if turned else part.shape, {}

    def piece(index: Any) -> np.ndarray:
        key = tuple((s.start, s.stop) for s in index)  # devices that replicate a piece share one copy
        if key not in pieces:
            with np.errstate(over="ignore"):  # what overflows in a narrower dtype is named when all is loaded
                pieces[key] = np.ascontiguousarray(part[index[::-1]].T if turned else part[index], dtype)
        return pieces[key]

    if sharding is None:
        return jnp.asarray(piece((slice(None),) * len(shape)))
    return jax.make_array_from_callback(shape, sharding, piece)


@partial(jax.jit, donate_argnums=0)
def _put(stack: Array, layer: Array, i: Array) -> Array:
    return jax.lax.dynamic_update_index_in_dim(stack, layer, i, 0)  # as a scatter, a CPU would turn all of a bfloat16 stack into float32


@jax.jit
def _finite(x: Array) -> Array:
    """Whether all is finite: in no number all bits of the exponent are set (`isfinite` makes a float32 copy of bfloat16 on a CPU)."""
    bits = lambda y: jax.lax.bitcast_convert_type(y, f"uint{8 * x.dtype.itemsize}")
    infinite = bits(jnp.array(jnp.inf, x.dtype))
    return (bits(x) & infinite != infinite).all()


def _place(parts: tuple[Stored, ...], stacked: bool, dtype: DTypeLike, sharding: NamedSharding | None) -> tuple[Array, bool]:
    """One of our arrays, read from its `parts`, and whether it is finite: the host holds one part at a time, not all layers."""
    if not stacked:
        whole = _whole(parts[0], False, dtype, sharding)
        return whole, bool(_finite(whole))
    stack, finite = jnp.zeros((len(parts), *parts[0].shape[::-1]), dtype, device=sharding), True
    one = sharding and NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
    for i, part in enumerate(parts):
        layer = _whole(part, True, dtype, one)
        finite = bool(_finite(layer)) and finite
        stack = jax.block_until_ready(_put(stack, layer, np.int32(i)))
    return stack, finite


def _target(sharding: Placement, path: str) -> NamedSharding | None:
    if sharding is None or callable(sharding):
        return sharding and sharding(path)
    return _flat(sharding)[path]


def _drop_copies(folder: Path, config: ModelConfig, found: dict[str, Stored]) -> dict[str, Stored]:
    """`found` without harmless buffers and without the output head of a tied model, which must equal the embedding."""
    found = {name: tensor for name, tensor in found.items() if not HARMLESS.fullmatch(name)}
    keys = FAMILIES[config.family].keys
    head, embed = found.get(keys["head.table"]), found.get(keys["embed.table"])
    if not config.tied or head is None or embed is None:
        return found
    everything = (slice(None), slice(None))
    if head.shape != embed.shape or not np.array_equal(head[everything], embed[everything]):
        raise ValueError(
            f"{folder}: config.json ties the output head to the embedding, yet {keys['head.table']} differs from {keys['embed.table']}; "
            "set tie_word_embeddings to false there if the head is meant"
        )
    return {name: tensor for name, tensor in found.items() if tensor is not head}


def check(folder: Path, config: ModelConfig, classifier: bool = False) -> dict[str, Stored]:
    """The model's tensors as they lie in the files. Raises ValueError that lists every missing, extra and misshapen one; reads headers."""
    layout = _layout(config, head=not classifier)
    found = _drop_copies(folder, config, tensors.catalogue(folder))
    wanted = {name: shape for names, shape in layout.values() for name in names}
    score = found.get("score.weight")
    if classifier:
        wanted["score.weight"] = (score.shape[0] if score and score.shape else 2, config.hidden_size)
    tensors.check(folder, wanted, found)
    return found


def _read(
    folder: Path, config: ModelConfig, dtype: DTypeLike, sharding: Placement, classifier: bool
) -> tuple[dict[str, Any], Stored | None]:
    """Parameters, and the classifier's head as it lies in the file."""
    found, layout = check(folder, config, classifier), _layout(config, head=not classifier)
    flat, bad = {}, []
    for path, (names, _) in layout.items():
        flat[path], finite = _place(tuple(found[name] for name in names), path.startswith("layers."), dtype, _target(sharding, path))
        bad += [] if finite else [path]
    if bad:
        raise ValueError(f"{folder}: not finite in {jnp.dtype(dtype).name}: {', '.join(bad)}; the file is damaged or needs a wider dtype")
    return unflatten_dict(flat, sep="."), found.get("score.weight")


def load(source: str | Path, *, dtype: DTypeLike, sharding: Placement = None) -> tuple[ModelConfig, dict[str, Any]]:
    """A causal language model: its config and its parameters in `dtype`, laid out as `decoder.abstract`.

    `source` is a folder or the name of a model on the Hub. `sharding` gives each path ("layers.q_proj.kernel") its sharding, as a function
    or as a tree like the parameters; with it every process reads only what its devices hold. The host holds a few tensors at a time. Raises
    ValueError for an unsupported config, and one that lists every missing, extra, misshapen or non-finite tensor.
    """
    folder = resolve(source)
    config = read(folder)
    return config, _read(folder, config, dtype, sharding, classifier=False)[0]


def load_classifier(
    source: str | Path, *, dtype: DTypeLike, sharding: Placement = None
) -> tuple[ModelConfig, dict[str, Any], Float[Array, "D C"]]:
    """A `*ForSequenceClassification` model: config, parameters (without an output head, even if untied) and its float32 class head.

    Arguments and errors are those of `load`.
    """
    folder = resolve(source)
    config = read(folder)
    params, score = _read(folder, config, dtype, sharding, classifier=True)
    assert score is not None
    return config, params, jnp.asarray(score[slice(None), slice(None)].T.astype(np.float32))


def _fields(config: ModelConfig, dtype: str, classes: int | None) -> dict[str, Any]:
    """The `config.json` that `config.read` and `transformers` (4 and 5) both read back as this model."""
    activation = {"silu": "silu", "gelu_tanh": "gelu_pytorch_tanh"}[config.activation]
    scaling = config.rope_scaling
    ends = config.eos_token_ids
    fields = {
        "architectures": [config.family.capitalize() + ("ForCausalLM" if classes is None else "ForSequenceClassification")],
        "model_type": config.family,
        "torch_dtype": dtype,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.context,
        "hidden_act": activation,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling
        and {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low,
            "high_freq_factor": scaling.high,
            "original_max_position_embeddings": scaling.original,
        },
        "tie_word_embeddings": config.tied,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": ends[0] if len(ends) == 1 else list(ends) or None,
        "pad_token_id": config.pad_token_id,
    }
    windowed = {"sliding_window": config.window} if FAMILIES[config.family].windowed else {}
    labels = {} if classes is None else {"id2label": {str(i): f"LABEL_{i}" for i in range(classes)}}
    labels = labels and labels | {"label2id": {name: int(i) for i, name in labels["id2label"].items()}}
    return fields | windowed | labels


def _exported(
    config: ModelConfig, params: Mapping[str, Any], dtype: DTypeLike, head: Float[Array, "D C"] | None
) -> Iterator[tuple[str, np.ndarray]]:
    flat = _flat(params)
    for path, (names, _) in _layout(config, head=head is None).items():
        array = np.asarray(flat[path])
        parts = [layer.T for layer in array] if path.startswith("layers.") else [array]
        yield from ((name, np.asarray(part, dtype, order="C")) for name, part in zip(names, parts, strict=True))
    if head is not None:
        yield "score.weight", np.asarray(np.asarray(head).T, dtype, order="C")


def copy_aside(source: str | Path, folder: Path, patterns: tuple[str, ...] = ASIDE) -> None:
    """Copy tokenizer and generation files from one model folder to another."""
    for path in sorted({path for pattern in patterns for path in Path(source).glob(pattern) if path.is_file()}):
        shutil.copyfile(path, folder / path.name)


def _add_ends(path: Path, ends: Sequence[int]) -> None:
    """Have generation, if there is a file of its defaults, stop at the config's EOS tokens too: `transformers` and vLLM go by that file."""
    if path.exists():
        defaults = files.read_json(path)
        known = defaults.get("eos_token_id")
        known = known if isinstance(known, list) else [] if known is None else [known]
        files.write_json(path, defaults | {"eos_token_id": list(dict.fromkeys([*ends, *known]))})


def save_model(
    folder: str | Path,
    config: ModelConfig,
    params: Mapping[str, Any],
    *,
    source: str | Path | None = None,
    dtype: DTypeLike | None = None,
    head: Float[Array, "D C"] | None = None,
    limit: int = 5 * 10**9,
) -> None:
    """Write a folder that `transformers` and vLLM load: config.json, weights, and the tokenizer files of `source` if it is given.

    `dtype` is that of the parameters unless named; several files with an index beyond `limit` bytes. With `head` it is a sequence
    classifier, without the output head. The folder appears whole or not at all; ValueError where it exists and is not empty.
    """
    dtype = np.dtype(dtype or params["embed"]["table"].dtype)
    with tensors.new_folder(folder) as part:
        tensors.write(part, "model", _exported(config, params, dtype, head), limit)
        files.write_json(part / "config.json", _fields(config, dtype.name, None if head is None else head.shape[1]))
        if source is not None:
            copy_aside(resolve(source), part)
            _add_ends(part / "generation_config.json", config.eos_token_ids)
