"""Grade submitted notebooks: python -m mae_helpers.grade FOLDER writes FOLDER/grades.csv.

Of a submission only the cells of exercises are run, in a kernel of its own, in an empty folder and each with a time
limit; the checks are the course's, whatever the submission made of them. It is still other people's code: grade where
it may do no harm (a container, an account without rights). No submission, however broken, stops the others.
"""
from __future__ import annotations

import argparse
import csv
import os
import re
import sys
import tempfile
from pathlib import Path

from . import exercises
from .config import InputError

COLUMNS = ("file", "exercise", "passed", "message")
START_SECONDS = 180             # for the first cell, which imports torch


def grade(folder, seconds: int = 60, say=print) -> Path:
    """Grade every notebook below `folder`; the path of the table. Raises `InputError` for a folder without any."""
    folder = Path(folder)
    paths = sorted(p for p in folder.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
    if not paths:
        raise InputError(f"{folder} holds no notebooks: give the folder of the submissions.")
    if not exercises.names():
        raise InputError("notebooks/solutions is not there: grading needs a checkout of the course.")
    with (folder / "grades.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerow(COLUMNS)
        for path in paths:
            try:
                found = grade_one(path, seconds)
            except Exception as error:          # whatever one submission does, the others are still graded
                found = [("", False, f"could not be graded: {_line(error)}")]
            csv.writer(file).writerows((path.relative_to(folder).as_posix(), *row) for row in found)
            file.flush()
            say(f"{path.relative_to(folder).as_posix()}: {sum(row[1] for row in found)} of {len(found)} passed")
    return folder / "grades.csv"


def grade_one(path: Path, seconds: int) -> list[tuple[str, bool, str]]:
    """(exercise, passed, message) for every exercise of the course notebook that a submission belongs to."""
    try:
        cells = [c for c in exercises.read(path)["cells"] if c["cell_type"] == "code"]
        given = {c.get("id", f"cell {i}"): exercises.source(c) for i, c in enumerate(cells)}
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        return [("", False, f"this is no notebook: {_line(error)}")]
    # Names repeat between notebooks (an answer here is an ordinary function there), ids of cells do not.
    tasks, setup = max(map(_tasks, exercises.names()), key=lambda found: (
        sum(cell_id in given for cell_id, _, _ in found[0].values()),
        sum(_defining(variable, given) is not None for _, variable, _ in found[0].values())))
    answers = {task: given.get(cell_id) or _defining(variable, given) for task, (cell_id, variable, _) in tasks.items()}
    if not any(answers.values()):
        return [("", False, "there are no exercises of the course in it")]
    return _run(setup, [(task, answers[task], tasks[task][2]) for task in tasks], seconds)


def _tasks(name: str) -> tuple[dict[str, tuple[str, str, str]], str]:
    """For each exercise of a notebook (id of the answer's cell, what it defines, the check); and the first cell."""
    cells = [c for c in exercises.section(name) if c["cell_type"] == "code"]
    tasks = {}
    for answer, check in zip(cells, cells[1:]):
        if "exercise" in exercises.tags(answer):
            task, variable = re.search(r'checks\.check\("(\w+)", (\w+)\)', exercises.source(check)).groups()
            tasks[task] = answer["id"], variable, exercises.source(check)
    return tasks, exercises.source(cells[0])


def _defining(variable: str, given: dict[str, str]) -> str | None:
    """The last cell that defines a name, for notebooks whose editor has given cells other ids."""
    found = [text for text in given.values() if re.search(rf"^(def|class) {variable}\b|^{variable}\s*=", text, flags=re.M)]
    return found[-1] if found else None


def _run(setup: str, tasks: list[tuple[str, str | None, str]], seconds: int) -> list[tuple[str, bool, str]]:
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
    from nbformat.v4 import new_code_cell, new_notebook
    rows, waiting = [], list(tasks)
    while waiting:                              # a kernel that hangs or dies is replaced for the exercises that remain
        cells = [new_code_cell(text or "") for _, answer, check in waiting for text in (answer, check)]
        notebook = new_notebook(cells=[new_code_cell(setup), *cells])
        with tempfile.TemporaryDirectory() as empty:
            client = NotebookClient(notebook, timeout=START_SECONDS, resources={"metadata": {"path": empty}})
            here = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
            with client.setup_kernel(env={**os.environ, "PYTHONPATH": here}):
                client.execute_cell(notebook.cells[0], 0)
                client.timeout, place = seconds, 1
                while waiting:
                    task, answer, _ = waiting.pop(0)
                    place += 2
                    if answer is None:
                        rows.append((task, False, "its cell is missing"))
                        continue
                    try:
                        for index in (place - 2, place - 1):
                            client.execute_cell(notebook.cells[index], index)
                        rows.append((task, *_verdict(task, notebook.cells[place - 1])))
                    except CellExecutionError as error:
                        rows.append((task, False, f"the cell stops with {error.ename}: {error.evalue}".split("\n")[0]))
                    except (CellTimeoutError, DeadKernelError) as error:
                        slow = isinstance(error, CellTimeoutError)
                        rows.append((task, False, f"stopped after {seconds} seconds" if slow else "it ended the kernel"))
                        break
    return rows


def _verdict(task: str, cell) -> tuple[bool, str]:
    """What the check printed last, on one line; what the learner's own function printed before is left out."""
    text = "".join(o["text"] for o in cell.outputs if o.get("name") == "stdout")
    starts = [m.start() for m in re.finditer(rf"^[✓✗·] {task}\b", text, flags=re.M)]
    message = " ".join(text[starts[-1]:].split()) if starts else "the check printed nothing"
    return message.startswith("✓"), message


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".split("\n")[0][:200]


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m mae_helpers.grade", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("folder", help="where the submitted notebooks are")
    parser.add_argument("--seconds", type=int, default=60, help="time limit of a cell, at least 1 (60)")
    arguments = parser.parse_args(words)
    if arguments.seconds < 1:               # nbclient would take it for "no limit"
        parser.error(f"seconds is {arguments.seconds}: it must be at least 1.")
    try:
        print(f"wrote {grade(arguments.folder, arguments.seconds)}")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
