import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tokkata.core.errors import UserError
from tokkata.core.schema_corpora import SynthCorpus
from tokkata.core.schema_gan import (
    ComplexImage,
    InstantaneousFrequencyImage,
    LogMagnitudeImage,
    WaveformImage,
)
from tokkata.eval.pitch import pitch_accuracy
from tokkata.gan.mel_scale import gathering, hertz_to_mel, mel_to_hertz, spreading
from tokkata.gan.representation import Latents, Representation, make_representation
from tokkata.gan.short_time import ShortTime, griffin_lim, guessed_phases
from tokkata.tokenize.corpora.synth import Synth

RATE, NUM_SAMPLES = 16000, 16384
WAVEFORM = WaveformImage(kind="waveform")
LOG_MAGNITUDE = LogMagnitudeImage(kind="log_magnitude")
COMPLEX = ComplexImage(kind="complex", window=512, hop=128)
COMPRESSED = ComplexImage(kind="complex", window=512, hop=128, power=0.5)
FREQUENCY = InstantaneousFrequencyImage(kind="instantaneous_frequency", window=512, hop=128)
MEL = InstantaneousFrequencyImage(kind="instantaneous_frequency", window=512, hop=128, num_mels=256)
PHASOR = FREQUENCY.model_copy(update={"advance": "phasor"})
PHASOR_MEL = MEL.model_copy(update={"advance": "phasor", "range_db": 70.0})
SPECTRAL = [LOG_MAGNITUDE, COMPLEX, COMPRESSED, FREQUENCY, MEL, PHASOR, PHASOR_MEL]
ALL = [WAVEFORM, *SPECTRAL]
EXACT = [WAVEFORM, COMPLEX, COMPRESSED, FREQUENCY, PHASOR]


def name(section: object) -> str:
    kind = str(getattr(section, "kind", "?"))
    mel = "-mel" if getattr(section, "num_mels", None) else ""
    return kind + mel + f"-{getattr(section, 'power', '')}{getattr(section, 'advance', '')}"


def notes(num: int) -> tuple[Tensor, list[dict[str, object]]]:
    corpus = Synth(SynthCorpus(kind="synth", forms=["note"], pitch_min=48, pitch_max=60))
    clips = corpus.clips()[:num]
    audio = np.stack([corpus.audio(clip).samples[0, :NUM_SAMPLES] for clip in clips])
    # Noise 60 dB below full scale, so that no bin is empty.
    noise = 1e-3 * torch.randn(audio.shape, generator=torch.Generator().manual_seed(0))
    return torch.from_numpy(audio) + noise, [dict(clip.labels) for clip in clips]


NOTES, LABELS = notes(6)


def fitted(section: object) -> Representation:
    made = make_representation(section, RATE, NUM_SAMPLES)  # type: ignore[arg-type]
    made.fit(NOTES)
    return made


def si_sdr(heard: Tensor, true: Tensor) -> float:
    """Scale-invariant, in dB, the worst of the clips (arXiv:1811.02508, eq. 5)."""
    scale = (heard * true).sum(1, keepdim=True) / true.square().sum(1, keepdim=True)
    error = (heard - scale * true).square().sum(1)
    return float((10 * torch.log10((scale * true).square().sum(1) / error)).min())


def convergence(heard: Tensor, true: Tensor) -> float:
    """Distance of magnitudes over the true ones' norm, mean of the clips; 1 is what silence has."""
    transform = ShortTime(1024, 256)
    ours, theirs = transform(heard).abs(), transform(true).abs()
    return float(((ours - theirs).flatten(1).norm(dim=1) / theirs.flatten(1).norm(dim=1)).mean())


@pytest.mark.parametrize("section", EXACT, ids=name)
def test_nothing_is_lost(section: object):
    made = fitted(section)
    heard = made.decode(made.encode(NOTES))
    assert heard.shape == NOTES.shape
    if section is WAVEFORM:
        assert torch.equal(heard, NOTES)
    # Frequencies between frames lose the Nyquist frequency, where noise has 1 / 512 of its power.
    assert si_sdr(heard, NOTES) > (45 if section in (FREQUENCY, PHASOR) else 80)
    torch.testing.assert_close(heard.square().sum(1), NOTES.square().sum(1), rtol=1e-3, atol=0)


