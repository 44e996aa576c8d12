"""Every knob: help, range, error sentence; and what configurations promise."""
import copy
import dataclasses
import json
import math
import pickle

import pytest

from mae_helpers import ClassifyConfig, InputError, PretrainConfig
from mae_helpers.config import PRESETS, PROTOCOLS, check, kinds

BASE = {PretrainConfig: {}, ClassifyConfig: dict(protocol="scratch")}
CONFIGS = list(BASE)
every_config = pytest.mark.parametrize("cls", CONFIGS, ids=lambda cls: cls.__name__)


def make(cls, **values):
    return cls(**{**BASE[cls], **values})


def fields():
    """(config class, field, type, None allowed) of every knob."""
    return [(cls, field, *kinds(cls)[field.name]) for cls in CONFIGS for field in dataclasses.fields(cls)]


def every_field(*types, with_choices=None):
    """A parametrisation over the fields of some types, by default all; True or False: with or without choices."""
    chosen = [row for row in fields() if (not types or row[2] in types)
              and with_choices in (None, row[1].metadata["bounds"]["choices"] is not None)]
    return pytest.mark.parametrize("cls, field, kind, optional", chosen,
                                   ids=[f"{cls.__name__}-{field.name}" for cls, field, *_ in chosen])


def sentence(function, *arguments, **named):
    with pytest.raises(InputError) as error:
        function(*arguments, **named)
    assert "\n" not in str(error.value)
    return str(error.value)


# Each field

@every_field()
def test_help_and_default(cls, field, kind, optional):
    assert len(field.metadata["help"]) > 10
    assert getattr(make(cls), field.name) == BASE[cls].get(field.name, field.default)
    assert (field.default is None) == optional


def just_outside():
    """(class, name, value, limit, in words) for every bound of every field, made from the fields themselves."""
    cases = []
    for cls, field, kind, _ in fields():
        bounds = field.metadata["bounds"]
        for bound, words, outward in (("low", "at least", -1), ("high", "at most", 1), ("above", "above", 0),
                                      ("below", "below", 0)):
            limit = bounds[bound]
            if limit is not None:
                step = 1 if kind in (int, tuple) else 1e-9
                far = 5 if bound in ("high", "below") else -5
                cases += [(cls, field.name, limit + by, f"{words} {limit}") for by in (outward * step, far)]
    return cases


@pytest.mark.parametrize("cls, name, value, limit", just_outside())
def test_a_value_outside_the_range_is_one_sentence(cls, name, value, limit):
    said = sentence(make, cls, **{name: value})
    assert said.startswith(f"{name} is {value!r}: it must be a ") and limit in said


@every_field(int, float, tuple)
def test_numbers_refuse_what_is_no_number(cls, field, kind, optional):
    for value in ("a", "3", True, False, math.nan, -math.inf, [None], {}):
        assert f"{field.name} is " in sentence(make, cls, **{field.name: value})
    if not optional:
        assert f"{field.name} is None" in sentence(make, cls, **{field.name: None})


@every_field(int, float, tuple)
def test_numbers_are_finite(cls, field, kind, optional):
    """JSON has no infinity: config.json would hold null, and the run could not be read again."""
    assert f"{field.name} is inf" in sentence(make, cls, **{field.name: math.inf})


@every_field(int, tuple)
def test_whole_numbers_refuse_fractions(cls, field, kind, optional):
    assert f"{field.name} is 1.5: it must be a whole number" in sentence(make, cls, **{field.name: 1.5})


def test_a_whole_float_becomes_an_int():
    config = PretrainConfig(epochs=3.0, mask_ratio=0.5, base_lr=1)
    assert (config.epochs, type(config.epochs), type(config.base_lr)) == (3, int, float)


@every_field(str)
def test_texts_refuse_numbers(cls, field, kind, optional):
    assert f"{field.name} is 5: it must be " in sentence(make, cls, **{field.name: 5})


@every_field(bool)
def test_switches_refuse_everything_but_true_and_false(cls, field, kind, optional):
    for value in (1, 0, "yes", None):
        assert f"{field.name} is {value!r}: it must be True or False" in sentence(make, cls, **{field.name: value})


@every_field(with_choices=True)
def test_choices_name_the_nearest(cls, field, kind, optional):
    choices = field.metadata["bounds"]["choices"]
    for choice in choices:
        said = sentence(make, cls, **{field.name: choice + "x"})
        assert said.startswith(f"{field.name} is '{choice}x': it must be one of {', '.join(choices)}.")
        assert f"Did you mean '{choice}'?" in said
    assert "Did you mean" not in sentence(make, cls, **{field.name: "#"})


@every_config
def test_unknown_names_give_the_nearest(cls):
    for function in (make(cls).replace, lambda **values: cls.from_dict({**BASE[cls], **values})):
        said = sentence(function, epoch=3)
        assert "parameter is 'epoch'" in said and "Did you mean 'epochs'?" in said


@every_config
def test_job_is_no_parameter(cls):
    assert "parameter is 'job'" in sentence(cls.from_dict, {**BASE[cls], "job": "pretrain"})


def test_check_asks_the_same_fields():
    assert check("mask_ratio", 0.5) == 0.5 and check("limit", None) is None
    assert sentence(check, "mask_ratio", 1) == sentence(PretrainConfig, mask_ratio=1)


# What must fit together

