"""Live parity with transformers and peft in float32: logits, LoRA gradients, exported and imported folders, the classifier.

The error seen is 5e-6 to 1.4e-5 on logits of standard deviation 1; the tolerances stand just above it.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models as tiny
from safetensors.numpy import load_file

from ilr_jax import batches
from ilr_jax.models import config, heads, hf, lora, peft
from ilr_jax.train import losses, steps
from ilr_jax.types import Rows

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
reference_peft = pytest.importorskip("peft")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
LOGITS, GRADIENTS = 3e-5, 3e-5
names = pytest.mark.parametrize("name", tiny.CONFIGS)


def load_reference(folder, kind="AutoModelForCausalLM", dtype=torch.float32):
    torch.set_num_threads(2)
    return getattr(transformers, kind).from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()


def run_reference(model, rows):
    tensors = [torch.tensor(np.asarray(x), dtype=torch.long) for x in rows]
    return model(input_ids=tensors[0], position_ids=tensors[1], attention_mask=tensors[2], use_cache=False).logits


def reference_logits(model, rows) -> np.ndarray:
    with torch.no_grad():
        return run_reference(model, rows).float().numpy()


def difference(ours, theirs, rows) -> float:
    return float(np.abs(ours - theirs)[np.asarray(rows.segments) > 0].max())


@dataclasses.dataclass
class Case:
    """A random model in both libraries, with a PEFT adapter on every linear layer, which PEFT saved in `adapter`."""

    folder: Path
    adapter: Path
    settings: config.ModelConfig
    params: dict
    rows: Rows
    plain: np.ndarray
    adapted: Any


@pytest.fixture(scope="module", params=tiny.CONFIGS)
def case(request, tmp_path_factory) -> Case:
    folder = tmp_path_factory.mktemp(request.param)
    tiny.write(folder / "base", tiny.CONFIGS[request.param], tiny.weights(tiny.CONFIGS[request.param]))
    rows, model = tiny.rows(), load_reference(folder / "base")
    plain = reference_logits(model, rows)
    torch.manual_seed(3)
    settings = reference_peft.LoraConfig(r=4, lora_alpha=10, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = reference_peft.get_peft_model(model, settings)
    for key, weight in adapted.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(weight, std=0.05)
    adapted.save_pretrained(folder / "adapter")
    return Case(folder / "base", folder / "adapter", *hf.load(folder / "base", dtype=jnp.float32), rows, plain, adapted)


def test_logits(case):
    assert 0.5 < case.plain.std() < 2
    assert difference(tiny.logits(case.settings, case.params, case.rows), case.plain, case.rows) <= LOGITS


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("family", ("gemma", "mistral", "llama"))
def test_logits_of_configs_drawn_at_random(family, seed, tmp_path):
    fields, rows = tiny.drawn(family, seed), tiny.rows()
    settings, params = hf.load(tiny.write(tmp_path, fields, tiny.weights(fields)), dtype=jnp.float32)
    theirs = reference_logits(load_reference(tmp_path), rows)
    assert difference(tiny.logits(settings, params, rows), theirs, rows) <= LOGITS


def to_the_left(batch):
    """The batch with the padding of every row moved to its left."""
    shift = np.asarray(batch.rows.segments == 0).sum(axis=1)
    rolled = [np.stack([np.roll(row, n) for row, n in zip(x, shift, strict=True)]) for x in batch.rows]
    return batch._replace(rows=Rows(*rolled), places=np.where(batch.weights > 0, batch.places + shift[:, None], 0))


@pytest.mark.parametrize("left", (False, True), ids=("right", "left"))
def test_gradients_of_sft_loss(case, left):
    """Through the code that trains: prompts of four tokens and the rest as answers, each of which counts alike."""
    shape, adapters = peft.load_adapter(case.adapter, case.settings)
    texts = [row[keep > 0].tolist() for row, keep in zip(case.rows.tokens, case.rows.segments, strict=True)]
    texts = [text for text in texts if len(text) > 4]
    batch = batches.completions([(text[:4], text[4:]) for text in texts], pad=0, normalize="sequence")
    batch = to_the_left(batch) if left else batch
    setup = steps.Setup(case.settings, shape)

    @jax.jit
    def loss(adapters):
        log_probs = steps._log_probs(setup, {"adapters": adapters}, case.params, batch)
        (total,), (units,) = losses.sft_loss(log_probs, batch, 1)
        return total / units

    ours, gradients = jax.value_and_grad(loss)(adapters)
    rows, model = batch.rows, case.adapted
    model.zero_grad()
    log_probs = torch.log_softmax(run_reference(model, rows)[:, :-1], -1)
    picked = log_probs.gather(-1, torch.tensor(rows.tokens[:, 1:], dtype=torch.long)[..., None])[..., 0]
    starts = np.argmax(rows.segments > 0, axis=1).tolist()
    spans = [slice(start + 3, start + len(text) - 1) for start, text in zip(starts, texts, strict=True)]
    theirs = -torch.stack([row[span].mean() for row, span in zip(picked, spans, strict=True)]).mean()
    theirs.backward()
    assert abs(float(ours) - theirs.item()) <= 1e-5
    compared = 0
    for key, weight in model.named_parameters():
        if weight.requires_grad:
            _, _, _, _, layer, _, module, side, *_ = key.split(".")
            mine = np.asarray(gradients[module][side[-1].lower()][0, int(layer)]).T
            assert weight.grad.abs().max() > 10 * GRADIENTS, key
            assert np.abs(mine - weight.grad.numpy()).max() <= GRADIENTS, key
            compared += 1
    assert compared == 2 * 7 * case.settings.num_layers


def test_adapter_that_peft_saved_loads_here(case):
    shape, adapters = peft.load_adapter(case.adapter, case.settings)
    assert shape == lora.Lora(4, 10.0)
    ours = tiny.logits(case.settings, case.params, case.rows, lora.prepare(adapters, shape, jnp.float32))
    assert difference(ours, case.plain, case.rows) > 0.1
    assert difference(ours, reference_logits(case.adapted, case.rows), case.rows) <= LOGITS


def test_adapter_saved_here_loads_in_peft_and_merges(case, tmp_path):
    # One family with other rank and fewer modules: which names are written is not a matter of the family.
    shape = lora.Lora(3, 8.5, ("q_proj", "v_proj", "down_proj")) if case.settings.rope_scaling else lora.Lora(4, 10.0)
    adapters = tiny.adapters(case.settings, shape, 3)
    one = jax.tree.map(lambda x: x[1:2], adapters)
    ours = tiny.logits(case.settings, case.params, case.rows, lora.prepare(one, shape, jnp.float32))
    peft.save_adapter(tmp_path / "adapter", case.settings, shape, adapters, 1, str(case.folder))
    theirs = reference_peft.PeftModel.from_pretrained(load_reference(case.folder), tmp_path / "adapter")
    assert difference(ours, reference_logits(theirs, case.rows), case.rows) <= LOGITS
    hf.save_model(tmp_path / "merged", case.settings, lora.merge(case.params, adapters, shape, 1))
    assert difference(ours, reference_logits(load_reference(tmp_path / "merged"), case.rows), case.rows) <= LOGITS


@names
@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
def test_export_reloads_in_transformers_unchanged(name, tmp_path, dtype):
    fields = tiny.CONFIGS[name]
    before = tiny.write(tmp_path / "before", fields, {k: w.astype(jnp.dtype(dtype)) for k, w in tiny.weights(fields).items()})
    settings, params = hf.load(before, dtype=dtype)
    hf.save_model(tmp_path / "after", settings, params)
    a, b = load_reference(before), load_reference(tmp_path / "after")
    assert load_reference(tmp_path / "after", dtype="auto").dtype == getattr(torch, dtype)
    assert type(a) is type(b)
    ignored = {"_name_or_path", "architectures", "dtype", "head_dim"}
    assert {k: v for k, v in a.config.to_dict().items() if k not in ignored} == {
        k: v for k, v in b.config.to_dict().items() if k not in ignored
    }
    rows = tiny.rows()
    np.testing.assert_array_equal(reference_logits(a, rows), reference_logits(b, rows))


@names
def test_folder_that_transformers_wrote_comes_back_bit_for_bit(name, tmp_path):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**tiny.CONFIGS[name]))
    model.save_pretrained(tmp_path / "theirs")
    settings, params = hf.load(tmp_path / "theirs", dtype=jnp.float32)
    assert settings == config.from_fields(tiny.CONFIGS[name])
    hf.save_model(tmp_path / "ours", settings, params)
    theirs, ours = (load_file(tmp_path / folder / "model.safetensors") for folder in ("theirs", "ours"))
    assert ours.keys() == theirs.keys() and ("lm_head.weight" in ours) != settings.tied
    for key, tensor in theirs.items():
        assert (ours[key].dtype, ours[key].shape) == (tensor.dtype, tensor.shape) and ours[key].tobytes() == tensor.tobytes(), key


@names
def test_classifier(name, tmp_path):
    fields = tiny.CONFIGS[name] | {"id2label": {"0": "reject", "1": "accept"}, "label2id": {"reject": 0, "accept": 1}}
    score = np.random.RandomState(1).standard_normal((2, fields["hidden_size"])).astype(np.float32)
    body = {k: w for k, w in tiny.weights(fields).items() if k != "lm_head.weight"}
    folder = tiny.write(tmp_path / "base", fields, body | {"score.weight": score})
    rows = tiny.rows()
    rows = rows._replace(
        tokens=np.where(rows.segments > 0, rows.tokens % 60 + 1, 0).astype(np.int32)
    )  # the reference knows padding by its id
    rows = rows._replace(**{field: x[[0, 3, 4]] for field, x in rows._asdict().items()})
    last = np.asarray(rows.segments.sum(-1) - 1)

    settings, params, head = hf.load_classifier(folder, dtype=jnp.float32)
    assert "head" not in params
    ours = heads.classify(jnp.asarray(tiny.hidden(settings, params, rows)), jnp.asarray(last)[:, None], head)[:, 0]
    theirs = reference_logits(load_reference(folder, "AutoModelForSequenceClassification"), rows)
    assert np.abs(ours - theirs).max() <= 10 * LOGITS  # the head is not scaled down: class logits have deviation 7
    hf.save_model(tmp_path / "out", settings, params, head=head)
    again = load_reference(tmp_path / "out", "AutoModelForSequenceClassification")
    np.testing.assert_array_equal(reference_logits(again, rows), theirs)
    assert config.read(tmp_path / "out") == settings


def test_peft_starts_from_the_same_distribution(case):
    """What test_lora asserts of ours holds of PEFT's fresh adapters."""
    for key, weight in case.adapted.named_parameters():
        if "lora_A" in key:
            bound = weight.shape[1] ** -0.5
            assert 0.9 * bound < weight.abs().max() <= bound
            assert abs(weight.std() - bound / 3**0.5) < 0.1 * bound
