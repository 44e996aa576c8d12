"""The two jobs from end to end, on a few hundred real digits."""
import importlib
import re
import shutil
import subprocess
import sys

import pytest
import torch

from mae_helpers import (
    ClassifyConfig,
    InputError,
    MaskedAutoencoder,
    PretrainConfig,
    classify,
    load_images,
    load_run,
    pretrain,
    random_mask,
)
from mae_helpers.augment import augment
from mae_helpers.classify import accuracy, features, load_classifier, predict, settled
from mae_helpers.config import project_root
from mae_helpers.losses import uniformity
from mae_helpers.masking import make_mask
from mae_helpers.model import ViTClassifier
from mae_helpers.pretrain import (
    build,
    evaluate,
    fixed_examples,
    fixed_mask,
    hidden_pixels,
    load_mae,
    psnr_of_the_mean,
    reconstruction_panels,
    taught_by,
)
from mae_helpers.recipes import RECIPES, classify_config, pretrain_config, record_run, run_recipe, summary, table
from mae_helpers.runs import Run
from mae_helpers.variants import VARIANTS


def run_quietly(config, folder, **more):
    return pretrain(config, root=folder, say=lambda text: None, **more)


def classify_quietly(config, folder):
    return classify(config, root=folder, say=lambda text: None)


# Pretraining

def test_pretraining_learns(tmp_path, tiny):
    run = run_quietly(tiny.replace(limit=2_000, epochs=4, batch_size=64, base_lr=8e-3), tmp_path)
    assert run.results["psnr_db"] > run.results["psnr_mean_db"] + 0.3
    assert run.results["val_loss_pm1"] == pytest.approx(4 * 10 ** (-run.results["psnr_db"] / 10), rel=1e-5)


def test_psnr_of_the_mean_is_what_the_pixels_say(tiny):
    val = load_images("mnist", "val", 200)
    model = build(tiny, val)
    mask = random_mask(200, 16, 0.75, torch.Generator().manual_seed(12_345))
    hidden = hidden_pixels(model, mask).expand(-1, 1, -1, -1)
    error = ((val.images / 255 - val.mean[0]) ** 2)[hidden].mean()
    assert psnr_of_the_mean(val, model, tiny) == pytest.approx(float(-10 * error.log10()), abs=1e-3)


def test_evaluation_repeats_exactly_and_its_psnr_counts_hidden_pixels_only(tiny):
    val = load_images("mnist", "val", 200)
    model = build(tiny, val).eval()
    first = evaluate(model, val, 0.75)
    assert first == evaluate(model, val, 0.75)
    mask = random_mask(200, 16, 0.75, torch.Generator().manual_seed(12_345))
    filled = val.denormalize(model.reconstruct(val.normalize(val.images), mask=mask))
    error = ((val.images / 255 - filled) ** 2).sum() / hidden_pixels(model, mask).sum()
    assert first["psnr_db"] == pytest.approx(float(-10 * error.log10()), abs=1e-3)


@pytest.mark.parametrize("change", [
    dict(norm_pix_loss=True), dict(patch_size=5), dict(patch_size=3, mask_strategy="block"), dict(mask_strategy="grid"),
    dict(augment="affine"), dict(accumulate=2), dict(variant="encoder_tokens"), dict(variant="cross_decoder"),
    dict(laplacian_weight=0.1, norm_pix_loss=True)])
def test_every_option_trains(tmp_path, tiny, change):
    run = run_quietly(tiny.replace(limit=128, epochs=1, **change), tmp_path)
    assert run.finished and (run.results["psnr_db"] is None) == bool(change.get("norm_pix_loss"))
    assert (run.results["laplacian_error"] is None) == bool(change.get("norm_pix_loss"))
    assert type(load_mae(run)) is VARIANTS[run.config.variant]


def test_added_terms_are_part_of_the_loss_and_told_apart(tmp_path, tiny):
    plain, more = (run_quietly(tiny.replace(limit=128, epochs=1, batch_size=128, **change), tmp_path).metrics[0]
                   for change in ({}, dict(laplacian_weight=0.1, uniformity_weight=0.01)))
    assert more["train_pixels"] == pytest.approx(plain["train_loss"], abs=1e-5)         # one step: the weights are the same
    assert more["train_loss"] == pytest.approx(more["train_pixels"] + more["train_laplacian"] + more["train_uniformity"],
                                               abs=1e-5)
    assert more["train_laplacian"] > 0 > more["train_uniformity"]


def test_a_term_that_is_added_does_what_it_is_for(tmp_path, tiny):
    base = tiny.replace(limit=2_000, epochs=3, batch_size=64, base_lr=8e-3)
    plain, sharp = (run_quietly(base.replace(laplacian_weight=w), tmp_path) for w in (0.0, 1.0))
    assert sharp.results["laplacian_error"] < plain.results["laplacian_error"]
    val = load_images("mnist", "val", 200)
    spread = run_quietly(base.replace(uniformity_weight=0.1), tmp_path)
    with torch.no_grad():
        before, after = (uniformity(load_mae(run).encode(val.normalize(val.images))[:, 1:].mean(1))
                         for run in (plain, spread))
    assert after < before - 0.1


