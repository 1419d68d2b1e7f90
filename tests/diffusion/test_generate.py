"""Generation: guidance, windows, known parts, and the command line.

Shapes: B batch, D latent width, T frames.
"""

import dataclasses
import json
from itertools import pairwise

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from tokkata.core.audio import load_audio
from tokkata.core.conditions import Condition, Conditions
from tokkata.core.errors import UserError
from tokkata.core.files import read_jsonl
from tokkata.diffusion.clips import check_codec
from tokkata.diffusion.diffusion_model import DiffusionConfig, DiffusionModel
from tokkata.diffusion.generate import From, Settings, generate, guide, windows_of
from tokkata.diffusion.networks.dit import DiTConfig
from tokkata.diffusion.networks.unet import UNet1dConfig
from tokkata.diffusion.objective import EDM, Flow, Velocity
from tokkata.tokenize.codec import load_codec

CONDITIONS = Conditions(
    (
        Condition("pitch", "label", values=(60, 62, 64)),
        Condition("seconds_start", "number", width=4, maximum=2.0),
        Condition("seconds_total", "number", width=4, maximum=2.0),
    )
)
WINDOW = 25


@pytest.fixture(scope="module")
def codec(tiny_codec):
    return load_codec(str(tiny_codec), num_codebooks=4)