@pytest.mark.parametrize("section", [LOG_MAGNITUDE, MEL, PHASOR_MEL], ids=name)
def test_what_comes_back_has_the_spectrum_and_the_pitch(section: object):
    made = fitted(section)
    heard = made.decode(made.encode(NOTES))
    assert convergence(heard, NOTES) < (0.25 if section is LOG_MAGNITUDE else 0.03)
    exact, _ = pitch_accuracy([clip[None] for clip in heard.numpy()], LABELS, RATE)  # type: ignore[arg-type]
    assert exact.value == 1.0


@pytest.mark.parametrize("section", ALL, ids=name)
def test_values_of_real_clips_fill_what_a_network_makes(section: object):
    image = fitted(section).encode(NOTES)
    # The scale is that of nearly the loudest clip.
    assert 0.5 < float(image.abs().max()) < 1.05


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(ALL), st.integers(1, 3), st.integers(512, 5000), st.sampled_from([64, 100, 128, 150, 256])
)
def test_shapes_of_any_length(section: object, num_clips: int, num_samples: int, hop: int):
    if section is not WAVEFORM:
        window = 256 if section is LOG_MAGNITUDE and hop <= 128 else 512
        section = section.model_copy(update={"window": window, "hop": hop})  # type: ignore[attr-defined]
    made = make_representation(section, RATE, num_samples)  # type: ignore[arg-type]
    audio = torch.rand(num_clips, num_samples) * 2 - 1
    made.fit(audio)
    image = made.encode(audio)
    shape = made.shape(num_samples)
    assert image.shape == (num_clips, *shape.of())
    assert image.dtype == torch.float32
    heard = made.decode(image)
    hop = 1 if section is WAVEFORM else hop
    assert heard.shape == (num_clips, shape.num_frames * hop)
    assert 0 <= heard.shape[1] - num_samples < hop
    assert heard.isfinite().all()
    if isinstance(section, WaveformImage | ComplexImage):
        torch.testing.assert_close(heard[:, :num_samples], audio, atol=2e-4, rtol=0)


@pytest.mark.parametrize("section", ALL, ids=name)
def test_silence_and_full_scale(section: object):
    made = fitted(section)
    square = torch.ones(1, NUM_SAMPLES)
    square[:, 40::80] = -1
    clips = torch.cat([torch.zeros(1, NUM_SAMPLES), square.cumprod(1), torch.ones(1, NUM_SAMPLES)])
    heard = made.decode(made.encode(clips))
    assert heard.isfinite().all()
    # SpecGAN clips silence at three deviations, which is some way above it.
    quiet = 10 ** (-40 / 20) if section is LOG_MAGNITUDE else 1e-6
    assert float(heard[0].square().mean().sqrt()) <= quiet
    assert float(heard[1].square().mean().sqrt()) > 0.2
    silent = make_representation(section, RATE, NUM_SAMPLES)  # type: ignore[arg-type]
    silent.fit(torch.zeros(2, NUM_SAMPLES))
    assert silent.decode(silent.encode(torch.zeros(2, NUM_SAMPLES))).abs().max() < 1e-4


@pytest.mark.parametrize("section", SPECTRAL, ids=name)
def test_the_scale_is_saved(section: object):
    made = fitted(section)
    other = make_representation(section, RATE, NUM_SAMPLES)  # type: ignore[arg-type]
    assert other.encode(NOTES).isnan().any(), "an image before its scale is known"
    other.load_state_dict(made.state_dict())
    assert torch.equal(other.encode(NOTES), made.encode(NOTES))
    assert torch.equal(other.decode(made.encode(NOTES)), made.decode(made.encode(NOTES)))
    assert sum(value.numel() for value in made.state_dict().values()) <= 2 * made.shape(NUM_SAMPLES).of()[1]


@pytest.mark.parametrize("section", SPECTRAL, ids=name)
def test_more_frames_than_were_trained(section: object):
    made = fitted(section)
    image = made.encode(NOTES[:2])
    longer = made.decode(image.repeat(1, 1, 1, 3))
    assert longer.shape == (2, 3 * NUM_SAMPLES)
    # The beginning does not depend on what follows (Griffin and Lim's phases do, a little).
    if section is not LOG_MAGNITUDE:
        start = NUM_SAMPLES - 512
        torch.testing.assert_close(longer[:, :start], made.decode(image)[:, :start], atol=1e-4, rtol=0)


