from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from bincount.settings import TrainConfig
from bincount.training import cropping
from bincount.training.augment import apply_views, center_crop, cut_on_cpu, cut_on_gpu, draw_views, normalize


def pictures(num_images: int = 4, side: int = 32) -> torch.Tensor:
    """Smooth ones, since every way to stretch pixels treats noise in its own way."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 256, (num_images, 3, 5, 5), generator=generator).float()
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic")
    return smooth.clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def views(images: torch.Tensor, seed: int = 0, min_crop: float = 0.5, flip: bool = True, color_jitter: float = 0.0):
    generator = torch.Generator().manual_seed(seed)
    size = images.shape[:2]
    return draw_views(*size, generator, TrainConfig(min_crop=min_crop, flip=flip, color_jitter=color_jitter))


def augment(images: torch.Tensor, **options) -> torch.Tensor:
    return cut_on_cpu(images, views(images, **options))


def planes(images: torch.Tensor) -> torch.Tensor:
    return images.permute(0, 3, 1, 2)


def test_the_same_seed_gives_the_same_pictures_and_another_seed_others():
    assert torch.equal(augment(pictures(), seed=1), augment(pictures(), seed=1))
    assert not torch.equal(augment(pictures(), seed=1), augment(pictures(), seed=2))


def test_only_the_generator_decides():
    torch.manual_seed(1)
    first = augment(pictures())
    torch.manual_seed(2)
    assert torch.equal(augment(pictures()), first)


def test_equal_pictures_in_one_batch_are_cropped_differently():
    same = pictures(1).expand(4, -1, -1, -1)
    augmented = augment(same, flip=False)
    assert len({tuple(picture.flatten()[:50].tolist()) for picture in augmented}) == 4


def test_a_full_crop_without_flip_is_the_picture_itself():
    assert torch.equal(augment(pictures(), min_crop=1, flip=False), planes(pictures()))


def test_about_half_of_the_pictures_are_mirrored_and_the_others_are_not():
    images = pictures(200)
    augmented = augment(images, min_crop=1)
    mirrored = (augmented == planes(images).flip(3)).flatten(1).all(dim=1)
    unchanged = (augmented == planes(images)).flatten(1).all(dim=1)
    assert torch.equal(mirrored, ~unchanged)
    assert 70 < mirrored.sum() < 130


def test_a_random_crop_shows_a_rectangle_of_the_allowed_area_and_shape_inside_the_picture():
    side = 64
    ramp = torch.arange(side, dtype=torch.uint8)
    columns, rows = ramp.expand(side, side), ramp[:, None].expand(side, side)
    where = torch.stack([columns, rows, rows], dim=-1).expand(500, -1, -1, -1)  # each pixel tells its place
    crops = augment(where, min_crop=0.3, flip=False).float()
    width = (crops[:, 0].amax((1, 2)) - crops[:, 0].amin((1, 2))) / (side - 1)
    height = (crops[:, 1].amax((1, 2)) - crops[:, 1].amin((1, 2))) / (side - 1)
    area, ratio = width * height, width / height
    assert 0.27 < area.min() < 0.4
    assert 0.9 < area.max() <= 1
    assert 0.7 < ratio.min() < 0.85
    assert 1.2 < ratio.max() < 1.4


def test_a_centre_crop_of_everything_changes_no_pixel():
    assert torch.equal(center_crop(pictures(), 1.0), planes(pictures()))


def test_a_centre_crop_shows_the_middle_at_full_size():
    images = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    images[:, 8:24, 8:24] = 200
    assert center_crop(images, 0.5).shape == (1, 3, 32, 32)
    assert center_crop(images, 0.5).eq(200).all()
    assert center_crop(images, 0.9).amin() == 0


@pytest.mark.parametrize("num_images", [1, 7, 8, 50])
def test_any_number_of_threads_makes_the_same_pictures_to_the_bit(monkeypatch, num_images):
    images = pictures(num_images, 64)
    chosen = views(images, color_jitter=0.3)
    whole = apply_views(images, chosen, "imagenet")
    for number in (1, 2, 3):
        with ThreadPoolExecutor(number, initializer=cropping.use_one_core) as threads:
            monkeypatch.setattr(cropping, "_threads", lambda threads=threads: threads)
            shared = cropping.apply_views(images, chosen, "imagenet")
        assert torch.equal(shared, whole)
        assert shared.is_contiguous(memory_format=torch.channels_last)


def test_pictures_take_one_thread_each_and_the_network_keeps_its_number():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with ThreadPoolExecutor(1, initializer=cropping.use_one_core) as threads:
        assert threads.submit(torch.get_num_threads).result() == 1
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


def test_both_ways_to_cut_show_the_same():
    images = pictures(50, 64)
    chosen = views(images)
    difference = cut_on_cpu(images, chosen) - cut_on_gpu(images, chosen)
    assert difference.abs().mean() < 1  # of 255 levels
    assert np.quantile(difference.abs().numpy(), 0.99) < 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_and_the_cpu_see_the_same_pictures():
    images = pictures(50, 64)
    chosen = views(images, color_jitter=0.3)
    difference = apply_views(images.cuda(), chosen.to(torch.device("cuda", 0)), "imagenet").cpu() - apply_views(
        images, chosen, "imagenet"
    )
    assert difference.abs().mean() < 0.02


@pytest.mark.parametrize("normalization", ["imagenet", "symmetric"])
def test_without_jitter_a_view_is_the_normalised_crop(normalization):
    images = pictures()
    chosen = views(images)
    expected = normalize(cut_on_cpu(images, chosen).float(), normalization)
    torch.testing.assert_close(apply_views(images, chosen, normalization), expected, atol=1e-5, rtol=0)


def test_the_jitter_changes_each_picture_s_brightness_and_contrast_within_its_bounds():
    images = pictures(300)
    chosen = views(images, min_crop=1, flip=False, color_jitter=0.25)
    light = apply_views(images, chosen, "symmetric") + 1  # 0..2, in proportion to the pixels
    plain = normalize(planes(images).float(), "symmetric") + 1
    brighter = light.mean((1, 2, 3)) / plain.mean((1, 2, 3))
    assert 0.7 < brighter.min() < 0.8
    assert 1.2 < brighter.max() < 1.3
    steeper = light.std((1, 2, 3)) / plain.std((1, 2, 3)) / chosen.brightness
    torch.testing.assert_close(steeper, chosen.contrast, atol=1e-3, rtol=0)
