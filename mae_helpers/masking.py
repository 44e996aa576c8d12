"""Which patches to hide (MAE section 3 and figure 6).

A mask is boolean, [B, N], True = hidden, and every row hides the same number of patches, so the visible ones still
form one dense batch. Each strategy is the same sentence, *give every patch a score and hide the highest*; only the
scores differ.
"""
from __future__ import annotations

import math

import torch

from .config import InputError, check, unknown


def num_hidden(num_patches: int, mask_ratio: float) -> int:
    """round(N · ratio), but at least one patch hidden and one visible. Raises `InputError` for fewer than 2 patches."""
    check("mask_ratio", mask_ratio)
    if num_patches < 2:
        raise InputError("the patch is as large as the image: with one patch there is nothing to hide it from, "
                         "so patch_size must be smaller.")
    return min(max(round(num_patches * mask_ratio), 1), num_patches - 1)


def true_ratio(num_patches: int, mask_ratio: float) -> float:
    """The share that is really hidden once whole patches are counted: 37 of 49 is 0.755, not 0.75."""
    return num_hidden(num_patches, mask_ratio) / num_patches


def scheduled_ratio(schedule: str, start: float, end: float, progress: float) -> float:
    """The mask ratio when a share `progress` of the training, 0 to 1, is done.

    "constant" is `end` all the time; "linear" goes from `start` to `end` evenly, "cosine" slowly at first and at last.
    """
    shares = {"constant": 1.0, "linear": progress, "cosine": (1 - math.cos(math.pi * progress)) / 2}
    if schedule not in shares:
        raise InputError(unknown("mask_schedule", schedule, shares))
    return end if schedule == "constant" else start + (end - start) * shares[schedule]


def hide_highest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """The mask that hides the `count` highest of scores [B, N].

    The first argsort lists the patches from the lowest score to the highest; the argsort of that list gives each patch
    its place in it, its rank. One argsort alone would mask list positions, not patches.
    """
    rank = scores.argsort(dim=1, stable=True).argsort(dim=1)        # stable: equal scores rank alike on every device
    return rank >= scores.shape[1] - count


def random_mask(batch_size: int, num_patches: int, mask_ratio: float, generator: torch.Generator | None = None,
                noise: torch.Tensor | None = None) -> torch.Tensor:
    """Hide patches uniformly at random: bool [B, N] on the generator's device.

    `noise` [B, N] replaces the random scores, for comparing implementations on the same mask (the official release
    also hides the highest).
    """
    count = num_hidden(num_patches, mask_ratio)
    if noise is None:
        noise = _noise(batch_size, num_patches, generator)
    elif list(noise.shape) != [batch_size, num_patches]:
        raise InputError(f"noise has the shape {list(noise.shape)}: it must be [{batch_size}, {num_patches}].")
    return hide_highest(noise, count)


def block_mask(batch_size: int, num_patches: int, mask_ratio: float,
               generator: torch.Generator | None = None) -> torch.Tensor:
    """Hide one rectangle-like block around a random centre (MAE figure 6, "block"): bool [B, N].

    The score of a patch is minus its distance from the centre, in a maximum norm stretched by a random aspect ratio
    between 1:2 and 2:1. At high ratios the block reaches the border and what stays visible is a margin.
    """
    count, side = num_hidden(num_patches, mask_ratio), _side(num_patches)
    centre_row, centre_col, stretch = _noise(batch_size, 3, generator).split(1, dim=1)
    aspect = 2.0 ** (stretch - 0.5)
    row, col = _rows_and_columns(side, centre_row.device)
    distance = torch.maximum((row - centre_row * (side - 1)).abs() * aspect,
                             (col - centre_col * (side - 1)).abs() / aspect)
    return hide_highest(-distance, count)


def grid_mask(batch_size: int, num_patches: int, mask_ratio: float,
              generator: torch.Generator | None = None) -> torch.Tensor:
    """Keep a regular grid of patches (MAE figure 6, "grid"): bool [B, N].

    Patches are kept in the order of a Bayer matrix, whose first quarter is every second patch of every second row, and
    whose other prefixes are spread as evenly as they can be. Each row of the batch shifts the pattern at random.
    """
    count, side = num_hidden(num_patches, mask_ratio), _side(num_patches)
    order = _bayer(1 << max(1, (side - 1).bit_length()))
    shift = (_noise(batch_size, 2, generator) * order.shape[0]).long()
    order = order.to(shift.device)
    row, col = _rows_and_columns(side, shift.device)
    scores = order[(row + shift[:, :1]) % order.shape[0], (col + shift[:, 1:]) % order.shape[0]]
    return hide_highest(scores, count)


STRATEGIES = {"random": random_mask, "block": block_mask, "grid": grid_mask}


def make_mask(strategy: str, batch_size: int, num_patches: int, mask_ratio: float,
              generator: torch.Generator | None = None) -> torch.Tensor:
    """The mask of a named strategy: random, block or grid."""
    if strategy not in STRATEGIES:
        raise InputError(unknown("mask_strategy", strategy, STRATEGIES))
    return STRATEGIES[strategy](batch_size, num_patches, mask_ratio, generator)


def count_hidden(mask: torch.Tensor, batch_size: int, num_patches: int) -> int:
    """How many patches a hand-made mask hides in each row.

    Raises `InputError` unless it is boolean [B, N] and every row hides the same number, at least one and not all.
    """
    if mask.dtype != torch.bool or list(mask.shape) != [batch_size, num_patches]:
        raise InputError(f"the mask is {str(mask.dtype).removeprefix('torch.')} {list(mask.shape)}: it must be bool "
                         f"[{batch_size}, {num_patches}], True = hidden.")
    counts = mask.sum(dim=1)
    fewest, most = int(counts.min()), int(counts.max())
    if fewest != most:
        raise InputError(f"the mask's rows hide between {fewest} and {most} patches: every row must hide the same "
                         "number (give rows that differ one at a time).")
    if not 0 < most < num_patches:
        raise InputError(f"the mask hides {most} of {num_patches} patches: at least one must be hidden and at least one "
                         "visible.")
    return most


def split(mask: torch.Tensor, hidden: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The indices that a masked encoder needs: (visible [B, N-hidden], hidden [B, hidden], restore [B, N]).

    `tokens.gather` with `restore` puts the sequence "visible tokens, then hidden ones" back into image order: it is
    the inverse permutation, and the argsort of a permutation is its inverse.
    """
    order = mask.int().argsort(dim=1, stable=True)          # False sorts before True: visible first, in image order
    return order[:, :-hidden], order[:, -hidden:], order.argsort(dim=1)


def _noise(batch_size: int, count: int, generator: torch.Generator | None) -> torch.Tensor:
    return torch.rand(batch_size, count, generator=generator, device=generator.device if generator else None)


def _side(num_patches: int) -> int:
    side = round(num_patches ** 0.5)
    if side * side != num_patches:
        raise InputError(f"num_patches is {num_patches}: block and grid masks need a square grid of patches.")
    return side


def _rows_and_columns(side: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    index = torch.arange(side * side, device=device)[None]
    return index // side, index % side


def _bayer(size: int) -> torch.Tensor:
    """The Bayer matrix [size, size], size a power of two: the ranks 0 … size²-1, every prefix evenly spread."""
    matrix = torch.zeros(1, 1, dtype=torch.long)
    while matrix.shape[0] < size:
        matrix = torch.cat([torch.cat([4 * matrix, 4 * matrix + 2], 1), torch.cat([4 * matrix + 3, 4 * matrix + 1], 1)])
    return matrix
