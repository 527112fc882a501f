"""Oracles: the definitions of a permutation and a pack, and the least number of packs that tokens allow."""

import pickle

import numpy as np
import pytest
from torch.utils.data import DataLoader, SequentialSampler

from hf_vlm.data.conversations.conversation_order import ConversationSchedule, epoch_order, pack


def conversations(number, seed=0, image_tokens=256):
    """Lengths and pictures as in mixtures of visual instructions: most have a picture, words are log-normal, 2048 at most."""
    generator = np.random.default_rng(seed)
    has_image = generator.random(number) < 0.9
    words = np.exp(generator.normal(5.0, 0.8, number))
    return np.where(has_image, image_tokens + words, 2 * words).clip(16, 2048).astype(np.int64), has_image


def padding(lengths, order, size):
    """Tokens of padding, where each `size` rows are as long as their longest."""
    return sum(sum(lengths[batch].max() - lengths[batch]) for batch in np.split(order, range(size, len(order), size)))


def num_mixed(has_image, order, size):
    batches = np.split(order, range(size, len(order), size))
    return sum(0 < has_image[batch].sum() < len(batch) for batch in batches)


@pytest.mark.parametrize("grouping", ["none", "length", "modality"])
@pytest.mark.parametrize("number", [0, 1, 5, 12, 24, 1003])
def test_order_is_a_permutation_and_a_function_of_seed_and_epoch(number, grouping):
    lengths, has_image = conversations(number)

    def order(seed, epoch, **settings):
        return epoch_order(
            lengths, has_image, seed=seed, epoch=epoch, batch_size=4, num_processes=3, grouping=grouping, **settings
        )

    for epoch, num_before in ((0, 0), (1, 0), (1, number), (1, 7)):
        found = order(3, epoch, num_before=num_before)
        assert found.dtype == np.int64
        assert sorted(found.tolist()) == list(range(number))
    assert order(3, 1).tolist() == order(3, 1).tolist()
    if number > 20:
        assert order(3, 1).tolist() != order(3, 0).tolist() != order(4, 0).tolist()


def test_order_without_grouping_is_random_at_every_place():
    has_image = np.zeros(4, bool)
    firsts = [epoch_order(np.arange(1, 5), has_image, seed=0, epoch=e, batch_size=2)[0] for e in range(400)]
    assert np.bincount(firsts).min() > 60  # of 100 each


@pytest.mark.parametrize("grouping", ["length", "modality"])
def test_batches_of_like_length_hold_little_padding(grouping):
    lengths, has_image = conversations(4000)
    settings = {"seed": 0, "epoch": 0, "batch_size": 8, "num_processes": 2}
    at_random = padding(lengths, epoch_order(lengths, has_image, **settings), 16)
    order = epoch_order(lengths, has_image, grouping=grouping, **settings)
    assert padding(lengths, order, 16) < 0.15 * at_random
    mean_lengths = lengths[order].reshape(-1, 16).mean(axis=1)
    assert abs(np.corrcoef(mean_lengths[1:], mean_lengths[:-1])[0, 1]) < 0.2  # batches come in random order


def test_processes_share_the_longer_rows_of_a_batch():
    lengths = np.random.default_rng(0).permutation(64) + 1
    order = epoch_order(lengths, lengths > 0, seed=0, epoch=1, batch_size=4, num_processes=4, grouping="length")
    for batch in lengths[order].reshape(4, 16):
        longest_first = np.sort(batch)[::-1]
        dealt = [longest_first[[p, 7 - p, 8 + p, 15 - p]] for p in range(4)]  # forth and back
        assert [sorted(of_process) for of_process in batch.reshape(4, 4)] == [sorted(hand) for hand in dealt]


DIVISIONS = [(24, 1, 1), (12, 2, 1), (12, 1, 2), (3, 2, 4), (1, 8, 3)]


