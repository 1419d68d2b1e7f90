"""Networks over raw audio, on tiny random models in the hub's layout, against transformers' own."""

import json

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from tokkata.core.errors import UserError
from tokkata.eval.embedding import load_embedding
from tokkata.eval.embeddings import wav2vec as module

RATE = 800
SIZES = {
    "hidden_size": 8,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "conv_dim": [4, 4],
    "conv_kernel": [10, 4],
    "conv_stride": [5, 4],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}
KINDS = {
    "wav2vec2": "Wav2Vec2",
    "hubert": "Hubert",
    "wavlm": "WavLM",
    "data2vec-audio": "Data2VecAudio",
    "unispeech-sat": "UniSpeechSat",
}


def noise(*shape):
    return 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 0.2


def save(folder, kind="hubert", head="Model", normalize=True, **options):
    torch.manual_seed(0)
    config = getattr(transformers, f"{KINDS[kind]}Config")(**SIZES | options)
    model = getattr(transformers, f"{KINDS[kind]}{head}")(config).eval()
    model.save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(
        sampling_rate=RATE, do_normalize=normalize, return_attention_mask=False
    ).save_pretrained(folder)
    return model


def change(folder, **values):
    path = folder / "config.json"
    config = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


@pytest.fixture(scope="module")
def hubert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "hubert"
    return folder, save(folder)


def sentence(name, **options):
    with pytest.raises(UserError) as caught:
        load_embedding(name, device="cpu", **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- frames


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_frames_are_those_of_transformers(tmp_path, kind, normalize):
    model = save(tmp_path, kind, normalize=normalize, feat_extract_norm="layer")
    extractor = transformers.Wav2Vec2FeatureExtractor.from_pretrained(tmp_path)
    audio = noise(2, 1, 1000)
    inputs = extractor(list(audio[:, 0].numpy()), sampling_rate=RATE, return_tensors="pt").input_values
    with torch.no_grad():
        states = model(inputs, output_hidden_states=True)
    for layer in range(4):
        embedding = load_embedding(f"w2v2:{tmp_path}#{layer}", device="cpu")
        expected = states.hidden_states[layer]
        torch.testing.assert_close(embedding.embed(audio), expected, rtol=1e-4, atol=1e-4)
    last = load_embedding(f"w2v2:{tmp_path}", device="cpu")
    torch.testing.assert_close(last.embed(audio), states.last_hidden_state, rtol=1e-4, atol=1e-4)
    assert last.info.preprocessing.endswith("hidden states of layer 3 of 3")
    assert (last.info.sample_rate, last.info.width, last.info.hop_s) == (RATE, 8, 20 / RATE)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3000))
def test_frames_are_as_many_as_told(hubert, num_samples):
    embedding = load_hubert(hubert[0])
    embedding._window = 700
    frames = embedding.embed(noise(1, 1, num_samples))
    assert frames.shape == (1, embedding.frames(num_samples), 8)
    assert bool(frames.numel()) == (num_samples >= 25)


loaded = {}


def load_hubert(folder):
    if folder not in loaded:
        loaded[folder] = load_embedding(f"w2v2:{folder}", device="cpu")
    return loaded[folder]


def test_long_clips_are_cut(hubert, monkeypatch):
    monkeypatch.setattr(module, "WINDOW_S", 1.0)
    embedding = load_embedding(f"w2v2:{hubert[0]}", device="cpu")
    audio = noise(2, 1, 2 * RATE + 20)  # the last 20 samples are less than a frame needs
    expected = torch.cat([embedding.embed(audio[..., s : s + RATE]) for s in (0, RATE)], dim=1)
    torch.testing.assert_close(embedding.embed(audio), expected)


# --- the hub's layouts


@pytest.mark.parametrize("kind", ["wav2vec2", "hubert"])
def test_a_network_with_a_head_loads_without_it(tmp_path, kind):
    model = save(tmp_path, kind, "ForCTC", vocab_size=5)
    embedding = load_embedding(f"w2v2:{tmp_path}", device="cpu")
    body = getattr(model, model.base_model_prefix).state_dict()
    for name, value in embedding._model.state_dict().items():
        assert torch.equal(value, body[name]), name