@pytest.mark.parametrize("values, said", [
    (dict(embed_dim=100), "embed_dim is 100: it must be a multiple of num_heads, 3."),
    (dict(num_heads=5), "embed_dim is 96: it must be a multiple of num_heads, 5."),
    (dict(embed_dim=6), "embed_dim is 6: sin-cos positions need a multiple of 4.")])
@every_config
def test_the_width_fits_the_heads(cls, values, said):
    assert sentence(make, cls, **values) == said


@pytest.mark.parametrize("values, said", [
    (dict(decoder_embed_dim=65), "decoder_embed_dim is 65: it must be a multiple of decoder_num_heads, 2."),
    (dict(decoder_num_heads=5), "decoder_embed_dim is 64: it must be a multiple of decoder_num_heads, 5."),
    (dict(decoder_embed_dim=66), "decoder_embed_dim is 66: sin-cos positions need a multiple of 4.")])
def test_the_decoder_fits_its_heads(values, said):
    assert sentence(PretrainConfig, **values) == said


@pytest.mark.parametrize("protocol", ["finetune", "probe", "knn"])
def test_all_protocols_but_scratch_need_a_run(protocol):
    said = sentence(ClassifyConfig, protocol=protocol)
    assert f"protocol is '{protocol}'" in said and "pretrained is empty" in said
    assert ClassifyConfig(protocol=protocol, pretrained="some-run").pretrained == "some-run"


def test_scratch_takes_no_run():
    said = sentence(ClassifyConfig, protocol="scratch", pretrained="some-run")
    assert "pretrained is 'some-run'" in said and "protocol is 'scratch'" in said


@pytest.mark.parametrize("epochs, kept", [(1, {1}), (2, {1, 2}), (10, {1, 2, 5, 10}), (20, {1, 5, 10, 20})])
def test_snapshots_by_default(epochs, kept):
    assert PretrainConfig(epochs=epochs).snapshots() == kept
    assert PretrainConfig(epochs=epochs, snapshot_epochs=[1]).snapshots() == {1}


# Resolved, identity, copies

@pytest.mark.parametrize("preset", PRESETS)
def test_resolved_fills_in_the_preset(preset):
    found = PretrainConfig(preset=preset).resolved()
    assert {name: getattr(found, name) for name in PRESETS[preset]} == PRESETS[preset]
    found = ClassifyConfig(preset=preset, protocol="scratch").resolved()
    assert (found.embed_dim, found.depth) == (PRESETS[preset]["embed_dim"], PRESETS[preset]["depth"])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_resolved_fills_in_the_protocol(protocol):
    pretrained = "" if protocol == "scratch" else "some-run"
    found = ClassifyConfig(protocol=protocol, pretrained=pretrained).resolved()
    assert {name: getattr(found, name) for name in PROTOCOLS[protocol]} == PROTOCOLS[protocol]


def test_a_set_value_wins():
    found = PretrainConfig(preset="vit_tiny", depth=2, decoder_depth=3).resolved()
    assert (found.depth, found.decoder_depth, found.embed_dim) == (2, 3, 192)
    found = ClassifyConfig(protocol="scratch", weight_decay=0, drop_path=0).resolved()
    assert (found.weight_decay, found.drop_path) == (0, 0)
    assert found.base_lr == PROTOCOLS["scratch"]["base_lr"]


@every_config
def test_resolving_twice_changes_nothing(cls):
    assert make(cls).resolved().resolved() == make(cls).resolved()


@every_config
def test_identity_ignores_how_a_run_is_computed(cls):
    assert make(cls).identity() == make(cls, device="cpu", compile="off").identity()
    assert not {"device", "compile"} & set(make(cls).identity())
    assert make(cls).identity() != make(cls, seed=1).identity()


def test_identity_is_that_of_the_resolved_configuration():
    assert PretrainConfig().identity() == PretrainConfig(**PRESETS["vit_micro"]).identity()
    assert PretrainConfig().identity() != PretrainConfig(depth=2).identity()


@every_config
def test_round_trip_through_json(cls):
    config = make(cls, limit=100, depth=2, **(dict(snapshot_epochs=(1, 3)) if cls is PretrainConfig else {}))
    assert cls.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert cls.from_dict({**BASE[cls]}) == make(cls)


@every_config
def test_configurations_cannot_be_changed(cls):
    config = make(cls)
    for field in dataclasses.fields(cls):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config, field.name, field.default)
        with pytest.raises(dataclasses.FrozenInstanceError):
            delattr(config, field.name)
    assert hash(config) == hash(make(cls))              # so all values are immutable too


def test_a_copy_leaves_the_original_alone():
    epochs = [1, 2]
    config = PretrainConfig(snapshot_epochs=epochs)
    changed = config.replace(depth=2)
    epochs.append(3)
    config.to_dict()["snapshot_epochs"].append(4)
    assert (config.snapshot_epochs, config.depth, changed.depth) == ((1, 2), None, 2)


@pytest.mark.parametrize("cls", [PretrainConfig, ClassifyConfig])
def test_a_misspelt_field_is_an_input_error_and_copies_still_work(cls):
    with pytest.raises(InputError, match="parameter is 'epoch': .*Did you mean 'epochs'"):
        cls(epoch=3)
    config = cls(**({"pretrained": "x"} if cls is ClassifyConfig else {}))
    assert copy.deepcopy(config) == config == pickle.loads(pickle.dumps(config)) == config.replace()
