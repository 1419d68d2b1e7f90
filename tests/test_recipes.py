"""The recipes: each is valid, and those for research datasets run from audio to report.

They run on a made corpus in that dataset's layout, with nothing changed but sizes and places. The commands
and the figures of their headers hold.
"""

import json
import math
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tokkata.core.recipe import load_recipe
from tokkata.core.schema import TrainedCodec
from tokkata.tests.made_corpora import MAKERS
from tokkata.tokenize.corpora.dataset_facts import DATASETS

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
OF_DATASETS = [
    "nsynth-encodec-lm",
    "maestro-dac-lm",
    "musicnet-encodec-lm",
    "gtzan-genre-lm",
    "magnatagatune-tags-lm",
]


@dataclass(frozen=True)
class Published:
    """What a recipe's tokens are like, by the model card of its codec."""

    sample_rate: int
    num_codebooks: int
    codebook_size: int
    frame_rate: float


CODECS = {
    "facebook/encodec_32khz": Published(32000, 4, 2048, 50.0),
    "descript/dac_44khz": Published(44100, 9, 1024, 44100 / 512),
}


def recipe_of(name):
    return load_recipe(ROOT / "recipes" / f"{name}.yaml")


# ----------------------------------------------------------------------------------------- every recipe


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_each_recipe_is_valid_executable_and_known_to_editors(path):
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    quickstart = (ROOT / "recipes" / "quickstart.yaml").read_text(encoding="utf-8").splitlines()
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[:2] == quickstart[:2]
    assert path.stat().st_mode & 0o111 == 0o111
    assert lines[2] == "#"
    assert lines[3].startswith("# ")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_each_recipe_says_what_it_would_run(path, tokkata, tmp_path):
    result = tokkata("run", path, f"runs_dir={tmp_path}", "--dry-run")
    assert result.returncode == 0, result.stderr
    model = load_recipe(path).model
    codec = isinstance(model, TrainedCodec)
    stages = ["prepare", "train", "eval"] if codec else ["tokenize", "train", "generate", "eval"]
    if model.kind == "mel_vae":
        stages.remove("eval")
    if model.kind in ("darkgan", "vqcpc_gan"):
        stages.insert(1, "prepare")
    headings = [line for line in result.stdout.splitlines() if line.startswith("#")]
    assert headings == [f"# {stage}" for stage in stages]


# --------------------------------------------------------------------------------------------- their headers


