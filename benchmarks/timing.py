"""Taking turns, medians and ratios: how times become numbers that drift and noise cannot bend.

On a machine that others use, and on a laptop that gets warm, speed drifts by tens of per cent within minutes. So nobody
is measured "first": in every round each contestant has one turn, the order moves on by one from round to round, and a
ratio is taken within a round before the median over rounds.
"""
from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Hashable

import torch

Times = dict[Hashable, list[float]]         # seconds a step, one entry a round


def synchronize(device: torch.device) -> None:
    """Wait for what a GPU was given to do; a CPU is done when the call returns."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    elif device.type == "mps":
        torch.mps.synchronize()


def seconds(work: Callable[[], object], device: torch.device, times: int = 1) -> float:
    """The mean time of one call over `times` calls in a row."""
    synchronize(device)
    started = time.perf_counter()
    for _ in range(times):
        work()
    synchronize(device)
    return (time.perf_counter() - started) / max(1, times)


def turn(work: Callable[[], object], device: torch.device, times: int) -> float:
    """The mean time of `times` calls after one that does not count, because it finds caches and memory as another work left
    them. A work that has a context which its user's loop opens around the steps carries it as `around`."""
    with getattr(work, "around", contextlib.nullcontext)():
        work()
        return seconds(work, device, times)


def alternate(works: dict[Hashable, Callable[[], object]], device: torch.device, rounds: int = 7, warmup: int = 2,
              turn_seconds: float = 0.3, say: Callable[[str], None] = print) -> Times:
    """Seconds a call of each work, one number a round, for the rounds that were completed by all.

    Each work first runs `warmup` times, which may compile and is not counted. A turn repeats short works until it lasts
    about `turn_seconds`. A work that fails is said in one sentence and left out; Ctrl-C ends the rounds early.
    """
    works, repeats, times = dict(works), {}, {}
    for key in list(works):
        try:
            seconds(works[key], device, warmup)
            repeats[key] = max(1, math.ceil(turn_seconds / max(turn(works[key], device, 1), 1e-6)))
            times[key] = []
        except Exception as error:              # a peer may break in any way, and the others go on
            del works[key]
            say(f"{told(key)} is left out: {sentence(error)}")
    for number in range(rounds):
        keys = list(works)
        shift = number % max(1, len(keys))
        try:
            found = {key: turn(works[key], device, repeats[key]) for key in keys[shift:] + keys[:shift]}
        except KeyboardInterrupt:
            say(f"interrupted: {number} of {rounds} rounds count")
            break
        for key, value in found.items():
            times[key].append(value)
    return {key: values for key, values in times.items() if values}


def told(key: Hashable) -> str:
    return " ".join(map(str, key)) if isinstance(key, tuple) else str(key)


def sentence(error: BaseException) -> str:
    """The first line of an error, short."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"{type(error).__name__}: {lines[0][:160]}"


def median(values: list[float]) -> float:
    return statistics.median(values)


def spread(values: list[float]) -> float:
    """The middle half of the values, as a share of their median; 0 for one value."""
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / median(values)


def ratios(slow: list[float], fast: list[float]) -> list[float]:
    """How many times faster `fast` was, round by round; both are seconds."""
    return [s / f for s, f in zip(slow, fast, strict=True)]


def speedup(slow: list[float], fast: list[float]) -> dict[str, float]:
    """The median of the ratios within rounds, with the lowest and the highest."""
    found = ratios(slow, fast)
    return {"ratio": round(median(found), 3), "low": round(min(found), 3), "high": round(max(found), 3),
            "rounds": len(found)}


def fastest(times: Times, keys: list[Hashable]) -> Hashable | None:
    """The key with the shortest median, None when none of them was measured."""
    there = [key for key in keys if key in times]
    return min(there, key=lambda key: median(times[key])) if there else None
