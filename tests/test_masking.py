"""Which patches are hidden, how many, and how they are put back."""
import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mae_helpers import InputError, block_mask, grid_mask, make_mask, random_mask, true_ratio
from mae_helpers.masking import STRATEGIES, count_hidden, hide_highest, num_hidden, scheduled_ratio, split

examples = settings(deadline=None, max_examples=60, derandomize=True)
every_strategy = pytest.mark.parametrize("strategy", STRATEGIES)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def reading(mask):
    """Hand-made masks as text: one word a row, x = hidden."""
    return torch.tensor([[letter == "x" for letter in row] for row in mask.split()])


# How many

@examples
@given(st.sampled_from(list(STRATEGIES)), st.integers(1, 4), st.integers(2, 9),
       st.floats(0, 1, exclude_min=True, exclude_max=True), st.integers(0, 99))
def test_every_row_hides_the_rounded_number(strategy, batch, side, ratio, seed):
    mask = make_mask(strategy, batch, side * side, ratio, seeded(seed))
    expected = min(max(round(side * side * ratio), 1), side * side - 1)
    assert mask.dtype == torch.bool and list(mask.shape) == [batch, side * side]
    assert mask.sum(1).tolist() == [expected] * batch == [num_hidden(side * side, ratio)] * batch


@pytest.mark.parametrize("patches, ratio, hidden", [
    (49, 0.75, 37), (64, 0.75, 48), (49, 0.001, 1), (49, 0.999, 48), (2, 0.9, 1), (2, 0.1, 1)])
def test_counts_by_hand(patches, ratio, hidden):
    assert num_hidden(patches, ratio) == hidden
    assert true_ratio(patches, ratio) == hidden / patches


@pytest.mark.parametrize("patches", [2, 6, 50])
def test_random_masks_need_no_square_grid(patches):
    assert random_mask(3, patches, 0.5).sum(1).tolist() == [patches // 2] * 3


@pytest.mark.parametrize("mask", [block_mask, grid_mask])
def test_block_and_grid_need_a_square_grid(mask):
    with pytest.raises(InputError, match="num_patches is 50: .* square"):
        mask(1, 50, 0.5)


@pytest.mark.parametrize("ratio", [0, 1, -0.1, 1.5, math.nan, math.inf, "a", True, None])
def test_a_bad_ratio_is_one_sentence(ratio):
    for refuse in (lambda: num_hidden(49, ratio), lambda: random_mask(2, 49, ratio)):
        with pytest.raises(InputError) as error:
            refuse()
        assert f"mask_ratio is {ratio!r}: it must be a number above 0 and below 1." == str(error.value)


@every_strategy
def test_one_patch_cannot_be_masked(strategy):
    with pytest.raises(InputError, match="as large as the image.*patch_size must be smaller"):
        make_mask(strategy, 2, 1, 0.75)


def test_an_unknown_strategy_names_the_nearest():
    with pytest.raises(InputError, match="mask_strategy is 'blok': .*Did you mean 'block'"):
        make_mask("blok", 2, 16, 0.5)


# Chance

@every_strategy
def test_the_seed_decides_the_mask(strategy):
    first, again, other = (make_mask(strategy, 8, 64, 0.4, seeded(seed)) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@every_strategy
def test_a_generator_leaves_the_global_streams_alone(strategy):
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    make_mask(strategy, 4, 49, 0.75, seeded())
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), np.random.get_state()[1].tolist())


@pytest.mark.parametrize("mask, ratio", [(random_mask, 0.75), (random_mask, 0.3), (grid_mask, 0.6)])
def test_every_patch_is_hidden_equally_often(mask, ratio):
    """Six standard deviations: by chance alone one of 64 patches would leave them once in ten million seeds."""
    draws, p = 20_000, true_ratio(64, ratio)
    frequency = mask(draws, 64, ratio, seeded()).double().mean(0)
    assert (frequency - p).abs().max() < 6 * math.sqrt(p * (1 - p) / draws)


def test_pairs_of_patches_are_hidden_independently_of_their_distance():
    draws, n, hidden = 20_000, 16, 12
    mask = random_mask(draws, n, 0.75, seeded(1)).double()
    together = (mask.T @ mask / draws)[~torch.eye(n, dtype=torch.bool)]
    p = hidden * (hidden - 1) / (n * (n - 1))
    assert (together - p).abs().max() < 6 * math.sqrt(p * (1 - p) / draws)


# The highest scores

def loop_hide_highest(scores, count):
    mask = torch.zeros(scores.shape, dtype=torch.bool)
    for row, values in enumerate(scores.tolist()):
        for patch in sorted(range(len(values)), key=values.__getitem__)[-count:]:
            mask[row, patch] = True
    return mask


@pytest.mark.parametrize("count", [1, 5, 19])
def test_hide_highest_equals_the_loop(count):
    scores = torch.rand(6, 20, generator=seeded())
    assert torch.equal(hide_highest(scores, count), loop_hide_highest(scores, count))


def test_noise_decides_what_random_mask_hides():
    noise = torch.rand(6, 49, generator=seeded())
    mask = random_mask(6, 49, 0.75, noise=noise)
    assert torch.equal(mask, loop_hide_highest(noise, 37))
    assert bool((noise.masked_fill(~mask, 2).amin(1) > noise.masked_fill(mask, -1).amax(1)).all())


