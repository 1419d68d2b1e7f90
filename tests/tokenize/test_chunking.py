"""A long clip in windows is the whole clip."""

import itertools
import math
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import DacConfig, DacModel, EncodecConfig, EncodecModel

from tokkata.core.audio import AudioError
from tokkata.core.errors import UserError
from tokkata.core.schema import DacModel as OwnDac
from tokkata.tokenize.chunking import (
    cut,
    decode_latents_long,
    decode_long,
    encode_latents_long,
    encode_long,
    plan_windows,
    window_frames,
)
from tokkata.tokenize.codec import Chunking, load_codec
from tokkata.tokenize.families.codec_dac import build_original, save_dac

# --- plans


@st.composite
def plans(draw):
    hop_length = draw(st.integers(1, 20))
    context = draw(st.integers(0, 10))
    warm_up = draw(st.sampled_from([0, 0, 1, 7]))
    around = warm_up + 2 * context
    frames = draw(st.integers(around + 1, around + 30))
    return draw(st.integers(1, 3000)), hop_length, frames, context, warm_up


@settings(max_examples=200, deadline=None)
@given(plans())
def test_each_frame_is_given_once_with_its_context(plan):
    num_samples, hop_length, frames, context, warm_up = plan
    windows = plan_windows(num_samples, hop_length, frames, context, warm_up)
    num_frames = math.ceil(num_samples / hop_length)
    given_frames = []
    for window in windows:
        assert window.start % hop_length == window.num_samples % hop_length == 0
        start, end = window.start // hop_length, (window.start + window.num_samples) // hop_length
        first = start + window.drop_frames
        last = first + window.keep_frames - 1
        assert first <= last < end <= num_frames
        assert start == 0 or first - start >= warm_up + context
        assert end == num_frames or end - 1 - last >= context
        given_frames += range(first, last + 1)
        past = window.start + window.num_samples - num_samples
        assert window.pad_samples == max(0, past) < hop_length
    assert given_frames == list(range(num_frames))
    assert {window.num_samples for window in windows} == {min(frames, num_frames) * hop_length}
    # No more windows than needed: each but the last gives all that it can.
    around = warm_up + 2 * context
    assert len(windows) == 1 or len(windows) == math.ceil((num_frames - around) / (frames - around))


def test_a_plan_of_three_windows():
    windows = plan_windows(num_samples=94, hop_length=5, window_frames=9, context=2)
    spans = [(w.start, w.num_samples, w.drop_frames, w.keep_frames, w.pad_samples) for w in windows]
    assert spans == [(0, 45, 0, 7, 0), (25, 45, 2, 5, 0), (50, 45, 2, 7, 1)]


def test_plans_that_cannot_be():
    with pytest.raises(ValueError, match=r"^a window of 6 frames is all context: 7 frames is the least$"):
        plan_windows(100, 5, 6, 3)
    with pytest.raises(ValueError, match="without samples"):
        plan_windows(0, 5, 6, 1)


@settings(max_examples=50, deadline=None)
@given(
    context=st.tuples(st.integers(0, 200), st.integers(0, 200)),
    frame_rate=st.sampled_from([12.5, 50.0, 75.0, 44100 / 512, 16000.0]),
)
def test_the_least_window_is_told_and_works(context, frame_rate):
    chunking = Chunking(True, *context)
    assume(max(context))
    with pytest.raises(UserError) as caught:
        window_frames(chunking, frame_rate, 1e-4 / frame_rate)
    least_s = float(str(caught.value).split(": ")[-1].split(" s is the least")[0])
    frames = window_frames(chunking, frame_rate, least_s)
    assert plan_windows(10**6, 3, frames, max(context))
    assert frames >= 4 * max(context)


def test_a_window_too_short_in_words():
    with pytest.raises(UserError) as caught:
        window_frames(Chunking(True, 8, 10), 44100 / 512, 0.2)
    assert str(caught.value) == (
        "window_s: 0.2 s is too short for a codec that needs 0.23 s around each frame: 0.47 s is the least"
    )
    assert window_frames(Chunking(True, 8, 10), 50.0, 20.0) == 1000


# --- cutting


