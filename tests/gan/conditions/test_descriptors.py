import itertools
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from tokkata.core.errors import UserError
from tokkata.gan.conditions.descriptors import (
    DESCRIPTORS,
    DescriptorScale,
    descriptor_conditions,
    raw_descriptors,
)

RATE = 16_000
TIME = torch.arange(RATE) / RATE


def noise(low_hz=0.0, high_hz=8000.0):
    white = torch.randn(RATE, generator=torch.Generator().manual_seed(0))
    frequencies = torch.fft.rfftfreq(RATE, 1 / RATE)
    kept = (frequencies >= low_hz) & (frequencies <= high_hz)
    return torch.fft.irfft(torch.fft.rfft(white) * kept)


def sine(frequency_hz):
    return torch.sin(2 * math.pi * frequency_hz * TIME)


def modulated(frequency_hz):
    return sine(1000) * (1 + sine(frequency_hz)) / 2


def struck(attack_s):
    return noise() * (TIME / attack_s).clamp(max=1) * torch.exp(-3 * TIME)


def feature(name, *sounds):
    """A feature of each of some sounds."""
    return raw_descriptors(torch.stack(sounds), RATE)[:, DESCRIPTORS.index(name)].tolist()


@pytest.mark.parametrize(
    ("name", "sounds"),
    [
        ("brightness", [noise(0, 500), noise(0, 2500), noise(), noise(3000)]),
        ("brightness", [sine(300), sine(1000), sine(3000), sine(6000)]),
        ("sharpness", [noise(0, 1000), noise(0, 3000), noise(), noise(5000)]),
        ("boominess", [noise(2000), noise(), noise(0, 1500), noise(0, 300), sine(60)]),
        ("depth", [sine(1000), sine(180), sine(120), sine(60), sine(30)]),
        ("depth", [noise(), noise(0, 1000), noise(0, 200), noise(0, 80)]),
        ("hardness", [struck(0.5), struck(0.1), struck(0.02), struck(0.002)]),
        ("roughness", [sine(1000), modulated(10), modulated(70)]),
        ("roughness", [sine(1000) + sine(1500), sine(1000) + sine(1200), sine(1000) + sine(1050)]),
        ("warmth", [noise(2000), noise(), noise(0, 2000), noise(150, 800)]),
    ],
)
def test_features_rise_with_what_they_are_named_after(name, sounds):
    found = feature(name, *sounds)
    steps = [after - before for before, after in itertools.pairwise(found)]
    assert min(steps) > 0.01 * (max(found) - min(found)), found


def test_a_beating_is_roughest_at_some_distance_between_unison_and_an_interval():
    found = feature("roughness", *(sine(1000) + sine(1000 + d) for d in (0.5, 60, 400)))
    assert found[1] > 4 * max(found[0], found[2])


@given(st.floats(1e-4, 3.0), st.integers(0, 3))
@settings(max_examples=15, deadline=None)
def test_features_do_not_depend_on_the_level(gain, which):
    sound = [noise(0, 900), modulated(70), struck(0.01), sine(100)][which][None]
    torch.testing.assert_close(
        raw_descriptors(sound * gain, RATE), raw_descriptors(sound, RATE), rtol=1e-3, atol=1e-4
    )


def test_features_of_a_clip_are_those_that_it_has_in_any_batch():
    clips = torch.stack([noise(), struck(0.05), sine(440)])
    alone = torch.cat([raw_descriptors(clip[None], RATE) for clip in clips])
    torch.testing.assert_close(raw_descriptors(clips, RATE), alone, rtol=1e-5, atol=1e-6)


def test_a_sound_at_twice_the_rate_has_the_same_features():
    there = torch.fft.irfft(F.pad(torch.fft.rfft(struck(0.02)), (0, RATE // 2)), n=2 * RATE)
    there, here = raw_descriptors(there[None], 2 * RATE), raw_descriptors(struck(0.02)[None], RATE)
    torch.testing.assert_close(there, here, rtol=0.15, atol=0.02)


def test_silence_and_what_is_shorter_than_a_window_have_features():
    sounds = torch.stack([torch.zeros(RATE), torch.full((RATE,), 1e-9), noise()])
    found = raw_descriptors(sounds, RATE)
    assert found[:2].tolist() == [[0.0] * 7] * 2
    assert found[2].min() > 0
    for num_samples in (1, 17, 500):
        assert raw_descriptors(sounds[2:, :num_samples], RATE).isfinite().all()


def test_real_clips_fill_the_scale_and_others_stay_on_it():
    raw = torch.rand(200, 7, generator=torch.Generator().manual_seed(1)) * torch.arange(7)  # one is constant
    scale = DescriptorScale.fit(raw)
    unit = scale.to_unit(raw)
    assert unit[:, 0].eq(0.5).all()
    for column in unit[:, 1:].T:
        assert (column == 0).sum() == (column == 1).sum() == 4  # 2 % of 200
        assert column.std() > 0.2
    order = raw[:, 3].argsort()
    assert unit[order, 3].diff().min() >= 0
    assert scale.to_unit(torch.full((1, 7), 100.0)).tolist() == [[0.5, *[1.0] * 6]]


def test_a_scale_survives_json():
    scale = DescriptorScale.fit(torch.rand(20, 7))
    found = json.loads(json.dumps(scale.to_json()))
    assert list(found) == list(DESCRIPTORS)
    assert DescriptorScale.from_json(found) == scale
    for damaged in ({}, found | {"depth": 1.0}, found | {"depth": [1.0]}, found | {"depth": ["a", 1]}):
        with pytest.raises(UserError, match="timbre features cannot be read"):
            DescriptorScale.from_json(damaged)
    with pytest.raises(UserError, match="no clips"):
        DescriptorScale.fit(torch.zeros(0, 7))


def test_conditions_are_numbers_up_to_one():
    conditions = descriptor_conditions(["warmth", "depth"])
    assert [(c.name, c.kind, c.maximum) for c in conditions] == [
        ("warmth", "number", 1.0),
        ("depth", "number", 1.0),
    ]
