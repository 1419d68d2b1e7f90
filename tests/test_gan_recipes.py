"""The recipes of adversarial models: each runs from audio to report, with nothing changed but sizes and
places, its networks fit its images at their full size, and the figures of its header hold.
"""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from tokkata.core.audio import write_wav
from tokkata.core.conditions import Condition, Conditions
from tokkata.core.recipe import load_recipe
from tokkata.core.run import run_stage
from tokkata.gan.build import make_discriminator, make_generator
from tokkata.gan.gan_model import GanModel
from tokkata.gan.growth import level_of
from tokkata.gan.losses import make_game
from tokkata.gan.networks.family import Shape
from tokkata.gan.prepare import prepare
from tokkata.gan.representation import make_representation
from tokkata.tests.eval.made_classifier import save_classifier
from tokkata.tests.made_networks import save_oobleck
from tokkata.tests.test_recipes import make_corpus
from tokkata.tokenize.store import TokenStore

RECIPES = Path(__file__).parents[1] / "recipes"
PUBLISHED = {
    "nsynth-gansynth": "gansynth",
    "drums-drumgan": "drumgan",
    "oneshots-wavegan": "wavegan",
    "oneshots-specgan": "specgan",
    "nsynth-darkgan": "darkgan",
    "nsynth-vqcpc-gan": "vqcpc-gan",
}
"""By name, and which preset for CPUs it has."""
PRESETS = [f"notes-{preset}" for preset in [*PUBLISHED.values(), "musika"]]


def recipe_of(name):
    return load_recipe(RECIPES / f"{name}.yaml")


def header(name):
    """The comment lines of a recipe, without their sign."""
    lines = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    return [line[1:] for line in lines[3:] if line.startswith("#")]


# ----------------------------------------------------------------------------------------------- full sizes

LABELS = {
    "pitch": Condition("pitch", "label", values=tuple(range(112))),
    "instrument_family": Condition("instrument_family", "label", values=tuple("abcdefghijk")),
}
HEARD = {
    "drumgan": [Condition(f"feature {i}", "number", width=2, maximum=1.0) for i in range(7)],
    "darkgan": [Condition(f"tag {i}", "number", width=2, maximum=1.0) for i in range(527)],
    "vqcpc_gan": [Condition("tokens", "sequence", width=16)],
}
"""By kind; as many values as NSynth has in training, and as many tags as AudioSet."""
IMAGES = {
    "nsynth-gansynth": Shape(2, 1024, 128),
    "drums-drumgan": Shape(2, 512, 64),
    "oneshots-wavegan": Shape(1, None, 16384),
    "oneshots-specgan": Shape(1, 128, 128),
    "nsynth-darkgan": Shape(2, 1024, 32),
    "nsynth-vqcpc-gan": Shape(2, 1024, 32),
}


def image_shape(recipe):
    """Of the images that a recipe trains on; latents are Stable Audio Open's or the pocket VAE's."""
    if recipe.model.uses_codec:
        latent_dim, frame_rate = {"oobleck": (64, 44100 / 2048), "pocket_vae": (32, 50.0)}[recipe.codec.kind]
        return Shape(latent_dim, None, round(recipe.train.crop_s * frame_rate))
    num_samples = round(recipe.train.crop_s * recipe.codec.sample_rate_hz)
    representation = make_representation(
        recipe.model.representation, recipe.codec.sample_rate_hz, num_samples
    )
    return representation.shape(num_samples)


def networks(name):
    """Generator and discriminator in their full size, without numbers in them."""
    recipe = recipe_of(name)
    labels = [LABELS[label] for label in recipe.model.conditions]
    told = Conditions((*labels, *HEARD.get(recipe.model.kind, [])))
    shape = image_shape(recipe)
    with torch.device("meta"):
        return [make(recipe.model, shape, told) for make in (make_generator, make_discriminator)]


@pytest.mark.parametrize("name", [*PUBLISHED, "maestro-musika", *PRESETS])
def test_networks_fit_the_images(name):
    generator, discriminator = networks(name)
    shape = image_shape(recipe_of(name))
    assert shape == IMAGES.get(name, shape)
    with torch.device("meta"):
        noise = torch.zeros(2, *generator.noise_shape(shape.num_frames))
        for level in range(generator.num_levels):
            image = generator(noise, {}, float(level))
            verdict = discriminator(image, {}, torch.zeros(2, discriminator.num_draws), float(level))
            assert all(scores.shape[0] == 2 for scores in verdict.scores)
    assert image.shape == (2, *shape.of())


@dataclass(frozen=True)
class Step:
    """What a step of training takes."""

    operations_a_clip: float
    kept_bytes: int


class Operations(TorchDispatchMode):
    """Counts multiplications and additions of convolutions and matrix products."""

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        count = flop_registry.get(function._overloadpacket)
        self.total += count(*args, **(kwargs or {}), out_val=result) if count else 0
        return result


