"""Sweeps: what is asked for, how it is shared out, what is left when something fails."""
import contextlib
import csv
import json
import os
import signal

import pytest
import torch
from filelock import FileLock
from pyarrow import parquet

from mae_helpers import InputError, PretrainConfig, pretrain, sweep, tables
from mae_helpers.__main__ import _fields, _varied, main, parse
from mae_helpers.runs import Run, open_run
from mae_helpers.sweep import Sweep, plan, run_sweep, worker_environments

TINY = dict(limit=256, patch_size=7, embed_dim=16, depth=1, num_heads=2, decoder_embed_dim=16, decoder_num_heads=2,
            epochs=1, batch_size=128, precision="fp32", device="cpu", compile="off")


def silent(text):
    pass


def made(folder, seed=0, job_seconds=1.0, **changes):
    """A finished run that nobody trained."""
    run = open_run(PretrainConfig(**{**TINY, "seed": seed, **changes}), {"code": "c", "data": "d"}, folder)
    run.finish({"job": "pretrain", "protocol": None, "dataset": "mnist", "seed": seed, "psnr_db": 10.0 + seed,
                "val_loss": 0.5, "seconds": job_seconds, "device": "a machine", "data_source": "MNIST",
                "psnr_mean_db": 9.0}, {})
    return run


def test_a_notebook_names_a_run_as_a_whole_word(tmp_path):
    for name in ("mine", "test", "mine-2"):
        run = open_run(PretrainConfig(**TINY), {"code": name, "data": "d"}, tmp_path, name)
        run.finish({"job": "pretrain"}, {})
    said = [{"output_type": "stream", "name": "stdout", "text": "test accuracy as determined by runs/mine-2."}]
    (tmp_path / "out.ipynb").write_text(json.dumps({"cells": [{"cell_type": "code", "outputs": said[:]}]}))
    assert sweep._named(tmp_path / "out.ipynb", tmp_path) == ["mine-2", "test"]


# What is asked for

def test_a_grid_and_a_list_make_cells():
    both = Sweep(name="both", recipe="mnist-quick", fixed={"epochs": 2}, grid={"seed": [0, 1], "patch_size": [4, 7]},
                 list=[{"mask_ratio": 0.5}, {"mask_ratio": 0.75, "epochs": 3}])
    cells = both.cells()
    assert len(cells) == 8 and cells[1] == {"epochs": 2, "mask_ratio": 0.5, "seed": 0, "patch_size": 7}
    assert cells[4] == {"epochs": 3, "mask_ratio": 0.75, "seed": 0, "patch_size": 4}
    assert both.axes == ["mask_ratio", "epochs", "seed", "patch_size"]


def test_a_file_says_the_same_as_python(tmp_path):
    (tmp_path / "few.toml").write_text('recipe = "mnist-quick"\nstages = ["knn", "finetune"]\nfixed = {epochs = 4}\n'
                                       '[grid]\nseed = [0, 1]\nfinetune.label_fraction = [0.1, 1]\n')
    assert Sweep.read(tmp_path / "few.toml") == Sweep(
        name="few", recipe="mnist-quick", stages=["knn", "finetune"], fixed={"epochs": 4},
        grid={"seed": [0, 1], "finetune.label_fraction": [0.1, 1]})


def test_the_command_line_says_the_same_as_python():
    found = parse(["sweep", "--seed", "0,1", "--mask-ratio", "0.5", "--norm-pix-loss", "--snapshot-epochs", "1,2"])
    asked = {"name": "n", "recipe": "mnist-quick", "stages": "knn", "vary": ["knn.knn_k=5,20", "a=true,x,1.5"]}
    assert _varied(asked, _fields(found)) == {
        "name": "n", "recipe": "mnist-quick", "stages": ("knn",),
        "fixed": {"mask_ratio": 0.5, "norm_pix_loss": True, "snapshot_epochs": (1, 2)},
        "grid": {"seed": [0, 1], "knn.knn_k": [5, 20], "a": [True, "x", 1.5]}}