@pytest.mark.parametrize("grouping", ["none", "length", "modality"])
def test_rows_of_an_update_are_the_same_however_it_is_divided(grouping):
    lengths, has_image = conversations(250)
    updates = []
    for batch_size, num_processes, accumulation_steps in DIVISIONS:
        settings = {"batch_size": batch_size, "num_processes": num_processes, "accumulation_steps": accumulation_steps}
        epochs = [
            epoch_order(lengths, has_image, seed=1, epoch=e, num_before=250 * e, grouping=grouping, **settings)
            for e in range(3)
        ]
        rows = np.concatenate(epochs)
        updates.append([sorted(rows[first : first + 24].tolist()) for first in range(0, len(rows), 24)])
    assert all(other == updates[0] for other in updates)


def test_batches_of_an_update_hold_less_padding_than_the_update():
    lengths, has_image = conversations(2400)
    settings = {"seed": 0, "epoch": 0, "batch_size": 4, "num_processes": 2, "accumulation_steps": 12}
    order = epoch_order(lengths, has_image, grouping="length", **settings)
    assert padding(lengths, order, 8) < 0.5 * padding(lengths, order, 96)


def test_longest_row_comes_in_the_first_batch():
    lengths, has_image = conversations(800)
    lengths[123] = 3000
    for grouping in ("length", "modality"):
        order = epoch_order(lengths, has_image, seed=0, epoch=0, batch_size=8, num_processes=2, grouping=grouping)
        assert 123 in order[:16]


@pytest.mark.parametrize("number", [480, 497, 500, 1003])
def test_batches_have_pictures_or_none_but_for_one(number):
    for seed in range(5):
        lengths, has_image = conversations(number, seed=seed)
        settings = {"seed": seed, "batch_size": 8, "num_processes": 2, "grouping": "modality"}
        order = epoch_order(lengths, has_image, epoch=0, **settings)
        assert num_mixed(has_image, order, 16) <= 1
        at_random = epoch_order(lengths, has_image, epoch=0, **settings | {"grouping": "none"})
        assert num_mixed(has_image, at_random, 16) > 10
        # Epochs one behind the other: batches that begin in one and end in the next are no exception.
        following = [epoch_order(lengths, has_image, epoch=e, num_before=e * number, **settings) for e in range(4)]
        assert num_mixed(has_image, np.concatenate(following), 16) <= 4


def test_order_of_one_modality_only_is_grouped_by_length():
    lengths, _ = conversations(300)
    for has_image in (np.zeros(300, bool), np.ones(300, bool)):
        settings = {"seed": 0, "epoch": 0, "batch_size": 8}
        by_modality = epoch_order(lengths, has_image, grouping="modality", **settings)
        assert by_modality.tolist() == epoch_order(lengths, has_image, grouping="length", **settings).tolist()


def test_wrong_grouping_or_batch_size_is_refused():
    with pytest.raises(ValueError, match="got 'lenght'"):
        epoch_order(np.ones(3), np.ones(3, bool), seed=0, epoch=0, batch_size=1, grouping="lenght")
    with pytest.raises(ValueError, match="must be 1 or more, got 0, 1 and 1"):
        epoch_order(np.ones(3), np.ones(3, bool), seed=0, epoch=0, batch_size=0, grouping="length")


@pytest.mark.parametrize("max_images", [None, 3])
def test_packs_hold_every_row_once_and_no_more_than_allowed(max_images):
    lengths, has_image = conversations(3000, image_tokens=64)
    num_images = has_image * np.random.default_rng(1).integers(1, 3, 3000)
    order = np.random.default_rng(2).permutation(3000)
    settings = {"max_tokens": 2048, "num_images": num_images, "max_images": max_images}
    packs = pack(lengths, order, **settings)
    assert sorted(np.concatenate(packs).tolist()) == list(range(3000))
    assert max(lengths[rows].sum() for rows in packs) <= 2048
    most = max(num_images[rows].sum() for rows in packs)
    assert most == 3 if max_images == 3 else most > 10
    assert [rows.tolist() for rows in pack(lengths, order, **settings)] == [rows.tolist() for rows in packs]


@pytest.mark.parametrize(("image_tokens", "fill"), [(64, 0.98), (256, 0.96), (576, 0.9)])
def test_packs_are_full(image_tokens, fill):
    lengths, _ = conversations(10_000, image_tokens=image_tokens)
    packs = pack(lengths, np.random.default_rng(0).permutation(10_000), max_tokens=2048)
    assert lengths.sum() / (2048 * len(packs)) > fill


