"""Exercises that answer back: `check("patchify", my_patchify)` prints one ✓ line, or expected, got and a hint.

A learner's function is called with the inputs of the table in `mistakes.py` and compared with the right one. When its
answers are those of a usual mistake, the mistake is named. Nothing here raises: an error of the learner's function is
told in a line. The global random state is put back afterwards.
"""
from __future__ import annotations

import inspect
import random
import traceback
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from .config import unknown
from .mistakes import EXERCISES, Choice, Exercise


@dataclass(frozen=True)
class Result:
    """What a check found. True or False where a condition is asked for; a notebook prints nothing for it."""

    passed: bool
    text: str

    def __bool__(self) -> bool:
        return self.passed

    def _ipython_display_(self) -> None:        # IPython asks this before it draws the last value of a cell
        pass


class Problem(Exception):
    """Why an answer does not pass; without `expected` it has not been given yet."""

    def __init__(self, expected: str = "", got: str = "", hint: str = "", given: str = ""):
        super().__init__(expected, got, hint, given)
        self.expected, self.got, self.hint, self.given = expected, got, hint, given


def check(name: str, answer=None) -> Result:
    """Judge the answer to an exercise, a function or a letter, and print what was found."""
    try:
        with _dice_put_back():
            exercise = EXERCISES.get(name) if isinstance(name, str) else None
            if exercise is None:
                raise Problem("the name of an exercise first", unknown("the name", name, EXERCISES))
            judge = _judge_choice if isinstance(exercise, Choice) else _judge_function
            judge(name, exercise, answer)
    except Problem as found:
        lines = [f"✗ {name}" + (f", for {found.given}" if found.given else "")] if found.expected else []
        rows = (("expected", found.expected), ("got", found.got), ("hint", found.hint))
        lines += [f"  {label:10}{text}" for label, text in rows if text and found.expected]
        return _say(False, "\n".join(lines) or f"· {name}: not yet. {found.hint}")
    except Exception as error:                  # a strange answer must not end in a traceback
        return _say(False, f"✗ {name}\n  expected  an answer that can be compared\n  got       {_first_line(error)}")
    return _say(True, f"✓ {name}" + (f": {exercise.why}" if isinstance(exercise, Choice) else ""))


_predictions: dict[str, object] = {}


def predict(label: str, value=None) -> None:
    """Write down a prediction before the result is known; `reveal` shows both."""
    _predictions[str(label)] = value
    print(f"· {label}: no prediction yet" if value is None else f"{label}: you predict {_short(value)}")


def reveal(label: str, value, unit: str = "") -> None:
    """The result, beside what was predicted under the same label."""
    guess, unit = _predictions.get(str(label)), f" {unit}" if unit else ""
    off = ""
    if all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in (guess, value)):
        off = f", off by {abs(guess - value):.2g}{unit}"
    beside = "you made no prediction" if guess is None else f"you predicted {_short(guess)}{unit}{off}"
    print(f"{label}: {_short(value)}{unit} ({beside})")


# How an answer is judged

NOT_YET = "Write your lines where the comment says, run that cell, then this one."
NO_RETURN = "(It returns None: if your lines are there, is `return` missing?)"


def _judge_choice(name: str, choice: Choice, answer) -> None:
    letters = sorted([choice.right, *choice.wrong])
    if answer is None or answer is ...:
        raise Problem(hint="Put the letter of your answer in quotes.")
    letter = answer.strip().lower().strip("()") if isinstance(answer, str) else ""
    if letter not in letters:
        raise Problem(f"one of {', '.join(map(repr, letters))}", _kind(answer) if letter == "" else repr(answer))
    if letter != choice.right:
        raise Problem("another answer", repr(letter), choice.wrong[letter])


