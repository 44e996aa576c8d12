"""The exercises of the notebooks, made from their solutions: python -m mae_helpers.exercises.

`notebooks/solutions/NN_….ipynb` is where exercises are written. Its cells tagged "exercises" go into the notebook of
the same name, before "## Takeaways". Lines between `# BEGIN SOLUTION` and `# END SOLUTION` stay behind; what follows
`# STUB: ` in such a block takes their place.
"""
from __future__ import annotations

import json
import sys
from pathlib import Path

from .config import InputError, project_root

INTRO = """## Exercises

A question, a cell for your lines, and a check that says at once what it expected, what it got, and a hint. Keep what an
exercise needs in its own cell. Predictions are for you alone: write one down, then look.

Solutions are [in a notebook of their own](solutions/{name}.ipynb)."""


def names() -> list[str]:
    return sorted(path.stem for path in (project_root() / "notebooks" / "solutions").glob("*.ipynb"))


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def source(cell: dict) -> str:
    return "".join(cell["source"])


def tags(cell: dict) -> list[str]:
    return cell["metadata"].get("tags", [])


def stub(text: str) -> str:
    """The source of a solution's cell as the learner gets it."""
    kept, inside = [], False
    for line in text.splitlines():
        mark = line.strip()
        if mark in ("# BEGIN SOLUTION", "# END SOLUTION"):
            inside = mark == "# BEGIN SOLUTION"
        elif not inside:
            kept.append(line)
        elif mark.startswith("# STUB: "):
            kept.append(line.replace("# STUB: ", "", 1))
    return "\n".join(kept)


def section(name: str) -> list[dict]:
    """The cells of the exercises of a notebook, with stubs and without outputs."""
    intro = {"cell_type": "markdown", "id": f"ex{name[:2]}-intro", "metadata": {"tags": ["exercises"]},
             "source": INTRO.format(name=name).splitlines(keepends=True)}
    cells = read(project_root() / "notebooks" / "solutions" / f"{name}.ipynb")["cells"]
    blank = {"markdown": {}, "code": {"execution_count": None, "outputs": []}}
    return [intro] + [{**cell, **blank[cell["cell_type"]], "source": stub(source(cell)).splitlines(keepends=True)}
                      for cell in cells if "exercises" in tags(cell)]


def build(name: str) -> bool:
    """Put the exercises into the notebook; True if it changed. Other cells, and outputs of unchanged ones, stay."""
    path = project_root() / "notebooks" / f"{name}.ipynb"
    before = path.read_text(encoding="utf-8")
    notebook = json.loads(before)
    ran = {cell["id"]: cell for cell in notebook["cells"] if "exercises" in tags(cell)}
    others = [cell for cell in notebook["cells"] if cell["id"] not in ran]
    place = next((i for i, cell in enumerate(others) if source(cell).startswith("## Takeaways")), None)
    if place is None:
        raise InputError(f"{path.name} has no cell that begins with '## Takeaways': the exercises go before it.")
    fresh = [ran[c["id"]] if c["id"] in ran and source(ran[c["id"]]) == source(c) else c for c in section(name)]
    notebook["cells"] = others[:place] + fresh + others[place:]
    path.write_text(after := json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return after != before


def main() -> int:
    try:
        for each in names():
            print(f"{each}: {'changed, run it again for its outputs' if build(each) else 'as it was'}")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
