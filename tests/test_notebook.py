"""What notebooks lean on."""
import json
import os
import re
import shutil

import pytest

from mae_helpers import InputError, PretrainConfig, classify, notebook, plots, recipes, runs, sources, train
from mae_helpers.__main__ import _fields, parse
from mae_helpers.config import CONFIGS


def test_parameters_become_a_configuration_and_none_leaves_the_recipe():
    recipe, config = notebook.settings({"budget": "quick", "patch_size": 14, "mask_ratio": None, "unrelated": 3})
    assert recipe == "mnist-quick" and config.patch_size == 14 and config.epochs == 6 and config.mask_ratio == 0.75


def test_a_set_without_recipes_takes_those_of_its_like():
    recipe, config = notebook.settings({"budget": "quick", "dataset": "shapes10"})
    assert recipe == "cifar10-quick" and config.dataset == "shapes10" and config.optimizer == "muon"
    assert notebook.settings({"budget": "cpu", "dataset": "cifar10"})[1].optimizer == "muon"
    assert notebook.settings({"budget": "quick"}, only="mnist")[0] == "mnist-quick"
    with pytest.raises(InputError, match="dataset is 'shapes10': it must be one of mnist."):
        notebook.settings({"budget": "quick", "dataset": "shapes10"}, only="mnist")


def test_drawn_shapes_stand_in_for_photographs_and_say_so(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda page: shown.append(page.data))
    monkeypatch.setattr(sources, "data_roots", lambda: ())
    assert notebook.available("cifar10", "cpu") == ("shapes10", "quick")
    assert notebook.available("mnist", "full") == ("mnist", "full")
    assert len(shown) == 1 and shown[0].startswith("> **These are not the images of cifar10.** They are `shapes10`")
    assert "Why: " in shown[0]
    with pytest.raises(InputError, match="Did you mean 'cifar10'"):
        notebook.available("cifar01")


@pytest.mark.parametrize("wrong, sentence", [
    (dict(budget="fast"), "budget is 'fast': it must be one of auto, quick, cpu, full"),
    (dict(budget="cpu"), "budget is 'cpu': for mnist it must be one of auto, quick, full"),
    (dict(mask_ratio=2), "mask_ratio is 2"), (dict(dataset="mnits"), "dataset is 'mnits'.*mean 'mnist'")])
def test_wrong_parameters_are_one_sentence(wrong, sentence):
    with pytest.raises(InputError, match=sentence):
        notebook.settings({"budget": "quick", **wrong})


@pytest.mark.parametrize("device, budget", [("cpu", "quick"), ("cuda", "full"), ("mps", "full")])
def test_the_budget_follows_the_device(monkeypatch, device, budget):
    import torch
    monkeypatch.delenv("MAE_BUDGET", raising=False)
    monkeypatch.setattr(train, "choose_device", lambda: torch.device(device))
    assert notebook.choose_budget("auto") == budget and notebook.choose_budget("quick") == "quick"
    monkeypatch.setenv("MAE_BUDGET", "quick")
    assert notebook.choose_budget("auto") == "quick" and notebook.choose_budget("full") == "full"


def test_flags_are_the_command_line_of_a_configuration():
    wanted = PretrainConfig(patch_size=7, norm_pix_loss=True, snapshot_epochs=(1, 5), mask_ratio=0.5)
    words = ["pretrain", *notebook.flags(wanted).split()]
    assert CONFIGS["pretrain"](**_fields(parse(words))) == wanted


def test_a_notebook_says_which_run_it_looks_at(capsys, tiny_run):
    found = notebook.pretrained(tiny_run.config, "", str(tiny_run.path.parent))
    assert found.path == tiny_run.path and "found in your runs; 2 epochs" in capsys.readouterr().out
    assert notebook.pretrained(PretrainConfig(), str(tiny_run.path)).path == tiny_run.path
    root = str(tiny_run.path.parent)
    with pytest.raises(InputError, match=f"run 04_pretraining .*, or python -m .* --seed 77 --root {re.escape(root)}$"):
        notebook.pretrained(PretrainConfig(seed=77), "", root)
    with pytest.raises(InputError, match="pretrain --seed 77$"):
        notebook.pretrained(PretrainConfig(seed=77))


