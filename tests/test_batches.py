"""Batches of every kind: what is predicted where, what fills up, and which samples a step takes."""

import chex
import numpy as np
import pytest

from ilr_jax import batches
from ilr_jax.batches import Epochs, Packing
from ilr_jax.types import BRANCH

SAMPLES = [([5, 6, 7], [8, 9, 2]), ([5], [4, 2])]


def test_completions_predict_answer_tokens_and_eos_only():
    batch = batches.completions(SAMPLES, pad=0, normalize="sequence")
    assert batch.rows.tokens[0, :6].tolist() == [5, 6, 7, 8, 9, 2]
    assert batch.rows.segments.sum(1).tolist() == [6, 3]
    assert batch.places[0, :3].tolist() == [2, 3, 4] and batch.targets[0, :3].tolist() == [8, 9, 2]
    # The token predicted at a place is the one that follows it.
    for n, (prompt, answer) in enumerate(SAMPLES):
        row = (prompt + answer)[1:]
        assert [row[p] for p in batch.places[n, : len(answer)]] == answer
    np.testing.assert_allclose(batch.weights.sum(1), 1, rtol=1e-6)
    assert batch.units.tolist() == [1, 1]


def test_token_normalisation_counts_tokens():
    batch = batches.completions(SAMPLES, pad=0, normalize="token")
    assert batch.weights.sum(1).tolist() == batch.units.tolist() == [3, 2]


def test_pad_equal_to_eos_changes_nothing_but_the_filler():
    a, b = (batches.completions(SAMPLES, pad, "sequence") for pad in (0, 2))
    for x, y in zip(a.rows[1:] + a[1:], b.rows[1:] + b[1:], strict=True):
        np.testing.assert_array_equal(x, y)


def test_max_length_cuts_the_end_and_the_eos_with_it():
    batch = batches.completions([([5, 6, 7], [8, 9, 2])], 0, "sequence", max_length=5)
    assert batch.targets[0, :2].tolist() == [8, 9] and batch.units[0] == 1
    assert batches.completions([([5, 6, 7], [8, 9, 2]), *SAMPLES], 0, "sequence", max_length=3).units[0] == 0


def test_a_prompt_that_leaves_no_room_for_an_answer_counts_nothing():
    for length in (5, 6, 9):
        batch = batches.completions([([7] * length, [8, 9, 2]), SAMPLES[1]], 0, "token", max_length=5)
        assert batch.units.tolist() == [0, 2] and not batch.weights[0].any() and not batch.rows.segments[0].any()
    long = batches.completions([([7] * 600, [8] * 100)], 0, "sequence", max_length=512)
    assert long.rows.tokens.shape[1] <= 512 and long.units.tolist() == [0]


@pytest.mark.parametrize("unlimited", [None, 0])
def test_no_max_length_cuts_nothing(unlimited):
    batch = batches.completions([([7] * 600, [8] * 100)], 0, "token", max_length=unlimited)
    assert batch.units.tolist() == [100] and batch.rows.segments.sum() == 700


@pytest.mark.parametrize("longer", ["chosen", "rejected"])
def test_a_pair_of_which_one_answer_is_cut_away_has_no_weight(longer):
    sides = {"chosen": SAMPLES[1], "rejected": SAMPLES[1]} | {longer: ([7] * 9, [8, 2])}
    data = [batches.Preference(**sides, reference_chosen=-1.0, reference_rejected=-2.0)]
    for max_length, wanted in ((64, 1), (9, 0)):
        assert batches.preferences(data, Epochs((1,), 2, 1, 0), 0, max_length, Packing())(0).weight.sum() == wanted


def test_epochs_visit_everything_once_per_epoch_and_stop_each_set_on_its_own():
    epochs = Epochs((10, 3), batch=4, epochs=2, seed=1)
    assert epochs.totals == (6, 2) and epochs.steps == 6
    seen = [epochs.at(step) for step in range(epochs.steps)]
    first = [i for taken in seen[:3] for i in taken[0]]
    second = [i for taken in seen[3:] for i in taken[0]]
    assert sorted(first) == sorted(second) == list(range(10)) and first != second
    assert [len(taken[1]) for taken in seen] == [3, 3, 0, 0, 0, 0]


def test_a_set_gets_the_same_batches_beside_others_as_alone():
    alone, beside = Epochs((7,), 4, 2, seed=3), Epochs((7, 5), 4, 2, seed=3)
    assert [alone.at(i)[0] for i in range(4)] == [beside.at(i)[0] for i in range(4)]


def test_empty_data_is_refused():
    with pytest.raises(ValueError, match="at least one row"):
        Epochs((0,), 4, 1, 0)


def samples(count, seed=0):
    """Samples that can be told apart: sample i is a prompt of tokens i and an answer that ends in 2."""
    rng = np.random.default_rng(seed)
    return [([i + 3] * int(rng.integers(5, 60)), [i + 3] * int(rng.integers(1, 30)) + [2]) for i in range(count)]


def read(batch):
    """(prompt, answer, weight) of every document of a batch, from what the model is shown and asked."""
    found = []
    for n, row in enumerate(batch.rows.segments):
        for document in range(1, row.max() + 1):
            where = np.flatnonzero(row == document)
            assert batch.rows.positions[n, where].tolist() == list(range(len(where)))
            asked = np.isin(batch.places[n], where) & (batch.weights[n] > 0)
            tokens, answer = batch.rows.tokens[n, where].tolist(), batch.targets[n, asked].tolist()
            assert tokens[len(tokens) - len(answer) :] == answer
            assert batch.places[n, asked].tolist() == (where[0] + np.arange(len(tokens) - len(answer) - 1, len(tokens) - 1)).tolist()
            found.append((tokens[: len(tokens) - len(answer)], answer, float(batch.weights[n, asked].sum())))
    return found


