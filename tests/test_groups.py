import numpy as np
import pandas as pd
from bins import jpeg

from bincount.data import fetch, groups


def bins(*rows, by_picture=False):
    """Group rows of (image_id, items); every picture is another one unless given as a third value."""
    frame = pd.DataFrame(
        {
            "image_id": [row[0] for row in rows],
            "items": [None if row[1] is None else list(row[1].items()) for row in rows],
            "sha256": [str(row[2]) if len(row) > 2 else f"file {n}" for n, row in enumerate(rows)],
            "dhash": [np.uint64(row[3]) if len(row) > 3 else np.uint64(0) for row in rows],
        }
    )
    return dict(zip(frame["image_id"], groups.assign(frame, by_picture=by_picture), strict=True))


def test_a_bin_before_and_after_a_pick_is_one_group():
    assert bins(("00007", {"A": 2, "B": 1}), ("00008", {"A": 2}), ("00009", {"C": 2})) == {
        "00007": "00007",
        "00008": "00007",
        "00009": "00009",
    }


def test_sharing_less_than_half_of_the_smaller_bin_is_two_groups():
    assert len(set(bins(("00001", {"A": 1, "B": 2}), ("00002", {"A": 1, "C": 2})).values())) == 2
    assert len(set(bins(("00001", {"A": 1, "B": 1}), ("00002", {"A": 1, "C": 5})).values())) == 1


def test_a_run_of_neighbours_is_one_group_though_its_ends_share_nothing():
    found = bins(("00001", {"A": 1, "B": 1}), ("00002", {"B": 1, "C": 1}), ("00003", {"C": 1, "D": 1}))
    assert set(found.values()) == {"00001"}


def test_ids_that_do_not_follow_each_other_are_not_linked_by_their_items():
    assert len(set(bins(("00001", {"A": 1}), ("00003", {"A": 1})).values())) == 2


def test_unpadded_ids_are_no_neighbours():
    assert len(set(bins(("10", {"A": 1}), ("11", {"A": 1}), ("00010", {"B": 1})).values())) == 3


def test_empty_bins_are_not_one_bin():
    assert len(set(bins(("00001", {}), ("00002", {})).values())) == 2


def test_the_series_goes_on_beyond_five_digits():
    assert set(bins(("99999", {"A": 1}), ("100000", {"A": 1})).values()) == {"100000"}


def test_the_same_bytes_under_two_ids_are_one_group():
    assert set(bins(("00001", {"A": 1}, "x"), ("7", {"B": 1}, "x"), ("00900", {"C": 1}, "x")).values()) == {"00001"}


def test_pictures_that_look_alike_are_linked_only_where_there_are_no_records():
    alike = (("good/a", None, "x", 0b1111), ("good/b", None, "y", 0b1011), ("good/c", None, "z", 0xFFFF_0000))
    assert bins(*alike, by_picture=True) == {"good/a": "good/a", "good/b": "good/a", "good/c": "good/c"}
    assert len(set(bins(*alike).values())) == 3


def test_similar_pictures_are_the_pairs_within_the_distance():
    random = np.random.default_rng(0)
    hashes = random.integers(1, 2**64, 3000, np.uint64, endpoint=False)
    near = hashes[:500] ^ (np.uint64(1) << random.integers(0, 64, 500, np.uint64))
    every = np.concatenate([hashes, near])
    found = {tuple(sorted(pair)) for pair in groups.similar_pictures(every, 3).tolist()}
    distances = np.bitwise_count(every[:, None] ^ every[None, :])
    expected = {(a, b) for a, b in np.argwhere(distances <= 3).tolist() if a < b}
    assert found == expected


def test_flat_pictures_are_not_taken_for_copies():
    assert len(groups.similar_pictures(np.zeros(100, np.uint64))) == 0


def test_a_rescaled_copy_has_nearly_the_same_hash_and_a_stranger_has_not():
    first = fetch.inspect(jpeg(1, (400, 300)), 10**6, with_hash=True).dhash
    copy = fetch.inspect(jpeg(1, (200, 150)), 10**6, with_hash=True).dhash
    stranger = fetch.inspect(jpeg(2, (400, 300)), 10**6, with_hash=True).dhash
    assert (first ^ copy).bit_count() <= groups.MAX_DISTANCE
    assert (first ^ stranger).bit_count() > 10