def as_published(model):
    """The names that weight-normed convolutions had when most models were published."""
    return {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): value.clone()
        for name, value in model.state_dict().items()
    }


def as_mert(folder, model):
    """The files of m-a-p/MERT-v1-95M: pickled weights, a type of its own, code of its own."""
    (folder / "model.safetensors").unlink()
    torch.save(as_published(model), folder / "pytorch_model.bin")
    (folder / "modeling_MERT.py").write_text("raise SystemExit('code of a repository was run')")
    change(
        folder,
        model_type="mert_model",
        architectures=["MERTModel"],
        auto_map={"AutoConfig": "modeling_MERT.MERTConfig", "AutoModel": "modeling_MERT.MERTModel"},
        feature_extractor_cqt=False,
        attention_relax=-1.0,
        deepnorm=False,
        sample_rate=RATE,
    )


def test_mert_is_loaded_as_the_hubert_that_it_is(tmp_path):
    model = save(tmp_path)
    audio = noise(1, 1, 900)
    expected = load_embedding(f"w2v2:{tmp_path}#2", device="cpu").embed(audio)
    as_mert(tmp_path, model)
    embedding = load_embedding(f"mert:{tmp_path}#2", device="cpu")
    assert torch.equal(embedding.embed(audio), expected)
    assert embedding.info.source.startswith("arXiv:2306.00107")
    named = load_embedding("mert", weights=tmp_path, device="cpu")
    assert named.info.name == "mert"
    assert "layer 3 of 3" in named.info.preprocessing


@pytest.mark.parametrize("option", ["feature_extractor_cqt", "deepnorm"])
def test_a_mert_that_needs_its_own_code_is_refused(tmp_path, option):
    as_mert(tmp_path, save(tmp_path))
    change(tmp_path, **{option: True})
    told = sentence(f"mert:{tmp_path}")
    assert f"({option} in its config.json), which only its own code computes" in told
    assert told.endswith("choose m-a-p/MERT-v1-95M")


class Trap:
    """What a pickled file can do to whoever reads it whole."""

    def __reduce__(self):
        return (pytest.fail, ("code of a downloaded file was run",))


def test_code_in_a_file_is_not_run(tmp_path):
    as_mert(tmp_path, save(tmp_path))
    for content in ({"encoder.layer_norm.weight": Trap()}, None):
        if content is None:
            (tmp_path / "pytorch_model.bin").write_bytes(b"<html>not found</html>")
        else:
            torch.save(content, tmp_path / "pytorch_model.bin")
        assert sentence(f"mert:{tmp_path}") == (
            f"embedding mert:{tmp_path}: the weights in {tmp_path} are damaged: download them again"
        )


def test_weights_that_are_missing_are_named(tmp_path):
    model = save(tmp_path)
    as_mert(tmp_path, model)
    state = as_published(model)
    del state["masked_spec_embed"]  # of no use but in training
    torch.save(state, tmp_path / "pytorch_model.bin")
    load_embedding(f"mert:{tmp_path}", device="cpu")
    del state["encoder.layers.1.final_layer_norm.bias"]
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert sentence(f"mert:{tmp_path}").endswith(
        "do not fit its config.json; missing: encoder.layers.1.final_layer_norm.bias"
    )


def test_layers_and_types_that_there_are_not(hubert, tmp_path):
    folder, _ = hubert
    assert sentence(f"w2v2:{folder}#4").endswith("the model has the layers 0 to 3, not 4")
    assert sentence(f"w2v2:{folder}#last").endswith("behind '#' stands the number of a layer, not 'last'")
    save(tmp_path)
    change(tmp_path, model_type="bert")
    assert "is of type 'bert'; known are wav2vec2, hubert, wavlm, " in sentence(f"w2v2:{tmp_path}")


def test_without_weights_it_says_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert "run `hf download m-a-p/MERT-v1-95M` where there is a network" in sentence("mert")
    assert "run `hf download facebook/wav2vec2-base` where" in sentence("w2v2:facebook/wav2vec2-base#6")
