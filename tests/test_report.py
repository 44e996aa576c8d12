"""The report: statistics over seeds, published rows beside ours, and notebook 10 as files."""
import csv
import io
import json
import math
import re
import shutil
import statistics
from types import SimpleNamespace

import pytest

from mae_helpers import ClassifyConfig, InputError, PretrainConfig, export, plots, report, studies
from mae_helpers.__main__ import main
from mae_helpers.config import project_root
from mae_helpers.exercises import tags
from mae_helpers.runs import open_run, recorded_root
from mae_helpers.studies import Study, read_table
from mae_helpers.tables import write_table

ROWS = report.experiments(report.collect(recorded_root()))
SAID = {"data_source": "MNIST", "images": 550, "parameters": 1000, "seconds": 10.0, "device": "two cores",
        "label_fraction": 1.0, "pretrained_run": None, "pretrain_epochs": 0, "mask_ratio": None}


def made(root, config, created="2026-01-01", fingerprint=None, metrics=(), **results):
    """A finished run that nobody trained."""
    run = open_run(config, {"code": "c", "data": "d", **(fingerprint or {})}, root)
    run.write_metrics([{"epoch": 1, "val_accuracy": 0.5}, *metrics])
    run.finish({"job": config.job, "dataset": config.dataset, "patch_size": config.patch_size, "epochs": config.epochs,
                **SAID, **results}, {"created": created})
    return run


def scratch(root, seed, accuracy, **changes):
    known = {"created", "fingerprint", "metrics", *SAID}
    fields = {key: value for key, value in changes.items() if key == "label_fraction" or key not in known}
    config = ClassifyConfig(protocol="scratch", patch_size=7, seed=seed, **{"dataset": "mnist", **fields})
    return made(root, config, protocol="scratch", test_accuracy=accuracy, **{k: changes[k] for k in known & set(changes)})


def gathered(root):
    """The experiments of a folder, without the recorded ones."""
    return report.experiments([run for run in report.collect(root) if run.path.parent == root])


# Statistics

def test_seeds_of_equal_settings_are_one_experiment(tmp_path):
    for seed, accuracy in ((2, 0.91), (0, 0.9), (1, 0.95)):
        scratch(tmp_path, seed, accuracy)
    scratch(tmp_path, 0, 0.5, epochs=3)
    one, other = sorted(gathered(tmp_path), key=lambda row: -row["n"])
    assert (one["n"], one["seeds"], other["n"]) == (3, [0, 1, 2], 1)
    assert one["test_accuracy"] == pytest.approx(statistics.mean([0.9, 0.91, 0.95]))
    assert one["test_accuracy_std"] == pytest.approx(statistics.stdev([0.9, 0.91, 0.95]))
    assert other["test_accuracy_std"] is None and other["psnr_db"] is None
    assert report.spread(one) == "92.00 ± 2.65" and report.spread(other) == "50.00" and report.spread(one, "psnr_db") == "–"


def test_a_seed_that_was_run_again_counts_once_the_newest(tmp_path):
    scratch(tmp_path, 0, 0.1, created="2026-01-02", fingerprint={"code": "older"})
    scratch(tmp_path, 0, 0.9, created="2026-01-03", fingerprint={"code": "newer"})
    scratch(tmp_path, 1, 0.7)
    row, = gathered(tmp_path)
    assert row["n"] == 2 and row["test_accuracy"] == pytest.approx(0.8)


def test_classifiers_of_one_seed_on_encoders_of_several_all_count():
    three = [run for run in report.collect(recorded_root()) if run.name.startswith("finetune-mnist-p4-e8-")]
    others = [run for run in report.collect(recorded_root()) if run.config.job == "pretrain"]
    alike = [SimpleNamespace(config=run.config.replace(seed=0), results=run.results, provenance=run.provenance,
                             name=run.name, own_parts=run.own_parts, fingerprint=run.fingerprint) for run in three]
    usual, changed = (next(row for row in report.experiments([*runs, *others]) if row["what"] == "finetune")
                      for runs in (three, alike))
    assert len(three) == usual["n"] == changed["n"] == 3 and usual["test_accuracy"] == changed["test_accuracy"]