def step(name, level):
    """Of a step of training, by the networks alone: operations a clip, the generator's share as it has steps;
    and bytes that the discriminator keeps for its backward pass, its weights aside."""
    recipe = recipe_of(name)
    size = recipe.train.batch_size
    generator, discriminator = networks(name)
    game = make_game(recipe.model.loss)
    kept, weights = {}, {p.untyped_storage() for p in discriminator.parameters()}

    def keep(tensor):
        kept[tensor.untyped_storage()] = tensor.untyped_storage().nbytes()
        return tensor

    num_frames = image_shape(recipe).num_frames
    with torch.device("meta"):
        noise = torch.zeros(size, *generator.noise_shape(num_frames))
        draws = torch.zeros(size, discriminator.num_draws)
        with Operations() as judged:
            with torch.no_grad():
                made = generator(noise, {}, level)
            mixture = torch.zeros_like(made).requires_grad_()
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                real, fake, mixed = (discriminator(one, {}, draws, level) for one in (made, made, mixture))
                terms = [game.discriminator(real.scores, fake.scores)]
                terms.append(game.gradient_penalty(mixed.scores, mixture))
            (sum(terms) + sum(head.sum() for head in real.heads.values())).backward()
        discriminator.requires_grad_(False)
        with Operations() as generated:
            verdict = discriminator(generator(noise, {}, level), {}, draws, level)
            (game.generator(verdict.scores) + sum(h.sum() for h in verdict.heads.values())).backward()
    return Step(
        (judged.total + generated.total / recipe.model.discriminator_steps) / size,
        sum(num_bytes for storage, num_bytes in kept.items() if storage not in weights),
    )


