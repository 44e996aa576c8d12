"""The vision transformer, the masked autoencoder built from it, and the classifier that reuses its encoder.

Names of weights are those of the official MAE release and of timm's VisionTransformer, so their checkpoints load
without a translation table. B images, N patches, D width of a token, P patch size, C channels.
"""
from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from .config import PRESETS, InputError, check, check_heads, unknown
from .losses import masked_mse, normalize_patches, patch_statistics
from .masking import count_hidden, make_mask, num_hidden, split
from .patches import grid_size, patchify, real_pixels, unpatchify


def slow_mkl() -> bool:
    """Whether fp32 matrix products leave half of this processor unused: PyTorch with MKL on AMD's Zen 5 or later.

    Zen 4 has AVX-512, too, but computes it in two halves, so there is less to gain; it was not measured. Zen 5 is told by an
    instruction that it was the first to have. A PyTorch that does not tell what the processor has counts as no.
    """
    told = getattr(torch.cpu, "get_capabilities", dict)()
    return (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
            and str(told.get("cpu_name")).startswith("AMD") and bool(told.get("avx512_vp2intersect")))


SLOW_MKL = slow_mkl()


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x Wᵀ + b for every token: [B, L, in] → [B, L, out]. On some CPUs it goes the way of a convolution.

    Tokens are a picture one pixel wide, and a linear layer is its convolution with a kernel of one pixel. PyTorch has
    two libraries for the same numbers: products of fp32 matrices are computed by MKL, which does without the widest
    instructions of AMD's processors, convolutions by oneDNN, which does not. There the detour makes a training step of
    ViT-Tiny/4 1.5 times as fast (two Zen 5 cores, 2026-11-30). In bf16 oneDNN does both.
    """
    detour = SLOW_MKL and x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    if not (detour and x.ndim == 3 and len(x) >= 16):               # for few images PyTorch would not ask oneDNN
        return F.linear(x, weight, bias)
    picture = x.unsqueeze(1).permute(0, 3, 1, 2)                    # [B, in, 1, L], in memory still token after token
    return F.conv2d(picture, weight[..., None, None], bias).permute(0, 2, 3, 1).squeeze(1)


class Linear(nn.Linear):
    """PyTorch's layer, computed by `linear`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weight, self.bias)


class Attention(nn.Module):
    """Multi-head self-attention: [B, L, D] → [B, L, D] (ViT equations 5 to 8)."""

    # The longest sequence for which a CPU writes attention out. Beyond it the fused kernel is taken, because it spares
    # the memory of L × L scores: in fp32 it is about as fast, in bf16 two to nine times slower (width 192).
    LONG = {torch.float32: 256, torch.bfloat16: 512}

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = self._heads(x)
        mixed = self.attend(query, key, value)                      # [B, heads, L, D / heads]
        return self.proj(mixed.transpose(1, 2).reshape(x.shape))

    def weights(self, x: torch.Tensor) -> torch.Tensor:
        """How much each token (row) looks at each other one (column): [B, heads, L, L], rows sum to 1."""
        query, key, _ = self._heads(x)
        return (query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5).softmax(dim=-1)

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """softmax(q kᵀ / √d) v, by PyTorch's fused kernel on a GPU and for long sequences."""
        if query.device.type != "cpu" or query.shape[-2] > self.LONG.get(query.dtype, 0):
            return F.scaled_dot_product_attention(query, key, value)
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
        return scores.softmax(dim=-1) @ value

    def _heads(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        batch, length, dim = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.num_heads, dim // self.num_heads)
        return qkv.permute(2, 0, 3, 1, 4).unbind(0)                 # three times [B, heads, L, D / heads]


class Mlp(nn.Module):
    """The same two-layer network for every token: [B, L, D] → [B, L, D]."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = Linear(dim, hidden)
        self.fc2 = Linear(hidden, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Attention, then the MLP, each after a LayerNorm and beside a skip connection (pre-norm, as in ViT).

    `drop_path` is the chance that a sample skips a branch during training (stochastic depth, Huang et al. 2016).
    """

    attention = Attention

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float = 4.0, drop_path: float = 0.0):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = self.attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = drop_path

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self._maybe_skip(self.attn(self.norm1(x)))
        return x + self._maybe_skip(self.mlp(self.norm2(x)))

    def _maybe_skip(self, branch: torch.Tensor) -> torch.Tensor:
        if not self.training or self.drop_path == 0:
            return branch
        stay = 1 - self.drop_path                                   # dividing keeps the expected value the same
        return branch * (torch.rand(branch.shape[0], 1, 1, device=branch.device) < stay) / stay


