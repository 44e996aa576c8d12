"""Every number that the README and the stored notebooks print about runs is a run's, or a published one's, as printed.

(Notebook 10 is compared with what it prints when it is run again: tests/test_report.py.)
"""
import json
import re

import pytest

from mae_helpers import report
from mae_helpers.config import project_root
from mae_helpers.runs import recorded_root
from mae_helpers.studies import read_table

ROOT = project_root()
RUNS = {run.name: run for run in report.collect(recorded_root())}
ROWS = report.experiments(list(RUNS.values()))
PUBLISHED = report.published()
README = (ROOT / "README.md").read_text(encoding="utf-8")
NUMBER = r"(?<![\w.,-])\d(?:[\d,]*\d)?(?:\.\d+)?(?![\w.-]*\w)"


def worth(token):
    """Whether a number is long enough to be somebody's: it has decimals, or is at least 100."""
    return "." in token or len(token.replace(",", "")) > 2


def forms(values):
    """Numbers as they may be printed: as they are, or as per cents, with up to four decimals."""
    found = set()
    for value in values:
        found |= {f"{v:.{d}f}" for v in (value, 100 * value) for d in range(1, 5)}
        found |= {f"{value:.{d}%}".rstrip("%") for d in range(1, 3)} | {f"{value:g}"}
    return found


def results_of(runs):
    """What runs reached: accuracies, the gap between train and test, PSNR and its gain, losses."""
    for run in runs:
        result = run.results
        yield from (result[key] for key in (*report.MEANS, "val_accuracy_views", "train_loss")
                    if result.get(key) is not None and key != "seconds")
        for one, other in (("train_accuracy", "test_accuracy"), ("psnr_db", "psnr_mean_db")):
            if result.get(one) is not None and result.get(other) is not None:
                yield abs(result[one] - result[other])


def spreads(rows):
    """Means and standard deviations over seeds, of what has several."""
    return [row[key] for row in rows for score in report.MEANS[:5] for key in (score, f"{score}_std")
            if row[f"{score}_std"] is not None]


def of_others():
    """What others published: the values, and the numbers of the notes and of the two smaller tables."""
    tables = [PUBLISHED, *(read_table(ROOT / "data" / f"published_{name}.csv") for name in ("mnist", "cifar10"))]
    told = " ".join(str(value) for table in tables for row in table for value in row.values())
    return {text for one in re.findall(r"\d+\.?\d*", told) for text in (one, f"{float(one):.2f}")}


# The README

# Numbers of the README that no run says, and why.
ELSEWHERE = {
    "3.10": "a version of Python", "3.11": "another", "2.15": "of torch",
    "2.2": "minutes of a notebook, measured", "1.5": "the same", "1.8": "the same",
    "5.2": "minutes of all of them", "4.2": "the same, another time", "6.2": "the same, another time",
    "98.48": "a run that was not recorded: three epochs, owned up to beside the number", "60,000": "all images of CIFAR-10",
    "16.99": "evaluate() of the best painter on the test digits, which no run keeps",
    "5,000": "validation images of both sets", "10,000": "images of a trial; and of the test, which runs say, too"}


# The best painter went on from the weights of these, in this order; README gives sums of their epochs and of all seconds.
CHAIN = ("e54-s0-ab1ab6f0", "e52-s1-2f320e74", "e48-s2-bf65841e", "e28-s3-953c2c04")


def sums_of_the_chain():
    links = [RUNS[f"pretrain-mnist-p4-m0.75-{name}"].results for name in CHAIN]
    epochs = [str(sum(each["epochs"] for each in links[:n])) for n in range(2, 5)]
    return {*epochs, f"{sum(each['seconds'] for each in links):,.0f}"}


def tables(text):
    """(names of the columns, cells) for each row of each table."""
    header = None
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if not cells:
            header = None
        elif header is None:
            header = cells
        elif not set("".join(cells)) <= set("-: "):
            yield header, cells


