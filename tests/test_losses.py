"""The loss over hidden pixels and the normalised target."""
import numpy as np
import pytest
import torch

from mae_helpers import patchify
from mae_helpers.losses import masked_mse, normalize_patches, patch_statistics
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
