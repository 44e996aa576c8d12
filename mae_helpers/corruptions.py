"""What happens to pictures in the wild: five common corruptions at five severities, for testing, never for training.

After Hendrycks and Dietterich 2019 (arXiv 1903.12261), who apply fifteen; these five stand for its groups noise, blur,
weather and digital. Severities are set for small images, so that 1 is barely seen and 5 is hard for people, too.
"""
from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from .config import InputError, unknown

SEVERITIES = (1, 2, 3, 4, 5)


def corrupt(name: str, images: torch.Tensor, severity: int, generator: torch.Generator | None = None) -> torch.Tensor:
    """Images uint8 [N, C, H, W] with the named corruption, uint8 again. `severity` is 1 … 5.

    Raises `InputError` for an unknown name or severity and for images that are not uint8.
    """
    if name not in CORRUPTIONS:
        raise InputError(unknown("corruption", name, CORRUPTIONS))
    if severity not in SEVERITIES:
        raise InputError(unknown("severity", severity, SEVERITIES))
    if images.dtype != torch.uint8:
        raise InputError(f"images are {str(images.dtype).removeprefix('torch.')}: corruptions take uint8, 0 … 255.")
    changed = CORRUPTIONS[name](images / 255, severity, generator)
    return (changed.clamp(0, 1) * 255).round().byte()


def noise(images: torch.Tensor, severity: int, generator: torch.Generator | None) -> torch.Tensor:
    """Independent Gaussian noise on every value, with a deviation of 0.04 to 0.2."""
    return images + 0.04 * severity * torch.randn(images.shape, generator=generator, device=images.device)


def blur(images: torch.Tensor, severity: int, generator: torch.Generator | None) -> torch.Tensor:
    """A Gaussian blur with a deviation of 0.4 to 2 pixels."""
    from torchvision.transforms.v2.functional import gaussian_blur
    reach = min(6, *(side - 1 for side in images.shape[-2:]))       # the edges are mirrored, so it must be less than a side
    return gaussian_blur(images, [2 * reach + 1] * 2, [0.4 * severity] * 2)


def fog(images: torch.Tensor, severity: int, generator: torch.Generator | None) -> torch.Tensor:
    """Smooth random light patches laid over the picture, which covers 15 to 75 % of it."""
    patches = torch.rand(len(images), 1, 4, 4, generator=generator, device=images.device)
    light = 0.6 + 0.4 * F.interpolate(patches, images.shape[-2:], mode="bilinear", align_corners=True)
    return torch.lerp(images, light.expand_as(images), 0.15 * severity)


def contrast(images: torch.Tensor, severity: int, generator: torch.Generator | None) -> torch.Tensor:
    """All values drawn towards the picture's mean, to 80 … 16 % of their distance."""
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return mean + (images - mean) * (0.96 - 0.16 * severity)


def pixelate(images: torch.Tensor, severity: int, generator: torch.Generator | None) -> torch.Tensor:
    """Shrunk to 80 … 30 % of the side and stretched again without smoothing."""
    small = [max(1, round(side * (0.925 - 0.125 * severity))) for side in images.shape[-2:]]
    return F.interpolate(F.interpolate(images, small, mode="area"), images.shape[-2:], mode="nearest")


CORRUPTIONS: dict[str, Callable] = {"noise": noise, "blur": blur, "fog": fog, "contrast": contrast, "pixelate": pixelate}