def problems_of_row(header, cells):
    """What is wrong in a row that names a recorded run, or a published one."""
    if cells[0].startswith("`") and cells[0].strip("`") not in RUNS:
        return [f"{cells[0]} is not recorded"]
    result = RUNS[cells[0].strip("`")].results if cells[0].startswith("`") else {}
    wanted = {}
    if result:
        grey = "average" in dict(zip(header, cells)).get("what", "")
        test, psnr = result.get("test_accuracy"), result.get("psnr_mean_db" if grey else "psnr_db")
        views = result.get("test_accuracy_views")
        measured = f"{100 * test:.2f} %" if test is not None else f"{psnr:.2f} dB"
        wanted = {"measured": measured, "test": measured, "PSNR": measured,
                  "with views": "" if views is None else f"{100 * views:.2f} %", "seconds": f"{result['seconds']:,.0f}",
                  "patch": str(result["patch_size"]), "hidden, %": f"{100 * (result['mask_ratio'] or 0):g}",
                  "epochs": str(result["epochs"])}
    if "published" in header and "patch" in header:
        patch, hidden = (cells[header.index(name)] for name in ("patch", "hidden, %"))
        wanted["published"] = next((f"{row['value']:.2f}" for row in PUBLISHED if row["dataset"] == "MNIST" and (
            str(row["patch_size"]), f"{100 * (row['mask_ratio'] or 0):g}") == (patch, hidden)), "published for that")
    found = [f"{cells[0]}: {name} is {cell}, not {wanted[name]}" for name, cell in zip(header, cells)
             if name in wanted and cell not in ("", "not run yet", wanted[name])]
    told = dict(zip(header, cells)).get("what", "") if result else ""
    for word, key in (("epochs", "epochs"), ("seed", "seed")):
        said = re.search(r"(\d+) epochs" if word == "epochs" else r"seed (\d+)", told)
        found += [f"{cells[0]}: {said[0]}"] if said and int(said[1]) != result[key] else []
    checked = {*wanted, "run", "what", "published"}
    return found + [f"no check for the column {name}" for name in header if result and name not in checked]


def problems_of_labels(header, cells):
    """What is wrong in a row of the table of few labels."""
    names = {"pretrained on photographs": "fine-tuning", "pretrained on digits": "fine-tuning, encoder of mnist",
             "scratch": "from scratch"}
    wanted = [[row["labels"].replace("100%", "all").replace("%", " %"), *(row[names[name]].replace(" (", " % (")
              for name in header[1:])] for row in report.by_labels(ROWS, "cifar10")]
    return [] if cells in wanted else [f"few labels: {cells}"]


def problems_of_readme(text):
    found, facts = [], {f"{run.results[key]:,.0f}" for run in RUNS.values()
                        for key in ("images", "test_images", "seconds", "parameters")
                        if run.results.get(key)}
    facts |= forms(results_of(RUNS.values())) | forms(spreads(ROWS)) | of_others() | set(ELSEWHERE)
    facts |= {f"{row[key]:,}" for row in PUBLISHED for key in ("pretrain_epochs", "classifier_epochs") if row[key]}
    facts |= sums_of_the_chain()
    facts |= {run.results["torch"].split("+")[0] for run in RUNS.values()}
    text = re.sub(r"### Speed.*?(?=^## )", "", text, flags=re.S | re.M)     # from another file: test_benchmarks.py
    for header, cells in tables(text):
        if cells[0].startswith("`") and header[0] == "run" or "published" in header and "patch" in header:
            found += problems_of_row(header, cells)
        elif header[0] == "labels":
            found += problems_of_labels(header, cells)
    prose = re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)", " ", text, flags=re.S)
    pairs = {tuple(report.spread(row, score, d).split(" ± ")) for row in ROWS for d in (1, 2)
             for score in ("test_accuracy", "test_accuracy_views")}
    found += [f"{a} ± {b}" for a, b in re.findall(r"([\d.]+) ± ([\d.]+)", prose) if (a, b) not in pairs]
    results = prose[prose.index("## Results"):prose.index("## The package")]
    found += [token for token in re.findall(r"\d+\.\d+(?:\.\d+)?", prose) if token not in facts]
    return found + [token for token in re.findall(NUMBER, results) if worth(token) and token not in facts]