def _judge_function(name: str, exercise: Exercise, function) -> None:
    if function is None or function is ...:
        raise Problem(hint=NOT_YET)
    if not callable(function):
        raise Problem("a function", _kind(function), f'give the function without calling it: check("{name}", my_function)')
    answers = _answers(function, exercise)
    if any(value is None or value is ... for value in answers):
        raise Problem(hint=NOT_YET + (f" {NO_RETURN}" if any(value is None for value in answers) else ""))
    if exercise.start and _alike(answers, _answers(exercise.start, exercise), exercise):
        raise Problem(hint="The line is still as it was. Change it, run that cell, then this one.")
    cases, right = exercise.cases(), _answers(exercise.right, exercise)
    for arguments, want, have in zip(cases, right, answers):
        found = _difference(want, have, exercise)
        if found:
            raise Problem(*found[:2], _mistake(answers, exercise) or found[2], _given(exercise, arguments))
    found = exercise.judge and exercise.judge(cases, [_parts(value, exercise) for value in answers])
    if found:
        hint = f"{found[2]}: {exercise.wrong[found[2]][1]}" if found[2] in exercise.wrong else found[2]
        raise Problem(*found[:2], _mistake(answers, exercise) or hint)


def _answers(function: Callable, exercise: Exercise) -> list:
    """What the function returns for each case. The global dice fall differently in each, whatever its generator."""
    found = []
    for number, (arguments, before) in enumerate(zip(exercise.cases(), exercise.cases())):
        torch.default_generator.manual_seed(number), np.random.seed(number), random.seed(number)
        try:
            inspect.signature(function).bind(*arguments)
        except TypeError:
            names = list(inspect.signature(exercise.right).parameters)
            raise Problem(f"a function of {len(names)} argument{'s' * (len(names) > 1)}: {', '.join(names)}",
                          f"one of {inspect.signature(function)}") from None
        except ValueError:                      # a function written in C has no signature to look at
            pass
        try:
            found.append(function(*arguments))
        except (Exception, SystemExit) as error:
            raise Problem("an answer", _first_line(error), _place(error, function), _given(exercise, arguments)) from None
        if any(not _equal(a, b) for a, b in zip(arguments, before) if isinstance(a, (torch.Tensor, np.ndarray))):
            raise Problem("inputs left as they were", "an input that your function has changed", "a line such as x += 1 or "
                          "x[...] = 0 writes into the caller's tensor: work on x.clone().", _given(exercise, arguments))
    return found


def _difference(want, have, exercise: Exercise) -> tuple[str, str, str] | None:
    """(expected, got, hint) for the first part that differs: its type, its shape, then its numbers."""
    wanted, given = _parts(want, exercise), _parts(have, exercise)
    if given is None:
        what = "attributes" if exercise.attributes else "results"
        return f"{len(wanted)} {what}: {', '.join(exercise.parts)}", _kind(have), ""
    for part, right, value in zip(exercise.parts, wanted, given):
        label, a, b = f"{part} " if part else "", _tensor(right), _tensor(value)
        kinds = label + _kind(right), label + _kind(value)
        if b is None or isinstance(right, torch.Tensor) and a.ndim and not isinstance(value, torch.Tensor):
            return *kinds, TENSOR if a.ndim else "the answer is a single number"
        if a.shape != b.shape:
            order = f"results come in the order {', '.join(exercise.parts)}; " if len(exercise.parts) > 1 else ""
            return *kinds, f"{order}print the shape after every step" if isinstance(right, torch.Tensor) else CHANNELS
        if b.dtype != a.dtype and not a.is_floating_point() and a.ndim:
            return *kinds, TYPES[a.dtype]
        if b.is_floating_point() and not b.isfinite().all():
            return (f"{label}finite numbers", f"{int((~b.isfinite()).sum())} of {b.numel()} are NaN or infinite",
                    "was something divided by 0, or its logarithm taken?")
        if exercise.judge is None and not _equal(a, b):
            off = (~_close(a, b)).nonzero()
            place = tuple(off[0].tolist())
            where = f" at {list(place)}; {len(off)} of {a.numel()} differ" if place else ""
            return (f"{label}{_short(a[place].item())}", f"{label}{_short(b[place].item())}{where}",
                    "the shape is right, the numbers are not: work the smallest case out by hand")
    return None


