"""The classic small-image loop, written again from its description: what most small masked autoencoders do.

Each sample's patches are shuffled by NumPy in a Python loop, timm's blocks do the work, a DataLoader with PIL transforms
brings the images, and everything is eager fp32. Slow by habit, not by mistake: it is the yardstick, not a straw man.
"""
from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn


def shuffles(batch: int, patches: int) -> tuple[torch.Tensor, torch.Tensor]:
    """For each sample an order of its patches and the order that undoes it: two [B, N], sample by sample in NumPy."""
    forward = np.empty((batch, patches), dtype=np.int64)
    backward = np.empty_like(forward)
    for i in range(batch):
        order = np.arange(patches)
        np.random.shuffle(order)
        forward[i], backward[i] = order, np.argsort(order)
    return torch.from_numpy(forward), torch.from_numpy(backward)


def pick(tokens: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


class ClassicAutoencoder(nn.Module):
    """timm's blocks around a convolution for the patches and learned positions."""

    def __init__(self, image_size: int, patch_size: int, mask_ratio: float, dim: int, depth: int, heads: int,
                 decoder_dim: int, decoder_depth: int, decoder_heads: int):
        super().__init__()
        from timm.models.vision_transformer import Block
        self.patch_size, self.num_patches = patch_size, (image_size // patch_size) ** 2
        self.visible = self.num_patches - round(self.num_patches * mask_ratio)
        self.embed = nn.Conv2d(3, dim, patch_size, patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.positions = nn.Parameter(0.02 * torch.randn(1, self.num_patches, dim))
        self.blocks = nn.Sequential(*(Block(dim, heads, qkv_bias=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.narrow = nn.Linear(dim, decoder_dim)
        self.mask_token = nn.Parameter(0.02 * torch.randn(1, 1, decoder_dim))
        self.decoder_positions = nn.Parameter(0.02 * torch.randn(1, 1 + self.num_patches, decoder_dim))
        self.decoder_blocks = nn.Sequential(*(Block(decoder_dim, decoder_heads, qkv_bias=True)
                                              for _ in range(decoder_depth)))
        self.head = nn.Linear(decoder_dim, 3 * patch_size ** 2)

    def forward(self, images: torch.Tensor, order: torch.Tensor, undo: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(predicted images, 1 where a pixel was hidden), both [B, C, H, W]."""
        tokens = self.embed(images).flatten(2).transpose(1, 2) + self.positions
        tokens = pick(tokens, order[:, :self.visible])
        tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        latent = self.narrow(self.norm(self.blocks(tokens)))
        missing = self.mask_token.expand(len(latent), self.num_patches - self.visible, -1)
        full = pick(torch.cat([latent[:, 1:], missing.to(latent.dtype)], dim=1), undo)
        full = torch.cat([latent[:, :1], full], dim=1) + self.decoder_positions
        patches = self.head(self.decoder_blocks(full)[:, 1:])
        hidden = (undo >= self.visible).unsqueeze(-1).to(patches.dtype).expand_as(patches)
        return self._picture(patches), self._picture(hidden)

    def _picture(self, patches: torch.Tensor) -> torch.Tensor:
        side, size = round(self.num_patches ** 0.5), self.patch_size
        return rearrange(patches, "b (h w) (c p q) -> b c (h p) (w q)", h=side, p=size, q=size)


def pretraining_loss(model: nn.Module, images: torch.Tensor, patches: int, mask_ratio: float = 0.75) -> torch.Tensor:
    """One forward pass with masks that NumPy draws, sample by sample, outside of what may be compiled."""
    order, undo = (index.to(images.device) for index in shuffles(len(images), patches))
    predicted, hidden = model(images, order, undo)
    return torch.mean((predicted.float() - images) ** 2 * hidden) / mask_ratio


class Pictures(torch.utils.data.Dataset):
    """uint8 [N, H, W, C] in memory, turned into a PIL image and transformed one at a time, as torchvision's sets are."""

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        from torchvision import transforms
        self.images, self.labels = images, labels
        self.transform = transforms.Compose([
            transforms.RandomCrop(images.shape[1], padding=4), transforms.RandomHorizontalFlip(),
            transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int):
        from PIL import Image
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


class ClassicJob:
    """An epoch of the classic loop: `epoch()` goes once through all images."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, model: nn.Module, loss, device: torch.device,
                 batch_size: int, workers: int):
        pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
        self.loader = torch.utils.data.DataLoader(
            Pictures(pixels, labels.numpy()), batch_size, shuffle=True, drop_last=True, num_workers=workers,
            persistent_workers=workers > 0, pin_memory=device.type == "cuda")
        self.model, self.loss, self.device = model.to(device).train(), loss, device
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1.5e-4, betas=(0.9, 0.95), weight_decay=0.05)

    def epoch(self) -> None:
        for images, labels in self.loader:
            self.loss(self.model, images.to(self.device), labels.to(self.device)).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()


def classifier(image_size: int, patch_size: int, dim: int, depth: int, heads: int, classes: int = 10) -> nn.Module:
    """timm's vision transformer of the same size, for the epoch of fine-tuning."""
    from timm.models.vision_transformer import VisionTransformer
    return VisionTransformer(img_size=image_size, patch_size=patch_size, embed_dim=dim, depth=depth, num_heads=heads,
                             num_classes=classes, global_pool="avg", fc_norm=False)


def classifier_loss(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(model(images), labels)
