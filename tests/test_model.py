"""The transformer's parts, the masked autoencoder and the classifier."""
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import mae_helpers.model as model_module
from mae_helpers import InputError, MaskedAutoencoder, ViTClassifier, patchify, random_mask
from mae_helpers.losses import masked_mse, normalize_patches
from mae_helpers.model import Attention, Block, Linear, pooled, resize_positions, sincos_positions, take
from mae_helpers.patches import real_pixels
from mae_helpers.pretrain import hidden_pixels

SIZES = dict(image_size=8, patch_size=4, in_chans=1, embed_dim=16, depth=1, num_heads=2)
DECODER = dict(decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2)
every_image = pytest.mark.parametrize("channels, side", [(1, 12), (3, 12), (1, 10), (3, 10)])     # 10: padded to 12


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def mae(seed=0, **changes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MaskedAutoencoder(**{**SIZES, **DECODER, **changes})


def classifier(seed=1, **changes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ViTClassifier(**{**SIZES, "num_classes": 10, **changes})


def test_timm_computes_the_same_features():
    """The weights, too, have timm's names and shapes, so they can be exchanged."""
    timm = pytest.importorskip("timm", reason="timm is not installed")
    ours = classifier().eval()
    theirs = timm.models.vision_transformer.VisionTransformer(
        img_size=SIZES["image_size"], patch_size=SIZES["patch_size"], in_chans=SIZES["in_chans"], num_classes=0,
        embed_dim=SIZES["embed_dim"], depth=SIZES["depth"], num_heads=SIZES["num_heads"]).eval()
    wanted = theirs.state_dict()
    theirs.load_state_dict({name: ours.state_dict()[name].view_as(value) for name, value in wanted.items()})
    images = torch.randn(2, SIZES["in_chans"], SIZES["image_size"], SIZES["image_size"], generator=seeded())
    torch.testing.assert_close(ours.encode(images), theirs.forward_features(images), atol=1e-5, rtol=1e-4)


def test_first_weights_are_xavier_s_and_those_of_a_head_small():
    """As in the official MAE: uniform with the variance 2 / (inputs + outputs), and biases of 0."""
    model = mae(embed_dim=64)
    assert model.blocks[0].mlp.fc1.weight.std().item() == pytest.approx((2 / (64 + 256)) ** 0.5, rel=0.1)
    assert not any(p.any() for name, p in model.named_parameters() if name.endswith("fc1.bias"))
    assert classifier().head.weight.std().item() == pytest.approx(0.01, rel=0.3)


def model_images_mask(channels, side, **changes):
    """A model for 3 × 3 patches, a batch of two and a mask that hides six patches of each image."""
    images = torch.randn(2, channels, side, side, generator=seeded(1))
    return mae(image_size=side, in_chans=channels, **changes), images, random_mask(2, 9, 0.7, seeded(2))


# Linear layers

@pytest.fixture
def detours(monkeypatch):
    """Shapes of the weights that went the way of a convolution, on a processor for which that is meant."""
    taken, convolve = [], F.conv2d
    monkeypatch.setattr(model_module, "SLOW_MKL", True)
    monkeypatch.setattr(F, "conv2d", lambda x, weight, bias: taken.append(list(weight.shape)) or convolve(x, weight, bias))
    return taken


def test_a_linear_layer_that_is_computed_as_a_convolution_is_the_same_layer(detours):
    x, gradient = torch.randn(16, 5, 12, generator=seeded()), torch.randn(16, 5, 7, generator=seeded(1))
    layer = Linear(12, 7)
    given = [x.requires_grad_(), *layer.parameters()]
    found, expected = layer(x), F.linear(x, layer.weight, layer.bias)
    assert detours == [[7, 12, 1, 1]] and found.is_contiguous()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(torch.autograd.grad(found, given, gradient), torch.autograd.grad(expected, given, gradient)):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_a_model_is_the_same_by_either_way(detours, monkeypatch):
    model, images = mae(image_size=12), torch.randn(16, 1, 12, 12, generator=seeded(1))
    there = model(images, 0.75, generator=seeded(2))
    assert len(detours) == 1 + 4 + 1 + 4 + 1        # the embedding, a block, the way to the decoder, its block, the pixels
    monkeypatch.setattr(model_module, "SLOW_MKL", False)
    straight = model(images, 0.75, generator=seeded(2))
    torch.testing.assert_close(there.pred, straight.pred, atol=1e-5, rtol=1e-5)
    assert len(detours) == 11


def test_only_large_batches_of_fp32_tokens_take_the_detour(detours):
    layer, x = Linear(12, 7), torch.randn(16, 5, 12)
    layer(x[:15]), layer(x[0])                      # few images; one vector after another
    with torch.autocast("cpu", torch.bfloat16):
        layer(x)
    layer.double()(x.double())
    assert not detours


@pytest.mark.parametrize("told, slow", [
    ({"cpu_name": "AMD EPYC", "avx512_vp2intersect": True}, True), ({"cpu_name": "AMD EPYC", "avx512_f": True}, False),
    ({"cpu_name": "Intel Xeon", "avx512_vp2intersect": True}, False), ({}, False)])
def test_which_processors_the_detour_is_for(told, slow, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: told, raising=False)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert model_module.slow_mkl() is slow
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert not model_module.slow_mkl()


# Attention and blocks

@pytest.mark.parametrize("length", [7, Attention.LONG[torch.float32] + 1])
def test_attention_equals_the_fused_kernel(length):
    query, key, value = torch.randn(3, 2, 4, length, 8, generator=seeded())
    expected = F.scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(Attention(32, 4).attend(query, key, value), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype, limit", Attention.LONG.items())
def test_a_cpu_writes_attention_out_up_to_a_length(dtype, limit, monkeypatch):
    fused, kernel = [], F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, k, v: fused.append(q.shape[-2]) or kernel(q, k, v))
    for length in (limit, limit + 1):
        Attention(4, 1).attend(*torch.ones(3, 1, 1, length, 4, dtype=dtype))
    assert fused == [limit + 1]


def test_attention_equals_a_loop_over_heads():
    attention, x = Attention(24, 3), torch.randn(2, 5, 24, generator=seeded())
    query, key, value = attention.qkv(x).split(24, dim=-1)
    heads, looks = [], []
    for h in range(3):
        part = slice(8 * h, 8 * h + 8)
        looks.append(((query[..., part] @ key[..., part].mT) / math.sqrt(8)).softmax(-1))
        heads.append(looks[-1] @ value[..., part])
    torch.testing.assert_close(attention(x), attention.proj(torch.cat(heads, dim=-1)), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(attention.weights(x), torch.stack(looks, dim=1))


def test_attention_weights_of_a_token_sum_to_one():
    weights = Attention(16, 2).weights(torch.randn(2, 5, 16, generator=seeded()))
    assert list(weights.shape) == [2, 2, 5, 5] and bool((weights > 0).all())
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 5))


def test_drop_path_keeps_the_expected_value():
    """Of 20,000 samples each stays with chance 0.7 and then counts 1 / 0.7 times; six standard deviations."""
    block, samples, stay = Block(4, 1, drop_path=0.3).train(), 20_000, 0.7
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = block._maybe_skip(torch.ones(samples, 3, 4))
    assert bool((found == found[:, :1, :1]).all())          # a sample is skipped as a whole
    assert sorted(set(found[:, 0, 0].tolist())) == pytest.approx([0, 1 / stay])
    assert abs(found.mean().item() - 1) < 6 * math.sqrt((1 - stay) / stay / samples)


def test_drop_path_is_off_in_evaluation():
    block, x = Block(16, 2, drop_path=0.9).eval(), torch.randn(4, 3, 16, generator=seeded())
    sure = Block(16, 2).eval()
    sure.load_state_dict(block.state_dict())
    assert torch.equal(block(x), sure(x))
    assert not torch.equal(block.train()(x), sure(x))


def test_drop_path_grows_with_depth():
    assert [b.drop_path for b in classifier(depth=3, drop_path=0.2).blocks] == pytest.approx([0, 0.1, 0.2])
    assert [b.drop_path for b in classifier(depth=1, drop_path=0.2).blocks] == [0.2]


# Positions

@pytest.mark.parametrize("side, dim", [(1, 4), (3, 16), (7, 96)])
def test_positions_equal_the_formula(side, dim):
    expected = np.zeros((1 + side * side, dim))
    for row, col in itertools.product(range(side), repeat=2):
        quarters = [f(coordinate * 10_000 ** (-4 * np.arange(dim // 4) / dim))
                    for coordinate in (col, row) for f in (np.sin, np.cos)]
        expected[1 + row * side + col] = np.concatenate(quarters)
    found = sincos_positions(side, dim)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found[0].numpy(), expected, atol=1e-6)


def test_positions_differ_and_the_class_token_has_none():
    codes = sincos_positions(14, 16)[0]
    assert not codes[0].any()
    assert torch.pdist(codes).min() > 0.1


@pytest.mark.parametrize("dim", [6, 97])
def test_positions_need_a_multiple_of_four(dim):
    with pytest.raises(InputError, match=f"embed_dim is {dim}: .*multiple of 4"):
        sincos_positions(3, dim)


# The masked autoencoder

@every_image
def test_shapes(channels, side):
    model, images, mask = model_images_mask(channels, side, patch_size=4)
    out = model(images, mask=mask)
    assert out.loss.shape == () and list(out.pred.shape) == [2, 9, 16 * channels]
    assert torch.equal(out.mask, mask)
    assert list(model.encode(images).shape) == [2, 10, 16]
    assert model.reconstruct(images, mask=mask).shape == images.shape


@every_image
def test_hidden_pixels_are_never_seen(channels, side):
    model, images, mask = model_images_mask(channels, side)
    hidden = hidden_pixels(model, mask)
    other = torch.randn(images.shape, generator=seeded(3))
    pred = model(images, mask=mask).pred
    assert torch.equal(model(torch.where(hidden, other, images), mask=mask).pred, pred)
    seen = model(torch.where(hidden, images, other), mask=mask).pred
    assert bool(((seen - pred).abs().amax((1, 2)) > 1e-4).all())


@every_image
@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_only_hidden_pixels_are_scored(channels, side, norm_pix_loss):
    model, images, mask = model_images_mask(channels, side, norm_pix_loss=norm_pix_loss)
    out = model(images, mask=mask)
    out.pred.retain_grad()
    out.loss.backward()
    real = real_pixels(side, 4, channels)
    assert torch.equal(out.pred.grad != 0, mask[..., None] & real)
    tokens = patchify(images, 4)
    target = normalize_patches(tokens, real) if norm_pix_loss else tokens
    torch.testing.assert_close(out.loss, masked_mse(out.pred, target, mask, real))


@pytest.mark.parametrize("strategy", ["random", "block", "grid"])
def test_the_generator_decides_mask_and_output(strategy):
    model, images, _ = model_images_mask(1, 12)
    first, again = (model(images, 0.7, generator=seeded(4), strategy=strategy) for _ in range(2))
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first.mask, model(images, 0.4, generator=seeded(5), strategy=strategy).mask)


def test_a_generator_leaves_the_global_stream_alone():
    model, images, _ = model_images_mask(1, 12)
    before = torch.get_rng_state()
    model(images, 0.7, generator=seeded())
    model.reconstruct(images, mask_ratio=0.7, generator=seeded())
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("call", ["__call__", "reconstruct"])
def test_mask_and_ratio_exclude_each_other(call):
    model, images, mask = model_images_mask(1, 12)
    for wrong in (dict(), dict(mask_ratio=0.5, mask=mask)):
        with pytest.raises(InputError, match="either mask_ratio or mask"):
            getattr(model, call)(images, **wrong)


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 1, 9, 9), (2, 1, 8, 9), (1, 8, 8)])
@pytest.mark.parametrize("call", ["__call__", "encode", "reconstruct"])
def test_other_images_are_one_sentence(shape, call):
    arguments = {} if call == "encode" else dict(mask_ratio=0.5)
    with pytest.raises(InputError) as error:
        getattr(mae(), call)(torch.zeros(shape), **arguments)
    assert str(list(shape)) in str(error.value) and "[batch, 1, 8, 8]" in str(error.value)


