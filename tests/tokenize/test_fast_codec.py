"""Fast networks against the plain ones, on tiny random models and on the pocket codec."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from transformers import DacConfig, DacModel, EncodecConfig, EncodecModel

from tests.made_networks import save_oobleck
from tokkata.core.errors import UserError
from tokkata.tokenize import fast_codec, fast_layers, fast_networks
from tokkata.tokenize.codec import load_codec
from tokkata.tokenize.families.codec_stereo import Stereo
from tokkata.tokenize.fast_codec import FastNetwork, fast
from tokkata.tokenize.fast_layers import Chain, Conv, Elu, Residual, Snake, Tanh, Tile, Upsample

RATE = 1200
HOP = 6


def noise(*shape, seed=0):
    return 0.5 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Several tiles for clips of a second."""
    monkeypatch.setattr(fast_networks, "_TILE_NUMBERS", 256)
    monkeypatch.setattr(fast_networks, "_LEAST_TILE", 48)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def save_dac(folder):
    torch.manual_seed(0)
    model = DacModel(
        DacConfig(
            encoder_hidden_size=8,
            downsampling_ratios=[2, 3],
            decoder_hidden_size=32,
            n_codebooks=3,
            codebook_size=16,
            codebook_dim=4,
            sampling_rate=RATE,
        )
    )
    # As it initialises itself, it hardly reacts to its input.
    for name, parameter in model.named_parameters():
        if parameter.ndim == 3 and not name.endswith("alpha"):
            nn.init.normal_(parameter, std=(parameter[0].numel()) ** -0.5)
        elif name.endswith("alpha"):
            nn.init.uniform_(parameter, 0.2, 3.0)
    model.save_pretrained(folder)
    return load_codec(str(folder))


def save_encodec(folder, *, channels=1, **settings):
    torch.manual_seed(0)
    config = EncodecConfig(
        target_bandwidths=[1.6],
        sampling_rate=RATE,
        audio_channels=channels,
        num_filters=4,
        upsampling_ratios=[3, 2],
        hidden_size=8,
        codebook_size=16,
        codebook_dim=8,
        num_lstm_layers=2,
        normalize=False,
        chunk_length_s=None,
        **settings,
    )
    model = EncodecModel(config).eval()
    # Codebooks out of what the encoder gives, or a handful of codes would win everywhere.
    with torch.no_grad():
        residual = model.encoder(noise(1, channels, 320 * HOP))[0].T  # [T, D]
        for layer in model.quantizer.layers:
            layer.codebook.embed.copy_(residual[::20])
            nearest = torch.cdist(residual, layer.codebook.embed).argmin(dim=-1)
            residual = residual - layer.codebook.embed[nearest]
    model.save_pretrained(folder)
    return load_codec(str(folder))


ENCODECS = {
    "causal": {},
    "centred": {"use_causal_conv": False, "use_conv_shortcut": True, "channels": 2},
    "zeros": {"pad_mode": "constant", "trim_right_ratio": 0.5},
}


@pytest.fixture(scope="module")
def codecs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    made = {f"encodec-{name}": save_encodec(folder / name, **told) for name, told in ENCODECS.items()}
    return {"dac": save_dac(folder / "dac"), **made}


@pytest.fixture
def vae(tmp_path):
    """With first weights that react: Snakes of many sizes."""
    save_oobleck(tmp_path / "vae")
    codec = load_codec(str(tmp_path / "vae"))
    for name, parameter in codec.named_parameters():
        if name.endswith(("alpha", "beta")):
            nn.init.uniform_(parameter, -1.0, 1.0)
    return codec


KINDS = ["dac", *(f"encodec-{name}" for name in ENCODECS)]


def distance(found, expected):
    """Relative, over all elements; also checks that the shapes are equal."""
    assert found.shape == expected.shape
    return ((found - expected).norm() / expected.norm()).item()


