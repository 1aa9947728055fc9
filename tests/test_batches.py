import numpy as np
import pytest

from ilr_jax import batches
from ilr_jax.batches import Epochs

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
    assert batches.preferences(data, Epochs((1,), 2, 1, 0), 0, 64)(0).weight.tolist() == [1, 0]
    assert batches.preferences(data, Epochs((1,), 2, 1, 0), 0, 9)(0).weight.tolist() == [0, 0]


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


def test_sft_batches_keep_adapters_in_equal_groups():
    at = batches.sft([SAMPLES, SAMPLES[:1]], Epochs((2, 1), 2, 1, 0), pad=0, normalize="sequence", max_length=64)
    batch = at(0)
    assert batch.rows.tokens.shape[0] == 4 and batch.units.tolist() == [1, 1, 1, 0]


def test_scoring_covers_all_rows_longest_first():
    data = [[1], [1, 2, 3], [1, 2]]
    parts = list(batches.scoring(data, 2, 0))
    assert [taken for taken, _ in parts] == [[1, 2], [0]]
    assert parts[0][1].last.tolist() == [2, 1] and parts[1][1].weight.tolist() == [1, 0]


def test_preferences_keep_both_sides_in_one_shape():
    data = [batches.Preference(SAMPLES[0], SAMPLES[1], -1.0, -2.0)]
    batch = batches.preferences(data, Epochs((1,), 2, 1, 0), 0, 64)(0)
    assert batch.chosen.rows.tokens.shape == batch.rejected.rows.tokens.shape == (2, 32)
    assert batch.weight.tolist() == [1, 0] and batch.reference_rejected.tolist() == [-2, 0]
    assert batch.chosen.targets[0, :3].tolist() == [8, 9, 2] and batch.rejected.targets[0, :2].tolist() == [4, 2]
