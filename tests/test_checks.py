"""Exercises that answer back: right answers pass, every usual mistake is named, and nothing ends in a traceback."""
import random
import re

import numpy as np
import pytest
import torch

from mae_helpers import checks
from mae_helpers.checks import check
from mae_helpers.config import project_root
from mae_helpers.mistakes import EXERCISES, Choice, Exercise

FUNCTIONS = {name: e for name, e in EXERCISES.items() if isinstance(e, Exercise)}
CHOICES = {name: e for name, e in EXERCISES.items() if isinstance(e, Choice)}
WRONG = [(name, mistake) for name, exercise in FUNCTIONS.items() for mistake in exercise.wrong]
EXPLAINED = [(name, letter) for name, choice in CHOICES.items() for letter in choice.wrong]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_right_function_passes_with_one_line(name, capsys):
    assert check(name, FUNCTIONS[name].right)
    assert capsys.readouterr().out == f"✓ {name}\n"


@pytest.mark.parametrize("name, mistake", WRONG)
def test_every_mistake_of_the_table_gets_its_hint(name, mistake, capsys):
    wrong, hint = FUNCTIONS[name].wrong[mistake]
    assert not check(name, wrong)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"✗ {name}") and [line.split()[0] for line in lines[1:]] == ["expected", "got", "hint"]
    assert lines[3] == f"  hint      {mistake}: {hint}"


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("answer", [None, ..., lambda *inputs: None], ids=["None", "dots", "returns None"])
def test_what_is_not_written_yet_is_told_in_a_friendly_line(name, answer, capsys):
    assert not check(name, answer)
    more = f" {checks.NO_RETURN}" if callable(answer) else ""
    assert capsys.readouterr().out == f"· {name}: not yet. {checks.NOT_YET}{more}\n"


@pytest.mark.parametrize("name", [name for name, e in FUNCTIONS.items() if e.start])
def test_an_unchanged_line_is_not_called_a_mistake(name):
    assert "not yet. The line is still as it was" in check(name, FUNCTIONS[name].start).text


@pytest.mark.parametrize("name", CHOICES)
def test_the_right_letter_passes_however_it_is_written(name, capsys):
    choice = CHOICES[name]
    assert all(check(name, answer) for answer in (choice.right, choice.right.upper(), f" ({choice.right})"))
    assert capsys.readouterr().out == f"✓ {name}: {choice.why}\n" * 3
    assert "not yet" in check(name, None).text


@pytest.mark.parametrize("name, letter", EXPLAINED)
def test_every_wrong_letter_has_its_hint(name, letter):
    assert check(name, letter).text.endswith(f"hint      {CHOICES[name].wrong[letter]}")


@pytest.mark.parametrize("answer", ["z", "", 3, 2.5, True, ["b"], torch.zeros(2), len])
def test_what_is_no_letter_is_told(answer):
    text = check("why_blur", answer).text
    assert "expected  one of 'a', 'b', 'c', 'd'" in text and "got       " in text


def stops(*inputs):
    return {}["missing"]


def lists(images, patch_size):
    return [torch.zeros(2), torch.zeros(2)]


STRANGE = [
    (3, "got       a number", "give the function without calling it"),
    ("patchify", "'patchify', a text", "give the function"),
    (torch.zeros(2, 9, 12), "float32 [2, 9, 12]", "give the function"),
    (lambda: 1, "one of ()", "a function of 2 arguments: images, patch_size"),
    (lambda a, b, c: 1, "one of (a, b, c)", "2 arguments"),
    (stops, "KeyError: 'missing'", 'it happened in this line: return {}["missing"]'),
    (lambda x, p: exit(), "SystemExit", "expected  an answer"),
    (lambda x, p: "tokens", "'tokens', a text", "float32 [2, 9, 12]"),
    (lists, "a list of 2", "torch.stack"),
    (lambda x, p: np.zeros((2, 9, 12)), "float64, an array [2, 9, 12]", "torch.from_numpy"),
    (lambda x, p: object(), "an object of type object", "float32"),
    (lambda x, p: x[:, 0], "float32 [2, 6, 6]", "print the shape"),
    (lambda x, p: torch.zeros(2, 9, 12).log(), "216 of 216 are NaN or infinite", "divided by 0"),
    (lambda x, p: torch.zeros(2, 9, 12), "differ", "work the smallest case out by hand"),
    (lambda x, p: x.mul_(2), "an input that your function has changed", "work on x.clone()"),
    (lambda x, p: x.view(5, 5), "RuntimeError: shape '[5, 5]' is invalid", "images [2, 3, 6, 6], patch_size 2"),
]


@pytest.mark.parametrize("answer, got, hint", STRANGE, ids=range(len(STRANGE)))
def test_strange_answers_are_told_in_few_short_lines(answer, got, hint):
    text = check("patchify", answer).text
    assert got in text and hint in text and "Traceback" not in text
    assert len(text.splitlines()) <= 4 and all(len(line) < 250 for line in text.splitlines())


