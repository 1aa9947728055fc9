"""Likeness of answers: the local measure is sane and the same everywhere, an endpoint's embeddings are checked."""

from collections import Counter

import numpy as np
import pytest
from fake_api import FAST, Fault, embeddings, opened, serving
from hypothesis import given, settings
from hypothesis import strategies as st

from ilr_jax.refine.agree import above_median
from ilr_jax.services import embed
from ilr_jax.services.transport import EndpointError

PAIRS = [  # text, paraphrase, unrelated
    ("Drink plenty of water and rest.", "Rest well, and drink a lot of water.", "The capital of France is Paris."),
    ("Sorry, I cannot help with that.", "I'm sorry, but I can't help you with that.", "First, preheat the oven to 180 degrees."),
    ("Photosynthesis turns light into chemical energy.", "Plants turn light into energy by photosynthesis.", "He was born in 1912."),
    ("def add(a, b): return a + b", "def add(x, y):\n    return x + y", "Whales are the largest mammals."),
]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def test_a_paraphrase_is_more_alike_than_an_unrelated_text():
    texts, like, unlike = (list(column) for column in zip(*PAIRS, strict=True))
    cosines = embed.local(texts * 2, like + unlike)
    assert cosines[: len(texts)].min() > cosines[len(texts) :].max() + 0.1
    assert above_median(cosines).tolist() == [True] * len(texts) + [False] * len(texts)


def test_the_same_text_is_wholly_alike_and_a_blank_one_not_at_all():
    same = embed.local(["Hello  World", "\uff28ello", "", " ", "ab"], ["hello world\n", "hello", "", "text", "ab"])
    assert same == pytest.approx([1, 1, 0, 0, 1])
    assert embed.local([], []).shape == (0,)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=30), st.text(max_size=30)), min_size=1, max_size=8))
def test_it_is_symmetric_bounded_and_does_not_depend_on_the_order_of_pairs(pairs):
    a, b = [x for x, _ in pairs], [y for _, y in pairs]
    cosines = embed.local(a, b)
    assert (cosines >= 0).all() and (cosines <= 1 + 1e-9).all()
    assert np.allclose(embed.local(b, a), cosines) and np.allclose(embed.local(a[::-1], b[::-1])[::-1], cosines)


def test_the_measure_is_tf_idf_of_character_n_grams():
    texts = ["a cat sat on a cat", "the cat sat", "dogs bark"]
    grams = [Counter(f" {t} "[i : i + n] for n in embed.SIZES for i in range(len(t) + 3 - n)) for t in texts]
    rarity = {g: 1 + np.log((1 + len(texts)) / (1 + sum(g in known for known in grams))) for known in grams for g in known}
    vectors = [{g: (1 + np.log(count)) * rarity[g] for g, count in known.items()} for known in grams]
    dot = lambda x, y: sum(weight * y.get(g, 0) for g, weight in x.items())
    wanted = dot(*vectors[:2]) / np.sqrt(dot(vectors[0], vectors[0]) * dot(vectors[1], vectors[1]))
    assert embed.local([texts[0], texts[0]], texts[1:]) == pytest.approx([wanted, 0], abs=1e-12) and wanted > 0.3


def by_length(path, body):
    return embeddings([[float(len(text)), 1.0] for text in body["input"]])


def test_an_endpoint_embeds_each_text_once(tmp_path, monkeypatch):
    monkeypatch.setattr(embed, "GROUP", 3)
    with serving(by_length) as api, opened(api.url, tmp_path) as endpoint:
        similarity = embed.of_endpoint(endpoint)
        cosines = similarity(["a", "abc", "", "a"], ["a", "b", "a", "abcd"])
        assert cosines == pytest.approx([1, 4 / np.sqrt(20), 1, 5 / np.sqrt(34)])
        texts = [text for path, body in api.asked for text in body["input"]]
        assert sorted(texts) == [" ", "a", "abc", "abcd", "b"] and [len(b["input"]) for _, b in api.asked] in ([3, 2], [2, 3])
        assert similarity(["abc"], ["abcde"]).shape == (1,) and len(api.asked) == 3


BAD = {
    "one too few": embeddings([[1.0, 2.0]]),
    "zero": embeddings([[1.0, 2.0], [0.0, 0.0]]),
    "not finite": Fault(body=b'{"data": [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": [NaN]}]}'),
    "twice the same place": Fault(body={"data": [{"index": 0, "embedding": [1.0]}] * 2}),
    "no numbers": Fault(body={"data": [{"index": i, "embedding": "x"} for i in range(2)]}),
}


@pytest.mark.parametrize("fault", BAD.values(), ids=BAD)
def test_a_bad_embedding_is_asked_for_again_and_never_used(tmp_path, fault):
    with serving(by_length, [fault]) as api, opened(api.url, tmp_path) as endpoint:
        assert embed.of_endpoint(endpoint)(["a"], ["b"]) == pytest.approx([1]) and len(api.asked) == 2
        api.faults = [fault] * FAST.attempts
        with pytest.raises(EndpointError, match=f"embeddings: .* no answer in {FAST.attempts} attempts"):
            embed.of_endpoint(endpoint)(["c"], ["d"])


def test_embeddings_of_two_sizes_are_refused(tmp_path):
    by_letter = lambda path, body: embeddings([[1.0] * (1 + (text == "b")) for text in body["input"]])
    with (
        serving(by_letter) as api,
        opened(api.url, tmp_path) as endpoint,
        pytest.raises(EndpointError, match=r"of one size, got \[1, 2\]"),
    ):
        embed.of_endpoint(endpoint)(["a"], ["b"])