def header(name):
    """The comment lines of a recipe, without their sign."""
    lines = (ROOT / "recipes" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    return [line[1:] for line in lines[3:] if line.startswith("#")]


def commands(name):
    """The command lines of a header: what is indented, joined where a line goes on, and parted at `&&`."""
    text = "\n".join(line for line in header(name) if line.startswith("   ")).replace("\\\n", " ")
    return [shlex.split(part) for line in text.splitlines() for part in line.split("&&")]


@pytest.mark.parametrize("name", OF_DATASETS)
def test_a_headers_commands_can_be_given(name, tokkata, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    kind = recipe_of(name).data.kind
    given = commands(name)
    runs = [line for line in given if line[0] == f"recipes/{name}.yaml"]
    assert [("--launcher" in line) for line in runs] == [False, True]
    for line in runs:
        result = tokkata("run", *line, f"runs_dir={tmp_path}", "--dry-run")
        assert result.returncode == 0, result.stderr
    (launcher,) = [line[line.index("--launcher") + 1] for line in runs if "--launcher" in line]
    assert (ROOT / shlex.split(launcher)[3]).is_file()
    checks = [line for line in given if line[:3] == ["tokkata", "data", "check"]]
    root = runs[0][1].removeprefix("data.root=")
    assert checks == [["tokkata", "data", "check", kind, root]]
    downloads = [line for line in given if line[:3] == ["tokkata", "data", "get"]]
    can_be_had = bool(DATASETS[kind].archives)
    assert downloads == ([["tokkata", "data", "get", kind, "--to", root]] if can_be_had else [])
    assert all(line[0] == "tokkata" or line in runs for line in given)


_NUMBER = r"\d[\d,]*(?:\.\d+)?(?:e\d+)?"
_FACTOR = rf"{_NUMBER}(?: M)?(?: [A-Za-z]+| a)*?"
_PRODUCT = re.compile(
    rf"(?P<factors>{_FACTOR}(?: x {_FACTOR})+) = (?P<result>{_NUMBER})(?: (?P<unit>[MG]B))?"
)
_SCALES = {None: 1.0, "MB": 1e6, "GB": 1e9}


def value(text):
    return float(re.match(_NUMBER, text)[0].replace(",", "")) * (1e6 if " M" in text else 1.0)


def products(name):
    """The factors and the result of each `a x b = c` in a header."""
    found = []
    for match in _PRODUCT.finditer(" ".join(line.strip() for line in header(name))):
        factors = [value(factor) for factor in match["factors"].split(" x ")]
        found.append((factors, value(match["result"]) * _SCALES[match["unit"]]))
    return found


def close(found, expected):
    """Equal, but for rounding to two digits."""
    return found == pytest.approx(expected, rel=0.05)


def num_parameters(recipe):
    """Numbers in the model that a recipe trains, but for the tables of labels; blocks are all alike."""
    from tokkata.lm.transformer import TransformerConfig, TransformerLM

    codec = CODECS[recipe.codec.id]
    sizes = {"num_codebooks": codec.num_codebooks, "codebook_size": codec.codebook_size}
    shape = recipe.model.model_dump(include={"dim", "num_heads", "pattern"})

    def count(num_layers):
        config = TransformerConfig.for_codec(
            {"id": recipe.codec.id, "frame_rate": codec.frame_rate, **sizes},
            window_frames=1,
            num_layers=num_layers,
            **shape,
        )
        return sum(parameter.numel() for parameter in TransformerLM(config).parameters())

    return count(1) + (recipe.model.num_layers - 1) * (count(2) - count(1))


@pytest.mark.parametrize("name", OF_DATASETS)
def test_a_headers_figures_follow_from_the_recipe(name):
    from tokkata.lm.patterns import make_pattern

    recipe = recipe_of(name)
    codec, facts = CODECS[recipe.codec.id], DATASETS[recipe.data.kind]
    found = products(name)
    for factors, result in found:
        assert close(result, math.prod(factors)), factors

    numbers = num_parameters(recipe)
    num_frames = round(recipe.train.crop_s * codec.frame_rate)
    num_steps = make_pattern(recipe.model.pattern, codec.num_codebooks, None).num_steps(num_frames)
    (arithmetic,) = [factors for factors, _ in found if factors[-1] == 6]
    assert close(arithmetic[0], numbers)
    assert arithmetic[1:] == [num_steps, recipe.train.batch_size, 6]
    text = " ".join(line.strip() for line in header(name))
    in_all = float(re.search(r"([\d.e]+) in all", text)[1])
    assert close(in_all, math.prod(arithmetic) * recipe.train.steps)
    share = re.search(
        r"at (\d+)% of the 312e12/s of an A100's tensor cores, one of them takes ([\d.]+)", text
    )
    assert close(float(share[2]), in_all / (float(share[1]) / 100 * 312e12) / 3600) or float(share[2]) < 0.1
    (checkpoint,) = [factors for factors, _ in found if factors[-1] == 16]
    assert close(checkpoint[0], numbers)

    # Tokens of the whole dataset, and how often training goes through its part.
    hours = sum(split.hours for split in facts.splits.values())
    size = hours * 3600 * codec.frame_rate * codec.num_codebooks * 2
    assert any(close(result, size) and factors[-1] == 2 for factors, result in found)
    train_h = facts.splits["train"].hours * (1 - getattr(recipe.data, "valid_fraction", 0.0))
    passes = recipe.train.steps * recipe.train.batch_size * recipe.train.crop_s / 3600 / train_h
    assert close(float(re.search(r"(\d+) passes over the training split", text)[1]), passes)
    if facts.archives:
        packed = sum(archive.num_bytes for archive in facts.archives)
        assert close(float(re.search(r"archives? of ([\d.]+) GB", text)[1]), packed / 1e9)


# ------------------------------------------------------------------------------------- from audio to report

# Corpora whose held-out clips have labels that training knows, and one (where it matters) that it does not.
CORPORA = {
    "nsynth": {
        "train": [
            *(f"bass_synthetic_000-{pitch:03d}-100" for pitch in (60, 62, 64)),
            *(f"guitar_acoustic_001-{pitch:03d}-100" for pitch in (60, 62, 64)),
        ],
        "valid": ["bass_electronic_002-060-100", "guitar_acoustic_003-062-100"],
        "test": ["bass_electronic_004-064-100", "guitar_acoustic_005-060-100", "reed_acoustic_006-060-100"],
    },
    "maestro": {
        "2004/one": ("Alban Berg", "Sonata Op. 1", "train", 2004),
        "2004/two": ("Frédéric Chopin", "Ballade No. 2", "train", 2004),
        "2018/three": ("Frédéric Chopin", "Ballade No. 3", "train", 2018),
        "2018/four": ("Frédéric Chopin", "Ballade No. 4", "validation", 2018),
        "2018/five": ("Frédéric Chopin", "Ballade No. 1", "test", 2018),
        "2004/six": ("Alban Berg", "Lied", "test", 2004),
        "2018/seven": ("Clara Schumann", "Scherzo No. 2", "test", 2018),
    },
    "musicnet": {
        1700 + number: ("Bach", f"Cello Suite {number}", "1. Prelude", "Solo Cello", part)
        for number, part in enumerate(["train"] * 20 + ["test"] * 2)
    },
    "gtzan": {
        "train": ["blues.00000", "blues.00001", "rock.00000", "rock.00001", "metal.00000"],
        "valid": ["blues.00002", "rock.00002"],
        "test": ["blues.00003", "rock.00003", "jazz.00000"],
    },
    "magnatagatune": {
        "0/ann-songs-01-morning-0-29": ("guitar", "slow"),
        "0/ann-songs-01-morning-30-59": ("guitar",),
        "1/ann-songs-02-evening-0-29": ("piano",),
        "1/ann-songs-02-evening-30-59": (),
        "c/bob-duets-02-noon-0-29": ("piano", "slow"),
        "d/cal-airs-03-night-0-29": ("guitar", "piano"),
        "f/cal-airs-04-day-117-146": ("guitar", "no voice"),
    },
}
TOLD = {
    "nsynth": {"pitch": {60, 62, 64}, "velocity": {100}, "instrument_family": {"bass", "guitar"}},
    "maestro": {"composer": {"Alban Berg", "Frédéric Chopin"}, "year": {2004, 2018}},
    "musicnet": {"composer": {"Bach"}, "ensemble": {"Solo Cello"}},
    "gtzan": {"genre": {"blues", "rock", "metal"}},
    "magnatagatune": {"tags": {"guitar", "piano", "slow"}},
}
"""What the models are told: the values in each corpus's training split."""

DURATION_S = 0.5


def make_corpus(kind, folder):
    """The corpus in its dataset's layout, each file a tone of its own instead of the same short noise."""
    MAKERS[kind](folder, CORPORA[kind])
    for number, path in enumerate(sorted(folder.rglob("*.*"))):
        if path.suffix in (".wav", ".au", ".mp3"):
            info = soundfile.info(path)
            times = np.arange(round(DURATION_S * info.samplerate)) / info.samplerate
            tone = 0.4 * np.sin(2 * np.pi * 110 * 2 ** (number / 12) * times)
            noise = np.random.default_rng(number).normal(0, 0.02, len(times))
            soundfile.write(path, np.stack([tone + noise] * info.channels, axis=1), info.samplerate)
    return folder


@pytest.fixture(scope="module")
def codecs(tmp_path_factory):
    """A folder for each codec: rates and codebooks as published, few channels, random weights."""
    import torch
    from transformers import EncodecConfig, EncodecModel

    from tokkata.core.schema import DacModel
    from tokkata.tokenize.families.codec_dac import build_original, save_dac

    torch.manual_seed(0)
    encodec = EncodecModel(
        EncodecConfig(
            sampling_rate=32000,
            target_bandwidths=[2.2],
            upsampling_ratios=[8, 5, 4, 4],
            num_filters=2,
            hidden_size=8,
            codebook_dim=8,
            codebook_size=2048,
            num_lstm_layers=1,
        )
    )
    for name, buffer in encodec.named_buffers():
        if name.endswith("codebook.embed"):  # zeros at first, so that all codes would be equal
            buffer.normal_(std=0.1)
    folders = {id: tmp_path_factory.mktemp("codec") for id in CODECS}
    encodec.save_pretrained(folders["facebook/encodec_32khz"])
    dac = DacModel(
        kind="dac",
        sample_rate_hz=44100,
        encoder_dim=4,
        encoder_rates=[2, 4, 8, 8],
        decoder_dim=64,
        num_codebooks=9,
        codebook_size=1024,
    )
    save_dac(build_original(dac), folders["descript/dac_44khz"], "float32")
    return folders


SIZES = (
    "model.dim=16",
    "model.num_layers=1",
    "model.num_heads=2",
    "train.steps=3",
    "train.batch_size=4",
    "train.crop_s=0.3",
    "train.warmup_steps=1",
    "train.log_every=1",
    "train.validate_every=2",
    "train.save_every=2",
    "generate.num_clips=3",
    "generate.duration_s=0.4",
)


@pytest.mark.parametrize("name", OF_DATASETS)
def test_from_audio_to_report(name, codecs, tokkata, tmp_path, monkeypatch):
    from tokkata.lm.transformer import TransformerLM
    from tokkata.tokenize.store import TokenStore

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    published = recipe_of(name)
    kind, codec = published.data.kind, CODECS[published.codec.id]
    places = (
        f"data.root={make_corpus(kind, tmp_path / 'corpus')}",
        f"codec.id={codecs[published.codec.id]}",
        f"runs_dir={tmp_path}",
    )
    for stage in ("tokenize", "train", "generate", "eval"):
        result = tokkata(stage, ROOT / "recipes" / f"{name}.yaml", *places, *SIZES)
        assert result.returncode == 0, result.stderr
    run = tmp_path / name

    store = TokenStore(run / "tokens")
    assert store.info.sample_rate == codec.sample_rate
    assert (store.info.num_codebooks, store.info.codebook_size) == (codec.num_codebooks, codec.codebook_size)
    assert store.info.frame_rate == pytest.approx(codec.frame_rate)
    assert all(len(store.split(split)) for split in ("train", "valid", "test"))
    assert (run / "tokens" / "rejects.jsonl").read_text() == ""

    lm = TransformerLM.from_pretrained(run / "model")
    assert {one.name: set(one.values) for one in lm.config.conditions} == TOLD[kind]
    log = [json.loads(line) for line in (run / "logs" / "train.jsonl").read_text().splitlines()]
    losses = [row[key] for row in log for key in row if key.endswith("loss")]
    # Untrained, it is about that of guessing; the clips held out are validated on too.
    assert losses == pytest.approx([math.log(codec.codebook_size)] * len(losses), rel=0.1)
    assert any("valid" in key for row in log for key in row)

    lines = [json.loads(line) for line in (run / "samples" / "samples.jsonl").read_text().splitlines()]
    assert len(lines) == 3
    for line in lines:
        info = soundfile.info(run / "samples" / line["file"])
        assert (info.samplerate, info.channels) == (codec.sample_rate, 1)
        assert info.frames == round(0.4 * codec.sample_rate)
        assert set(line["labels"]) == set(TOLD[kind])
        for label, told in line["labels"].items():
            assert set(told if isinstance(told, list) else [told]) <= TOLD[kind][label]

    scores = json.loads((run / "eval" / "scores.json").read_text())
    assert scores["reference"]["split"] == published.generate.labels_from
    rows = {row["name"]: {score["name"]: score["value"] for score in row["scores"]} for row in scores["rows"]}
    assert list(rows) == ["real, other", "reconstructed", "generated", "untrained", "white noise"]
    assert all(math.isfinite(row["fad"]) for row in rows.values())
    assert ("pitch-accuracy" in rows["generated"]) == (kind == "nsynth")
    if kind == "nsynth":
        assert rows["generated"]["pitch-accuracy"] is not None
    assert "<audio" in (run / "eval" / "report.html").read_text()

    for line in [line for line in commands(name) if line[:2] == ["tokkata", "generate"]]:
        assert line[2] == f"runs/{name}/model"
        options = ["--num", "1", "--duration", "0.4", "--out", tmp_path / "wavs"]
        result = tokkata("generate", run / "model", *line[3 : line.index("--num")], *options)
        assert result.returncode == 0, result.stderr
        assert (tmp_path / "wavs" / "00000.wav").is_file()
