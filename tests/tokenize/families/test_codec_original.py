"""The original packages: their ports give the same, and their weights are found, fetched and checked."""

import dataclasses
import functools
import http.server
import threading

import dac
import encodec
import pytest
import torch
from encodec.modules import SEANetDecoder, SEANetEncoder
from encodec.quantization import ResidualVectorQuantizer
from hypothesis import given, settings
from hypothesis import strategies as st

from tokkata.core import schema_codecs
from tokkata.core.errors import UserError
from tokkata.tokenize.codec import load_codec, load_codec_from_config
from tokkata.tokenize.families import codec_original
from tokkata.tokenize.families.codec_dac import HubDac, to_hub
from tokkata.tokenize.families.codec_encodec import HubEncodec
from tokkata.tokenize.families.codec_original import RELEASES, encodec_to_hub, wrap_dac, wrap_encodec
from tokkata.tokenize.segments import SegmentedCodec

RATE, HOP = 1200, 8

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")


def noise(*shape, seed=0):
    return 0.5 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- the ports give the same on the same weights


# What sets the published models apart; the widths are small.
ENCODECS = {
    "24khz": {"channels": 1, "causal": True, "norm": "weight_norm", "true_skip": False},
    "32khz": {"channels": 1, "causal": False, "norm": "weight_norm", "true_skip": True},
    "48khz": {"channels": 2, "causal": False, "norm": "time_group_norm", "true_skip": False},
}


def build_encodec(like):
    """A small `encodec.EncodecModel` with random weights, and codebooks that its encoder makes use of."""
    torch.manual_seed(0)
    sizes = ENCODECS[like] | {"dimension": 8, "n_filters": 4, "ratios": [4, 2]}
    segmented = like == "48khz"
    model = encodec.EncodecModel(
        SEANetEncoder(**sizes),
        SEANetDecoder(**sizes),
        ResidualVectorQuantizer(dimension=8, n_q=4, bins=16),
        target_bandwidths=[0.6, 1.2, 2.4],  # 150 frames/s · 4 bits = 0.6 kbps a codebook
        sample_rate=RATE,
        channels=sizes["channels"],
        normalize=segmented,
        segment=1.0 if segmented else None,
    ).eval()
    with torch.no_grad():
        residual = model.encoder(noise(1, sizes["channels"], RATE, seed=1))[0].T  # [T, D]
        for number, layer in enumerate(model.quantizer.vq.layers):
            layer._codebook.inited.fill_(1)
            layer._codebook.embed.copy_(residual[number::9][:16])
            residual = residual - layer.decode(layer.encode(residual.T[None]))[0].T
    return model.requires_grad_(False)


@functools.cache
def encodec_pair(like, folder):
    """The same weights in the package and in transformers, as codecs."""
    original = build_encodec(like)
    model = encodec_to_hub(original)
    model.save_pretrained(folder)
    port = load_codec(str(folder), bandwidth_kbps=1.2)
    return wrap_encodec("encodec:test", None, original, 1.2), port


@pytest.fixture(scope="module", params=ENCODECS)
def encodecs(request, tmp_path_factory):
    return encodec_pair(request.param, tmp_path_factory.getbasetemp() / f"encodec-{request.param}")


def assert_same(original, port, audio):
    """Codes equal, audio and latents to rounding; returns the codes."""
    ours, theirs = (codec.encode_segments(audio) for codec in (original, port))
    assert torch.equal(ours.codes, theirs.codes)
    close = functools.partial(torch.testing.assert_close, rtol=0, atol=1e-4)
    close(original.encode_latents(audio), port.encode_latents(audio))
    decoded = [codec.decode(ours.codes, audio.shape[-1], ours.gains) for codec in (original, port)]
    close(*decoded)
    return ours.codes


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 2))
def test_encodec_is_its_port(encodecs, num_samples, batch):
    original, port = encodecs
    codes = assert_same(original, port, noise(batch, original.channels, num_samples))
    assert codes.shape == (batch, 2, original.num_frames(num_samples))


@pytest.mark.parametrize("like", ENCODECS)
def test_a_changed_weight_is_seen(like):
    original, changed = build_encodec(like), build_encodec(like)
    changed.encoder.model[-1].conv.conv.bias[0] += 0.01
    audio = noise(1, original.channels, 3000)
    codes = [wrap_encodec("encodec:test", None, model, 1.2).encode(audio) for model in (original, changed)]
    assert not torch.equal(*codes)