def fast_networks_of(codec):
    return [part for part in codec.modules() if isinstance(part, FastNetwork)]


# --- layers: any stretch of output is that of the whole clip


def whole_and_part(layer, samples, span):
    """What a layer gives for a stretch, from a tile with nothing but what the stretch needs."""
    total = samples.shape[-1]
    whole = Tile(samples.unsqueeze(2).contiguous(memory_format=torch.channels_last), 0, total)
    start, stop = whole.inside(layer.needs(span))
    return layer.run(Tile(whole.samples[..., start:stop], start, total), span).squeeze(2)


def spans(data, length):
    start = data.draw(st.integers(0, length - 1))
    return start, data.draw(st.integers(start + 1, length))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_stretch_of_a_convolution(data):
    kernel, stride, dilation = (data.draw(st.integers(1, most)) for most in (7, 4, 3))
    reach = dilation * (kernel - 1)  # further out, a kernel would see nothing but padding
    left, right = data.draw(st.integers(0, reach)), data.draw(st.integers(0, reach))
    mode = data.draw(st.sampled_from(["constant", "reflect"]))
    samples = noise(1, 3, 60)
    weight, bias = noise(5, 3, kernel, seed=1), noise(5, seed=2)
    layer = Conv(
        weight,
        bias,
        padding=(left, right),
        stride=stride,
        dilation=dilation,
        mode=mode,
        dtype=torch.float32,
    )
    expected = F.conv1d(F.pad(samples, (left, right), mode), weight, bias, stride, dilation=dilation)
    assert layer.length(60) == expected.shape[-1]
    # A reflection reads as far into the clip as it reaches out of it, as tiles of the real size always do.
    span = spans(data, expected.shape[-1]) if mode == "constant" else (0, expected.shape[-1])
    torch.testing.assert_close(whole_and_part(layer, samples, span), expected[..., slice(*span)])


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_stretch_of_a_transposed_convolution(data):
    stride = data.draw(st.integers(1, 5))
    trim = data.draw(st.integers(0, stride)), data.draw(st.integers(0, stride))
    samples = noise(1, 3, 20)
    weight, bias = noise(3, 4, 2 * stride, seed=1), noise(4, seed=2)
    layer = Upsample(weight, bias, stride=stride, trim=trim, dtype=torch.float32)
    expected = F.conv_transpose1d(samples, weight, bias, stride)
    expected = expected[..., trim[0] : expected.shape[-1] - trim[1]]
    assert layer.length(20) == expected.shape[-1]
    span = spans(data, expected.shape[-1])
    torch.testing.assert_close(whole_and_part(layer, samples, span), expected[..., slice(*span)])


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_stretch_of_a_chain(data):
    """Down and up again, through residual paths: the needs of all layers add up."""
    wide, narrow = noise(4, 4, 7, seed=1) / 5, noise(4, 4, 1, seed=2)
    down, up = noise(6, 4, 4, seed=3), noise(6, 2, 6, seed=4)
    alpha = torch.tensor([0.1, 1.0, 3.0, -2.0]).reshape(1, 4, 1)

    def snake(x):
        return x + torch.sin(alpha * x) ** 2 / (alpha + 1e-9)

    float32 = {"dtype": torch.float32}
    unit = Chain(
        [
            Snake(alpha),
            Conv(wide, None, padding=(9, 9), dilation=3, **float32),
            Conv(narrow, None, padding=(0, 0), **float32),
        ]
    )
    layer = Chain(
        [
            Residual(unit),
            Residual(Chain([Elu()]), Conv(narrow, None, padding=(0, 0), **float32)),
            Conv(down, None, padding=(1, 1), stride=2, **float32),
            Upsample(up, None, stride=3, trim=(2, 1), **float32),
            Tanh(),
        ]
    )
    samples = noise(1, 4, 64)
    x = samples + F.conv1d(F.conv1d(snake(samples), wide, padding=9, dilation=3), narrow)
    x = F.elu(x) + F.conv1d(x, narrow)
    x = F.conv_transpose1d(F.conv1d(x, down, stride=2, padding=1), up, stride=3)
    expected = x[..., 2:-1].tanh()
    assert layer.length(64) == expected.shape[-1]
    span = spans(data, expected.shape[-1])
    part = whole_and_part(layer, samples, span)
    torch.testing.assert_close(part, expected[..., slice(*span)], atol=1e-5, rtol=1e-5)


