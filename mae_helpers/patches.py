"""Images as sequences of patches, and back (MAE section 3; ViT section 3.1).

A patch is a `patch_size` × `patch_size` square, read row by row from the top left. Inside a patch the pixels follow in
the order (row, column, channel), as in the official MAE release, so its weights fit without reordering.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange

from .config import InputError, check


def patchify(images: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Cut images into flat patches.

    images [B, C, H, W], H = W → tokens [B, N, P·P·C] with N = ceil(H / P)². An image that P does not divide is padded
    right and bottom with zeros, which is the mean after normalisation. Raises `InputError` for a patch size outside
    1 … H or images that are not square.
    """
    if images.ndim != 4 or images.shape[2] != images.shape[3]:
        raise InputError(f"images have the shape {list(images.shape)}: it must be [batch, channels, side, side].")
    patch_size = check("patch_size", patch_size)
    padding = grid_size(images.shape[-1], patch_size) * patch_size - images.shape[-1]
    images = F.pad(images, (0, padding, 0, padding)) if padding else images
    return rearrange(images, "b c (h p) (w q) -> b (h w) (p q c)", p=patch_size, q=patch_size)


def unpatchify(tokens: torch.Tensor, patch_size: int, image_size: int, in_chans: int) -> torch.Tensor:
    """Put flat patches together again and crop the padding: tokens [B, N, P·P·C] → images [B, C, H, H].

    Raises `InputError` when the number or the length of the tokens does not fit the image.
    """
    side = grid_size(image_size, patch_size)
    expected = [side * side, patch_size * patch_size * in_chans]
    if list(tokens.shape[1:]) != expected:
        raise InputError(f"tokens have the shape {list(tokens.shape)}: it must be [batch, {expected[0]}, "
                         f"{expected[1]}] for patches of {patch_size} on {in_chans}×{image_size}×{image_size} images.")
    images = rearrange(tokens, "b (h w) (p q c) -> b c (h p) (w q)", h=side, p=patch_size, q=patch_size)
    return images[..., :image_size, :image_size]


def grid_size(image_size: int, patch_size: int) -> int:
    """Patches along one side, the last one padded where the patch does not divide the image."""
    patch_size = check("patch_size", patch_size)
    if patch_size > image_size:
        raise InputError(f"patch_size is {patch_size}: it must be at most the image size, {image_size}.")
    return -(-image_size // patch_size)


def real_pixels(image_size: int, patch_size: int, in_chans: int) -> torch.Tensor:
    """Which entries of the tokens are pixels of the image and not padding: bool [N, P·P·C]."""
    return patchify(torch.ones(1, in_chans, image_size, image_size), patch_size)[0].bool()
