"""One source for exercises: the course notebooks hold the stubs of the solutions; grading survives every submission."""
import contextlib
import csv
import io
import json
import re

import pytest

from mae_helpers import exercises, grade
from mae_helpers.config import InputError, project_root
from mae_helpers.mistakes import EXERCISES

NOTEBOOKS = project_root() / "notebooks"
NAMES = exercises.names()


def graded(cells):
    """(task, source of the answer, source of the check) for each exercise among some cells."""
    code = [c for c in cells if c["cell_type"] == "code"]
    pairs = [(a, b) for a, b in zip(code, code[1:]) if "exercise" in exercises.tags(a)]
    texts = [(exercises.source(a), exercises.source(b)) for a, b in pairs]
    return [(re.search(r'check\("(\w+)"', check).group(1), answer, check) for answer, check in texts]


def ran(cells):
    """What the cells print when they are run one after the other in an empty namespace."""
    said, namespace = io.StringIO(), {}
    with contextlib.redirect_stdout(said):
        for text in cells:
            exec(compile(text, "<cell>", "exec"), namespace)
    return said.getvalue()


def both(name):
    """The cells of the exercises, as stubs and solved."""
    cells = exercises.read(NOTEBOOKS / "solutions" / f"{name}.ipynb")["cells"]
    return exercises.section(name), [c for c in cells if "exercises" in exercises.tags(c)]


TASKS = [(name, i) for name in NAMES for i in range(len(graded(exercises.section(name))))]