def test_numbers_of_the_readme_are_those_of_runs():
    assert problems_of_readme(README) == []


def test_a_wrong_number_in_a_table_of_the_readme_is_found():
    """Whatever number of a result is changed in its last digit, the check sees it."""
    rows = [m for m in re.finditer(r"^\| (`\w|\d+ %|all |– ).*$", README, flags=re.M) if "not run yet (`" not in m[0]]
    changed = 0
    for row in rows:
        for number in re.finditer(r"\d+(?= (?:%|dB))|(?<= \d\d\.)\d\d(?= \|)|(?<=\| )[\d,]*\d(?= \|)|(?<=n = )\d", row[0]):
            last = row.start() + number.end() - 1
            wrong = README[:last] + str((int(README[last]) + 1) % 10) + README[last + 1:]
            assert problems_of_readme(wrong), f"{number[0]} in {row[0]}"
            changed += 1
    assert changed > 60


@pytest.mark.parametrize("right, wrong", [
    ("99.39 ± 0.04", "99.38 ± 0.04"), ("99.39 ± 0.04", "99.39 ± 0.05"), ("so the 98.84 %", "so the 98.85 %"),
    ("89.77", "89.78"), ("2,000 + 100", "2,500 + 100"), ("all 10,000 test digits", "all 11,000 test digits"),
    ("torch 2.15.0", "torch 2.14.1")])
def test_a_wrong_number_in_a_sentence_of_the_readme_is_found(right, wrong):
    assert right in README and problems_of_readme(README.replace(right, wrong, 1))


def test_what_the_readme_says_in_words_is_so():
    few = {row["label_fraction"]: {r["what"]: r["test_accuracy"] for r in ROWS if (r["dataset"], r["label_fraction"]) ==
           ("cifar10", row["label_fraction"]) and r["pretrained_on"] != "mnist"} for row in ROWS if row["label_fraction"]}
    assert "about eleven points with 1 %" in README and round(100 * (few[0.01]["finetune"] - few[0.01]["scratch"])) == 11
    links = report.chain(ROWS, "cifar10")
    assert "scratch is ahead when it gets the same time" in README
    assert links["scratch_long"]["test_accuracy"] > links["finetune"]["test_accuracy"]
    assert "ours has half a million" in README and all(0.4e6 < row["parameters"] < 0.6e6 for row in ROWS
                                                       if row["what"] == "finetune")


# Stored outputs of notebooks

# Cells that compute while the notebook runs, from images and weights, and claim no recorded run.
LIVE = {
    "04_pretraining": {
        "0b448898": "mean and deviation of the pixels", "3ec259c6": "an untrained model", "955b1de8": "the mean digit",
        "21e0f3a5": "a loop written out", "85fdec2b": "the same by the package", "91c853d7": "learning rates tried",
        "bff14494": "protections tried", "5bbab0b2": "trained there", "a944bb83": "the same",
        "1e1a2da9": "interrupted on purpose", "3e14d41b": "and resumed",
        "ex04-floor-reveal": "an exercise", "ex04-curves-show": "an exercise"},
    "05_reconstruction": {
        "e87d9a4f": "what 04 trained", "043cf96d": "jumps between pixels", "693cee3f": "other mask ratios",
        "2565a5ad": "other masks", "a4fe476a": "with true statistics", "60041e3b": "digit by digit",
        "ex05-decibel-reveal": "an exercise"},
    "06_mnist_classification": {
        "d8bc306a": "neighbours of 2,000 digits", "126dffdd": "fine-tuned by hand",
        "60bcc458": "with neighbours in raw pixels",
        "6ecb6fc9": "few labels, trained there", "389baada": "the same as a curve",
        "9d2f41c3": "the same digits, turned", "0c6a92de": "other digits", "13ea9392": "one exam for two models",
        "ex06-neighbour-reveal": "an exercise"},
    "07_cifar10_classification": {
        "731aea23": "uncut training images", "q07lots": "neighbours of 1,000 images", "6d77d169": "spoiled images",
        "03d45921": "the same by four encoders",
        "1836ab36": "differences of two runs, which the test below computes", "51f1897f": "an exercise"},
}
ABOUT = {"07_cifar10_classification": ("cifar10",)}            # the others are about digits