def test_rows_that_fill_packs_exactly_leave_no_room():
    lengths = np.array([3, 7, 5, 5, 10, 1, 9, 2, 8])
    packs = pack(lengths, np.arange(9), max_tokens=10)
    assert sorted(sorted(lengths[rows].tolist()) for rows in packs) == [[1, 9], [2, 8], [3, 7], [5, 5], [10]]


def test_shortest_row_still_fits_where_just_its_room_is_left():
    assert len(pack(np.array([9, 1]), np.arange(2), max_tokens=10)) == 1


def test_pack_holds_rows_from_near_each_other_in_the_order():
    lengths = np.random.default_rng(0).integers(100, 900, 20_000)
    packs = pack(lengths, np.arange(20_000), max_tokens=2048)
    spans = [rows.max() - rows.min() for rows in packs]
    assert np.median(spans) < 500


def test_row_too_large_for_a_pack_is_named():
    with pytest.raises(ValueError, match=r"pack of 10 tokens, got 12 in row 1 and 1 more rows. Raise `max_tokens`, or"):
        pack(np.array([10, 12, 3, 11]), np.arange(4), max_tokens=10)
    with pytest.raises(ValueError, match=r"pack of 2 pictures, got 3 in row 2. Raise `max_images`"):
        pack(np.ones(3, int), np.arange(3), max_tokens=9, num_images=np.array([0, 2, 3]), max_images=2)
    with pytest.raises(ValueError, match="`max_images` of 2 needs `num_images`"):
        pack(np.ones(3, int), np.arange(3), max_tokens=9, max_images=2)


def test_no_rows_make_no_packs():
    assert pack(np.zeros(0, int), np.zeros(0, int), max_tokens=10) == []


class Encoded(list):
    """Rows that say which they are."""

    def __init__(self, number):
        super().__init__({"row": row} for row in range(number))


LENGTHS, HAS_IMAGE = conversations(101)


def schedule(**settings):
    settings = {"seed": 5, "batch_size": 4, "lengths": LENGTHS, "num_images": HAS_IMAGE.astype(int)} | settings
    return ConversationSchedule(Encoded(101), **settings)


def rows(items):
    return [[example["row"] for example in item] for item in items]


