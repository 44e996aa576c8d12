"""The file of results, data/benchmarks/throughput.json: one entry for each device, replaced part by part."""
from __future__ import annotations

import os
import platform
import statistics
import time
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from mae_helpers.config import project_root
from mae_helpers.runs import device_name, read_json, write_json
from mae_helpers.train import bf16_pays

from .contestants import CONTESTANTS, OURS, PEERS
from .timing import Times, fastest, median, speedup, spread

PATH = project_root() / "data" / "benchmarks" / "throughput.json"
PACKAGES = ("torch", "torchvision", "numpy", "transformers", "vit-pytorch", "lightly", "timm")
ROW = {"contestant": str, "precision": str, "compiled": bool, "patch_size": int, "images_per_second": float,
       "spread": float}
GOAL_PATCH = 4              # the goals are about ViT-Tiny with patches of 4


# The file

def entry_name(device: torch.device) -> str:
    """What the entry of this machine is called. Processors of one name may have bf16 instructions or not, and one without
    them is another machine."""
    return device_name(device) + ("" if has_bf16(device) else ", fp32 only")


def has_bf16(device: torch.device) -> bool:
    """Whether bf16 is worth a measurement: on a CPU without instructions for it, it takes many times as long as fp32."""
    return device.type != "cpu" or bf16_pays()


def load(path: Path = PATH) -> dict[str, dict]:
    """Entries by the name of their device; empty where nothing was measured yet."""
    return read_json(path)["devices"] if path.exists() else {}


def save(entries: dict[str, dict], path: Path = PATH) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"devices": dict(sorted(entries.items()))})


def add(name: str, parts: dict, path: Path = PATH) -> dict:
    """Put `parts` into the entry of the device `name`; other devices, and parts that were not measured now, stay."""
    entries = load(path)
    entries[name] = merged(entries.get(name, {}), parts)
    save(entries, path)
    return entries[name]


def merged(entry: dict, parts: dict) -> dict:
    """An entry with `parts` in the place of what was measured of them before."""
    entry = {"machine": {}, "versions": {}, "rows": [], "ratio_best": None, "ratio_fp32": None,
             "ratio_epoch_classic": None, **entry}
    patches = {row["patch_size"] for row in parts.get("rows", ())}
    for key, value in parts.items():
        if key in ("rows", "comparisons"):      # of the patch sizes measured now, the others stay
            value = sorted_rows([row for row in entry.get(key, []) if row["patch_size"] not in patches] + value)
        elif key == "measured":
            value = {**entry.get(key, {}), **value}
        entry[key] = value
    return entry


def sorted_rows(rows: list[dict]) -> list[dict]:
    return sorted(rows, key=lambda row: -row["patch_size"])


def problems(entries: dict[str, dict]) -> list[str]:
    """What is wrong with the file, in sentences; empty for a good one."""
    found = []
    for name, entry in entries.items():
        found += [f"{name}: no {key}" for key in ("machine", "versions", "rows", "ratio_best", "ratio_fp32",
                                                  "ratio_epoch_classic") if key not in entry]
        for row in entry.get("rows", ()):
            wrong = [key for key, kind in ROW.items() if not isinstance(row.get(key), kind)]
            found += [f"{name}: {row.get('contestant')} has a wrong {key}" for key in wrong]
            found += [f"{name}: {row['contestant']} at {row['images_per_second']} images/s"
                      for _ in [0] if not wrong and row["images_per_second"] <= 0]
    return found


# From times to rows and ratios

def rows(times: Times, patch_size: int, batch_size: int, more: dict | None = None) -> list[dict]:
    """One row for each (contestant, precision, compiled); `more` has further columns by the same key."""
    return [{"contestant": key[0], "precision": key[1], "compiled": key[2], "patch_size": patch_size,
             "images_per_second": round(batch_size / median(values), 1), "spread": round(spread(values), 4),
             "batch_size": batch_size, "rounds": len(values), **(more or {}).get(key, {})}
            for key, values in times.items()]