def test_noise_of_another_shape_is_refused():
    with pytest.raises(InputError, match=r"noise has the shape \[2, 48\]: it must be \[2, 49\]"):
        random_mask(2, 49, 0.75, noise=torch.rand(2, 48))


def test_one_argsort_is_not_enough():
    scores = torch.tensor([[0.3, 0.1, 0.2]])
    assert hide_highest(scores, 1).tolist() == [[True, False, False]]
    assert (scores.argsort(dim=1) >= 2).tolist() == [[False, True, False]]      # hides the lowest: a list position


# Shapes of the structured masks

@pytest.mark.parametrize("seed", range(3))
def test_grid_keeps_one_patch_of_each_two_by_two(seed):
    cells = grid_mask(16, 64, 0.75, seeded(seed)).view(16, 4, 2, 4, 2)
    assert bool(((~cells).sum((2, 4)) == 1).all())


def connected(cells):
    """Whether one can walk between all cells (row, column) by steps to a neighbour."""
    todo, left = [next(iter(cells))], set(cells)
    while todo:
        row, col = todo.pop()
        if (row, col) in left:
            left.remove((row, col))
            todo += [(row - 1, col), (row + 1, col), (row, col - 1), (row, col + 1)]
    return not left


@examples
@given(st.integers(2, 10), st.floats(0.02, 0.98), st.integers(0, 999))
def test_block_is_a_rectangle_and_part_of_one_more_line(side, ratio, seed):
    hidden = {divmod(i, side) for i in block_mask(1, side * side, ratio, seeded(seed))[0].nonzero().flatten().tolist()}
    rows, cols = [r for r, _ in hidden], [c for _, c in hidden]
    box = {(r, c) for r in range(min(rows), max(rows) + 1) for c in range(min(cols), max(cols) + 1)}
    missing = box - hidden
    assert connected(hidden)
    assert any(all(cell[axis] == edge for cell in missing)
               for axis, ends in ((0, rows), (1, cols)) for edge in (min(ends), max(ends)))


@every_strategy
def test_every_image_has_a_mask_of_its_own(strategy):
    assert len(set(map(tuple, make_mask(strategy, 200, 64, 0.4, seeded()).tolist()))) > 30


def test_half_a_grid_is_a_checkerboard():
    kept = ~grid_mask(16, 64, 0.5, seeded()).view(16, 8, 8)
    assert not (kept[:, 1:] & kept[:, :-1]).any() and not (kept[:, :, 1:] & kept[:, :, :-1]).any()


def test_blocks_are_tall_and_wide():
    masks = block_mask(400, 400, 0.05, seeded()).view(400, 20, 20)
    inside = masks[~(masks[:, [0, -1]].any((1, 2)) | masks[:, :, [0, -1]].any((1, 2)))]        # not cut off by a border
    shape = inside.any(2).sum(1) / inside.any(1).sum(1)
    assert 0.4 < shape.min() < 0.75 and 1.33 < shape.max() < 2.5


# Masks made by hand, and the order of the tokens

def test_count_hidden():
    assert count_hidden(reading("xx.. .x.x"), 2, 4) == 2


@pytest.mark.parametrize("mask, batch, words", [
    (reading("xx.. x..."), 2, "between 1 and 2 patches"), (reading("xxxx xxxx"), 2, "hides 4 of 4"),
    (reading(".... ...."), 2, "hides 0 of 4"), (reading("xx..").float(), 1, "float32 [1, 4]: it must be bool [1, 4]"),
    (reading("xx..").int(), 1, "int32 [1, 4]: it must be bool"), (reading("xx.."), 2, "it must be bool [2, 4]"),
    (reading("xx..."), 1, "[1, 5]: it must be bool [1, 4]"), (reading("xx..")[0], 1, "[4]: it must be bool [1, 4]")])
def test_masks_that_cannot_be_used_are_one_sentence(mask, batch, words):
    with pytest.raises(InputError) as error:
        count_hidden(mask, batch, 4)
    assert words in str(error.value)


@examples
@given(st.integers(1, 4), st.integers(2, 30), st.floats(0.01, 0.99), st.integers(0, 99))
def test_split_sorts_the_patches_and_restore_puts_them_back(batch, n, ratio, seed):
    mask = random_mask(batch, n, ratio, seeded(seed))
    visible, hidden, restore = split(mask, num_hidden(n, ratio))
    for row in range(batch):
        assert visible[row].tolist() == [i for i in range(n) if not mask[row, i]]       # in image order
        assert hidden[row].tolist() == [i for i in range(n) if mask[row, i]]
    sequence = torch.cat([visible, hidden], dim=1)
    assert torch.equal(sequence.gather(1, restore), torch.arange(n).expand(batch, -1))


# Ratios that move

@pytest.mark.parametrize("schedule, expected", [
    ("constant", [0.75] * 5), ("linear", [0.5, 0.5625, 0.625, 0.6875, 0.75]),
    ("cosine", [0.5, 0.536612, 0.625, 0.713388, 0.75])])
def test_a_schedule_goes_from_start_to_end(schedule, expected):
    found = [scheduled_ratio(schedule, 0.5, 0.75, progress) for progress in (0, 0.25, 0.5, 0.75, 1)]
    assert found == pytest.approx(expected, abs=1e-6)


def test_an_unknown_schedule_is_one_sentence():
    with pytest.raises(InputError, match="mask_schedule is 'liner'.*Did you mean 'linear'"):
        scheduled_ratio("liner", 0.5, 0.75, 0)
