"""Decibels, counts, neighbours and spreads."""
import math
import statistics

import pytest
import torch
import torch.nn.functional as F

from mae_helpers.metrics import (
    confusion_matrix,
    hidden_squared_error,
    knn_predict,
    mean_and_std,
    per_class_accuracy,
    psnr_db,
)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("error, decibels", [(1, 0), (0.1, 10), (0.01, 20), (0.25, 6.0206), (0, math.inf)])
def test_psnr(error, decibels):
    assert psnr_db(error) == pytest.approx(decibels, abs=1e-4)


@pytest.mark.parametrize("channels", [1, 3])
def test_hidden_squared_error_counts_hidden_values_only(channels):
    original, predicted = torch.zeros(1, channels, 2, 2), torch.full((1, channels, 2, 2), 0.5)
    hidden = torch.tensor([[[[True, False], [True, True]]]])
    predicted[..., 0, 1] = 99                                           # visible
    assert hidden_squared_error(original, predicted, hidden) == (0.75 * channels, 3 * channels)


def test_hidden_squared_errors_of_batches_add_up():
    original, predicted, hidden = normal(6, 3, 4, 4), normal(6, 3, 4, 4, seed=1), normal(6, 1, 4, 4, seed=2) > 0
    parts = [hidden_squared_error(original[i:i + 2], predicted[i:i + 2], hidden[i:i + 2]) for i in (0, 2, 4)]
    whole = hidden_squared_error(original, predicted, hidden)
    assert [sum(values) for values in zip(*parts)] == pytest.approx(whole)


def test_confusion_equals_the_loop():
    labels, guesses = [0, 0, 1, 2, 2, 2], [0, 1, 1, 2, 0, 2]
    expected = [[sum(a == t and b == p for a, b in zip(labels, guesses)) for p in range(4)] for t in range(4)]
    found = confusion_matrix(torch.tensor(labels), torch.tensor(guesses), 4)
    assert found.tolist() == expected
    assert per_class_accuracy(found) == [1 / 2, 1, pytest.approx(2 / 3), None]


def loop_knn(train, labels, features, classes, k, temperature):
    found = []
    for feature in features.double():
        nearness = [F.cosine_similarity(feature, other, dim=0).item() for other in train.double()]
        votes = [0.0] * classes
        for i in sorted(range(len(nearness)), key=nearness.__getitem__)[-k:]:
            votes[labels[i]] += math.exp((nearness[i] - 1) / temperature)
        found.append(votes.index(max(votes)))
    return found


@pytest.mark.parametrize("k", [1, 5, 99])
@pytest.mark.parametrize("chunk", [3, 1000])
def test_knn_equals_the_loop(k, chunk):
    train, labels, features = normal(30, 6), torch.arange(30) % 4, normal(10, 6, seed=1)
    found = knn_predict(train, labels, features, 4, k, 0.3, chunk)
    assert found.tolist() == loop_knn(train, labels.tolist(), features, 4, k, 0.3)


def at_angles(*degrees):
    angles = torch.tensor(degrees).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], 1)


@pytest.mark.parametrize("temperature, winner", [(10, 1), (0.07, 0), (0.01, 0), (0.001, 0)])
def test_temperature_weighs_one_near_neighbour_against_three_far_ones(temperature, winner):
    train, labels = at_angles(1.0, 40.0, 41.0, 42.0), torch.tensor([0, 1, 1, 1])
    assert knn_predict(train, labels, at_angles(0.0), 2, 4, temperature).tolist() == [winner]


def test_the_nearest_neighbour_wins_at_a_low_temperature():
    """exp(1 / 0.01) is more than float32 can hold: two infinite votes would make the first class win."""
    train, labels = at_angles(10.0, 1.0), torch.tensor([0, 1])
    assert knn_predict(train, labels, at_angles(0.0), 2, 2, 0.01).tolist() == [1]


@pytest.mark.parametrize("temperature", [0.003, 0.001, 0.0001])
def test_far_neighbours_vote_at_a_low_temperature_too(temperature):
    """exp(-0.13 / 0.001) is less than float32 can hold: votes of 0 would make the first class win."""
    train, labels = at_angles(50.0, 30.0), torch.tensor([0, 1])
    assert knn_predict(train, labels, at_angles(0.0), 2, 2, temperature).tolist() == [1]


def test_mean_and_std():
    values = [0.98, 0.97, 0.99]
    assert mean_and_std(values) == pytest.approx((statistics.mean(values), statistics.stdev(values)))
    mean, std = mean_and_std([0.5])
    assert mean == 0.5 and math.isnan(std)
