"""How good is it: decibels for pictures, counts and shares for classes."""
from __future__ import annotations

import math

import torch
import torch.nn.functional as F


def psnr_db(mean_squared_error: float) -> float:
    """Peak signal-to-noise ratio in decibels of pixels on the scale 0 … 1: 10 · log10(1 / MSE)."""
    return math.inf if mean_squared_error == 0 else -10 * math.log10(mean_squared_error)


def hidden_squared_error(original: torch.Tensor, predicted: torch.Tensor, hidden: torch.Tensor) -> tuple[float, int]:
    """Sum of squared errors and number of values over hidden pixels, so that batches can be added up.

    original, predicted [B, C, H, W] on the scale 0 … 1; hidden bool [B, 1, H, W].
    """
    hidden = hidden.expand_as(original)
    return float(((original - predicted) ** 2)[hidden].sum()), int(hidden.sum())


def confusion_matrix(labels: torch.Tensor, predictions: torch.Tensor, classes: int) -> torch.Tensor:
    """Counts [true class, predicted class]."""
    return torch.bincount(labels * classes + predictions, minlength=classes ** 2).view(classes, classes)


def per_class_accuracy(confusion: torch.Tensor) -> list[float | None]:
    """The share of each true class that was recognised; None for a class without images."""
    return [row[i] / sum(row) if sum(row) else None for i, row in enumerate(confusion.tolist())]


def knn_predict(train_features: torch.Tensor, train_labels: torch.Tensor, features: torch.Tensor, classes: int,
                k: int = 20, temperature: float = 0.07, chunk: int = 1_000) -> torch.Tensor:
    """The class most voted for by the `k` nearest training features: [N, D] → [N].

    Nearness is the cosine of the angle; a neighbour's vote is exp(cosine / temperature) (Wu et al. 2018), here divided by
    the vote of the nearest, so that no temperature is too low.
    """
    train_features, features = F.normalize(train_features, dim=1), F.normalize(features, dim=1)
    k = min(k, len(train_features))
    found = []
    for part in features.split(chunk):
        nearness, index = (part @ train_features.T).topk(k, dim=1)
        votes = torch.zeros(len(part), classes, device=part.device)
        votes.scatter_add_(1, train_labels[index], ((nearness - nearness[:, :1]) / temperature).exp())
        found.append(votes.argmax(dim=1))
    return torch.cat(found)


def mean_and_std(values) -> tuple[float, float]:
    """Mean and sample standard deviation (n - 1); the deviation of one value is not a number."""
    values = [float(v) for v in values]
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    return mean, (sum((v - mean) ** 2 for v in values) / (len(values) - 1)) ** 0.5
