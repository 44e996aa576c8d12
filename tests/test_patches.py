"""Cutting images into patches and putting them together again."""
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mae_helpers import InputError, patchify, unpatchify
from mae_helpers.model import PatchEmbed
from mae_helpers.patches import grid_size, real_pixels

examples = settings(deadline=None, max_examples=60, derandomize=True)


def counted(batch, channels, side):
    """Images in which no two pixels are equal and none is zero."""
    return 1 + torch.arange(batch * channels * side * side, dtype=torch.float32).view(batch, channels, side, side)


def loop_patchify(images, p):
    batch, channels, side, _ = images.shape
    tokens = []
    for image in images:
        for top in range(0, side, p):
            for left in range(0, side, p):
                tokens.append([image[c, top + i, left + j].item()
                               for i in range(p) for j in range(p) for c in range(channels)])
    return torch.tensor(tokens).view(batch, -1, p * p * channels)


@st.composite
def image_and_patch(draw):
    side = draw(st.integers(1, 20))
    return draw(st.integers(1, 3)), draw(st.integers(1, 4)), side, draw(st.integers(1, side))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side, p", [(8, 4), (6, 2), (6, 1), (6, 6)])
def test_patchify_equals_the_loop(channels, side, p):
    images = counted(2, channels, side)
    assert torch.equal(patchify(images, p), loop_patchify(images, p))


def test_pixels_follow_by_row_column_channel():
    images = torch.tensor([[[[11, 12], [21, 22]], [[110, 120], [210, 220]]]])
    assert patchify(images, 2).flatten().tolist() == [11, 110, 12, 120, 21, 210, 22, 220]


@pytest.mark.parametrize("channels, side, p", [(1, 8, 4), (3, 8, 4), (3, 10, 4), (1, 7, 1)])
def test_embedding_patches_is_a_strided_convolution(channels, side, p):
    embed, images = PatchEmbed(p, channels, 16), torch.randn(2, channels, side, side)
    padding = -side % p
    convolved = embed.proj(F.pad(images, (0, padding, 0, padding))).flatten(2).transpose(1, 2)
    torch.testing.assert_close(embed(patchify(images, p)), convolved, atol=1e-5, rtol=1e-5)


@examples
@given(image_and_patch())
def test_round_trip(sizes):
    batch, channels, side, p = sizes
    images = counted(batch, channels, side)
    tokens = patchify(images, p)
    assert list(tokens.shape) == [batch, (-(-side // p)) ** 2, p * p * channels]
    assert torch.equal(unpatchify(tokens, p, side, channels), images)


@examples
@given(image_and_patch())
def test_padding_is_zero_and_lies_right_and_bottom(sizes):
    batch, channels, side, p = sizes
    padded_side = grid_size(side, p) * p
    tokens = patchify(counted(batch, channels, side), p)
    padded = unpatchify(tokens, p, padded_side, channels)
    inside = torch.zeros(padded_side, padded_side, dtype=torch.bool)
    inside[:side, :side] = True
    assert torch.equal(padded != 0, inside.expand_as(padded))       # no pixel of `counted` is zero
    assert torch.equal(real_pixels(side, p, channels), tokens[0] != 0)


@pytest.mark.parametrize("side, p, channels, per_patch", [
    (4, 2, 1, [4, 4, 4, 4]), (3, 2, 1, [4, 2, 2, 1]), (3, 2, 3, [12, 6, 6, 3]), (5, 4, 1, [16, 4, 4, 1])])
def test_real_pixels_counts(side, p, channels, per_patch):
    real = real_pixels(side, p, channels)
    assert real.dtype == torch.bool
    assert real.sum(1).tolist() == per_patch


def test_a_patch_as_large_as_the_image_is_one_token():
    assert list(patchify(torch.zeros(2, 3, 5, 5), 5).shape) == [2, 1, 75]


@pytest.mark.parametrize("p, allowed", [
    (0, "at least 1"), (-3, "at least 1"), (1.5, "a whole number"), (True, "a whole number"), ("4", "a whole number"),
    (9, "at most the image size, 8")])
def test_a_bad_patch_size_is_one_sentence(p, allowed):
    for refuse in (lambda: patchify(torch.zeros(1, 1, 8, 8), p), lambda: unpatchify(torch.zeros(1, 4, 16), p, 8, 1)):
        with pytest.raises(InputError) as error:
            refuse()
        assert f"patch_size is {p!r}:" in str(error.value) and allowed in str(error.value)


def test_a_whole_patch_size_may_be_a_float():
    """Range checks take 2.0 for 2, so the patches must as well. The patch 23 occurs in no other test: einops takes
    2.0 and 2 for the same key of its cache, so a call with one changes what the other finds."""
    images = counted(1, 1, 46)
    assert torch.equal(patchify(images, 23.0), patchify(images, 23))


@pytest.mark.parametrize("shape", [(1, 1, 8, 6), (1, 8, 8), (8, 8), (1, 1, 1, 8, 8)])
def test_images_that_are_not_a_square_batch_are_refused(shape):
    with pytest.raises(InputError) as error:
        patchify(torch.zeros(shape), 2)
    assert str(list(shape)) in str(error.value) and "[batch, channels, side, side]" in str(error.value)


@pytest.mark.parametrize("shape", [(1, 3, 16), (1, 4, 15), (1, 4, 48), (4, 16), (1, 4, 16, 1)])
def test_tokens_that_do_not_fit_the_image_are_refused(shape):
    with pytest.raises(InputError) as error:
        unpatchify(torch.zeros(shape), 4, 8, 1)
    assert str(list(shape)) in str(error.value) and "[batch, 4, 16]" in str(error.value)