def in_blocks(samples, sizes):
    """`samples` `[C, N]` in blocks of the sizes, over and over, to the end."""
    start = 0
    for size in itertools.cycle(sizes):
        if start >= samples.shape[1]:
            return
        yield samples[:, start : start + size]
        start += size


BLOCK_SIZES = st.lists(st.integers(0, 400), min_size=1, max_size=4).filter(any)


@settings(max_examples=100, deadline=None)
@given(plans(), BLOCK_SIZES, st.integers(1, 2))
def test_windows_are_cut_out_of_blocks_of_any_sizes(plan, sizes, channels):
    num_samples, hop_length, *_ = plan
    clip = np.random.default_rng(0).standard_normal((channels, num_samples), np.float32)
    padded = np.pad(clip, ((0, 0), (0, -num_samples % hop_length)))
    windows = plan_windows(*plan)
    pieces = list(cut(in_blocks(clip, sizes), windows))
    assert len(pieces) == len(windows)
    for window, piece in zip(windows, pieces, strict=True):
        np.testing.assert_array_equal(
            piece, padded[:, window.start : window.start + window.num_samples], strict=True
        )


def test_what_a_window_is_given_to_does_not_reach_the_next():
    clip = np.ones((1, 100), np.float32)
    for piece in cut([clip], plan_windows(100, 1, 20, 5)):
        assert piece.min() == 1
        piece[:] = 0
    assert clip.min() == 1


@pytest.mark.parametrize("there", [0, 1, 79, 95, 99])
def test_a_clip_shorter_than_announced(there):
    blocks = in_blocks(np.ones((2, there), np.float32), [7])
    with pytest.raises(AudioError, match=f"^truncated: 100 samples announced, {there // 7 * 7}"[:-1]):
        list(cut(blocks, plan_windows(100, 5, 8, 2)))


def test_a_clip_longer_than_announced():
    # Even where the frame that is padded would have room for it.
    for excess in (1, 2, 50):
        blocks = in_blocks(np.ones((1, 98 + excess), np.float32), [98, 0, 1])
        with pytest.raises(AudioError, match=r"^longer than the 98 samples announced$"):
            list(cut(blocks, plan_windows(98, 5, 8, 2)))


