import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlp_distill.batches import FORWARD, derived_seed, epoch_steps, micro_batches, rank_share, steps_per_epoch

lengths_of = st.lists(st.integers(1, 60), min_size=1, max_size=300).map(lambda x: np.array(x, dtype=np.int64))


@given(lengths_of, st.integers(1, 40), st.integers(0, 5), st.integers(0, 3))
def test_every_step_has_exactly_batch_size_examples_none_twice(lengths, batch_size, seed, epoch):
    steps = epoch_steps(lengths, batch_size, seed, epoch)
    assert len(steps) == steps_per_epoch(len(lengths), batch_size)
    assert {len(step) for step in steps} == {min(batch_size, len(lengths))}
    seen = np.concatenate(steps)
    assert len(set(seen.tolist())) == len(seen)
    again = epoch_steps(lengths, batch_size, seed, epoch)
    assert all((a == b).all() for a, b in zip(steps, again, strict=True))


def test_order_differs_by_seed_and_epoch():
    lengths = np.random.default_rng(0).integers(1, 60, 1000)
    orders = [np.concatenate(epoch_steps(lengths, 8, seed, epoch)) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert not (orders[0] == orders[1]).all()
    assert not (orders[0] == orders[2]).all()


@pytest.mark.parametrize("batch_size", [32, 33, 7])
def test_micro_batches_of_groups_waste_little_padding_and_steps_have_several_lengths(batch_size):
    lengths = np.random.default_rng(0).integers(1, 60, 5000)
    steps = epoch_steps(lengths, batch_size, 0, 0)
    cuts = [micro_batches(step, lengths, 4096, FORWARD["cpu"]) for step in steps]
    padded = sum(len(cut) * lengths[cut].max() for step in cuts for cut in step)
    assert padded < 1.1 * lengths[np.concatenate(steps)].sum()
    assert np.mean([len(step) for step in cuts]) < 2.5
    spread = np.mean([lengths[step].std() for step in steps])
    assert spread > 0.5 * lengths.std()  # of one length each, it would be a hundredth; by chance, all of it
    means = [lengths[step].mean() for step in steps]
    assert abs(np.corrcoef(means, range(len(means)))[0, 1]) < 0.3


@given(lengths_of, st.integers(1, 400))
def test_micro_batches_keep_every_example_within_the_budget(lengths, budget):
    step = np.arange(len(lengths))
    cuts = micro_batches(step, lengths, budget)
    assert sorted(np.concatenate(cuts).tolist()) == step.tolist()
    for cut in cuts:
        assert len(cut) == 1 or len(cut) * lengths[cut].max() <= budget


@given(lengths_of, st.integers(0, 80))
def test_micro_batches_keep_their_padding_within_bounds(lengths, bound):
    cuts = micro_batches(np.arange(len(lengths)), lengths, 400, bound)
    assert sorted(np.concatenate(cuts).tolist()) == list(range(len(lengths)))
    for cut in cuts:
        assert len(cut) * lengths[cut].max() - lengths[cut].sum() <= bound


@given(st.integers(1, 8), st.integers(8, 64))
def test_ranks_share_a_step_without_overlap(world, size):
    shares = [rank_share(np.arange(size), rank, world) for rank in range(world)]
    assert sorted(np.concatenate(shares).tolist()) == list(range(size))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_derived_seeds_differ():
    assert len({derived_seed(0, "noise", step, micro, 0) for step in range(50) for micro in range(4)}) == 200