def comparisons(times: Times, patch_size: int) -> list[dict]:
    """Ours against each peer, at equal precision and each one's best, with the same in eager mode only.

    `kind` is best, fp32 or bf16; `eager` tells whether compiled models are left out. Which mode is a contestant's best
    is decided by its median; the ratio is then taken round by round.
    """
    found = []
    for eager in (False, True):
        for kind, precisions in (("best", ("fp32", "bf16")), ("fp32", ("fp32",)), ("bf16", ("bf16",))):
            modes = [(p, c) for p in precisions for c in ((False,) if eager else (False, True))]
            ours = fastest(times, [(OURS, *mode) for mode in modes])
            for peer in PEERS:
                theirs = fastest(times, [(peer, *mode) for mode in modes])
                if ours and theirs:
                    found.append({"patch_size": patch_size, "kind": kind, "eager": eager, "peer": peer,
                                  "ours": told(ours), "theirs": told(theirs), **speedup(times[theirs], times[ours])})
    return found


def told(key: tuple) -> str:
    return f"{key[1]} {'compiled' if key[2] else 'eager'}"


def against_fastest(found: list[dict], kind: str, eager: bool = False, patch_size: int = GOAL_PATCH) -> dict | None:
    """The comparison with the peer that comes closest, None where there is none."""
    fitting = [each for each in found if (each["kind"], each["eager"], each["patch_size"]) == (kind, eager, patch_size)]
    return min(fitting, key=lambda each: each["ratio"]) if fitting else None


def headline(found: list[dict]) -> dict[str, float | None]:
    """The ratios that the goals are about: ours against the fastest peer, patches of 4."""
    best, fp32 = (against_fastest(found, kind) for kind in ("best", "fp32"))
    return {"ratio_best": best and best["ratio"], "ratio_fp32": fp32 and fp32["ratio"]}


def attentions(entry: dict, patch_size: int = GOAL_PATCH) -> dict:
    """Which attention each (contestant, precision) had when the entry was measured; before that its usual one."""
    found = {(name, precision): CONTESTANTS[name].attentions[0] for name in CONTESTANTS for precision in ("fp32", "bf16")}
    return found | {(row["contestant"], row["precision"]): row["attention"] for row in entry.get("rows", ())
                    if row["patch_size"] == patch_size and not row["compiled"]}


# The machine

def machine(device: torch.device, note: str = "") -> dict:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return {"device": device_name(device), "type": device.type, "cores": os.cpu_count(),
            "threads": torch.get_num_threads(), "memory_gb": round(memory / 2 ** 30),
            "system": f"{platform.system()} {platform.machine()}", "note": note}


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            pass
    return found | ({"torch": torch.__version__, "cuda": torch.version.cuda} if torch.cuda.is_available() else {})


def busy_share(pause: float = 0.5, looks: int = 5) -> float | None:
    """How busy others keep the processor while this program waits, 0 … 1; None where the system does not tell."""
    shares = []
    for _ in range(looks):
        before = _processor_times()
        time.sleep(pause)
        after = _processor_times()
        if not before or not after or after[1] == before[1]:
            return None
        shares.append(1 - (after[0] - before[0]) / (after[1] - before[1]))
    return round(statistics.median(shares), 3)


def _processor_times() -> tuple[int, int] | None:
    """(idle, all) clock ticks since the start, on Linux."""
    try:
        with open("/proc/stat") as file:
            ticks = [int(word) for word in file.readline().split()[1:9]]
    except (OSError, ValueError):
        return None
    return ticks[3] + ticks[4], sum(ticks)


def stamp(busy: float | None) -> dict:
    """When a part was measured, and whether something else ran beside it."""
    return {"when": datetime.now(timezone.utc).isoformat(timespec="seconds"), "busy_before": busy,
            "beside_other_jobs": None if busy is None else busy > 0.1}
