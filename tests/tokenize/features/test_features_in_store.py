"""The stage tokenize with features: what readers find, in any number of processes, and what is refused."""

import tracemalloc

import numpy as np
import pytest
import soundfile
import torch
import yaml

from tokkata.core.audio import load_audio
from tokkata.core.audio_stream import AS_IT_IS
from tokkata.core.errors import UserError
from tokkata.core.recipe import check_recipe, load_recipe
from tokkata.core.run import run_stage, stage_states
from tokkata.core.schema_features import MelodyFeature, StyleFeature
from tokkata.tests.forked import run_forked
from tokkata.tests.made_networks import save_t5
from tokkata.tests.tokenize.frame_codec import INFO, FrameCodec
from tokkata.tokenize.corpus import Clip
from tokkata.tokenize.encode import tokenize
from tokkata.tokenize.encode_clips import ClipEncoder, StoreEncoder, read_windows
from tokkata.tokenize.features.feature import FeatureInfo, load_feature, load_feature_from_info
from tokkata.tokenize.store import TokenRow, TokenStore, TokenWriter, read_manifest
from tokkata.tokenize.token_summary import as_text, summarise
from tokkata.tokenize.verify import faults_of_store

CAPTIONS = ["a slow piano", "loud drum and bass", "", "drum"]
SECONDS = [0.5, 1.1, 2.3, 0.5, 21.0, 0.6, 1.1, 1.1, 3.0]
NUM_CLIPS = len(SECONDS)


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    """Files of many lengths, stereo at 22.05 kHz, one of them silent; captions of some, a title of each."""
    folder = tmp_path_factory.mktemp("audio")
    rng = np.random.default_rng(0)
    lines = ["file_name,title,caption"]
    for i in range(NUM_CLIPS):
        samples = 0.3 * rng.normal(size=(round(22050 * SECONDS[i]), 2))
        soundfile.write(folder / f"{i:02d}.flac", samples.clip(-1, 1) * (i != 6), 22050)
        lines.append(f"{i:02d}.flac,piano {i},{CAPTIONS[i % 4]}")
    (folder / "metadata.csv").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def features(t5, clap, tiny_codec):
    return [
        {"kind": "text", "encoder": str(t5)},
        {"kind": "style", "encoder": str(tiny_codec)},
        {"kind": "text", "name": "title", "encoder": str(clap), "column": "title", "store": "float32"},
        {"kind": "melody"},
        {"kind": "style", "name": "sound", "encoder": str(clap)},
    ]


@pytest.fixture(scope="module")
def values(tiny_values, audio):
    """A recipe over those files, with these features."""

    def make(folder, features, **settings):
        return tiny_values(
            folder,
            data={"kind": "folder", "root": str(audio)},
            model={"conditions": []},
            audio={"loudness_lufs": -20.0, "trim_silence_db": 60.0},
            tokenize={
                "shard_clips": 3,
                "window_s": 1.5,
                "batch_windows": 3,
                "features": features,
                **settings,
            },
        )

    return make


@pytest.fixture(scope="module")
def store(values, features, tmp_path_factory):
    recipe = check_recipe(values(tmp_path_factory.mktemp("runs"), features))
    run_stage(recipe, "tokenize", tokenize)
    return TokenStore(recipe.folder / "tokens")


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


SPLITS = ("train", "valid", "test")


# --- what readers find


def test_each_clip_has_what_the_encoders_say(store, audio, values, features, tmp_path):
    """Those that inference loads, from what the store says of them, on the audio that the codec heard."""
    assert list(store.features) == ["text", "style", "title", "melody", "sound"]
    encoders = {name: load_feature_from_info(info) for name, info in store.features.items()}
    settings = check_recipe(values(tmp_path, features)).audio
    num_clips = 0
    for name in SPLITS:
        split = store.split(name)
        for i, clip_id in enumerate(split.column("id")):
            num_clips += 1
            caption = CAPTIONS[int(clip_id[:2]) % 4]
            for of, encoder in encoders.items():
                found = split.feature(of, i)
                assert found.dtype == store.features[of].store
                if of in ("text", "title"):
                    text = {"text": caption, "title": f"piano {int(clip_id[:2])}"}[of]
                    wanted = encoder.encode_text([text])[0]
                else:
                    heard = load_audio(audio / clip_id, encoder.sample_rate, encoder.channels, settings)
                    wanted = encoder.encode_audio(torch.from_numpy(heard)[None], encoder.sample_rate)[0]
                assert found.shape == wanted.shape
                # A batch's company, and mixing before or after loudness was measured, move last bits.
                np.testing.assert_allclose(found.astype(np.float32), wanted.numpy(), rtol=2e-3, atol=1e-3)
            assert split.feature("text", i).shape[0] == (len(caption.split()) + 1 if caption else 0)
            assert split.feature("melody", i).shape == (max(5, heard_frames(split, i)), 12)
    assert num_clips == NUM_CLIPS - 1