def test_a_schedule_moves_the_ratio_at_every_step(tmp_path, tiny):
    seen = []

    def watched(batch, patches, ratio, generator):
        seen.append(ratio)
        return random_mask(batch, patches, ratio, generator)
    config = tiny.replace(limit=256, epochs=2, batch_size=64, mask_schedule="linear", mask_ratio_start=0.25)
    run = run_quietly(config, tmp_path, mask_fn=watched)
    assert seen == pytest.approx([0.25 + 0.5 * i / 8 for i in range(8)])
    assert run.results["mask_ratio"] == 0.75                        # that of the end, at which it is judged, too


def test_images_are_left_as_they_are_at_the_end(tmp_path, tiny, monkeypatch):
    module, seen = importlib.import_module("mae_helpers.pretrain"), []

    def watched(name, images, generator, share):
        seen.append((name, share))
        return augment(name, images, generator, share)
    monkeypatch.setattr(module, "augment", watched)
    run_quietly(tiny.replace(limit=256, epochs=2, batch_size=64, augment="affine", augment_share=0.5, augment_until=0.75),
                tmp_path)
    assert seen == 6 * [("affine", 0.5)] + 2 * [("none", 0.5)]


def test_extra_losses_are_computed_in_fp32_whatever_the_model_is(tmp_path, tiny, monkeypatch):
    module, seen = importlib.import_module("mae_helpers.pretrain"), []

    def spread(features):
        seen.append((features @ features.T).dtype)
        return uniformity(features)
    monkeypatch.setattr(module, "uniformity", spread)
    run_quietly(tiny.replace(uniformity_weight=0.1, precision="bf16"), tmp_path)
    assert set(seen) == {torch.float32}


def test_how_features_are_spread_needs_two_images(tiny):
    with pytest.raises(InputError, match="uniformity_weight is 0.1 and batch_size 1"):
        tiny.replace(uniformity_weight=0.1, batch_size=1)


