"""Random changes to images: reproducible, each image its own, nothing invented."""
import random

import numpy as np
import pytest
import torch

from mae_helpers import InputError, config, load_images
from mae_helpers.augment import (
    AUGMENTATIONS,
    _boxes,
    affine,
    augment,
    crop_flip,
    erase,
    handwriting,
    mix,
    rand_augment,
    resized_crop_flip,
)

changes = pytest.mark.parametrize("name", [name for name in AUGMENTATIONS if name != "none"])
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


@every_name
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_floats_of_any_precision_become_fp32(name, dtype):
    found = augment(name, pictures().to(dtype), seeded())
    assert found.dtype == torch.float32 and torch.equal(found, augment(name, pictures().to(dtype).float(), seeded()))


@every_name
def test_training_in_16_bits_leaves_pixels_in_their_places(name):
    """In bf16 the grid that says where a pixel comes from would be off by up to 0.4 pixels of an image of 224."""
    images = pictures(28, 3, 64)
    with torch.autocast("cpu", torch.bfloat16):
        found = augment(name, images, seeded())
    assert torch.equal(found, augment(name, images, seeded()))


def test_what_changes_colours_says_which_images_it_takes():
    with pytest.raises(InputError, match="augment is 'rand_augment': .*must have 1 or 3 channels, not 4."):
        augment("rand_augment", pictures(channels=4), seeded())


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


def digits(count=500):
    return load_images("mnist", "val").images[:count] / 255


def centre(images):
    """The centre of mass, as (row, column) [N, 2]."""
    mass, place = images[:, 0], torch.arange(28.0)
    return torch.stack([mass.sum(2) @ place, mass.sum(1) @ place], 1) / mass.sum((1, 2))[:, None]


def test_another_hand_writes_digits_that_look_like_those_of_mnist():
    """Height, centre of mass, brightness and sharpness stay, which `affine` does not manage; the strokes have moved."""
    before, after = digits(), handwriting(digits(), seeded())
    assert (after - before).abs().amax((1, 2, 3)).min() > 0.05
    assert torch.equal((before[:, 0] > 0.2).any(2).sum(1).median(), (after[:, 0] > 0.2).any(2).sum(1).median())
    moved = (centre(after) - centre(before)).abs()
    assert moved.mean() < 0.02 and moved.max() < 0.2

    def look(images):
        edges = (images.diff(dim=2).square().mean(), images.diff(dim=3).square().mean())
        return torch.stack([images.mean(), images.var(), *edges, (images < 0.01).float().mean()])
    torch.testing.assert_close(look(after), look(before), atol=0, rtol=0.06)
    plain = affine(digits(), seeded(), degrees=8, shift=0, scale=0.08, shear=0)
    assert look(plain)[2:4].max() < 0.8 * look(before)[2:4].min()


def test_another_hand_slants_as_far_as_it_says():
    """A vertical stroke, 20 rows high, leans by up to tan(8°) columns a row; what is above the middle goes the other way."""
    stroke = torch.zeros(300, 1, 28, 28)
    stroke[:, :, 4:24, 13:15] = 1
    found = handwriting(stroke, seeded(), stretch=0, bend=0)[:, 0, 4:24]
    place = (found * torch.arange(28.0)).sum(2) / found.sum(2)
    slope = (place[:, -1] - place[:, 0]) / 19
    assert 0.12 < slope.max() < 0.142 and -0.142 < slope.min() < -0.12
    torch.testing.assert_close(place.mean(1), torch.full((300,), 13.5), atol=0.02, rtol=0)


def test_a_share_of_the_images_is_changed():
    images = pictures(400)
    same = (augment("affine", images, seeded(), share=0.3) == images).all(3).all(2).all(1)
    assert 0.6 < same.float().mean() < 0.8


def slopes(kept):
    """How the place that `affine` takes pixels from changes from pixel to pixel near the middle, with one change alone:
    [200, 2, 2], to the right and down (columns) of x and y (rows)."""
    place = torch.arange(41.0) / 40
    images = torch.stack([place.expand(41, 41), place[:, None].expand(41, 41)]).expand(200, -1, -1, -1)
    found = affine(images, seeded(), **{name: 0 for name in ("degrees", "shift", "scale", "shear") if name != kept})
    return torch.stack([found[:, :, 20, 25] - found[:, :, 20, 15], found[:, :, 25, 20] - found[:, :, 15, 20]], 2) / 0.25


def test_affine_turns_scales_and_slants_as_far_as_it_says():
    turn, size, slant = slopes("degrees"), slopes("scale"), slopes("shear")
    torch.testing.assert_close(turn @ turn.mT, torch.eye(2).expand(200, 2, 2), atol=1e-3, rtol=0)
    angle = torch.atan2(turn[:, 1, 0], turn[:, 0, 0]).rad2deg()
    assert 13 < angle.max() < 15.1 and -15.1 < angle.min() < -13
    factor = 1 / size[:, 0, 0]
    assert 1.12 < factor.max() < 1.151 and 0.849 < factor.min() < 0.88
    assert 0.14 < slant[:, 0, 1].abs().max() < 0.177 and slant[:, 1, 0].abs().max() < 1e-3


