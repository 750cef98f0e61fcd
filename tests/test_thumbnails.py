"""The pictures of a page: which images have one, and that all of them together stay small."""

import hashlib
import io
import os
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from synthetic_training import dataset

from bincount.data import packing
from bincount.data.packs import Pack
from bincount.reporting import thumbnails
from bincount.settings import ImageConfig


class Noise(Pack):
    """A pack of pictures that no encoding makes small."""

    @cached_property
    def images(self):
        random = np.random.default_rng(0)
        size = self.image_size
        return [random.integers(0, 256, (size, size, 3), np.uint8) for _ in range(600)]


def sides(pictures: list[bytes]) -> set[int]:
    return {Image.open(io.BytesIO(picture)).width for picture in pictures}


def choose(is_right, p_recorded, is_changed=None, num=10) -> list[int]:
    is_right = np.array(is_right, bool)
    is_changed = np.zeros(len(is_right), bool) if is_changed is None else np.array(is_changed, bool)
    return thumbnails.choose(is_right, np.array(p_recorded, float), is_changed, num)


def test_every_image_has_a_picture_where_there_are_few_the_worst_mistake_first():
    assert choose([True, False, False, True], [0.9, 0.3, 0.1, 0.8])[:2] == [2, 1]
    assert sorted(choose([True, False, False, True], [0.9, 0.3, 0.1, 0.8])) == [0, 1, 2, 3]
    assert choose([False] * 3, [0.2, 0.1, 0.3]) == [1, 0, 2]


def test_of_many_images_the_worst_mistakes_have_pictures_and_a_sample_of_the_right_ones():
    is_right = np.arange(1000) < 500
    p_recorded = np.where(is_right, 0.9, np.linspace(0, 0.4, 1000))

    chosen = np.array(choose(is_right, p_recorded, num=100))

    assert len(chosen) == len(set(chosen.tolist())) == 100
    assert chosen[:80].tolist() == list(range(500, 580))
    assert is_right[chosen[80:]].all()
    assert chosen[80:].max() > 300  # of all of them, and not the first
    assert chosen.tolist() == choose(is_right, p_recorded, num=100)


def test_right_ones_fill_the_places_that_mistakes_leave():
    is_right = np.arange(1000) >= 5

    chosen = choose(is_right, np.full(1000, 0.5), num=100)

    assert chosen[:5] == [0, 1, 2, 3, 4]
    assert len(chosen) == 100


def test_what_another_model_predicts_otherwise_comes_before_the_rest_up_to_half_of_the_places():
    is_right = np.arange(1000) < 500
    is_changed = np.isin(np.arange(1000), [3, 7, 990, 991, *range(600, 700)])

    chosen = choose(is_right, np.linspace(0.1, 0.9, 1000), is_changed, num=100)

    assert chosen[:40] == list(range(600, 640))
    assert chosen[40:80] == list(range(500, 540))
    assert set(chosen[80:82]) == {3, 7}


def test_pictures_are_as_large_as_in_the_pack_and_never_larger(tmp_path):
    _, pack = dataset(tmp_path, train=30, val=0)

    pictures = thumbnails.encode(pack, range(30))

    assert len(pictures) == 30
    assert sides(pictures) == {32}
    shown = np.asarray(Image.open(io.BytesIO(pictures[4])).convert("RGB"), int)
    assert np.abs(shown - pack.images[4]).mean() < 8


def test_six_hundred_noisy_pictures_fit_smaller(tmp_path):
    pictures = thumbnails.encode(Noise(tmp_path, 128), range(600))

    assert len(pictures) == 600
    assert sides(pictures) == {96}
    assert sum(map(len, pictures)) <= thumbnails.BUDGET


def test_where_the_budget_is_spent_the_last_ones_have_no_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(thumbnails, "BUDGET", 40_000)

    pictures = thumbnails.encode(Noise(tmp_path, 128), range(100))

    assert 5 < len(pictures) < 60
    assert sum(map(len, pictures)) <= 40_000


@pytest.mark.services
@pytest.mark.real
def test_six_hundred_real_bins_fit_as_the_model_sees_them(tmp_path):
    paths = sorted(Path(os.environ["BINCOUNT_REAL_BINS"], "bin-images").glob("*.jpg"))[:600]
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    pack = packing.update(tmp_path, ImageConfig(image_size=224), [str(path) for path in paths], digests)

    pictures = thumbnails.encode(pack, range(600))

    assert len(pictures) == 600
    assert sides(pictures) == {224}
    assert sum(map(len, pictures)) <= thumbnails.BUDGET