def test_sft_packs_every_sample_once_an_epoch_in_one_shape():
    data, epochs = samples(21), Epochs((21,), batch=8, epochs=2, seed=0)
    at = batches.sft([data], epochs, pad=0, normalize="sequence", max_length=128, packing=Packing())
    made = [at(step) for step in range(epochs.steps)]
    assert len({batch.rows.tokens.shape + batch.places.shape for batch in made}) == 1
    assert made[0].rows.tokens.size < sum(batches.bucket(len(p) + len(a)) for p, a in data[:8]) * 2
    for epoch in (made[:3], made[3:]):
        documents = [document for batch in epoch for document in read(batch)]
        assert sorted(d[:2] for d in documents) == sorted(data)
        np.testing.assert_allclose([weight for _, _, weight in documents], 1, rtol=1e-6)
        assert sum(batch.units.sum() for batch in epoch) == 21


def test_rows_are_longer_where_attention_costs_little():
    data = [([3] * n, [4] * 10 + [2]) for n in (69, 49, 49, 49, 49, 49, 49)]  # 80 tokens, and six times 60
    made = [batches.sft([data], Epochs((7,), 7, 1, 0), 0, "token", 128, Packing(even))(0) for even in (1e9, 0.0)]
    assert [batch.rows.tokens.shape for batch in made] == [(4, 128), (7, 96)]


def test_sft_rows_fall_into_equal_groups_and_microbatches():
    sets = [samples(9), samples(2, seed=1)]
    at = batches.sft(sets, Epochs((9, 2), 4, 1, 0), pad=0, normalize="token", max_length=128, packing=Packing(multiple=3))
    first, second = at(0), at(1)
    half = first.units.shape[0] // 2
    assert half % 3 == 0 and first.units[half:].sum() == sum(len(answer) for _, answer in sets[1])
    assert second.units[half:].sum() == 0 < second.units[:half].sum()


def test_scoring_covers_all_rows_longest_first():
    data = [([1], 0), ([1, 2, 3], 1), ([1, 2], 0)]
    parts = list(batches.scoring(data, 2, 0))
    assert [taken for taken, _ in parts] == [[1, 2], [0]]
    assert parts[0][1].last.tolist() == [[2], [1]] and parts[1][1].weight.tolist() == [[1], [0]]
    assert parts[0][1].classes.tolist() == [[1], [0]]


def test_comparisons_are_packed_once_an_epoch_in_one_shape():
    data, epochs = [(prompt + answer, i % 2) for i, (prompt, answer) in enumerate(samples(21))], Epochs((21,), batch=8, epochs=2, seed=0)
    at = batches.classes(data, epochs, pad=0, packing=Packing(multiple=2))
    made = [at(step) for step in range(epochs.steps)]
    assert len({batch.rows.tokens.shape + batch.last.shape for batch in made}) == 1
    assert made[0].rows.tokens.shape[0] < 8 and made[0].rows.tokens.shape[0] % 2 == 0
    for epoch in (made[:3], made[3:]):
        found = []
        for batch in epoch:
            for n, j in zip(*np.nonzero(batch.weight), strict=True):
                place = batch.last[n, j]
                same = batch.rows.segments[n] == batch.rows.segments[n, place]
                assert np.flatnonzero(same)[-1] == place and batch.rows.positions[n, same].tolist() == list(range(same.sum()))
                found.append((batch.rows.tokens[n, same].tolist(), int(batch.classes[n, j])))
        assert sorted(found) == sorted(data)


def test_preferences_share_their_prompt_and_are_packed():
    """Both answers are found where the rows say, go on from their prompt's positions, and are predicted from its last token on."""
    rng = np.random.default_rng(0)
    ids = lambda low, high: rng.integers(3, 99, rng.integers(low, high)).tolist()
    data = []
    for i in range(9):
        prompt = ids(3, 20)
        data.append(batches.Preference((prompt, ids(1, 20)), (prompt, ids(1, 20)), -1.0 - i, -2.0 - i))
    at, found = batches.preferences(data, Epochs((9,), 4, 1, 0), 0, 0, Packing()), []
    chex.assert_trees_all_equal_shapes(*map(at, range(3)))
    for batch in map(at, range(3)):
        rows = batch.rows
        for n, m in zip(*np.nonzero(batch.weight), strict=True):
            root = rows.segments[n] == m + 1
            prompt, sides = rows.tokens[n, root].tolist(), []
            for side in (0, 1):
                own = rows.segments[n] == m + 1 + (side + 1) * BRANCH
                assert rows.positions[n, own].tolist() == list(range(len(prompt), len(prompt) + own.sum()))
                mine = batch.answers[n] == 2 * m + side
                assert batch.targets[n, mine].tolist() == rows.tokens[n, own].tolist()
                assert batch.places[n, mine].tolist() == [np.flatnonzero(root)[-1], *np.flatnonzero(own)[:-1]]
                sides.append((prompt, rows.tokens[n, own].tolist()))
            found.append(batches.Preference(*sides, *batch.reference[n, m].tolist()))
    assert sorted(found, key=lambda p: p.reference_chosen) == sorted(data, key=lambda p: p.reference_chosen)
    assert at(0).rows.tokens.shape[0] < 4  # packed
