"""Samples from the engine are what the slowest decoder says, whatever else is being decoded."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sample_models as tiny

from ilr_jax.models import decoder, lora
from ilr_jax.sample import generate as generation
from ilr_jax.sample import rollout, sampling, slots
from ilr_jax.sample.generate import generate
from ilr_jax.sample.requests import Request
from ilr_jax.sample.rollout import SamplingSettings

EOS = (3, 11)
WINDOW = 10
REQUESTS = tiny.requests(9)


def slow(name, params, request, rule=(1.0,), copy=0, limit=WINDOW):
    """The definition: the whole forward at every token, a uniform for (key, id, copy, number of the token)."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), request.id), copy)
    text, total = list(request.tokens), 0.0
    for i in range(limit):
        logits = jnp.asarray(tiny.next_logits(tiny.CONFIGS[name], params, [text]))
        token = int(sampling.draw(logits, jax.random.uniform(jax.random.fold_in(key, i))[None], *rule)[0])
        total += float(jax.nn.log_softmax(logits[0])[token])
        if token in EOS:
            return text[len(request.tokens) :], total, True
        text.append(token)
    return text[len(request.tokens) :], total, False


def run(name, requests, params=None, adapters=None, lora=None, key=0, progress=None, attention="gemm", **settings):
    settings = SamplingSettings(**({"max_new_tokens": WINDOW, "slots": 4, "chunk": 5, "bucket": 24} | settings))
    params = tiny.params(name) if params is None else params
    how = {"key": key, "progress": progress, "attention": attention}
    return generate(tiny.CONFIGS[name], params, adapters, requests, settings, eos=EOS, lora=lora, **how)


def tokens(found):
    return [[completion.tokens for completion in completions] for completions in found]


@pytest.mark.parametrize(
    "name, rule", [("gemma", (0.0,)), ("mistral", (0.0,)), ("llama", (0.0,)), ("mistral", (1.0,)), ("llama", (0.9, 6, 0.7))]
)
def test_equals_the_whole_forward_at_every_token(name, rule):
    """Ragged prompts, the Mistral's beyond its window, in four slots that are taken again and again."""
    params, temperature = tiny.params(name), rule[0]
    how = dict(zip(("temperature", "top_k", "top_p"), rule, strict=False))
    found = run(name, REQUESTS, **how, bucket=24 if temperature == 0 else 8)
    for request, (completion,) in zip(REQUESTS, found, strict=True):
        expected, total, finished = slow(name, params, request, rule)
        assert (completion.tokens, completion.finished) == (expected, finished)
        assert completion.log_prob == pytest.approx(total, abs=1e-4)
    assert {completion.finished for (completion,) in found} == {True, False}
    for less in ((0.9,), (0.9, 6), (0.9, None, 0.7)) if len(rule) == 3 else ():  # both cuts matter to these answers
        assert tokens(found)[:4] != [[slow(name, params, request, less)[0]] for request in REQUESTS[:4]]
    if temperature == 1:  # one ends at once
        assert any(completion.finished and completion.tokens == [] for (completion,) in found)


def test_a_sample_depends_on_its_request_and_number_only():
    base = tokens(run("mistral", REQUESTS, n=2))
    assert base[0][0] != base[0][1]
    assert tokens(run("mistral", REQUESTS[::-1], n=2))[::-1] == base
    assert tokens(run("mistral", REQUESTS[4:7])) == [[found[0]] for found in base[4:7]]
    others = tiny.requests(5, seed=9)
    assert tokens(run("mistral", others + REQUESTS[:3], n=2))[5:] == base[:3]
    assert tokens(run("mistral", REQUESTS, n=2, key=1)) != base