@pytest.mark.parametrize("change", [dict(data_source="MNIST (JPEG copy)"), dict(base_lr=0.1), dict(label_fraction=0.5),
                                    dict(limit=100), dict(fingerprint={"model": "own"})])
def test_other_images_settings_or_parts_are_another_experiment(tmp_path, change):
    scratch(tmp_path, 0, 0.9)
    scratch(tmp_path, 1, 0.8, **change)
    assert [row["n"] for row in gathered(tmp_path)] == [1, 1]
    names = report.labels(gathered(tmp_path))
    assert len(set(names)) == 2 or "own model" in " ".join(names), "two experiments of one name"


def test_encoders_and_their_time_are_counted(tmp_path):
    sources = [made(tmp_path, PretrainConfig(patch_size=7, seed=seed), seconds=100.0, psnr_db=13.0) for seed in (0, 1)]
    for seed, source in enumerate([*sources, sources[0]]):
        config = ClassifyConfig(dataset="mnist", protocol="finetune", pretrained=source.name, patch_size=7, seed=seed)
        made(tmp_path, config, protocol="finetune", test_accuracy=0.9, pretrained_run=source.name, mask_ratio=0.75)
    first, tuned = gathered(tmp_path)
    assert (tuned["n"], tuned["encoders"], tuned["seconds"], tuned["total_seconds"]) == (3, 2, 10, 110)
    assert (first["what"], first["n"], first["encoders"]) == ("pretrain", 2, 0) and tuned["pretrained_on"] == "mnist"


def test_what_was_unusual_in_pretraining_is_said(tmp_path):
    source = made(tmp_path, PretrainConfig(patch_size=7, norm_pix_loss=True, mask_strategy="block"))
    config = ClassifyConfig(dataset="mnist", protocol="knn", pretrained=source.name, patch_size=7)
    made(tmp_path, config, protocol="knn", test_accuracy=0.5, pretrained_run=source.name)
    assert [report.kind(row) for row in gathered(tmp_path)] == ["pretraining, normalised patches, mask block",
                                                               "neighbours, normalised patches, mask block"]


def test_learning_curves_keep_their_seeds_and_leave_out_single_points(tmp_path):
    for seed in (0, 1):
        scratch(tmp_path, seed, 0.9, metrics=[{"epoch": 3, "val_accuracy": 0.6 + seed / 10}])
    scratch(tmp_path, 0, 0.9, epochs=3)
    long = report.curves(gathered(tmp_path), "val_accuracy", scale=100)
    assert long == {"from scratch": [([1, 3], [50.0, 60.0]), ([1, 3], [50.0, 70.0])]}


@pytest.mark.parametrize("pool", ["cls", "quadrants"])
def test_a_chain_reads_the_mean_of_the_tokens_throughout(tmp_path, pool):
    source = made(tmp_path, PretrainConfig(patch_size=7), seconds=100.0, psnr_db=13.0)
    config = ClassifyConfig(dataset="mnist", protocol="finetune", pretrained=source.name, patch_size=7, epochs=4)
    made(tmp_path, config, protocol="finetune", test_accuracy=0.9, pretrained_run=source.name)
    for epochs, other in ((4, "mean"), (8, "mean"), (4, pool), (8, pool), (9, pool)):
        scratch(tmp_path, 0, 0.8, epochs=epochs, pool=other)
    links = report.chain(gathered(tmp_path), "mnist")
    controls = [(links[name]["pool"], links[name]["epochs"]) for name in ("scratch", "scratch_long")]
    assert controls == [("mean", 4), ("mean", 8)]


def test_the_share_of_mistakes():
    assert report.more_mistakes(0.99, 0.98) == pytest.approx(-0.5) and report.more_mistakes(0.7, 0.75) == pytest.approx(0.2)


def test_names_are_short_and_tell_experiments_apart():
    complete = report.complete(ROWS, "finetune", "scratch")
    for dataset in ("mnist", "cifar10"):
        names = report.labels(report.where(complete, dataset=dataset))
        assert len(set(names)) == len(names) and max(map(len, names)) < 50


