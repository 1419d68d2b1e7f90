"""Features of texts, on tiny random encoders in the hub's layout, against transformers' own."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import ClapModel, T5EncoderModel, T5ForConditionalGeneration

from tokkata.core.errors import UserError
from tokkata.core.released_file import sha256_of
from tokkata.core.schema_features import TextFeature
from tokkata.tests.made_networks import CLAP_WORDS, T5_WORDS, save_t5
from tokkata.tokenize.features.feature import load_feature, load_feature_from_info

TEXTS = ["a slow piano", "drum", None, "loud drum and a loud bass", "drum", " ", ""]


def section(encoder, **more):
    return TextFeature(kind="text", encoder=str(encoder), **{"store": "float32", **more})


@pytest.fixture(scope="module")
def feature(t5):
    return load_feature(section(t5))


def ids(words, text):
    return [words.index(word) for word in text.split()]


def states(folder, text):
    """What transformers' encoder makes of a text alone, `[L, E]`."""
    model = T5EncoderModel.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(torch.tensor([[*ids(T5_WORDS, text), 1]])).last_hidden_state[0]


# --- T5


def test_hidden_states_are_those_of_transformers(t5, feature):
    """In batches that fill up shorter texts, in the order asked for, with nothing of what fills them up."""
    found = feature.encode_text(TEXTS, batch_size=3)
    for text, values in zip(TEXTS, found, strict=True):
        assert values.dtype == torch.float32
        if text is None or not text.strip():
            assert values.shape == (0, 16)
            continue
        torch.testing.assert_close(values, states(t5, text), rtol=0, atol=1e-5)
    assert torch.equal(found[1], found[4])


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(T5_WORDS[2:]), max_size=9).map(" ".join), max_size=8), st.integers(1, 5)
)
def test_a_text_is_encoded_alike_in_any_company(feature, texts, batch_size):
    together = feature.encode_text(texts, batch_size)
    for text, values in zip(texts, together, strict=True):
        assert values.shape == (len(text.split()) + 1 if text else 0, 16)
        torch.testing.assert_close(values, feature.encode_text([text])[0], rtol=0, atol=1e-5)


def test_threads_decide_no_bit(t5, clap):
    """Many processes have one each, one process has all: their stores are the same."""
    texts = [" ".join(T5_WORDS[3 + (i + j) % 7] for j in range(1 + i % 9)) for i in range(40)]
    before = torch.get_num_threads()
    for folder in (t5, clap):
        found = []
        for num_threads in (1, 3):
            torch.set_num_threads(num_threads)
            try:
                found.append(load_feature(section(folder)).encode_text(texts, 3))
                assert torch.get_num_threads() == num_threads
            finally:
                torch.set_num_threads(before)
        for one, other in zip(*found, strict=True):
            assert torch.equal(one, other)


def test_long_texts_are_cut_before_their_end_token(t5):
    feature = load_feature(section(t5, max_tokens=4))
    found = feature.encode_text(["a slow piano and a loud drum"])[0]
    torch.testing.assert_close(found, states(t5, "a slow piano"), rtol=0, atol=1e-5)


def test_a_whole_t5_is_as_good_as_its_encoder(tmp_path):
    """As on the Hub, where decoders come with it."""
    folder = save_t5(tmp_path, T5ForConditionalGeneration)
    found = load_feature(section(folder)).encode_text(["slow drum"])[0]
    torch.testing.assert_close(found, states(folder, "slow drum"), rtol=0, atol=1e-5)


def test_values_are_rounded_as_they_are_stored(t5, feature):
    half = load_feature(section(t5, store="float16"))
    for rounded, exact in zip(half.encode_text(TEXTS), feature.encode_text(TEXTS), strict=True):
        assert rounded.dtype == torch.float32
        assert torch.equal(rounded, exact.half().float())


def test_values_that_half_precision_cannot_hold(t5, monkeypatch):
    half = load_feature(section(t5, store="float16", name="prompt"))
    monkeypatch.setattr(half, "encode", lambda tokens: [torch.full((1, 16), 1e5)])
    with pytest.raises(UserError) as caught:
        half.encode_text(["drum"])
    assert str(caught.value) == (
        f"feature 'prompt': {t5} gives values that are infinite in float16: set its `store` to float32, or"
        " choose another encoder"
    )


# --- CLAP


def test_claps_vectors_are_those_of_transformers(clap):
    feature = load_feature(section(clap, max_tokens=5))
    model = ClapModel.from_pretrained(clap).eval()
    for text, values in zip(TEXTS, feature.encode_text(TEXTS), strict=True):
        if text is None or not text.strip():
            assert values.shape == (0, 12)
            continue
        sentence = torch.tensor(
            [[0, *[CLAP_WORDS.index(w) if w in CLAP_WORDS else 3 for w in text.split()][:3], 2]]
        )
        with torch.no_grad():
            wanted = model.get_text_features(input_ids=sentence).pooler_output
        assert values.shape == (1, 12)
        torch.testing.assert_close(values, wanted, rtol=0, atol=1e-5)


# --- what it tells, and loading again


@pytest.mark.parametrize("kind", ["t5", "clap"])
def test_a_new_prompt_finds_the_same_encoder(kind, request):
    folder = request.getfixturevalue(kind)
    feature = load_feature(section(folder, name="prompt", column="title", max_tokens=9, store="float16"))
    info = feature.info
    assert (info.name, info.kind, info.dim) == ("prompt", "text", {"t5": 16, "clap": 12}[kind])
    assert (info.encoder, info.revision) == (str(folder), sha256_of(folder / "model.safetensors")[:12])
    assert (info.column, info.max_tokens, info.frame_rate) == ("title", 9, None)
    again = load_feature_from_info(type(info).from_json(info.to_json(), "here"))
    assert again.info == info
    for one, other in zip(feature.encode_text(TEXTS), again.encode_text(TEXTS), strict=True):
        assert torch.equal(one, other)


def told(function, *arguments):
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_encoder_that_has_changed_since(tmp_path):
    folder = save_t5(tmp_path)
    info = load_feature(section(folder)).info
    save_t5(tmp_path, seed=1)
    changed = told(load_feature_from_info, info)
    assert changed.startswith("feature 'text' as it is now: revision is ")
    save_t5(tmp_path, dim=8)
    kept = dataclasses.replace(load_feature(section(folder)).info, dim=16)
    assert told(load_feature_from_info, kept) == "feature 'text' as it is now: dim is 8, but 16 is needed"


def test_without_an_encoder_it_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert told(load_feature, section("google-t5/t5-base")) == (
        "text encoder google-t5/t5-base is neither a folder nor in the Hugging Face cache, and cannot be"
        " downloaded now: run `hf download google-t5/t5-base` where there is a network, or give a folder in"
        " the hub's layout"
    )
    assert told(load_feature, section(tmp_path)) == (
        f"text encoder {tmp_path}: {tmp_path} is not a model in the hub's layout, it lacks config.json,"
        " tokenizer.json, tokenizer_config.json, model.safetensors or pytorch_model.bin"
    )


def test_other_networks_are_refused(t5, tmp_path):
    for file in t5.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = (tmp_path / "config.json").read_text().replace('"model_type": "t5"', '"model_type": "bert"')
    (tmp_path / "config.json").write_text(config)
    assert told(load_feature, section(tmp_path)) == (
        f"text encoder {tmp_path} is of type 'bert': a T5, such as google-t5/t5-base, or a CLAP is needed"
    )
