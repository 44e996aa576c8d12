"""The pretraining step: forward, backward and optimizer of every contestant in every mode, in turns."""
from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib.util import find_spec

import torch

from mae_helpers.train import has_triton

from . import results
from .contestants import CONTESTANTS, OURS, Task, parameters, step
from .timing import Times, alternate, fastest

PRECISIONS = ("fp32", "bf16")
TOLERANCE = 0.03            # how far a peer's number of parameters may be from ours, as a share


def installed(names, say: Callable[[str], None] = print) -> list[str]:
    """Those of the contestants whose package is there; the others are said."""
    found = []
    for name in names:
        if CONTESTANTS[name].package and find_spec(CONTESTANTS[name].package) is None:
            say(f"{name} is left out: {CONTESTANTS[name].package} is not installed (make bench installs it)")
        else:
            found.append(name)
    return found


def can_compile(device: torch.device, say: Callable[[str], None] = print) -> bool:
    if device.type == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++", "cl"))):
        say("compiled models are left out: torch.compile needs a C++ compiler and none was found")
        return False
    if device.type == "cuda" and not has_triton():
        say("compiled models are left out: torch.compile needs Triton, which is not installed")
        return False
    return True


def precisions(device: torch.device, say: Callable[[str], None] = print) -> tuple[str, ...]:
    if not results.has_bf16(device):
        say("bf16 is left out: this processor has no instructions for it")
        return PRECISIONS[:1]
    return PRECISIONS


def count(names, task: Task) -> dict[str, int]:
    """Learned parameters of each contestant."""
    return {name: parameters(CONTESTANTS[name].build(task, CONTESTANTS[name].attentions[0])) for name in names}


def pictures(task: Task, device: torch.device) -> torch.Tensor:
    """What all are trained on: normalised numbers, because time does not depend on what pictures show."""
    shape = (task.batch_size, 3, task.image_size, task.image_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)


def choose_attentions(names, task: Task, images: torch.Tensor, precisions, say, turn_seconds: float = 0.3) -> dict:
    """For peers that let their user choose: the faster kind of attention in eager mode, by (contestant, precision)."""
    works = {(name, precision, kind): step(name, task, images, precision, attention=kind)
             for name in names for precision in precisions for kind in CONTESTANTS[name].attentions
             if len(CONTESTANTS[name].attentions) > 1}
    times = alternate(works, images.device, rounds=3, warmup=1, turn_seconds=turn_seconds, say=say)
    chosen = {(name, precision): CONTESTANTS[name].attentions[0] for name in names for precision in precisions}
    for name, precision in chosen:
        best = fastest(times, [key for key in times if key[:2] == (name, precision)])
        chosen[name, precision] = best[2] if best else chosen[name, precision]
    return chosen


def measure(task: Task, device: torch.device, names=tuple(CONTESTANTS), precisions=PRECISIONS, modes=(False, True),
            rounds: int = 7, warmup: int = 2, turn_seconds: float = 0.3, attentions: dict | None = None,
            say: Callable[[str], None] = print) -> tuple[Times, dict]:
    """(seconds a step by (contestant, precision, compiled), what else is told of them)."""
    torch._dynamo.reset()                   # code compiled for another size must not make this one's sizes variable
    torch._dynamo.config.recompile_limit = 64           # both precisions of everybody, none falls back to eager
    names, images = installed(names, say), pictures(task, device)
    modes = [mode for mode in modes if not mode or can_compile(device, say)]
    chosen = attentions or choose_attentions(names, task, images, precisions, say, turn_seconds)
    works = {}
    for compiled in modes:
        for precision in precisions:
            for name in names:
                works[name, precision, compiled] = step(name, task, images, precision, compiled, chosen[name, precision])
    times = alternate(works, device, rounds, warmup, turn_seconds, say)
    return times, {key: {"attention": chosen[key[:2]], "parameters": works[key].parameters} for key in times}


def part(task: Task, device: torch.device, **options) -> dict:
    """What goes into the results for one patch size."""
    times, more = measure(task, device, precisions=precisions(device), **options)
    found = results.comparisons(times, task.patch_size)
    ratios = results.headline(found) if task.patch_size == results.GOAL_PATCH else {}
    return {"rows": results.rows(times, task.patch_size, task.batch_size, more), "comparisons": found, **ratios}


def mismatches(counts: dict[str, int]) -> list[str]:
    """Contestants whose number of parameters is too far from ours."""
    return [name for name, n in counts.items() if abs(n / counts[OURS] - 1) > TOLERANCE]
