"""Model folders in and out without torch: exact round trips, shardings, and hostile or broken folders."""

import json
import os
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models as tiny
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import load_file

from ilr_jax.models import config, hf

LLAMA, SMOL = tiny.CONFIGS["llama"], tiny.CONFIGS["smollm"]


@pytest.fixture
def llama(tmp_path):
    return tiny.write(tmp_path / "llama", LLAMA, tiny.weights(LLAMA))


def stored(folder) -> dict[str, np.ndarray]:
    return {name: array for path in folder.glob("*.safetensors") for name, array in load_file(path).items()}


@pytest.mark.parametrize("name", tiny.CONFIGS)
@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
def test_round_trip_is_bit_exact(name, dtype, tmp_path):
    fields = tiny.CONFIGS[name]
    tensors = {key: w.astype(jnp.dtype(dtype)) for key, w in tiny.weights(fields).items()}
    settings, params = hf.load(tiny.write(tmp_path / "a", fields, tensors), dtype=dtype)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, np.asarray(b).astype(dtype)), params, tiny.params(fields))
    assert {x.dtype.name for x in jax.tree.leaves(params)} == {dtype}
    hf.save_model(tmp_path / "b", settings, params)
    after = stored(tmp_path / "b")
    assert after.keys() == tensors.keys()
    for key, tensor in tensors.items():
        assert after[key].dtype == tensor.dtype
        assert after[key].tobytes() == tensor.tobytes(), key
    assert config.read(tmp_path / "b") == settings == config.from_fields(fields)


