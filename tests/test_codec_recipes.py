"""The recipes that train RVQ codecs: what their headers promise, and that they run to a codec that loads.

Shapes: B batch, N samples, K codebooks, T frames.
"""

import numpy as np
import pytest
import torch

from tokkata.core.audio import write_wav
from tokkata.core.files import read_jsonl
from tokkata.core.recipe import load_recipe
from tokkata.tests.test_recipes import ROOT, close, commands, products
from tokkata.tokenize.codec import load_codec
from tokkata.tokenize.families.codec_encodec import known_bandwidths
from tokkata.tokenize.training.prepare import prepare
from tokkata.tokenize.training.train_codec import train_codec

NAMES = ("codec-dac-44khz", "codec-encodec-24khz", "finetune-dac", "codec-pocket")
SMALL_DISCRIMINATORS = (
    "model.adversarial.periods=[]",
    "model.adversarial.fft_sizes=[64]",
    "model.adversarial.bands=[[0.0, 1.0]]",
    "model.adversarial.start_step=1",
)
TINY = (
    "train.steps=2",
    "train.batch_size=2",
    "train.crop_s=0.1",
    "train.validate_every=2",
    "train.save_every=2",
    "train.log_every=1",
)


@pytest.fixture
def sounds(tmp_path):
    """A folder of three files."""
    for number in range(3):
        times = np.arange(22050) / 44100
        write_wav(
            tmp_path / "sounds" / f"{number}.wav", 0.3 * np.sin(600 * (number + 1) * times)[None], 44100
        )
    return f"data.root={tmp_path / 'sounds'}"


@pytest.fixture
def own_settings(sounds, tmp_path):
    """What makes each recipe small, by name."""
    from tokkata.core.schema import DacModel
    from tokkata.tokenize.families.codec_dac import build_original, save_dac

    shape = {"encoder_dim": 4, "encoder_rates": [4, 8], "decoder_dim": 16, "num_codebooks": 2}
    torch.manual_seed(0)
    save_dac(
        build_original(DacModel(kind="dac", sample_rate_hz=44100, **shape)), tmp_path / "source", "float32"
    )
    of_shape = tuple(f"model.{name}={value}" for name, value in shape.items())
    return {
        "codec-dac-44khz": (sounds, *of_shape),
        "codec-encodec-24khz": (
            sounds,
            "model.num_filters=4",
            "model.upsampling_ratios=[8, 4]",
            "model.hidden_size=16",
            "model.codebook_size=64",
            "model.bandwidths_kbps=[4.5, 9.0]",
        ),
        "finetune-dac": (sounds, f"model.source={tmp_path / 'source'}"),
        "codec-pocket": ("data={kind: synth, num_clips: 12, duration_s: 0.3}",),
    }


@pytest.mark.parametrize("name", NAMES)
def test_from_audio_to_a_codec(name, own_settings, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path = ROOT / "recipes" / f"{name}.yaml"
    recipe = load_recipe(path, [*own_settings[name], *SMALL_DISCRIMINATORS, *TINY, f"runs_dir={tmp_path}"])
    prepare(recipe)
    train_codec(recipe)
    bandwidths = known_bandwidths(recipe.folder / "model")
    codec = load_codec(str(recipe.folder / "model"), bandwidth_kbps=bandwidths[-1] if bandwidths else None)
    assert codec.sample_rate == recipe.model.sample_rate_hz
    audio = torch.zeros(1, 1, 4 * codec.hop_length)
    assert codec.decode(codec.encode(audio)).shape == audio.shape
    rows = [row for row in read_jsonl(recipe.folder / "logs" / "train.jsonl") if "lr" in row]
    assert [("discriminator/loss" in row) for row in rows] == [False, True]


@pytest.mark.parametrize("name", NAMES)
def test_a_headers_commands_can_be_given(name, tokkata, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    given = commands(name)
    assert given
    for line in given:
        if line[0] == f"recipes/{name}.yaml":
            result = tokkata("run", *line, f"runs_dir={tmp_path}", "--dry-run")
            assert result.returncode == 0, result.stderr
        else:
            assert line[:2] in (["tokkata", "codec"], ["tokkata", "run"])
            assert line[-1] == f"recipes/{name}.yaml"


@pytest.mark.parametrize("name", NAMES)
def test_a_headers_arithmetic(name):
    found = products(name)
    assert found
    for factors, result in found:
        assert close(np.prod(factors), result)


@pytest.mark.parametrize("name", NAMES)
def test_a_codec_is_not_scored_in_an_embedding_of_its_own(name):
    assert load_recipe(ROOT / "recipes" / f"{name}.yaml").eval.embedding == "logmel"


def test_published_encodec():
    """A few of audiocraft's config/solver/compression/default.yaml, and the paper's sizes."""
    recipe = load_recipe(ROOT / "recipes" / "codec-encodec-24khz.yaml")
    model, adversarial = recipe.model, recipe.model.adversarial
    assert (adversarial.weight, adversarial.feature_weight) == (4, 4)
    assert (model.waveform_weight, model.mel_weight) == (0.1, 2)
    assert np.prod(model.upsampling_ratios) == 320
    even = recipe.train.batch_size * recipe.train.crop_s * 75 / model.codebook_size
    assert close(model.dead_codes.below * even, 2)


def test_published_hyperparameters():
    """Those of the package's conf/final/44khz.yml, which its installation does not have."""
    model = load_recipe(ROOT / "recipes" / "codec-dac-44khz.yaml").model
    assert (model.mel_weight, model.adversarial.feature_weight, model.adversarial.weight) == (15, 2, 1)
    assert (model.codebook_weight, model.commitment_weight) == (1, 0.25)
    assert np.prod(model.encoder_rates) == 512


def test_the_pocket_recipes_steps_are_those_of_its_header():
    recipe = load_recipe(ROOT / "recipes" / "codec-pocket.yaml")
    ((steps, _), _), *others = products("codec-pocket")
    assert (recipe.train.steps, others) == (steps, [])
