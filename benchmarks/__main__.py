"""python -m benchmarks: measure and write data/benchmarks/throughput.json. --help has the parts."""
from __future__ import annotations

import argparse
import sys
import time

import torch

from mae_helpers import InputError
from mae_helpers.train import choose_device

from . import alone, epochs, floor, growth, results, show, steps
from .contestants import CONTESTANTS, Task

# What each part measures. The first four decide the goals.
PARTS = {
    "step": "pretraining step of all contestants in all modes, patches of 4",
    "mask": "the encoder's step with 75 % hidden against nothing hidden",
    "epoch": "a whole epoch of pretraining with data and augmentation, against the classic loop",
    "floor": "matrix products alone, and the share of the device's rate",
    "step2": "the pretraining step with patches of 2",
    "finetune": "a whole epoch of training a classifier, against the classic loop",
    "latency": "reconstruction of one picture and of 64",
    "growth": "time against batch, patches, depth and mask ratio",
    "alone": "peak memory and time to the first step, in processes of their own",
}
GOALS = ("step", "mask", "epoch", "floor")
RECORD = 5          # rounds below which nothing is recorded


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="parts:\n" + "\n".join(f"  {name:9} {text}" for name, text in PARTS.items()))
    parser.add_argument("parts", nargs="*", metavar="PART", help="all, goals (the default), or some of the parts below")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"))
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (0: as PyTorch chooses)")
    parser.add_argument("--rounds", type=int, default=7, help=f"turns of each contestant; at least {RECORD} for the record")
    parser.add_argument("--warmup", type=int, default=2, help="steps before the first turn, which do not count")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--images", type=int, default=2_560, help="images of an epoch: a subset, said with the result")
    parser.add_argument("--contestants", nargs="+", default=list(CONTESTANTS), choices=list(CONTESTANTS))
    parser.add_argument("--no-compile", action="store_true", help="eager models only")
    parser.add_argument("--epoch-compile", default="auto", choices=("auto", "on", "off"),
                        help="torch.compile for our epochs, as in the configuration of a run")
    parser.add_argument("--note", default="", help="a word about the machine, kept with the results")
    parser.add_argument("--dry", action="store_true", help="tiny models, one or two turns, nothing written")
    options = parser.parse_args(words)
    wanted = options.parts or ["goals"]
    unknown = [name for name in wanted if name not in (*PARTS, "all", "goals")]
    if unknown:
        parser.error(f"no part {unknown[0]!r}: there are all, goals, {', '.join(PARTS)}")
    chosen = {part for name in wanted for part in {"all": PARTS, "goals": GOALS}.get(name, (name,))}
    options.parts = [part for part in PARTS if part in chosen]
    if min(options.rounds, options.warmup + 1, options.batch_size, options.images, options.threads + 1) < 1:
        parser.error("rounds, batch-size and images must be at least 1, warmup and threads at least 0")
    return options


def for_the_record(o: argparse.Namespace) -> bool:
    """Whether what is measured may stand as the result of this machine: everybody, in all modes, often enough."""
    return not o.dry and not o.no_compile and o.rounds >= RECORD and o.batch_size == Task().batch_size \
        and set(o.contestants) == set(CONTESTANTS)


def measure(part: str, o: argparse.Namespace, device: torch.device) -> dict:
    """The results of one part."""
    task = Task(batch_size=o.batch_size)
    if o.dry:
        task = task.replace(batch_size=2, depth=1, preset="vit_micro")
    modes = (False,) if o.no_compile else (False, True)
    few = max(1, min(3, o.rounds))
    if part in ("step", "step2"):
        return steps.part(task.replace(patch_size=4 if part == "step" else 2), device, names=o.contestants, modes=modes,
                          rounds=o.rounds if part == "step" else min(5, o.rounds), warmup=o.warmup,
                          turn_seconds=0.01 if o.dry else 0.3)
    if part == "mask":
        return growth.masking(task, device, o.rounds)
    if part in ("epoch", "finetune"):
        job = {"epoch": "pretrain", "finetune": "finetune"}[part]
        chosen = results.attentions(results.load().get(results.entry_name(device), {}))["classic loop", "fp32"]
        return epochs.part(task, device, job, 2 * task.batch_size if o.dry else o.images, few, o.epoch_compile,
                           0 if o.dry else None, chosen)
    if part == "floor":
        return floor.part(task, device, o.rounds, rates=not o.dry)
    if part == "latency":
        return growth.latency(task, device, o.contestants, o.rounds)
    if part == "growth":
        return growth.part(task, device, few)
    chosen = results.attentions(results.load().get(results.entry_name(device), {}))
    return alone.part(steps.installed(o.contestants), device.type, torch.get_num_threads(), steps.precisions(device), 4,
                      task.batch_size, modes, chosen)


def main(words: list[str] | None = None) -> int:
    o = arguments(words)
    if o.threads:
        torch.set_num_threads(o.threads)
    try:
        device = choose_device(o.device)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    name = results.entry_name(device)
    print(f"{name}; parts: {', '.join(o.parts)}", flush=True)
    if "step" in o.parts or "step2" in o.parts:
        counts = steps.count(steps.installed(o.contestants), Task())
        print("parameters learned: " + ", ".join(f"{who} {n:,}" for who, n in counts.items()))
        for who in steps.mismatches(counts):
            print(f"{who} is more than {steps.TOLERANCE:.0%} away from ours: the comparison is not one of equals")
    for part in o.parts:
        busy, started = results.busy_share(), time.perf_counter()
        try:
            found = measure(part, o, device)
        except KeyboardInterrupt:
            print(f"{part}: interrupted, what was measured before is kept")
            return 130
        except ImportError as error:
            print(f"{part} is left out: {error}")
            continue
        print(f"{part}: {time.perf_counter() - started:.0f} s" + (
            f", beside other jobs that keep {busy:.0%} of the processor busy" if busy and busy > 0.1 else ""), flush=True)
        new = {"machine": results.machine(device, o.note), "versions": results.versions(), **found,
               "measured": {part: results.stamp(busy)}}
        if for_the_record(o):
            print(show.part(part, results.add(name, new)), flush=True)
        elif not o.dry:
            print(show.part(part, results.merged({}, new)), flush=True)
            print(f"not recorded: that takes all contestants and modes, batches of {Task().batch_size} and {RECORD} rounds "
                  "or more.", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
