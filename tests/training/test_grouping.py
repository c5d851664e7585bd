from __future__ import annotations

from itertools import islice

from optimum_qala.training.grouping import EpochLengthGroupedSampler


LENGTHS = [(7 * number) % 40 + 5 for number in range(120)]


def order(seed: int = 1, epoch: int = 0) -> list[int]:
    sampler = EpochLengthGroupedSampler(4, lengths=LENGTHS, seed=seed)
    sampler.set_epoch(epoch)
    return list(sampler)


def test_order_follows_from_seed_and_epoch() -> None:
    assert order() == order()
    assert order(seed=2) != order()
    assert order(epoch=1) != order()
    assert sorted(order()) == list(range(len(LENGTHS)))


def test_second_pass_is_that_of_its_epoch_however_the_first_ended() -> None:
    sampler = EpochLengthGroupedSampler(4, lengths=LENGTHS, seed=1)
    list(islice(sampler, 10))
    sampler.set_epoch(1)
    assert list(sampler) == order(epoch=1)


def test_lengths_of_a_batch_are_similar() -> None:
    indices = order()
    spreads = []
    for first in range(0, len(indices), 4):
        lengths = [LENGTHS[index] for index in indices[first : first + 4]]
        spreads.append(max(lengths) - min(lengths))
    assert sum(spreads) / len(spreads) < 6
