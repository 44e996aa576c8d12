"""What the model is punished for: the error on the pixels that it could not see (MAE section 3, "Reconstruction")."""
from __future__ import annotations

import torch


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
