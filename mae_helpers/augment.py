"""Random changes to a batch of images, on its device, from an explicit generator; every image gets its own."""
from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

from .config import InputError, unknown


def augment(name: str, images: torch.Tensor, generator: torch.Generator | None = None, share: float = 1.0) -> torch.Tensor:
    """The named change of images [B, C, H, W], uint8 or floats on the scale 0 … 1: floats (fp32) on that scale.

    Each image is changed with the chance `share`. Raises `InputError` for an unknown name, and for rand_augment of other
    than grey or RGB images.
    """
    check_augment(name, images.shape[1])
    images = images / 255 if images.dtype == torch.uint8 else images.float()
    with torch.autocast(images.device.type, enabled=False):         # in 16 bits a pixel's place is off by a part of a pixel
        changed = AUGMENTATIONS[name](images, generator)
    if share < 1:
        chosen = torch.rand(len(images), 1, 1, 1, generator=generator, device=images.device) < share
        changed = torch.where(chosen, changed, images)
    return changed


def check_augment(name: str, channels: int) -> None:
    if name not in AUGMENTATIONS:
        raise InputError(unknown("augment", name, AUGMENTATIONS))
    if name == "rand_augment" and channels not in (1, 3):
        raise InputError(f"augment is 'rand_augment': it changes colours, so images must have 1 or 3 channels, not "
                         f"{channels}.")


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


def handwriting(images: torch.Tensor, generator: torch.Generator | None = None, degrees: float = 8, stretch: float = 0.08,
                bend: float = 0.5) -> torch.Tensor:
    """Slant, stretch and bend strokes sideways, as another hand would, for digits framed as MNIST's are: their height
    and their centre of mass stay where they were, and edges stay as sharp.

    Each up to: `degrees` of slant, `stretch` (relative), `bend` (pixels). Rows are moved as wholes, so only neighbours
    in a row are mixed (cubically), and what that blurs is sharpened again.
    """
    batch, _, height, width = images.shape
    draws = _uniform(batch, 5, images.device, generator)
    rows, cols = (torch.arange(n, device=images.device, dtype=images.dtype) for n in (height, width))
    mass = images.mean(dim=1)
    total = mass.sum(dim=(1, 2)).clamp(min=1e-6)
    row_share = mass.sum(dim=2) / total[:, None]                    # [B, H]: how much of the mass each row holds
    from_middle = rows - (row_share * rows).sum(dim=1, keepdim=True)
    middle = ((mass.sum(dim=1) * cols).sum(dim=1) / total).view(-1, 1, 1)
    wave = 2 * math.pi * from_middle / (24 + 12 * draws[:, 3:4]) + math.pi * draws[:, 4:5]     # 12 to 36 pixels long
    moved = (draws[:, :1] * math.radians(degrees)).tan() * from_middle + bend * draws[:, 2:3] * wave.sin()
    moved = moved - (row_share * moved).sum(dim=1, keepdim=True)
    x = middle + (cols - middle - moved[:, :, None]) / (1 + stretch * draws[:, 1]).view(-1, 1, 1)
    y = rows[:, None].expand_as(x)                                  # whole numbers: no mixing from row to row
    where = torch.stack([(x + 0.5) / width, (y + 0.5) / height], dim=-1) * 2 - 1
    changed = F.grid_sample(images, where, mode="bicubic", align_corners=False)
    return ((changed - 0.5) * 1.08 + 0.5).clamp(0, 1)


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


def resized_crop_flip(images: torch.Tensor, generator: torch.Generator | None = None,
                      smallest: float = 0.4) -> torch.Tensor:
    """Cut out a random part, stretch it to the old size, mirror half of the images (He et al. 2021, appendix A).

    The part covers `smallest` to all of the area; its sides differ by up to 4 : 3.
    """
    draws = _uniform(len(images), 5, images.device, generator)
    area, stretch = smallest + (1 - smallest) * (draws[:, 0] + 1) / 2, (draws[:, 1] * math.log(4 / 3)).exp()
    width, height = (area * stretch).sqrt().clamp(max=1), (area / stretch).sqrt().clamp(max=1)      # shares of a side
    zero = torch.zeros_like(width)
    side = torch.where(draws[:, 4] < 0, -1.0, 1.0)                  # mirrored or not
    matrix = torch.stack([torch.stack([width * side, zero, draws[:, 2] * (1 - width)], 1),
                          torch.stack([zero, height, draws[:, 3] * (1 - height)], 1)], 1)
    where = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, where, padding_mode="border", align_corners=False)


def color_jitter(images: torch.Tensor, generator: torch.Generator | None = None, strength: float = 0.4) -> torch.Tensor:
    """Brightness, contrast and saturation, each changed by up to `strength` (relative)."""
    brightness, contrast, saturation = (1 + strength * _uniform(len(images), 3, images.device, generator)).view(
        -1, 3, 1, 1, 1).unbind(1)
    images = images * brightness
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    images = mean + (images - mean) * contrast
    grey = images.mean(dim=1, keepdim=True)
    return (grey + (images - grey) * saturation).clamp(0, 1)