def clips_by_level(recipe, num_levels):
    """How many clips a growing network sees with each number of resolutions."""
    if num_levels == 1:
        return [recipe.train.steps * recipe.train.batch_size]
    found, phase = [0] * num_levels, recipe.model.images_per_phase
    num_clips = recipe.train.steps * recipe.train.batch_size
    for begin in range(0, 2 * num_levels * phase, phase):
        level = math.ceil(level_of(begin + phase // 2, num_levels, phase))
        last = begin + phase == 2 * num_levels * phase
        found[level] += max(0, (num_clips if last else min(num_clips, begin + phase)) - begin)
    return found


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_headers_figures_follow_from_the_recipe(name):
    recipe = recipe_of(name)
    text = " ".join(line.strip() for line in header(name))
    assert f"tokkata run recipes/notes-{PUBLISHED[name]}.yaml" in text
    assert recipe_of(f"notes-{PUBLISHED[name]}").model.kind == recipe.model.kind
    assert "Nobody has run this recipe" in text
    found = re.search(r"([\d.]+) M weights of the generator and ([\d.]+) M of the discriminator", text)
    sizes = [sum(p.numel() for p in network.parameters()) / 1e6 for network in networks(name)]
    assert [float(one) for one in found.groups()] == pytest.approx(sizes, abs=0.06)
    num_levels = networks(name)[0].num_levels
    clips = clips_by_level(recipe, num_levels)
    assert sum(clips) == recipe.train.steps * recipe.train.batch_size
    steps = [step(name, float(level)) for level in range(num_levels)]
    by_level = [one.operations_a_clip for one in steps]
    full = float(re.search(r"([\d.e]+) operations a clip and step", text)[1])
    in_all = float(re.search(r"([\d.e]+) in all", text)[1])
    assert full == pytest.approx(by_level[-1], rel=0.05)
    assert in_all == pytest.approx(sum(map(math.prod, zip(clips, by_level, strict=True))), rel=0.05)
    kept = float(re.search(r"keeps ([\d.]+) GB in float32", text)[1])
    assert kept == pytest.approx(steps[-1].kept_bytes / 1e9, rel=0.05)
    hours = float(
        re.search(r"at 10% of the 312e12/s of an A100's tensor cores, one of them takes ([\d.]+)", text)[1]
    )
    assert hours == pytest.approx(in_all / 31.2e12 / 3600, rel=0.05)
    products = re.findall(r"((?:[\d,]+ (?:[a-z]+ )?x )+[\d,]+ [a-z]+) = ([\d.]+) GB", text)
    assert products
    for factors, result in products:
        numbers = [int(number.replace(",", "")) for number in re.findall(r"[\d,]+", factors)]
        assert float(result) == pytest.approx(math.prod(numbers) / 1e9, rel=0.05)


# ------------------------------------------------------------------------------------- from audio to report

SHORT = (
    "train.steps=10",
    "train.batch_size=4",
    "train.log_every=1",
    "train.validate_every=5",
    "train.save_every=5",
    "train.precision='no'",
    "generate.num_clips=3",
    "generate.batch_size=2",
    "eval.embedding=logmel",
    "eval.num_players=1",
)
GROWN = ("model.noise_dim=4", "model.images_per_phase=3")
ENCODER = ("model.encoder={num_tokens: 4, dim: 8, num_mels: 8, num_negatives: 2, steps: 4}",)
SIZES = {
    "gansynth": GROWN,
    "drumgan": GROWN,
    "darkgan": GROWN,
    "vqcpc_gan": ("model.noise_dim=4", *ENCODER),
    "wavegan": ("model.channels=2", "model.discriminator_steps=2"),
    "specgan": ("model.channels=2", "model.discriminator_steps=2"),
    "musika": ("model.coordinate_dim=4", "model.style_dim=2", "model.anchor_frames=8"),
}
NOTES = (
    "data.num_clips=24",
    "data.duration_s=0.5",
    "data.pitch_max=50",
    "train.crop_s=0.512",
    "generate.duration_s=0.5",
)


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def one_shots(tmp_path):
    """Mono files of 0.4 s that die away, each with a partial and a hiss of its own."""
    times = np.arange(8820) / 22050
    for number in range(24):
        noise = np.random.default_rng(number).normal(0, 0.01 * number, len(times))
        tone = 0.3 * np.sin(2 * np.pi * 110 * 2 ** (number / 12) * times)
        write_wav(
            tmp_path / "one-shots" / f"{number:02d}.wav", ((tone + noise) * np.exp(-8 * times))[None], 22050
        )
    return tmp_path / "one-shots"


def run(name, tokkata, runs_dir, *settings):
    """All stages, and what they leave behind; the run's folder."""
    model = recipe_of(name).model
    small = list(SIZES[model.kind])
    if isinstance(getattr(model, "channels", None), list):
        small.append(f"model.channels={[4] * len(model.channels)}")
    path = RECIPES / f"{name}.yaml"
    given = [f"runs_dir={runs_dir}", *SHORT, *small, *settings]
    for stage in ("tokenize", "train", "generate", "eval"):
        if stage == "train" and model.kind in ("darkgan", "vqcpc_gan"):
            run_stage(load_recipe(path, given), "prepare", prepare)
        result = tokkata(stage, path, *given)
        assert result.returncode == 0, result.stderr
    folder = runs_dir / name
    store = TokenStore(folder / "tokens")
    assert (store.info.hop_length == 1) != model.uses_codec
    made = GanModel.from_pretrained(folder / "model")
    assert float(made.level) == made.generator.num_levels - 1
    log = [json.loads(line) for line in (folder / "logs" / "train.jsonl").read_text().splitlines()]
    numbers = [one for row in log for one in row.values() if isinstance(one, float)]
    assert numbers
    assert all(map(math.isfinite, numbers))
    lines = [json.loads(line) for line in (folder / "samples" / "samples.jsonl").read_text().splitlines()]
    assert len(lines) == 3
    for line in lines:
        info = soundfile.info(folder / "samples" / line["file"])
        assert info.samplerate == store.info.sample_rate
        assert info.frames == round(line["duration_s"] * info.samplerate)
    assert (folder / "samples" / "untrained" / "00002.wav").is_file()
    rows = json.loads((folder / "eval" / "scores.json").read_text())["rows"]
    assert {"reconstructed", "generated", "untrained"} <= {row["name"] for row in rows}
    assert all(math.isfinite(row["scores"][0]["value"]) for row in rows)
    return made


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_from_audio_to_report(name, tokkata, tmp_path):
    teacher = ["model.teacher.steps=4"] if name == "notes-darkgan" else []
    run(name, tokkata, tmp_path, *NOTES, *teacher)


@pytest.mark.parametrize("name", ["drums-drumgan", "oneshots-wavegan", "oneshots-specgan"])
def test_a_folder_from_audio_to_report(name, tokkata, tmp_path, one_shots):
    made = run(name, tokkata, tmp_path, f"data.root={one_shots}")
    assert made.shape == IMAGES[name]


@pytest.mark.parametrize("name", ["nsynth-gansynth", "nsynth-darkgan", "nsynth-vqcpc-gan"])
def test_nsynth_from_audio_to_report(name, tokkata, tmp_path):
    settings = [f"data.root={make_corpus('nsynth', tmp_path / 'corpus')}"]
    tags = ["Violin", "Glockenspiel", "Hum"]
    if name == "nsynth-darkgan":
        save_classifier(tmp_path / "tagger", labels=tags)
        settings.append(f"model.teacher.source={tmp_path / 'tagger'}")
    if name == "nsynth-gansynth":  # half as long: as many frames as halve six times
        settings += ["train.crop_s=2.048", "generate.duration_s=1"]
    told = run(name, tokkata, tmp_path, *settings).config.conditions
    expected = {
        "nsynth-gansynth": ["pitch"],
        "nsynth-darkgan": ["pitch", *tags],
        "nsynth-vqcpc-gan": ["pitch", "instrument_family", "tokens"],
    }
    assert told.names == expected[name]


def test_maestro_from_audio_to_report(tokkata, tmp_path):
    save_oobleck(tmp_path / "vae")
    run(
        *("maestro-musika", tokkata, tmp_path, f"codec.id={tmp_path / 'vae'}"),
        *(f"data.root={make_corpus('maestro', tmp_path / 'corpus')}", "train.crop_s=0.4"),
        *("generate.duration_s=0.4", "train.warmup_steps=0"),
    )
