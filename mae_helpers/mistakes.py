"""The exercises of the course: for each the right answer, the inputs of its check, and the usual mistakes by name.

The one table behind `checks.py`, its tests and the list of mistakes in the teacher's page.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch
from einops import rearrange
from torch import nn

from .losses import laplacian, masked_mse
from .masking import hide_highest, num_hidden, split
from .metrics import mean_and_std, psnr_db
from .model import Attention, Mlp, sincos_positions, take
from .patches import grid_size, patchify


@dataclass(frozen=True, kw_only=True)
class Exercise:
    """`wrong` maps the name of a mistake to a function that makes it and a hint; `cases` makes fresh inputs each time.

    `parts` names the results where there are several; with `attributes` they are attributes of one result. `start` is
    what an exercise of the kind "change one line" does before the change. `judge(cases, answers)` decides where more
    than one answer is right: None, or what was expected, what was got, and the name of a mistake.
    """

    right: Callable
    cases: Callable[[], list[tuple]]
    wrong: dict[str, tuple[Callable, str]]
    parts: tuple[str, ...] = ("",)
    attributes: bool = False
    start: Callable | None = None
    judge: Callable | None = None


@dataclass(frozen=True)
class Choice:
    """A question with lettered answers: the right letter, why, and a hint for each wrong one."""

    right: str
    why: str
    wrong: dict[str, str]


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=dice(seed))


def dice(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# 01 · patches

def cut(order: str) -> Callable:
    return lambda x, p: rearrange(x, f"b c (h p) (w q) -> {order}", p=p, q=p)


def positions(side: int, dim: int, share: int = 4, coordinates: str = "cr") -> torch.Tensor:
    frequency = 10_000 ** -(torch.arange(dim // 4) / (dim // share))
    place = torch.arange(side * side)[:, None]
    angles = [(place % side if c == "c" else place // side) * frequency for c in coordinates]
    return torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], dim=1)


FIRST = {
    "patch_count": Exercise(
        right=lambda side, patch_size: grid_size(side, patch_size) ** 2,
        start=lambda side, patch_size: (side // patch_size) ** 2,
        cases=lambda: [(28, 7), (28, 5), (32, 4), (30, 4)],
        wrong={
            "one side only": (grid_size, "that many patches stand in one row, and there are as many rows."),
            "always one more": (lambda s, p: (s // p + 1) ** 2, "-(-a // b) rounds up only where there is a rest.")}),
    "patchify": Exercise(
        right=patchify,
        cases=lambda: [(numbers(2, 3, 6, 6), 2), (numbers(1, 1, 8, 8), 4)],
        wrong={
            "channel order": (cut("b (h w) (c p q)"), "the channel comes last: the values of one pixel stay side by side."),
            "transposed grid": (cut("b (w h) (p q c)"), "patches are numbered row by row; yours run down the columns."),
            "transposed pixels": (cut("b (h w) (q p c)"), "inside a patch pixels are read row by row, not by columns."),
            "reshape without permute": (lambda x, p: x.reshape(len(x), (x.shape[-1] // p) ** 2, -1),
                                        "a reshape keeps the order of the image: permute the patch rows and columns first."),
            "wrong axis order": (lambda x, p: patchify(x, p).mT, "dimension 1 counts patches, 2 the numbers of each.")}),
    "positions": Exercise(
        right=lambda side, dim: sincos_positions(side, dim)[0, 1:],
        cases=lambda: [(3, 8), (4, 12)],
        wrong={
            "rows and columns swapped": (lambda s, d: positions(s, d, 4, "rc"), "the first half tells the column."),
            "columns twice": (lambda s, d: positions(s, d, 4, "cc"), "the second half tells the row, place // side."),
            "sine and cosine in turns": (lambda s, d: rearrange(positions(s, d), "n (a b f) -> n (a f b)", a=2, b=2),
                                         "first all sines of the column, then all its cosines; the same for the row."),
            "frequencies of the whole width": (lambda s, d: positions(s, d, 2), "divide i by dim / 4: each coordinate has "
                                               "half the width, and half of that are sines."),
            "class token included": (lambda s, d: sincos_positions(s, d)[0], "only the patches: leave out row 0.")}),
    "no_positions": Choice("b", "without positions a picture and a heap of its patches are the same set of tokens.", {
        "a": "Normalising changes every patch alike and tells no token its place.",
        "c": "A larger width gives each token more numbers, but none that say where it was.",
        "d": "Smaller patches can be shuffled just as well."}),
}


# 02 · masks

def masked(tokens, mask_ratio, generator, rows=None):
    noise = torch.rand(rows or len(tokens), tokens.shape[1], generator=generator).expand(len(tokens), -1)
    mask = hide_highest(noise, num_hidden(tokens.shape[1], mask_ratio))
    visible, _, restore = split(mask, int(mask[0].sum()))
    return take(tokens, visible), mask, restore


def centred(images, side, count, generator, weight=1.0, rows=None):
    place = torch.arange(side * side)
    distance = torch.maximum((place // side - side // 2).abs(), (place % side - side // 2).abs()) / side
    noise = torch.rand(rows or images, side * side, generator=generator).expand(images, -1)
    return hide_highest(noise - weight * distance, count)


def flipped(seen, mask, restore):
    return seen, ~mask, restore


def turned(seen, mask, restore):
    return seen, mask, restore.argsort(1)


def tossed(seen, mask, restore):
    return seen, torch.rand(mask.shape, generator=dice(1)) < 0.75, restore


def judge_masks(masks: list[torch.Tensor], count: int) -> tuple[str, str, str] | None:
    """What every random mask must do. Cases 0 and 1 have the same seed, case 2 has another one."""
    found, total = sorted({int(n) for mask in masks for n in mask.sum(1)}), masks[0].shape[1]
    if len(found) > 1:
        return f"{count} of {total} hidden in every row", f"{found[0]} to {found[-1]}", "rows hide different numbers"
    if found != [count]:
        flipped = found == [total - count]
        return (f"{count} of {total} hidden in every row", str(found[0]),
                "polarity flipped" if flipped else "hide_highest hides as many in every row as you say.")
    if not torch.equal(masks[0], masks[1]):
        return "the same masks from the same seed", "other masks", "global random state"
    if all(torch.equal(mask[0], row) for mask in masks for row in mask):
        return "another mask for every image", "the same one for all", "one mask for the whole batch"
    if torch.equal(masks[0], masks[2]):
        return "other masks from another seed", "the same masks", "generator started again"
    return None


def judge_masking(cases, answers):
    (tokens, ratio, _), (seen, mask, restore) = cases[0], answers[0]
    problem, total = judge_masks([mask for _, mask, _ in answers], num_hidden(16, ratio)), tokens.shape[1]
    if problem:
        return problem
    if not torch.equal(restore.sort(1).values, torch.arange(total).expand_as(restore)):
        return "every place once in each row of restore", "some twice or never", "restore not inverted"
    blanks = torch.full((len(tokens), total - seen.shape[1], tokens.shape[2]), math.nan)
    back = take(torch.cat([seen, blanks], 1), restore)
    if not torch.allclose(back, tokens.masked_fill(mask[..., None], math.nan), equal_nan=True):
        return "visible tokens back in their places, gaps at the hidden ones", "another order", "restore not inverted"
    return None


def judge_strategy(cases, answers):
    (_, side, count, _), masks = cases[0], [mask for mask, in answers]
    often = torch.cat(masks).double().mean(0)
    middle, corner = often[side * side // 2], often[[0, side - 1, -side, -1]].mean()
    if problem := judge_masks(masks, count):
        return problem
    if middle < corner + 0.1:
        return ("the middle patch hidden more often than the corners", f"{middle:.0%} of the masks, corners {corner:.0%}",
                "border instead of middle" if middle < corner - 0.1 else "random everywhere")
    return None


DICE = "write torch.rand(..., generator=generator); without it the numbers come from a state that everybody shares."
AGAIN = "use the generator as it is given: with a seed of your own every step draws the same masks."
ONE = "draw noise of the shape [images, patches], a row for each image."
COIN = "a coin for each patch hides more here and fewer there: hide the highest ranks."

SECOND = {
    "hidden_count": Exercise(
        right=num_hidden,
        start=lambda patches, mask_ratio: int(patches * mask_ratio),
        cases=lambda: [(49, 0.75), (16, 0.85), (100, 0.9), (10, 0.72)],
        wrong={
            "ratio counts the visible": (lambda n, r: round(n * (1 - r)), "the mask ratio is the share that is hidden."),
            "visible ones cut off": (lambda n, r: n - int(n * (1 - r)), "100 * (1 - 0.9) is just below 10: use round."),
            "always rounded up": (lambda n, r: math.ceil(n * r), "round goes to the nearest whole number, up or down.")}),
    "mask_from_noise": Exercise(
        right=lambda noise, count: hide_highest(noise, count),
        cases=lambda: [(numbers(4, 10), 7), (numbers(3, 8, seed=1), 2)],
        wrong={
            "polarity flipped": (lambda s, n: ~hide_highest(s, n), "True means hidden."),
            "single argsort": (lambda s, n: s.argsort(1) >= s.shape[1] - n, "argsort again: the rank of each patch."),
            "lowest instead of highest": (lambda s, n: hide_highest(-s, n), "the highest noise, the last ranks, is hidden."),
            "wrong axis": (lambda s, n: s.argsort(0).argsort(0) >= s.shape[1] - n, "sort within each image: dim=1."),
            "off by one": (lambda s, n: hide_highest(s, n - 1), "ranks start at 0: n patches have rank N - n or more.")}),
    "random_masking": Exercise(
        right=lambda tokens, mask_ratio, generator: masked(tokens, mask_ratio, generator),
        cases=lambda: [(numbers(4, 16, 3), 0.75, dice(seed)) for seed in (1, 1, 2)],
        parts=("seen", "mask", "restore"), judge=judge_masking,
        wrong={
            "global random state": (lambda t, r, g: masked(t, r, None), DICE),
            "generator started again": (lambda t, r, g: masked(t, r, dice(0)), AGAIN),
            "ratio counts the visible": (lambda t, r, g: masked(t, 1 - r, g), "the mask ratio is the share that is hidden."),
            "polarity flipped": (lambda t, r, g: flipped(*masked(t, r, g)), "True means hidden; seen holds the others."),
            "restore not inverted": (lambda t, r, g: turned(*masked(t, r, g)), "restore is the argsort of the list "
                                     '"visible, then hidden", the way back.'),
            "one mask for the whole batch": (lambda t, r, g: masked(t, r, g, 1), ONE),
            "rows hide different numbers": (lambda t, r, g: tossed(*masked(t, r, g)), COIN)}),
    "own_strategy": Exercise(
        right=lambda images, side, count, generator: centred(images, side, count, generator),
        cases=lambda: [(60, 5, 15, dice(seed)) for seed in (1, 1, 2)], judge=judge_strategy,
        wrong={
            "border instead of middle": (lambda b, s, n, g: centred(b, s, n, g, -1.0), "the highest scores are hidden: the "
                                         "score must fall with the distance from the middle."),
            "random everywhere": (lambda b, s, n, g: centred(b, s, n, g, 0), "add to the noise what grows to the middle."),
            "polarity flipped": (lambda b, s, n, g: ~centred(b, s, n, g), "True means hidden."),
            "global random state": (lambda b, s, n, g: centred(b, s, n, None), DICE),
            "generator started again": (lambda b, s, n, g: centred(b, s, n, dice(0)), AGAIN),
            "one mask for the whole batch": (lambda b, s, n, g: centred(b, s, n, g, rows=1), ONE),
            "rows hide different numbers": (lambda b, s, n, g: torch.rand(b, s * s, generator=g) < n / s ** 2, COIN)}),
    "same_masks": Choice("c", "a new generator with the same seed begins with the same number.", {
        "a": "Within one batch they are as random as before; look at the next step.",
        "b": "Making a generator costs almost nothing.",
        "d": "Every image of a batch still gets its own row of noise."}),
}


# 03 · the model

def attend(query, key, value, power=-0.5, axis=-1):
    return (query @ key.mT * query.shape[-1] ** power).softmax(axis) @ value


def block(x, norm1, attention, norm2, mlp):
    x = x + attention(norm1(x))
    return x + mlp(norm2(x))


def block_inputs():
    modules = nn.LayerNorm(8), Attention(8, 2), nn.LayerNorm(8), Mlp(8, 16)
    for seed, p in enumerate(p for module in modules for p in module.parameters()):
        p.data = 0.5 * numbers(*p.shape, seed=seed)
    return [(numbers(2, 5, 8), *modules)]


def with_blanks(seen, mask_token, restore, first=False):
    blanks = mask_token.expand(len(seen), restore.shape[1] - seen.shape[1], -1)
    return take(torch.cat([blanks, seen] if first else [seen, blanks], 1), restore)


def square(prediction, target):
    return (prediction - target) ** 2


THIRD = {
    "decoder_input": Exercise(
        right=lambda seen, mask_token, restore: with_blanks(seen, mask_token, restore),
        start=lambda seen, mask_token, restore: with_blanks(seen, mask_token, restore.sort(1).values),
        cases=lambda: [(numbers(3, 3, 4), numbers(1, 1, 4, seed=1), split(hide_highest(numbers(3, 8), 5), 5)[2])],
        wrong={
            "mask tokens first": (lambda s, m, r: with_blanks(s, m, r, True), "restore expects the visible ones first."),
            "zeros for the hidden": (lambda s, m, r: with_blanks(s, 0 * m, r), "the learned mask token stands there."),
            "restored the other way": (lambda s, m, r: with_blanks(s, m, r.argsort(1)), "it is already the way back.")}),
    "attention": Exercise(
        right=lambda query, key, value: attend(query, key, value),
        cases=lambda: [tuple(numbers(2, 5, 4, seed=i) for i in range(3))],
        wrong={
            "missing 1/sqrt(d)": (lambda q, k, v: attend(q, k, v, 0), "divide the scores by query.shape[-1] ** 0.5."),
            "divided by d": (lambda q, k, v: attend(q, k, v, -1), "divide by the square root of the width."),
            "softmax over the wrong axis": (lambda q, k, v: attend(q, k, v, axis=1), "each row must add up to 1: dim=-1."),
            "queries and keys swapped": (lambda q, k, v: attend(k, q, v), "row i compares query i with every key."),
            "scaled after the softmax": (lambda q, k, v: attend(q, k, v, 0) / q.shape[-1] ** 0.5, "scale the scores."),
            "no softmax": (lambda q, k, v: q @ k.mT / q.shape[-1] ** 0.5 @ v, "softmax makes weights of the scores.")}),
    "block": Exercise(
        right=block, cases=block_inputs,
        wrong={
            "missing residual": (lambda x, n, a, m, f: f(m(a(n(x)))), "add what came in to what each part gives: x + …"),
            "missing second residual": (lambda x, n, a, m, f: f(m(x + a(n(x)))), "the MLP has a skip connection, too."),
            "missing first residual": (lambda x, n, a, m, f: block(a(n(x)), n, lambda y: 0, m, f), "attention needs one."),
            "post-norm instead of pre-norm": (lambda x, n, a, m, f: (lambda y: m(y + f(y)))(n(x + a(x))),
                                              "normalise what goes into attention and MLP, not the sum that comes out."),
            "no norms": (lambda x, n, a, m, f: block(x, lambda y: y, a, lambda y: y, f), "normalise what each part gets."),
            "the first norm twice": (lambda x, n, a, m, f: block(x, n, a, n, f), "the MLP has a norm of its own, norm2."),
            "both parts from the input": (lambda x, n, a, m, f: x + a(n(x)) + f(m(x)), "the MLP gets attention's result.")}),
    "masked_loss": Exercise(
        right=lambda prediction, target, mask: masked_mse(prediction, target, mask),
        cases=lambda: [(numbers(3, 8, 4), numbers(3, 8, 4, seed=1), hide_highest(numbers(3, 8, seed=2), 5))],
        wrong={
            "loss on all patches": (lambda p, t, m: square(p, t).mean(), "only hidden patches count: error[mask]."),
            "loss on the visible": (lambda p, t, m: square(p, t)[~m].mean(), "True means hidden, so no ~ is needed."),
            "divided by all patches": (lambda p, t, m: (square(p, t) * m[..., None]).mean(), "divide by the hidden pixels."),
            "sum over the pixels": (lambda p, t, m: square(p, t).sum(-1)[m].mean(), "the mean is over pixels, too."),
            "not averaged": (lambda p, t, m: square(p, t)[m].sum(), "it is a mean: divide by the number of hidden pixels."),
            "not squared": (lambda p, t, m: (p - t)[m].abs().mean(), "it is the squared error."),
            "root taken": (lambda p, t, m: square(p, t)[m].mean().sqrt(), "the mean of squares, without a root.")}),
    "compare_ratios": Choice("d", "the whole image mixes copying and guessing, and each model had another exam.", {
        "a": "Its number is lower. How much of that is copying what it was shown?",
        "b": "Harder to guess, yes; that does not make the numbers comparable.",
        "c": "How many patches are hidden does not say how well they are guessed."}),
}


# 04 · training

FOURTH = {
    "batch_rate": Exercise(
        right=lambda base_lr, batch_size: base_lr * batch_size / 256, start=lambda base_lr, batch_size: base_lr,
        cases=lambda: [(0.1, 256), (0.1, 64), (0.2, 1024)],
        wrong={
            "upside down": (lambda r, b: r * 256 / b, "a larger batch takes larger steps."),
            "divided by the batch": (lambda r, b: r / b, "multiply by batch / 256."),
            "square root": (lambda r, b: r * (b / 256) ** 0.5, "the rule of this course is linear.")}),
    "ratio_schedule": Exercise(
        right=lambda step, steps, start, end: start + (end - start) * step / (steps - 1),
        cases=lambda: [(0, 11, 0.5, 0.9), (5, 11, 0.5, 0.9), (10, 11, 0.5, 0.9), (3, 5, 0.9, 0.6)],
        wrong={
            "never arrives": (lambda i, n, a, b: a + (b - a) * i / n, "steps count from 0: the last one is steps - 1."),
            "starts too late": (lambda i, n, a, b: a + (b - a) * (i + 1) / n, "step 0 must give the start exactly."),
            "backwards": (lambda i, n, a, b: b + (a - b) * i / (n - 1), "it goes from start to end."),
            "from zero": (lambda i, n, a, b: b * i / (n - 1), "it begins at start, and the way is end - start long."),
            "stays at the start": (lambda i, n, a, b: a, "the ratio has to move with the step.")}),
    "rate_from_curves": Choice("c", "it is the lowest at the end of a run as long as the one you want.", {
        "a": "It has hardly left its start: its steps are too small for a run of this length.",
        "b": "It goes down without trouble. Does another one get lower in the same steps?",
        "d": "Close. Its first steps were too large, and at the end another one is still ahead of it.",
        "e": "Too large: most of the run goes into making up for its first steps."}),
    "loss_of_one": Choice("b", "answering 0, the average grey, costs the variance of the pixels, which is 1.", {
        "a": "A loss of 1 is no unit of quality. What does it cost to answer 0 everywhere?",
        "c": "By heart, the loss on training images would fall far below 1.",
        "d": "Numbers that overflow end as NaN, not as 1."}),
}


# 05 · pictures

def decibels(original, predicted, hidden):
    return psnr_db(float(square(predicted, original)[hidden].mean()))


def mean_of_decibels(original, predicted, hidden):
    return sum(map(decibels, original, predicted, hidden)) / len(original)


FIFTH = {
    "hidden_psnr": Exercise(
        right=decibels, start=lambda original, predicted, hidden: psnr_db(float(square(predicted, original).mean())),
        cases=lambda: [tuple(numbers(3, 1, 4, 4, seed=i).sigmoid() for i in range(2)) + (numbers(3, 1, 4, 4, seed=2) > 0,)],
        wrong={
            "visible pixels": (lambda o, p, h: decibels(o, p, ~h), "True means hidden, so no ~ is needed."),
            "mean of decibels": (mean_of_decibels, "first the mean of all squared errors, then decibels, once."),
            "not squared": (lambda o, p, h: psnr_db(float((p - o).abs()[h].mean())), "decibels are of the squared error.")}),
    "paste": Exercise(
        right=lambda tokens, answer, mask: torch.where(mask[..., None], answer, tokens),
        cases=lambda: [(numbers(2, 9, 4), numbers(2, 9, 4, seed=1), hide_highest(numbers(2, 9, seed=2), 6))],
        wrong={
            "swapped": (lambda t, a, m: torch.where(m[..., None], t, a), "the answer belongs where the mask is True."),
            "answer everywhere": (lambda t, a, m: a, "the visible patches are known: paste the originals."),
            "nothing pasted": (lambda t, a, m: t, "where the mask is True, the answer belongs."),
            "added": (lambda t, a, m: t + a * m[..., None], "at hidden places the answer replaces the original.")}),
    "to_pixels": Exercise(
        right=lambda answer, tokens, mean, std: answer * std + mean,
        cases=lambda: [(numbers(2, 4, 9), numbers(2, 4, 9, seed=1), 0.13, 0.31)],
        wrong={
            "un-normalised with the truth": (lambda a, t, m, s: a * t.std(-1, keepdim=True) + t.mean(-1, keepdim=True),
                                             "tokens are the true patches, and their statistics leak a part of the answer."),
            "cut off": (lambda a, t, m, s: (a * s + m).clamp(0, 1), "cutting off is for drawing, not for scores."),
            "wrong order": (lambda a, t, m, s: (a + m) * s, "the way back multiplies first, then adds."),
            "normalised again": (lambda a, t, m, s: (a - m) / s, "this is the way there: go back, multiply, then add.")}),
    "why_blur": Choice("c", "where several digits fit, their mean costs less than choosing one.", {
        "a": "More training leaves fewer doubts, but where some are left, what is the cheapest answer?",
        "b": "It can paint sharp edges, and does where it is sure.",
        "d": "That explains the seams between patches, not the blur inside."}),
}


# 06 · classes

def probe_data():
    labels = torch.randint(0, 4, (400,), generator=dice(2))
    return 2 * numbers(4, 12)[labels] + numbers(400, 12, seed=1), labels


def nearest_mean(train_x, train_y, x):
    return torch.cdist(x, torch.stack([train_x[train_y == c].mean(0) for c in range(4)])).argmin(1)


def judge_probe(cases, answers):
    share = float((answers[0][0] == probe_data()[1][200:]).double().mean())
    return None if share >= 0.9 else ("at least 90 % right", f"{share:.1%}", "hardly trained")


def image_set(pictures, labels, scale=255, **changes):
    images = torch.as_tensor(pictures)[:, None]
    mean, std = (images / scale).mean(), (images / scale).std(unbiased=False)
    found = {"images": images, "labels": torch.as_tensor(labels), "mean": (mean,), "std": (std,)}
    return SimpleNamespace(**{**found, **changes})


def pictures():
    draw = np.random.RandomState(0)
    return [(draw.randint(0, 256, (60, 8, 8)).astype(np.uint8), draw.randint(0, 3, 60).astype(np.int64))]


SIXTH = {
    "mean_feature": Exercise(
        right=lambda encoded: encoded[:, 1:].mean(1), start=lambda encoded: encoded[:, 0],
        cases=lambda: [(numbers(3, 5, 4),), (numbers(2, 10, 6),)],
        wrong={
            "class token counted in": (lambda x: x.mean(1), "the class token stands first and is no patch: leave it out."),
            "wrong axis": (lambda x: x[:, 1:].mean(2), "the mean is over the patches, dimension 1."),
            "sum": (lambda x: x[:, 1:].sum(1), "a mean does not grow with the number of patches, a sum does.")}),
    "linear_probe": Exercise(
        right=nearest_mean, judge=judge_probe,
        cases=lambda: [(probe_data()[0][:200], probe_data()[1][:200], probe_data()[0][200:])],
        wrong={
            "hardly trained": (lambda x, y, z: torch.zeros(len(z)).long(), "more or larger steps; does the loss fall?"),
            "scores instead of classes": (lambda x, y, z: torch.zeros(len(z), 4), "the highest score decides: argmax(1)."),
            "wrong axis": (lambda x, y, z: torch.zeros(4).long(), "the highest score of each image: argmax(1)."),
            "answers for the training features": (lambda x, y, z: y, "predict for the third input, not for the first.")}),
    "image_set": Exercise(
        right=lambda pictures, labels: image_set(pictures, labels),
        cases=pictures, parts=("images", "labels", "mean", "std"), attributes=True,
        wrong={
            "no channel axis": (lambda p, y: image_set(p, y, images=p), "images are [N, 1, H, W], grey ones too."),
            "channel axis last": (lambda p, y: image_set(p, y, images=p[..., None]), "channels stand before the height."),
            "floats": (lambda p, y: image_set(p, y, images=p[:, None] / 255), "images stay uint8 until normalize."),
            "statistics of 0 … 255": (lambda p, y: image_set(p, y, 1), "they are on the scale 0 … 1: divide by 255."),
            "no statistics": (lambda p, y: image_set(p, y, mean=(0.0,), std=(1.0,)), "compute both from the pictures.")}),
    "fair_control": Choice("a", "a control that has not learned its training digits says nothing about pretraining.", {
        "b": "Possible; but look at the accuracy on the training digits first.",
        "c": "Overfitting would show as a high accuracy on the training digits.",
        "d": "The same steps are not the same chance for one that starts from nothing."}),
}

# 07 · colour

def mixed(images, targets, share):
    return tuple(share * each + (1 - share) * each.flip(0) for each in (images, targets))


SEVENTH = {
    "channel_means": Exercise(
        right=lambda images: images.mean((0, 2, 3)), start=lambda images: images.mean(),
        cases=lambda: [(numbers(4, 3, 5, 5),)],
        wrong={
            "one for each image": (lambda x: x.mean((1, 2, 3)), "the images count together: dimension 0 goes, too."),
            "one for each image and channel": (lambda x: x.mean((2, 3)), "average over dimension 0, the images, too."),
            "one for each place": (lambda x: x.mean((0, 1)), "average over images, rows and columns; the channels stay.")}),
    "mixup": Exercise(
        right=mixed, parts=("images", "targets"),
        cases=lambda: [(numbers(4, 3, 2, 2), torch.eye(4), 0.7), (numbers(3, 1, 2, 2, seed=1), torch.eye(3), 0.4)],
        wrong={
            "targets left alone": (lambda x, y, s: (mixed(x, y, s)[0], y), "a mixture needs a mixed answer."),
            "shares swapped": (lambda x, y, s: mixed(x, y, 1 - s), "share is the part of the image itself."),
            "cut, not mixed": (lambda x, y, s: (x, y), "add the other image, weighted with 1 - share.")}),
    "spread_channels": Exercise(
        right=lambda weight: weight.repeat(1, 3, 1, 1) / 3,
        cases=lambda: [(numbers(5, 1, 4, 4),)],
        wrong={
            "three times as large": (lambda w: w.repeat(1, 3, 1, 1), "the three channels are added up: each gets a third."),
            "one channel only": (lambda w: torch.cat([w, 0 * w, 0 * w], 1), "blind for two colours: each gets a third."),
            "wrong axis": (lambda w: w.repeat(3, 1, 1, 1) / 3, "channels are dimension 1.")}),
    "two_gaps": Choice("b", "what is only learned by heart does not help with new images.", {
        "a": "Knowing training images by heart is not what a classifier is for.",
        "c": "Pretraining uses training images only, here as in every notebook.",
        "d": "Perhaps its gap would grow; but at equal training accuracy, which one would be ahead on test images?"}),
}


# 08 · ablations

def first_epoch(values, level):
    return next((i + 1 for i, value in enumerate(values) if value >= level), None)


def whole_image(hidden_loss, visible_loss, patches, hidden):
    return (hidden * hidden_loss + (patches - hidden) * visible_loss) / patches


def by_patch(patch_sizes, scores, join=torch.mean):
    return torch.stack([join(scores[patch_sizes == patch]) for patch in patch_sizes.unique()])


def unsorted(patch_sizes, scores):
    return torch.stack([scores[patch_sizes == patch].mean() for patch in dict.fromkeys(patch_sizes.tolist())])


EIGHTH = {
    "first_epoch": Exercise(
        right=first_epoch, start=lambda values, level: next((i for i, value in enumerate(values) if value >= level), None),
        cases=lambda: [([11.8, 12.6, 13.0, 13.3], 13.0), ([11.8, 12.6, 12.4, 13.3], 12.5), ([14.0, 15.0], 12.0)],
        wrong={
            "strictly above": (lambda v, x: next((i + 1 for i, e in enumerate(v) if e > x), None), "reaching it is enough."),
            "the last one below": (lambda v, x: max([i + 1 for i, e in enumerate(v) if e < x], default=0),
                                   "the question is when it is reached, and a later dip does not matter."),
            "how many epochs reach it": (lambda v, x: sum(e >= x for e in v), "not how many: the first one.")}),
    "whole_image": Exercise(
        right=whole_image, cases=lambda: [(0.5, 0.1, 16, 12), (0.4, 0.0, 49, 24), (0.3, 0.2, 49, 44)],
        wrong={
            "plain mean": (lambda h, v, n, k: (h + v) / 2, "there are more pixels of one kind than of the other."),
            "shares swapped": (lambda h, v, n, k: whole_image(v, h, n, k), "`hidden` of the patches have the hidden loss."),
            "sum": (lambda h, v, n, k: k * h + (n - k) * v, "a mean over all patches: divide by their number."),
            "visible ones forgotten": (lambda h, v, n, k: k * h / n, "right only where visible patches cost nothing.")}),
    "patch_means": Exercise(
        right=by_patch,
        cases=lambda: [(torch.tensor([7, 4, 5, 4, 7, 4]), numbers(6)), (torch.tensor([3, 2, 3]), numbers(3))],
        wrong={
            "in the order they come": (unsorted, "from the smallest patch to the largest: unique() sorts."),
            "the best instead of the mean": (lambda p, s: by_patch(p, s, torch.max), "the mean of its runs, not the best."),
            "the sum": (lambda p, s: by_patch(p, s, torch.sum), "divide by the number of runs."),
            "one number for all": (lambda p, s: s.mean(), "one mean for each patch size.")}),
    "equal_what": Choice("c", "equal epochs are not equal time, and the report held only the epochs equal.", {
        "a": "Better for the same number of epochs; what else differed?",
        "b": "It may be the patches; the comparison does not tell.",
        "d": "A fair comparison at equal epochs is one; it answers another question than equal time."}),
}


# 09 · fair comparisons

def late(start, end, progress):
    return start + (end - start) * max(0.0, 2 * progress - 1)


def shifted(x, mode="replicate"):
    padded = nn.functional.pad(x, (1, 1, 1, 1), mode=mode)
    return padded[..., :-2, 1:-1] + padded[..., 2:, 1:-1] + padded[..., 1:-1, :-2] + padded[..., 1:-1, 2:] - 4 * x


def in_pairs(ours, theirs):
    return mean_and_std([ours[seed] - theirs[seed] for seed in ours if seed in theirs])


def apart(ours, theirs):
    return mean_and_std(ours.values())[0] - mean_and_std(theirs.values())[0]


def arms():
    original = {0: 0.81, 1: 0.84, 2: 0.79}
    return [({0: 0.83, 1: 0.85, 2: 0.82}, original), ({2: 0.80, 0: 0.80, 1: 0.85}, original),
            ({1: 0.9, 2: 0.8, 3: 0.1}, original)]


NINTH = {
    "late_schedule": Exercise(
        right=late, start=lambda start, end, progress: start + (end - start) * progress,
        cases=lambda: [(0.5, 0.75, 0.0), (0.5, 0.75, 0.4), (0.5, 0.75, 0.5), (0.5, 0.9, 0.75), (0.5, 0.75, 1.0)],
        wrong={
            "never arrives": (lambda a, b, p: a + (b - a) * max(0.0, p - 0.5), "at progress 1 the ratio must be the end."),
            "jumps": (lambda a, b, p: a if p < 0.5 else a + (b - a) * p, "at progress 0.5 it has only begun to move."),
            "the first half moves": (lambda a, b, p: a + (b - a) * min(1.0, 2 * p), "hold the start first, then move."),
            "below the start": (lambda a, b, p: a + (b - a) * (2 * p - 1), "2 · progress - 1 is below 0 at first.")}),
    "laplacian": Exercise(
        right=laplacian, cases=lambda: [(numbers(2, 3, 5, 6),), (numbers(1, 1, 4, 4, seed=1),)],
        wrong={
            "an edge around the image": (lambda x: shifted(x, "constant"), "beyond the border lies the same again, not 0."),
            "the other side of the image": (lambda x: shifted(x, "circular"), "the neighbour of the left border is not the "
                                            "right one: torch.roll goes around, mode='replicate' does not."),
            "sign turned": (lambda x: -shifted(x), "neighbours count plus, the pixel itself minus four."),
            "the pixel left out": (lambda x: shifted(x) + 4 * x, "subtract four times the pixel itself."),
            "mean instead of sum": (lambda x: shifted(x) / 4, "the sum of the four neighbours, not their mean.")}),
    "in_pairs": Exercise(
        right=in_pairs, cases=arms, parts=("mean", "std"),
        wrong={
            "not paired": (lambda a, b: (apart(a, b), mean_and_std([*a.values(), *b.values()])[1]),
                           "first the difference for each seed, then mean and spread of the differences."),
            "in the order given": (lambda a, b: mean_and_std([x - y for x, y in zip(a.values(), b.values())]),
                                   "the order of two dictionaries may differ: look the seed up in both."),
            "divided by n": (lambda a, b: (in_pairs(a, b)[0], float(np.std([a[s] - b[s] for s in a if s in b]))),
                             "of few values, divide the squares by n - 1."),
            "turned around": (lambda a, b: (-in_pairs(a, b)[0], in_pairs(a, b)[1]), "ours minus theirs.")}),
    "best_of_twenty": Choice("d", "the best of twenty is above the mean by luck alone; only new seeds can tell.", {
        "a": "Twenty settings without any effect would have a best one, too. How far above the mean?",
        "b": "A test with one run for each arm has no spread to go by.",
        "c": "It may be good; nobody can know from this. What would show it?"}),
}


# 10 · numbers of several runs

def seed_means(arm, seed, score, pick=lambda twice: twice[-1]):
    return torch.stack([torch.stack([pick(score[(arm == a) & (seed == s)]) for s in seed[arm == a].unique()]).mean()
                        for a in arm.unique()])


TENTH = {
    "seed_spread": Exercise(
        right=lambda values: (values.mean(), values.std()), start=lambda values: (values.mean(), values.std(unbiased=False)),
        cases=lambda: [(torch.tensor([76.0, 77.0, 79.0]),), (torch.tensor([99.0, 98.5]),)], parts=("mean", "deviation"),
        wrong={
            "variance": (lambda v: (v.mean(), v.var()), "its unit is the square of a per cent: take the root."),
            "standard error": (lambda v: (v.mean(), v.std() / len(v) ** 0.5), "that says how sure the mean is, and shrinks "
                               "with more seeds; the spread of the seeds does not."),
            "mean distance": (lambda v: (v.mean(), (v - v.mean()).abs().mean()), "square the distances first.")}),
    "over_seeds": Exercise(
        right=seed_means,
        cases=lambda: [tuple(map(torch.tensor, ([0, 0, 0, 1, 1], [0, 1, 0, 0, 1], [9.0, 4.0, 5.0, 7.0, 8.0]))),
                       tuple(map(torch.tensor, ([1, 0, 1, 1, 1], [2, 2, 0, 2, 2], [6.0, 3.0, 2.0, 8.0, 5.0])))],
        wrong={
            "runs counted, not seeds": (lambda a, s, x: torch.stack([x[a == i].mean() for i in a.unique()]), "a seed that "
                                        "was run twice would count double."),
            "the first run of a seed": (lambda a, s, x: seed_means(a, s, x, lambda twice: twice[0]), "the last run counts."),
            "the best run of a seed": (lambda a, s, x: seed_means(a, s, x, torch.max), "choosing the best makes every arm "
                                       "look better that was run more often."),
            "one mean for all": (lambda a, s, x: x.mean(), "a mean for each arm: [arms].")}),
    "mistakes_removed": Exercise(
        right=lambda better, worse: 1 - (1 - better) / (1 - worse), cases=lambda: [(0.988, 0.98), (0.8, 0.75), (0.7, 0.75)],
        wrong={
            "points": (lambda a, b: a - b, "a point is more near 100 % than near 50 %: divide by the mistakes there were."),
            "share of the accuracy": (lambda a, b: a / b - 1, "mistakes are 1 minus the accuracy."),
            "what is left": (lambda a, b: (1 - a) / (1 - b), "that is the share which is left; what is gone is 1 minus it."),
            "share of the new mistakes": (lambda a, b: (a - b) / (1 - a), "divide by the mistakes of the worse one.")}),
    "fair_row": Choice("b", "one seed, another network, another choice of the epoch: nothing smaller than all that shows.", {
        "a": "Is the best of 25 epochs on the test images the same kind of number as the last epoch?",
        "c": "± 0.04 is the spread of our seeds; of theirs nobody knows it.",
        "d": "Then ours would be chosen on the test images, too: a fairer row, and a worse number of ours."}),
}

EXERCISES: dict[str, Exercise | Choice] = {**FIRST, **SECOND, **THIRD, **FOURTH, **FIFTH, **SIXTH,
                                           **SEVENTH, **EIGHTH, **NINTH, **TENTH}