def test_the_type_of_a_mask_matters():
    right = FUNCTIONS["mask_from_noise"].right
    text = check("mask_from_noise", lambda noise, count: right(noise, count).float()).text
    assert "expected  bool [4, 10]" in text and "got       float32 [4, 10]" in text and "a comparison" in text


@pytest.mark.parametrize("answer, got", [(lambda t, r, g: t, "float32 [4, 16, 3]"),
                                         (lambda t, r, g: (t, t), "a tuple of 2"),
                                         (lambda t, r, g: (t, t, t, t), "a tuple of 4")])
def test_a_function_with_several_results_says_which(answer, got):
    text = check("random_masking", answer).text
    assert "3 results: seen, mask, restore" in text and got in text
    assert "got       seen None" in check("random_masking", lambda t, r, g: (None, None, None)).text


def test_where_numbers_are_free_the_shape_of_a_mistake_is_enough():
    scores = check("linear_probe", lambda train_x, train_y, x: torch.rand(len(x), 4)).text
    assert "hint      scores instead of classes" in scores
    untrained = check("linear_probe", lambda train_x, train_y, x: torch.arange(len(x)) % 4).text
    assert "expected  at least 90 % right" in untrained and "hint      hardly trained" in untrained


@pytest.mark.parametrize("name", ["patchfy", "", None, 3, ["patchify"], torch.zeros(2), len])
def test_an_unknown_exercise_is_told_and_not_raised(name):
    assert not check(name, None)
    assert "Did you mean 'patchify'" in check("patchfy", None).text


def test_other_right_ways_pass():
    """The order of the noise, as in the official code; and numbers of Python or NumPy where one number is asked for."""
    def masking(tokens, mask_ratio, generator):
        order = torch.rand(tokens.shape[:2], generator=generator).argsort(1)
        restore, kept = order.argsort(1), tokens.shape[1] - round(tokens.shape[1] * mask_ratio)
        seen = torch.stack([row[index[:kept]] for row, index in zip(tokens, order)])
        return seen, restore >= kept, restore
    assert check("random_masking", masking)
    assert check("masked_loss", lambda p, t, m: float(((p - t) ** 2)[m].mean()))
    assert check("hidden_count", lambda patches, ratio: torch.tensor(round(patches * ratio)))
    assert check("patch_count", lambda side, patch_size: np.int64((-(-side // patch_size)) ** 2))
    assert check("linear_probe", FUNCTIONS["linear_probe"].right)


def test_a_mistake_made_in_another_way_is_recognised_by_what_it_does():
    """The order of the noise and the global dice: no function of the table gives these numbers."""
    def masking(tokens, mask_ratio, generator):
        order = torch.rand(tokens.shape[:2]).argsort(1, descending=True)
        seen = tokens.gather(1, order[:, :4, None].expand(-1, -1, 3))
        return seen, order.argsort(1) >= 4, order.argsort(1)
    assert "hint      global random state" in check("random_masking", masking).text


def test_the_learners_dice_are_left_alone():
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    for name in ("random_masking", "own_strategy", "block"):
        check(name, FUNCTIONS[name].right)
        check(name, lambda *inputs: (torch.rand(3), np.random.rand(), random.random()))
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1], before[2]) == (np.random.get_state()[1].tolist(), random.getstate())


def test_a_function_may_print_while_it_is_checked(capsys):
    check("patch_count", lambda side, patch_size: print("side", side))
    assert "side 28" in capsys.readouterr().out


def test_the_stop_button_works():
    def endless(images, patch_size):
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        check("patchify", endless)


def test_a_result_draws_nothing_in_a_notebook():
    from IPython.core.interactiveshell import InteractiveShell
    formats, _ = InteractiveShell.instance().display_formatter.format(check("why_blur", "c"))
    assert formats == {}


def test_predictions_are_shown_beside_results(capsys):
    checks.predict("psnr of the mean", 10)
    checks.reveal("psnr of the mean", 10.6, "dB")
    checks.predict("which digit", "three")
    checks.reveal("which digit", "five")
    checks.predict("later", None)
    checks.reveal("later", 3)
    checks.reveal("never asked", 0.123456)
    assert capsys.readouterr().out.splitlines() == [
        "psnr of the mean: you predict 10",
        "psnr of the mean: 10.6 dB (you predicted 10 dB, off by 0.6 dB)",
        "which digit: you predict three", "which digit: five (you predicted three)",
        "· later: no prediction yet", "later: 3 (you made no prediction)",
        "never asked: 0.1235 (you made no prediction)"]


def test_the_teachers_page_names_every_exercise_and_every_mistake():
    page = (project_root() / "notebooks" / "teaching.md").read_text(encoding="utf-8")
    rows = {name: row for name, row in re.findall(r"^\| \d\d \| `(\w+)` \| (.*) \|$", page, flags=re.M)}
    assert list(rows) == list(EXERCISES)
    assert [(name, mistake) for name, mistake in WRONG if mistake not in rows[name]] == []