@pytest.mark.parametrize("section", ALL, ids=name)
def test_each_clip_by_itself(section: object):
    made = fitted(section)
    together = made.encode(NOTES)
    torch.testing.assert_close(together[2:3], made.encode(NOTES[2:3]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("section", ALL, ids=name)
def test_sound_has_gradients_and_random_images_are_finite(section: object):
    made = fitted(section)
    shape = (2, *made.shape(2048).of())
    image = torch.randn(shape, generator=torch.Generator().manual_seed(0)).mul(2).requires_grad_()
    heard = made.decode(image)
    heard.square().mean().backward()  # type: ignore[no-untyped-call]
    assert heard.isfinite().all()
    assert image.grad is not None
    assert image.grad.isfinite().all()
    assert image.grad.abs().sum() > 0


def test_a_tone_has_its_frequency():
    tone = torch.sin(2 * math.pi * 1000 * torch.arange(NUM_SAMPLES) / RATE)[None]
    made = make_representation(FREQUENCY, RATE, NUM_SAMPLES)
    made.fit(tone)
    image = made.encode(tone)
    loud = image[0, 0, :, 64] > 0.5
    assert int(image[0, 0, :, 64].argmax()) == 1000 / (RATE / 512)
    # 1000 Hz turn 8 times between two frames, so phases of all bins around it advance by nothing.
    assert image[0, 1, loud, 4:-4].abs().max() < 1e-3
    other = made.encode(torch.sin(2 * math.pi * 1010 * torch.arange(NUM_SAMPLES) / RATE)[None])
    advance = 2 * 10 * 128 / RATE  # of half turns
    torch.testing.assert_close(
        other[0, 1, 31:34, 4:-4], torch.full_like(other[0, 1, 31:34, 4:-4], advance), atol=1e-3, rtol=0
    )


def test_phasors_of_a_tone_look_alike_wherever_it_lies():
    """Of a partial so far from the middle of its bin, in whatever bin; angles do not."""
    bin_hz = RATE / 512

    def image(section: InstantaneousFrequencyImage, middle: int) -> Tensor:
        """The five bins around a tone of 0.3 bins above `middle`."""
        tone = torch.sin(2 * math.pi * (middle + 0.3) * bin_hz * torch.arange(NUM_SAMPLES) / RATE)[None]
        made = make_representation(section, RATE, NUM_SAMPLES)
        made.fit(tone)
        return made.encode(tone)[0, :, middle - 2 : middle + 3, 4:-4]

    low, high = image(PHASOR, 40), image(PHASOR, 83)
    torch.testing.assert_close(low, high, atol=2e-3, rtol=0)
    # A phase advances by 2 pi hop / window for each bin between the middle of a bin and the tone.
    loud = low[:, 2]
    torch.testing.assert_close(
        torch.atan2(loud[2], loud[1]), torch.full_like(loud[0], 0.3 * math.pi / 2), atol=1e-2, rtol=0
    )
    assert (image(FREQUENCY, 40)[1] - image(FREQUENCY, 83)[1]).abs().max() > 0.5


@pytest.mark.parametrize("section", [PHASOR, PHASOR_MEL], ids=name)
def test_phasors_are_as_long_as_magnitudes_are_loud(section: object):
    levels, real, imaginary = fitted(section).encode(NOTES).unbind(1)
    torch.testing.assert_close(torch.hypot(real, imaginary), (levels + 1) / 2, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("section", [FREQUENCY, PHASOR_MEL], ids=name)
def test_what_is_below_the_range_looks_like_silence(section: InstantaneousFrequencyImage):
    made = make_representation(section, RATE, NUM_SAMPLES)
    made.fit(NOTES)
    quiet = made.encode(NOTES * 10 ** (-section.range_db / 20))[:, 0]
    # At the end of the range a magnitude is as large as what is added to it: 6 dB above nothing.
    assert quiet.max() < -1 + 2 * 6.5 / section.range_db
    assert (
        made.encode(NOTES * 10 ** (-(section.range_db - 20) / 20))[:, 0].max()
        > -1 + 2 * 15 / section.range_db
    )


def test_log_magnitudes_are_the_papers():
    made = fitted(LOG_MAGNITUDE)
    magnitudes = ShortTime(256, 128)(NOTES)[:, :128].abs()
    logs = (magnitudes + 1e-6).log()
    mean, std = logs.mean((0, 2), keepdim=True), logs.std((0, 2), correction=0, keepdim=True)
    expected = ((logs - mean) / std).clamp(-3, 3) / 3
    torch.testing.assert_close(made.encode(NOTES)[:, 0], expected, atol=1e-4, rtol=1e-4)


def test_spectra_are_those_of_the_windowed_samples():
    audio = torch.randn(2, 1000, generator=torch.Generator().manual_seed(1)).double()
    spectra = ShortTime(64, 20).double()(audio)
    assert spectra.shape == (2, 33, 50)
    for frame in (0, 7, 49):
        middle = frame * 20 + 10
        reached = torch.zeros(2, 64, dtype=torch.float64)
        for n in range(64):
            if 0 <= middle - 32 + n < 1000:
                reached[:, n] = audio[:, middle - 32 + n]
        # Rolled by half a window, so that phases refer to its middle.
        expected = torch.fft.rfft((reached * torch.hann_window(64).double()).roll(32, 1))
        torch.testing.assert_close(spectra[:, :, frame], expected)


def test_phases_are_guessed_better_than_at_random():
    transform = ShortTime(256, 128)
    magnitudes = transform(NOTES).abs()
    ours = griffin_lim(magnitudes, transform, 16)
    random = torch.rand(magnitudes.shape, generator=torch.Generator().manual_seed(0)) * 2 * math.pi
    theirs = transform.inverse(torch.polar(magnitudes, random))
    for _ in range(16):
        spectra = transform(theirs)
        theirs = transform.inverse(magnitudes * spectra / spectra.abs())
    assert convergence(ours, NOTES) < 0.5 * convergence(theirs, NOTES)


def test_the_phase_of_a_tone_is_guessed():
    transform = ShortTime(512, 128)
    tone = torch.sin(2 * math.pi * 437.0 * torch.arange(8192) / RATE)[None]
    spectra = transform(tone)
    phases = guessed_phases(spectra.abs(), 128, 512)[0, 14]
    true = spectra.angle()[0, 14]
    steps = torch.diff(phases - true, dim=-1).remainder(2 * math.pi)[4:-4]
    assert torch.minimum(steps, 2 * math.pi - steps).max() < 0.2


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([64, 128, 256, 512]), st.integers(8, 600), st.sampled_from([8000, 16000, 44100]))
def test_mel_bands(num_bins: int, num_bands: int, sample_rate: int):
    spread = spreading(num_bins, sample_rate / (2 * num_bins), num_bands)
    gather = gathering(spread)
    assert spread.shape == gather.T.shape == (num_bands, num_bins)
    for weights in (spread, gather):  # each band holds something, and each bin is held
        assert (weights >= 0).all()
        torch.testing.assert_close(weights.sum(1), torch.ones(len(weights)))


@pytest.mark.parametrize("num_bins", [64, 256, 1024])
def test_low_bins_come_back_exactly(num_bins: int):
    spread = spreading(num_bins, RATE / (2 * num_bins))
    lowest = torch.eye(num_bins)[: num_bins // 16]
    torch.testing.assert_close((gathering(spread) @ spread @ lowest.T).T, lowest)


def test_the_mel_scale():
    assert float(hertz_to_mel(torch.tensor(1000.0))) == pytest.approx(1000.0, abs=0.1)
    hertz = torch.linspace(0, 8000, 9, dtype=torch.float64)
    torch.testing.assert_close(mel_to_hertz(hertz_to_mel(hertz)), hertz)


def test_latents_are_normalised_and_come_back():
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(5, 4, 30, generator=generator) * torch.tensor([0.1, 1, 5, 0])[:, None] + 3
    made = Latents(4, 30)
    made.fit(latents)
    image = made.encode(latents)
    assert made.shape(30).of() == image.shape[1:]
    torch.testing.assert_close(image.std((0, 2), correction=0)[:3], torch.ones(3))
    torch.testing.assert_close(image.mean((0, 2)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(made.decode(image), latents)


def test_a_window_longer_than_the_clips_is_refused():
    with pytest.raises(UserError, match=r"window 512 is longer than the clips of 500 samples"):
        make_representation(MEL, RATE, 500)


def test_a_hop_that_leaves_gaps_is_refused():
    with pytest.raises(ValueError, match="hop 200 is above half of the window 256"):
        LogMagnitudeImage(kind="log_magnitude", window=256, hop=200)
