"""Studies: what is kept of a sweep, and what its numbers allow to say."""
import json
import shutil

import pytest
from scipy.stats import ttest_rel

from mae_helpers import InputError, PretrainConfig, studies
from mae_helpers.__main__ import main
from mae_helpers.config import project_root
from mae_helpers.runs import open_run
from mae_helpers.studies import Study, all_studies, paired, read_table, record_sweep, settled
from mae_helpers.sweep import Sweep, plan
from mae_helpers.tables import write_table


@pytest.fixture
def swept(tmp_path, monkeypatch):
    """A finished sweep of two seeds that nobody trained, and an empty place for studies."""
    kept = tmp_path / "data"
    kept.mkdir()
    monkeypatch.setattr(studies, "studies_root", lambda: kept)
    monkeypatch.setenv("MAE_RUNS_DIR", str(tmp_path / "runs"))
    rows = []
    for seed in (0, 1):
        run = open_run(PretrainConfig(seed=seed), {"code": "c", "data": "d"}, tmp_path / "runs")
        run.write_metrics([{"epoch": e, "lr": 0.1, "train_loss": 1 / e, "val_loss": 2 / e, "psnr_db": 10.0 + e,
                            "train_seconds": 3.0} for e in (1, 2)])
        run.finish({}, {"created": f"2026-01-0{seed + 1}", "device": "two cores", "python": "3", "torch": "2",
                        "data_source": "MNIST", "commit": None, "seconds": 90.0})
        rows += [{"cell": seed, "seed": seed, "stage": stage, "run": run.name, "val_loss": loss, "error": None}
                 for stage, loss in (("pretrain", 1.0 + seed), ("probe", None))]
    folder = tmp_path / "runs" / "sweeps" / "seeds"
    folder.mkdir(parents=True)
    (folder / "sweep.json").write_text(json.dumps({"name": "seeds", "recipe": "mnist-quick", "notebook": "", "fixed": {},
                                                   "stages": ["probe"], "grid": {"seed": [0, 1]}, "list": []}))
    write_table(rows, folder / "table.csv")
    (kept / "seeds.toml").write_text('recipe = "mnist-quick"\n[grid]\nseed = [0, 1]\n')
    return folder


def test_a_finished_sweep_is_kept(swept, capsys):
    main(["record", "seeds"])
    assert "seeds.csv" in capsys.readouterr().out
    study = Study("seeds")
    assert study.scores("pretrain", "val_loss", "cell") == {(0,): {0: 1.0}, (1,): {1: 2.0}}
    assert [row["psnr_db"] for row in study.curves] == [11, 12, 11, 12] and "lr" not in study.curves[0]
    assert study.facts == {"device": ["two cores"], "python": ["3"], "torch": ["2"], "data_source": ["MNIST"],
                           "commit": ["None"], "runs": 2, "first": "2026-01-01", "last": "2026-01-02", "minutes": 3.0}


@pytest.mark.parametrize("change, problem", [
    (lambda rows: rows[:2], "2 runs are missing"), (lambda rows: rows[:3], "1 runs are missing"),
    (lambda rows: [*rows[:3], {**rows[3], "error": "it broke"}], "it broke")])
def test_an_unfinished_sweep_is_not_kept(swept, change, problem):
    write_table(change(read_table(swept / "table.csv")), swept / "table.csv")
    with pytest.raises(InputError, match=f"seeds has not finished .{problem}"):
        record_sweep("seeds")
    assert all_studies() == [] and [study.name for study in all_studies(recorded=False)] == ["seeds"]


def test_a_name_with_a_dot_and_a_folder_keep_their_own_files(swept):
    kept = studies.studies_root()
    for name in ("lr.1", "lr.2"):
        shutil.copytree(swept, swept.parent / name)
        (kept / f"{name}.toml").write_text((kept / "seeds.toml").read_text())
        (swept.parent / name / "sweep.json").write_text(
            (swept / "sweep.json").read_text().replace('"seeds"', f'"{name}"'))
        assert record_sweep(str(swept.parent / name)) == kept / f"{name}.csv"
    assert {path.name for path in kept.glob("lr*")} == {f"lr.{n}.{end}" for n in (1, 2) for end in (
        "csv", "curves.csv", "json", "toml")}


def test_a_sweep_without_a_file_that_says_what_it_is_is_no_study(swept):
    shutil.copytree(swept, swept.parent / "other")
    with pytest.raises(InputError, match="the sweep other is no study: data/studies/other.toml has to say"):
        record_sweep("other")


