"""The loss over hidden pixels and the normalised target."""
import numpy as np
import pytest
import torch

from mae_helpers import patchify
from mae_helpers.losses import laplacian, masked_laplacian, masked_mse, normalize_patches, patch_statistics, uniformity
from mae_helpers.patches import real_pixels

MASK = torch.tensor([[True, False, True, True, False, False, False, False, True],
                     [False, True, True, False, False, True, False, False, True]])
REAL = real_pixels(5, 2, 3)             # 9 patches of 12 values; the right and the bottom ones are partly padding
padding = pytest.mark.parametrize("real", [None, REAL], ids=["whole", "padded"])


def pred_and_target():
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(2, 9, 12, generator=generator, dtype=torch.float64).requires_grad_(),
            torch.randn(2, 9, 12, generator=generator, dtype=torch.float64))


def loop_loss(pred, target, mask, real):
    total, count = 0.0, 0
    for b in range(pred.shape[0]):
        for n in range(pred.shape[1]):
            for i in range(pred.shape[2]):
                if mask[b, n] and (real is None or real[n, i]):
                    total += (pred[b, n, i] - target[b, n, i]).item() ** 2
                    count += 1
    return total / count


@padding
def test_the_loss_equals_the_loop(real):
    pred, target = pred_and_target()
    assert masked_mse(pred, target, MASK, real).item() == pytest.approx(loop_loss(pred, target, MASK, real), rel=1e-12)


@padding
def test_only_hidden_pixels_have_a_gradient(real):
    pred, target = pred_and_target()
    masked_mse(pred, target, MASK, real).backward()
    counted = MASK[..., None] & (torch.ones_like(REAL) if real is None else real)
    assert torch.equal(pred.grad != 0, counted)


@padding
def test_visible_predictions_do_not_matter(real):
    pred, target = pred_and_target()
    other = torch.where(MASK[..., None], pred, pred + 100)
    assert torch.equal(masked_mse(pred, target, MASK, real), masked_mse(other, target, MASK, real))


def test_padding_does_not_matter():
    pred, target = pred_and_target()
    other = torch.where(REAL, pred, pred + 100)
    assert torch.equal(masked_mse(pred, target, MASK, REAL), masked_mse(other, target, MASK, REAL))
    assert not torch.equal(masked_mse(pred, target, MASK), masked_mse(other, target, MASK))


@pytest.mark.parametrize("side, channels", [(6, 1), (6, 3), (5, 1), (5, 3)])
def test_normalised_patches_equal_numpy(side, channels):
    images = torch.rand(2, channels, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    tokens, real = patchify(images, 2), real_pixels(side, 2, channels)
    found = normalize_patches(tokens, real if side % 2 else None).numpy()
    for b in range(2):
        for n, inside in enumerate(real.numpy()):
            pixels = tokens[b, n].numpy()[inside]
            variance = pixels.var(ddof=1) if len(pixels) > 1 else 0.0
            expected = (pixels - pixels.mean()) / np.sqrt(variance + 1e-6)
            np.testing.assert_allclose(found[b, n][inside], expected, rtol=1e-9, atol=1e-12)


@padding
def test_statistics_undo_the_normalisation(real):
    _, tokens = pred_and_target()
    mean, std = patch_statistics(tokens, real)
    torch.testing.assert_close(normalize_patches(tokens, real) * std + mean, tokens)


@padding
@pytest.mark.parametrize("value", [0.0, 1.0, -7.5])
def test_a_blank_patch_stays_finite(real, value):
    tokens = torch.full((1, 9, 12), value) * (1 if real is None else real)
    found = normalize_patches(tokens, real)
    assert bool(found.isfinite().all())
    assert not found[0][REAL if real is not None else torch.ones_like(REAL)].any()


# Fine detail

def test_the_laplacian_is_the_neighbours_minus_four_times_the_pixel():
    images = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    found = laplacian(images)
    for row in range(1, 4):
        for column in range(1, 5):
            around = images[..., row - 1, column] + images[..., row + 1, column] + images[..., row, column - 1] \
                + images[..., row, column + 1]
            torch.testing.assert_close(found[..., row, column], around - 4 * images[..., row, column])
    torch.testing.assert_close(found[..., 0, 0], images[..., 0, 1] + images[..., 1, 0] - 2 * images[..., 0, 0])


def test_even_brightness_has_no_detail():
    assert not laplacian(torch.full((1, 1, 4, 4), 3.0)).any()
    assert not laplacian(torch.arange(5.0).expand(1, 1, 4, 5))[..., 1:-1].any()         # nor has an even slope


def test_the_error_of_detail_is_that_of_the_pasted_picture():
    pred, target = torch.randn(2, 2, 3, 8, 8, dtype=torch.float64)
    hidden = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    hidden[0, :, 2:6, 2:6] = hidden[1, :, :4] = True
    pasted = torch.where(hidden, pred, target)
    expected = ((laplacian(pasted) - laplacian(target)) ** 2)[hidden.expand_as(pred)].mean()
    torch.testing.assert_close(masked_laplacian(pred, target, hidden), expected)


def test_a_seam_costs_more_than_the_same_error_without_one():
    target, hidden = torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    hidden[..., 2:6, 2:6] = True
    assert masked_laplacian(target + 1, target, hidden) > 0
    assert masked_laplacian(target + 1, target, torch.ones_like(hidden)) == 0           # even, and no neighbour is visible


# How features are spread

def test_uniformity_is_the_log_of_the_mean_over_pairs():
    features = torch.randn(6, 4, dtype=torch.float64)
    unit = (features / features.norm(dim=1, keepdim=True)).float()
    pairs = [torch.exp(-2 * ((unit[i] - unit[j]) ** 2).sum()) for i in range(6) for j in range(i)]
    torch.testing.assert_close(uniformity(features), torch.stack(pairs).mean().log(), atol=1e-6, rtol=1e-5)


def test_equal_features_are_the_worst_and_opposite_ones_the_best():
    same = torch.ones(5, 3, requires_grad=True)
    assert uniformity(same).item() == pytest.approx(0, abs=1e-6)
    assert uniformity(torch.tensor([[1.0, 0], [-1, 0]])).item() == pytest.approx(-8)
    uniformity(same).backward()
    assert bool(same.grad.isfinite().all())


def test_uniformity_pushes_features_apart():
    features = torch.randn(32, 3, generator=torch.Generator().manual_seed(0)) * 0.1 + 1
    features.requires_grad_()
    before = uniformity(features)
    before.backward()
    assert uniformity(features.detach() - 100 * features.grad) < before - 0.5
