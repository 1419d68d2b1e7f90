"""`tokkata generate MODEL`: from a model's folder alone to wav files.

Shapes: K codebooks, T frames, N samples.
"""

import dataclasses

import numpy as np
import pytest
import soundfile
import torch

from tokkata.core.audio import load_audio
from tokkata.core.conditions import Condition, Conditions
from tokkata.core.files import read_jsonl
from tokkata.lm.commands import generate_from_model
from tokkata.lm.generate import generate
from tokkata.lm.load import load_lm
from tokkata.lm.transformer import TransformerConfig, TransformerLM
from tokkata.tokenize.codec import load_codec

CONDITIONS = Conditions(
    (
        Condition("pitch", "label", values=(60, 62, 64)),
        Condition("mood", "tags", values=("calm", "glad")),
    )
)
STEP = 1 / 32768
"""Of a 16-bit sample."""


@pytest.fixture(scope="module")
def codec(tiny_codec):
    return load_codec(str(tiny_codec), num_codebooks=4)


@pytest.fixture(scope="module")
def model(codec, tmp_path_factory):
    """A folder as the stage `train` writes it, of a model that has learnt from half a second at a time."""
    torch.manual_seed(0)
    shape = {"dim": 16, "num_layers": 1, "num_heads": 2, "window_frames": 25}
    lm = TransformerLM(TransformerConfig.for_codec(dataclasses.asdict(codec.info), CONDITIONS, **shape))
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.mul_(8 if parameter.ndim == 2 else 1)
    folder = tmp_path_factory.mktemp("runs") / "notes" / "model"
    lm.save_pretrained(folder)
    return folder


def samples_of(path):
    return load_audio(path, 16000, 1)[0]


def test_a_folder_is_all_that_it_needs(tokkata, model, codec, tmp_path):
    told = tokkata(
        *(
            "generate",
            model,
            "--num",
            3,
            "--duration",
            0.7,
            "--label",
            "pitch=60,64",
            "--tags",
            "mood=calm,glad",
        ),
        *("--seed", 5, "--top-k", 30, "--cfg-scale", 2, "--overlap", 0.2, "--out", tmp_path / "out"),
    )
    assert told.returncode == 0, told.stderr
    rows = read_jsonl(tmp_path / "out" / "samples.jsonl")
    assert rows == [
        {
            "file": f"{i:05d}.wav",
            "labels": {"pitch": pitch, "mood": ["calm", "glad"]},
            "seed": 5,
            "row": i,
            "num_frames": 35,
            "duration_s": 0.7,
        }
        for i, pitch in enumerate([60, 64, 60])
    ]
    codes = generate(
        load_lm(model),
        35,
        conditions={"pitch": [60, 64, 60], "mood": [("calm", "glad")] * 3},
        top_k=30,
        cfg_scale=2.0,
        seed=5,
        overlap_frames=10,
    )
    audio = codec.decode(codes, 11200)[:, 0].clamp(-1, 1).numpy()
    for row, expected in zip(rows, audio, strict=True):
        np.testing.assert_allclose(samples_of(tmp_path / "out" / row["file"]), expected, atol=1.01 * STEP)
    assert "3 clips of 0.7 s in " in told.stderr
    assert f"× real time): {tmp_path / 'out'}" in told.stderr


def test_streamed_files_are_those_written_at_once(tokkata, model, tmp_path):
    options = ("--num", 3, "--duration", 1.5, "--label", "pitch=60,62,64")
    for name, more in {
        "whole": (),
        "stream": ("--stream",),
        "batch": ("--stream", "--batch-size", 2),
    }.items():
        told = tokkata("generate", model, *options, "--out", tmp_path / name, *more)
        assert told.returncode == 0, told.stderr
        if name == "stream":
            assert "first audio after " in told.stderr
            assert f"{tmp_path / 'stream' / '.partial-00000.wav'} grows" in told.stderr
    names = sorted(path.name for path in (tmp_path / "whole").iterdir() if path.suffix != ".safetensors")
    assert names == ["00000.wav", "00001.wav", "00002.wav", "samples.jsonl"]
    for name in ("stream", "batch"):
        assert {path.name for path in (tmp_path / name).iterdir()} - {"codes.safetensors"} == set(names)
        assert read_jsonl(tmp_path / name / names[-1]) == read_jsonl(tmp_path / "whole" / names[-1])
        for file in names[:3]:
            np.testing.assert_allclose(
                samples_of(tmp_path / name / file), samples_of(tmp_path / "whole" / file), atol=1.01 * STEP
            )