def test_names_that_are_not_there(swept):
    with pytest.raises(InputError, match="sweep is 'sede'.*Did you mean 'seeds'"):
        record_sweep("sede")
    with pytest.raises(InputError, match="study is 'sede'.*Did you mean 'seeds'"):
        Study("sede")
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_table(Study("seeds").sweep.name)


def test_what_a_table_says_comes_back(tmp_path):
    rows = [{"text": "a", "whole": 3, "part": 0.25, "yes": True, "none": None}]
    write_table(rows, tmp_path / "t.csv")
    assert read_table(tmp_path / "t.csv") == rows


def test_every_study_of_the_course_can_be_run():
    for study in all_studies(recorded=False):
        assert plan(study.sweep), study.name


def test_every_recorded_study_is_the_sweep_that_its_file_describes():
    for study in all_studies():
        cells = Sweep.read(studies.studies_root() / f"{study.name}.toml").cells()
        assert {row["cell"] for row in study.rows} == set(range(len(cells))), study.name
        assert len(study.rows) == sum(len(jobs) for _, jobs in plan(study.sweep)), study.name
        for row in study.rows:
            assert all(row[axis] == cells[row["cell"]].get(axis) for axis in study.sweep.axes if "." not in axis), study.name
        assert {row["run"] for row in study.curves} <= {row["run"] for row in study.rows}


# What the numbers allow to say

def test_a_paired_comparison_is_students():
    ours, theirs = {0: 0.9, 1: 0.8, 2: 0.85, 3: 0.7}, {2: 0.8, 0: 0.88, 1: 0.79, 9: 0.1}
    found = paired(ours, theirs)
    expected = ttest_rel([0.9, 0.8, 0.85], [0.88, 0.79, 0.8])
    interval = expected.confidence_interval()
    assert found == pytest.approx((0.08 / 3, found.std, 3, interval.low, interval.high, expected.pvalue))
    assert str(found).startswith("+0.02667 ± ") and "n = 3" in str(found)


def test_differences_without_spread_and_without_pairs():
    assert paired({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0}).p == 1 and paired({0: 2.0, 1: 3.0}, {0: 1.0, 1: 2.0}).p == 0
    with pytest.raises(InputError, match="share 1 seeds"):
        paired({0: 1.0, 1: 2.0}, {0: 1.0})


def test_many_comparisons_need_more_each():
    def with_p(p):
        return studies.Difference(1, 1, 3, 0, 2, p)
    assert settled([with_p(0.04)]) == [True]
    assert settled([with_p(0.04), with_p(0.9)]) == [False, False]           # 0.04 is not below 0.05 / 2
    assert settled([with_p(0.03), with_p(0.01), with_p(0.9)]) == [False, True, False]
    assert settled([with_p(0.02), with_p(0.001), with_p(0.024)]) == [True, True, True]
    assert settled([with_p(0.9), with_p(0.026), with_p(0.0001)]) == [False, False, True]


def test_what_notebook_09_shows_is_what_the_studies_say():
    """The differences of the comparison, and the accuracies by which the weights were chosen."""
    page = json.loads((project_root() / "notebooks" / "09_improved_mae.ipynb").read_text(encoding="utf-8"))
    shown = "".join("".join(out.get("text", [])) for cell in page["cells"] for out in cell.get("outputs", []))
    study, compared = Study("improved"), 0
    axes = ("mask_schedule", "laplacian_weight", "uniformity_weight")
    for stage, score, scale in (("pretrain", "psnr_db", 1), ("pretrain", "laplacian_error", 1),
                                ("probe", "test_accuracy", 100), ("finetune", "test_accuracy", 100)):
        arms = {arm: {s: scale * v for s, v in has.items()} for arm, has in study.scores(stage, score, *axes).items()}
        original = arms.pop(("constant", 0, 0))
        for has in arms.values():
            each = paired(has, original)
            assert f"{each.mean:+.4f} ± {each.std:.4f}   95 %: {each.low:+.4f} … {each.high:+.4f}   p {each.p:.3f}" in shown
            compared += 1
    assert compared == 20
    for stage in ("probe", "finetune"):
        tried = Study("improved_weights").scores(stage, "val_accuracy", *axes[1:])
        assert len(tried) == 8 and all(f"{value:.2%}" in shown for has in tried.values() for value in has.values())
