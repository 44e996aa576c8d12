"""How time grows: with the batch, the tokens, the depth and the mask ratio; for one picture; for the encoder alone."""
from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from mae_helpers import MaskedAutoencoder
from mae_helpers.masking import num_hidden, random_mask
from mae_helpers.train import choose_precision, kept_memory

from .contestants import CONTESTANTS, OURS, Task, build_ours, step
from .steps import installed, pictures, precisions
from .timing import alternate, fastest, median, speedup, spread


def axes(task: Task) -> dict[str, list[tuple[object, Task]]]:
    """What is varied, around one middle: {axis: [(value, task)]}."""
    return {"batch size": [(n, task.replace(batch_size=n)) for n in (8, 32, 128, 512)],
            "patches": [(f"{t.patches} ({t.image_size} px / {t.patch_size})", t) for t in (
                task.replace(patch_size=8), task.replace(patch_size=4), task.replace(patch_size=2),
                task.replace(patch_size=4, image_size=64))],
            "depth of the encoder": [(n, task.replace(depth=n)) for n in (3, 6, 12, 24)],
            "mask ratio": [(r, task.replace(mask_ratio=r)) for r in (0.25, 0.5, 0.75, 0.9)]}


def part(task: Task, device: torch.device, rounds: int = 3, say: Callable[[str], None] = print) -> dict:
    """Images a second of our step, eager and in the precision that "auto" takes, along each axis."""
    precision, works, tasks = choose_precision("auto", device), {}, {}
    for axis, values in axes(task).items():
        for value, one in values:
            tasks[axis, value] = one
            works[axis, value] = step(OURS, one, pictures(one, device), precision)
    times = alternate(works, device, rounds, warmup=1, say=say)
    return {"growth": [{"axis": axis, "value": value, "precision": precision,
                        "images_per_second": round(tasks[axis, value].batch_size / median(each), 1),
                        "milliseconds_per_step": round(1e3 * median(each), 2), "spread": round(spread(each), 4)}
                       for (axis, value), each in times.items()]}


# The encoder's step, most patches hidden or none

def encoder_step(task: Task, images: torch.Tensor, precision: str, mask_ratio: float) -> Callable[[], None]:
    """Forward, backward and optimizer of the encoder alone, on what is visible."""
    model = build_ours(task, "own").to(images.device).train()
    learned = [p for name, p in model.named_parameters() if not name.startswith(("decoder", "mask_token"))]
    optimizer = torch.optim.AdamW(learned, lr=1.5e-4, fused=images.device.type in ("cpu", "cuda"))
    hidden = num_hidden(task.patches, mask_ratio) if mask_ratio else 0

    def run() -> None:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
            latent = encoded(model, images, mask_ratio, hidden)
        latent.float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    run.around = partial(kept_memory, images.device)
    return run


def encoded(model: MaskedAutoencoder, images: torch.Tensor, mask_ratio: float, hidden: int) -> torch.Tensor:
    if not hidden:
        return model.encode(images)
    mask = random_mask(len(images), model.num_patches, mask_ratio).to(images.device)
    return model.encode_visible(model.tokens(images), mask, hidden)[0]


def masking(task: Task, device: torch.device, rounds: int = 7, say: Callable[[str], None] = print) -> dict:
    """How many times cheaper the encoder's step is with the usual share hidden than with nothing hidden."""
    images, found = pictures(task, device), {}
    works = {(precision, ratio): encoder_step(task, images, precision, ratio)
             for precision in precisions(device, say) for ratio in (task.mask_ratio, 0.0)}
    times = alternate(works, device, rounds, say=say)
    for precision in dict.fromkeys(precision for precision, ratio in works):
        full, part = times[precision, 0.0], times[precision, task.mask_ratio]
        found[precision] = {"images_per_second": round(task.batch_size / median(part), 1),
                            "images_per_second_mask_0": round(task.batch_size / median(full), 1), **speedup(full, part)}
        say(f"{precision}: hiding {task.mask_ratio:.0%} makes the encoder's step {found[precision]['ratio']} times cheaper")
    return {"mask": {"patch_size": task.patch_size, "mask_ratio": task.mask_ratio, "batch_size": task.batch_size, **found}}


# How long one picture takes

@torch.inference_mode()
def latency(task: Task, device: torch.device, names=tuple(CONTESTANTS), rounds: int = 7,
            say: Callable[[str], None] = print) -> dict:
    """Milliseconds from pixels to predicted pixels, eager fp32, for one picture and for 64.

    Ours also puts the prediction into the picture; the peers' forward pass stops at the loss. Where a peer lets its user
    choose between two kinds of attention, both are tried and the faster one counts.
    """
    works = {}
    for count in (1, 64):
        images = pictures(task.replace(batch_size=count), device)
        for name in installed(names, say if count == 1 else lambda text: None):
            for attention in CONTESTANTS[name].attentions:
                model = CONTESTANTS[name].build(task, attention).to(device).eval()
                works[name, count, attention] = forward(name, model, images, task)
    times, found = alternate(works, device, rounds, say=say), []
    for name, count in dict.fromkeys(key[:2] for key in times):
        best = fastest(times, [key for key in times if key[:2] == (name, count)])
        found.append({"contestant": name, "pictures": count, "attention": best[2],
                      "milliseconds": round(1e3 * median(times[best]), 2), "spread": round(spread(times[best]), 4)})
    return {"latency": found}


def forward(name: str, model: torch.nn.Module, images: torch.Tensor, task: Task) -> Callable[[], object]:
    if name == OURS:
        return lambda: model.reconstruct(images, mask_ratio=task.mask_ratio)
    return lambda: CONTESTANTS[name].loss(model, images, task)
