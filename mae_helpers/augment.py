"""Random changes to a batch of images, on its device, from an explicit generator; every image gets its own."""
from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from .config import InputError, unknown


def augment(name: str, images: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """The named change of images uint8 or float [B, C, H, W]: floats on the scale 0 … 1."""
    if name not in AUGMENTATIONS:
        raise InputError(unknown("augment", name, AUGMENTATIONS))
    images = images / 255 if images.dtype == torch.uint8 else images
    return AUGMENTATIONS[name](images, generator)


def nothing(images: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    return images


def affine(images: torch.Tensor, generator: torch.Generator | None = None, degrees: float = 15, shift: float = 0.1,
           scale: float = 0.15, shear: float = 10) -> torch.Tensor:
    """Rotate, shift, scale and shear a little, for digits: no flip, which would make other characters of them.

    Each up to: `degrees`, `shift` (share of the side), `scale` (relative), `shear` (degrees). New pixels are black.
    """
    draws = _uniform(len(images), 5, images.device, generator)
    angle, slant = draws[:, 0] * math.radians(degrees), draws[:, 1] * math.radians(shear)
    size = 1 + draws[:, 2] * scale
    cos, sin, tan = angle.cos() / size, angle.sin() / size, slant.tan()
    matrix = torch.stack([torch.stack([cos, cos * tan - sin, draws[:, 3] * 2 * shift], 1),
                          torch.stack([sin, sin * tan + cos, draws[:, 4] * 2 * shift], 1)], 1)
    where = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, where, align_corners=False)


def crop_flip(images: torch.Tensor, generator: torch.Generator | None = None, pad: int = 4) -> torch.Tensor:
    """Pad by `pad` pixels, cut out a random window of the old size, mirror half of the images: for photographs."""
    batch, _, height, width = images.shape
    draws = torch.rand(batch, 3, generator=generator, device=images.device)
    top, left = (draws[:, :2] * (2 * pad + 1)).long().unbind(1)
    rows = top[:, None] + torch.arange(height, device=images.device)
    cols = left[:, None] + torch.arange(width, device=images.device)
    cols = torch.where(draws[:, 2:] < 0.5, cols.flip(1), cols)
    padded = F.pad(images, (pad, pad, pad, pad)).permute(0, 2, 3, 1)
    return padded[torch.arange(batch, device=images.device)[:, None, None], rows[:, :, None],
                  cols[:, None, :]].permute(0, 3, 1, 2).contiguous()


AUGMENTATIONS = {"none": nothing, "affine": affine, "crop_flip": crop_flip}


def _uniform(batch: int, count: int, device: torch.device, generator: torch.Generator | None) -> torch.Tensor:
    """[B, count] numbers between -1 and 1."""
    return torch.rand(batch, count, generator=generator, device=device) * 2 - 1
