from __future__ import annotations

import itertools
import json

import pytest

from monai_ssl.data import EpochSampler


def test_each_epoch_is_another_order_of_all_samples():
    sampler = EpochSampler(100, seed=1)
    orders = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
        assert sorted(orders[-1]) == list(range(100)) and len(sampler) == 100
    assert orders[0] != orders[1] != orders[2]
    sampler.set_epoch(1)
    assert list(sampler) == orders[1] == list(sampler)
    other = EpochSampler(100, seed=2)
    assert list(other) != orders[0]
    assert list(EpochSampler(5, shuffle=False)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("length", [1, 7, 12, 100])
@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_processes_share_an_epoch(length, world):
    whole = list(EpochSampler(length, seed=5))
    parts = [list(EpochSampler(length, seed=5, rank=rank, world=world)) for rank in range(world)]
    assert {len(part) for part in parts} == {-(-length // world)}
    together = [parts[place % world][place // world] for place in range(len(parts[0]) * world)]
    assert together[:length] == whole, "the order is that of one process"
    assert set(together) == set(whole)
    if length >= world:
        cut = [list(EpochSampler(length, seed=5, rank=rank, world=world, drop_last=True)) for rank in range(world)]
        assert {len(part) for part in cut} == {length // world}
        assert len({index for part in cut for index in part}) == length // world * world


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("position", [0, 1, 17, 25])
def test_it_resumes_in_the_middle_of_an_epoch(world, position):
    for rank in range(world):
        sampler = EpochSampler(50, seed=9, rank=rank, world=world)
        sampler.set_epoch(4)
        rest = list(sampler)[position:]
        state = json.loads(json.dumps(sampler.state_dict() | {"position": position}))
        fresh = EpochSampler(50, seed=9, rank=rank, world=world)
        fresh.load_state_dict(state)
        fresh.set_epoch(4)  # a trainer tells the epoch that was loaded: the position stays
        assert list(fresh) == rest
        assert len(fresh) == 50 // world, "the length is that of a whole epoch"
        assert fresh.state_dict() == state
        fresh.set_epoch(5)
        assert len(list(fresh)) == 50 // world


def test_it_resumes_with_another_number_of_processes():
    whole = EpochSampler(48, seed=9)
    state = EpochSampler(48, seed=9, rank=1, world=2).state_dict() | {"position": 9}  # 18 samples were seen
    rest = []
    for rank in range(3):
        sampler = EpochSampler(48, seed=9, rank=rank, world=3)
        sampler.load_state_dict(state)
        rest.append(list(sampler))
    together = [part[place] for place in range(len(rest[0])) for part in rest]
    assert together == list(whole)[18:]


@pytest.mark.parametrize("position", [5, 8])  # 8: two batches of 4, the second one short
def test_the_last_position_leaves_nothing(position):
    sampler = EpochSampler(10, world=2, drop_last=True)
    sampler.load_state_dict(sampler.state_dict() | {"position": position})
    assert list(sampler) == []


@pytest.mark.parametrize(("name", "value"), [("length", 9), ("seed", 1), ("shuffle", False), ("paired", True)])
def test_a_state_of_another_run_is_refused(name, value):
    sampler = EpochSampler(10, seed=0)
    with pytest.raises(ValueError, match=f"the sampler's {name} was {value}"):
        sampler.load_state_dict(sampler.state_dict() | {name: value})
    with pytest.raises(ValueError, match="position is -1"):
        sampler.load_state_dict(sampler.state_dict() | {"position": -1})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 0}, "length is 0"),
        ({"rank": 2, "world": 2}, "rank 2 of 2"),
        ({"seed": -1}, "seed is -1"),
        ({"world": 20, "drop_last": True}, "10 samples for 20 processes"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        EpochSampler(**({"length": 10} | options))


def test_the_order_is_pinned():
    """A checkpoint of an older version must find its place again, with any NumPy."""
    sampler = EpochSampler(8, seed=3)
    sampler.set_epoch(1)
    assert list(sampler) == [2, 1, 4, 0, 5, 7, 6, 3]


def test_groups_come_in_pairs():
    groups = [5, 5, 5, 5, 7, 8, 8, 9, 9, 9]
    sampler = EpochSampler(10, seed=3, groups=groups)
    pairings = set()
    for epoch in range(20):
        sampler.set_epoch(epoch)
        order = list(sampler)
        assert sorted(order) == list(range(10))
        pairs = {frozenset(p) for p in itertools.pairwise(order) if groups[p[0]] == groups[p[1]]}
        # two pairs of group 5, one of 8, one of 9; singles may happen to lie beside their own
        assert sum(groups[min(pair)] == 8 for pair in pairs) == 1 and len(pairs) >= 4
        pairings.add(frozenset(pair for pair in pairs if groups[min(pair)] == 5))
    assert len(pairings) > 1, "the pairs change from epoch to epoch"


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("length", [10, 13, 31])
def test_both_of_a_pair_come_to_one_process_and_one_batch(world, length):
    groups = [i // 2 if i < length // 3 * 2 else 100 + i for i in range(length)]
    parts = [list(EpochSampler(length, seed=5, groups=groups, rank=rank, world=world)) for rank in range(world)]
    assert {len(part) for part in parts} == {-(-length // world)}
    assert {index for part in parts for index in part} == set(range(length)), "nobody is left out"
    split = 0
    for part in parts:
        for place in range(0, len(part) - 1, 2):
            pair = part[place : place + 2]
            split += sum(groups.count(groups[index]) == 2 for index in pair) == 1
            split += sum(groups.count(groups[index]) == 2 for index in pair) == 2 and len({groups[i] for i in pair}) > 1
    assert split == 0 if length % world == 0 and length // world % 2 == 0 else split <= 2
    cut = [list(EpochSampler(length, 5, True, rank, world, drop_last=True, groups=groups)) for rank in range(world)]
    assert len({index for part in cut for index in part}) == length // world * world


def test_pairs_resume_in_the_middle_and_with_another_number_of_processes():
    groups = [i // 2 for i in range(48)]
    whole = list(EpochSampler(48, seed=9, groups=groups))
    state = EpochSampler(48, seed=9, rank=1, world=2, groups=groups).state_dict() | {"position": 8}
    for world in (1, 2, 4):
        rest: set[int] = set()
        for rank in range(world):
            sampler = EpochSampler(48, seed=9, rank=rank, world=world, groups=groups)
            sampler.load_state_dict(state)
            rest |= set(sampler)
        assert rest == set(whole[16:])
    sampler = EpochSampler(48, seed=9, rank=0, world=4, groups=groups)
    sampler.load_state_dict(state | {"position": 7})  # 14 seen, 3 each: the unfinished pair comes again
    assert sampler.position == 2


def test_a_negative_number_is_no_group():
    sampler = EpochSampler(12, seed=1, groups=[-1] * 10 + [4, 4])
    order = list(sampler)
    assert sorted(order) == list(range(12))
    assert order[order.index(10) ^ 1] == 11
    plain, named = EpochSampler(12, seed=1, groups=range(12)), EpochSampler(12, seed=1, groups=[-3] * 12)
    assert list(plain) == list(named)


def test_names_will_do_as_groups():
    order = list(EpochSampler(6, groups=["b", "a", "a", "c", "b", "c"]))
    assert {frozenset(order[i : i + 2]) for i in (0, 2, 4)} == {frozenset(p) for p in ((0, 4), (1, 2), (3, 5))}


def test_without_company_the_groups_change_nothing_but_the_order():
    assert sorted(EpochSampler(6, groups=range(6))) == list(range(6))


@pytest.mark.parametrize("options", [{"groups": [1, 2]}, {"groups": [0, 0, 1], "shuffle": False}])
def test_groups_that_do_not_fit(options):
    with pytest.raises(ValueError, match="groups"):
        EpochSampler(3, **options)


def test_the_order_does_not_depend_on_the_names_of_the_groups():
    assert list(EpochSampler(6, groups=[3, 3, 1, 0, 1, 3])) == list(EpochSampler(6, groups=[0, 0, 5, 7, 5, 0]))