def test_a_live_figure_stays_in_its_place(monkeypatch):
    shown = []

    class Place:
        def update(self, picture):
            shown.append(("update", picture.alt))

    def display(picture, display_id=False):
        assert display_id, "without it there is nothing to update"
        shown.append(("display", picture.alt))
        return Place()
    monkeypatch.setattr("IPython.display.display", display)
    monkeypatch.setattr("IPython.get_ipython", lambda: "a shell")
    update = notebook.live(lambda rows: plots.curves({"loss": (rows, rows)}, "epoch", "loss"))
    for rows in ([1], [1, 2]):
        update(rows)
    assert [what for what, _ in shown] == ["display", "update"]
    assert "ends at 1" in shown[0][1] and "ends at 2" in shown[1][1]


def test_a_live_figure_is_told_where_there_is_no_page(monkeypatch, capsys):
    monkeypatch.setattr("IPython.get_ipython", lambda: None)
    update = notebook.live(lambda rows: plots.curves({"loss": (rows, rows)}, "epoch", "loss"))
    update([1]), update([1, 2])
    assert capsys.readouterr().out.splitlines() == [f"loss against epoch: loss ends at {end}." for end in (1, 2)]


def test_errors_show_as_one_line_in_a_notebook():
    for error in (InputError("a sentence"), train.TrainingStopped("a sentence")):
        assert error._render_traceback_() == [f"{type(error).__name__}: a sentence"]


def test_a_classifier_is_trained_once_and_then_found(capsys, tmp_path, tiny_run, tiny_classify):
    wanted = tiny_classify(pretrained=str(tiny_run.path), epochs=1)
    (tmp_path / "foreign").mkdir()                          # of another program, which also writes results
    for name in ("config", "results"):
        (tmp_path / "foreign" / f"{name}.json").write_text('{"job": "classify"}')
    first = notebook.classified(wanted, str(tmp_path))
    assert first.finished and "found in your runs" not in capsys.readouterr().out
    assert notebook.classified(wanted, str(tmp_path)).path == first.path
    assert "found in your runs" in capsys.readouterr().out
    assert notebook.classified(wanted.replace(seed=1), str(tmp_path)).path != first.path
    for name, age in (("aaa", -100), ("zzz", 100)):         # the newest, whatever it is called
        shutil.copytree(first.path, tmp_path / name)
        when = (first.path / "results.json").stat().st_mtime + age
        os.utime(tmp_path / name / "results.json", (when, when))
    assert notebook.classified(wanted, str(tmp_path)).name == "zzz"


def test_a_recorded_classifier_is_found_by_its_settings_and_its_encoder(capsys, tmp_path):
    source = runs.find_run(recipes.pretrain_config("mnist-quick"), runs.recorded_root())
    for protocol in ("finetune", "scratch", "knn"):
        found = notebook.classified(recipes.classify_config("mnist-quick", protocol, source), str(tmp_path))
        assert found.recorded and found.config.protocol == protocol
    assert capsys.readouterr().out.count("recorded with the course") == 3 and not list(tmp_path.iterdir())


def test_a_recorded_classifier_belongs_to_an_encoder_trained_in_the_same_way(tmp_path, monkeypatch, tiny_run, tiny_classify):
    """The name of a run changes with the code, the settings do not; a run with a learner's own parts is another thing."""
    recorded = tmp_path / "recorded"
    shutil.copytree(tiny_run.path, recorded / "older-code")
    kept = classify(tiny_classify(pretrained=str(recorded / "older-code"), epochs=1), recorded, say=lambda text: None)
    monkeypatch.setattr(runs, "recorded_root", lambda: recorded)
    wanted = tiny_classify(pretrained=str(tiny_run.path), epochs=1)
    assert notebook.classified(wanted, str(tmp_path / "mine")).path == kept.path
    (kept.path / "model.safetensors").unlink()
    assert notebook.classified(wanted, str(tmp_path / "mine")).path == kept.path
    assert "last" in notebook.classified(wanted, str(tmp_path / "mine"), weights=True).kept()
    own = tmp_path / "own"
    shutil.copytree(tiny_run.path, own)
    saved = json.loads((own / "config.json").read_text())
    saved["fingerprint"]["mask"] = "0123"
    (own / "config.json").write_text(json.dumps(saved))
    assert notebook.classified(tiny_classify(pretrained=str(own), epochs=1), str(tmp_path / "mine")).path != kept.path
    assert runs.find_run(tiny_run.config, tmp_path).name == "older-code"