def test_a_filter_that_nothing_passes_says_what_there_is():
    with pytest.raises(InputError, match="patch_size is 5: there are runs with 2, 4, 7, 8, 14"):
        report.known(ROWS, patch_size=5, dataset=None)


# What is half-written, or another version's

def spoil(path, file, text):
    (path / file).write_text(text)


@pytest.mark.parametrize("harm", [
    lambda path: (path / "results.json").unlink(), lambda path: spoil(path, "results.json", '{"job": "cla'),
    lambda path: spoil(path, "metrics.csv", "epoch,val_accuracy\n1,\nhalf"),
    lambda path: (path / "provenance.json").unlink(),
    lambda path: spoil(path, "config.json", '{"job": "classify", "config": {"colour": 1}, "fingerprint": {}}'),
    lambda path: spoil(path, "results.json", '{"job": "classify"}'), lambda path: spoil(path, "results.json", "[]")])
def test_a_bad_run_is_one_sentence_and_the_rest_goes_on(tmp_path, harm):
    good, bad = scratch(tmp_path, 0, 0.9), scratch(tmp_path, 1, 0.8)
    harm(bad.path)
    heard = []
    rows = report.experiments([run for run in report.collect(tmp_path, heard.append) if run.path.parent == tmp_path])
    assert [row["runs"][0].name for row in rows] == [good.name]
    assert len(heard) == 1 and bad.name in heard[0] and heard[0].count("\n") == 0


# Published rows

def test_the_published_tables_agree():
    every = {(row["source"], row["patch_size"], row["mask_ratio"]): row for row in report.published()
             if row["dataset"] == "MNIST"}
    for row in read_table(project_root() / "data" / "published_mnist.csv"):
        same = every["rtml-a4-report", row["patch_size"], row["mask_ratio"]]
        assert same["value"] == row["test_accuracy_best"] and f"{row['test_accuracy_last']:.2f}" in same["note"]
        assert f"{row['full_image_loss']:.4f}" in same["note"]
    values = {row["value"] for row in report.published()}
    assert {row["accuracy"] for row in read_table(project_root() / "data" / "published_cifar10.csv")} <= values


def test_every_published_row_stands_beside_ours_of_the_same_task():
    pairs = report.beside(ROWS, report.published())
    assert [one for one in report.published() if one not in [pair[0] for pair in pairs]] == []
    found = {(one["source"], one["value"]): row for one, row in pairs}
    ours = found["rtml-a4-report", 99.06]
    assert (ours["patch_size"], ours["mask_ratio"], ours["what"], ours["dataset"]) == (4, 0.85, "finetune", "mnist")
    moved = found["rtml-vit-transfer", 75.12]
    assert (moved["dataset"], moved["pretrained_on"]) == ("cifar10", "mnist")
    grey = found["rtml-a4-report", 80.52]
    assert (grey["dataset"], grey["pretrained_on"], grey["label_fraction"]) == ("cifar10", "cifar10", 1)
    assert found["airbench94", 94.01] is None and found["tan-2402.03752", 78.27] is None


def test_what_differs_is_said():
    table = {(row["published by"], row["theirs, %"]): row for row in
             report.differences(report.beside(ROWS, report.published()))}
    row = table["rtml-a4-report", "80.52"]
    assert "grey" in row["about theirs"] and "best epoch" in row["about theirs"] and "JPEG copy" in row["about ours"]
    assert "last epoch" in row["about ours"]


# What notebook 10 says in words

