"""Random changes to images: reproducible, each image its own, nothing invented."""
import random

import numpy as np
import pytest
import torch

from mae_helpers import InputError
from mae_helpers.augment import AUGMENTATIONS, affine, augment, crop_flip

changes = pytest.mark.parametrize("name", ["affine", "crop_flip"])
every_name = pytest.mark.parametrize("name", list(AUGMENTATIONS))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(batch=8, channels=1, side=12):
    return torch.rand(batch, channels, side, side, generator=seeded(9))


@every_name
@pytest.mark.parametrize("channels", [1, 3])
def test_shape_and_range_stay(name, channels):
    images = pictures(64, channels)
    found = augment(name, images, seeded())
    assert found.shape == images.shape and found.dtype == torch.float32
    assert 0 <= found.min() and found.max() <= 1


@changes
def test_the_generator_decides(name):
    first, again, other = (augment(name, pictures(), seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@every_name
def test_a_generator_leaves_the_global_streams_alone(name):
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    augment(name, pictures(), seeded())
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), np.random.get_state()[1].tolist())


@changes
def test_each_image_gets_its_own_change(name):
    same = pictures(1).expand(6, -1, -1, -1)
    assert torch.pdist(augment(name, same, seeded()).flatten(1)).min() > 0.1


@every_name
def test_the_channels_of_an_image_change_together(name):
    grey = pictures().expand(-1, 3, -1, -1)
    found = augment(name, grey, seeded())
    assert torch.equal(found[:, 0], found[:, 1]) and torch.equal(found[:, 0], found[:, 2])


@every_name
def test_the_images_given_are_not_changed(name):
    images = pictures()
    augment(name, images, seeded())
    assert torch.equal(images, pictures())


@every_name
def test_bytes_are_scaled(name):
    images = (pictures() * 255).byte()
    assert torch.equal(augment(name, images, seeded()), augment(name, images / 255, seeded()))


def test_none_changes_nothing():
    assert torch.equal(augment("none", pictures()), pictures())


def test_affine_without_strength_is_the_identity():
    found = affine(pictures(), seeded(), degrees=0, shift=0, scale=0, shear=0)
    torch.testing.assert_close(found, pictures(), atol=1e-5, rtol=0)


def test_affine_shifts_by_at_most_the_given_share():
    """One white pixel in the middle of 41 moves by at most a tenth of the side, 4.1 pixels."""
    images = torch.zeros(200, 1, 41, 41)
    images[..., 20, 20] = 1
    found = affine(images, seeded(), degrees=0, scale=0, shear=0)[:, 0]
    place = torch.arange(41.0) - 20
    for weights in (found.sum(1), found.sum(2)):
        moved = weights @ place
        assert moved.abs().max() < 4.1 + 1e-3 and moved.min() < -3 and moved.max() > 3


def test_crop_flip_only_moves_pixels():
    """Every result is a window of the padded image, mirrored or not."""
    images = pictures(40, 3, 6) + 0.01                              # no pixel is as black as the padding
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    mirrored = 0
    for image, found in zip(padded, crop_flip(images, seeded(), pad=2)):
        windows = [image[:, t:t + 6, s:s + 6] for t in range(5) for s in range(5)]
        plain = any(torch.equal(found, window) for window in windows)
        assert plain or any(torch.equal(found, window.flip(2)) for window in windows)
        mirrored += not plain
    assert 8 < mirrored < 32                                        # about half of 40


def test_an_unknown_name_gives_the_nearest():
    with pytest.raises(InputError, match="augment is 'afine': .*Did you mean 'affine'"):
        augment("afine", pictures())
