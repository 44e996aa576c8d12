"""Figures: pure functions that describe themselves. Whether they look right, a person has to see."""
import random

import matplotlib
import numpy as np
import pytest
import torch

from mae_helpers import plots


def pictures(count=3, channels=1):
    images = torch.rand(count, channels, 8, 8, generator=torch.Generator().manual_seed(0))
    images[:, :, :4, :4] = torch.nan
    return images


STATIONS = ("patches", "visible", "encoder", "latent", "restored", "decoder", "answer")
FIGURES = {
    "image_rows": lambda: plots.image_rows({"a": pictures(), "b": pictures(2, 3)}, "Title", {"b": ["x", "y"]}),
    "curves": lambda: plots.curves({"one": ([1, 2], [3.0, 2.0]), "two": ([1, 2], [4.0, 1.0])}, "epoch", "loss", "T",
                                   {"mean": 2.5}),
    "confusion": lambda: plots.confusion(torch.tensor([[5, 1], [3, 7]]), ["cat", "dog"], "t"),
    "predictions": lambda: plots.predictions(pictures(4), torch.tensor([0, 1, 0, 1]), torch.eye(2)[[0, 1, 1, 1]],
                                             ["a", "b"]),
    "class_bars": lambda: plots.class_bars(pictures(1)[0], {"one": torch.tensor([0.25, 0.75]),
                                                            "two": torch.tensor([1.0, 0])}, ["cat", "dog"], "a dog", 1),
    "bars": lambda: plots.bars({"probe": 0.9, "scratch": 0.95}, "accuracy", floor=0.8, levels={"raw pixels": 0.92}),
    "patch_grid": lambda: plots.patch_grid(pictures(1)[0].nan_to_num(), 3, "Cut."),
    "patches_and_tokens": lambda: plots.patches_and_tokens(pictures(1)[0].nan_to_num(), 3),
    "attention_on": lambda: plots.attention_on(pictures(1)[0].nan_to_num(), torch.tensor([0.1, 0.2, 0.3, 0.4]), 2, "T"),
    "scatter": lambda: plots.scatter({"a map": torch.tensor([[0.0, 1.0], [1.0, 0.0]])}, torch.tensor([1, 0]), ["cat", "dog"],
                                     "T"),
    "heatmaps": lambda: plots.heatmaps({"a": torch.eye(3), "b": -2 * torch.eye(3)}, "T", "x", "y", values=True, signed=True),
    "cells": lambda: plots.cells({"noise": [0.25, 0.5], "patch": [0, 1]}, {"patch": [True, False]}, "T"),
    "intervals": lambda: plots.intervals({"p4": {"theirs": [99.1], "ours": [99.3, 99.5]}, "p2": {"theirs": [99.2]}}, "%"),
    "bands": lambda: plots.bands({"a": [([1, 2], [3.0, 2.0]), ([1, 2], [4.0, 1.0])], "b": [([1, 2], [1.0, 1.0])]}, "epoch",
                                 "loss", "T"),
    "arms": lambda: plots.arms({"probe, %": {"4": [1.0, 2.0], "7": [3.0]}, "dB": {"4": [10.0, 11.0], "7": [12.0]}}, "patch"),
    "arm_maps": lambda: plots.arm_maps({"probe, %": {(4, 0.5): [1.0, 2.0], (7, 0.75): [3.0]}}, "patch", "ratio", "T"),
    "ablation": lambda: plots.ablation(["depth", "width"], {"probe, %": {(1, 64): [1.0], (2, 96): [2.0, 3.0]}}, "T"),
    "costs": lambda: plots.costs({"MNIST": {"scratch": [(10.0, [0.9, 0.92])], "tuned": [(20.0, [0.95])]}}, "T"),
    "mae_diagram": lambda: plots.mae_diagram(pictures(1)[0].nan_to_num(), torch.tensor([True, False, True, True]),
                                             pictures(1)[0].nan_to_num(), {name: "text" for name in STATIONS}),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figures_describe_themselves_repeat_exactly_and_touch_nothing(name):
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    before = torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()
    first, second = FIGURES[name](), FIGURES[name]()
    assert plots.png(first) == plots.png(second) and plots.png(first).startswith(b"\x89PNG")
    assert len(first.alt) > 20 and "\n" not in first.alt
    assert before == (torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate())
    assert "matplotlib.pyplot" not in str(type(first)) and not matplotlib._pylab_helpers.Gcf.figs


def test_hidden_pixels_are_one_flat_colour_that_no_grey_picture_has():
    rgb = plots.as_rgb(pictures(1)[0])
    assert torch.allclose(rgb[:4, :4], torch.tensor(plots.HIDDEN).expand(4, 4, 3))
    assert len(set(plots.HIDDEN)) == 3 and (rgb[4:, :, 0] == rgb[4:, :, 2]).all()


def test_colour_pictures_keep_their_channels():
    image = torch.zeros(3, 4, 4)
    image[0] = 1
    assert plots.as_rgb(image)[0, 0].tolist() == [1, 0, 0]


def test_alt_texts_carry_the_numbers():
    assert "one ends at 2; two ends at 1" in FIGURES["curves"]().alt
    assert "12 of 16 right; the most frequent mistake is dog taken for cat, 3 times" in FIGURES["confusion"]().alt
    assert "4 pictures with predictions, 3 of them right" in FIGURES["predictions"]().alt
    assert "probe 90.00%, scratch 95.00%" in FIGURES["bars"]().alt


def test_a_curve_goes_on_over_points_that_are_not_there():
    epochs = list(range(1, 61))
    rare = [1 / epoch if epoch % 10 == 0 else None for epoch in epochs]
    lines = {"nothing": (epochs, [None] * 60), "rare": (epochs, rare), "open": ([1, 2], [0.5, None])}
    figure = plots.curves(lines, "epoch", "y")
    drawn = [(line.get_label(), list(line.get_xdata()), line.get_marker()) for line in figure.axes[0].lines]
    assert drawn == [("rare", [10, 20, 30, 40, 50, 60], "o"), ("open", [1], "o")]
    assert figure.alt == "y against epoch: rare ends at 0.01667; open ends at 0.5."
    assert "nothing yet" in plots.curves({"nothing": ([1], [None])}, "epoch", "y").alt


UNNAMED = {
    "image_rows": lambda: plots.image_rows({"a": pictures()}),
    "confusion": lambda: plots.confusion(torch.tensor([[5, 0], [0, 7]]), ["cat", "dog"]),
    "predictions": FIGURES["predictions"],
    "class_bars": lambda: plots.class_bars(pictures(1)[0], {"one": torch.tensor([0.25, 0.75])}, ["cat", "dog"]),
    "patch_grid": lambda: plots.patch_grid(pictures(1)[0].nan_to_num(), 4, numbers=False),
    "scatter": lambda: plots.scatter({"a map": torch.tensor([[0.0, 1.0]])}, torch.tensor([1]), ["cat", "dog"]),
    "heatmaps": lambda: plots.heatmaps({"a": torch.eye(3)}),
    "cells": lambda: plots.cells({"noise": [0.25, 0.5]}, {}),
    "arm_maps": lambda: plots.arm_maps({"probe, %": {(4, 0.5): [1.0]}}, "patch", "ratio"),
    "costs": lambda: plots.costs({"MNIST": {"scratch": [(10.0, [0.9])]}}),
}


@pytest.mark.parametrize("name", UNNAMED)
def test_an_alt_text_without_a_title_begins_with_what_there_is_to_see(name):
    alt = UNNAMED[name]().alt
    assert alt[0].isupper() or alt[0].isdigit(), alt
    assert " :" not in alt


def test_alt_texts_say_nothing_that_is_not_there():
    assert UNNAMED["confusion"]().alt == "Confusion matrix: 12 of 12 right; no mistake."
    crowded = plots.patch_grid(torch.zeros(1, 36, 36), 4, "Cut.")
    assert "numbered" not in UNNAMED["patch_grid"]().alt + crowded.alt and not crowded.axes[1].texts
    assert "numbered" in FIGURES["patch_grid"]().alt


def contrast(one, other="white"):
    """Between 1 and 21, as the Web's guidelines define it; 4.5 is what they ask of small letters."""
    from matplotlib.colors import to_rgb

    def luminance(colour):
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(colour)]
        return sum(share * part for share, part in zip((0.2126, 0.7152, 0.0722), linear)) + 0.05
    dark, light = sorted((luminance(one), luminance(other)))
    return light / dark


