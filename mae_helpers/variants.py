"""The masked autoencoder with one part changed, to see what that part is good for."""
from __future__ import annotations

import torch
from torch import nn

from .config import check
from .masking import hide_highest, split
from .model import Attention, Block, MAEOutput, MaskedAutoencoder, linear, take


class EncoderTokensMAE(MaskedAutoencoder):
    """Hidden patches are not left out of the encoder: a learned token stands in their place (as in SimMIM, Xie et al.
    2021, section 3.1), so the encoder works on all N tokens, at every mask ratio."""

    def __init__(self, *sizes, **options):
        super().__init__(*sizes, **options)
        # last, so that all other weights are those that the same seed gives the original
        self.encoder_mask_token = nn.Parameter(torch.empty(1, 1, self.embed_dim).normal_(std=0.02))

    def encode_visible(self, tokens: torch.Tensor, mask: torch.Tensor, hidden: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Features of all patches, hidden ones included [B, 1 + N, D], and their order, which is that of the image."""
        embedded = self.patch_embed(tokens)
        x = torch.where(mask[..., None], self.encoder_mask_token.to(embedded.dtype), embedded) + self.pos_embed[:, 1:]
        in_order = torch.arange(tokens.shape[1], device=tokens.device).expand(len(tokens), -1)
        return self._transform(x), in_order


class CrossAttention(Attention):
    """Queries look at another sequence instead of at each other: [B, Q, D] and [B, L, D] → [B, Q, D]."""

    def forward(self, x: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        dim = x.shape[-1]
        weight, bias = self.qkv.weight, self.qkv.bias               # query, key and value below each other
        query = linear(x, weight[:dim], bias[:dim])
        key, value = linear(memory, weight[dim:], bias[dim:]).chunk(2, dim=-1)
        query, key, value = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in (query, key, value))
        return self.proj(self.attend(query, key, value).transpose(1, 2).flatten(2))


class CrossBlock(Block):
    """A block whose attention is that of its tokens to a memory that stays as it is."""

    attention = CrossAttention

    def forward(self, x: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x), memory)
        return x + self.mlp(self.norm2(x))


class CrossDecoderMAE(MaskedAutoencoder):
    """Mask tokens look at the visible tokens and not at each other (CrossMAE, Fu et al. 2024, section 3).

    A hidden patch is predicted without the other hidden ones, so training may predict only some of them: a random share
    `decode_share`, which makes the decoder cheaper by as much. Pictures and scores predict all.
    """

    decoder_block = CrossBlock

    def __init__(self, *sizes, decode_share: float = 0.25, **options):
        super().__init__(*sizes, **options)
        self.decoder_blocks = nn.ModuleList(self.decoder_blocks)    # each takes the memory, too
        self.decode_share = check("decode_share", decode_share)

    def forward(self, images: torch.Tensor, mask_ratio: float | None = None, mask: torch.Tensor | None = None,
                generator: torch.Generator | None = None, strategy: str = "random") -> MAEOutput:
        """As the original. In training `out.mask` marks the hidden patches that were predicted, and `out.pred` is zero
        for all others."""
        if not self.training:
            return super().forward(images, mask_ratio, mask, generator, strategy)
        tokens = self.tokens(images)
        mask, hidden = self._mask(tokens, mask_ratio, mask, generator, strategy)
        latent, _ = self.encode_visible(tokens, mask, hidden)
        count = max(1, round(hidden * self.decode_share))
        noise = torch.rand(mask.shape, generator=generator, device=generator.device if generator else None)
        scored = hide_highest(noise.to(mask.device).masked_fill(~mask, -1.0), count)
        where = split(scored, count)[1]
        some = self._predict_at(self.decoder_embed(latent), where)
        everywhere = some.new_zeros(*mask.shape, some.shape[-1])
        pred = everywhere.scatter(1, where.unsqueeze(-1).expand_as(some), some)
        return MAEOutput(self.loss(pred, tokens, scored), pred, scored, latent)

    def decode(self, latent: torch.Tensor, restore: torch.Tensor) -> torch.Tensor:
        """Embedded visible tokens [B, 1 + V, Dd] → predictions at all places [B, N, P·P·C]; their order does not matter,
        because every token carries its place."""
        return self._predict_at(latent, torch.arange(restore.shape[1], device=restore.device).expand(len(latent), -1))

    def _predict_at(self, memory: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        """Predictions [B, K, P·P·C] for the patches at the indices where [B, K]."""
        x = self.mask_token + take(self.decoder_pos_embed[:, 1:].expand(len(where), -1, -1), where)
        for block in self.decoder_blocks:
            x = block(x, memory)
        return self.decoder_pred(self.decoder_norm(x))


VARIANTS = {"mae": MaskedAutoencoder, "encoder_tokens": EncoderTokensMAE, "cross_decoder": CrossDecoderMAE}