def make(codec, objective=None, *, mask_conditions=False, kind="dit", conditions=CONDITIONS):
    """A model with random weights everywhere, over the codec's latents."""
    torch.manual_seed(0)
    dim = codec.info.latent_dim
    shape = {
        "latent_dim": dim,
        "in_dim": 2 * dim + 1 if mask_conditions else dim,
        "max_frames": WINDOW,
        "conditions": conditions,
        "num_heads": 2,
    }
    network = (
        DiTConfig(dim=16, num_layers=1, **shape) if kind == "dit" else UNet1dConfig(channels=(8, 16), **shape)
    )
    info = dataclasses.replace(codec.info, latents="latents", latent_mean=[0.5] * dim, latent_std=[2.0] * dim)
    model = DiffusionModel(
        DiffusionConfig(
            network=network,
            objective=objective or Flow(),
            codec=dataclasses.asdict(info),
            mask_conditions=mask_conditions,
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


TOLD = {"pitch": [60, 64, None], "seconds_start": [0, 0, 0], "seconds_total": [0.5, 0.5, 1]}


# --------------------------------------------------------------------------------------------------- guidance


@pytest.mark.parametrize("kind", ["dit", "unet"])
@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_guidance_in_one_batch_is_that_of_two_passes(codec, kind, rescale, monkeypatch):
    model = make(codec, kind=kind)
    given = CONDITIONS.encode(TOLD)
    settings = Settings(steps=1, cfg_scale=3.0, cfg_rescale=rescale)
    passes = []
    predict = model.network.predict
    monkeypatch.setattr(
        model.network, "predict", lambda *a, **k: passes.append(len(a[0])) or predict(*a, **k)
    )
    latents = generate(model, 10, conditions=given, settings=settings, seed=1)
    assert passes == [6]

    noise = model.normalise(generate(make_silent(model), 10, conditions=given, settings=Settings(1), seed=1))
    with torch.no_grad():
        ones = torch.ones(3)
        conditional, hidden = model.network(noise, ones, given), model.network(noise, ones, {})
        output = hidden + 3 * (conditional - hidden)
        if rescale:
            growth = torch.stack([c.std() / o.std() for c, o in zip(conditional, output, strict=True)])
            output = rescale * output * growth[:, None, None] + (1 - rescale) * output
    torch.testing.assert_close(latents, model.denormalise(noise - output), atol=1e-4, rtol=1e-4)


def make_silent(model):
    """The same but for a network that predicts 0, so that the noise stays as it was."""
    import copy

    silent = copy.deepcopy(model)
    silent.network.predict = lambda x, *_, **__: torch.zeros_like(x)
    return silent


def test_guidance_only_in_its_interval(codec, monkeypatch):
    model = make(codec)
    passes = []
    predict = model.network.predict
    monkeypatch.setattr(
        model.network,
        "predict",
        lambda x, t, *a, **k: passes.append((len(x), float(t[0]))) or predict(x, t, *a, **k),
    )
    settings = Settings(steps=10, cfg_scale=2.0, cfg_interval=(0.25, 0.75))
    generate(model, 10, conditions=TOLD, settings=settings)
    assert len(passes) == 10
    assert all((rows == 6) == (0.25 < time <= 0.75) for rows, time in passes)


def test_rescaled_guidance_has_the_conditional_deviation():
    conditional, hidden = torch.randn(2, 3, 50), torch.randn(2, 3, 50)
    guided = guide(conditional, hidden, 5.0, 1.0)
    torch.testing.assert_close(guided.std((1, 2)), conditional.std((1, 2)))
    torch.testing.assert_close(guide(conditional, hidden, 1.0, 0.0), conditional)


# ---------------------------------------------------------------------------------------------------- windows


def test_windows_cover_a_clip_and_end_with_it():
    for num_frames in range(26, 140):
        for overlap in (1, 5, 24):
            windows = windows_of(num_frames, WINDOW, overlap, 50.0)
            assert windows[0].start == 0
            assert windows[-1].stop == num_frames
            for one, following in pairwise(windows):
                assert one.stop - following.start >= overlap
                assert following.stop - following.start == WINDOW
    assert windows_of(25, WINDOW, None, 50.0) == [slice(0, 25)]


@pytest.mark.parametrize("objective", [Flow(), Velocity(), EDM()], ids=lambda one: one.kind)
def test_windows_join_without_a_seam(codec, objective, monkeypatch):
    """Where every frame is predicted by itself, the windows' join is the clip in one piece."""
    model = make(codec, objective)

    def frame_by_frame(x: Tensor, time: Tensor, *_, **__) -> Tensor:
        return 0.3 * x + time[:, None, None] * x.flip(1).tanh()

    monkeypatch.setattr(model.network, "predict", frame_by_frame)
    joined = generate(model, 90, batch_size=2, settings=Settings(4), overlap_frames=6, seed=3)
    model.network.config = dataclasses.replace(model.network.config, max_frames=90)
    whole = generate(model, 90, batch_size=2, settings=Settings(4), seed=3)
    torch.testing.assert_close(joined, whole, atol=1e-4, rtol=1e-4)


def test_windows_know_where_they_begin(codec, monkeypatch):
    model = make(codec)
    seen = []
    condition = model.network.condition
    monkeypatch.setattr(
        model.network,
        "condition",
        lambda given, *a, **k: seen.append(given["seconds_start"].values) or condition(given, *a, **k),
    )
    told = {name: values[:2] for name, values in TOLD.items()}
    generate(model, 45, conditions=told, settings=Settings(1), overlap_frames=5)
    assert seen[0].flatten().tolist() == pytest.approx([0, 0, 0.4, 0.4])


# ---------------------------------------------------------------------------------------- seeds, known frames


@pytest.mark.parametrize("kind", ["dit", "unet"])
def test_a_clip_does_not_depend_on_its_batch(codec, kind):
    model = make(codec, kind=kind)
    settings = Settings(steps=3, cfg_scale=2.0)
    given = CONDITIONS.encode(TOLD)
    together = generate(model, 12, conditions=given, settings=settings, seed=5)
    for clip in range(3):
        one = {name: values[clip : clip + 1] for name, values in TOLD.items()}
        alone = (
            generate(model, 12, conditions=one, settings=settings, seed=5, first_clip=clip)
            if clip < 2
            else None
        )
        if alone is not None:
            torch.testing.assert_close(together[clip], alone[0], atol=1e-4, rtol=1e-4)
    assert torch.equal(together, generate(model, 12, conditions=given, settings=settings, seed=5))


@pytest.mark.parametrize("mask_conditions", [False, True])
def test_what_is_known_stays_bit_for_bit(codec, mask_conditions, monkeypatch):
    model = make(codec, mask_conditions=mask_conditions)
    latents = torch.randn(codec.info.latent_dim, 12)
    known = torch.tensor([True] * 5 + [False] * 4 + [True] * 3)
    seen = []
    predict = model.network.predict
    monkeypatch.setattr(model.network, "predict", lambda x, *a, **k: seen.append(x) or predict(x, *a, **k))
    found = generate(model, 12, batch_size=2, settings=Settings(3), begin=From(latents, known=known))
    assert torch.equal(found[..., known], latents[:, known].expand(2, -1, -1))
    assert not torch.isclose(found[0, :, ~known], latents[:, ~known]).all()
    if mask_conditions:  # the network is told them without noise, and where they are
        dim = codec.info.latent_dim
        told = model.normalise(latents[None])[0] * known
        for x in seen:
            torch.testing.assert_close(x[0, dim : 2 * dim], told)
            assert torch.equal(x[0, -1], known.float())


def test_the_callback_sees_estimates_in_the_codecs_scale(codec):
    model, seen = make(codec), []
    found = generate(model, 8, settings=Settings(3), callback=lambda step, x0: seen.append((step, x0)))
    assert [step for step, _ in seen] == [0, 1, 2]
    torch.testing.assert_close(seen[-1][1], found)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"num_frames": 26},
            r"0.52 s is longer than the model's 0.5 s: ask for a shorter clip, or for windows",
        ),
        ({"num_frames": 26, "overlap_frames": 25}, "cannot share 0.5 s: choose an overlap"),
        (
            {"num_frames": 5, "settings": Settings(3, cfg_scale=2.0)},
            "cfg_scale steers towards what the model is",
        ),
        ({"num_frames": 5, "begin": From(torch.zeros(3, 5))}, r"must be \[\d+, 5\] for this model and these"),
        ({"num_frames": 5, "settings": Settings(0)}, "0 steps: at least 1 is needed"),
        ({"num_frames": 5, "conditions": {"pitch": [61]}}, "unknown value 61 for label 'pitch'"),
    ],
)
def test_what_cannot_be_made_is_one_sentence(codec, arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        generate(make(codec), **arguments)
    assert "\n" not in str(caught.value)


def test_another_codec_and_another_width_are_refused(codec):
    model = make(codec)
    other = load_codec("pocket")
    with pytest.raises(UserError, match="the model's latents are of another codec: codec id is pocket, but"):
        check_codec(model, other)
    with pytest.raises(UserError, match=r"latents have \d+ numbers a frame for the model, 3 for its codec"):
        dataclasses.replace(model.config, codec=dict(model.config.codec) | {"latent_dim": 3})


# ------------------------------------------------------------------------------------------- the command line


@pytest.fixture(scope="module")
def folder(codec, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "notes" / "model"
    make(codec).save_pretrained(path)
    return path


def test_a_folder_is_all_that_it_needs(tokkata, folder, codec, tmp_path):
    out = tmp_path / "out"
    told = tokkata(
        *("generate", folder, "--num", 3, "--steps", 2, "--sampler", "heun", "--label", "pitch=60,64"),
        *("--cfg-scale", 2, "--seed", 7, "--batch-size", 2, "--duration", 0.3, "--out", out),
    )
    assert told.returncode == 0, told.stderr
    rows = read_jsonl(out / "samples.jsonl")
    assert [row["labels"]["pitch"] for row in rows] == [60, 64, 60]
    assert {row["seed"] for row in rows} == {7}
    for row in rows:
        info = soundfile.info(out / row["file"])
        assert (info.frames, info.samplerate) == (4800, 16000)


def test_long_clips_need_windows(tokkata, folder, tmp_path):
    told = tokkata("generate", folder, "--duration", 2, "--steps", 1, "--out", tmp_path / "a")
    assert told.returncode == 2
    assert told.stderr.strip().endswith(
        "2 s are more than the 0.5 s that this model was trained on: lower --duration, or say --overlap"
        " SECONDS for windows that overlap"
    )
    told = tokkata(
        "generate", folder, "--duration", 2, "--overlap", 0.1, "--steps", 1, "--out", tmp_path / "a"
    )
    assert told.returncode == 0, told.stderr
    assert soundfile.info(tmp_path / "a" / "00000.wav").frames == 32000


@pytest.fixture
def recording(tmp_path):
    times = np.arange(8000) / 16000
    soundfile.write(tmp_path / "a.wav", 0.4 * np.sin(2 * np.pi * 440 * times), 16000)
    return tmp_path / "a.wav"


def test_a_part_is_made_anew_and_the_rest_kept(tokkata, folder, codec, recording, tmp_path):
    out = tmp_path / "out"
    told = tokkata(
        "generate", folder, "--init-audio", recording, "--inpaint", "0.46:0.5", "--steps", 2, "--out", out
    )
    assert told.returncode == 0, told.stderr
    (row,) = read_jsonl(out / "samples.jsonl")
    assert (row["init_audio"], row["inpaint"], row["duration_s"]) == (str(recording), "0.46:0.5", 0.5)
    found = load_audio(out / "00000.wav", 16000, 1)[0]
    audio = torch.from_numpy(load_audio(recording, 16000, 1))[None]
    expected = codec.decode_latents(codec.encode_latents(audio), 8000)[0, 0].numpy()
    expected = expected.clip(-1, 1)
    # Before the part, but for what the decoder sees of it.
    reach = codec.chunking.decoder_context * codec.hop_length
    start = 7360 - reach
    assert start > 500
    np.testing.assert_allclose(found[:start], expected[:start], atol=2 / 32768)


def test_a_recording_is_varied(tokkata, folder, recording, tmp_path):
    told = tokkata(
        "generate",
        folder,
        "--init-audio",
        recording,
        "--strength",
        0.4,
        "--steps",
        2,
        "--out",
        tmp_path / "b",
    )
    assert told.returncode == 0, told.stderr
    assert json.loads((tmp_path / "b" / "samples.jsonl").read_text())["strength"] == 0.4


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--steps", 0), "--steps 0: at least 1 is needed"),
        (("--sampler", "rk4"), "--sampler rk4: choose ddpm, ddim, dpm++2m, dpm++2m-sde, euler, heun"),
        (("--sampler", "ddim"), "the sampler ddim does not go with the objective flow, which has euler"),
        (("--inpaint", "0:1"), "--inpaint says what becomes of --init-audio FILE: give that too"),
        (("--init-audio", "A", "--inpaint", "0.2:0.9"), "--inpaint 0.2:0.9 lies outside the clip, which is"),
        (("--init-audio", "A", "--inpaint", "x"), "--inpaint x: FROM:TO in seconds is needed"),
        (("--init-audio", "A", "--strength", 2), "strength 2 must be above 0 and at most 1"),
        (
            ("--init-audio", "A", "--duration", 0.6, "--overlap", 0.1),
            "lasts 0.5 s, and 0.6 s of it are needed",
        ),
        (("--init-audio", "none.wav"), "--init-audio: there is no file none.wav"),
        (("--top-k", 5), "is a diffusion model, which has no --top-k: see tokkata generate --help"),
        (("--label", "pitch=61"), "unknown value '61' for label 'pitch': known are 60, 62, 64"),
    ],
)
def test_mistakes_are_one_sentence(tokkata, folder, recording, tmp_path, options, sentence):
    words = [recording if word == "A" else word for word in options]
    told = tokkata("generate", folder, *words, "--out", tmp_path / "out")
    assert told.returncode == 2, told.stderr
    assert sentence in told.stderr
    assert len(told.stderr.strip().splitlines()) == 1