def said(cell):
    """The text of a cell's outputs, with what its pictures and tables say."""
    found = []
    for output in cell.get("outputs", []):
        found += [output.get("text", "")] + [output.get("data", {}).get("text/markdown", "")]
        found += [more["alt"] for more in output.get("metadata", {}).values() if isinstance(more, dict) and "alt" in more]
    return "\n".join("".join(each) for each in found)


def cells_of(name):
    """{id: what the cell says} of a stored notebook."""
    cells = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    return {cell["id"]: said(cell) for cell in cells if cell["cell_type"] == "code"}


def known_to(name):
    """The numbers that a notebook may print: of recorded runs on its images, over seeds, and of others."""
    rows = [row for row in ROWS if row["dataset"] in ABOUT.get(name, ("mnist",))]
    return forms(results_of(run for row in rows for run in row["runs"])) | forms(spreads(rows)) | of_others()


def strangers(text, known):
    """The numbers with decimals, unless they belong to a name or a version, that are nobody's."""
    return [token for token in re.findall(r"(?<![\w.])\d+\.\d+(?![\w.])", text) if token not in known]


@pytest.mark.parametrize("name", LIVE)
def test_numbers_in_stored_outputs_are_those_of_recorded_runs(name):
    cells, known = cells_of(name), known_to(name)
    settings = {"0.002", "0.75", "0.85", "0.5"}                # ratios, and the learning rate of the command line
    found = {id: strangers(text, known | settings) for id, text in cells.items() if id not in LIVE[name]}
    assert {id: numbers for id, numbers in found.items() if numbers} == {}
    assert set(LIVE[name]) <= set(cells), "a cell that is gone needs no exception"


@pytest.mark.parametrize("name", LIVE)
def test_a_wrong_number_in_a_stored_output_is_found(name):
    """With a decimal changed, most numbers are nobody's (some are another run's)."""
    known, wrong = known_to(name), []
    for id, text in cells_of(name).items():
        tokens = [] if id in LIVE[name] else re.findall(r"(?<![\w.])\d+\.\d\d+(?![\w.])", text)
        wrong += [token[:-1] + str((int(token[-1]) + 5) % 10) for token in tokens if strangers(token, known) == []]
    assert wrong and sum(token not in known for token in wrong) >= 0.7 * len(wrong)


def test_the_differences_of_notebook_07_are_those_of_recorded_runs():
    text, seed = cells_of("07_cifar10_classification")["1836ab36"], 0
    accuracies = [{stage: next(run for run in row["runs"] if run.config.seed == seed).results["test_accuracy"]
                   for stage, row in report.chain(ROWS, dataset).items() if stage != "pretrain"}
                  for dataset in ("mnist", "cifar10")]
    for stage in ("knn", "probe", "finetune", "scratch", "scratch_long"):
        assert re.search(rf"^{stage} +{accuracies[0][stage]:.2%} +{accuracies[1][stage]:.2%}$", text, flags=re.M), stage
    for control in ("scratch", "scratch_long"):
        gains = [f"{100 * (each['finetune'] - each[control]):+.2f}" for each in accuracies]
        assert re.search(rf"^finetune minus {control} +\{gains[0]} +\{gains[1]}$", text, flags=re.M), control
