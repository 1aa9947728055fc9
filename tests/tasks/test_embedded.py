"""The embedded base models as shipped: small, loadable, with a tokenizer for any text, and a corpus without the fine-tuning formats."""

import importlib.util
import re
import sys
from itertools import islice
from pathlib import Path

import jax.numpy as jnp
import pytest

from ilr_jax.models import config as model_config
from ilr_jax.models import hf
from ilr_jax.roles import EMBEDDED
from ilr_jax.sample.generate import generate
from ilr_jax.sample.requests import Request
from ilr_jax.sample.rollout import SamplingSettings
from ilr_jax.tasks.wordmath import WordMath
from ilr_jax.tokenizer import Tokenizer

NAMES = ("gemma", "mistral")
TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Tokenizer]:
    return {name: Tokenizer(EMBEDDED / name, model_config.read(EMBEDDED / name)) for name in NAMES}


@pytest.fixture(scope="module")
def corpus():
    spec = importlib.util.spec_from_file_location("embedded_corpus", TOOLS / "embedded_corpus.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules["embedded_corpus"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["embedded_corpus"]


def test_both_models_fit_in_eight_megabytes():
    assert sum(path.stat().st_size for name in NAMES for path in (EMBEDDED / name).iterdir()) <= 8 * 10**6


@pytest.mark.parametrize("name", NAMES)
def test_the_weights_load_and_are_of_the_family(name):
    config, params = hf.load(EMBEDDED / name, dtype="float32")
    assert config.family == name and params["embed"]["table"].dtype == jnp.float32


@pytest.mark.parametrize(
    "text", ["18*4=72\n#### 72", "naïve café – 10 € \U0001f600\t\x00", "It's GSM8K: <<12*2=24>>24 pages!", "مرحبا 日本語"]
)
def test_any_text_survives_the_tokenizer(tokenizers, text):
    for tokenizer in tokenizers.values():
        assert tokenizer.decode(tokenizer.encode([text])[0]) == text


def test_every_digit_is_a_token(tokenizers):
    for tokenizer in tokenizers.values():
        assert [tokenizer.decode([i]) for i in tokenizer.encode(["2024+19"])[0]] == ["2", "0", "2", "4", "+", "1", "9"]


def test_both_share_one_tokenizer_whose_pad_is_not_eos(tokenizers):
    assert len({(EMBEDDED / name / "tokenizer.json").read_bytes() for name in NAMES}) == 1
    assert all(tokenizer.pad != tokenizer.eos for tokenizer in tokenizers.values())


def test_the_mark_of_a_result_is_one_token(tokenizers):
    assert len(tokenizers["gemma"].encode(["####"])[0]) == 1


@pytest.mark.parametrize("name", NAMES)
def test_a_base_does_not_answer_in_the_fine_tuning_format(tokenizers, name):
    task, tokenizer = WordMath(train_examples=16, test_examples=1, seed=5, grader="numeric"), tokenizers[name]
    config, params = hf.load(EMBEDDED / name, dtype="float32")
    requests = [Request(ids, 0, i) for i, ids in enumerate(tokenizer.prompts([e.prompt for e in task.train()]))]
    settings = SamplingSettings(64, 0.0, slots=16)
    answers = generate(config, params, None, requests, settings, eos=tokenizer.stops, pad=tokenizer.pad)
    assert not any(task.usable(tokenizer.decode(completion.tokens)) for (completion,) in answers)


def test_the_corpus_never_holds_the_fine_tuning_formats(corpus):
    kinds = dict.fromkeys(corpus.KINDS, 1.0)
    found = list(islice(corpus.documents(kinds, 0), 500))
    assert {kind for kind, _ in found} == set(corpus.KINDS)
    for _, spans in found:
        text = "".join(part for part, _ in spans)
        assert not any(mark in text for mark in ("USER:", "ASSISTANT:", "VERDICT:", "ANSWER (A)", "ANSWER (B)")), text
        assert not re.search(r"#### ?\d", text), text  # a heading in the corpus, in the format the mark of a result


def test_wrong_solutions_are_wrong_and_never_imitated(corpus):
    rng = corpus.random.Random(0)
    for problem in islice(corpus.wordmath.problems("corpus", 0), 150):
        steps, values, fine = corpus.wrong(rng, problem)
        assert values[-1] != corpus.wordmath.run(problem.steps)[-1] and not fine[-1]
        assert fine == sorted(fine, reverse=True)  # once wrong, wrong to the end
        loss = {text: weight for text, weight in corpus.lines(rng, steps, values, fine, 0.0) if text.strip()}
        assert all(weight == 0.0 for text, weight in list(loss.items())[sum(fine) :])