@pytest.mark.parametrize("wrong, sentence", [
    (dict(grid={}), "the sweep s is empty"), (dict(grid={"seed": []}), r"seed in the grid .* is \[\]"),
    (dict(grid={"seed": 3}), "seed in the grid .* is 3: it must be a list"),
    (dict(grid={"mask_ration": [0.5]}), "Did you mean 'mask_ratio'"),
    (dict(grid={"mask_ratio": [0.5, 2]}), "mask_ratio is 2"),
    (dict(grid={"finetun.epochs": [1]}), "stage is 'finetun'.*mean 'finetune'"),
    (dict(grid={"knn.knn_kk": [1]}), "Did you mean 'knn_k'"), (dict(grid={"label_fraction": [1]}), "write classify.label_f"),
    (dict(grid={"knn.protocol": ["probe"]}), "knn.protocol cannot vary"),
    (dict(grid={"seed": [0]}, stages=["prob"]), "stage is 'prob'.*mean 'probe'"),
    (dict(grid={"seed": [0]}, recipe="mnist-quik"), "Did you mean 'mnist-quick'"),
    (dict(grid={"seed": [0]}, notebook="a.ipynb"), "a recipe or a notebook, and not both"),
    (dict(grid={"seed": [0]}, recipe="", notebook="no.ipynb"), "there is no notebook no.ipynb"),
    (dict(grid={"seed": [0]}, name="../s"), "a sweep's name is '../s'"), (dict(grid=[1]), "grid of the sweep s is"),
    (dict(list=[1]), "must be a list of tables"), (dict(grid={"seed": [0]}, stages="knn"), "must be a list of stages")])
def test_wrong_input_is_one_sentence_before_anything_starts(tmp_path, wrong, sentence):
    with pytest.raises(InputError, match=sentence) as stop:
        run_sweep(Sweep(**{"name": "s", "recipe": "mnist-quick", **wrong}), tmp_path)
    assert "\n" not in str(stop.value) and list(tmp_path.iterdir()) == []


def test_wrong_files_and_options_are_one_sentence(capsys, tmp_path):
    (tmp_path / "bad.toml").write_text("grid = {")
    (tmp_path / "odd.toml").write_text("gird = 1")
    for words, sentence in [([str(tmp_path / "bad.toml")], "is not a TOML file"), (["nowhere.toml"], "cannot be read"),
                            ([str(tmp_path / "odd.toml")], "Did you mean 'grid'"),
                            (["a.toml", "--seed", "1"], "leave the file"),
                            (["--name", "n", "--recipe", "mnist-quick"], "is empty"), (["--vary", "seed"], "NAME=VALUE"),
                            (["--name", "n", "--recipe", "mnist-quick", "--seed", "0,1", "--workers", "0"], "workers is 0")]:
        assert main(["sweep", *words, "--root", str(tmp_path / "runs")]) == 2
        err = capsys.readouterr().err
        assert sentence in err and err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_run_that_cells_share_is_one_job():
    """Fine-tuning varies: one pretraining. Masks vary: one control from scratch, which does not know of them."""
    def keys(stage, **grid):
        cells = plan(Sweep(name="s", recipe="mnist-quick", stages=["finetune", "scratch"], grid=grid))
        return {job.key for _, found in cells for job in found if job.stage == stage}
    tuned, masks = {"finetune.base_lr": [1e-3, 2e-3]}, {"mask_ratio": [0.5, 0.75]}
    assert [len(keys(stage, **tuned)) for stage in ("pretrain", "finetune", "scratch")] == [1, 2, 1]
    assert [len(keys(stage, **masks)) for stage in ("pretrain", "finetune", "scratch")] == [2, 2, 1]
    assert len(keys("scratch", **{"classify.label_fraction": [0.1, 1]})) == 2
    alone = plan(Sweep(name="s", recipe="mnist-quick", stages=["pretrain"], grid=masks))
    assert [len(found) for _, found in alone] == [1, 1]
    assert [len(found) for _, found in plan(Sweep(name="s", recipe="mnist-quick", grid=masks))] == [6, 6]


# Where it is done

def test_cores_and_gpus_are_divided():
    two = worker_environments(2, 8, [])
    assert [each["OMP_NUM_THREADS"] for each in two] == ["4", "4"] and "CUDA_VISIBLE_DEVICES" not in two[0]
    assert worker_environments(3, 2, [])[0]["OMP_NUM_THREADS"] == "1"
    shared = worker_environments(3, 12, ["2", "GPU-5"])
    assert [each["CUDA_VISIBLE_DEVICES"] for each in shared] == ["2", "GPU-5", "2"]