def test_every_notebook_has_its_exercises_and_every_exercise_its_notebook():
    assert NAMES == sorted(p.stem for p in NOTEBOOKS.glob("*.ipynb"))
    found = [task for name in NAMES for task, _, _ in graded(exercises.section(name))]
    assert sorted(found) == sorted(EXERCISES) and all(len(graded(exercises.section(name))) >= 3 for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_course_notebook_holds_what_the_solution_says(name):
    cells = exercises.read(NOTEBOOKS / f"{name}.ipynb")["cells"]
    held = [i for i, c in enumerate(cells) if "exercises" in exercises.tags(c)]
    bare = [{**c, "outputs": [], "execution_count": None} if c["cell_type"] == "code" else c for c in cells]
    assert [bare[i] for i in held] == exercises.section(name), "run python -m mae_helpers.exercises"
    assert exercises.source(cells[held[-1] + 1]).startswith("## Takeaways") and len(held) == held[-1] - held[0] + 1


@pytest.mark.parametrize("name, number", TASKS)
def test_a_stub_runs_and_is_told_kindly_and_the_solution_passes(name, number):
    """Each exercise alone, after the first cell only, as it is graded."""
    stubs, solutions = both(name)
    first = exercises.source(next(c for c in stubs if c["cell_type"] == "code"))
    task, answer, check = graded(stubs)[number]
    assert ran([first, answer, check]).startswith(f"· {task}: not yet.")
    assert "SOLUTION" not in answer and "STUB" not in answer
    task, answer, check = graded(solutions)[number]
    assert ran([first, answer, check]).startswith(f"✓ {task}") and "# BEGIN SOLUTION" in answer


@pytest.mark.parametrize("name", NAMES)
def test_a_learner_who_only_reads_sees_the_solution_nowhere(name):
    stubs, solutions = both(name)
    secret = [line.strip() for cell in solutions for block in
              re.findall(r"# BEGIN SOLUTION\n(.*?)# END SOLUTION", exercises.source(cell), flags=re.S)
              for line in block.splitlines() if line.strip() and "# STUB: " not in line]
    page = "\n".join(exercises.source(c) for c in stubs)
    assert secret and [line for line in secret if line in page] == []


@pytest.mark.parametrize("name", NAMES)
def test_stored_outputs_of_solutions_are_those_of_a_clean_run(name):
    notebook = exercises.read(NOTEBOOKS / "solutions" / f"{name}.ipynb")
    code = [c for c in notebook["cells"] if c["cell_type"] == "code"]
    assert [c["execution_count"] for c in code] == list(range(1, len(code) + 1)) and "widgets" not in notebook["metadata"]
    for cell in code:
        said = "".join(text for o in cell["outputs"] for text in o.get("text", []))
        assert not [o for o in cell["outputs"] if o["output_type"] == "error" or o.get("name") == "stderr"]
        assert "check" not in exercises.tags(cell) or said.startswith("✓")
    pictures = [o for c in code for o in c["outputs"] if "image/png" in o.get("data", {})]
    assert all(o["metadata"]["image/png"].get("alt") for o in pictures)
    assert not re.search(r"/(root|home|work|tmp)/", json.dumps(notebook))
    assert max(len(exercises.source(c).splitlines()) for c in code if "bootstrap" not in exercises.tags(c)) <= 25
    for target in re.findall(r"\]\(((?!http)[^)#]+)\)", " ".join(exercises.source(c) for c in notebook["cells"])):
        assert (NOTEBOOKS / "solutions" / target).exists()


def test_the_curve_to_choose_is_the_lowest_at_the_end():
    cells = exercises.read(NOTEBOOKS / "solutions" / "04_pretraining.ipynb")["cells"]
    pictures = [o["metadata"]["image/png"] for c in cells for o in c.get("outputs", []) if "image/png" in o.get("data", {})]
    ends = {letter: float(value) for letter, value in re.findall(r"(\w): [\de.-]+ ends at ([\d.]+\d)", pictures[0]["alt"])}
    choice = EXERCISES["rate_from_curves"]
    assert sorted(ends) == sorted([choice.right, *choice.wrong]) and min(ends, key=ends.get) == choice.right


def test_the_stub_of_a_cell():
    text = ("def f(x):\n    a = 1\n    # BEGIN SOLUTION\n    # STUB: return None   # here\n    b = 2\n\n    return b\n"
            "    # END SOLUTION\n")
    assert exercises.stub(text) == "def f(x):\n    a = 1\n    return None   # here"


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A copy of one notebook and its solution in a project of their own."""
    monkeypatch.setattr(exercises, "project_root", lambda: tmp_path)
    (tmp_path / "notebooks" / "solutions").mkdir(parents=True)
    for part in ("notebooks", "notebooks/solutions"):
        text = (project_root() / part / "05_reconstruction.ipynb").read_bytes()
        (tmp_path / part / "05_reconstruction.ipynb").write_bytes(text)
    return tmp_path / "notebooks" / "05_reconstruction.ipynb"


def test_building_again_changes_nothing(copied):
    before = copied.read_bytes()
    assert not exercises.build("05_reconstruction") and copied.read_bytes() == before


def test_building_changes_exercises_only_and_drops_only_stale_outputs(copied):
    solution = copied.parent / "solutions" / copied.name
    solution.write_text(solution.read_text().replace('check(\\"paste\\", paste)', 'check(\\"paste\\", paste)  # new'))
    before = json.loads(copied.read_text())["cells"]
    assert exercises.build("05_reconstruction")
    after = json.loads(copied.read_text())["cells"]
    changed = [(a, b) for a, b in zip(before, after) if a != b]
    assert len(before) == len(after) and [b["id"] for _, b in changed] == ["ex05-paste-check"]
    assert changed[0][0]["outputs"] and not changed[0][1]["outputs"]


def test_without_takeaways_nothing_is_written(copied, capsys):
    copied.write_text(copied.read_text().replace("## Takeaways", "## Summary"))
    before = copied.read_bytes()
    with pytest.raises(InputError, match="begins with '## Takeaways'"):
        exercises.build("05_reconstruction")
    assert exercises.main() == 2 and copied.read_bytes() == before
    assert capsys.readouterr().err.startswith("error: 05_reconstruction.ipynb has no cell")


# Grading

def with_answers(name, answers, ids=True, without=None):
    """A submission: the course notebook's exercises with some answers written in, everything else thrown away."""
    cells = [cell for cell in exercises.section(name) if cell["id"] != without]
    for cell in cells:
        task = cell["id"][5:].removesuffix("-answer").replace("-", "_")
        if "exercise" in exercises.tags(cell) and task in answers:
            cell["source"] = answers[task].splitlines(keepends=True)
        if not ids:
            del cell["id"]
        if "check" in exercises.tags(cell):
            cell["source"] = ["print('✓ all of it')"]
    return json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})


