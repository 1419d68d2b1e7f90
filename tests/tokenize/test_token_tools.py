"""`tokkata tokens`: what a store holds, whether it is whole, its rows as audio, and its card."""

import dataclasses

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from tokkata.core.audio import load_audio
from tokkata.core.errors import UserError
from tokkata.core.schema_corpora import MixedCorpus, NSynthCorpus, SynthCorpus
from tokkata.tokenize import publish
from tokkata.tokenize.codec import load_codec_from_info
from tokkata.tokenize.encode import tokenize
from tokkata.tokenize.origin import origins_of
from tokkata.tokenize.store import TokenStore


@pytest.fixture(scope="module")
def store(tmp_path_factory, tiny_recipe):
    """A store of clips of different lengths, one of them no audio."""
    folder = tmp_path_factory.mktemp("audio")
    rng = np.random.default_rng(0)
    for number in range(9):
        soundfile.write(folder / f"{number}.wav", rng.normal(0, 0.1, 16000 + 1000 * number), 16000)
    (folder / "bad.wav").write_bytes(b"no audio")
    recipe = tiny_recipe(
        tmp_path_factory.mktemp("runs"),
        data={"kind": "folder", "root": str(folder)},
        model={"kind": "transformer", "dim": 32, "num_layers": 1, "num_heads": 2},
    )
    tokenize(recipe)
    return recipe.folder / "tokens"


@pytest.fixture
def damaged(store, tmp_path):
    """A copy that may be damaged."""
    copy = tmp_path / "tokens"
    copy.mkdir()
    for file in store.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def test_info_counts_what_is_there(store, tokkata, tmp_path):
    told = tokkata("tokens", "info", store, "--picture", tmp_path / "codes.png")
    assert told.returncode == 0, told.stderr
    tokens = TokenStore(store)
    splits = {name: tokens.split(name) for name in ("train", "valid", "test")}
    codes = np.concatenate([rows.codes(i) for rows in splits.values() for i in range(len(rows))], axis=1)
    assert f"{codes.shape[1]:,} frames in all" in told.stdout
    for name, rows in splits.items():
        seconds = rows.num_samples / 16000
        spread = f"{seconds.min():.2f} to {seconds.max():.2f} s each"
        assert f"{name:<12}{len(rows)} clips, {seconds.sum() / 3600:.3f} h, {spread}" in told.stdout
    assert "1 × not audio: no wav, flac, ogg or mp3 inside" in told.stdout
    for number, of_one in enumerate(codes):
        share = np.unique(of_one, return_counts=True)[1] / codes.shape[1]
        bits = -(share * np.log2(share)).sum()
        assert f"{number:>2}: {bits:5.2f} bits, {len(share):,} entries used" in told.stdout
    # 4 codebooks of 6 bits at 50 frames a second
    assert "bitrate     1.2 kbit/s" in told.stdout
    assert Image.open(tmp_path / "codes.png").size[0] > 1000


def test_verify_finds_nothing_in_a_whole_store(store, tokkata):
    told = tokkata("tokens", "verify", store)
    assert (told.returncode, told.stderr.count("Traceback")) == (0, 0)
    assert "every file and every row is as it was written" in told.stdout


def test_verify_names_a_damaged_and_a_missing_file(damaged, tokkata):
    shards = sorted(damaged.glob("data-*.arrow"))
    content = bytearray(shards[0].read_bytes())
    content[len(content) // 2] ^= 1
    shards[0].write_bytes(bytes(content))
    (damaged / "rejects.jsonl").unlink()
    told = tokkata("tokens", "verify", damaged)
    assert told.returncode == 1
    assert f"{shards[0].name} is damaged" in told.stdout
    assert "rejects.jsonl is missing" in told.stdout


def test_what_is_no_store_is_one_sentence(tokkata, tmp_path):
    for command in (["info"], ["verify"], ["decode", "--to", tmp_path / "wav"]):
        told = tokkata("tokens", command[0], tmp_path, *command[1:])
        assert told.returncode == 2
        assert told.stderr == f"{tmp_path} holds no finished token store: run the stage tokenize first\n"


def test_decode_writes_what_the_codec_gives(store, tokkata, tmp_path):
    told = tokkata("tokens", "decode", store, "--to", tmp_path, "--id", "3.wav", "--id", "8.wav")
    assert told.returncode == 0, told.stderr
    assert sorted(told.stdout.split()) == [str(tmp_path / "3.wav"), str(tmp_path / "8.wav")]
    tokens = TokenStore(store)
    codec = load_codec_from_info(tokens.info)
    (rows, position), *_ = [
        (split, split.column("id").index("8.wav"))
        for name in ("train", "valid", "test")
        if "8.wav" in (split := tokens.split(name)).column("id")
    ]
    whole = codec.decode(torch.from_numpy(rows.codes(position))[None], num_samples=24000)[0]
    found = load_audio(tmp_path / "8.wav", 16000, 1)
    np.testing.assert_allclose(found, whole.clamp(-1, 1).numpy(), atol=1 / 32768 + 1e-5)


def test_decode_refuses_an_id_that_is_not_there(store, tokkata, tmp_path):
    told = tokkata("tokens", "decode", store, "--to", tmp_path, "--id", "99.wav")
    assert (told.returncode, told.stderr) == (2, f"the store {store} has no clip with the id '99.wav'\n")


def test_a_codec_that_changed_since_is_refused(store):
    info = TokenStore(store).info
    changed = dataclasses.replace(info, revision="000000000000")
    with pytest.raises(UserError, match="as it is now: codec revision is"):
        load_codec_from_info(changed)


def test_push_needs_a_licence_and_the_card_carries_it(store, monkeypatch):
    pushed = {}

    class Hub:
        def create_repo(self, name, **settings):
            pushed["name"] = name

        def upload_folder(self, *, folder_path, **settings):
            pushed["card"] = (folder_path / "README.md").read_text(encoding="utf-8")

    monkeypatch.setattr("tokkata.core.hub_upload.HfApi", Hub)
    with pytest.raises(UserError, match=r"licence of the audio is not told .*give --licence"):
        publish.push_to_hub(store, "someone/notes", private=True, licence=None)
    assert pushed == {}
    address = publish.push_to_hub(store, "someone/notes", private=True, licence="cc-by-4.0")
    assert address == "https://huggingface.co/datasets/someone/notes"
    assert pushed["name"] == "someone/notes"
    assert pushed["card"].startswith("---\nlicense: cc-by-4.0\n")
    assert "1.2 kbit/s" in pushed["card"]


def test_origins_carry_the_licence_of_research_datasets(tmp_path):
    nsynth = NSynthCorpus(kind="nsynth", root=tmp_path)
    mixed = MixedCorpus(kind="mixed", corpora=[nsynth, SynthCorpus(kind="synth"), nsynth])
    first, second = origins_of(mixed)
    assert (first.licence_id, second.licence_id) == ("cc-by-4.0", "cc0-1.0")
    assert "engel2017neural" in first.citation
