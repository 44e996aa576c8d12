"""The command line: derived from config.py, one sentence for what is wrong."""
import dataclasses
import subprocess
import sys

import pytest

from mae_helpers import ClassifyConfig, PretrainConfig
from mae_helpers.__main__ import main, parse
from mae_helpers.recipes import RECIPES
from mae_helpers.runs import all_runs
from mae_helpers.sources import LOADERS

SMALL = ["--limit", "256", "--epochs", "1", "--embed-dim", "16", "--depth", "1", "--num-heads", "2",
         "--decoder-embed-dim", "16", "--precision", "fp32", "--patch-size", "7"]


@pytest.mark.parametrize("command, cls", [("pretrain", PretrainConfig), ("classify", ClassifyConfig)])
def test_every_knob_is_an_option_with_its_help(capsys, command, cls):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for field in dataclasses.fields(cls):
        assert f"--{field.name.replace('_', '-')}" in text
        assert " ".join(field.metadata["help"].split())[:30] in text.replace("- ", "-")


@pytest.mark.parametrize("option, value", [("epochs", "inf"), ("seed", "1e30")])
def test_numbers_beyond_all_bounds_are_one_sentence(capsys, option, value):
    code = main(["pretrain", f"--{option}", value])
    said = capsys.readouterr().err
    assert code and f"{option} is " in said and "Traceback" not in said and len(said.strip().splitlines()) == 1


def test_options_become_typed_fields():
    found = vars(parse(["pretrain", "--mask-ratio", "0.5", "--epochs", "1e1", "--norm-pix-loss",
                        "--snapshot-epochs", "1,5"]))
    assert found["field_mask_ratio"] == 0.5 and found["field_epochs"] == 10 and isinstance(found["field_epochs"], int)
    assert found["field_norm_pix_loss"] is True and found["field_snapshot_epochs"] == (1, 5)
    assert "field_seed" not in found, "what was not given must not overwrite a recipe"


@pytest.mark.parametrize("words, sentence", [
    (["pretrain", "--mask-ratio", "1.5"], "mask_ratio is 1.5: it must be a number above 0 and below 1."),
    (["pretrain", "--epochs", "ten"], "epochs is 'ten': it must be a whole number at least 1."),
    (["pretrain", "--preset", "vit_tinny"], "Did you mean 'vit_tiny'?"),
    (["pretrain", "--mask-ration", "0.5"], "Did you mean '--mask-ratio'?"),
    (["pretrain", "--dataset", "mnits"], "Did you mean 'mnist'?"),
    (["classify", "--protocol", "scrach"], "Did you mean 'scratch'?"),
    (["classify"], "protocol is 'finetune' but pretrained is empty"),
    (["recipe", "mnist-quik"], "Did you mean 'mnist-quick'?"),
    (["recipe", "mnist-quick", "--label-fraction", "0.1"], "recipe has no option --label-fraction; classify has."),
    (["recipe", "mnist-quick", "knn"], "'knn' is one word too many: recipe --help says what it takes."),
    (["pretrain", "--name", "../elsewhere"], "name is '../elsewhere': it must be the name of one folder"),
    (["record", "nothing-like-it"], "nothing-like-it")])
def test_wrong_input_is_one_sentence_and_exit_status_2(capsys, tmp_path, words, sentence):
    assert main([*words, *(["--root", str(tmp_path)] if words[0] != "record" else [])]) == 2
    out, err = capsys.readouterr()
    assert sentence in err and err.startswith("error: ") and err.count("\n") == 1 and out == ""
    assert list(tmp_path.iterdir()) == []


def test_files_that_cannot_be_written_or_read_are_one_sentence(capsys, tmp_path):
    taken = tmp_path / "a file"
    taken.write_text("")
    for words in (["report", str(tmp_path), "--table", str(taken / "x.csv")], ["report", str(tmp_path / "nowhere")],
                  ["report", str(tmp_path), "--csv", str(taken / "x.csv")],
                  ["predict", "any", "any.png", "--out", "picture.jpg"]):
        assert main(words) == 2, words
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1, words


def test_help_of_a_recipe_names_no_defaults_that_are_not_its_own(capsys):
    for command, told in (("pretrain", True), ("recipe", False), ("sweep", False)):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        assert ("passes over the training images; at least 1 (10)" in " ".join(capsys.readouterr().out.split())) == told


def test_help_names_the_values_that_an_option_takes(capsys):
    said = {}
    for command in ("pretrain", "classify", "recipe"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        said[command] = " ".join(capsys.readouterr().out.split()).replace("- ", "-")
    assert "random changes to the training images: none, affine, handwriting, crop_flip, " in said["pretrain"]
    assert "share of the patches to hide; above 0 and below 1 (0.75)" in said["pretrain"]
    assert "effective batch; above 0 (finetune 0.002, scratch 0.002, probe 0.01)" in said["classify"]
    assert "pictures and weights are kept" in said["pretrain"] and "(())" not in said["pretrain"]
    assert all(name in said["recipe"] for name in RECIPES) and all(name in said["pretrain"] for name in LOADERS)


def test_what_is_not_installed_is_one_sentence(capsys, monkeypatch):
    def act(arguments):
        raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")
    monkeypatch.setattr("mae_helpers.__main__._report", act)
    assert main(["report"]) == 2
    assert capsys.readouterr().err.startswith("error: this needs matplotlib: pip install")

    def broken(arguments):
        raise ModuleNotFoundError("No module named 'mae_helpers.nothing'", name="mae_helpers.nothing")
    monkeypatch.setattr("mae_helpers.__main__._report", broken)
    with pytest.raises(ModuleNotFoundError):                # a mistake of ours is not hidden
        main(["report"])


def test_from_pretraining_to_the_table(capsys, tmp_path):
    root = ["--root", str(tmp_path)]
    assert main(["pretrain", *SMALL, *root, "--name", "first"]) == 0
    out = capsys.readouterr().out
    assert "psnr_db" in out and out.rstrip().endswith("first")
    assert main(["classify", "--protocol", "knn", "--pretrained", "first", "--limit", "256", *root]) == 0
    assert "test_accuracy" in capsys.readouterr().out
    assert main(["report", str(tmp_path)]) == 0
    table = capsys.readouterr().out
    assert "| first |" in table and "%" in table


def test_the_recipe_command_does_the_stages_asked_for(capsys, tmp_path):
    assert main(["recipe", "mnist-quick", "--stages", "knn", *SMALL, "--root", str(tmp_path)]) == 0
    runs = all_runs(tmp_path)
    assert [run.results["protocol"] for run in runs] == ["knn", None] and all(run.config.limit == 256 for run in runs)
    assert "| pretrain-mnist-p7" in capsys.readouterr().out


def test_the_module_runs_as_a_program():
    words = [sys.executable, "-m", "mae_helpers", "pretrain", "--patch-size", "0"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == "error: patch_size is 0: it must be a whole number at least 1.\n"


def test_an_interrupt_says_how_to_go_on(capsys, monkeypatch):
    import mae_helpers.recipes as recipes
    monkeypatch.setattr(recipes, "summary", lambda root: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main(["report"]) == 130 and "goes on where this one was" in capsys.readouterr().err