def heard_frames(split, clip):
    """Frames of 4096 samples at 32 kHz in a clip that has so many samples at 16 kHz."""
    return split.num_samples[clip] * 2 // 4096 + 1


def test_a_crop_is_a_view_of_the_file(store):
    split = store.split("train")
    clip = int(np.argmax(split.num_frames))
    whole = split.feature("melody", clip)
    assert len(whole) == 165
    crop = split.feature("melody", clip, 20, 30)
    np.testing.assert_array_equal(crop, whole[20:50])
    assert np.shares_memory(crop, whole)
    assert not crop.flags.writeable
    assert split.feature("melody", clip, len(whole) - 3, 30).shape == (3, 12)
    assert split.feature("melody", clip, len(whole) + 1, 2).shape == (0, 12)
    tracemalloc.start()
    for _ in range(20):
        split.feature("melody", clip, 20, 140)
    assert tracemalloc.get_traced_memory()[1] < 20_000, "nothing is copied"
    tracemalloc.stop()


def test_a_store_tells_of_its_features(store):
    assert "features.json" in read_manifest(store.folder)
    assert faults_of_store(store.folder) == []
    told = as_text(summarise(store.folder))
    assert "\nfeature     text: float16, width 16, " in told
    assert "\nfeature     melody: float16, width 12, 7.812 frames/s\n" in told
    with pytest.raises(UserError) as caught:
        store.split("train").feature("mood", 0)
    assert str(caught.value) == (
        f"{store.folder} has no feature 'mood': it has text, style, title, melody, sound; add it to"
        " tokenize.features"
    )
    with pytest.raises(UserError, match=r"have no label 'mood': they have title$"):
        store.split("train").column("mood")


def test_values_that_no_encoder_gives_are_faults(tmp_path):
    codes = np.zeros((2, 3), np.int64)
    info = FeatureInfo("style", "style", 2, None, "float32", {})
    rows = [
        TokenRow(
            name, "train", codes, 480, name, name, {}, None, features={"style": np.float32([[0, value]])}
        )
        for name, value in (("a", 1.0), ("b", np.nan))
    ]
    writer = TokenWriter(tmp_path, INFO, {}, 1, features=[info])
    writer.write(0, rows, [])
    writer.finish()
    assert faults_of_store(tmp_path) == ["row b holds NaN or infinite values in its feature 'style'"]


def test_codes_do_not_depend_on_features(store, values, tmp_path):
    recipe = check_recipe(values(tmp_path, []))
    run_stage(recipe, "tokenize", tokenize)
    plain = TokenStore(recipe.folder / "tokens")
    assert plain.features == {}
    assert not (plain.folder / "features.json").exists()
    for column in plain.dataset.column_names:
        assert plain.dataset[column][:] == store.dataset[column][:]
    with pytest.raises(UserError, match="has no feature 'text': it has none; add it to tokenize"):
        plain.split("train").feature("text", 0)


# --- the same bytes


def test_two_processes_write_what_one_does(store, values, features, environment, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(values(tmp_path / "runs", features)))
    program = tmp_path / "program.py"
    program.write_text(
        "from tokkata.core.run import stage_main; from tokkata.tokenize.encode import tokenize;"
        " stage_main('tokenize', tokenize)"
    )
    process = run_forked(tmp_path, 2, environment, program, recipe, "name=two")
    assert process.returncode == 0, process.stderr
    assert files(load_recipe(recipe, ["name=two"]).folder / "tokens") == files(store.folder)


def test_a_shard_made_again_is_the_same(store, values, features, tmp_path, monkeypatch):
    """Stopped after some shards, with other readers; batches depend on a shard's clips alone."""
    recipe = check_recipe(values(tmp_path, features, num_readers=1))

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("tokkata.tokenize.encode._Bar.shard_done", stop)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                run_stage(recipe, "tokenize", tokenize)
    assert len(list((recipe.folder / "tokens").glob("data-*"))) == 2
    run_stage(recipe, "tokenize", tokenize)
    assert files(recipe.folder / "tokens") == files(store.folder)


