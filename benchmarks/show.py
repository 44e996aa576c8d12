"""The results as tables: python -m benchmarks.show prints them, --write puts them into the pages that have a
place, and draws img/throughput.png.

A place is a pair of lines, <!-- benchmark:NAME --> and <!-- end of benchmark:NAME -->. Nothing between them is written by
hand, and a test says when they are not what the file of results gives.
"""
from __future__ import annotations

import re
import sys
from pathlib import Path

from mae_helpers import plots
from mae_helpers.config import project_root

from . import results
from .contestants import CONTESTANTS

PAGES = ("README.md", "benchmarks/README.md")
BESIDE = "*beside other jobs*"


def table(header: list[str], lines: list[list]) -> str:
    """A Markdown table; None is a dash."""
    cells = [header, *[["–" if c is None else str(c) for c in line] for line in lines]]
    return "\n".join(["| " + " | ".join(cells[0]) + " |", "|---" * len(header) + "|",
                      *("| " + " | ".join(line) + " |" for line in cells[1:])])


# One function a table: entry -> Markdown, or "" where nothing was measured

def steps(entry: dict) -> str:
    """Images a second of each contestant, one column a mode."""
    modes = [("fp32", False), ("fp32", True), ("bf16", False), ("bf16", True)]
    found = {(r["patch_size"], r["contestant"], r["precision"], r["compiled"]): r for r in entry["rows"]}
    lines = []
    for patch in sorted({key[0] for key in found}, reverse=True):
        for who in CONTESTANTS:
            cells = [found.get((patch, who, *mode)) for mode in modes]
            if any(cells):
                lines.append([patch, who, *(c and f"{c['images_per_second']:,.0f} ± {c['spread']:.0%}" for c in cells),
                              f"{next(c for c in cells if c).get('parameters', 0):,}"])
    return table(["patch", "images/s", "fp32", "fp32 compiled", "bf16", "bf16 compiled", "parameters"], lines) \
        if lines else ""


def ratios(entry: dict) -> str:
    """Ours against each peer: at equal precision, and each one's best."""
    found = [c for c in entry.get("comparisons", ()) if not c["eager"]]
    lines = []
    for patch in sorted({c["patch_size"] for c in found}, reverse=True):
        for peer in CONTESTANTS:
            mine = {c["kind"]: c for c in found if (c["patch_size"], c["peer"]) == (patch, peer)}
            if mine:
                lines.append([patch, peer, *(mine.get(k) and f"{mine[k]['ratio']:.2f} ({mine[k]['low']:.2f}–"
                                             f"{mine[k]['high']:.2f})" for k in ("fp32", "bf16", "best")),
                              mine["best"]["ours"] + " / " + mine["best"]["theirs"] if "best" in mine else None])
    return table(["patch", "times as fast as", "fp32", "bf16", "best", "best modes, ours / theirs"], lines) if lines else ""


def goals(entry: dict) -> str:
    """What was to be reached, beside what was."""
    gpu, mask = entry["machine"].get("type") == "cuda", entry.get("mask", {})
    ours = [r["images_per_second"] for r in entry["rows"] if (r["contestant"], r["patch_size"]) == ("mae_helpers", 4)]
    lines = [] if gpu else [
        ["pretraining step, best against the fastest peer's best", "1.2 / 1.5", entry["ratio_best"]],
        ["the same at fp32, against the fastest peer", "1.1 / 1.3", entry["ratio_fp32"]]]
    lines.append(["whole epoch against the classic loop", "20 / 50" if gpu else "3 / 4", entry["ratio_epoch_classic"]])
    if gpu:
        lines += [["images/s of pretraining", "60,000 / 150,000", f"{max(ours):,.0f}" if ours else None],
                  ["data and augmentation, share of an epoch", "5 % / 2 %",
                   f"{100 * entry['epoch']['data_share']:.1f} %" if "epoch" in entry else None]]
    lines += [[f"encoder's step, mask 0.75 against mask 0, {p}", "2.5 / 3.5", mask[p]["ratio"]]
              for p in ("fp32", "bf16") if p in mask]
    return table(["ViT-Tiny/4", "goal / stretch", "measured"], lines)


def epoch(entry: dict) -> str:
    lines = [[job, f"{e['images']:,}", f"{e['images_per_second']:,.0f}", f"{e['classic_images_per_second']:,.0f}",
              f"{e['ratio']:.2f} ({e['low']:.2f}–{e['high']:.2f})", f"{100 * e['data_share']:.1f} %", e["precision"],
              e["compile"]] for job in ("epoch", "finetune") if (e := entry.get(job))]
    return table(["whole epoch", "images", "ours, images/s", "classic loop", "ratio", "data and augmentation",
                  "our precision", "compile"], lines) if lines else ""


