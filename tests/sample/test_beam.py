"""Beam search: `generated` against `transformers`, `total` against the plainest search with the whole forward at every token."""

import jax
import numpy as np
import pytest
import sample_models as tiny

from ilr_jax.models.family import KEYS
from ilr_jax.sample.beam import BeamSettings
from ilr_jax.sample.generate import generate
from ilr_jax.sample.requests import Request

EOS = (3, 11)
LLAMA = "llama", (12, 1, 4, 18), 12, (3, 9, 27, *range(10, 18))
WINDOW = 9
REQUESTS = tiny.requests(9)


def run(name, requests, rule, params=None, adapters=None, lora=None, eos=EOS, **settings):
    settings = BeamSettings(**({"max_new_tokens": WINDOW, "prompts": 3, "chunk": 4, "bucket": 24, "length": rule} | settings))
    found = generate(tiny.CONFIGS[name], tiny.params(name) if params is None else params, adapters, requests, settings, eos=eos, lora=lora)
    return [completion for (completion,) in found]


def slow_total(name, params, prompt, width):
    """vLLM's rule, hypotheses as plain lists: (sum of log-probabilities, tokens)."""
    running, finished = [(0.0, [])], []
    while running:
        logits = tiny.next_logits(tiny.CONFIGS[name], params, [prompt + tokens for _, tokens in running]).astype(np.float64)
        log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        grown = [(total + log_p[i, v], [*tokens, v]) for i, (total, tokens) in enumerate(running) for v in range(log_p.shape[1])]
        best = sorted(grown, key=lambda x: -x[0])[: 2 * width]
        over = lambda tokens: tokens[-1] in EOS or len(tokens) == WINDOW
        counted = lambda tokens: len(prompt) + len(tokens) - (tokens[-1] in EOS)
        finished += [(total / counted(tokens), total, tokens) for total, tokens in best if over(tokens)]
        finished = sorted(finished, key=lambda x: -x[0])[:width]
        running = [(total, tokens) for total, tokens in best if not over(tokens)][:width]
        if running and len(finished) == width and finished[-1][0] >= running[0][0] / counted(running[0][1]):
            break
    return finished[0]


@pytest.mark.parametrize("name, width", [("gemma", 2), ("mistral", 4), ("llama", 3)])
def test_total_equals_the_plain_search(name, width):
    params, found = tiny.params(name), run(name, REQUESTS, "total", width=width)
    for request, completion in zip(REQUESTS, found, strict=True):
        score, total, tokens = slow_total(name, params, list(request.tokens), width)
        assert completion.finished == (tokens[-1] in EOS)
        assert completion.tokens == tokens[: len(tokens) - completion.finished]
        assert completion.log_prob == pytest.approx(total, abs=1e-4) and completion.score == pytest.approx(score, abs=1e-5)


def as_hf(name, params):
    """The same weights in a `transformers` model."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(**tiny.FIELDS[name]), attn_implementation="eager"
    )
    state = {}
    for path, theirs in KEYS.items():
        if path == "head.table" and tiny.CONFIGS[name].tied:
            continue
        *rooms, leaf = path.split(".")
        array = params
        for room in (*rooms, leaf):
            array = array[room]
        layers = np.asarray(array) if "{}" in theirs else np.asarray(array)[None]
        state |= {theirs.format(i): torch.tensor(np.array(w.T if leaf == "kernel" else w)) for i, w in enumerate(layers)}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    model.tie_weights()
    return model.eval()


# Prompts 3, 9 and 17 tell when the search may stop; 27 ends differently if a candidate past the first four could finish.
@pytest.mark.parametrize(
    "name, eos, window, prompts", [("gemma", (1, 18, 10, 5), 9, (25, 37, *range(6))), ("mistral", (15,), 9, range(10, 20)), LLAMA]
)
def test_generated_equals_transformers(name, eos, window, prompts):
    torch = pytest.importorskip("torch")
    params, requests = tiny.params(name), [tiny.requests(40, seed=5)[i] for i in prompts]
    model, found = as_hf(name, params), run(name, requests, "generated", eos=eos, max_new_tokens=window)
    how = {"num_beams": 4, "do_sample": False, "length_penalty": 1.0, "early_stopping": False, "max_new_tokens": window}
    for request, completion in zip(requests, found, strict=True):
        ids = torch.tensor([list(request.tokens)])
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            eos_token_id=list(eos),
            pad_token_id=0,
            return_dict_in_generate=True,
            output_scores=True,
            **how,
        )
        theirs = out.sequences[0, ids.shape[1] :].tolist()
        end = next((i for i, token in enumerate(theirs) if token in eos), None)
        assert (completion.tokens, completion.finished) == (theirs[:end], end is not None)
        assert completion.score == pytest.approx(float(out.sequences_scores[0]), abs=1e-4)
    assert {completion.finished for completion in found} == {True, False}


def test_neighbours_slots_and_order_change_nothing():
    how = {"eos": LLAMA[1], "max_new_tokens": LLAMA[2]}
    alone = run("llama", REQUESTS, "generated", **how, prompts=1)
    assert [c.tokens for c in run("llama", REQUESTS[::-1], "generated", **how)][::-1] == [c.tokens for c in alone]


def test_k_adapters_in_one_pass_equal_separate_runs():
    adapters, lora = tiny.adapters("mistral", 3)
    requests = tiny.requests(8, adapters=3)
    together = run("mistral", requests, "total", adapters=adapters, lora=lora, prompts=6)
    for k in range(3):
        mine = [i for i, request in enumerate(requests) if request.adapter == k]
        one = jax.tree.map(lambda w, k=k: w[k : k + 1], adapters)
        alone = run("mistral", [Request(requests[i].tokens, 0, requests[i].id) for i in mine], "total", adapters=one, lora=lora)
        assert [c.tokens for c in alone] == [together[i].tokens for i in mine]


@pytest.mark.parametrize("bad", [{"width": 0}, {"prompts": 0}, {"length": "longest"}])
def test_impossible_settings_are_refused(bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad))}: wanted"):
        BeamSettings(**({"max_new_tokens": 4} | bad))