@pytest.mark.parametrize("named, count, found", [(None, 2, ["0", "1"]), ("3,1", 2, ["3", "1"]), (None, 0, []), ("", 0, [])])
def test_gpus_keep_the_names_they_were_given(monkeypatch, named, count, found):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert sweep.visible_gpus() == found


def test_without_dask_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "distributed", None)
    with pytest.raises(InputError, match=r"Dask, which is not installed: pip install -e \"\.\[sweep\]\""):
        run_sweep(Sweep(name="s", recipe="mnist-quick", grid={"seed": [0]}), tmp_path)


# Tables

def test_csv_and_parquet_hold_the_same(tmp_path):
    rows = [{"a": 1, "b": "x", "c": None, "d": [1, 2], "e": 0.5}, {"a": "two", "b": None, "c": None, "d": None, "e": 2}]
    tables.write_table(rows, tmp_path / "t.csv")
    tables.write_table(rows, tmp_path / "t.parquet")
    text = list(csv.DictReader((tmp_path / "t.csv").open()))
    table = parquet.read_table(tmp_path / "t.parquet").to_pylist()
    assert text == [{"a": "1", "b": "x", "c": "", "d": "[1, 2]", "e": "0.5"},
                    {"a": "two", "b": "", "c": "", "d": "", "e": "2"}]
    assert table == [{"a": "1", "b": "x", "c": None, "d": "[1, 2]", "e": 0.5},
                     {"a": "two", "b": None, "c": None, "d": None, "e": 2.0}]
    with pytest.raises(InputError, match="not to t.xlsx"):
        tables.write_table(rows, tmp_path / "t.xlsx")


def test_half_written_and_foreign_runs_are_said_and_left_out(tmp_path, capsys):
    good, half, odd, old, torn = (made(tmp_path, seed) for seed in range(5))
    (half.path / "results.json").unlink()
    (odd.path / "results.json").write_text('{"job": ')
    saved = json.loads((old.path / "config.json").read_text())
    (old.path / "config.json").write_text(json.dumps({**saved, "config": {**saved["config"], "brightness": 1}}))
    (torn.path / "results.json").write_text("[]")
    said = []
    rows = tables.gather(tmp_path, said.append)
    assert [row["run"] for row in rows] == [good.name] and rows[0]["patch_size"] == 7 and rows[0]["psnr_db"] == 10
    assert len(said) == 4 and not any("\n" in text for text in said)
    for run, words in ((half, "has not finished"), (odd, "damaged"), (old, "'brightness'"), (torn, "another version")):
        assert any(text.startswith(f"{run.name} is left out") and words in text for text in said)
    assert main(["report", str(tmp_path), "--table", str(tmp_path / "all.csv")]) == 0
    out = capsys.readouterr().out
    assert f"| {good.name} |" in out and f"{odd.name} is left out" in out and f"{half.name} is left out" in out
    assert [row["run"] for row in csv.DictReader((tmp_path / "all.csv").open())] == [good.name]


def test_two_runs_side_by_side(tmp_path, capsys):
    a, b = made(tmp_path, 0), made(tmp_path, 1, mask_ratio=0.5, job_seconds=3.0)
    rows = tables.compare(a.name, b.name, tmp_path)
    assert [(row["what"], row[a.name], row[b.name]) for row in rows] == [
        ("seed", 0, 1), ("mask_ratio", 0.75, 0.5), ("psnr_db", 10.0, 11.0), ("seconds", 1.0, 3.0)]
    assert tables.compare(a.path, a.path) == []
    assert main(["compare", a.name, b.name, "--root", str(tmp_path)]) == 0
    assert "mask_ratio" in capsys.readouterr().out
    (b.path / "results.json").unlink()
    with pytest.raises(InputError, match="has not finished"):
        tables.compare(a.name, b.name, tmp_path)


# On Dask

with contextlib.suppress(ImportError):
    import distributed




@pytest.fixture(scope="module")
def scheduler():
    """Somebody else's scheduler, with one worker that is a thread of this process, so that its parts can be replaced."""
    pytest.importorskip("distributed", reason="Dask is not installed")
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, processes=False, protocol="tcp://", host="127.0.0.1",
                                  dashboard_address="127.0.0.1:0") as cluster:
        yield cluster.scheduler_address


def seeds(*values, name="s", **more):
    return Sweep(name=name, recipe="mnist-quick", stages=["knn"], fixed=TINY, grid={"seed": list(values)}, **more)


