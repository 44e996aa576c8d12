"""Peak memory and the time to the first step, each contestant in a process of its own.

python -m benchmarks.alone NAME PRECISION eager|compiled ATTENTION PATCH BATCH DEVICE THREADS prints one line of JSON.
"""
from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

MARK = "result: "
STATUS = Path("/proc/self/status")


def inside(name: str, precision: str, mode: str, attention: str, patch_size: int, batch_size: int, device: str,
           threads: int) -> dict:
    """Import, build, three steps; what runs in the process that is watched."""
    started = time.perf_counter()
    import torch
    torch.set_num_threads(threads)
    from .contestants import Task, step
    from .steps import pictures
    from .timing import seconds, turn
    device = torch.device(device)
    task = Task(patch_size=patch_size, batch_size=batch_size)
    images = pictures(task, device)
    before, ready = peak(device), time.perf_counter()
    work = step(name, task, images, precision, mode == "compiled", attention)
    first = seconds(work, device) + time.perf_counter() - ready
    turn(work, device, 2)
    return {"contestant": name, "precision": precision, "compiled": mode == "compiled", "patch_size": patch_size,
            "batch_size": batch_size, "import_seconds": round(ready - started, 2), "first_step_seconds": round(first, 2),
            "peak_mb": round(peak(device)), "peak_above_start_mb": round(peak(device) - before)}


def peak(device) -> float:
    """The most memory so far, in MB: the process's on a CPU, what PyTorch gave out on a GPU.

    On Linux a process inherits `ru_maxrss` from the one that started it, which may have been larger; VmHWM is its own.
    """
    import torch
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2 ** 20
    own = re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text()) if STATUS.exists() else None
    if own:
        return int(own[1]) / 2 ** 10
    import resource
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2 ** 20 if sys.platform == "darwin" else 2 ** 10)


def run(name: str, precision: str, compiled: bool, attention: str, patch_size: int, batch_size: int, device: str,
        threads: int, say: Callable[[str], None] = print) -> dict | None:
    """The same, in a process of its own with an empty cache of compiled code; None, and a sentence, where it fails."""
    words = [name, precision, "compiled" if compiled else "eager", attention, patch_size, batch_size, device, threads]
    with tempfile.TemporaryDirectory() as cache:
        done = subprocess.run([sys.executable, "-m", "benchmarks.alone", *map(str, words)], capture_output=True, text=True,
                              cwd=Path(__file__).parent.parent, env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache,
                                                                     "OMP_NUM_THREADS": str(threads)})
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if lines:
        return json.loads(lines[-1].removeprefix(MARK))
    say(f"{name} {words[2]} {precision} alone is left out: {(done.stderr.strip().splitlines() or ['no word'])[-1][:160]}")
    return None


def part(names, device: str, threads: int, precisions, patch_size: int, batch_size: int, modes, attentions: dict,
         say: Callable[[str], None] = print) -> dict:
    """Eager in all `precisions`, compiled in the last of them; `attentions` is the kind for each (name, precision)."""
    found = [run(name, precision, compiled, attentions[name, precision], patch_size, batch_size, device, threads, say)
             for compiled in modes for precision in (precisions[-1:] if compiled else precisions) for name in names]
    return {"alone": [one for one in found if one]}


if __name__ == "__main__":
    values = sys.argv[1:]
    print(MARK + json.dumps(inside(*values[:4], *map(int, values[4:6]), values[6], int(values[7]))))
