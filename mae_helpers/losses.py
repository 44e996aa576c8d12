"""What the model is punished for: the error on the pixels that it could not see (MAE section 3, "Reconstruction"), and
two terms that can be added to it."""
from __future__ import annotations

import math

import torch
import torch.nn.functional as F


def masked_mse(pred: torch.Tensor, target: torch.Tensor, mask: torch.Tensor,
               real: torch.Tensor | None = None) -> torch.Tensor:
    """Mean squared error over the pixels of hidden patches: a scalar.

    pred, target [B, N, P·P·C]; mask bool [B, N], True = hidden; real bool [N, P·P·C] leaves out padding. The visible
    patches carry no loss: the model has seen them, and copying is easier than understanding.
    """
    weight = mask.unsqueeze(-1).to(pred.dtype)
    weight = weight * real if real is not None else weight.expand_as(pred)
    return ((pred - target) ** 2 * weight).sum() / weight.sum()


def patch_statistics(tokens: torch.Tensor, real: torch.Tensor | None = None,
                     eps: float = 1e-6) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each patch over its real pixels: two [B, N, 1].

    The variance is the unbiased one (divided by count - 1) plus `eps`, as in the official release; the `eps` keeps a
    blank patch from a division by zero.
    """
    real = torch.ones_like(tokens[0]) if real is None else real.to(tokens.dtype)
    count = real.sum(dim=-1, keepdim=True)
    mean = (tokens * real).sum(dim=-1, keepdim=True) / count
    variance = (((tokens - mean) * real) ** 2).sum(dim=-1, keepdim=True) / (count - 1).clamp(min=1)
    return mean, (variance + eps).sqrt()


def normalize_patches(tokens: torch.Tensor, real: torch.Tensor | None = None) -> torch.Tensor:
    """Each patch minus its mean, over its standard deviation: the target of `norm_pix_loss` (MAE section 3)."""
    mean, std = patch_statistics(tokens, real)
    return (tokens - mean) / std


def laplacian(images: torch.Tensor) -> torch.Tensor:
    """The four neighbours of each pixel minus four times the pixel: [B, C, H, W] → [B, C, H, W].

    Zero where brightness is even or changes evenly, large at edges and in texture. Beyond the border lies more of the
    same, so that the border of an image is not an edge.
    """
    kernel = images.new_tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]]).expand(images.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), kernel, groups=images.shape[1])


def masked_laplacian(pred: torch.Tensor, target: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Mean squared error of the fine detail over hidden pixels: a scalar.

    pred, target [B, C, H, W]; hidden bool [B, 1, H, W]. What is visible is taken from the target, as in a pasted picture,
    so a seam between a prediction and its true neighbours costs, too. The filter is linear: that of the difference is the
    difference of those of the two pictures.
    """
    weight = hidden.expand_as(pred).to(pred.dtype)
    return (laplacian((pred - target) * weight) ** 2 * weight).sum() / weight.sum()


def uniformity(features: torch.Tensor, t: float = 2.0) -> torch.Tensor:
    """How unevenly features [B, D] lie on the unit sphere, B ≥ 2: a scalar, at most 0, lower is more even.

    The logarithm of the mean of exp(-t · distance²) over all pairs (Wang & Isola 2020, section 4.2); 0 says that all
    features point the same way.
    """
    features = F.normalize(features.float(), dim=1)
    row, column = torch.triu_indices(len(features), len(features), offset=1, device=features.device)
    closeness = 2 * t * ((features @ features.T)[row, column] - 1)      # |a - b|² = 2 - 2 a·b on the sphere
    return closeness.logsumexp(dim=0) - math.log(len(row))