def test_defaults_are_one_clip_of_the_trained_length_in_a_new_folder(tokkata, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in ("001", "002"):
        assert tokkata("generate", model.parent).returncode == 0
        folder = tmp_path / "generated" / f"notes-{number}"
        names = sorted(path.name for path in folder.iterdir())
        assert names == ["00000.wav", "codes.safetensors", "samples.jsonl"]
        assert soundfile.info(folder / "00000.wav").duration == 0.5
    first, second = (tmp_path / "generated" / f"notes-00{i}" / "00000.wav" for i in (1, 2))
    assert first.read_bytes() == second.read_bytes()


def test_a_clip_goes_on_from_a_recording(model, codec, tmp_path):
    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / "a.wav", rng.normal(0, 0.1, (44100, 2)), 44100)
    folder = generate_from_model(
        str(model), num=2, duration=0.8, prompt=tmp_path / "a.wav", prompt_seconds=0.31, out=tmp_path / "out"
    )
    prompt = codec.encode(torch.from_numpy(load_audio(tmp_path / "a.wav", 16000, 1))[None, :, : 15 * 320])
    codes = generate(load_lm(model), 40, prompt=prompt.expand(2, -1, -1), top_k=250)
    assert torch.equal(codes[0, :, :15], prompt[0])
    audio = codec.decode(codes)[:, 0].clamp(-1, 1).numpy()
    for row, expected in zip(read_jsonl(folder / "samples.jsonl"), audio, strict=True):
        assert (row["prompt"], row["prompt_s"]) == (str(tmp_path / "a.wav"), 0.3)
        np.testing.assert_allclose(samples_of(folder / row["file"]), expected, atol=1.01 * STEP)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--label", "ptich=60"], "unknown condition 'ptich' (did you mean 'pitch'?): known are"),
        (["--label", "pitch=61"], "unknown value '61' for label 'pitch': known are 60, 62, 64"),
        (["--label", "pitch"], "--label pitch: NAME=VALUE is needed"),
        (["--tags", "mood=calmm"], "unknown tag 'calmm' for tags 'mood' (did you mean 'calm'?)"),
        (["--text", "a piano"], "this model cannot be told a text: no condition takes a text"),
        (["--melody", "a.wav"], "this model cannot be told a melody"),
        (["--num", "1", "--label", "pitch=60,62"], "2 values of 'pitch' for 1 clip: ask for more clips"),
        (["--weights", "int4"], "--weights int4: choose fp32, bf16, int8"),
        (["--temperature", "-1"], "temperature -1 must be 0 (greedy) or a positive number"),
        (["--duration", "0"], "--duration 0 must be positive"),
        (["--cfg-scale", "2"], "cfg_scale 2 has no conditions to guide towards"),
        (["--duration", "1", "--overlap", "0.5"], "overlap_frames 25 must be at least 1 and below"),
        (["--prompt-seconds", "1"], "--prompt-seconds says how much of --prompt FILE is taken"),
        (["--prompt", "none.wav"], "--prompt: there is no file none.wav"),
        (["--device", "gpu"], "--device gpu cannot be used: "),
        (["--seed", "-1"], "seed -1 and first_clip 0 must not be negative"),
        (["train.steps=3"], "train.steps=3: settings change recipes"),
    ],
)
def test_mistakes_are_one_sentence(tokkata, model, tmp_path, monkeypatch, options, sentence):
    monkeypatch.chdir(tmp_path)
    told = tokkata("generate", model, *options)
    assert told.returncode == 2
    assert told.stdout == ""
    assert told.stderr.splitlines()[-1].startswith(sentence)
    assert "Traceback" not in told.stderr
    assert not list(tmp_path.rglob("*.wav"))


def test_nothing_is_overwritten(tokkata, model, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    told = tokkata("generate", model, "--out", tmp_path)
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr == (
        f"--out {tmp_path} is not empty, and nothing is overwritten: choose another folder\n"
    )
    told = tokkata("generate", model, "--out", tmp_path / "mine.txt")
    assert told.stderr == f"--out {tmp_path / 'mine.txt'} is a file: choose a new or empty folder\n"
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_options_of_models_are_not_for_recipes(tokkata, tmp_path, write_recipe):
    told = tokkata("generate", write_recipe(tmp_path), "--num", 3, "--text", "a piano")
    assert told.returncode == 2
    assert told.stderr == (
        "--num, --text: for a model; what a recipe generates is said in its section generate, as in"
        " generate.num_clips=8\n"
    )


def test_a_recipe_that_is_not_there_is_one(tokkata, tmp_path):
    told = tokkata("generate", tmp_path / "none.yaml")
    assert told.returncode == 2
    assert "none.yaml" in told.stderr
    assert "recipe" in told.stderr