@pytest.mark.parametrize("change", [dict(limit=1), dict(limit=17, batch_size=16, accumulate=2)])
def test_a_batch_of_one_image_is_refused_where_images_are_compared(tmp_path, tiny, tiny_run, tiny_classify, change):
    with pytest.raises(InputError, match="images would be one image: uniformity_weight compares images"):
        run_quietly(tiny.replace(uniformity_weight=0.1, **change), tmp_path)
    if change["limit"] > 10:
        with pytest.raises(InputError, match="images would be one image: mix_prob mixes two"):
            classify_quietly(tiny_classify("finetune", pretrained=str(tiny_run.path), **change, mix_prob=0.5), tmp_path)
        with pytest.raises(InputError, match="images would be one image: a probe normalises features over the batch"):
            classify_quietly(tiny_classify("probe", pretrained=tiny_run.path, **change), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_fewer_images_than_classes_are_one_sentence(tmp_path, tiny_run, tiny_classify):
    with pytest.raises(InputError, match=r"mnist has 5 training images and 10 classes \(limit\): a classifier needs"):
        classify_quietly(tiny_classify("finetune", pretrained=tiny_run.path, limit=5), tmp_path)


def test_a_finished_model_needs_no_images(tmp_path, tiny_run, tiny_classify, monkeypatch):
    """Who wants an encoder, or a classifier's answers, has other images."""
    tuned = classify_quietly(tiny_classify("finetune", pretrained=tiny_run.path), tmp_path)

    def nothing(*arguments):
        raise AssertionError("images were read")
    monkeypatch.setattr(importlib.import_module("mae_helpers.pretrain"), "load_images", nothing)
    assert load_mae(tiny_run).image_size == 28 and load_mae(tiny_run).in_chans == 1
    assert load_classifier(tuned).head.out_features == 10


def test_a_learners_own_parts_train_in_the_same_loop(tmp_path, tiny):
    val, calls = load_images("mnist", "val", 10), []

    def left_half(batch, patches, ratio, generator):
        calls.append(ratio)
        return (torch.arange(patches) % 4 < 2).expand(batch, -1)

    def all_patches(pred, target, mask):
        return ((pred - target) ** 2).mean()

    mine = build(tiny.replace(depth=2), val)
    runs = [run_quietly(tiny, tmp_path), run_quietly(tiny, tmp_path, mask_fn=left_half),
            run_quietly(tiny, tmp_path, loss_fn=all_patches), run_quietly(tiny, tmp_path, model=mine)]
    assert len({run.path for run in runs}) == 4 and calls == [0.75] * 8


@pytest.mark.parametrize("change", [dict(num_heads=4), dict(variant="cross_decoder"), dict(depth=2)])
def test_a_network_that_the_configuration_does_not_describe_is_not_rebuilt_as_another(tmp_path, tiny, change):
    val = load_images("mnist", "val", 10)
    mine = build(tiny.replace(**change), val)
    run = run_quietly(tiny.replace(epochs=1), tmp_path, model=mine)
    with pytest.raises(InputError, match=f"a network of your own, {type(mine).__name__}, and not that of its configuration"):
        load_mae(run)
    mine.load_state_dict(run.weights())                 # what the sentence says works
    known = run_quietly(tiny.replace(epochs=1), tmp_path, model=build(tiny.replace(seed=5), val))
    assert load_mae(known).num_patches == 16 and known.own_parts == run.own_parts == {"model"}


def test_a_model_that_does_not_fit_is_refused_before_anything_is_written(tmp_path, tiny):
    colour = MaskedAutoencoder(28, 7, 3, 16, 1, 2, 16, 1, 2)
    with pytest.raises(InputError, match=r"this model takes \[batch, 3, 28, 28\]"):
        run_quietly(tiny, tmp_path, model=colour)
    with pytest.raises(InputError, match="patch_size is 7, but that of the model given is 4"):
        run_quietly(tiny, tmp_path, model=MaskedAutoencoder(28, 4, 1, 16, 1, 2, 16, 1, 2))
    with pytest.raises(InputError, match="norm_pix_loss is False, but that of the model given is True"):
        run_quietly(tiny, tmp_path, model=build(tiny.replace(norm_pix_loss=True), load_images("mnist", "val", 10)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change, sentence", [
    (dict(patch_size=28), "nothing to hide it from"), (dict(patch_size=29), "at most the image size, 28"),
    (dict(dataset="mnits"), "Did you mean 'mnist'"), (dict(limit=55_001), "mnist train has 55000 images")])
def test_wrong_input_writes_nothing(tmp_path, tiny, change, sentence):
    with pytest.raises(InputError, match=sentence):
        run_quietly(tiny.replace(**change), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_weights_of_another_configuration_are_one_sentence(tmp_path, tiny):
    a, b = run_quietly(tiny.replace(epochs=1), tmp_path), run_quietly(tiny.replace(epochs=1, embed_dim=24), tmp_path)
    (a.path / "model.safetensors").write_bytes((b.path / "model.safetensors").read_bytes())
    with pytest.raises(InputError, match="belong to another configuration"):
        load_mae(a)


def test_pictures_hide_what_the_model_did_not_see(tiny_run):
    model, val = load_mae(tiny_run), load_images("mnist", "val")
    examples, mask = fixed_examples(val), fixed_mask(model, 8, 0.75)
    panels = reconstruction_panels(model, examples, mask)
    hidden = hidden_pixels(model, mask)
    assert list(panels) == ["original", "masked", "reconstruction", "pasted"]
    assert torch.equal(panels["masked"].isnan(), hidden)
    assert torch.equal(panels["pasted"][~hidden], panels["original"][~hidden])
    assert torch.equal(panels["pasted"][hidden], panels["reconstruction"][hidden])
    assert examples.labels.tolist() == list(range(8)) and torch.equal(mask, fixed_mask(model, 8, 0.75))


def test_pictures_of_normalised_patches_say_that_they_use_the_truth(tiny):
    val = load_images("mnist", "val", 20)
    panels = reconstruction_panels(build(tiny.replace(norm_pix_loss=True), val).eval(), val, random_mask(20, 16, 0.75))
    assert [k for k in panels if "true patch statistics" in k] == [k for k in panels if k not in ("original", "masked")]


# Classification

@pytest.mark.parametrize("protocol", ["finetune", "probe", "knn", "scratch"])
def test_every_protocol_gives_a_full_result(tmp_path, tiny_run, tiny_classify, protocol):
    source = {} if protocol == "scratch" else {"pretrained": tiny_run.path}
    run = classify_quietly(tiny_classify(protocol, **source), tmp_path)
    r = run.results
    confusion = torch.tensor(r["confusion"])
    assert confusion.sum() == r["test_images"] == 10_000
    assert r["test_accuracy"] == pytest.approx(confusion.diag().sum().item() / 10_000)
    assert len(r["per_class_accuracy"]) == 10 and 0 <= r["val_accuracy"] <= 1
    assert r["pretrained_run"] == (None if protocol == "scratch" else tiny_run.name)
    assert (r["mask_ratio_true"] is None) == (protocol == "scratch")
    if protocol != "knn":
        test = load_images("mnist", "test")
        again = predict(load_classifier(run), test).argmax(1)
        assert (again == test.labels).double().mean() == pytest.approx(r["test_accuracy"], abs=1e-9)


@pytest.mark.parametrize("protocol", ["finetune", "probe", "scratch"])
def test_a_classifier_learns(tmp_path, tiny_run, tiny_classify, protocol):
    source = {} if protocol == "scratch" else {"pretrained": tiny_run.path}
    run = classify_quietly(tiny_classify(protocol, limit=2_000, epochs=4, batch_size=64, base_lr=2e-2, augment="none",
                                         **source), tmp_path)
    assert run.results["val_loss"] < 2.2 and run.results["test_accuracy"] > 0.3         # guessing gives 2.303 and 0.1


def digests(job, configs, folder):
    """What the weights of finished runs are, each as a number."""
    return [hash(b"".join(v.numpy().tobytes() for v in job(config, folder).weights().values())) for config in configs]


def test_every_knob_of_pretraining_reaches_the_weights(tmp_path, tiny):
    """Each differs from the first, and from each other; a knob that the job forgets would leave two alike."""
    usual = tiny.replace(limit=256, batch_size=64, eval_every=2, snapshot_epochs=(99,))
    changes = [{}, dict(augment="crop_flip"), dict(augment="affine"), dict(augment="handwriting"),
               dict(augment="affine", augment_share=0.5), dict(augment="affine", augment_until=0.5),
               dict(mask_strategy="block"), dict(mask_strategy="grid"), dict(mask_schedule="linear"),
               dict(weight_decay=0.5), dict(beta2=0.5), dict(clip_grad=1e-3), dict(base_lr=3e-3), dict(warmup_epochs=0),
               dict(optimizer="muon"), dict(precision="bf16"), dict(norm_pix_loss=True), dict(accumulate=2),
               dict(laplacian_weight=0.1), dict(laplacian_weight=0.2), dict(uniformity_weight=0.1),
               dict(uniformity_weight=0.2), dict(variant="cross_decoder"),
               dict(variant="cross_decoder", decode_share=1.0)]
    found = digests(run_quietly, [usual.replace(**change) for change in changes], tmp_path)
    assert len(set(found)) == len(changes), [change for change, one in zip(changes, found) if found.count(one) > 1]


def test_every_knob_of_fine_tuning_reaches_the_weights(tmp_path, tiny_run, tiny_classify):
    usual = tiny_classify("finetune", pretrained=tiny_run.path, limit=256, batch_size=64, augment="none",
                          label_smoothing=0.0, drop_path=0.0, ema_decay=0.9, layer_decay=1.0)
    changes = [{}, dict(augment="affine"), dict(erase_prob=0.5), dict(mix_prob=0.5), dict(label_smoothing=0.1),
               dict(drop_path=0.9), dict(ema_decay=0.0), dict(layer_decay=0.5), dict(beta2=0.5), dict(weight_decay=0.5),
               dict(clip_grad=1e-3), dict(warmup_epochs=0), dict(optimizer="muon"), dict(precision="bf16"), dict(pool="cls")]
    found = digests(classify_quietly, [usual.replace(**change) for change in changes], tmp_path)
    assert len(set(found)) == len(changes), [change for change, one in zip(changes, found) if found.count(one) > 1]


def test_pretraining_is_judged_by_masks_of_its_own_kind(tmp_path, tiny):
    run, val = run_quietly(tiny.replace(mask_strategy="block", epochs=1), tmp_path), load_images("mnist", "val")
    block, random = (evaluate(load_mae(run), val, 0.75, strategy)["psnr_db"] for strategy in ("block", "random"))
    assert run.results["psnr_db"] == pytest.approx(block, abs=1e-3) and abs(block - random) > 0.02


def test_neighbours_vote_as_the_configuration_says(tmp_path, tiny_run, tiny_classify, monkeypatch):
    module, seen = importlib.import_module("mae_helpers.classify"), []

    def voting(train, labels, features, classes, k, temperature):
        seen.append((k, temperature, int(labels.bincount().max() - labels.bincount().min())))
        return torch.zeros(len(features), dtype=torch.long)
    monkeypatch.setattr(module, "knn_predict", voting)
    config = tiny_classify("knn", pretrained=tiny_run.path, knn_k=3, knn_temperature=0.5, label_fraction=0.1)
    classify_quietly(config, tmp_path)
    assert set(seen) == {(3, 0.5, 1)}                   # 51 labelled images: five of each class, six of one


def test_views_are_averaged_and_stand_beside_the_plain_accuracy(tmp_path, tiny_run, tiny_classify):
    config = tiny_classify("finetune", pretrained=tiny_run.path, augment="affine")
    plain, seen = (classify_quietly(config.replace(views=views), tmp_path) for views in (0, 3))
    assert "test_accuracy_views" not in plain.results
    assert seen.results["test_accuracy"] == plain.results["test_accuracy"]          # the training is the same
    model, test = load_classifier(seen), load_images("mnist", "test").subset(torch.arange(700))
    generator = torch.Generator().manual_seed(5)
    with torch.inference_mode():
        looks = []
        for part in test.images.split(500):
            parts = [part, *(augment("affine", part, generator) for _ in range(3))]
            looks.append(torch.stack([model(test.normalize(each)) for each in parts]).mean(0))
    torch.testing.assert_close(predict(model, test, 3, "affine", seed=5), torch.cat(looks))
    assert not torch.allclose(predict(model, test, 3, "affine", seed=6), torch.cat(looks), atol=1e-3)
    everything, c = load_images("mnist", "test"), config
    for name, images in (("val", load_images("mnist", "val")), ("test", everything)):
        share = (predict(model, images, 3, "affine", c.seed).argmax(1) == images.labels).double().mean()
        assert seen.results[f"{name}_accuracy_views"] == pytest.approx(float(share), abs=1e-9)


@pytest.mark.parametrize("settings, sentence", [
    (dict(protocol="knn"), "views is 4 but the protocol is 'knn', which has no classifier: it must be 0 then"),
    (dict(augment="none"), "views is 4 but augment is 'none', so that all copies would be equal: it must be 0 then"),
    (dict(views=-1), "views is -1")])
def test_views_that_cannot_be_are_one_sentence(settings, sentence):
    with pytest.raises(InputError, match=re.escape(sentence)):
        ClassifyConfig(**{"pretrained": "some-run", "views": 4, **settings})


def test_a_probe_that_encodes_once_learns_the_same(tmp_path, tiny_run, tiny_classify, monkeypatch):
    """A chance of erasing that is never met keeps the images going through the encoder at every step."""
    config = tiny_classify("probe", pretrained=tiny_run.path, augment="none", precision="fp32", epochs=2)
    encoded = []
    monkeypatch.setattr(ViTClassifier, "encode", lambda self, x, old=ViTClassifier.encode: (encoded.append(len(x)),
                                                                                            old(self, x))[1])
    runs, counts = [], []
    for chance in (0.0, 1e-12):
        encoded.clear()
        runs.append(classify_quietly(config.replace(erase_prob=chance), tmp_path))
        counts.append(sum(encoded))
    once, always = (run.metrics for run in runs)
    for a, b in zip(once, always):
        assert a["train_loss"] == pytest.approx(b["train_loss"], abs=2e-3) and a["val_loss"] == pytest.approx(b["val_loss"],
                                                                                                             abs=2e-3)
    assert counts[0] < counts[1] - 5_000                            # val once instead of twice, at least


def test_the_probe_leaves_the_encoder_as_it_was(tmp_path, tiny_run, tiny_classify):
    probe = load_classifier(classify_quietly(tiny_classify("probe", pretrained=tiny_run.path), tmp_path))
    before, after = load_mae(tiny_run).state_dict(), probe.state_dict()
    assert all(torch.equal(after[k], before[k]) for k in after if not k.startswith("head."))
    assert "head.0.weight" not in after and "head.0.running_mean" in after      # batch norm without weights of its own


def test_fine_tuning_starts_from_the_pretrained_weights_and_moves_all(tmp_path, tiny_run, tiny_classify):
    tuned = load_classifier(classify_quietly(tiny_classify("finetune", pretrained=tiny_run.path), tmp_path))
    before = load_mae(tiny_run).state_dict()
    moved = {k: (v - before[k]).norm() / before[k].norm() for k, v in tuned.state_dict().items() if k in before}
    assert 0 < moved["blocks.0.mlp.fc1.weight"] < 0.5 and moved["pos_embed"] == 0


def test_classifiers_of_different_encoders_are_different_runs(tmp_path, tiny, tiny_classify):
    paths = {classify_quietly(tiny_classify("knn", pretrained=run_quietly(tiny.replace(epochs=1, seed=s), tmp_path).path),
                              tmp_path).path for s in (0, 1)}
    assert len(paths) == 2


def test_fewer_labels_are_balanced_and_counted(tmp_path, tiny_run, tiny_classify):
    run = classify_quietly(tiny_classify("knn", pretrained=tiny_run.path, label_fraction=0.1), tmp_path)
    assert run.results["images"] == 51 and run.results["label_fraction"] == 0.1


@pytest.mark.parametrize("protocol, pool", [("finetune", "cls"), ("probe", "cls"), ("knn", "quadrants"),
                                            ("probe", "quadrants"), ("scratch", "quadrants")])
def test_other_features_can_be_read(tmp_path, tiny_run, tiny_classify, protocol, pool):
    source = {} if protocol == "scratch" else {"pretrained": tiny_run.path}
    run = classify_quietly(tiny_classify(protocol, pool=pool, **source), tmp_path)
    assert run.results["pool"] == pool
    if protocol != "knn":
        network, val = load_classifier(run), load_images("mnist", "val")
        assert network.pool == pool
        assert accuracy(predict(network, val).argmax(1), val.labels) == pytest.approx(run.results["val_accuracy"], abs=1e-3)


def test_features_do_not_depend_on_the_batch(tiny_run):
    val, model = load_images("mnist", "val", 600), load_mae(tiny_run)
    assert torch.allclose(features(model, val)[510:520], features(model, val.subset(slice(510, 520))), atol=1e-5)


@pytest.mark.parametrize("change, sentence", [
    (dict(pretrained="nowhere"), "nowhere"), (dict(patch_size=4), "patch_size is 4: the pretrained run .* has 7"),
    (dict(embed_dim=32), "embed_dim is 32: the pretrained run .* has 16"), (dict(limit=60_000), "has 55000 images")])
def test_wrong_classification_writes_nothing(tmp_path, tiny_run, tiny_classify, change, sentence):
    with pytest.raises(InputError, match=sentence):
        classify_quietly(tiny_classify(**{"pretrained": tiny_run.path, **change}), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_classifier_learns_from_its_encoder_s_images_unless_others_are_named(tmp_path, tiny):
    run = pretrain(tiny.replace(dataset="shapes10", limit=64, image_size=14, epochs=1), tmp_path, say=lambda text: None)
    usual = dict(protocol="knn", pretrained=run.path, limit=64, device="cpu", precision="fp32")
    same = classify_quietly(ClassifyConfig(**usual), tmp_path)
    assert (same.config.dataset, same.results["image_size"], same.results["in_chans"]) == ("shapes10", 14, 3)
    other = classify_quietly(ClassifyConfig(**usual, dataset="mnist"), tmp_path)
    assert (other.config.dataset, other.results["image_size"]) == ("mnist", 28)
    fresh = settled(ClassifyConfig(protocol="scratch"), None, None)
    assert (fresh.dataset, fresh.patch_size) == ("mnist", 4)


def test_an_encoder_that_is_still_learning_is_one_sentence_at_once(tmp_path, tiny_run, tiny_classify):
    """Its last weights are there a moment before its results."""
    shutil.copytree(tiny_run.path, tmp_path / "half")
    (tmp_path / "half" / "results.json").unlink()
    with pytest.raises(InputError, match="half has not been trained to its end: start it again, and it goes on"):
        classify_quietly(tiny_classify("finetune", pretrained=tmp_path / "half"), tmp_path)


def test_a_learners_own_loss_is_computed_in_fp32(tmp_path, tiny):
    seen = []

    def own(pred, target, mask):
        seen.append((pred.flatten(1) @ target.flatten(1).T).dtype)
        return ((pred - target) ** 2)[mask].mean()
    run_quietly(tiny.replace(precision="bf16"), tmp_path, loss_fn=own)
    assert set(seen) == {torch.float32}


def test_teachers_give_the_target_their_share(tmp_path, tiny):
    """The loss by hand, and that a model whose weights are those of its only teacher has nothing to learn from it."""
    val = load_images("mnist", "val", 6)
    one, two = (build(tiny.replace(seed=seed), val) for seed in (1, 2))
    tokens = one.tokens(val.normalize(val.images))
    mask = make_mask("random", 6, tokens.shape[1], 0.75, torch.Generator().manual_seed(0))
    answers = [model(val.normalize(val.images), mask=mask).pred.detach() for model in (one, two)]
    student = torch.zeros_like(tokens, requires_grad=True)
    loss = taught_by([one, two], 0.8)(student, tokens, mask)
    expected = ((0.2 * tokens + 0.4 * answers[0] + 0.4 * answers[1])[mask] ** 2).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    assert student.grad[mask].any() and all(p.grad is None for model in (one, two) for p in model.parameters())
    assert taught_by([one], 1.0)(answers[0], tokens, mask).item() == pytest.approx(0, abs=1e-10)
    assert taught_by([one], 0.0)(student, tokens, mask).item() == pytest.approx(one.loss(student, tokens, mask).item())
    with_teacher = run_quietly(tiny, tmp_path, loss_fn=taught_by([one], 0.8))
    assert with_teacher.path != run_quietly(tiny, tmp_path, loss_fn=taught_by([two], 0.8)).path


@pytest.mark.parametrize("teachers, share, sentence", [
    ([], 0.5, "at least one teacher"), ([dict(norm_pix_loss=True)], 0.5, "only teachers that predict pixels"),
    ([{}, dict(patch_size=14)], 0.5, "do not have the same images and patches"),
    ([{}], 1.5, "share must be 0 to 1, not 1.5")])
def test_teachers_that_cannot_teach_are_one_sentence(tiny, teachers, share, sentence):
    val = load_images("mnist", "val", 2)
    with pytest.raises(InputError, match=sentence):
        taught_by([build(tiny.replace(**change), val) for change in teachers], share)


def test_a_classifier_is_no_pretraining_run(tmp_path, tiny_classify):
    scratch = classify_quietly(tiny_classify("scratch", epochs=1), tmp_path)
    with pytest.raises(InputError, match="is a classify run: a pretraining run is needed"):
        classify_quietly(ClassifyConfig(pretrained=scratch.path), tmp_path)
    with pytest.raises(InputError, match="has no classifier"):
        load_classifier(Run(run_quietly_knn(tmp_path, scratch)))


def run_quietly_knn(folder, like):
    """A folder whose config says knn."""
    path = folder / "knn"
    path.mkdir()
    text = (like.path / "config.json").read_text().replace('"scratch"', '"knn"')
    text = text.replace('"pretrained": ""', '"pretrained": "x"')
    (path / "config.json").write_text(text)
    return path


# Recipes, recording and the table

SMALL = dict(limit=256, epochs=1, embed_dim=16, depth=1, num_heads=2, decoder_embed_dim=16, decoder_num_heads=2)


def test_every_recipe_is_a_valid_configuration(tiny_run):
    for name, stages in RECIPES.items():
        assert pretrain_config(name).dataset in (name.split("-")[0], "mnist" if "transfer" in name else "cifar10")
        for stage in stages:
            if stage != "pretrain":
                config = classify_config(name, stage, tiny_run)
                assert config.limit == 512 and (config.embed_dim == 16 or config.protocol != "scratch")


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_takes_a_few_steps(tmp_path, name):
    """The recipe's own depth and random changes on a handful of drawn pictures, one epoch of each job. The patches are
    large and the blocks narrow, because all test images are scored."""
    few = dict(limit=40, epochs=1, batch_size=20, precision="fp32", dataset="shapes10")
    small = dict(patch_size=16, embed_dim=48, num_heads=2, decoder_embed_dim=16, decoder_num_heads=2, split="train")
    first = pretrain(pretrain_config(name, **few, **small), tmp_path, say=lambda text: None)
    for stage in RECIPES[name]:
        if stage != "pretrain":
            run = classify_quietly(classify_config(name, stage, first, **few), tmp_path)
            assert run.finished and run.results["dataset"] == "shapes10"


def test_fine_tuning_and_scratch_are_compared_on_equal_terms():
    for name, stages in RECIPES.items():
        differ = {k for k in {*stages["finetune"], *stages["scratch"]}
                  if stages["finetune"].get(k) != stages["scratch"].get(k)}
        assert differ <= {"layer_decay", "base_lr"}, name


def test_a_recipe_runs_is_reused_and_makes_one_row(tmp_path):
    say = []
    runs = run_recipe("mnist-quick", tmp_path, say.append, **SMALL)
    again = run_recipe("mnist-quick", tmp_path, say.append, **SMALL)
    assert [r.path for r in runs] == [r.path for r in again]
    assert sum("found the finished" in s for s in say) == len(runs)
    rows = summary(tmp_path)
    assert len(rows) == 1 and all(rows[0][k] is not None for k in ("knn", "probe", "finetune", "scratch", "PSNR dB"))
    assert rows[0]["scratch, long"] == runs[-1].results["test_accuracy"] and runs[-1].config.epochs == 8
    assert rows[0]["seconds"] == pytest.approx(sum(r.results["seconds"] for r in runs))
    assert [r.path for r in run_recipe("mnist-quick", tmp_path, say.append, ("probe",), **SMALL)] == [
        runs[0].path, runs[2].path]
    assert f"{rows[0]['finetune']:.2%}" in table(rows) and table([]) == "no finished pretraining runs"


def test_images_that_a_later_stage_needs_are_missed_before_training(tmp_path, monkeypatch):
    """Digits are there and photographs are not; and a limit that suits the first job may be too much for the second."""
    monkeypatch.delenv("MAE_DATA_DIR", raising=False)
    monkeypatch.setenv("MAE_CACHE_DIR", str(tmp_path / "cache"))
    digits = tmp_path / "data"                          # without the photographs that a reader may have put into data/
    digits.mkdir()
    shutil.copy(project_root() / "data" / "mnist.npz", digits)
    monkeypatch.setattr("mae_helpers.sources.data_roots", lambda: ((digits, "data/"),))
    with pytest.raises(InputError, match="cifar10 is neither below MAE_DATA_DIR nor in data/"):
        run_recipe("repro-transfer-20", tmp_path / "runs", **{**SMALL, "dataset": "mnist"})
    monkeypatch.setitem(RECIPES["mnist-quick"], "probe", dict(dataset="shapes10"))
    with pytest.raises(InputError, match="limit is 50000: shapes10 train has"):
        run_recipe("mnist-quick", tmp_path / "runs", stages=("probe",), **{**SMALL, "limit": 50_000})
    assert not (tmp_path / "runs").exists()


def test_the_table_takes_the_longest_scratch_on_images_of_the_same_size(tmp_path):
    """By name, ten epochs come before two; and the same digits in another size are other images."""
    sizes = dict(limit=256, embed_dim=16, depth=1, num_heads=2, patch_size=7, batch_size=64, precision="fp32", device="cpu")
    decoder = dict(decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2)
    run = run_quietly(PretrainConfig(**sizes, **decoder, epochs=1), tmp_path)
    classify_quietly(ClassifyConfig(**sizes, pretrained=str(run.path), epochs=1), tmp_path)
    scratch = ClassifyConfig(**sizes, protocol="scratch", epochs=2)
    short, long = (classify_quietly(scratch.replace(epochs=epochs), tmp_path) for epochs in (2, 10))
    classify_quietly(scratch.replace(epochs=12, image_size=14), tmp_path)
    assert short.name > long.name and short.results["test_accuracy"] != long.results["test_accuracy"]
    assert summary(tmp_path)[0]["scratch, long"] == long.results["test_accuracy"]


def test_an_encoder_used_on_other_images_has_a_row_for_them(tmp_path, tiny_run, tiny_classify):
    """Accuracies of different images never stand in one row, and each has its own control and seconds."""
    shutil.copytree(tiny_run.path, tmp_path / tiny_run.name)
    few = dict(dataset="shapes10", limit=tiny_run.config.limit, epochs=1)
    moved = classify_quietly(tiny_classify("finetune", pretrained=str(tmp_path / tiny_run.name), **few), tmp_path)
    sizes = {k: getattr(tiny_run.config, k) for k in ("patch_size", "embed_dim", "depth", "num_heads", "seed")}
    control = classify_quietly(tiny_classify("scratch", **few, **sizes), tmp_path)
    home, away = summary(tmp_path)
    assert home["finetune"] is home["scratch"] is None and home["seconds"] == tiny_run.results["seconds"]
    assert (away["finetune"], away["run"]) == (moved.results["test_accuracy"], tiny_run.name) and "→" in away["data"]
    assert away["scratch"] == control.results["test_accuracy"]
    assert away["seconds"] == pytest.approx(sum(run.results["seconds"] for run in (tiny_run, moved, control)))


def test_the_table_has_the_mean_over_seeds_and_says_of_how_many(tmp_path, tiny_run, tiny_classify):
    shutil.copytree(tiny_run.path, tmp_path / tiny_run.name)
    kept = dict(epochs=1, pretrained=tmp_path / tiny_run.name)
    made = {"finetune": [classify_quietly(tiny_classify(seed=seed, **kept), tmp_path) for seed in (0, 1)],
            "scratch": [classify_quietly(tiny_classify("scratch", epochs=1, seed=seed), tmp_path) for seed in (0, 1, 7)]}
    row = summary(tmp_path)[0]                                          # nobody was fine-tuned with seed 7
    assert row["finetune"].n == row["scratch"].n == 2 and "% (n = 2)" in table([row])
    for job in made:
        assert row[job] == sum(run.results["test_accuracy"] for run in made[job][:2]) / 2
    classify_quietly(tiny_classify(base_lr=1e-6, **kept), tmp_path)
    assert summary(tmp_path)[0]["finetune"].n < 3                       # another learning rate is another experiment


def test_the_table_leaves_runs_with_few_labels_out(tmp_path):
    """They train for more epochs, and would stand in the place of the run with all labels."""
    runs = run_recipe("mnist-quick", tmp_path, lambda text: None, **SMALL)
    before = summary(tmp_path)
    for name in ("finetune", "scratch"):
        few = classify_config("mnist-quick", name, runs[0], label_fraction=0.2, epochs=9)
        assert classify_quietly(few, tmp_path).results["epochs"] == 9
    assert summary(tmp_path) == before


def test_the_table_keeps_what_reads_quarters_of_the_image_apart(tmp_path, tiny, tiny_classify):
    first = run_quietly(tiny.replace(epochs=1), tmp_path)
    mean = classify_quietly(tiny_classify("knn", pretrained=first.path), tmp_path)
    assert "knn, quadrants" not in summary(tmp_path)[0]
    quarters = classify_quietly(tiny_classify("knn", pretrained=first.path, pool="quadrants"), tmp_path)
    row = summary(tmp_path)[0]
    assert (row["knn"], row["knn, quadrants"]) == (mean.results["test_accuracy"], quarters.results["test_accuracy"])
    assert row["knn"] != row["knn, quadrants"] and "probe, quadrants" not in row


# Other images than MNIST's

def test_loose_pictures_are_enough_for_pretraining_and_not_for_a_classifier(tmp_path, tiny):
    from PIL import Image
    album = tmp_path / "album"
    album.mkdir()
    for i in range(40):
        Image.effect_noise((40 + i, 50), 60).convert("RGB").save(album / f"{i}.png")
    run = run_quietly(tiny.replace(dataset=f"folder:{album}", image_size=20, patch_size=5, limit=None, batch_size=8),
                      tmp_path / "runs")
    assert run.results["data_source"] == "album (folder)" and load_mae(run).image_size == 20
    assert ":" not in run.name and "/" not in run.name
    with pytest.raises(InputError, match="has no classes"):
        classify_quietly(ClassifyConfig(dataset=f"folder:{album}", pretrained=str(run.path), image_size=20), tmp_path)


def test_an_encoder_of_digits_learns_colour_pictures(tmp_path, tiny_run):
    said = []
    config = ClassifyConfig(dataset="shapes10", pretrained=str(tiny_run.path), limit=400, epochs=1, mix_prob=0.5,
                            erase_prob=0.25, augment="rand_augment")
    run = classify(config, root=tmp_path, say=said.append)
    assert "adapted from 1 × 28 × 28 to 3 × 32 × 32" in "".join(said)
    assert run.results["dataset"] == "shapes10" and load_classifier(run).in_chans == 3


def test_unlabelled_images_where_there_are_none_are_one_sentence(tmp_path, tiny):
    with pytest.raises(InputError, match="split is 'unlabeled'"):
        run_quietly(tiny.replace(split="unlabeled"), tmp_path)


def test_recipe_names_and_fields_are_checked(tmp_path, tiny_run):
    with pytest.raises(InputError, match="Did you mean 'mnist-quick'"):
        run_recipe("mnist-quik", tmp_path)
    with pytest.raises(InputError, match="Did you mean 'mask_ratio'"):
        run_recipe("mnist-quick", tmp_path, mask_ration=0.5)
    with pytest.raises(InputError, match="stage is 'prob'.*Did you mean 'probe'"):
        classify_config("mnist-quick", "prob", tiny_run)
    with pytest.raises(InputError, match="stage is 'prob'"):
        run_recipe("mnist-quick", tmp_path, stages=("knn", "prob"))
    assert list(tmp_path.iterdir()) == []


def test_recording_keeps_results_and_measures_the_weights_as_stored(tmp_path, monkeypatch, tiny_run):
    import mae_helpers.recipes as recipes
    import mae_helpers.runs as runs
    for module in (recipes, runs):
        monkeypatch.setattr(module, "recorded_root", lambda: tmp_path)
    kept = record_run(tiny_run.path, weights=True)
    assert kept.path == tmp_path / tiny_run.name and kept.metrics == tiny_run.metrics
    assert kept.results["as_stored"]["psnr_db"] == pytest.approx(tiny_run.results["psnr_db"], abs=0.05)
    again = evaluate(load_mae(kept), load_images("mnist", "val"), 0.75)
    assert again["psnr_db"] == pytest.approx(kept.results["as_stored"]["psnr_db"], abs=1e-6)
    assert (kept.path / "model.safetensors").stat().st_size < 0.7 * (tiny_run.path / "model.safetensors").stat().st_size


def test_what_is_recorded_is_not_recorded_over(tmp_path, monkeypatch, tiny_run):
    for module in ("recipes", "runs"):
        monkeypatch.setattr(importlib.import_module(f"mae_helpers.{module}"), "recorded_root", lambda: tmp_path)
    kept = record_run(tiny_run.path, weights=True)
    with pytest.raises(InputError, match="is recorded with its weights: with --weights"):
        record_run(tiny_run.path)
    with pytest.raises(InputError, match="is recorded already"):
        record_run(kept.path, weights=True)
    assert kept.results["as_stored"]["val_loss"] > 0


def test_an_unfinished_run_is_not_recorded(tmp_path, tiny):
    from mae_helpers.runs import open_run
    run = open_run(tiny, {}, tmp_path)
    with pytest.raises(InputError, match="has not finished"):
        record_run(run.path)
    assert load_run(run.path).name == run.name


def test_the_core_trains_without_matplotlib_and_tensorboard(tmp_path):
    """What `pip install .` brings is enough: the optional packages are hidden from a fresh process."""
    code = """
import importlib.util, sys
hidden = {"matplotlib", "tensorboard", "IPython", "torchvision", "pandas"}
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name.split(".")[0] in hidden else found(name, *a)
for name in hidden:
    sys.modules[name] = None
from mae_helpers.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
    words = ["pretrain", "--limit", "128", "--epochs", "1", "--patch-size", "14", "--embed-dim", "16", "--depth", "1",
             "--num-heads", "2", "--root", str(tmp_path)]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    run = Run(next(tmp_path.iterdir()))
    assert run.finished and not (run.path / "figures").exists() and not (run.path / "tensorboard").exists()