def test_what_fails_is_tried_again_and_reported_while_others_go_on(monkeypatch, tmp_path, scheduler, capsys):
    tried = []

    def fake(config, root, say):
        tried.append((config.job, config.seed))
        if config.seed == 1:
            raise InputError("nobody can do this.")
        if config.seed == 2 or (config.seed == 3 and tried.count(("pretrain", 3)) == 1):
            raise RuntimeError("the disk\nis full")
        say("half done")
        return made(root, config.seed + 10 * (config.job == "classify"))
    monkeypatch.setattr(sweep, "pretrain", fake)
    monkeypatch.setattr(sweep, "classify", fake)
    said = []
    rows = run_sweep(seeds(0, 1, 2, 3), tmp_path, scheduler, say=said.append)
    assert [tried.count(("pretrain", seed)) for seed in range(4)] == [1, 1, 2, 2]
    assert {seed for job, seed in tried if job == "classify"} == {0, 3}
    errors = {(row["cell"], row["stage"]): row["error"] for row in rows}
    assert errors == {**{(cell, stage): None for cell in (0, 3) for stage in ("pretrain", "knn")},
                      (1, "pretrain"): "nobody can do this.", (2, "pretrain"): "RuntimeError: the disk is full",
                      (1, "knn"): "not started, because its pretraining failed",
                      (2, "knn"): "not started, because its pretraining failed"}
    assert rows[0]["seed"] == 0 and rows[0]["psnr_db"] == 10 and Run(tmp_path / rows[0]["run"]).finished
    assert any(text.startswith("[8/8]") for text in said) and "cell 0 pretrain: half done" in said
    table = list(csv.DictReader((tmp_path / "sweeps" / "s" / "table.csv").open()))
    again = parquet.read_table(tmp_path / "sweeps" / "s" / "table.parquet").to_pylist()
    assert [row["error"] or None for row in table] == [row["error"] for row in again] == [row["error"] for row in rows]
    assert [row["run"] or None for row in table] == [row["run"] for row in again] == [row["run"] for row in rows]
    words = ["sweep", "--name", "s2", "--recipe", "mnist-quick", "--stages", "knn", "--seed", "0,1", "--root", str(tmp_path)]
    assert main([*words, "--scheduler", scheduler]) == 1 and "nobody can do this." in capsys.readouterr().out


def test_a_name_belongs_to_one_sweep_and_to_one_process(monkeypatch, tmp_path, scheduler):
    monkeypatch.setattr(sweep, "pretrain", lambda config, root, say: made(root, config.seed))
    monkeypatch.setattr(sweep, "classify", lambda config, root, say: made(root, 5))
    first = run_sweep(seeds(0), tmp_path, scheduler, say=silent)
    assert run_sweep(seeds(0), tmp_path, scheduler, say=silent) == first
    with pytest.raises(InputError, match=r"the sweep s exists with other contents: grid is .*\[0\].* there and .*\[1\]"):
        run_sweep(seeds(1), tmp_path, scheduler, say=silent)
    with FileLock(tmp_path / "sweeps" / "s" / ".lock"), pytest.raises(InputError, match="is running in another process"):
        run_sweep(seeds(0), tmp_path, scheduler, say=silent)


def test_an_interrupted_sweep_goes_on(monkeypatch, tmp_path, scheduler):
    monkeypatch.setattr(sweep, "pretrain", lambda config, root, say: made(root, config.seed))
    monkeypatch.setattr(sweep, "classify", lambda config, root, say: made(root, config.seed + 5))

    def stop(text):
        if text.startswith("[2/"):
            raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        run_sweep(seeds(0, 1), tmp_path, scheduler, say=stop)
    assert len(list(csv.DictReader((tmp_path / "sweeps" / "s" / "table.csv").open()))) == 2
    assert [row["error"] for row in run_sweep(seeds(0, 1), tmp_path, scheduler, say=silent)] == [None] * 4


def test_a_scheduler_that_is_not_there_is_one_sentence(monkeypatch, tmp_path):
    pytest.importorskip("distributed", reason="Dask is not installed")
    monkeypatch.setattr(sweep, "CONNECT_SECONDS", 1)
    for address in ("tcp://127.0.0.1:9", "nonsense://x"):
        with pytest.raises(InputError, match=f"the scheduler {address} cannot be reached") as stop:
            run_sweep(seeds(0), tmp_path, address, say=silent)
        assert "\n" not in str(stop.value)


