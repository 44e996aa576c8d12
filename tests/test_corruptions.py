"""Corruptions keep shape and scale, grow with the severity, and repeat with their generator."""
import pytest
import torch

from mae_helpers import InputError, load_images
from mae_helpers.corruptions import CORRUPTIONS, SEVERITIES, corrupt


@pytest.fixture(scope="module")
def pictures():
    return load_images("shapes10", "test", 20).images


def stream():
    return torch.Generator().manual_seed(7)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_grows_with_its_severity_and_leaves_the_input_alone(name, pictures):
    before = pictures.clone()
    changed = [corrupt(name, pictures, severity, stream()) for severity in SEVERITIES]
    assert all(c.dtype == torch.uint8 and c.shape == pictures.shape for c in changed)
    errors = [(c.float() - pictures.float()).abs().mean().item() for c in changed]
    assert errors[0] > 0.5 and all(a < b for a, b in zip(errors, errors[1:]))
    assert torch.equal(before, pictures)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_same_stream_gives_the_same_pictures_and_grey_ones_work(name, pictures):
    assert torch.equal(corrupt(name, pictures, 3, stream()), corrupt(name, pictures, 3, stream()))
    digits = load_images("mnist", "val", 10).images
    assert corrupt(name, digits, 5, stream()).shape == digits.shape


def test_what_each_does():
    grey = torch.full((1, 3, 32, 32), 100, dtype=torch.uint8)
    half = grey.clone()
    half[..., 16:] = 200
    assert torch.equal(corrupt("blur", grey, 5), grey) and torch.equal(corrupt("contrast", grey, 5), grey)
    assert corrupt("noise", grey, 5, stream()).float().std() == pytest.approx(0.2 * 255, rel=0.1)
    assert (corrupt("contrast", half, 5).float() - 150).abs().max() == pytest.approx(8, abs=1)
    assert len(corrupt("pixelate", torch.arange(32).repeat(1, 1, 32, 1).byte(), 5).unique()) == 10
    assert (corrupt("fog", grey, 3, stream()) > grey).all()


def test_wrong_names_are_one_sentence(pictures):
    with pytest.raises(InputError, match="corruption is 'fogg'.*Did you mean 'fog'"):
        corrupt("fogg", pictures, 1)
    with pytest.raises(InputError, match="severity is 6: it must be one of 1, 2, 3, 4, 5"):
        corrupt("fog", pictures, 6)
    with pytest.raises(InputError, match="images are float32: corruptions take uint8, 0 … 255."):
        corrupt("fog", pictures / 255, 1)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("side", [1, 6])
def test_tiny_pictures_are_corrupted_too(name, side):
    assert corrupt(name, torch.full((2, 3, side, side), 90, dtype=torch.uint8), 5, stream()).shape == (2, 3, side, side)