def test_memory_does_not_grow_with_the_file(tmp_path, tiny_codec, monkeypatch):
    """Of a clip there is a window at a time, whatever hears it."""

    class Files:
        def audio(self, clip):
            return tmp_path / clip.id

    monkeypatch.setattr("tokkata.tokenize.features.style.WINDOW_S", 2.0)
    encoders = [
        load_feature(MelodyFeature(kind="melody")),
        load_feature(StyleFeature(kind="style", encoder=str(tiny_codec))),
    ]
    codec = FrameCodec()
    peaks = {}
    for seconds in (45, 180):
        name = f"{seconds}.flac"
        samples = np.random.default_rng(0).uniform(-0.5, 0.5, seconds * 16000)
        soundfile.write(tmp_path / name, samples, 16000)
        del samples
        clip = Clip(name, "train", name)
        tracemalloc.start()
        encoder = ClipEncoder(StoreEncoder(codec, "codes"), lambda _: 2, lambda *_: None, encoders)
        readings = [(clip, read_windows(Files(), clip, codec, 200, AS_IT_IS, encoders))]
        [row] = encoder.rows(readings, [])
        peaks[seconds] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert row.features["melody"].shape == (seconds * 32000 // 4096 + 1, 12)
        assert row.features["style"].shape == (1, encoders[1].dim)
    # 135 s more of samples would be 17 MB at 32 kHz.
    assert peaks[180] < peaks[45] + 1_000_000


def test_damage_found_late_rejects_the_clip(audio, tmp_path, monkeypatch):
    """While features are made of it, when all its codes are there already."""
    from tokkata.core.audio import AudioError
    from tokkata.core.audio_stream import AudioStream

    class Files:
        def audio(self, clip):
            return audio / clip.id

    def broken(self, sample_rate, channels):
        raise AudioError("changed while it was read")

    melody = load_feature(MelodyFeature(kind="melody"))
    encoder = ClipEncoder(StoreEncoder(FrameCodec(), "codes"), lambda _: 2, lambda *_: None, [melody])
    clips = [Clip(name, "train", name) for name in ("01.flac", "02.flac")]
    monkeypatch.setattr(AudioStream, "at", broken)
    rejects = []
    readings = [(clip, read_windows(Files(), clip, FrameCodec(), 200, AS_IT_IS, [melody])) for clip in clips]
    assert list(encoder.rows(readings, rejects)) == []
    assert [reject.reason for reject in rejects] == ["changed while it was read"] * 2


# --- what reruns, what is refused


def test_a_changed_feature_runs_the_stage_again(values, tmp_path):
    folder = save_t5(tmp_path / "t5")
    features = [{"kind": "text", "encoder": str(folder)}]
    recipe = check_recipe(values(tmp_path, features))
    run_stage(recipe, "tokenize", tokenize)

    def why(changed):
        state = stage_states(check_recipe(values(tmp_path, changed)))[0]
        return state.state, state.why

    assert why(features) == ("done", "")
    assert why([{**features[0], "column": "title"}]) == (
        "outdated",
        'tokenize.features.0.column was "caption" and is "title"',
    )
    save_t5(folder, seed=1)
    assert why(features) == ("outdated", f"the files in {folder} have changed")


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (
            {"column": "mood"},
            "feature 'text': the corpus has no column 'mood'; besides `caption`, its columns of text are:"
            " title",
        ),
        ({"column": "year"}, "feature 'text': column 'year' holds no text; the columns that do are: title"),
        (
            {},
            "feature 'text': no clip has any text in 'caption': set its `column` to one of text (title), or"
            " remove the feature",
        ),
        (
            {"name": "x", "column": "title"},
            "feature 'x' is stored in a column 'feature_x', but the corpus has a label of that name: give the"
            " feature another name",
        ),
    ],
    ids=["no column", "no text", "no captions", "a label's name"],
)
def test_a_corpus_without_the_text(values, t5, tmp_path, audio, changed, told):
    folder = tmp_path / "audio"
    folder.mkdir()
    (folder / "a.flac").write_bytes((audio / "00.flac").read_bytes())
    (folder / "metadata.csv").write_text("file_name,title,year,feature_x,caption\na.flac,Aria,1741,1,")
    recipe = values(tmp_path, [{"kind": "text", "encoder": str(t5), **changed}])
    recipe["data"] = {"kind": "folder", "root": str(folder)}
    with pytest.raises(UserError) as caught:
        tokenize(check_recipe(recipe))
    assert str(caught.value) == told
    assert not (tmp_path / "tiny" / "tokens").exists()


def test_two_features_of_a_name_are_refused(values, tmp_path):
    with pytest.raises(UserError, match="2 features have the name 'melody': give each a `name` of its own"):
        check_recipe(values(tmp_path, [{"kind": "melody"}, {"kind": "melody"}]))
    with pytest.raises(UserError, match=r"tokenize\.features\.0"):
        check_recipe(values(tmp_path, [{"kind": "melodies"}]))