def test_the_words_of_the_notebook_are_true_of_the_recorded_runs():
    assert sum(row["n"] == 1 for row in ROWS) > len(ROWS) / 2, "Most experiments have one seed"
    digits, photographs = (report.chain(ROWS, name) for name in ("mnist", "cifar10"))
    score = {name: {stage: row["test_accuracy"] for stage, row in links.items()}
             for name, links in (("digits", digits), ("photographs", photographs))}
    gain = {name: [-report.more_mistakes(each["finetune"], each[control]) for control in ("scratch", "scratch_long")]
            for name, each in score.items()}
    assert gain["digits"][0] > 2 * gain["photographs"][0] > 0, "Digits gain the larger share"
    assert gain["digits"][1] > 0 > gain["photographs"][1], "At the same time the sign changes"
    frozen = {name: each["finetune"] - each["probe"] for name, each in score.items()}
    assert frozen["photographs"] > 2 * frozen["digits"], "Frozen features are much weaker for photographs"
    gap = [links["finetune"]["train_accuracy"] - links["finetune"]["test_accuracy"] for links in (digits, photographs)]
    above = [links["pretrain"]["psnr_db"] - links["pretrain"]["psnr_mean_db"] for links in (digits, photographs)]
    assert gap[1] > gap[0] and above[1] > above[0], "More is learned by heart; photographs gain more decibels"
    seconds = [photographs["scratch_long"]["seconds"], photographs["finetune"]["total_seconds"]]
    assert seconds[0] < seconds[1], "the longer scratch is ahead at less time"
    assert photographs["scratch_long"]["epochs"] == 3 * photographs["scratch"]["epochs"]


def test_published_and_few_labels_are_as_the_notebook_says():
    pairs = [(one, row) for one, row in report.beside(ROWS, report.published()) if row]
    for one, row in pairs:
        ahead = one["value"] / 100 > row["test_accuracy"]
        assert ahead == (row["dataset"] == "cifar10" and "MNIST encoder" not in one["model"]), one
    for share in (0.01, 0.1):
        few = [row for row in report.where(ROWS, dataset="cifar10", label_fraction=share) if row["what"] != "knn"]
        by = {report.kind(row): row for row in few}
        order = ["from scratch", "fine-tuning, encoder of mnist", "fine-tuning"]
        means = [by[name]["test_accuracy"] for name in order]
        assert means == sorted(means) and all(by[name]["n"] == 3 for name in order)
        assert by["fine-tuning"]["encoders"] == 1, "all seeds of a column started from one pretrained encoder"
    bands = [row["psnr_db_std"] for row in ROWS if row["what"] == "pretrain" and row["n"] > 1]
    assert bands and max(bands) < 0.05, "the band is hardly wider than the line"


# Ablations

@pytest.fixture
def studied(tmp_path, monkeypatch):
    """Makes a recorded study of made-up scores: {values of the axes: mean}, over seeds 0 to 2."""
    monkeypatch.setattr(studies, "studies_root", lambda: tmp_path)

    def make(axes, arms):
        cells = [dict(zip(axes, arm)) for arm in arms]
        text = "\n".join("    {" + ", ".join(f"{k} = {json.dumps(v)}" for k, v in cell.items()) + "}," for cell in cells)
        (tmp_path / "s.toml").write_text(f'recipe = "mnist-quick"\nlist = [\n{text}\n]\n[grid]\nseed = [0, 1, 2]\n')
        rows = [{**dict(zip(axes, arm)), "seed": seed, "stage": stage, "run": f"{arm} {seed}",
                 "val_accuracy": score, "psnr_db": psnr}
                for arm, mean in arms.items() for seed in (0, 1, 2) for stage, score, psnr in (
                    ("pretrain", None, 10 + 10 * mean), ("probe", mean + seed / 1000 + 1e-5 * (seed == 1) * mean, None))]
        write_table(rows, tmp_path / "s.csv")
        (tmp_path / "s.json").write_text("{}")
        return Study("s")
    return make


def test_an_ablation_along_one_axis(studied):
    axes, panels = report.ablation(studied(["decoder_depth"], {(1,): 0.9, (4,): 0.95, (8,): 0.9}))
    assert axes == ["decoder_depth"] and list(panels) == ["PSNR, dB", "linear probe, %"]
    assert panels["linear probe, %"][4,] == pytest.approx({0: 95, 1: 95.101, 2: 95.2}, abs=1e-3)
    table = report.standing(axes, panels)
    assert [row["linear probe, %"] for row in table] == ["90.10 ± 0.10", "95.10 ± 0.10 ▲", "90.10 ± 0.10"]
    assert [(row["decoder_depth"], row["n"]) for row in table] == [(1, 3), (4, 3), (8, 3)]


