"""Benchmarks: contestants of one size, honest arithmetic, a guard that fails, and a file that keeps other devices."""
import contextlib
import json
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec

import pytest
import torch

import mae_helpers.model
from benchmarks import __main__ as command
from benchmarks import classic, epochs, floor, growth, guard, results, show, steps, timing
from benchmarks.contestants import CONTESTANTS, OURS, PEERS, Task, step
from mae_helpers.config import project_root

CPU = torch.device("cpu")
TINY = Task(batch_size=2, depth=1, preset="vit_micro")


def needs(name):
    package = CONTESTANTS[name].package
    if package and find_spec(package) is None:
        pytest.skip(f"{package} is not installed: make bench installs it")


# Contestants

@pytest.mark.parametrize("patch_size", [4, 2])
@pytest.mark.parametrize("name", PEERS)
def test_a_peer_has_as_many_parameters_as_ours(name, patch_size):
    needs(name)
    counts = steps.count([OURS, name], Task(patch_size=patch_size))
    assert steps.mismatches(counts) == [], counts


def test_our_size_is_what_the_tables_say():
    """192 wide, 12 deep, decoder of 4: 16 blocks of 12·192² + 13·192, and what surrounds them."""
    block, embedding = 12 * 192 ** 2 + 13 * 192, 48 * 192 + 192
    around = 192 + 2 * 192 + (192 ** 2 + 192) + 192 + 2 * 192 + (192 * 48 + 48)
    assert steps.count([OURS], Task())[OURS] == 16 * block + embedding + around


def test_a_contestant_of_another_size_is_noticed():
    counts = steps.count([OURS], Task())
    assert steps.mismatches({**counts, "other": round(1.05 * counts[OURS])}) == ["other"]


@pytest.mark.parametrize("patch_size", [4, 2])
@pytest.mark.parametrize("name", CONTESTANTS)
def test_a_step_changes_all_that_is_learned(name, patch_size):
    needs(name)
    task = TINY.replace(patch_size=patch_size)
    for precision in steps.PRECISIONS:
        work = step(name, task, steps.pictures(task, CPU), precision)
        before = {k: p.detach().clone() for k, p in work.module.named_parameters() if p.requires_grad}
        work(), work()
        still = [k for k, p in work.module.named_parameters() if p.requires_grad and torch.equal(before[k], p)]
        # the key's bias has no effect on attention, and what a peer brings along unused does not learn
        assert len(still) <= 0.1 * len(before) + 1, still
        assert all(p.isfinite().all() for p in work.module.parameters())


def test_a_peer_that_is_not_installed_is_said_and_the_rest_goes_on(monkeypatch):
    monkeypatch.setattr(steps, "find_spec", lambda package: None)
    said = []
    assert steps.installed(CONTESTANTS, said.append) == [OURS]
    assert len(said) == len(PEERS) and all("not installed" in text for text in said)


def test_a_processor_without_bf16_is_a_machine_of_its_own(monkeypatch):
    names = {}
    for pays, precisions in ((True, ("fp32", "bf16")), (False, ("fp32",))):
        monkeypatch.setattr(results, "bf16_pays", lambda pays=pays: pays)
        names[pays], said = results.entry_name(CPU), []
        assert steps.precisions(CPU, said.append) == precisions and bool(said) != pays
    assert names[True] != names[False] == names[True] + ", fp32 only"


def test_the_memory_of_a_process_is_its_own():
    """Not that of the larger one which started it."""
    child = "import torch; from benchmarks.alone import peak; print(peak(torch.device('cpu')))"
    parent = ("import subprocess, sys; large = b'1' * 2 ** 31; "
              f"print(subprocess.check_output([sys.executable, '-c', {child!r}], text=True))")
    found = subprocess.check_output([sys.executable, "-c", parent], text=True, cwd=project_root())
    assert 50 < float(found) < 1_500


def test_without_a_compiler_the_compiled_ones_are_left_out_in_a_sentence(monkeypatch):
    monkeypatch.setattr(steps.shutil, "which", lambda name: None)
    said = []
    times, _ = steps.measure(TINY, CPU, [OURS], ("fp32",), rounds=1, warmup=1, turn_seconds=0, say=said.append)
    assert list(times) == [(OURS, "fp32", False)] and "compiler" in said[0]


# The classic loop

def test_the_classic_masks_are_permutations_and_what_undoes_them():
    order, undo = classic.shuffles(3, 16)
    assert torch.equal(order.gather(1, undo), torch.arange(16).expand(3, -1))
    assert not torch.equal(order[0], order[1])