def test_several_files(llama, tmp_path):
    settings, params = hf.load(llama, dtype=jnp.float32)
    hf.save_model(tmp_path / "b", settings, params, limit=24_000)
    files = sorted(path.name for path in (tmp_path / "b").glob("*.safetensors"))
    assert len(files) > 3 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert all((tmp_path / "b" / name).stat().st_size < 28_000 for name in files)
    index = json.loads((tmp_path / "b" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(w.nbytes for w in tiny.weights(LLAMA).values())
    for name, file in index["weight_map"].items():
        assert name in load_file(tmp_path / "b" / file)
    _, again = hf.load(tmp_path / "b", dtype=jnp.float32)
    jax.tree.map(np.testing.assert_array_equal, params, again)


def test_same_bytes_every_time(llama, tmp_path):
    settings, params = hf.load(llama, dtype=jnp.float32)
    for name in "bc":
        hf.save_model(tmp_path / name, settings, params)
    for path in (tmp_path / "b").iterdir():
        assert path.read_bytes() == (tmp_path / "c" / path.name).read_bytes()


def test_dtype_on_the_way_in_and_out(llama, tmp_path):
    settings, params = hf.load(llama, dtype=jnp.bfloat16)
    wanted = tiny.weights(LLAMA)["model.layers.1.mlp.up_proj.weight"].astype(jnp.bfloat16)
    np.testing.assert_array_equal(params["layers"]["up_proj"]["kernel"][1].T, wanted)
    hf.save_model(tmp_path / "b", settings, params, dtype=jnp.float16)
    assert {array.dtype.name for array in stored(tmp_path / "b").values()} == {"float16"}


@pytest.mark.parametrize("as_tree", (False, True))
def test_sharded_load(llama, as_tree):
    """Every device gets its own piece; the whole equals the unsharded load."""
    mesh = jax.make_mesh((2, 4), ("data", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)

    def place(path: str) -> NamedSharding:
        last = path.rpartition(".")[2]
        spec = {"kernel": PartitionSpec(None, "data", "tensor"), "table": PartitionSpec(None, "tensor"), "scale": PartitionSpec()}[last]
        return NamedSharding(mesh, spec)

    settings, plain = hf.load(llama, dtype=jnp.float32)
    paths = jax.tree_util.tree_map_with_path(lambda path, _: jax.tree_util.keystr(path, simple=True, separator="."), plain)
    _, params = hf.load(llama, dtype=jnp.float32, sharding=jax.tree.map(place, paths) if as_tree else place)
    jax.tree.map(np.testing.assert_array_equal, plain, params)
    assert params["layers"]["up_proj"]["kernel"].sharding == place("layers.up_proj.kernel")
    assert params["layers"]["up_proj"]["kernel"].addressable_shards[5].data.shape == (2, 24, 14)
    assert params["norm"]["scale"].sharding == place("norm.scale")


@pytest.mark.parametrize("sharded", (False, True))
def test_the_host_holds_one_tensor_at_a_time(tmp_path, sharded):
    fields = LLAMA | {"num_hidden_layers": 24, "hidden_size": 96, "intermediate_size": 2048, "vocab_size": 64}
    folder = tiny.write(tmp_path / "deep", fields, tiny.weights(fields))
    mesh = jax.make_mesh((8,), ("tensor",), axis_types=(jax.sharding.AxisType.Auto,))
    place = lambda path: NamedSharding(mesh, PartitionSpec(None, None, "tensor") if path.endswith("up_proj.kernel") else PartitionSpec())
    load = lambda: hf.load(folder, dtype=jnp.float32, sharding=place if sharded else None)
    load()  # what is compiled and cached once is not counted
    tracemalloc.start()
    load()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * 4 * 96 * 2048  # seen: 3.3, and 4.3 where a transfer was still under way; the stack of one projection is 24


def test_files_beside_the_weights_travel(llama, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json", "notes.txt"):
        (llama / name).write_text("{}")
    hf.save_model(tmp_path / "b", *hf.load(llama, dtype=jnp.float32), source=llama)
    assert {path.name for path in (tmp_path / "b").iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_nothing_is_overwritten_and_nothing_half_written_stays(llama, tmp_path, monkeypatch):
    settings, params = hf.load(llama, dtype=jnp.float32)
    with pytest.raises(ValueError, match="exists already"):
        hf.save_model(llama, settings, params)
    (tmp_path / "empty").mkdir()
    hf.save_model(tmp_path / "empty", settings, params)
    monkeypatch.setattr("ilr_jax.models.tensors.save_file", lambda *a, **k: (_ for _ in ()).throw(OSError(28, "no space")))
    with pytest.raises(OSError, match="no space"):
        hf.save_model(tmp_path / "new" / "folder", settings, params)
    assert list((tmp_path / "new").iterdir()) == []


def refusal(folder, dtype=jnp.float32) -> str:
    """What is said of a folder that cannot be loaded."""
    with pytest.raises(ValueError) as error:
        hf.load(folder, dtype=dtype)
    return str(error.value)


def test_all_wrong_tensors_at_once(tmp_path):
    tensors = tiny.weights(LLAMA)
    tensors.pop("model.layers.1.self_attn.k_proj.weight")
    tensors["model.layers.0.mlp.up_proj.weight"] = np.zeros((48, 56), np.float32)
    tensors["model.layers.0.self_attn.q_proj.bias"] = np.zeros(48, np.float32)
    tensors["model.norm.weight"] = np.zeros(48, np.int8)
    said = refusal(tiny.write(tmp_path / "a", LLAMA, tensors))
    for text in (
        "model.layers.1.self_attn.k_proj.weight: missing, wanted shape (24, 48)",
        "model.layers.0.mlp.up_proj.weight: wanted shape (56, 48), got (48, 56)",
        "model.layers.0.self_attn.q_proj.bias: not part of this model, got shape (48,)",
        "model.norm.weight: wanted one of F64, F32, F16, BF16, got I8",
    ):
        assert text in said


@pytest.mark.parametrize("change", (-1, 1))
def test_vocabulary_of_another_size(tmp_path, change):
    folder = tiny.write(tmp_path / "a", LLAMA | {"vocab_size": 61 + change}, tiny.weights(LLAMA))
    assert f"model.embed_tokens.weight: wanted shape ({61 + change}, 48), got (61, 48)" in refusal(folder)


def test_not_finite(tmp_path):
    tensors = tiny.weights(LLAMA)
    tensors["model.layers.1.mlp.gate_proj.weight"][3, 4] = np.nan
    assert "not finite in float32: layers.gate_proj.kernel;" in refusal(tiny.write(tmp_path / "a", LLAMA, tensors))
    tensors["model.layers.1.mlp.gate_proj.weight"][3, 4] = 1e5
    assert "not finite in float16" in refusal(tiny.write(tmp_path / "b", LLAMA, tensors), jnp.float16)


def test_head_of_a_tied_model_must_be_the_embedding(tmp_path):
    tensors = tiny.weights(SMOL)
    copied = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].copy()}
    _, params = hf.load(tiny.write(tmp_path / "a", SMOL, copied), dtype=jnp.float32)
    assert "head" not in params
    copied["lm_head.weight"][0, 0] += 1
    said = refusal(tiny.write(tmp_path / "b", SMOL, copied))
    assert "ties the output head" in said and "lm_head.weight" in said


def test_buffers_of_old_files_do_no_harm(tmp_path):
    buffers = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": np.ones(6, np.float32) for i in range(2)}
    _, plain = hf.load(tiny.write(tmp_path / "a", LLAMA, tiny.weights(LLAMA)), dtype=jnp.float32)
    _, params = hf.load(tiny.write(tmp_path / "b", LLAMA, tiny.weights(LLAMA) | buffers), dtype=jnp.float32)
    jax.tree.map(np.testing.assert_array_equal, params, plain)


def test_damaged_file(llama):
    path = llama / "model.safetensors"
    data = path.read_bytes()
    for damaged in (data[:-100], data[:50], b"", b"\xff" * 64):
        path.write_bytes(damaged)
        said = refusal(llama)
        assert str(path) in said and "not a complete safetensors file" in said
    path.rename(llama / "pytorch_model.bin")
    assert "wanted model.safetensors, found pytorch_model.bin; save the model anew" in refusal(llama)


def test_config_that_is_missing_or_no_json(llama):
    for text, message in (("{", "wanted JSON in"), ("[]", "wanted a JSON object, got list"), ("[" * 100_000, "wanted JSON in")):
        (llama / "config.json").write_text(text)
        said = refusal(llama)
        assert "config.json" in said and message in said
    (llama / "config.json").write_text(json.dumps(LLAMA | {"clip_qkv": 8}))
    said = refusal(llama)
    assert "config.json" in said and "clip_qkv=8: unknown field" in said
    (llama / "config.json").unlink()
    assert "config.json is missing" in refusal(llama)


def indexed(folder, names) -> None:
    """Replace the weights by an index that names `names` as their files."""
    keys = list(tiny.weights(LLAMA))
    index = {"weight_map": {key: names[i % len(names)] for i, key in enumerate(keys)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    "name",
    (
        "../outside.safetensors",
        "/etc/hostname",
        "sub/file",
        "..",
        "",
        ".",
        "a\0b",
        "link",
        "pipe",
        "absent",
        None,
        3,
        ["model.safetensors"],
    ),
)
def test_index_may_name_only_plain_files_of_its_folder(llama, tmp_path, name):
    (tmp_path / "outside.safetensors").write_bytes((llama / "model.safetensors").read_bytes())
    (llama / "link").symlink_to(tmp_path / "outside.safetensors")
    os.mkfifo(llama / "pipe")
    indexed(llama, [name])
    assert str(llama) in refusal(llama)


def test_links_of_the_hub_cache_are_followed(llama, tmp_path):
    snapshot, blobs = tmp_path / "cache" / "snapshots" / "abc", tmp_path / "cache" / "blobs"
    snapshot.mkdir(parents=True), blobs.mkdir()
    for name in ("config.json", "model.safetensors"):
        (llama / name).rename(blobs / name)
        (snapshot / name).symlink_to(blobs / name)
    assert hf.load(snapshot, dtype=jnp.float32)[0] == config.from_fields(LLAMA)


@pytest.mark.parametrize("text", ("[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', "nonsense"))
def test_index_of_the_wrong_form(llama, text):
    (llama / "model.safetensors.index.json").write_text(text)
    assert "model.safetensors.index.json" in refusal(llama)


def test_tensor_in_two_files(llama):
    (llama / "twin").write_bytes((llama / "model.safetensors").read_bytes())
    indexed(llama, ["model.safetensors", "twin"])
    said = refusal(llama)
    assert "both hold" in said and "lm_head.weight" in said


@pytest.mark.parametrize("source", ("no/such-model", "no_such_folder/a/b", "../nowhere"))
def test_neither_folder_nor_model_of_the_hub(source):
    with pytest.raises(ValueError, match="neither a local folder nor a model|no such folder; wanted"):
        hf.load(source, dtype=jnp.float32)


def test_hub_name_is_fetched_with_the_few_files_that_are_needed(llama, monkeypatch):
    asked = {}

    def fetch(name, *, allow_patterns):
        asked.update(name=name, patterns=allow_patterns)
        return str(llama)

    monkeypatch.setattr(hf, "snapshot_download", fetch)
    assert hf.load("org/model", dtype=jnp.float32)[0] == config.from_fields(LLAMA)
    assert asked["name"] == "org/model"
    assert {"config.json", "model*.safetensors", "tokenizer*"} <= set(asked["patterns"])


def test_classifier_round_trip(tmp_path):
    """An untied model's classifier has no output head in the file; the class head comes back as it was."""
    settings, params = hf.load(tiny.write(tmp_path / "a", LLAMA, tiny.weights(LLAMA)), dtype=jnp.float32)
    head = jnp.asarray(np.random.RandomState(0).standard_normal((48, 3)), jnp.float32)
    hf.save_model(tmp_path / "b", settings, params, head=head)
    names = stored(tmp_path / "b")
    assert "lm_head.weight" not in names and names["score.weight"].shape == (3, 48)
    fields = json.loads((tmp_path / "b" / "config.json").read_text())
    assert fields["architectures"] == ["LlamaForSequenceClassification"] and len(fields["id2label"]) == 3
    again, loaded, loaded_head = hf.load_classifier(tmp_path / "b", dtype=jnp.float32)
    assert again == settings and loaded.keys() == params.keys() - {"head"}
    np.testing.assert_array_equal(loaded_head, head)
    said = refusal(tmp_path / "b")
    assert "score.weight: not part" in said and "lm_head.weight: missing" in said
    with pytest.raises(ValueError, match=r"(?s)lm_head.*score\.weight|score\.weight.*lm_head"):
        hf.load_classifier(tmp_path / "a", dtype=jnp.float32)
