"""Who takes part: the same masked autoencoder from five places, ViT-Tiny unless another size is asked for.

A contestant is built by `make(name, ...)`: a module, and a function `loss(module, images)` with a forward pass. The two
are apart so that the module can be compiled. What a peer leaves to choose (which attention) is tried by the run.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from mae_helpers import MaskedAutoencoder
from mae_helpers.config import PRESETS
from mae_helpers.train import kept_memory, use_compile

from . import classic

OURS = "mae_helpers"


@dataclass(frozen=True)
class Task:
    """The architecture and the work, the same for everybody."""

    patch_size: int = 4
    image_size: int = 32
    mask_ratio: float = 0.75
    batch_size: int = 128
    depth: int = 12
    preset: str = "vit_tiny"

    @property
    def sizes(self) -> dict[str, int]:
        return {**PRESETS[self.preset], "depth": self.depth}

    @property
    def patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    def replace(self, **changes) -> Task:
        return replace(self, **changes)


@dataclass(frozen=True)
class Contestant:
    build: Callable[[Task, str], nn.Module]             # (task, attention) -> module
    loss: Callable[[nn.Module, torch.Tensor, Task], torch.Tensor]
    package: str = ""                                   # what has to be installed for it
    attentions: tuple[str, ...] = ("own",)              # what it lets its user choose


# Ours

def build_ours(task: Task, attention: str) -> nn.Module:
    return MaskedAutoencoder.preset(task.preset, image_size=task.image_size, patch_size=task.patch_size, in_chans=3,
                                    depth=task.depth)


def loss_ours(model: nn.Module, images: torch.Tensor, task: Task) -> torch.Tensor:
    return model(images, task.mask_ratio).loss


# Hugging Face transformers

def build_hugging_face(task: Task, attention: str) -> nn.Module:
    from transformers import ViTMAEConfig, ViTMAEForPreTraining
    s = task.sizes
    return ViTMAEForPreTraining(ViTMAEConfig(
        hidden_size=s["embed_dim"], num_hidden_layers=s["depth"], num_attention_heads=s["num_heads"],
        intermediate_size=4 * s["embed_dim"], decoder_hidden_size=s["decoder_embed_dim"],
        decoder_num_hidden_layers=s["decoder_depth"], decoder_num_attention_heads=s["decoder_num_heads"],
        decoder_intermediate_size=4 * s["decoder_embed_dim"], image_size=task.image_size, patch_size=task.patch_size,
        mask_ratio=task.mask_ratio, attn_implementation={"fused": "sdpa", "written out": "eager"}[attention]))


def loss_hugging_face(model: nn.Module, images: torch.Tensor, task: Task) -> torch.Tensor:
    return model(images).loss


# vit-pytorch

def build_vit_pytorch(task: Task, attention: str) -> nn.Module:
    """With `pool="mean"`, so without a class token: this version's MAE does not work with one. One token less to do."""
    from vit_pytorch import MAE, ViT
    s = task.sizes
    encoder = ViT(image_size=task.image_size, patch_size=task.patch_size, num_classes=0, dim=s["embed_dim"],
                  depth=s["depth"], heads=s["num_heads"], mlp_dim=4 * s["embed_dim"], pool="mean",
                  dim_head=s["embed_dim"] // s["num_heads"])
    return MAE(encoder=encoder, decoder_dim=s["decoder_embed_dim"], masking_ratio=task.mask_ratio,
               decoder_depth=s["decoder_depth"], decoder_heads=s["decoder_num_heads"],
               decoder_dim_head=s["decoder_embed_dim"] // s["decoder_num_heads"])


def loss_itself(model: nn.Module, images: torch.Tensor, task: Task) -> torch.Tensor:
    return model(images)


# lightly, with timm's transformer

class LightlyAutoencoder(nn.Module):
    """lightly's parts put together as its users have to: it has the encoder and the decoder, not the model."""

    def __init__(self, task: Task):
        super().__init__()
        from lightly.models.modules import MaskedVisionTransformerDecoderTIMM, MaskedVisionTransformerTIMM
        from timm.models.vision_transformer import VisionTransformer
        s = task.sizes
        self.task = task
        self.encoder = MaskedVisionTransformerTIMM(VisionTransformer(
            img_size=task.image_size, patch_size=task.patch_size, embed_dim=s["embed_dim"], depth=s["depth"],
            num_heads=s["num_heads"], num_classes=0))
        self.narrow = nn.Linear(s["embed_dim"], s["decoder_embed_dim"])
        self.decoder = MaskedVisionTransformerDecoderTIMM(task.patches, s["decoder_embed_dim"], s["decoder_depth"],
                                                          s["decoder_num_heads"])
        self.head = nn.Linear(s["decoder_embed_dim"], 3 * task.patch_size ** 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        from lightly.models import utils
        size = (len(images), 1 + self.task.patches)
        keep, hide = utils.random_token_mask(size, self.task.mask_ratio, device=images.device)
        latent = self.narrow(self.encoder.encode(images, idx_keep=keep))
        tokens = utils.repeat_token(self.decoder.mask_token, size).to(latent.dtype)
        tokens = self.decoder(utils.set_at_index(tokens, keep, latent))
        predicted = self.head(utils.get_at_index(tokens, hide))
        target = utils.get_at_index(utils.patchify(images, self.task.patch_size), hide - 1)     # 0 is the class token
        return nn.functional.mse_loss(predicted.float(), target)


def build_lightly(task: Task, attention: str) -> nn.Module:
    return choose_attention(LightlyAutoencoder(task), attention)


def choose_attention(model: nn.Module, attention: str) -> nn.Module:
    """timm's blocks, fused attention or written out."""
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = attention == "fused"
    return model


# The classic loop

def build_classic(task: Task, attention: str) -> nn.Module:
    s = task.sizes
    model = classic.ClassicAutoencoder(task.image_size, task.patch_size, task.mask_ratio, s["embed_dim"], s["depth"],
                                       s["num_heads"], s["decoder_embed_dim"], s["decoder_depth"], s["decoder_num_heads"])
    return choose_attention(model, attention)


def loss_classic(model: nn.Module, images: torch.Tensor, task: Task) -> torch.Tensor:
    return classic.pretraining_loss(model, images, task.patches, task.mask_ratio)


CONTESTANTS = {
    OURS: Contestant(build_ours, loss_ours),
    "transformers": Contestant(build_hugging_face, loss_hugging_face, "transformers", ("fused", "written out")),
    "vit-pytorch": Contestant(build_vit_pytorch, loss_itself, "vit_pytorch"),
    "lightly": Contestant(build_lightly, loss_itself, "lightly", ("fused", "written out")),
    "classic loop": Contestant(build_classic, loss_classic, "timm", ("fused", "written out")),
}
PEERS = tuple(name for name in CONTESTANTS if name != OURS)


def parameters(model: nn.Module) -> int:
    """How many numbers are learned."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def step(name: str, task: Task, images: torch.Tensor, precision: str = "fp32", compiled: bool = False,
         attention: str | None = None) -> Callable[[], None]:
    """A function that does one training step of a contestant on images [B, C, H, W]: forward, backward, optimizer.

    All have PyTorch's fused AdamW with the same settings; bf16 means autocast. Peers are compiled as a whole, ours as
    its own training loop does it, one stack of blocks each, and around ours is what that loop does about memory.
    """
    contestant, device = CONTESTANTS[name], images.device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = contestant.build(task, attention or contestant.attentions[0]).to(device).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1.5e-4, betas=(0.9, 0.95),
                                  weight_decay=0.05, fused=device.type in ("cpu", "cuda"))
    module = compiled_module(name, model, device) if compiled else model

    def run() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = contestant.loss(module, images, task)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    run.parameters, run.module = parameters(model), module
    if name == OURS:
        run.around = partial(kept_memory, device)
    return run


def compiled_module(name: str, model: nn.Module, device: torch.device) -> nn.Module:
    if name != OURS:
        return torch.compile(model)
    use_compile(model, "on", device, 0, partial(print, flush=True))
    return model