@pytest.mark.parametrize("merged", [False, True])
def test_k_adapters_in_one_pass_equal_separate_runs(monkeypatch, merged):
    """Each in a copy of the layers, or all beside one base."""
    monkeypatch.setattr(lora, "worth_merging", lambda *_: merged)
    adapters, settings = tiny.adapters("llama", 3)
    requests = tiny.requests(10, adapters=3)
    together = tokens(run("llama", requests, adapters=adapters, lora=settings, slots=6))
    for k in range(3):
        mine = [i for i, request in enumerate(requests) if request.adapter == k]
        one = jax.tree.map(lambda w, k=k: w[k : k + 1], adapters)
        alone = [Request(requests[i].tokens, 0, requests[i].id) for i in mine]
        assert tokens(run("llama", alone, adapters=one, lora=settings)) == [together[i] for i in mine]
    assert tokens(run("llama", [Request(r.tokens, 0, r.id) for r in requests])) != together


def test_merging_a_single_adapter_changes_no_token(monkeypatch):
    monkeypatch.setattr(lora, "worth_merging", lambda *_: False)
    adapters, settings = tiny.adapters("llama", 1)
    config, params = tiny.CONFIGS["llama"], tiny.params("llama")
    how = SamplingSettings(WINDOW, slots=8, chunk=5, bucket=24)
    merged = generate(config, params, adapters, REQUESTS[:4], how, eos=EOS, lora=settings)
    twice = jax.tree.map(lambda w: jnp.concatenate([w, w]), adapters)  # beside one base
    assert tokens(generate(config, params, twice, REQUESTS[:4], how, eos=EOS, lora=settings)) == tokens(merged)
    assert tokens(generate(config, lora.merge(params, adapters, settings), None, REQUESTS[:4], how, eos=EOS)) == tokens(merged)
    size = sum(x.nbytes for x in jax.tree.leaves(params))  # where base and copy would take more than half of the memory, nothing is merged
    calls, merge = [], generation._merge
    monkeypatch.setattr(generation, "_merge", lambda *given: calls.append(1) or merge(*given))
    for memory in (4 * size - 1, 4 * size):
        monkeypatch.setattr(generation, "room", lambda memory=memory: float(memory))
        assert len(calls) == 0 and tokens(generate(config, params, adapters, REQUESTS[:4], how, eos=EOS, lora=settings)) == tokens(merged)
    assert len(calls) == 1


def test_prompts_are_read_with_the_attention_that_is_asked_for(monkeypatch):
    seen, attend = [], jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda *args, **how: (seen.append(how["implementation"]), attend(*args, **how))[1])
    base = tokens(run("mistral", REQUESTS[4:7]))
    assert not seen
    assert tokens(run("mistral", REQUESTS[4:7], attention="xla")) == base and set(seen) == {"xla"}


def test_progress_names_the_job_and_its_rates(capsys):
    run("mistral", REQUESTS[4:7], progress="weak labels")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "weak labels: 0/3 prompts" and lines[-1].startswith("weak labels: 3/3 prompts, ")
    assert " prompts/s, " in lines[-1] and " tokens/s" in lines[-1]
    run("mistral", REQUESTS[4:7])
    assert capsys.readouterr().err == ""


def test_context_limits_what_is_generated():
    request = Request([5] * 62, 0, 1)
    ((found,),) = run("gemma", [request])
    assert len(found.tokens) <= 2 and (found.finished or len(found.tokens) == 2)


def test_programs_are_compiled_once_per_prompt_length(monkeypatch):
    """Refills, drained groups and more requests add none; a longer bucket adds one of each kind."""
    bound, original = [], decoder.bind
    monkeypatch.setattr(slots.decoder, "bind", lambda *args: bound.append(1) or original(*args))
    sizes = {"max_new_tokens": 4, "chunk": 3, "bucket": 8}
    run("gemma", tiny.requests(3, longest=8), **sizes)
    assert len(bound) == 2
    run("gemma", tiny.requests(11, seed=4, longest=8), **sizes, key=5)
    assert len(bound) == 2
    run("gemma", tiny.requests(11, seed=4, longest=8) + [Request([1] * 12, 0, 3)], **sizes)
    assert len(bound) == 4