def test_encodec_describes_itself_as_its_port_does(encodecs):
    original, port = encodecs
    for field in dataclasses.fields(original.info):
        if field.name not in ("id", "revision", "versions"):
            assert getattr(original.info, field.name) == getattr(port.info, field.name), field.name
    assert set(original.info.versions) == {"torch", "transformers", "encodec"}
    assert original.chunking == port.chunking
    assert original.has_gains == port.has_gains
    assert [type(codec) for codec in (original, port)] in (
        [codec_original.OriginalEncodec, HubEncodec],
        [SegmentedCodec, SegmentedCodec],
    )


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3000))
def test_encodec_is_the_packages_own_encode_and_decode(encodecs, num_samples):
    original, _ = encodecs
    segmented = isinstance(original, SegmentedCodec)
    package = original.codec.model if segmented else original.model
    if not segmented:
        num_samples += -num_samples % HOP  # the codec fills the last frame with zeros
    elif 0 < num_samples % package.segment_stride <= HOP:
        num_samples += HOP  # where the last segment has one frame, the package's own decode fails
    package.set_target_bandwidth(1.2)
    audio = noise(1, original.channels, num_samples)
    with torch.no_grad():
        frames = package.encode(audio)
        sound = package.decode(frames)[..., :num_samples]
    encoded = original.encode_segments(audio)
    assert torch.equal(encoded.codes, torch.cat([codes for codes, _ in frames], dim=-1))
    if segmented:
        expected = torch.cat([gain for _, gain in frames], dim=1)
        torch.testing.assert_close(encoded.gains, expected, rtol=1e-6, atol=0)
    decoded = original.decode(encoded.codes, num_samples, encoded.gains)
    torch.testing.assert_close(decoded, sound, rtol=0, atol=1e-5)


# Rates, and so hops and odd strides, are those of the published models; the widths are small.
DACS = {
    "16khz": ([2, 4, 5, 8], 16000),
    "24khz": ([2, 4, 5, 8], 24000),
    "44khz": ([2, 4, 8, 8], 44100),
}


def build_dac(like):
    rates, sample_rate = DACS[like]
    torch.manual_seed(0)
    model = dac.DAC(
        encoder_dim=2,
        encoder_rates=rates,
        decoder_dim=32,
        decoder_rates=rates[::-1],
        n_codebooks=3,
        codebook_size=16,
        codebook_dim=4,
        sample_rate=sample_rate,
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Each layer hands on about as much as it gets; by itself, DAC hardly reacts to its input.
            if name.endswith(".weight_g"):
                parameter.fill_(0.7)
            elif name.endswith(".weight_v"):
                parameter.normal_()
        model(noise(1, 1, 2000))  # the weight norm's hook computes the weights that to_hub copies
    return model.requires_grad_(False)


@pytest.fixture(scope="module", params=DACS)
def dacs(request):
    original = build_dac(request.param)
    port = to_hub(original)
    return wrap_dac("dac:test", None, original, 3), port


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 30_000), st.integers(1, 2))
def test_dac_is_its_port(dacs, num_samples, batch):
    original, model = dacs
    port = HubDac(original.info, model)
    codes = assert_same(original, port, noise(batch, 1, num_samples))
    assert codes.shape == (batch, 3, original.num_frames(num_samples))
    # The package's own way, which pads to the hop too.
    audio = noise(batch, 1, num_samples)
    with torch.no_grad():
        expected = original.model(audio, original.sample_rate)
    assert torch.equal(codes, expected["codes"])
    missing = num_samples - expected["audio"].shape[-1]  # the package comes out short with odd strides
    assert 0 <= missing < original.hop_length
    decoded = original.decode(codes, num_samples)[..., : num_samples - missing]
    torch.testing.assert_close(decoded, expected["audio"], rtol=0, atol=1e-5)


def test_dac_codes_vary(dacs):
    codes = dacs[0].encode(noise(1, 1, 30_000))
    assert min(len(book.unique()) for book in codes[0]) > 4
    assert dacs[0].chunking == HubDac(dacs[0].info, dacs[1]).chunking


# --- where weights come from