def floors(entry: dict) -> str:
    lines = [[f["precision"], f"{1e3 * f['step_seconds']:,.0f} ms", f"{1e3 * f['products_seconds']:,.0f} ms",
              f"{f['products_share']:.0%}", f["gflop_per_image"], f"{f['tflops_step']:.3f}", f"{f['tflops_products']:.3f}",
              f["tflops_device"] and f"{f['tflops_device']:.3f}",
              f["share_of_device"] and f"{f['share_of_device']:.0%}"] for f in entry.get("floor", ())]
    return table(["", "step", "its products alone", "share", "GFLOP an image", "TFLOP/s, step", "products",
                  "one large product", "step / large product"], lines) if lines else ""


def latency(entry: dict) -> str:
    found = {(e["contestant"], e["pictures"]): e for e in entry.get("latency", ())}
    lines = [[who, *(found.get((who, n)) and f"{found[who, n]['milliseconds']:.1f}" for n in (1, 64))]
             for who in CONTESTANTS if (who, 1) in found or (who, 64) in found]
    return table(["reconstruction, fp32 eager", "one picture, ms", "64 pictures, ms"], lines) if lines else ""


def grown(entry: dict) -> str:
    lines = [[g["axis"], g["value"], f"{g['images_per_second']:,.0f}", f"{g['milliseconds_per_step']:,.1f}"]
             for g in entry.get("growth", ())]
    return table(["ours against", "", "images/s", "ms a step"], lines) if lines else ""


def processes(entry: dict) -> str:
    lines = [[a["contestant"], a["precision"], "compiled" if a["compiled"] else "eager", f"{a['peak_mb']:,}",
              f"{a['peak_above_start_mb']:,}", f"{a['import_seconds']:.1f}", f"{a['first_step_seconds']:.1f}"]
             for a in entry.get("alone", ())]
    return table(["in a process of its own", "", "", "peak memory, MB", "of it model and training", "imports, s",
                  "building and first step, s"], lines) if lines else ""


TABLES = {"goals": goals, "steps": steps, "ratios": ratios, "epoch": epoch, "floor": floors, "latency": latency,
          "growth": grown, "alone": processes}
NEEDS = {"goals": "step", "steps": "step", "ratios": "step"}           # the part that a table comes from, if named otherwise
OF_PART = {"step": ("steps", "ratios"), "step2": ("steps", "ratios"), "mask": ("goals",), "epoch": ("epoch", "goals"),
           "finetune": ("epoch",)}


def part(name: str, entry: dict) -> str:
    """What a part's results look like in a terminal."""
    return "\n\n".join(TABLES[each](entry) for each in OF_PART.get(name, (name,)))


def section(name: str, entries: dict[str, dict]) -> str:
    """A table for each device, with the machine above it; says when other jobs ran beside."""
    told = []
    for device, entry in entries.items():
        text = TABLES[name](entry)
        if text:
            stamp = entry.get("measured", {}).get(NEEDS.get(name, name), {})
            words = [device, f"torch {entry['versions'].get('torch')}", entry["machine"].get("note"),
                     stamp.get("when", "")[:10], BESIDE if stamp.get("beside_other_jobs") else ""]
            told.append("; ".join(word for word in words if word) + ":\n\n" + text)
    return "\n\n".join(told) or "Not measured yet: `make bench`."


def fill(page: str, entries: dict[str, dict]) -> str:
    """A page with every place filled anew."""
    def new(found):
        name = found[1]
        return f"<!-- benchmark:{name} -->\n\n{section(name, entries)}\n\n<!-- end of benchmark:{name} -->"
    return re.sub(r"<!-- benchmark:(\w+) -->.*?<!-- end of benchmark:\1 -->", new, page, flags=re.S)


def figure(entries: dict[str, dict], patch_size: int = results.GOAL_PATCH):
    """Images a second of everybody in each mode, on the first device that has them, as a matplotlib figure; or None."""
    for device, entry in entries.items():
        found = {}
        for row in entry["rows"]:
            if row["patch_size"] == patch_size:
                mode = f"{row['precision']} {'compiled' if row['compiled'] else 'eager'}"
                found.setdefault(row["contestant"], {})[mode] = [row["images_per_second"]]
        if found:
            return plots.intervals(found, "pretraining step, images/s (more is better)",
                                   f"ViT-Tiny/{patch_size}, batch {entry['rows'][0]['batch_size']}: {device}")


def main(words: list[str]) -> int:
    entries = results.load()
    if "--write" not in words:
        print("\n\n".join(f"## {name}\n\n{section(name, entries)}" for name in TABLES))
        return 0
    for name in PAGES:
        page = Path(project_root(), name)
        page.write_text(fill(page.read_text(encoding="utf-8"), entries), encoding="utf-8")
    drawn = figure(entries)
    if drawn is not None:
        (project_root() / "img" / "throughput.png").write_bytes(plots.png(drawn, dpi=120))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
