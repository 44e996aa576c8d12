"""What limits a step: the time of its matrix products alone, and how far the machine's best product is away.

The products are not written down by hand: one real step is watched, and every matrix product that PyTorch starts is
noted with its shapes, memory layout and precision. Then the same products are done alone, one after another.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from .contestants import OURS, Task, step
from .steps import pictures, precisions
from .timing import alternate, median, seconds, speedup

PRODUCTS = {torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default,
            torch.ops.aten.baddbmm.default}


class Watcher(TorchDispatchMode):
    """Notes each matrix product that runs inside: {(operation, its tensors): how often}."""

    def __init__(self):
        super().__init__()
        self.seen: Counter = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in PRODUCTS:
            self.seen[func, tuple((tuple(t.shape), t.stride(), t.dtype) for t in args)] += 1
        return func(*args, **(kwargs or {}))


def products_of(work: Callable[[], None]) -> Counter:
    with Watcher() as watcher:
        work()
    return watcher.seen


def replay(products: Counter, device: torch.device) -> Callable[[], None]:
    """A function that does the same products, on numbers of its own and with nothing between them."""
    made = [(func, [numbers(*shape, device) for shape in shapes], count) for (func, shapes), count in products.items()]

    def run() -> None:
        for func, tensors, count in made:
            for _ in range(count):
                func(*tensors)
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
    """Operations a second of one large square product: the device's own rate for matrices, as measured."""
    side = side or (8_192 if device.type == "cuda" else 2_048)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    seconds(lambda: a @ b, device)
    return 2 * side ** 3 / min(seconds(lambda: a @ b, device) for _ in range(5))


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