@pytest.mark.parametrize("settings", [{}, {"grouping": "modality"}, {"max_tokens": 2048, "max_images": 4}])
def test_an_item_is_a_function_of_seed_and_index(settings):
    whole = rows(schedule(num_epochs=3, **settings))
    picked = [len(whole) - 1, 3, len(whole) // 2, 4, 0]
    one = schedule(num_epochs=3, **settings)
    assert rows(one[index] for index in picked) == [whole[index] for index in picked]
    other = schedule(length=len(whole), **settings)  # which has not counted its epochs before
    assert rows(other[index] for index in picked) == [whole[index] for index in picked]
    assert rows(schedule(num_epochs=3, seed=6, **settings)) != whole


@pytest.mark.parametrize("settings", [{}, {"grouping": "length"}, {"grouping": "modality"}, {"max_tokens": 2048}])
def test_every_epoch_holds_each_row_once_in_another_order(settings):
    items = rows(schedule(num_epochs=3, **settings))
    flat = [row for item in items for row in item]
    epochs = [flat[start : start + 101] for start in (0, 101, 202)]
    assert len(flat) == 303
    assert all(sorted(epoch) == list(range(101)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert all(len(item) == 1 for item in items) == ("max_tokens" not in settings)


def test_batches_stay_grouped_where_epochs_hold_no_whole_number_of_them():
    flat = np.concatenate(rows(schedule(num_epochs=4, grouping="modality")))
    assert num_mixed(HAS_IMAGE, flat, 4) <= 4


def test_packed_items_fit_and_their_number_may_differ_by_epoch():
    lengths = np.random.default_rng(0).integers(250, 700, 101)
    packed = schedule(num_epochs=8, max_tokens=1000, lengths=lengths)
    items = rows(packed)
    assert max(lengths[item].sum() for item in items) <= 1000
    sizes, held, begun = [], 0, 0
    for number, item in enumerate(items, start=1):
        held += len(item)
        if held % 101 == 0:
            sizes.append(number - begun)
            begun = number
    assert len(sizes) == 8 and len(set(sizes)) > 1
    with pytest.raises(IndexError, match=rf"must be in \[0, {len(items)}\), got {len(items)}"):
        packed[len(items)]


def test_packs_that_could_not_be_filled_come_anywhere():
    loosest = []
    for seed in range(20):
        packed = schedule(num_epochs=1, max_tokens=2048, seed=seed)
        totals = [LENGTHS[packed.rows_of(index)].sum() for index in range(len(packed))]
        loosest.append(np.argmin(totals) / (len(totals) - 1))
    assert 0.25 < np.mean(loosest) < 0.75


def test_length_of_a_schedule_is_its_epochs_or_its_items():
    assert len(schedule(num_epochs=2)) == 202
    assert len(schedule(num_epochs=0.5)) == 50
    assert len(schedule(num_epochs=1.5)) == 152 or len(schedule(num_epochs=1.5)) == 151
    assert len(schedule(length=1000)) == 1000
    assert len(list(schedule(length=7, max_tokens=2048))) == 7
    with pytest.raises(IndexError):
        schedule(length=7)[-1]


def test_fill_is_the_share_of_real_tokens():
    packed = schedule(num_epochs=1, max_tokens=2048)
    assert packed.fill == pytest.approx(LENGTHS.sum() / (len(packed) * 2048))
    assert packed.fill > 0.9
    for settings in ({}, {"grouping": "length"}):
        padded = schedule(num_epochs=1, **settings)
        order = np.concatenate(rows(padded))
        assert padded.fill == pytest.approx(LENGTHS.sum() / (LENGTHS.sum() + padding(LENGTHS, order, 4)))
    assert schedule(num_epochs=1, grouping="length").fill > schedule(num_epochs=1).fill
    assert schedule(length=3, max_tokens=2048).fill == packed.fill


def test_schedule_keeps_few_epochs_however_many_there_are():
    endless = schedule(num_epochs=30, max_tokens=2048)
    whole = rows(endless)
    assert len(endless._epochs) <= 2
    assert len(pickle.dumps(endless)) < 4 * len(pickle.dumps(schedule(num_epochs=1, max_tokens=2048)))
    assert rows(pickle.loads(pickle.dumps(endless))) == whole


@pytest.mark.parametrize("settings", [{}, {"max_tokens": 2048}])
def test_workers_give_the_same_items(settings):
    whole = schedule(num_epochs=2, **settings)
    loader = DataLoader(
        whole,
        batch_size=1,
        sampler=SequentialSampler(whole),
        num_workers=2,
        collate_fn=list,
        multiprocessing_context="fork",
    )
    assert rows(item for batch in loader for item in batch) == rows(whole)


def test_few_rows_share_packs_with_others_in_every_epoch():
    items = [frozenset(item) for item in rows(schedule(num_epochs=2, max_tokens=2048)) if len(item) > 1]
    assert len(set(items)) > 0.9 * len(items)


def test_wrong_schedules_are_refused():
    for wrong in ({}, {"num_epochs": 1, "length": 5}):
        with pytest.raises(ValueError, match="Either `num_epochs` or `length`"):
            schedule(**wrong)
    with pytest.raises(ValueError, match="got 'length' with `max_tokens`"):
        schedule(num_epochs=1, grouping="length", max_tokens=2048)
    with pytest.raises(ValueError, match="a pack of 20 tokens, got"):
        schedule(length=5, max_tokens=20)
    with pytest.raises(ValueError, match=r"each of 101 conversations, got shapes \(101,\) and \(3,\)"):
        schedule(num_epochs=1, num_images=[1, 2, 3])
    with pytest.raises(ValueError, match="1 item or more, got 0 of `num_epochs=0.001`"):
        schedule(num_epochs=0.001)
    with pytest.raises(ValueError, match="must hold conversations, got none"):
        ConversationSchedule(Encoded(0), lengths=[], num_images=[], seed=0, batch_size=1, num_epochs=1)