def test_colours_change():
    images = pictures(200, 3) * 0.4 + 0.3
    moved = (augment("color_crop_flip", images, seeded()) - resized_crop_flip(images, seeded())).abs().amax((1, 2, 3))
    assert (moved > 1e-2).float().mean() > 0.9
    changed = (rand_augment(images, seeded(), rounds=1) - crop_flip(images, seeded())).abs().amax((1, 2, 3)) > 1e-3
    assert changed.float().mean() > 0.8                 # two of the 28 operations do nothing


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


def test_the_configuration_knows_every_augmentation():
    assert tuple(AUGMENTATIONS) == config.AUGMENTATIONS


def ramp(batch, side=32):
    """Images whose red is the column and whose green is the row, 0 to 1: where a pixel came from can be read off."""
    line = torch.linspace(0, 1, side)
    return torch.stack([line.expand(side, side), line[:, None].expand(side, side), torch.zeros(side, side)]).expand(
        batch, -1, -1, -1)


def test_a_resized_crop_is_a_window_of_the_image():
    found = resized_crop_flip(ramp(400), seeded(), smallest=0.4)
    width = (found[:, 0].amax(dim=(1, 2)) - found[:, 0].amin(dim=(1, 2)))
    height = (found[:, 1].amax(dim=(1, 2)) - found[:, 1].amin(dim=(1, 2)))
    area = width * height
    assert 0.3 < area.min() < 0.5 and area.max() > 0.9          # the outermost half pixels are not seen
    assert (width / height).max() < 4 / 3 + 0.1 and (width / height).min() > 3 / 4 - 0.1
    mirrored = (found[:, 0, 16, 0] > found[:, 0, 16, -1]).float().mean()
    assert 0.4 < mirrored < 0.6


def test_a_draw_in_the_middle_is_an_image_too(monkeypatch):
    """`sign` of it would be 0, and a picture of one column."""
    monkeypatch.setattr("mae_helpers.augment._uniform", lambda batch, count, *rest: torch.zeros(batch, count))
    assert (resized_crop_flip(pictures(), smallest=1.0) - pictures()).abs().max() < 1e-5


def test_rand_augment_at_level_zero_is_crop_flip_but_for_equalising():
    """Identity, the warps and the factors do nothing at level 0; autocontrast, equalize and solarize still act."""
    images = pictures(280, 3, 16)
    difference = rand_augment(images, seeded(), rounds=1, level=0.0) - crop_flip(images, seeded())
    same = difference.abs().amax(dim=(1, 2, 3)) < 0.01
    assert 180 < same.sum() < 280


def test_rand_augment_gives_every_operation_its_share(monkeypatch):
    from mae_helpers import augment as module
    seen = []

    def counter(number):
        return lambda part: (seen.append((number, len(part))), part)[1]
    monkeypatch.setattr(module, "_operations", lambda level, side: [counter(i) for i in range(28)])
    rand_augment(pictures(64), seeded(), rounds=2)
    assert len(seen) == 56 and {count for _, count in seen} == {2, 3}
    seen.clear()
    for seed in range(60):                                          # a small batch: not always the first operations
        rand_augment(pictures(3), seeded(seed), rounds=1)
    assert len({number for number, _ in seen}) > 20


def test_boxes_cover_the_share_asked_for():
    side = torch.full((1,), 0.5)
    box = _boxes(torch.zeros(1, 1, 32, 32), side, side, torch.zeros(1, 2))
    assert box.float().mean() == 0.25 and box[0, 0, 8:24, 8:24].all()
    corner = _boxes(torch.zeros(1, 1, 32, 32), side, side, torch.tensor([[-1.0, 1.0]]))
    assert corner[0, 0, 24:, :8].all() and corner.float().mean() == 1 / 16


def test_erasing_leaves_the_other_pixels_alone():
    images = torch.full((500, 3, 32, 32), 0.5)
    touched = (erase(images, 0.25, seeded()) != images).any(dim=1).float().mean(dim=(1, 2))
    assert 0.2 < (touched > 0).float().mean() < 0.3
    assert touched.max() < 0.36 and torch.equal(erase(images, 0.0, seeded()), images)


def test_mixing_gives_each_target_the_share_of_its_pixels():
    """With the class painted as the grey value, the mean grey of a mixed image is its share of that class."""
    images = (torch.arange(400) % 2).float().view(-1, 1, 1, 1).expand(-1, 1, 16, 16)
    targets = torch.eye(2)[torch.arange(400) % 2]
    mixed, shares = mix(images, targets, 1.0, seeded())
    torch.testing.assert_close(mixed.mean(dim=(1, 2, 3)), shares[:, 1])
    torch.testing.assert_close(shares.sum(1), torch.ones(400))
    blended = ((mixed > 0) & (mixed < 1)).any(dim=(1, 2, 3)).float().mean()
    assert 0.4 < blended < 0.6                                      # the others have a box
    assert shares[:, 1].std() > 0.2
    untouched = mix(images, targets, 0.0, seeded())
    assert torch.equal(untouched[0], images) and torch.equal(untouched[1], targets)