LADDER = torch.arange(12.0).view(3, 4)
WRITTEN_IN = {
    "heatmaps": lambda: plots.heatmaps({"a": LADDER}, values=True),
    "signed": lambda: plots.heatmaps({"a": LADDER - 6}, values=True, signed=True),
    "confusion": lambda: plots.confusion(LADDER[:, :3].round().int(), ["a", "b", "c"]),
    "arm_maps": lambda: plots.arm_maps({"%": {(i, j): [float(LADDER[i, j])] for i in range(3) for j in range(4)}}, "a", "b"),
}


@pytest.mark.parametrize("name", WRITTEN_IN)
def test_numbers_can_be_read_on_the_colour_of_their_cell(name):
    axis = WRITTEN_IN[name]().axes[0]
    image, texts = axis.images[0], axis.texts
    for text in texts:
        j, i = text.get_position()
        cell = image.cmap(image.norm(image.get_array()[i, j]))[:3]
        assert contrast(text.get_color(), cell) >= (4.5 if text.get_text() != "·" else 4.2), (i, j)
    assert len(texts) >= 9 and (name == "confusion" or {text.get_color() for text in texts} == {"black", "white"})


def test_small_letters_can_be_read():
    assert len(set(plots.INKS)) == 10 and min(map(contrast, plots.INKS)) >= 4.5
    hidden = plots.cells({"patch": [0]}, {"patch": [True]}).axes[0].texts[0]
    assert contrast(hidden.get_color(), plots.HIDDEN) >= 4.5
    blank = plots.heatmaps({"a": torch.tensor([[torch.nan, 1.0], [0.0, 0.5]])}, values=True).axes[0].texts[0]
    assert blank.get_color() == "black"                         # not-a-number is drawn as nothing, on white


