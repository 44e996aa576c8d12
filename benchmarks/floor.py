"""What limits a step: the time of its matrix products alone, and how far the machine's best product is away.

The products are not written down by hand: one real step is watched, and every matrix product that PyTorch starts is
noted with its shapes, memory layout and precision. Then the same products are done alone, one after another. Where linear
layers are computed as convolutions (`mae_helpers.model.linear`), those are the products.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from mae_helpers.model import linear

from .contestants import OURS, Task, step
from .steps import pictures, precisions
from .timing import alternate, median, seconds, speedup

PRODUCTS = {torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default,
            torch.ops.aten.baddbmm.default, torch.ops.aten.convolution.default,
            torch.ops.aten.convolution_backward.default}


class Layout(NamedTuple):
    """All of a tensor but its numbers."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


class Watcher(TorchDispatchMode):
    """Notes each matrix product that runs inside: {(operation, what it was given): how often}."""

    def __init__(self):
        super().__init__()
        self.seen: Counter = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in PRODUCTS:
            self.seen[func, tuple(map(described, args))] += 1
        return func(*args, **(kwargs or {}))


def described(given):
    """A tensor's layout, and any other argument as something that can be a key."""
    if isinstance(given, torch.Tensor):
        return Layout(tuple(given.shape), given.stride(), given.dtype)
    return tuple(given) if isinstance(given, list) else given


def products_of(work: Callable[[], None]) -> Counter:
    with Watcher() as watcher:
        work()
    return watcher.seen


def replay(products: Counter, device: torch.device) -> Callable[[], None]:
    """A function that does the same products, on numbers of its own and with nothing between them."""
    made = [(func, [numbers(*each, device) if isinstance(each, Layout) else each for each in given], count)
            for (func, given), count in products.items()]

    def run() -> None:
        for func, given, count in made:
            for _ in range(count):
                func(*given)
    return run


def numbers(size: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Random numbers in the given memory layout, also one in which elements share their place."""
    needed = 1 + sum((n - 1) * s for n, s in zip(size, stride))
    return torch.randn(needed, device=device).to(dtype).as_strided(size, stride)


def flops(work: Callable[[], None]) -> int:
    """Floating-point operations of the matrix products of one call, attention included."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def product_rate(device: torch.device, dtype: torch.dtype, side: int | None = None) -> float:
    """Operations a second of one large linear layer, computed as the model's are: the device's own rate, as measured."""
    side = side or (8_192 if device.type == "cuda" else 2_048)
    tokens, weight = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    tokens = tokens.unflatten(0, (16, -1))                      # as many images as `linear` asks for

    def work():
        linear(tokens, weight, None)
    seconds(work, device)
    return 2 * side ** 3 / min(seconds(work, device) for _ in range(5))


def part(task: Task, device: torch.device, rounds: int = 5, rates: bool = True, say: Callable[[str], None] = print) -> dict:
    """For each precision: the eager step, its products alone, and both beside the device's rate.

    Where attention is one fused operation (on a GPU, on long sequences) its products are not among those done alone.
    """
    found, images, works, counted = [], pictures(task, device), {}, {}
    for precision in precisions(device, say):
        work = step(OURS, task, images, precision)
        work()
        counted[precision] = flops(work)
        works[precision, "step"], works[precision, "products"] = work, replay(products_of(work), device)
    times = alternate(works, device, rounds, say=say)
    for precision in counted:
        whole, alone = times[precision, "step"], times[precision, "products"]
        rate = product_rate(device, {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]) if rates else None
        achieved = counted[precision] / median(whole)
        found.append({"precision": precision, "patch_size": task.patch_size, "batch_size": task.batch_size,
                      "gflop_per_image": round(counted[precision] / task.batch_size / 1e9, 3),
                      "step_seconds": round(median(whole), 4), "products_seconds": round(median(alone), 4),
                      "products_share": round(1 / speedup(whole, alone)["ratio"], 3),
                      "tflops_step": round(achieved / 1e12, 4),
                      "tflops_products": round(flops(works[precision, "products"]) / median(alone) / 1e12, 4),
                      "tflops_device": rate and round(rate / 1e12, 4),
                      "share_of_device": rate and round(achieved / rate, 4)})
        say(f"{precision}: products alone take {found[-1]['products_share']:.0%} of the step")
    return {"floor": found}
