"""The masked autoencoder with one part changed."""
import pytest
import torch
import torch.nn.functional as F

from mae_helpers import InputError, PretrainConfig, load_images, patchify, random_mask
from mae_helpers.model import Block, take
from mae_helpers.pretrain import build
from mae_helpers.variants import VARIANTS, CrossAttention, CrossBlock, CrossDecoderMAE, EncoderTokensMAE

SIZES = dict(image_size=12, patch_size=4, in_chans=1, embed_dim=16, depth=1, num_heads=2,
             decoder_embed_dim=16, decoder_depth=2, decoder_num_heads=2)
IMAGES = torch.randn(2, 1, 12, 12, generator=torch.Generator().manual_seed(1))
MASK = random_mask(2, 9, 0.7, torch.Generator().manual_seed(2))             # 6 of 9


def made(cls, **changes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return cls(**{**SIZES, **changes})


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_hidden_patch_is_not_seen(variant):
    model, other = made(VARIANTS[variant]).eval(), IMAGES.clone()
    hidden = MASK.view(2, 1, 3, 3).repeat_interleave(4, 2).repeat_interleave(4, 3)
    other[hidden] = 7.0
    assert torch.equal(model(IMAGES, mask=MASK).pred, model(other, mask=MASK).pred)
    other[~hidden] += 1
    assert not torch.equal(model(IMAGES, mask=MASK).pred, model(other, mask=MASK).pred)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_has_the_same_encoder_of_whole_images(variant):
    """What is compared is the training: each starts from the same weights, and is used in the same way afterwards."""
    config = PretrainConfig(patch_size=7, embed_dim=16, depth=1, num_heads=2, decoder_embed_dim=16, variant=variant)
    images = load_images("mnist", "val", 10)
    first, model = build(config.replace(variant="mae"), images), build(config, images)
    batch = images.normalize(images.images)
    assert type(model) is VARIANTS[variant] and torch.equal(first.encode(batch), model.encode(batch))


# Mask tokens in the encoder

def test_mask_tokens_stand_where_patches_are_hidden():
    model = made(EncoderTokensMAE)
    model.blocks, model.norm = torch.nn.Sequential(), torch.nn.Identity()
    latent, restore = model.encode_visible(patchify(IMAGES, 4), MASK, 6)
    expected = torch.where(MASK[..., None], model.encoder_mask_token, model.patch_embed(patchify(IMAGES, 4)))
    torch.testing.assert_close(latent[:, 1:], expected + model.pos_embed[:, 1:])
    assert restore.tolist() == [list(range(9))] * 2


def test_mask_tokens_in_the_encoder_learn():
    model = made(EncoderTokensMAE)
    model(IMAGES, mask=MASK).loss.backward()
    assert bool(model.encoder_mask_token.grad.any()) and not model.mask_token.grad.any()


# A decoder that looks at visible tokens only

def test_cross_attention_to_itself_is_self_attention():
    attention, x = CrossAttention(16, 2), torch.randn(2, 5, 16)
    torch.testing.assert_close(attention(x, x), super(CrossAttention, attention).forward(x), atol=1e-6, rtol=1e-5)


def test_a_cross_block_has_the_weights_of_a_block():
    assert CrossBlock(16, 2).state_dict().keys() == Block(16, 2).state_dict().keys()


def test_a_prediction_does_not_depend_on_the_other_hidden_patches():
    """One by one or all at once: mask tokens do not see each other."""
    model = made(CrossDecoderMAE).eval()
    memory = torch.randn(2, 4, 16)
    where = torch.tensor([[8, 2, 5], [0, 1, 7]])
    together = model._predict_at(memory, where)
    for i in range(3):
        torch.testing.assert_close(model._predict_at(memory, where[:, i:i + 1])[:, 0], together[:, i], atol=1e-6, rtol=1e-5)
    everywhere = model.decode(memory, torch.zeros(2, 9))
    torch.testing.assert_close(take(everywhere, where), together, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("share, count", [(0.01, 1), (0.5, 3), (1.0, 6)])
def test_training_predicts_a_share_of_the_hidden_patches(share, count):
    model = made(CrossDecoderMAE, decode_share=share).train()
    out = model(IMAGES, mask=MASK, generator=torch.Generator().manual_seed(0))
    assert out.mask.sum(1).tolist() == [count] * 2 and not bool((out.mask & ~MASK).any())
    assert torch.equal(out.pred.any(dim=-1), out.mask)
    truth = patchify(IMAGES, 4)
    torch.testing.assert_close(out.loss, F.mse_loss(out.pred[out.mask], truth[out.mask]))
    whole = model.eval()(IMAGES, mask=MASK)
    assert torch.equal(whole.mask, MASK)
    torch.testing.assert_close(whole.pred[out.mask], out.pred[out.mask], atol=1e-6, rtol=1e-5)


def test_the_predicted_share_is_another_one_each_time():
    model, generator = made(CrossDecoderMAE, decode_share=0.5), torch.Generator().manual_seed(0)
    masks = torch.stack([model(IMAGES, mask=MASK, generator=generator).mask for _ in range(60)])
    often = masks.float().mean(0)[MASK]
    assert 0.2 < often.min() and often.max() < 0.8                  # each hidden patch about half of the times


@pytest.mark.parametrize("share", [0, 1.1])
def test_a_wrong_share_is_one_sentence(share):
    with pytest.raises(InputError, match="decode_share is .*: it must be a number"):
        made(CrossDecoderMAE, decode_share=share)