def color_crop_flip(images: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    return color_jitter(resized_crop_flip(images, generator), generator)


def rand_augment(images: torch.Tensor, generator: torch.Generator | None = None, rounds: int = 2,
                 level: float = 0.3) -> torch.Tensor:
    """`crop_flip`, then `rounds` operations an image, drawn from a fixed list (RandAugment, Cubuk et al. 2020).

    `level` is the share of each operation's strongest setting; the usual magnitude of 9 out of 30 is 0.3. The batch is
    shuffled and cut into as many parts as there are operations, so that each is computed once for all its images.
    """
    images, operations = crop_flip(images, generator), _operations(level, images.shape[-1])
    for _ in range(rounds):
        if len(images) < len(operations):               # or the last operations would never have their turn
            shuffled = torch.randperm(len(operations), generator=generator, device=images.device)
            operations = [operations[i] for i in shuffled.tolist()]
        order = torch.randperm(len(images), generator=generator, device=images.device)
        parts = images[order].tensor_split(len(operations))
        done = [change(part) if len(part) else part for change, part in zip(operations, parts)]
        images = torch.cat(done)[order.argsort()].clamp(0, 1)
    return images


def _operations(level: float, side: int) -> list[Callable[[torch.Tensor], torch.Tensor]]:
    """RandAugment's fourteen operations on floats [B, C, side, side], each twice: what has a sign has both."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional as vision

    def warp(angle=0.0, right=0.0, down=0.0, slant=(0.0, 0.0)):
        return lambda x: vision.affine(x, angle, [right, down], 1.0, list(slant), InterpolationMode.BILINEAR)

    def with_sign(sign):
        factor, moved = 1 + 0.9 * level * sign, 0.45 * side * level * sign
        slant = sign * math.degrees(math.atan(0.3 * level))
        return [warp(angle=30 * level * sign), warp(right=moved), warp(down=moved), warp(slant=(slant, 0.0)),
                warp(slant=(0.0, slant)), lambda x: vision.adjust_brightness(x, factor),
                lambda x: vision.adjust_saturation(x, factor), lambda x: vision.adjust_contrast(x, factor),
                lambda x: vision.adjust_sharpness(x, factor), lambda x: vision.posterize(x, 8 - round(4 * level)),
                lambda x: vision.solarize(x, 1 - level), vision.autocontrast, vision.equalize, nothing]
    return with_sign(1) + with_sign(-1)


AUGMENTATIONS = {"none": nothing, "affine": affine, "handwriting": handwriting, "crop_flip": crop_flip,
                 "resized_crop_flip": resized_crop_flip, "color_crop_flip": color_crop_flip, "rand_augment": rand_augment}


# After the changes above, and for labelled images only

def erase(images: torch.Tensor, probability: float, generator: torch.Generator | None = None) -> torch.Tensor:
    """Fill a box of noise into some images (random erasing, Zhong et al. 2020): 2 to 33 % of the area, less
    where the edge of the image cuts it."""
    draws = _uniform(len(images), 5, images.device, generator)
    area, stretch = 0.02 + 0.31 * (draws[:, 0] + 1) / 2, (draws[:, 1] * math.log(3)).exp()
    box = _boxes(images, (area * stretch).sqrt(), (area / stretch).sqrt(), draws[:, 2:4])
    chosen = ((draws[:, 4] + 1) / 2 < probability).view(-1, 1, 1, 1)
    noise = torch.rand(images.shape, generator=generator, device=images.device)
    return torch.where(box & chosen, noise, images)


def mix(images: torch.Tensor, targets: torch.Tensor, probability: float,
        generator: torch.Generator | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Mix some images, and their targets [B, classes], with their neighbours in the batch.

    Half of them are blended (mixup, Zhang et al. 2018), half get a box of the neighbour (CutMix, Yun et al. 2019); the
    share is uniform in both. `keep` says, pixel by pixel, how much of the own image stays; its mean is the share of the
    own target.
    """
    draws = (_uniform(len(images), 5, images.device, generator) + 1) / 2
    share, side = draws[:, 0].view(-1, 1, 1, 1), (1 - draws[:, 0]).sqrt()
    box = _boxes(images, side, side, draws[:, 1:3] * 2 - 1)
    blended = (draws[:, 3] < 0.5).view(-1, 1, 1, 1)
    keep = torch.where(blended, share, 1 - box.to(images.dtype))
    keep = torch.where((draws[:, 4] < probability).view(-1, 1, 1, 1), keep, 1.0)
    weight = keep.mean(dim=(1, 2, 3)).unsqueeze(1)
    return (keep * images + (1 - keep) * images.roll(1, 0),
            weight * targets + (1 - weight) * targets.roll(1, 0))


def _boxes(images: torch.Tensor, width: torch.Tensor, height: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
    """bool [B, 1, H, W], True inside a box an image: sides [B] as shares, centre [B, 2] from -1 to 1, cut at the edges."""
    rows, cols = ((torch.arange(n, device=images.device) + 0.5) / n * 2 - 1 for n in images.shape[-2:])
    inside_row = (rows - centre[:, 1:]).abs() < height[:, None]         # a side of share s is 2s long on this scale
    inside_col = (cols - centre[:, :1]).abs() < width[:, None]
    return (inside_row[:, :, None] & inside_col[:, None, :]).unsqueeze(1)


def _uniform(batch: int, count: int, device: torch.device, generator: torch.Generator | None) -> torch.Tensor:
    """[B, count] numbers between -1 and 1."""
    return torch.rand(batch, count, generator=generator, device=device) * 2 - 1