def test_a_stage_that_all_arms_share_is_not_compared(studied):
    study = studied(["finetune.pool"], {("mean",): 0.9, ("cls",): 0.8})
    rows = [row | ({"run": f"encoder {row['seed']}"} if row["stage"] == "pretrain" else {}) for row in study.rows]
    write_table(rows, studies.studies_root() / "s.csv")
    assert list(report.ablation(study)[1]) == ["linear probe, %"]


def test_what_each_arm_paints_differently_is_not_compared(studied):
    _, panels = report.ablation(studied(["patch_size", "mask_ratio"], {(4, 0.5): 0.9, (7, 0.5): 0.8}))
    assert list(panels) == ["linear probe, %"]


def drawn(axes, panels):
    values = {name: {arm: list(seeds.values()) for arm, seeds in arms.items()} for name, arms in panels.items()}
    return plots.ablation(axes, values, "T")


def test_two_axes_are_a_map_where_the_grid_is_full(studied):
    full = drawn(*report.ablation(studied(["patch_size", "mask_ratio"], {(p, r): 0.9 for p in (4, 7) for r in (0.5, 0.75)})))
    assert full.axes[0].images and "patch_size 4, mask_ratio 0.75: 90.10 ± 0.10 (n = 3)" in full.alt
    gaps = drawn(*report.ablation(studied(["mask_strategy", "variant"], {("random", "mae"): 0.9, ("block", "mae"): 0.8,
                                                                         ("random", "cross_decoder"): 0.7})))
    assert not gaps.axes[0].images and "block: 80.10 ± 0.10" in gaps.alt and "original: 90.10 ± 0.10" in gaps.alt


def test_arms_of_several_axes_are_named_by_what_they_change(studied):
    arms = {(6, False, "none"): 0.9, (18, False, "none"): 0.8, (6, True, "affine"): 0.7}
    figure = drawn(*report.ablation(studied(["epochs", "norm_pix_loss", "augment"], arms)))
    names = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert names == ["original", "epochs 18", "norm_pix_loss True\naugment affine"]


# Files