def test_an_axis_that_does_not_start_at_zero_says_so():
    assert "axis starts at 80.00%" in FIGURES["bars"]().axes[0].get_ylabel()


def test_right_and_wrong_are_marked_by_more_than_colour():
    texts = [t.get_text() for t in FIGURES["predictions"]().axes[0].texts]
    assert [t[0] for t in texts] == ["✓", "✓", "✗", "✓"] and "is a" in texts[2]


def test_bars_of_classes_have_the_height_of_the_probabilities():
    picture, one, two = FIGURES["class_bars"]().axes
    assert [bar.get_height() for bar in one.patches] == [0.25, 0.75] and [bar.get_height() for bar in two.patches] == [1, 0]
    assert one.get_title("left") == "one: ✓ dog with 75%" and two.get_title("left") == "two: ✗ cat with 100%"
    unknown = plots.class_bars(pictures(1)[0], {"one": torch.tensor([0.25, 0.75])}, ["cat", "dog"]).axes[1]
    assert unknown.get_title("left") == "one: dog with 75%"


def test_padding_is_drawn_as_hidden_and_counted_in_the_title():
    figure = FIGURES["patch_grid"]()
    assert figure.axes[0].get_title() == "8×8 pixels, padded to 9×9" and figure.axes[1].get_title() == "9 patches of 3×3"
    drawn = torch.as_tensor(figure.axes[0].images[0].get_array())
    assert torch.allclose(drawn[8].float(), torch.tensor(plots.HIDDEN).expand(9, 3))


def test_bars_say_what_they_are_compared_with():
    figure = FIGURES["bars"]()
    assert "raw pixels 92.00%" in figure.alt and figure.axes[0].texts[-1].get_text() == "raw pixels\n92.00%"
    assert len({bar.get_facecolor() for bar in figure.axes[0].patches}) == 1        # a colour would mean something


def test_matrices_share_one_scale_and_signed_ones_are_centred_on_zero():
    scales = {image.get_clim() for axis in FIGURES["heatmaps"]().axes for image in axis.images}
    assert (-2.0, 2.0) in scales and len(scales) == 1


def test_the_mean_is_drawn_only_where_there_are_several_values():
    bars = [line for line in FIGURES["intervals"]().axes[0].lines if line.get_linestyle() == "-"]
    assert len(bars) == 1 and bars[0].get_xdata()[0] == pytest.approx(99.4)


def test_ways_are_told_apart_even_when_there_are_more_than_colours():
    ways = {f"way {i}": [(10.0 + i, [0.9])] for i in range(8)}
    drawn = [line for line in plots.costs({"MNIST": ways}, "T").axes[0].get_lines() if line.get_marker() not in ("", "None")]
    assert len({(line.get_marker(), line.get_color()) for line in drawn}) == 8


def test_a_diagram_draws_one_token_for_every_visible_patch():
    figure = FIGURES["mae_diagram"]()
    colours = [tuple(patch.get_facecolor()[:3]) for patch in figure.axes[0].patches]
    from matplotlib.colors import to_rgb
    assert colours.count(to_rgb(plots.COLOURS[2])) == 1         # visible
    assert colours.count(to_rgb("#b9c3d0")) == 3                # mask tokens
    frames = [patch for patch in figure.axes[0].patches if patch.get_edgecolor()[:3] == to_rgb(plots.COLOURS[1])]
    assert len(frames) == 1                                     # the answer where nothing was asked for