def peak_bytes(num_samples):
    """The most that cutting a stream of small blocks holds."""
    blocks = (np.zeros((1, 1000), np.float32) for _ in range(num_samples // 1000))
    tracemalloc.start()
    for _piece in cut(blocks, plan_windows(num_samples, 10, 2000, 100)):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_memory_does_not_grow_with_the_clip():
    window_bytes = 2000 * 10 * 4
    short = peak_bytes(100_000)
    assert window_bytes < short < 3 * window_bytes
    # A plan is a list: some two hundred bytes a window.
    assert peak_bytes(1_000_000) < short + 0.3 * window_bytes


# --- codecs


def noise(channels, num_samples, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 0.3 * torch.randn(1, channels, num_samples, generator=generator)


def random_dac(folder, strides):
    """A DAC of `transformers`; as it initialises itself, it would hardly react to its input."""
    torch.manual_seed(0)
    config = DacConfig(
        encoder_hidden_size=4,
        downsampling_ratios=strides,
        decoder_hidden_size=16,
        upsampling_ratios=strides[::-1],
        n_codebooks=3,
        codebook_size=32,
        codebook_dim=4,
        sampling_rate=1000,
    )
    model = DacModel(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.25)
    # Quiet enough that the closing tanh does not hide differences.
    torch.nn.init.normal_(model.decoder.conv2.weight, std=0.01)
    model.save_pretrained(folder)
    return load_codec(str(folder))


def original_dac(folder, strides):
    torch.manual_seed(0)
    config = OwnDac(
        kind="dac",
        encoder_dim=4,
        encoder_rates=strides,
        decoder_dim=32,
        num_codebooks=4,
        codebook_size=64,
    )
    save_dac(build_original(config), folder, "float32")
    return load_codec(str(folder))


@pytest.fixture(scope="module")
def codecs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("codecs")
    return {
        "random": random_dac(folder / "random", [2, 5]),
        "odd": random_dac(folder / "odd", [3, 5]),
        "original": original_dac(folder / "original", [2, 4, 5]),
    }


NAMES = ["random", "odd", "original"]


def blocks_of(audio, sizes=(333,)):
    return in_blocks(audio[0].numpy(), sizes)


CLIPS = {
    "excess": st.floats(0, 4),
    "extra": st.integers(1, 40),
    "sizes": BLOCK_SIZES,
    "odd": st.integers(0, 50),
}


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=12, deadline=None)
@given(**CLIPS)
def test_windows_encode_as_the_whole(codecs, name, excess, extra, sizes, odd):
    codec = codecs[name]
    frames = 2 * codec.chunking.encoder_context + extra
    num_samples = int((1 + excess) * frames * codec.hop_length) + odd
    audio = noise(1, num_samples, odd)
    codes = encode_long(codec, blocks_of(audio, sizes), num_samples, frames).codes
    assert codes.dtype == torch.int64
    assert torch.equal(codes, codec.encode(audio)[0])
    latents = encode_latents_long(codec, blocks_of(audio, sizes), num_samples, frames)
    torch.testing.assert_close(latents, codec.encode_latents(audio)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=12, deadline=None)
@given(**CLIPS)
def test_windows_decode_as_the_whole(codecs, name, excess, extra, sizes, odd):
    codec = codecs[name]
    frames = 2 * codec.chunking.decoder_context + extra
    num_samples = int((1 + excess) * frames * codec.hop_length) + odd
    num_frames = codec.num_frames(num_samples)
    generator = torch.Generator().manual_seed(odd)
    codes = torch.randint(codec.codebook_size, (codec.num_codebooks, num_frames), generator=generator)
    pieces = list(decode_long(codec, codes, num_samples, frames))
    assert max(piece.shape[1] for piece in pieces) <= frames * codec.hop_length
    whole = codec.decode(codes[None], num_samples=num_samples)[0].numpy()
    assert 0.001 < whole.std() < 0.7
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), whole, rtol=0, atol=1e-5)
    latents = torch.randn(codec.latent_dim, num_frames, generator=generator)
    pieces = list(decode_latents_long(codec, latents, num_samples, frames))
    whole = codec.decode_latents(latents[None], num_samples=num_samples)[0].numpy()
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_with_less_context_the_codes_are_others(codecs, name, monkeypatch):
    """So the equalities above are not for nothing."""
    codec = codecs[name]
    chunking = codec.chunking
    num_samples = 40 * chunking.encoder_context * codec.hop_length
    audio = noise(1, num_samples)
    whole, latents = codec.encode(audio)[0], codec.encode_latents(audio)[0]
    assert len(whole.unique()) > 8

    def faults(context):
        monkeypatch.setitem(codec.__dict__, "chunking", Chunking(True, context, context))
        frames = 2 * context + 7
        codes = encode_long(codec, blocks_of(audio), num_samples, frames).codes
        windowed = encode_latents_long(codec, blocks_of(audio), num_samples, frames)
        return float((codes != whole).float().mean()), float((windowed - latents).abs().max())

    assert faults(0)[0] > 0.1
    assert faults(chunking.encoder_context // 2)[1] > 1e-4
    assert faults(chunking.encoder_context)[0] == 0


def test_a_window_is_all_that_a_codec_sees_at_a_time(codecs, monkeypatch):
    codec = codecs["original"]
    seen = []
    encode = codec.encode
    monkeypatch.setattr(codec, "encode", lambda audio: (seen.append(audio.shape), encode(audio))[1])
    audio = noise(1, 400 * codec.hop_length)
    encode_long(codec, blocks_of(audio), audio.shape[-1], 90)
    assert set(seen) == {(1, 1, 90 * codec.hop_length)}
    assert len(seen) > 4


def test_samples_that_are_not_those_of_the_codes(codecs):
    codec = codecs["original"]
    codes = torch.zeros(4, 5, dtype=torch.int64)
    for num_samples in (0, 160, 201):
        with pytest.raises(ValueError, match=f"^{num_samples} samples are not 5 frames of 40$"):
            list(decode_long(codec, codes, num_samples, 90))
    with pytest.raises(ValueError, match="takes no gains"):
        list(decode_long(codec, codes, 200, 90, gains=torch.ones(1)))


def test_oobleck_in_windows(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    model = diffusers.AutoencoderOobleck(
        encoder_hidden_size=8,
        downsampling_ratios=[2, 4],
        channel_multiples=[1, 2],
        decoder_channels=8,
        decoder_input_channels=4,
        audio_channels=2,
        sampling_rate=800,
    )
    model.save_pretrained(tmp_path / "oobleck")
    codec = load_codec(str(tmp_path / "oobleck"))
    assert codec.chunking.exact
    frames = 2 * codec.chunking.encoder_context + 20
    num_samples = 5 * frames * 8 - 3
    audio = noise(2, num_samples)
    latents = encode_latents_long(codec, blocks_of(audio), num_samples, frames)
    whole = codec.encode_latents(audio)[0]
    torch.testing.assert_close(latents, whole, rtol=1e-5, atol=1e-5)
    frames = 2 * codec.chunking.decoder_context + 20
    pieces = list(decode_latents_long(codec, latents, num_samples, frames))
    whole = codec.decode_latents(whole[None], num_samples=num_samples)[0].numpy()
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
def test_encodec_windows_come_close(tmp_path, causal):
    """Its LSTM remembers for ever; a new one with random weights does for far less than the warm-up."""
    torch.manual_seed(0)
    config = EncodecConfig(
        target_bandwidths=[1.0],
        sampling_rate=500,
        num_filters=4,
        upsampling_ratios=[5, 2],
        hidden_size=8,
        codebook_size=32,
        codebook_dim=8,
        use_causal_conv=causal,
    )
    model = EncodecModel(config)
    with torch.no_grad():
        latents = model.encoder(noise(1, 32 * 200))[0].T
        for layer in model.quantizer.layers:
            layer.codebook.embed.copy_(latents[::20])
    model.save_pretrained(tmp_path / "encodec")
    codec = load_codec(str(tmp_path / "encodec"), bandwidth_kbps=1.0)
    chunking = codec.chunking
    assert not chunking.exact
    assert chunking.warm_up == 2 * codec.frame_rate
    assert 0 < chunking.encoder_context < chunking.warm_up
    frames = window_frames(chunking, codec.frame_rate, 12.0)
    num_samples = 3 * frames * codec.hop_length
    audio = noise(1, num_samples)
    whole = codec.encode(audio)[0]
    assert len(whole.unique()) > 16
    codes = encode_long(codec, blocks_of(audio), num_samples, frames).codes
    assert (codes == whole).float().mean() > 0.999
    pieces = list(decode_long(codec, whole, num_samples, frames))
    np.testing.assert_allclose(
        np.concatenate(pieces, axis=1), codec.decode(whole[None])[0].numpy(), rtol=0, atol=1e-4
    )
    # Up to the length of a window, a clip is whole.
    short = audio[..., : frames * codec.hop_length]
    encoded = encode_long(codec, blocks_of(short), short.shape[-1], frames)
    assert torch.equal(encoded.codes, codec.encode(short)[0])
    assert encoded.gains is None


def test_segments_keep_their_gains(tmp_path):
    torch.manual_seed(0)
    config = EncodecConfig(
        target_bandwidths=[1.0],
        sampling_rate=400,
        audio_channels=2,
        num_filters=4,
        upsampling_ratios=[2, 2],
        hidden_size=8,
        codebook_size=32,
        codebook_dim=8,
        norm_type="time_group_norm",
        use_causal_conv=False,
        normalize=True,
        chunk_length_s=1.0,
        overlap=0.01,
    )
    EncodecModel(config).save_pretrained(tmp_path / "encodec")
    codec = load_codec(str(tmp_path / "encodec"), bandwidth_kbps=1.0)
    audio = noise(2, 1801) * torch.linspace(0.1, 2, 1801)
    encoded = encode_long(codec, blocks_of(audio), 1801, window_frames=50)
    whole = codec.encode_segments(audio)
    assert torch.equal(encoded.codes, whole.codes[0])
    torch.testing.assert_close(encoded.gains, whole.gains[0])
    pieces = list(decode_long(codec, encoded.codes, 1801, 50, gains=encoded.gains))
    expected = codec.decode(whole.codes, num_samples=1801, gains=whole.gains)[0].numpy()
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), expected, rtol=0, atol=1e-5)
