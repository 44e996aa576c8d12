"""Has this package become slower beside its fastest peer? make bench-guard; two minutes, ends with 1 where it has.

Compared is a ratio within one run with the ratio that was recorded on the same kind of device, so a slow hour of the
machine does not matter. Eager models only: compiling takes longer than all of this.
"""
from __future__ import annotations

import argparse
import sys

import torch

from mae_helpers.train import choose_device

from . import results
from .contestants import Task
from .steps import measure

ALLOWED = 0.20


def verdict(now: float, recorded: float, allowed: float = ALLOWED) -> tuple[bool, str]:
    """(whether it is good, a sentence)."""
    drop = 1 - now / recorded
    text = f"{now:.2f} times the fastest peer's speed, recorded {recorded:.2f}: "
    if drop > allowed:
        return False, text + f"{drop:.0%} less, more than the {allowed:.0%} that are allowed"
    return True, text + (f"{drop:.0%} less, within the {allowed:.0%}" if drop > 0 else "no less than before")


def recorded(entry: dict) -> dict | None:
    """The comparison that the guard repeats: the fastest peer, eager, in the precision that was best."""
    return results.against_fastest(entry.get("comparisons", []), "best", eager=True)


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guard", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"))
    parser.add_argument("--threads", type=int, default=0, help="0: as PyTorch chooses")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args(words)
    if options.threads:
        torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    name = results.entry_name(device)
    entry = results.load().get(name, {})
    before = recorded(entry)
    if before is None:
        print(f"nothing is recorded for {name}: make bench does that")
        return 2
    precisions = tuple({before["ours"].split()[0], before["theirs"].split()[0]})
    batch = next(row["batch_size"] for row in entry["rows"] if row["patch_size"] == results.GOAL_PATCH)
    times, _ = measure(Task(patch_size=results.GOAL_PATCH, batch_size=batch), device, precisions=precisions, modes=(False,),
                       rounds=options.rounds, attentions=results.attentions(entry))
    now = results.against_fastest(results.comparisons(times, results.GOAL_PATCH), "best", eager=True)
    if now is None:
        print("no peer could be measured: make bench installs them")
        return 2
    good, text = verdict(now["ratio"], before["ratio"])
    print(f"{'good' if good else 'SLOWER'}: {text} (fastest peer: {now['peer']}, {now['theirs']})")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