def test_the_classic_model_counts_three_quarters_of_the_pixels():
    pytest.importorskip("timm")
    model = classic.ClassicAutoencoder(32, 4, 0.75, 12, 1, 3, 12, 1, 3)
    order, undo = classic.shuffles(2, 64)
    predicted, hidden = model(torch.randn(2, 3, 32, 32), order, undo)
    assert predicted.shape == hidden.shape == (2, 3, 32, 32) and hidden.mean() == 0.75
    patch = order[0, 0]                     # the first of the order is visible, wherever it stands in the image
    row, col = 4 * (patch // 8), 4 * (patch % 8)
    assert hidden[0, :, row:row + 4, col:col + 4].sum() == 0


@pytest.mark.parametrize("job", ["pretrain", "finetune"])
def test_our_own_epochs_need_no_other_library(job):
    between = []
    seconds = epochs.ours(job, TINY, epochs.image_set(4, TINY.image_size, CPU), 2, "off", lambda: between.append(1))
    assert len(seconds) == 2 and min(seconds) > 0 and len(between) == 3     # the first epoch does not count


def test_epochs_take_turns_and_the_first_of_each_does_not_count(monkeypatch):
    """Made-up loops: ours and theirs run once a round, and the ratio is that of the rounds that count."""
    pytest.importorskip("timm")
    found = epochs.part(TINY, CPU, count=4, rounds=2, workers=0, say=lambda text: None)
    assert found["epoch"]["rounds"] == 2 and found["epoch"]["images"] == 4
    assert found["ratio_epoch_classic"] == found["epoch"]["ratio"] > 0
    assert 0 < found["epoch"]["data_share"]


# Turns, medians, ratios

def test_everybody_has_one_turn_a_round_and_the_order_moves_on():
    turns = []
    works = {name: (lambda name=name: turns.append(name)) for name in "abc"}
    times = timing.alternate(works, CPU, rounds=3, warmup=0, turn_seconds=0)
    assert turns[::2] == turns[1::2]                        # the first call of a turn does not count
    assert turns[6::2] == list("abcbcacab")                 # the first three turns find out how long a call takes
    assert {name: len(values) for name, values in times.items()} == dict.fromkeys("abc", 3)


def test_a_turn_is_within_what_the_user_s_loop_opens_around_the_steps():
    seen = []

    @contextlib.contextmanager
    def around():
        seen.append("open")
        yield
        seen.append("closed")

    def work():
        seen.append("call")
    work.around = around
    assert timing.turn(work, CPU, 2) >= 0 and seen == ["open", "call", "call", "call", "closed"]
    assert {name: hasattr(step(name, TINY, steps.pictures(TINY, CPU)), "around") for name in (OURS, "classic loop")
            if steps.installed([name], lambda text: None)}.items() <= {OURS: True, "classic loop": False}.items()


def test_one_that_fails_is_told_and_left_out():
    said = []

    def broken():
        raise RuntimeError("no such thing\nand a long story")
    times = timing.alternate({("bad", "fp32"): broken, "good": lambda: None}, CPU, 2, turn_seconds=0, say=said.append)
    assert list(times) == ["good"] and said == ["bad fp32 is left out: RuntimeError: no such thing"]


def test_an_interrupted_run_keeps_whole_rounds():
    calls, said = [], []

    def impatient():
        calls.append(0)
        if len(calls) == 8:                                 # warm-up, two for the trial and each round, and in the third
            raise KeyboardInterrupt
    times = timing.alternate({"a": lambda: None, "b": impatient}, CPU, 7, warmup=1, turn_seconds=0, say=said.append)
    assert {name: len(values) for name, values in times.items()} == {"a": 2, "b": 2} and "2 of 7" in said[0]


def test_drift_cancels_in_ratios_within_rounds():
    """The machine becomes three times slower while it runs; the medians alone would tell, the ratios do not."""
    ours, theirs = [1.0, 1.5, 2.0, 2.5, 3.0], [1.5, 2.25, 3.0, 3.75, 4.5]
    assert timing.speedup(theirs, ours) == {"ratio": 1.5, "low": 1.5, "high": 1.5, "rounds": 5}
    assert timing.spread(ours) == pytest.approx(0.5) and timing.spread([2.0]) == 0
    with pytest.raises(ValueError):
        timing.ratios([1.0, 2.0], [1.0])


def made_up(ours=1.0, peer=2.0):
    """Seconds of three rounds: ours, a peer that compiling helps, and another that is slower."""
    return {(OURS, "fp32", False): [2 * ours] * 3, (OURS, "bf16", False): [ours] * 3, (OURS, "bf16", True): [1.1 * ours] * 3,
            ("lightly", "fp32", False): [2.5 * peer] * 3, ("lightly", "fp32", True): [1.5 * peer] * 3,
            ("lightly", "bf16", False): [peer] * 3, ("lightly", "bf16", True): [0.75 * peer] * 3,
            ("classic loop", "fp32", False): [4 * peer] * 3}


def test_each_ones_best_and_equal_precision_are_compared():
    found = results.comparisons(made_up(), 4)
    assert results.headline(found) == {"ratio_best": 1.5, "ratio_fp32": 1.5}
    best = results.against_fastest(found, "best")
    assert (best["peer"], best["ours"], best["theirs"]) == ("lightly", "bf16 eager", "bf16 compiled")
    assert results.against_fastest(found, "best", eager=True)["ratio"] == 2
    slow = next(c for c in found if c["peer"] == "classic loop" and c["kind"] == "fp32" and not c["eager"])
    assert slow["ratio"] == 4
    assert results.headline([]) == {"ratio_best": None, "ratio_fp32": None}


# The guard

def record(path, times, device="a device"):
    more = {key: {"attention": "fused" if "fused" in CONTESTANTS[key[0]].attentions else "own"} for key in times}
    parts = {"machine": {}, "versions": {}, "rows": results.rows(times, 4, 128, more),
             "comparisons": results.comparisons(times, 4)}
    return results.add(device, {**parts, **results.headline(parts["comparisons"])}, path)


@pytest.mark.parametrize("now, good", [(1.0, True), (1.2, True), (0.81, True), (0.79, False)])
def test_the_guard_fails_at_a_drop_of_more_than_a_fifth(now, good):
    assert guard.verdict(2 * now, 2.0)[0] == good


@pytest.mark.parametrize("slower, code", [(1.0, 0), (1.15, 0), (1.3, 1)])
def test_the_guard_ends_with_a_code(tmp_path, monkeypatch, capsys, slower, code):
    path = tmp_path / "throughput.json"
    record(path, made_up(), results.entry_name(CPU))
    monkeypatch.setattr(guard.results, "load", lambda: json.loads(path.read_text())["devices"])
    # the machine is three times slower today, which must not matter
    monkeypatch.setattr(guard, "measure", lambda *a, **k: (made_up(3 * slower, 3 * 2.0), {}))
    assert guard.main(["--device", "cpu"]) == code
    assert ("SLOWER" in capsys.readouterr().out) == bool(code)


def test_the_guard_says_when_nothing_is_recorded(monkeypatch, capsys):
    monkeypatch.setattr(guard.results, "load", lambda: {})
    assert guard.main(["--device", "cpu"]) == 2
    assert "nothing is recorded" in capsys.readouterr().out


# The file

def test_a_new_device_keeps_the_others_and_a_new_patch_size_the_rows_of_the_other(tmp_path):
    path = tmp_path / "throughput.json"
    first = record(path, made_up(), "one")
    record(path, made_up(2.0), "two")
    entries = results.load(path)
    assert set(entries) == {"one", "two"} and entries["one"] == first and results.problems(entries) == []
    results.add("one", {"rows": results.rows({(OURS, "fp32", False): [1.0]}, 2, 128), "comparisons": [],
                        "measured": {"step2": results.stamp(0.5)}}, path)
    results.add("one", {"measured": {"mask": results.stamp(None)}}, path)
    entry = results.load(path)["one"]
    assert Counter(row["patch_size"] for row in entry["rows"]) == {4: 8, 2: 1}
    assert entry["ratio_best"] == 1.5 and entry["comparisons"] == first["comparisons"]
    assert entry["measured"]["step2"]["beside_other_jobs"] is True and set(entry["measured"]) == {"step2", "mask"}


def test_problems_of_a_file_are_found():
    row = {"contestant": "x", "precision": "fp32", "compiled": "yes", "patch_size": 4, "images_per_second": 1.0,
           "spread": 0.1}
    found = results.problems({"one": {"machine": {}, "versions": {}, "rows": [row], "ratio_best": 1, "ratio_fp32": 1}})
    assert found == ["one: no ratio_epoch_classic", "one: x has a wrong compiled"]


def test_the_recorded_file_is_in_order_and_the_pages_show_it():
    entries = results.load()
    assert results.problems(entries) == []
    assert not any(word in json.dumps(entries) for word in ("/home/", "/root", "/tmp", "/work"))
    for name in show.PAGES:
        text = (project_root() / name).read_text(encoding="utf-8")
        assert show.fill(text, entries) == text, f"{name}: python -m benchmarks.show --write"


def test_the_sentence_of_the_readme_is_what_was_measured():
    """How fast ours is beside the others, each in its best mode, on each device."""
    text = (project_root() / "README.md").read_text(encoding="utf-8").replace("\n", " ")
    for entry in results.load().values():
        best = [c["ratio"] for c in entry["comparisons"] if c["kind"] == "best" and c["patch_size"] == 4 and not c["eager"]]
        assert len(best) == len(PEERS)
        words = f"{min(best):.2f} to {max(best):.2f} times as fast as the others"
        assert words in text, words
        fp32 = [c["ratio"] for c in entry["comparisons"] if c["kind"] == "fp32" and c["patch_size"] == 4 and not c["eager"]]
        words = f"{min(fp32):.2f} to {max(fp32):.2f} times as fast as each of the others" if min(fp32) > 1 else ""
        assert words in text, words
        small = [c["ratio"] for c in entry["comparisons"] if c["kind"] == "best" and c["patch_size"] == 2]
        words = f"patches of 2, where a step needs more memory, it is {min(small):.2f} to {max(small):.2f} times as fast" \
            if small else ""
        assert words in text, words


def test_tables_have_what_was_measured():
    times = made_up()
    entry = {"machine": {"type": "cpu", "note": "quiet"}, "versions": {"torch": "2"}, "rows": results.rows(times, 4, 128),
             "comparisons": results.comparisons(times, 4), "ratio_best": 1.5, "ratio_fp32": 1.5, "ratio_epoch_classic": None,
             "measured": {"step": {"when": "2030-01-01", "beside_other_jobs": True}}}
    text = show.section("steps", {"A laptop": entry})
    assert "A laptop; torch 2; quiet; 2030-01-01; *beside other jobs*" in text
    assert "| 4 | mae_helpers | 64 ± 0% | – |" in text
    assert "1.50 (1.50–1.50)" in show.section("ratios", {"A laptop": entry})
    assert "| 1.2 / 1.5 | 1.5 |" in show.section("goals", {"A laptop": entry})
    assert show.section("latency", {"A laptop": entry}) == "Not measured yet: `make bench`."
    assert "mae_helpers" in show.figure({"A laptop": entry}).alt


# What else is measured

def test_products_of_a_step_are_seen_and_can_be_done_again():
    a, b, bias = torch.randn(5, 3), torch.randn(3, 4), torch.randn(4)
    seen = floor.products_of(lambda: (torch.addmm(bias, a, b), a @ b, a @ b, a + 1))
    assert sorted(seen.values()) == [1, 2]
    assert floor.products_of(floor.replay(seen, CPU)) == seen
    assert floor.flops(lambda: a @ b) == 2 * 5 * 3 * 4


@pytest.mark.parametrize("detour", [False, True])
def test_products_alone_are_those_of_the_step(detour, monkeypatch):
    """All operations of a step are in the replayed products, because short sequences have no fused attention; also where
    linear layers are computed as convolutions."""
    monkeypatch.setattr(mae_helpers.model, "SLOW_MKL", detour)
    task = TINY.replace(batch_size=16)
    work = step(OURS, task, steps.pictures(task, CPU))
    convolutions = [func for func, _ in floor.products_of(work) if func is torch.ops.aten.convolution.default]
    assert bool(convolutions) == detour
    assert floor.flops(floor.replay(floor.products_of(work), CPU)) == floor.flops(work)


def test_hiding_most_patches_is_cheaper_for_the_encoder():
    task = Task(batch_size=2, depth=2)
    images = steps.pictures(task, CPU)
    most, none = (floor.flops(growth.encoder_step(task, images, "fp32", ratio)) for ratio in (0.75, 0.0))
    assert none > 3.5 * most


@pytest.mark.parametrize("words", [["--rounds", "4"], ["--no-compile"], ["--batch-size", "8"],
                                   ["--contestants", "mae_helpers"]])
def test_only_a_complete_measurement_is_recorded(monkeypatch, capsys, words):
    assert command.for_the_record(command.arguments(["mask"]))
    assert not command.for_the_record(command.arguments(["mask", *words]))
    monkeypatch.setattr(results, "add", None)
    monkeypatch.setattr(command, "measure", lambda *rest: {"mask": []})
    monkeypatch.setattr(command.show, "part", lambda *rest: "a table")
    assert command.main(["mask", *words]) == 0 and "a table\nnot recorded: " in capsys.readouterr().out


def test_wrong_values_are_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.main(["mask", "--device", "cuda"]) == 2 and capsys.readouterr().err.startswith("error: device is 'cuda'")
    with pytest.raises(SystemExit):
        command.arguments(["--threads", "-3"])


def test_parts_are_chosen_by_name(capsys):
    assert command.arguments([]).parts == list(command.GOALS)
    assert command.arguments(["all"]).parts == list(command.PARTS)
    assert command.arguments(["latency", "step"]).parts == ["step", "latency"]
    with pytest.raises(SystemExit):
        command.arguments(["speed"])
    assert "no part 'speed'" in capsys.readouterr().err
