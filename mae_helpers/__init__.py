"""mae_helpers: the small package that the masked-autoencoder course teaches and then imports."""
from .config import ClassifyConfig, InputError, PretrainConfig
from .data import ImageSet, load_images
from .masking import block_mask, grid_mask, make_mask, random_mask, true_ratio
from .model import MaskedAutoencoder, ViTClassifier
from .patches import patchify, unpatchify
from .runs import Run, find_run, load_run

__version__ = "0.1.0"
__all__ = [
    "ClassifyConfig", "ImageSet", "InputError", "MaskedAutoencoder", "PretrainConfig", "Run", "ViTClassifier",
    "block_mask", "classify", "features", "find_run", "grid_mask", "load_classifier", "load_images", "load_mae", "load_run",
    "make_mask", "patchify", "pretrain", "random_mask", "true_ratio", "unpatchify",
]
from .classify import classify, features, load_classifier
from .pretrain import load_mae, pretrain
