"""Codes that come in parts are decoded to what the whole is decoded to, whatever the parts.

Shapes: B batch, K codebooks, T frames, N samples.
"""

import functools

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import DacConfig, DacModel, EncodecConfig, EncodecModel, MimiConfig, MimiModel

from tokkata.tokenize.codec import load_codec
from tokkata.tokenize.families.codec_original import wrap_encodec
from tokkata.tokenize.fast_codec import fast
from tokkata.tokenize.receptive_field import Reach
from tokkata.tokenize.streaming import checked, fitted, in_windows, regrouped

RATE = 1200

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")


def loud(model):
    """Weights that make every layer count; as they are initialised, some hardly react to their input."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=(2.0 if "lstm" in name else 1.0) / parameter[0].numel() ** 0.5)
        for name, buffer in model.named_buffers():
            if name.endswith(("embed", "embed_sum")):
                buffer.normal_()
    return model.eval()


@pytest.fixture(scope="module")
def codecs(tmp_path_factory):
    """`codecs(name)`: one of each kind of decoder, with random weights."""

    def saved(model):
        folder = tmp_path_factory.mktemp("hub") / "codec"
        loud(model).save_pretrained(folder)
        return str(folder)

    def encodec(**settings):
        shape = {"upsampling_ratios": [3, 2], "hidden_size": 8, "codebook_size": 16, "codebook_dim": 8}
        bandwidth = {"target_bandwidths": [1.6], "sampling_rate": RATE, "num_filters": 8}
        unsegmented = {"normalize": False, "chunk_length_s": None}
        return saved(EncodecModel(EncodecConfig(**shape | bandwidth | unsegmented | settings)))

    def dac(strides):
        shape = {"encoder_hidden_size": 4, "decoder_hidden_size": 16, "n_codebooks": 3, "codebook_size": 16}
        return saved(DacModel(DacConfig(downsampling_ratios=strides, sampling_rate=RATE, **shape)))

    def mimi():
        return saved(
            MimiModel(
                MimiConfig(
                    sampling_rate=RATE,
                    frame_rate=RATE / 12,
                    hidden_size=16,
                    num_filters=4,
                    upsampling_ratios=[3, 2],
                    codebook_size=16,
                    codebook_dim=8,
                    vector_quantization_hidden_dimension=8,
                    num_quantizers=4,
                    num_hidden_layers=2,
                    intermediate_size=32,
                    num_attention_heads=2,
                    num_key_value_heads=2,
                    sliding_window=16,
                    upsample_groups=16,
                    layer_scale_initial_scale=0.5,
                )
            )
        )

    def original():
        import encodec as package

        sizes = {"dimension": 8, "n_filters": 8, "ratios": [4, 2], "causal": True}
        model = package.EncodecModel(
            package.modules.SEANetEncoder(**sizes),
            package.modules.SEANetDecoder(**sizes),
            package.quantization.ResidualVectorQuantizer(dimension=8, n_q=4, bins=16),
            target_bandwidths=[1.2],
            sample_rate=RATE,
            channels=1,
        )
        for layer in model.quantizer.vq.layers:
            layer._codebook.inited.fill_(1)
        return wrap_encodec("encodec:test", None, loud(model), 1.2)

    @functools.cache
    def codec(name):
        match name:
            case "dac":
                return load_codec(dac([4, 2]))
            case "dac, odd strides":
                return load_codec(dac([2, 3]))
            case "dac, fast":
                return fast(load_codec(dac([4, 2])))
            case "dac, stereo":
                return load_codec(dac([4, 2]), stereo=True)
            case "pocket":
                return load_codec("pocket")
            case "mulaw":
                return load_codec(f"mulaw:{RATE}")
            case "encodec, causal":
                return load_codec(encodec(use_causal_conv=True))
            case "encodec":
                return load_codec(encodec(use_causal_conv=False))
            case "encodec, stereo":
                return load_codec(encodec(use_causal_conv=False), stereo=True)
            case "encodec, fast":
                return fast(load_codec(encodec(use_causal_conv=False)))
            case "encodec, original package":
                return original()
            case "encodec, segments":
                segments = {"normalize": True, "chunk_length_s": 0.1, "overlap": 0.1}
                found = load_codec(encodec(norm_type="time_group_norm", audio_channels=2, **segments))
                found.info = found.info.__class__(**found.info.__dict__ | {"median_gain": 0.5})
                return found
            case _:
                return load_codec(mimi())

    return codec


NAMES = [
    "dac",
    "dac, odd strides",
    "dac, fast",
    "dac, stereo",
    "pocket",
    "mulaw",
    "encodec, causal",
    "encodec",
    "encodec, stereo",
    "encodec, fast",
    "encodec, original package",
    "encodec, segments",
    "mimi",
]


def random_codes(codec, batch_size, num_frames):
    generator = torch.Generator().manual_seed(num_frames)
    shape = batch_size, codec.num_codebooks, num_frames
    return torch.randint(codec.codebook_size, shape, generator=generator)


def parts_of(codes, sizes):
    """Codes in parts of these sizes, again and again."""
    start, i = 0, 0
    while start < codes.shape[-1]:
        size = sizes[i % len(sizes)]
        yield codes[..., start : start + size]
        start, i = start + size, i + 1


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=8, deadline=None)
@example(num_frames=1, sizes=[1])
@example(num_frames=70, sizes=[1])
@given(num_frames=st.integers(1, 90), sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4))
def test_the_parts_together_are_the_decoded_whole(name, codecs, num_frames, sizes):
    codec = codecs(name)
    num_frames = codec.num_frames(num_frames * codec.hop_length)  # a number that clips can have
    codes = random_codes(codec, 2, num_frames)
    whole = codec.decode(codes)
    streamed = torch.cat(list(codec.decode_stream(parts_of(codes, sizes), num_frames)), dim=-1)
    assert streamed.shape == whole.shape
    assert whole.std() > 1e-3
    torch.testing.assert_close(streamed, whole, rtol=0, atol=2e-5 * float(whole.abs().max()))


def frames_asked_for(codec, num_frames):
    """How many frames each frame's worth of audio had to wait for, when frames come one at a time."""
    asked = 0

    def parts():
        nonlocal asked
        for part in parts_of(random_codes(codec, 1, num_frames), [1]):
            asked += 1
            yield part

    waited, given_so_far = [], 0
    for audio in codec.decode_stream(parts(), num_frames):
        given_so_far += audio.shape[-1]
        waited += [asked] * (given_so_far // codec.hop_length - len(waited))
    return waited


@pytest.mark.parametrize("name", ["mimi", "mulaw"])
def test_decoders_that_look_at_nothing_ahead_give_every_frame_at_once(name, codecs):
    assert frames_asked_for(codecs(name), 50) == list(range(1, 51))


@pytest.mark.parametrize("name", ["encodec, causal", "encodec, original package"])
def test_a_causal_encodec_waits_for_the_mirror_image_of_its_first_frames_alone(name, codecs):
    waited = frames_asked_for(codecs(name), 50)
    start = waited[0]
    assert 7 <= start <= 10  # the first convolution's kernel of 7, and what the others see
    assert waited == [max(start, number) for number in range(1, 51)]


@pytest.mark.parametrize("name", ["dac", "encodec"])
def test_others_wait_for_as_many_frames_as_they_look_ahead(name, codecs):
    codec = codecs(name)
    waited = frames_asked_for(codec, 50)
    delay = waited[20] - 21
    assert 0 < delay <= codec.chunking.decoder_context + 1  # an EnCodec's two stretches are rounded up each
    start = waited[0]
    assert waited == [max(start, min(50, number + delay)) for number in range(1, 51)]


def test_what_is_held_does_not_grow(codecs):
    """The longest window that a network sees, whatever comes before it."""
    codec = codecs("dac")
    lengths = []
    hook = codec.model.decoder.register_forward_pre_hook(
        lambda _, inputs: lengths.append(inputs[0].shape[-1])
    )
    for _ in codec.decode_stream(parts_of(random_codes(codec, 1, 300), [5]), 300):
        pass
    hook.remove()
    assert max(lengths) <= 2 * codec.chunking.decoder_context + 5
    assert len(lengths) > 50


def test_another_number_of_frames_than_announced_is_refused(codecs):
    codec = codecs("mulaw")
    codes = random_codes(codec, 1, 10)
    with pytest.raises(ValueError, match="11 frames were announced, 10 have come"):
        list(codec.decode_stream([codes], 11))
    with pytest.raises(ValueError, match="9 frames were announced, 10 have come"):
        list(codec.decode_stream(parts_of(codes, [4]), 9))


# --- the steps


@settings(max_examples=60, deadline=None)
@given(
    before=st.integers(0, 5),
    after=st.integers(0, 5),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12),
)
def test_windows_of_a_filter_of_any_reach(before, after, sizes):
    num_frames = sum(sizes)
    frames = torch.arange(num_frames, dtype=torch.float64)[None, None] + 1
    kernel = torch.arange(1, before + after + 2, dtype=torch.float64)[None, None]

    def filtered(x):
        return nn.functional.conv1d(nn.functional.pad(x, (before, after)), kernel)

    found = list(in_windows(frames.split(sizes, dim=-1), filtered, 1, Reach(before, after), num_frames))
    assert torch.equal(torch.cat(found, dim=-1), filtered(frames))


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=9), cut=st.integers(1, 7))
def test_regrouped_frames_are_the_same(sizes, cut):
    frames = torch.arange(sum(sizes))[None, None]
    wanted = [part.shape[-1] for part in frames.split(cut, dim=-1)]
    found = list(regrouped(frames.split(sizes, dim=-1), wanted))
    assert [part.shape[-1] for part in found] == wanted
    assert torch.equal(torch.cat(found, dim=-1), frames)


@pytest.mark.parametrize("wanted", [3, 7, 8, 12])
def test_fitted_audio_has_the_length_asked_for(wanted):
    parts = torch.arange(1.0, 9.0)[None, None].split(3, dim=-1)
    joined = torch.cat(list(fitted(parts, wanted)), dim=-1)[0, 0]
    assert joined.tolist() == [*range(1, min(wanted, 8) + 1), *[0] * (wanted - 8)]


def test_empty_parts_are_passed_over():
    parts = [torch.zeros(1, 2, size) for size in (0, 3, 0, 2, 0)]
    assert [part.shape[-1] for part in checked(parts, 5)] == [3, 2]