class PatchEmbed(nn.Module):
    """One linear map for every patch: tokens [B, N, P·P·C] → [B, N, D].

    The weight has the shape of a convolution with stride P, under the name that checkpoints give it. That convolution
    is this matrix product, which can also be applied to only the patches that are visible.
    """

    def __init__(self, patch_size: int, in_chans: int, embed_dim: int):
        super().__init__()
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, stride=patch_size)
        nn.init.xavier_uniform_(self.proj.weight.view(embed_dim, -1))      # as for a linear layer (official release)
        nn.init.zeros_(self.proj.bias)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        matrix = self.proj.weight.permute(0, 2, 3, 1).flatten(1)    # [D, C, P, P] → [D, P·P·C], the order of patchify
        return linear(tokens, matrix, self.proj.bias)


def sincos_positions(side: int, dim: int) -> torch.Tensor:
    """Fixed position codes: [1, 1 + side², dim], zeros for the class token (MAE appendix A; Vaswani et al. 2017).

    The first half of a code tells the column, the second the row; each is the sines and then the cosines of the
    coordinate at dim / 4 wavelengths, from 2π to 2π · 10,000. Column first is the order of the official release.
    """
    if dim % 4:
        raise InputError(f"embed_dim is {dim}: sin-cos positions need a multiple of 4.")
    frequency = 10_000 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    index = torch.arange(side * side, dtype=torch.float64)
    codes = []
    for coordinate in (index % side, index // side):
        angle = coordinate[:, None] * frequency
        codes += [angle.sin(), angle.cos()]
    return torch.cat([torch.zeros(1, dim), torch.cat(codes, dim=1).float()])[None]


class Encoder(nn.Module):
    """What the masked autoencoder and the classifier share: patch embedding, class token, positions, blocks, norm."""

    def __init__(self, image_size: int, patch_size: int, in_chans: int, embed_dim: int, depth: int, num_heads: int,
                 mlp_ratio: float = 4.0, drop_path: float = 0.0):
        super().__init__()
        embed_dim, num_heads, patch_size = (check(k, v) for k, v in (
            ("embed_dim", embed_dim), ("num_heads", num_heads), ("patch_size", patch_size)))
        check_heads(embed_dim, num_heads)
        self.image_size, self.patch_size, self.in_chans, self.embed_dim = image_size, patch_size, in_chans, embed_dim
        side = grid_size(image_size, patch_size)
        self.num_patches = side * side
        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim)
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim).normal_(std=0.02))
        self.register_buffer("pos_embed", sincos_positions(side, embed_dim))
        rates = [drop_path * (i / (depth - 1) if depth > 1 else 1) for i in range(check("depth", depth))]
        self.blocks = nn.Sequential(*(Block(embed_dim, num_heads, mlp_ratio, rate) for rate in rates))
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Features of whole images: [B, C, H, H] → [B, 1 + N, D], class token first, nothing hidden or shuffled."""
        return self._encode(self.tokens(images))

    def tokens(self, images: torch.Tensor) -> torch.Tensor:
        """`patchify` for images of this model's size: [B, C, H, H] → [B, N, P·P·C]; `InputError` for any other."""
        expected = [self.in_chans, self.image_size, self.image_size]
        if list(images.shape[1:]) != expected:
            raise InputError(f"images have the shape {list(images.shape)}: this model takes [batch, "
                             f"{', '.join(map(str, expected))}].")
        if not images.is_floating_point():
            raise InputError(f"images are {str(images.dtype).removeprefix('torch.')}: this model takes normalised floats "
                             "(ImageSet.normalize makes them).")
        return patchify(images, self.patch_size)

    def _encode(self, tokens: torch.Tensor, visible: torch.Tensor | None = None) -> torch.Tensor:
        """Encode all tokens, or only those at the indices visible [B, V]. Positions are added before anything hides,
        so a token carries its place with it and the order of the sequence does not matter."""
        positions = self.pos_embed[:, 1:]
        if visible is not None:
            tokens, positions = take(tokens, visible), take(positions.expand(len(tokens), -1, -1), visible)
        return self._transform(self.patch_embed(tokens) + positions)

    def _transform(self, x: torch.Tensor) -> torch.Tensor:
        """Embedded patches with their positions [B, V, D] → features [B, 1 + V, D], the class token before them."""
        cls_token = (self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1)
        return self.norm(self.blocks(torch.cat([cls_token.to(x.dtype), x], dim=1)))