TENSOR = "return a tensor: torch.from_numpy makes one of an array, torch.stack or torch.cat of a list of tensors"
CHANNELS = "one number per channel: (0.5,), with the comma, is a tuple of one"
TYPES = {torch.bool: "a comparison such as rank >= 4 gives True and False", torch.uint8: "pixels at rest are uint8, 0 … 255",
         torch.int64: "indices and classes are whole numbers: x.long()"}


def _mistake(answers: list, exercise: Exercise) -> str:
    """The name and the hint of the usual mistake that gives these answers, or nothing. Where the numbers are free, a
    shape that only a mistake has is enough."""
    right = _answers(exercise.right, exercise)
    for same in (_equal, _same_shape)[:2 if exercise.judge else 1]:
        for name, (wrong, hint) in exercise.wrong.items():
            others = _answers(wrong, exercise)
            if _alike(answers, others, exercise, same) and not _alike(right, others, exercise, same):
                return f"{name}: {hint}"
    return ""


def _alike(answers: list, others: list, exercise: Exercise, same: Callable | None = None) -> bool:
    pairs = [(_parts(a, exercise), _parts(b, exercise)) for a, b in zip(answers, others)]
    return all(a is not None and b is not None and all(map(same or _equal, a, b)) for a, b in pairs)


def _same_shape(a, b) -> bool:
    a, b = _tensor(a), _tensor(b)
    return a is not None and b is not None and a.shape == b.shape


def _equal(a, b) -> bool:
    return _same_shape(a, b) and bool(_close(_tensor(a), _tensor(b)).all())


def _close(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.isclose(a.double(), b.double(), rtol=1e-4, atol=1e-4, equal_nan=True)


def _parts(value, exercise: Exercise) -> list | None:
    names = exercise.parts
    if exercise.attributes:
        return [getattr(value, n) for n in names] if all(hasattr(value, n) for n in names) else None
    if len(names) == 1:
        return [value]
    return list(value) if isinstance(value, (tuple, list)) and len(value) == len(names) else None


def _tensor(value) -> torch.Tensor | None:
    """A tensor, array, number or tuple of numbers as a tensor; None for anything else."""
    if isinstance(value, (tuple, list)):
        value = [v.item() if isinstance(v, torch.Tensor) and v.ndim == 0 else v for v in value]
        if any(isinstance(v, torch.Tensor) for v in value):
            return None
    try:
        return value.detach().cpu() if isinstance(value, torch.Tensor) else torch.as_tensor(value)
    except Exception:                           # texts and objects: nothing to compare
        return None


def _kind(value) -> str:
    if isinstance(value, (torch.Tensor, np.ndarray)):
        kind = str(value.dtype).removeprefix("torch.")
        kind += ", an array" if isinstance(value, np.ndarray) else ""
        return f"{kind} {list(value.shape)}" if value.ndim else "a number"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    if value is None or isinstance(value, str):
        return "None" if value is None else f"{value!r}, a text"
    return "a function" if inspect.isroutine(value) else "a number" if isinstance(value, (int, float)) else \
        f"an object of type {type(value).__name__}"


def _short(value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _given(exercise: Exercise, arguments: tuple) -> str:
    """The inputs in words: shapes of tensors, values of numbers."""
    named = zip(inspect.signature(exercise.right).parameters, arguments)
    return ", ".join(f"{n} {a if isinstance(a, (int, float)) else list(a.shape)}" for n, a in named
                     if isinstance(a, (int, float, torch.Tensor, np.ndarray)))


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:160]}"


def _place(error: BaseException, function: Callable) -> str:
    """The line of the learner's own code in which it happened."""
    code = getattr(function, "__code__", None)
    lines = [f.line for f in traceback.extract_tb(error.__traceback__) if code and f.filename == code.co_filename and f.line]
    return f"it happened in this line: {lines[-1][:120]}" if lines else ""


@contextmanager
def _dice_put_back():
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(states[0]), np.random.set_state(states[1]), random.setstate(states[2])


def _say(passed: bool, text: str) -> Result:
    print(text)
    return Result(passed, text)