def solved(name):
    return {task: answer for task, answer, _ in graded(both(name)[1])}


def test_a_class_is_graded_whatever_it_hands_in(tmp_path, capsys):
    name = "05_reconstruction"
    awkward = {"hidden_psnr": "def hidden_psnr(:", "paste": "def paste(*x):\n    while True: pass",
               "to_pixels": "def to_pixels(a, tokens, mean, std):\n    print('✓ to_pixels')\n    return a - 1",
               "why_blur": "import os\nos._exit(1)"}
    handed_in = {"ada": with_answers(name, solved(name), ids=False),
                 "ben": with_answers(name, {}, without="ex05-paste-answer"), "cleo": with_answers(name, awkward),
                 "dan": "{ no notebook", "eve": '{"cells": []}', "fay": "[1]"}
    for folder, text in handed_in.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "05.ipynb").write_text(text, encoding="utf-8")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / ".ipynb_checkpoints" / "05.ipynb").write_text("an editor's copy, nobody's submission")
    assert grade.main([str(tmp_path), "--seconds", "5"]) == 0
    rows = list(csv.DictReader((tmp_path / "grades.csv").open(encoding="utf-8")))
    assert list(rows[0]) == ["file", "exercise", "passed", "message"]
    of = {who: [r for r in rows if r["file"].startswith(who)] for who in ("ada", "ben", "cleo", "dan", "eve", "fay")}
    tasks = ["hidden_psnr", "paste", "to_pixels", "why_blur"]
    assert all([r["exercise"] for r in of[who]] == tasks for who in ("ada", "ben", "cleo"))
    assert [r["passed"] for r in of["ada"]] == ["True"] * 4 and [r["passed"] for r in of["ben"]] == ["False"] * 4
    assert "its cell is missing" in of["ben"][1]["message"] and "not yet" in of["ben"][2]["message"]
    for row, words in zip(of["cleo"], ("SyntaxError", "stopped after 5 seconds", "expected", "it ended the kernel")):
        assert row["passed"] == "False" and words in row["message"], row
    assert [len(of[who]) for who in ("dan", "eve", "fay")] == [1, 1, 1] and len(rows) == 15
    assert "this is no notebook" in of["dan"][0]["message"] and "no exercises" in of["eve"][0]["message"]
    assert "ada/05.ipynb: 4 of 4 passed" in capsys.readouterr().out
    secret = [line.strip() for text in solved(name).values() for line in text.splitlines() if "return" in line]
    assert not any(line in row["message"] for line in secret for row in rows)


@pytest.mark.parametrize("ids", [True, False])
@pytest.mark.parametrize("folder", ["", "solutions/"])
@pytest.mark.parametrize("name", NAMES)
def test_a_whole_notebook_is_graded_as_the_one_it_is(tmp_path, monkeypatch, name, folder, ids):
    """Other cells of a notebook may define what the exercises of another one ask for."""
    notebook = json.loads((project_root() / "notebooks" / f"{folder}{name}.ipynb").read_text(encoding="utf-8"))
    for cell in () if ids else notebook["cells"]:
        del cell["id"]
    (tmp_path / "handed in.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    monkeypatch.setattr(grade, "_run", lambda setup, tasks, seconds: tasks)
    found = grade.grade_one(tmp_path / "handed in.ipynb", 5)
    assert [task for task, _, _ in found] == [task for task, _, _ in graded(exercises.section(name))]
    assert all(answer for _, answer, _ in found)


def test_a_time_limit_of_nothing_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        grade.main([str(tmp_path), "--seconds", "0"])
    assert "seconds is 0: it must be at least 1" in capsys.readouterr().err


def test_an_empty_folder_is_one_sentence(tmp_path, capsys):
    assert grade.main([str(tmp_path)]) == 2
    assert "holds no notebooks" in capsys.readouterr().err