@given(st.integers(1, 5000), st.integers(1, 300))
def test_spans_cover_a_clip_once(length, size):
    found = fast_networks._spans(length, size)
    assert [start for start, _ in found] == [0, *(stop for _, stop in found[:-1])]
    assert found[-1][1] == length
    assert all(2 * (stop - start) >= min(size, length) // 2 for start, stop in found)


# --- codecs


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_samples", [96, 97, 1203, 2401])
def test_fp32_gives_the_plain_codes(codecs, kind, num_samples):
    plain = codecs[kind]
    faster = fast(plain)
    audio = noise(3, plain.channels, num_samples, seed=num_samples)
    codes = plain.encode(audio)
    assert torch.equal(faster.encode(audio), codes)
    assert distance(faster.encode_latents(audio), plain.encode_latents(audio)) < 1e-5
    assert distance(faster.decode(codes, num_samples), plain.decode(codes, num_samples)) < 1e-5


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("num_samples", [400, 401, 2999])
def test_oobleck(vae, precision, num_samples):
    if precision == "bf16" and not fast_codec._cpu_has_bf16():
        pytest.skip("this CPU has no bf16 arithmetic")
    faster = fast(vae, precision)
    assert [type(network.plain).__name__ for network in fast_networks_of(faster)] == [
        "OobleckEncoder",
        "OobleckDecoder",
    ]
    audio = noise(2, 2, num_samples, seed=num_samples)
    latents = vae.encode_latents(audio)
    decoded = vae.decode_latents(latents, num_samples)
    for network in fast_networks_of(faster):
        network.plain.register_forward_pre_hook(lambda *_: pytest.fail("the plain network was called"))
    nearest = 1e-5 if precision == "fp32" else 0.03
    assert distance(faster.encode_latents(audio), latents) < nearest
    assert distance(faster.decode_latents(latents, num_samples), decoded) < nearest


def test_the_networks_are_really_replaced(codecs, monkeypatch):
    faster = fast(codecs["dac"])
    assert [type(network.plain).__name__ for network in fast_networks_of(faster)] == [
        "DacEncoder",
        "DacDecoder",
    ]
    for network in fast_networks_of(faster):
        monkeypatch.setattr(network.plain, "forward", None)  # would fail if it were called
    codes = faster.encode(noise(1, 1, 600))
    assert faster.decode(codes).shape == (1, 1, 600)
    with pytest.raises(TypeError):
        faster.encode(noise(1, 1, 60))  # too short for tiles


def test_the_plain_codec_stays_as_it_is(codecs):
    plain = codecs["dac"]
    before = copy.deepcopy(plain.info)
    faster = fast(plain, "bf16")
    assert fast_networks_of(plain) == []
    assert (plain.info, faster.info.precision) == (before, "bf16")
    assert type(faster) is type(plain)
    shared = {id(parameter) for parameter in plain.parameters()}
    assert {id(parameter) for parameter in faster.parameters()} == shared


@pytest.mark.parametrize("kind", KINDS)
def test_context_and_sizes_stay(codecs, kind):
    plain = codecs[kind]
    faster = fast(plain)
    assert faster.chunking == plain.chunking
    assert faster.info == plain.info


def test_a_codec_inside_another(codecs):
    plain = Stereo(codecs["dac"])
    faster = fast(plain, "bf16")
    assert len(fast_networks_of(faster)) == 2
    assert {faster.info.precision, faster.codec.info.precision} == {"bf16"}
    audio = noise(2, 2, 700)
    assert torch.equal(fast(plain).encode(audio), plain.encode(audio))


def test_pocket_codes_do_not_change(monkeypatch):
    monkeypatch.undo()  # tiles of their real size
    plain = load_codec("pocket")
    time = torch.arange(4 * plain.sample_rate) / plain.sample_rate
    chord = sum(torch.sin(2 * torch.pi * hertz * time) for hertz in (220, 277, 330, 1760)) * 0.2
    audio = (chord * torch.exp(-time) + noise(len(time)) * 0.02)[None, None]
    codes = plain.encode(audio)
    assert torch.equal(fast(plain).encode(audio), codes)
    changed = (fast(plain, "bf16").encode(audio) != codes).float().mean()
    assert 0 < changed < 0.1


# --- threads


@pytest.mark.usefixtures("two_threads")
def test_threads_do_not_change_a_bit(codecs):
    faster = fast(codecs["dac"])
    audio = noise(2, faster.channels, 2400)
    latents = faster.encode_latents(audio)
    decoded = faster.decode_latents(latents)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    assert torch.equal(faster.encode_latents(audio), latents)
    assert torch.equal(faster.decode_latents(latents), decoded)


@pytest.mark.usefixtures("two_threads")
def test_a_fault_in_a_thread_is_not_lost(codecs, monkeypatch):
    def broken(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Snake, "run", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        fast(codecs["dac"]).encode(noise(1, 1, 2400))
    assert torch.get_num_threads() == 2


# --- bf16


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_stays_near_and_quantises_in_fp32(codecs, kind):
    plain = codecs[kind]
    faster = fast(plain, "bf16")
    audio = noise(2, plain.channels, 2400)
    latents, expected = faster.encode_latents(audio), plain.encode_latents(audio)
    assert latents.dtype == torch.float32
    assert 1e-5 < distance(latents, expected) < 0.03
    assert {tensor.dtype for tensor in faster.model.quantizer.parameters()} <= {torch.float32}
    # The codes are those that the plain quantiser gives for these latents.
    quantizer = plain.model.quantizer
    codes = quantizer(latents)[1] if kind == "dac" else quantizer.encode(latents, 1.6).transpose(0, 1)
    assert torch.equal(faster.encode(audio), codes)
    assert distance(faster.decode(codes), plain.decode(codes)) < 0.03


def test_bf16_on_a_cpu_without(codecs, monkeypatch):
    monkeypatch.setattr(fast_codec, "_cpu_has_bf16", lambda: False)
    with pytest.raises(UserError, match=r"^this CPU has no bf16 arithmetic: use the precision fp32$"):
        fast(codecs["dac"], "bf16")


# --- where nothing can be made faster


def test_other_codecs_pass_through():
    plain = load_codec("mulaw:16000")
    assert fast(plain) is plain
    with pytest.raises(UserError) as caught:
        fast(plain, "bf16")
    assert str(caught.value) == "codec mulaw:16000 has no networks that run in bf16: use the precision fp32"


def test_encodec_that_normalises_over_time_passes_through(tmp_path):
    plain = save_encodec(tmp_path / "hub", norm_type="time_group_norm", use_causal_conv=False)
    assert fast_networks._encodec_conv(plain.model.encoder.layers[0], torch.float32) is None
    assert fast_networks.encodec_network(plain.model.encoder, torch.float32) is None


def test_without_onednn(codecs, monkeypatch):
    monkeypatch.setattr(fast_layers, "can_pack", lambda: False)
    plain = codecs["dac"]
    faster = fast(plain)
    audio = noise(1, 1, 2400)
    codes = plain.encode(audio)
    assert torch.equal(faster.encode(audio), codes)
    assert distance(faster.decode(codes), plain.decode(codes)) < 1e-5