class MAEOutput(NamedTuple):
    loss: torch.Tensor      # scalar
    pred: torch.Tensor      # [B, N, P·P·C], for every patch
    mask: torch.Tensor      # bool [B, N], True = hidden, and counted in the loss
    latent: torch.Tensor    # [B, 1 + V, D], the encoder's features, class token first


class MaskedAutoencoder(Encoder):
    """A masked autoencoder (He et al. 2021, section 3): encode what is visible, decode everything, score what was not.

    Images are normalised floats [B, C, H, H]. `mask_ratio` belongs to the call, so that it can move during training.
    Raises `InputError` for a patch larger than the image and for widths that heads or positions do not divide.
    """

    decoder_block = Block

    def __init__(self, image_size: int, patch_size: int, in_chans: int, embed_dim: int, depth: int, num_heads: int,
                 decoder_embed_dim: int, decoder_depth: int, decoder_num_heads: int, mlp_ratio: float = 4.0,
                 norm_pix_loss: bool = False):
        super().__init__(image_size, patch_size, in_chans, embed_dim, depth, num_heads, mlp_ratio)
        decoder_embed_dim = check("decoder_embed_dim", decoder_embed_dim)
        decoder_num_heads = check("decoder_num_heads", decoder_num_heads)
        check_heads(decoder_embed_dim, decoder_num_heads, "decoder_")
        self.norm_pix_loss = norm_pix_loss
        self.decoder_embed = Linear(embed_dim, decoder_embed_dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, decoder_embed_dim).normal_(std=0.02))
        side = grid_size(image_size, patch_size)
        self.register_buffer("decoder_pos_embed", sincos_positions(side, decoder_embed_dim))
        self.decoder_blocks = nn.Sequential(*(self.decoder_block(decoder_embed_dim, decoder_num_heads, mlp_ratio)
                                              for _ in range(check("decoder_depth", decoder_depth))))
        self.decoder_norm = nn.LayerNorm(decoder_embed_dim, eps=1e-6)
        self.decoder_pred = Linear(decoder_embed_dim, self.patch_size ** 2 * in_chans)
        # The padding of images that the patch does not divide is not worth learning: it stays out of the loss.
        self.register_buffer("real", real_pixels(image_size, patch_size, in_chans), persistent=False)
        self.apply(init_linear)

    @classmethod
    def preset(cls, name: str, **options) -> MaskedAutoencoder:
        """A model of a named size; `image_size`, `patch_size` and `in_chans` are still needed, and any size given
        beside the name wins."""
        if name not in PRESETS:
            raise InputError(unknown("preset", name, PRESETS))
        return cls(**{**PRESETS[name], **options})

    def forward(self, images: torch.Tensor, mask_ratio: float | None = None, mask: torch.Tensor | None = None,
                generator: torch.Generator | None = None, strategy: str = "random") -> MAEOutput:
        """Hide patches by ratio and strategy, or by a hand-made mask bool [B, N], and predict them."""
        tokens = self.tokens(images)
        mask, hidden = self._mask(tokens, mask_ratio, mask, generator, strategy)
        latent, restore = self.encode_visible(tokens, mask, hidden)
        pred = self.decode(self.decoder_embed(latent), restore)
        return MAEOutput(self.loss(pred, tokens, mask), pred, mask, latent)

    def predict(self, tokens: torch.Tensor, mask: torch.Tensor, hidden: int) -> torch.Tensor:
        """Predict every patch from the visible ones: tokens [B, N, P·P·C] → [B, N, P·P·C]; each row hides `hidden`."""
        latent, restore = self.encode_visible(tokens, mask, hidden)
        return self.decode(self.decoder_embed(latent), restore)

    def encode_visible(self, tokens: torch.Tensor, mask: torch.Tensor, hidden: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Features of the visible patches [B, 1 + V, D], class token first, and the order [B, N] that restores the image."""
        visible, _, restore = split(mask, hidden)
        return self._encode(tokens, visible), restore

    def decode(self, latent: torch.Tensor, restore: torch.Tensor) -> torch.Tensor:
        """Visible tokens [B, 1 + V, Dd] and the restoring order [B, N] → predictions [B, N, P·P·C]."""
        cls_token, visible = latent[:, :1], latent[:, 1:]
        missing = restore.shape[1] - visible.shape[1]
        mask_tokens = self.mask_token.to(visible.dtype).expand(len(visible), missing, -1)
        x = take(torch.cat([visible, mask_tokens], dim=1), restore)
        x = self.decoder_blocks(torch.cat([cls_token, x], dim=1) + self.decoder_pos_embed)
        return self.decoder_pred(self.decoder_norm(x))[:, 1:]

    def loss(self, pred: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The mean squared error over the pixels of hidden patches: a scalar."""
        return masked_mse(pred.float(), self.target(tokens).float(), mask, self._padding())

    def target(self, tokens: torch.Tensor) -> torch.Tensor:
        """What the predictions are compared with: the pixels, or each patch normalised by itself."""
        return normalize_patches(tokens, self._padding()) if self.norm_pix_loss else tokens

    @torch.no_grad()
    def reconstruct(self, images: torch.Tensor, mask: torch.Tensor | None = None, mask_ratio: float | None = None,
                    generator: torch.Generator | None = None, paste: bool = True,
                    use_true_statistics: bool = False) -> torch.Tensor:
        """Images with the hidden patches predicted: [B, C, H, H]. `paste=False` also shows the predictions of visible
        patches, which are poor because no loss ever asked for them.

        A model with `norm_pix_loss` does not predict a patch's brightness and contrast. Its pictures need them from
        the truth, which leaks part of the answer, so that has to be asked for by `use_true_statistics=True`.
        """
        tokens = self.tokens(images)
        mask, hidden = self._mask(tokens, mask_ratio, mask, generator, "random")
        pred = self.predict(tokens, mask, hidden).to(tokens.dtype)
        if self.norm_pix_loss:
            if not use_true_statistics:
                raise InputError("this model predicts normalised patches: a picture needs the true brightness and contrast "
                                 "of the hidden patches; ask for them with use_true_statistics=True and say so.")
            mean, std = patch_statistics(tokens, self._padding())
            pred = pred * std + mean
        filled = torch.where(mask[..., None], pred, tokens) if paste else pred
        return unpatchify(filled, self.patch_size, self.image_size, self.in_chans)

    def _mask(self, tokens, mask_ratio, mask, generator, strategy) -> tuple[torch.Tensor, int]:
        if (mask is None) == (mask_ratio is None):
            raise InputError("give either mask_ratio or mask, not both and not neither.")
        batch, count, _ = tokens.shape
        if mask is not None:
            mask = torch.as_tensor(mask)
            return mask.to(tokens.device), count_hidden(mask, batch, count)
        hidden = num_hidden(count, mask_ratio)                  # known without asking the device
        return make_mask(strategy, batch, count, mask_ratio, generator).to(tokens.device), hidden

    def _padding(self) -> torch.Tensor | None:
        return self.real if self.image_size % self.patch_size else None


class ViTClassifier(Encoder):
    """The encoder with a linear head: images [B, C, H, H] → logits [B, classes].

    What the head reads, `pooled` says ("mean", "cls" or "quadrants"); it comes after the encoder's own final norm, so
    nothing between the pretrained encoder and the head is untrained.
    """

    def __init__(self, image_size: int, patch_size: int, in_chans: int, num_classes: int, embed_dim: int, depth: int,
                 num_heads: int, mlp_ratio: float = 4.0, pool: str = "mean", drop_path: float = 0.0):
        super().__init__(image_size, patch_size, in_chans, embed_dim, depth, num_heads, mlp_ratio, drop_path)
        self.pool = check("pool", pool)
        self.head = nn.Linear(4 * embed_dim if pool == "quadrants" else embed_dim, num_classes)
        self.apply(init_linear)
        nn.init.normal_(self.head.weight, std=0.01)             # small first logits: every class about equally likely

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(pooled(self.encode(images), self.pool))

    def load_encoder(self, pretrained: Encoder) -> None:
        """Copy every weight of an encoder; the head stays as it is, a decoder is not needed and not read.

        An encoder of images with other channels or of another size is adapted: the patch embedding by `spread_channels`,
        the positions by `resize_positions`. Raises `InputError` when the patch size or a size of the network differs.
        """
        for what, theirs, ours in [("patch_size", pretrained.patch_size, self.patch_size),
                                   ("embed_dim", pretrained.embed_dim, self.embed_dim),
                                   ("depth", len(pretrained.blocks), len(self.blocks)),
                                   ("the MLP's width", pretrained.blocks[0].mlp.fc1.out_features,
                                    self.blocks[0].mlp.fc1.out_features),
                                   ("num_heads", pretrained.blocks[0].attn.num_heads, self.blocks[0].attn.num_heads)]:
            if theirs != ours:
                raise InputError(f"{what} is {ours}, the pretrained encoder's is {theirs}: they must agree.")
        mine = {name for name in self.state_dict() if not name.startswith("head.")}
        weights = {name: value for name, value in pretrained.state_dict().items() if name in mine}
        embedding = "patch_embed.proj.weight"
        weights[embedding] = spread_channels(weights[embedding], self.in_chans)
        weights["pos_embed"] = resize_positions(weights["pos_embed"], grid_size(self.image_size, self.patch_size))
        self.load_state_dict(weights, strict=False)


def spread_channels(weight: torch.Tensor, in_chans: int) -> torch.Tensor:
    """The weight of a patch embedding [D, C, P, P] for another number of channels: [D, in_chans, P, P].

    All new channels are equal, and sum to what the old ones sum to: a grey image gives the same tokens as before.
    """
    if weight.shape[1] == in_chans:
        return weight
    return weight.sum(dim=1, keepdim=True).expand(-1, in_chans, -1, -1) / in_chans


def resize_positions(positions: torch.Tensor, side: int) -> torch.Tensor:
    """Position codes [1, 1 + n², D] for a grid of another side, interpolated like a picture: [1, 1 + side², D]."""
    old = math.isqrt(positions.shape[1] - 1)
    if old == side:
        return positions
    picture = positions[:, 1:].transpose(1, 2).unflatten(2, (old, old))
    resized = F.interpolate(picture, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1], resized.flatten(2).transpose(1, 2)], dim=1)


def pooled(features: torch.Tensor, pool: str) -> torch.Tensor:
    """One vector per image from features [B, 1 + N, D]: the class token ("cls", [B, D]), the mean of the patch tokens
    ("mean", [B, D]), or four means, one for each quarter of the image ("quadrants", [B, 4·D]; Coates et al. 2011,
    section 3.2). Quarters of an odd number of rows or columns share the middle one.
    """
    if check("pool", pool) == "cls":
        return features[:, 0]
    patches = features[:, 1:]
    if pool == "mean":
        return patches.mean(dim=1)
    side = math.isqrt(patches.shape[1])
    half, picture = (side + 1) // 2, patches.unflatten(1, (side, side))
    parts = slice(half), slice(side - half, None)
    return torch.stack([picture[:, rows, columns].mean(dim=(1, 2)) for rows in parts for columns in parts], dim=2).flatten(1)


def take(tokens: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Row-wise selection: tokens [B, N, D], index [B, K] → [B, K, D]."""
    return tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def init_linear(module: nn.Module) -> None:
    """Xavier-uniform weights and zero biases for linear layers (MAE appendix A)."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