def test_encode_is_what_the_encoder_sees_when_nothing_is_hidden():
    """Positions travel with the patches, so the order in which they are given changes only the order of the output."""
    model, images, _ = model_images_mask(1, 12, depth=2)
    order = torch.stack([torch.randperm(9, generator=seeded(seed)) for seed in (1, 2)])
    whole, shuffled = model.encode(images), model._encode(patchify(images, 4), order)
    torch.testing.assert_close(shuffled[:, :1], whole[:, :1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(shuffled[:, 1:], take(whole[:, 1:], order), atol=1e-5, rtol=1e-5)


def test_the_same_patch_elsewhere_is_another_token():
    features = mae(image_size=12).encode(torch.ones(1, 1, 12, 12))[0, 1:]
    assert torch.pdist(features).min() > 0.01


def test_predictions_stand_at_the_place_of_their_patch():
    """A decoder that copies its input shows where each token landed: visible ones at home, mask tokens elsewhere."""
    model, images, mask = model_images_mask(1, 12, decoder_embed_dim=16)
    model.decoder_pos_embed.zero_()
    model.decoder_blocks, model.decoder_norm, model.decoder_pred = (torch.nn.Identity() for _ in range(3))
    model.decoder_blocks, model.decoder_embed = torch.nn.Sequential(), torch.nn.Identity()
    model.blocks, model.norm = torch.nn.Sequential(), torch.nn.Identity()
    tokens = patchify(images, 4)
    expected = torch.where(mask[..., None], model.mask_token, model.patch_embed(tokens) + model.pos_embed[:, 1:])
    torch.testing.assert_close(model.predict(tokens, mask, 6), expected)


@every_image
def test_reconstruct_keeps_the_visible_pixels(channels, side):
    model, images, mask = model_images_mask(channels, side)
    hidden = hidden_pixels(model, mask).expand_as(images)
    filled, unpasted = model.reconstruct(images, mask=mask), model.reconstruct(images, mask=mask, paste=False)
    assert torch.equal(filled[~hidden], images[~hidden])
    assert torch.equal(filled[hidden], unpasted[hidden])
    assert not bool((unpasted == images).any())
    assert not filled.requires_grad


def test_true_statistics_have_to_be_asked_for():
    model, images, mask = model_images_mask(1, 12, norm_pix_loss=True)
    for paste in (True, False):
        with pytest.raises(InputError, match="use_true_statistics=True"):
            model.reconstruct(images, mask=mask, paste=paste)
    filled = model.reconstruct(images, mask=mask, paste=False, use_true_statistics=True)
    tokens, pred = patchify(images, 4), model(images, mask=mask).pred
    expected = pred * (tokens.var(-1, keepdim=True) + 1e-6).sqrt() + tokens.mean(-1, keepdim=True)
    torch.testing.assert_close(patchify(filled, 4), expected, atol=1e-5, rtol=1e-5)


# Sizes

@pytest.mark.parametrize("changes, words", [
    (dict(num_heads=3), "embed_dim is 16: it must be a multiple of num_heads, 3"),
    (dict(decoder_num_heads=3), "decoder_embed_dim is 16: it must be a multiple of decoder_num_heads, 3"),
    (dict(embed_dim=18), "embed_dim is 18: sin-cos positions need a multiple of 4"),
    (dict(decoder_embed_dim=18), "decoder_embed_dim is 18: sin-cos positions need a multiple of 4"),
    (dict(patch_size=9), "patch_size is 9: it must be at most the image size, 8"),
    (dict(patch_size=0), "patch_size is 0"), (dict(patch_size=-4), "patch_size is -4"),
    (dict(depth=0), "depth is 0"), (dict(decoder_depth=0), "decoder_depth is 0"), (dict(embed_dim=0), "embed_dim is 0"),
    (dict(num_heads=0), "num_heads is 0"), (dict(decoder_num_heads=0), "decoder_num_heads is 0"),
    (dict(decoder_num_heads=-2), "decoder_num_heads is -2")])
def test_sizes_that_cannot_be_built_are_one_sentence(changes, words):
    with pytest.raises(InputError) as error:
        mae(**changes)
    assert words in str(error.value)


def test_a_patch_as_large_as_the_image_encodes_but_does_not_mask():
    model, images = mae(patch_size=8), torch.zeros(1, 1, 8, 8)
    assert list(model.encode(images).shape) == [1, 2, 16]
    with pytest.raises(InputError, match="as large as the image"):
        model(images, mask_ratio=0.5)
    with pytest.raises(InputError, match="hides 1 of 1 patches"):
        model(images, mask=torch.ones(1, 1, dtype=torch.bool))


def test_sizes_beside_a_preset_win():
    model = MaskedAutoencoder.preset("vit_micro", image_size=8, patch_size=4, in_chans=1, depth=1, decoder_depth=2)
    assert (model.embed_dim, len(model.blocks), model.blocks[0].attn.num_heads) == (96, 1, 3)
    assert (model.decoder_embed.out_features, len(model.decoder_blocks)) == (64, 2)
    assert model.decoder_blocks[0].attn.num_heads == 2


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(InputError, match="preset is 'vit_tny': .*Did you mean 'vit_tiny'"):
        MaskedAutoencoder.preset("vit_tny", image_size=8, patch_size=4, in_chans=1)


def test_vit_tiny_has_the_parameters_of_the_formula():
    d, pixels = 192, 4 * 4 * 3
    attention, mlp, norms = (3 * d * d + 3 * d) + (d * d + d), (4 * d * d + 4 * d) + (4 * d * d + d), 2 * 2 * d
    encoder = (pixels * d + d) + d + 12 * (attention + mlp + norms) + 2 * d        # embedding, class token, …, norm
    decoder = (d * d + d) + d + 4 * (attention + mlp + norms) + 2 * d + (d * pixels + pixels)
    model = MaskedAutoencoder.preset("vit_tiny", image_size=32, patch_size=4, in_chans=3)
    assert sum(p.numel() for p in model.parameters()) == encoder + decoder


# Names of the weights: those of the official MAE release and of timm's VisionTransformer

def with_parameters(*layers):
    return {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}


def block_names(prefix):
    return with_parameters(*(f"{prefix}.0.{layer}" for layer in
                             ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")))


ENCODER = {"cls_token", "pos_embed"} | with_parameters("patch_embed.proj", "norm") | block_names("blocks")


def test_names_of_the_autoencoder():
    expected = ENCODER | {"mask_token", "decoder_pos_embed"} | block_names("decoder_blocks") \
        | with_parameters("decoder_embed", "decoder_norm", "decoder_pred")
    assert set(mae().state_dict()) == expected


def test_names_of_the_classifier():
    assert set(classifier().state_dict()) == ENCODER | with_parameters("head")


def test_shapes_of_the_weights():
    shapes = {name: list(value.shape) for name, value in mae(in_chans=3).state_dict().items()}
    assert shapes["patch_embed.proj.weight"] == [16, 3, 4, 4]
    assert shapes["pos_embed"] == [1, 5, 16] and shapes["cls_token"] == shapes["mask_token"] == [1, 1, 16]
    assert shapes["blocks.0.attn.qkv.weight"] == [48, 16] and shapes["blocks.0.mlp.fc1.weight"] == [64, 16]
    assert shapes["decoder_pred.weight"] == [48, 16]


# The classifier

def test_load_encoder_copies_everything_but_the_head():
    model, source = classifier(depth=2), mae(depth=2)
    head = model.head.weight.clone()
    model.load_encoder(source)
    theirs = source.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in model.state_dict().items() if "head" not in name)
    assert torch.equal(model.head.weight, head)
    images = torch.randn(2, 1, 8, 8, generator=seeded())
    assert torch.equal(model.encode(images), source.encode(images))


def test_load_encoder_refuses_another_width_of_the_mlp():
    wide = MaskedAutoencoder(28, 7, 1, 16, 2, 2, 16, 1, 2, mlp_ratio=2.0)
    with pytest.raises(InputError, match="the MLP's width is 64, the pretrained encoder's is 32"):
        ViTClassifier(28, 7, 1, 10, 16, 2, 2).load_encoder(wide)


@pytest.mark.parametrize("changes", [
    dict(patch_size=2), dict(embed_dim=32), dict(depth=1), dict(depth=3), dict(num_heads=4)], ids=str)
def test_load_encoder_refuses_other_sizes(changes):
    """Also the sizes that no weight's shape shows: fewer blocks, more heads."""
    with pytest.raises(InputError, match="must agree"):
        classifier(**{"depth": 2, **changes}).load_encoder(mae(depth=2))


def test_an_encoder_moves_from_grey_to_colour_and_gives_grey_the_same_features():
    model, source = classifier(depth=2, in_chans=3), mae(depth=2)
    model.load_encoder(source)
    grey = torch.randn(2, 1, 8, 8, generator=seeded())
    torch.testing.assert_close(model.encode(grey.expand(-1, 3, -1, -1)), source.encode(grey))
    back = classifier(depth=2)
    back.load_encoder(model)
    torch.testing.assert_close(back.encode(grey), source.encode(grey))


def test_an_encoder_moves_to_another_image_size_by_interpolating_positions():
    model, source = classifier(depth=2, image_size=12), mae(depth=2)
    model.load_encoder(source)
    assert model.pos_embed.shape == (1, 1 + 9, 16) and torch.equal(model.pos_embed[:, 0], source.pos_embed[:, 0])
    assert torch.isfinite(model(torch.randn(2, 1, 12, 12, generator=seeded()))).all()


def test_resized_positions_keep_rows_and_columns_apart():
    """A code that is the row number stays one that only depends on the row, in order."""
    rows = torch.arange(4.0).repeat_interleave(4)[None, :, None]
    codes = torch.cat([torch.zeros(1, 1, 1), rows], dim=1)
    assert torch.equal(resize_positions(codes, 4), codes)
    larger = resize_positions(codes, 8)[0, 1:, 0].view(8, 8)
    torch.testing.assert_close(larger, larger[:, :1].expand(8, 8))
    assert (larger[1:, 0] > larger[:-1, 0]).all() and larger[0, 0] < 0.3 and larger[-1, 0] > 2.7


def test_pooling():
    features = torch.tensor([[[9.0, 9.0], [1.0, 2.0], [3.0, 6.0]]])
    assert pooled(features, "cls").tolist() == [[9, 9]]
    assert pooled(features, "mean").tolist() == [[2, 4]]
    with pytest.raises(InputError, match="pool is 'men': .*Did you mean 'mean'"):
        pooled(features, "men")


def test_quadrants_are_the_means_of_the_quarters_of_the_image():
    """Patch numbers as features: each quarter has its own mean, and an odd grid shares its middle row and column."""
    def numbered(side):
        return torch.cat([torch.tensor([-9.0]), torch.arange(float(side * side))])[None, :, None].repeat(2, 1, 3)
    assert pooled(numbered(4), "quadrants").view(2, 3, 2, 2)[1, 2].tolist() == [[2.5, 4.5], [10.5, 12.5]]
    assert pooled(numbered(3), "quadrants").view(2, 3, 2, 2)[0, 0].tolist() == [[2, 3], [5, 6]]
    assert pooled(numbered(1), "quadrants").shape == (2, 12)
    for side in (1, 2, 5, 8):
        features = torch.randn(2, 1 + side * side, 3, generator=seeded())
        picture = features[:, 1:].transpose(1, 2).unflatten(2, (side, side))
        expected = torch.nn.functional.adaptive_avg_pool2d(picture, 2).flatten(1)
        torch.testing.assert_close(pooled(features, "quadrants"), expected)


@pytest.mark.parametrize("pool", ["mean", "cls", "quadrants"])
def test_logits_are_the_head_of_the_pooled_features(pool):
    model, images = classifier(pool=pool), torch.randn(3, 1, 8, 8, generator=seeded())
    assert list(model(images).shape) == [3, 10]
    torch.testing.assert_close(model(images), model.head(pooled(model.encode(images), pool)))