def test_results_csv_has_every_experiment_and_every_published_row(tmp_path, capsys):
    assert main(["report", str(tmp_path), "--csv", str(tmp_path / "results.csv")]) == 0
    table = list(csv.DictReader((tmp_path / "results.csv").open(encoding="utf-8")))
    assert len(table) == len(ROWS) + len(report.published())
    for line, row in zip(table, ROWS):
        assert line["source"] == "this course" and line["runs"].split() == [run.name for run in row["runs"]]
        for key in ("test_accuracy", "test_accuracy_std", "psnr_db", "seconds"):
            assert (line[key] == "") == (row[key] is None) and (row[key] is None or math.isclose(float(line[key]), row[key]))
    values = [round(100 * float(line["published_value"]), 2) for line in table[len(ROWS):]]
    assert values == [row["value"] for row in report.published()]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The report as HTML, PDF (where there is a browser) and CSV, by one command, from a folder with a bad run; and the
    notebook that was executed for it."""
    root = tmp_path_factory.mktemp("report")
    scratch(root, 0, 0.5)
    next(root.glob("*/results.json")).unlink()
    browser, kept = any(map(shutil.which, export.BROWSERS)), []
    words = ["report", str(root), "--html", str(root / "r.html"), *(["--pdf", str(root / "r.pdf")] if browser else [])]
    execute = export._executed
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "_executed", lambda place: kept.append(execute(place)) or kept[0])
        assert main(words) == 0
    return root, kept[0]


def told(cells):
    """{id: text, tables and alt texts} of the code cells, without what says where it ran."""
    found = {}
    for cell in cells:
        if cell["cell_type"] == "code" and not {"bootstrap", "injected-parameters"} & set(tags(cell)):
            said = [piece for o in cell["outputs"] for piece in (
                o.get("text", ""), o.get("data", {}).get("text/markdown", ""),
                *(more.get("alt", "") for more in o.get("metadata", {}).values()))]
            found[cell["id"]] = "".join("".join(piece) for piece in said)
    return found


def test_stored_outputs_of_notebook_10_are_those_of_the_recorded_runs(files):
    """Every number: the whole text of every cell, tables and alt texts included."""
    stored = json.loads((project_root() / "notebooks" / "10_report.ipynb").read_text(encoding="utf-8"))["cells"]
    fresh = told(files[1].cells)
    heard = re.findall(r".* is left out: .*\n", fresh["r10-gather"])
    assert len(heard) == 1, "the bad run is one sentence"
    fresh["r10-gather"] = fresh["r10-gather"].replace(heard[0], "")
    assert told(stored) == fresh, "run notebook 10 again: there are other runs or studies than when it was stored"


def test_the_page_needs_nothing_else_and_shows_the_numbers(files):
    page = (files[0] / "r.html").read_text(encoding="utf-8")
    assert not re.search(r"<script|<link|@import|url\(|javascript:", page)
    assert not re.findall(r'(?:src|href)="(?!data:image/png|https://)[^"]*"', page)
    assert not re.search(r'src="https?:', page) and page.count("<img") >= 6
    assert all('alt="' in picture for picture in re.findall(r"<img[^>]*>", page))
    for row in report.complete(ROWS):
        assert report.spread(row) in page
    for text in ("In [", "Your prediction", "checks.check", "import report", "Open in Colab", "Takeaways"):
        assert (text in page) == (text == "Takeaways"), text
    assert "/tmp/" not in page and "JPEG copy" in page


def test_the_pdf_shows_the_same_with_bookmarks_and_page_numbers(files):
    pypdf = pytest.importorskip("pypdf", reason="pypdf is not installed: pip install pypdf")
    if not (files[0] / "r.pdf").exists():
        pytest.skip("no Chromium, Chrome or Edge prints the PDF here")
    pdf = pypdf.PdfReader(io.BytesIO((files[0] / "r.pdf").read_bytes()))
    text = " ".join(" ".join(page.extract_text() for page in pdf.pages).split())
    for row in report.complete(ROWS):
        assert report.spread(row) in text
    assert f"1 / {len(pdf.pages)}" in text and 5 <= len(pdf.pages) <= 40
    assert float(pdf.pages[0].mediabox.width) == pytest.approx(595, abs=1), "A4"
    assert len(list(pdf.outline)) >= 1 and sum(len(page.images) for page in pdf.pages) >= 6


@pytest.mark.parametrize("missing, sentence", [("papermill", "needs papermill"), ("nbconvert", "needs nbconvert"),
                                               ("playwright", "needs playwright")])
def test_a_missing_package_is_one_sentence(tmp_path, capsys, monkeypatch, missing, sentence):
    found = export.find_spec
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == missing else found(name))
    assert main(["report", str(tmp_path), "--pdf", str(tmp_path / "r.pdf")]) == 2
    assert sentence in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_missing_browser_is_one_sentence(monkeypatch):
    pytest.importorskip("playwright", reason="playwright is not installed: pip install playwright")
    monkeypatch.setenv("CHROMIUM", "/nowhere/chromium")
    with pytest.raises(InputError, match="Chromium, Chrome or Edge, and none could be started"):
        export.as_pdf("<p>a page</p>")


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path, capsys, monkeypatch, files):
    monkeypatch.setattr(export, "_executed", lambda place: files[1])
    (tmp_path / "file").write_text("")
    assert main(["report", str(tmp_path), "--html", str(tmp_path / "file" / "r.html")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_no_mistakes_at_all_have_no_multiple():
    """A small set is learned by heart: all training images right."""
    links = report.chain(report.experiments(report.collect(recorded_root())), "mnist")
    links["finetune"] = {**links["finetune"], "train_accuracy": 1.0}
    found = report.contrast(links)
    assert found["mistakes on test, as a multiple of those on train"] == "–" and found["… against the probe"] == "-88%"