def notebook(folder, *, values="x = 1\nroot = 'runs'"):
    """A small notebook that stops for x = 0 and names a run of its root."""
    nbformat = pytest.importorskip("nbformat")
    code = ["class InputError(ValueError):\n    pass\n\nif x == 0:\n    raise InputError('x is 0: it must be another.')",
            "import os\nprint(x, *sorted(name for name in os.listdir(root) if name.startswith('pretrain')))"]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in (values, *code)])
    book.cells[0].metadata["tags"] = ["parameters"]
    book.metadata["kernelspec"] = {"name": "python3", "language": "python", "display_name": "Python 3"}
    nbformat.write(book, folder / "small.ipynb")
    return str(folder / "small.ipynb")


def test_notebooks_take_parameters_and_finished_ones_are_kept(tmp_path, scheduler):
    pytest.importorskip("papermill")
    root = tmp_path / "runs"
    run, path = made(root), notebook(tmp_path)
    asked = Sweep(name="books", notebook=path, grid={"x": [2, 0]})
    rows = run_sweep(asked, root, scheduler, say=silent)
    assert [(row["x"], row["run"], row["error"]) for row in rows] == [
        (2, run.name, None), (0, None, "x is 0: it must be another.")]
    assert rows[0]["psnr_db"] == 10 and rows[0]["notebook"].startswith(str(root / "sweeps" / "books"))
    before = os.stat(rows[0]["notebook"]).st_mtime_ns
    again = run_sweep(Sweep(name="more", notebook=path, grid={"x": [2]}), root, scheduler, say=silent)
    assert again[0]["notebook"] != rows[0]["notebook"]          # each sweep has its own
    job, folder = plan(asked)[0][1][0], root / "sweeps" / "books"
    assert sweep._run_notebook(job, str(root), folder) == {"notebook": rows[0]["notebook"]}
    assert os.stat(rows[0]["notebook"]).st_mtime_ns == before


@pytest.mark.parametrize("grid, sentence", [
    ({"y": [1]}, "parameter of small.ipynb is 'y': it must be one of x"),
    ({"root": ["a"]}, "parameter of small.ipynb is 'root'"),
    ({"x": [1], "limit": [0]}, "limit is 0: it must be a whole number")])
def test_parameters_of_notebooks_are_checked(tmp_path, grid, sentence):
    path = notebook(tmp_path, values="x, limit = 1, None\nroot = 'runs'")
    with pytest.raises(InputError, match=sentence):
        plan(Sweep(name="books", notebook=path, grid=grid))


def test_workers_of_this_machine_survive_a_kill_and_nobody_else_can_reach_them(tmp_path, scheduler):
    """Two processes; the first one to finish an epoch is killed. The run goes on from its checkpoint, and ends as one that
    was left alone; a second start, on another scheduler, finds both."""
    psutil = pytest.importorskip("psutil")
    said, killed, listening = [], [], set()

    def watch(text):
        said.append(text)
        if not killed and "epoch   1/" in text:
            here = psutil.Process()
            workers = [p for p in here.children() if "multiprocessing.spawn" in " ".join(p.cmdline())]
            found = [c for p in (here, *workers) for c in p.net_connections() if c.status == "LISTEN"]
            listening.update(c.laddr.ip for c in found)
            killed.extend(p.pid for p in workers)
            for pid in killed:
                os.kill(pid, signal.SIGKILL)
    asked = Sweep(name="killed", recipe="mnist-quick", stages=["pretrain"], grid={"seed": [0, 1]},
                  fixed={**TINY, "epochs": 6})
    rows = run_sweep(asked, tmp_path, workers=2, say=watch)
    assert len(killed) == 2 and listening == {"127.0.0.1"}
    assert [row["error"] for row in rows] == [None] * 2 and all(Run(tmp_path / row["run"]).finished for row in rows)
    assert any("resuming after epoch" in text for text in said)
    assert any(text.startswith("dashboard: http://127.0.0.1:") or "bokeh" in text for text in said)
    alone = pretrain(Run(tmp_path / rows[0]["run"]).config, tmp_path / "alone", say=silent)
    assert rows[0]["val_loss"] == pytest.approx(alone.results["val_loss"], rel=1e-3)
    said.clear()
    assert run_sweep(asked, tmp_path, scheduler, say=said.append) == rows
    assert sum("found the finished run" in text for text in said) == 2