@pytest.fixture
def home(monkeypatch, tmp_path):
    """An empty home folder, and two small models in the place of the published ones."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setitem(
        RELEASES,
        "encodec:24khz",
        dataclasses.replace(
            RELEASES["encodec:24khz"], build=lambda: build_encodec("24khz"), url="http://127.0.0.1:9/a.th"
        ),
    )
    monkeypatch.setitem(
        RELEASES,
        "dac:16khz",
        dataclasses.replace(
            RELEASES["dac:16khz"], build=lambda: build_dac("16khz"), url="http://127.0.0.1:9/b.pth"
        ),
    )
    return tmp_path


def dac_file(home):
    return home / ".cache/descript/dac/weights_16khz_8kbps_0.0.5.pth"


def put_dac(path, **changes):
    path.parent.mkdir(parents=True, exist_ok=True)
    state = build_dac("16khz").state_dict() | changes
    torch.save({"state_dict": state, "metadata": {"kwargs": {"n_codebooks": 3}}}, path)


def sentence(id, **options):
    with pytest.raises(UserError) as caught:
        load_codec(id, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_addresses_and_the_folders_are_the_packages(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    asked = []

    def get(url, **_):
        asked.append(url)
        raise ConnectionError

    monkeypatch.setattr("requests.get", get)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", get)
    for rate in ("16khz", "24khz", "44khz"):
        release = RELEASES[f"dac:{rate}"]
        with pytest.raises(ConnectionError):
            dac.utils.download(model_type=rate)
        assert asked.pop() == release.url
        # The package makes its folder, and would take a file of that name from it.
        (release.folder() / release.file).touch()
        assert dac.utils.download(model_type=rate) == release.folder() / release.file
    for rate in ("24khz", "48khz"):
        release = RELEASES[f"encodec:{rate}"]
        with pytest.raises(ConnectionError):
            getattr(encodec.EncodecModel, f"encodec_model_{rate}")()
        assert asked.pop() == release.url
        assert release.url.endswith(f"/{release.file}")
        assert release.file == f"encodec_{rate}-{release.sha256}.th"


def test_the_package_finds_encodec_where_we_put_it(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    release = RELEASES["encodec:48khz"]
    release.folder().mkdir(parents=True)
    torch.save({"a": torch.ones(2)}, release.folder() / release.file)
    assert torch.equal(torch.hub.load_state_dict_from_url(release.url)["a"], torch.ones(2))


@pytest.mark.parametrize(
    ("id", "expected"),
    [("dac:16khz", (16000, 320, 12)), ("dac:24khz", (24000, 320, 32)), ("dac:44khz", (44100, 512, 9))],
)
def test_the_published_sizes_of_dac(id, expected):
    with torch.device("meta"):
        model = RELEASES[id].build()
    assert (model.sample_rate, int(model.hop_length), model.n_codebooks) == expected
    assert (model.latent_dim, model.codebook_size, model.codebook_dim) == (1024, 1024, 8)


def test_a_file_that_the_package_has_is_used(home):
    put_dac(dac_file(home))
    codec = load_codec("dac:16khz", num_codebooks=2)
    assert (codec.info.id, codec.num_codebooks, len(codec.info.revision)) == ("dac:16khz", 2, 12)
    assert set(codec.info.versions) == {"torch", "transformers", "descript-audio-codec"}
    assert not codec.training
    assert {p.requires_grad for p in codec.parameters()} == {False}
    audio = noise(1, 1, 5000)
    expected = wrap_dac("dac:test", None, build_dac("16khz"), 3).encode(audio)
    assert torch.equal(codec.encode(audio), expected[:, :2])
    assert load_codec("dac:16khz").num_codebooks == 3


def test_the_sections_of_a_recipe(home, monkeypatch):
    put_dac(dac_file(home))
    section = schema_codecs.OriginalDacCodec(
        kind="dac_original", id="dac:16khz", num_codebooks=1, stereo=True
    )
    assert load_codec_from_config(section).num_codebooks == 2
    release = RELEASES["encodec:24khz"]
    path = release.folder() / release.file
    path.parent.mkdir(parents=True)
    torch.save(build_encodec("24khz").state_dict(), path)
    monkeypatch.setitem(RELEASES, "encodec:24khz", dataclasses.replace(release, sha256=None))
    section = schema_codecs.OriginalEncodecCodec(
        kind="encodec_original", id="encodec:24khz", bandwidth_kbps=2.4
    )
    assert load_codec_from_config(section).num_codebooks == 4


class Server(http.server.BaseHTTPRequestHandler):
    """Serves `body`, and promises `promised` bytes."""

    body, promised = b"", 0

    def do_GET(self):
        self.send_response(200 if self.path == "/there" else 404)
        self.send_header("Content-Length", str(self.promised))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_):
        pass


@pytest.fixture
def serve(monkeypatch):
    """`serve(id, body, promised)`: the weights of `id` are at an address of this machine."""
    server = http.server.HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

    def start(id, body, promised=None, name="there"):
        monkeypatch.setattr(Server, "body", body)
        monkeypatch.setattr(Server, "promised", len(body) if promised is None else promised)
        url = f"http://127.0.0.1:{server.server_port}/{name}"
        monkeypatch.setitem(RELEASES, id, dataclasses.replace(RELEASES[id], url=url))
        return url

    yield start
    server.shutdown()
    server.server_close()


def test_weights_are_downloaded_once(home, serve, capsys):
    put_dac(home / "published.pth")
    url = serve("dac:16khz", (home / "published.pth").read_bytes())
    first = load_codec("dac:16khz")
    assert f"downloading {url} to {dac_file(home)}" in capsys.readouterr().err
    assert dac_file(home).read_bytes() == Server.body
    serve("dac:16khz", b"nothing any more")
    assert load_codec("dac:16khz").info == first.info
    assert "downloading" not in capsys.readouterr().err


@pytest.mark.parametrize(("promised", "name"), [(10**6, "there"), (None, "gone")])
def test_a_download_that_fails_leaves_nothing(home, serve, promised, name):
    url = serve("dac:16khz", b"half", promised, name)
    told = sentence("dac:16khz")
    assert told.startswith(
        "codec dac:16khz has no weights on this machine, and they cannot be downloaded now ("
    )
    assert told.endswith(f"): download {url} where there is a network, and put it at {dac_file(home)}")
    assert [path for path in home.rglob("*") if path.is_file()] == []


def test_no_network(home):
    assert "Connection refused" in sentence("dac:16khz")
    told = sentence("encodec:24khz", bandwidth_kbps=1.2)
    path = home / "torch/hub/checkpoints/encodec_24khz-d7cc33bc.th"
    assert told.endswith(f"download http://127.0.0.1:9/a.th where there is a network, and put it at {path}")


def test_offline_nothing_is_tried(home, serve, monkeypatch):
    put_dac(home / "published.pth")
    serve("dac:16khz", (home / "published.pth").read_bytes())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "cannot be downloaded now (HF_HUB_OFFLINE is set): download http" in sentence("dac:16khz")
    assert not dac_file(home).exists()


def test_damaged_weights(home):
    put_dac(dac_file(home))
    whole = dac_file(home).read_bytes()
    damaged = (
        f"the weights of codec dac:16khz are damaged: delete {dac_file(home)}, and they are downloaded again"
    )
    for content in (whole[: len(whole) // 2], b"", b"<html>not found</html>"):
        dac_file(home).write_bytes(content)
        assert sentence("dac:16khz") == damaged
    for value in ({"metadata": 1}, [1], torch.ones(3)):
        torch.save(value, dac_file(home))
        assert sentence("dac:16khz") == damaged


def test_weights_with_another_hash_than_their_name_tells(home):
    release = RELEASES["encodec:24khz"]
    path = release.folder() / release.file
    path.parent.mkdir(parents=True)
    torch.save(build_encodec("24khz").state_dict(), path)
    assert sentence("encodec:24khz", bandwidth_kbps=1.2) == (
        f"the weights of codec encodec:24khz are damaged, their hash is not that of {release.url}:"
        f" delete {path}, and they are downloaded again"
    )


class Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_code_in_the_weights_is_not_run(home):
    put_dac(dac_file(home))
    state = torch.load(dac_file(home), weights_only=True)
    torch.save(state | {"metadata": Attack(home / "run")}, dac_file(home))
    assert "are damaged" in sentence("dac:16khz")
    assert not (home / "run").exists()


def test_weights_that_do_not_fit(home):
    put_dac(dac_file(home), colour=torch.ones(1), **{"encoder.block.0.bias": torch.ones(7)})
    assert sentence("dac:16khz") == (
        "the weights of codec dac:16khz do not fit the package; not expected: colour;"
        " of another shape: encoder.block.0.bias"
    )


def test_settings_come_before_the_download(home):
    assert sentence("dac:16khz", num_codebooks=4) == (
        "codec dac:16khz has 3 codebooks: num_codebooks cannot be 4"
    )
    assert sentence("dac:16khz", bandwidth_kbps=6.0) == (
        "codec dac:16khz is a DAC: choose num_codebooks, not bandwidth_kbps"
    )
    assert sentence("encodec:24khz") == (
        "codec encodec:24khz: bandwidth_kbps must be one of [0.6, 1.2, 2.4], not None"
    )
    assert sentence("encodec:24khz", num_codebooks=4) == (
        "codec encodec:24khz is an EnCodec: choose bandwidth_kbps, not num_codebooks"
    )
    assert "remove revision" in sentence("dac:16khz", revision="main")


def test_a_model_that_nobody_published():
    assert sentence("encodec:32khz", bandwidth_kbps=2.2) == (
        "there is no codec encodec:32khz: choose one of"
        " encodec:24khz, encodec:48khz, dac:16khz, dac:24khz, dac:44khz"
    )