class Sealed:
    """An array on the device, of which the host knows no more than its shape."""

    def __init__(self, array):
        self.array, self.shape = array, array.shape

    def look(self, *_, **__):
        raise AssertionError("looked at between two fetches")

    __array__ = __bool__ = __int__ = __float__ = __index__ = __iter__ = __getitem__ = look


def test_the_host_looks_at_the_device_once_a_chunk(monkeypatch):
    """In one fetch of all that it needs: any other look would wait for the device once more."""
    seen, opened = [], partial(jax.tree.map, lambda x: x.array if isinstance(x, Sealed) else x)
    note = lambda what, call: lambda *given: (seen.append(what), call(*opened(given)))[1]
    for name in ("blank", "admit", "advance"):
        call = note(name, getattr(rollout, name))
        monkeypatch.setattr(rollout, name, lambda *given, call=call: jax.tree.map(Sealed, call(*given)))
    monkeypatch.setattr(jax, "device_get", note("fetch", jax.device_get))
    assert len(run("gemma", REQUESTS)) == len(REQUESTS)
    chunks = [what for what in seen if what not in ("blank", "admit")]
    assert chunks == ["advance", "fetch"] * (len(chunks) // 2) and len(chunks) > 6 and seen.count("admit") == len(REQUESTS)


def test_golden_tokens():
    """Weights from numpy, draws from threefry: a change here changes every published sample."""
    golden = [[7], [5, 6, 15, 19, 1, 13, 2, 2, 23, 2], [23, 23, 13, 5, 8, 5, 13, 8, 2, 12], [19, 7, 21, 15, 21, 15, 22, 8, 15, 7]]
    assert tokens(run("mistral", REQUESTS[1:5])) == [[answer] for answer in golden]


@pytest.mark.parametrize(
    "request_, wanted",
    [
        (Request([], 0, 7), r"request 1 \(id 7\): wanted a prompt of 1 to 63 tokens .* got 0"),
        (Request([1] * 64, 0, 7), r"request 1 \(id 7\): wanted a prompt of 1 to 63 tokens .* got 64"),
        (Request([1, 24], 0, 7), r"request 1 \(id 7\): wanted token ids from 0 to 23, got 1 to 24"),
        (Request([1], 1, 7), r"request 1 \(id 7\): wanted an adapter from 0 to 0, got 1"),
        (Request([1], 0, -1), r"request 1 \(id -1\): wanted an id from 0"),
    ],
)
def test_requests_that_cannot_be_answered_are_named(request_, wanted):
    with pytest.raises(ValueError, match=wanted):
        run("gemma", [REQUESTS[0], request_])


@pytest.mark.parametrize("bad", [{"max_new_tokens": 0}, {"n": 0}, {"slots": 0}, {"temperature": float("nan")}])
def test_impossible_settings_are_refused(bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad))}: wanted"):
        SamplingSettings(**({"max_new_tokens": 4} | bad))


def test_end_tokens_outside_the_vocabulary_and_adapters_without_scale_are_refused():
    config, params, how = tiny.CONFIGS["gemma"], tiny.params("gemma"), SamplingSettings(2)
    with pytest.raises(ValueError, match="eos: wanted"):
        generate(config, params, None, REQUESTS, how, eos=[24])
    with pytest.raises(ValueError, match="adapters and lora: wanted both"):
        generate(config, params, tiny.adapters("gemma", 1)[0], REQUESTS, how, eos=EOS)
    assert generate(config, params, None, [], how, eos=EOS) == []


def test_bfloat16_decodes():
    found = generate(
        tiny.CONFIGS["gemma"], tiny.params("gemma"), None, REQUESTS[:2], SamplingSettings(3, slots=2, bucket=8), eos=EOS, dtype=jnp.bfloat16
    )
    assert all(np.isfinite(completion.log_prob) for (completion,) in found)
