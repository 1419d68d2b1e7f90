"""MusicGen in and out: the reference is the port in `transformers`, on small random models of all kinds."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    MusicgenDecoderConfig,
    MusicgenForCausalLM,
    MusicgenMelodyForCausalLM,
    T5Config,
    T5EncoderModel,
)
from transformers.models.musicgen.modeling_musicgen import MusicgenSinusoidalPositionalEmbedding
from transformers.models.musicgen_melody.configuration_musicgen_melody import MusicgenMelodyDecoderConfig

from tokkata.core.conditions import Condition, Conditions
from tokkata.core.errors import UserError
from tokkata.core.saved_model import read_config
from tokkata.lm.generate import generate
from tokkata.lm.musicgen.conversion import to_musicgen
from tokkata.lm.transformer import TransformerConfig, TransformerLM, sinusoids
from tokkata.tests.made_musicgen import (
    CHROMA_LENGTH,
    KINDS,
    TEXT_VOCAB,
    V,
    greedy_codes,
    made_musicgen,
    save_encodec,
)
from tokkata.tests.made_networks import save_t5
from tokkata.tokenize.codec import CodecInfo, load_codec, load_codec_from_info
from tokkata.tokenize.features.feature import FeatureInfo, load_feature_from_info

B, L = 3, 7

UNCONDITIONAL = {
    "input_ids": torch.ones(B, 1, dtype=torch.int64),
    "attention_mask": torch.zeros(B, 1, dtype=torch.int64),
}
"""Text that is masked altogether: what the port's own helpers give where there is none."""


@pytest.fixture(scope="module", params=KINDS)
def pair(request):
    """A MusicGen of each kind, and the same as a `TransformerLM`."""
    model = made_musicgen(**KINDS[request.param])
    return model, TransformerLM.from_musicgen(model)


def described(model, shown=(4, 7, 0)):
    """Texts of different lengths (0: hidden), and chroma for a melody model: inputs for both sides."""
    torch.manual_seed(1)
    mask = (torch.arange(L) < torch.tensor(shown)[:, None]).long()
    inputs = {"input_ids": torch.randint(2, TEXT_VOCAB, (len(shown), L)), "attention_mask": mask}
    with torch.no_grad():
        states = model.text_encoder(**inputs).last_hidden_state
    # Cut only to the longest of the batch, as the port pads.
    values = {"text": [one[:length] if length else None for one, length in zip(states, shown, strict=True)]}
    if hasattr(model.config, "num_chroma"):
        chroma = torch.nn.functional.one_hot(torch.randint(0, 12, (len(shown), 9)), 12).float()
        inputs["input_features"] = chroma
        values["melody"] = list(chroma)
    return inputs, values


def tokens(lm, num_steps=33, rows=B):
    return torch.randint(0, V + 1, (rows, lm.config.num_codebooks, num_steps))


@torch.no_grad()
def reference_logits(model, codes, **inputs):
    """Of the port, [B, K, S, V]; a melody model also gives those of the prepended steps."""
    rows, num_codebooks, num_steps = codes.shape
    name = "input_ids" if isinstance(model, MusicgenForCausalLM | MusicgenMelodyForCausalLM) else None
    logits = model(**inputs, **{name or "decoder_input_ids": codes.flatten(0, 1)}).logits
    return logits.unflatten(0, (rows, num_codebooks))[:, :, -num_steps:]


# --- the same function


def test_logits_are_those_of_transformers(pair):
    model, lm = pair
    inputs, values = described(model)
    codes = tokens(lm)
    with torch.no_grad():
        found = lm.logits(codes, lm.config.conditions.encode(values))
    expected = reference_logits(model, codes, **inputs)
    assert expected.std() > 0.5
    without = reference_logits(model, codes, **UNCONDITIONAL)
    assert not torch.allclose(expected[:2], without[:2], atol=0.1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_logits_without_conditions(pair):
    model, lm = pair
    codes = tokens(lm)
    with torch.no_grad():
        found = lm.logits(codes)
    torch.testing.assert_close(found, reference_logits(model, codes, **UNCONDITIONAL), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["melody", "melody, text of the model's width"])
def test_a_melody_model_hears_silence_where_it_is_told_texts_alone(kind):
    model = made_musicgen(**KINDS[kind])
    lm = TransformerLM.from_musicgen(model)
    inputs, values = described(model)
    del inputs["input_features"], values["melody"]
    codes = tokens(lm)
    with torch.no_grad():
        found = lm.logits(codes, lm.config.conditions.encode(values, partial=True))
    torch.testing.assert_close(found, reference_logits(model, codes, **inputs), rtol=0, atol=1e-4)


def test_a_melody_is_repeated_and_cut():
    model = made_musicgen(melody=True)
    lm = TransformerLM.from_musicgen(model)
    inputs, values = described(model)
    for length in (1, CHROMA_LENGTH - 1, CHROMA_LENGTH, CHROMA_LENGTH + 5):
        chroma = torch.nn.functional.one_hot(torch.randint(0, 12, (B, length)), 12).float()
        codes = tokens(lm)
        given = lm.config.conditions.encode({**values, "melody": list(chroma)})
        with torch.no_grad():
            found = lm.logits(codes, given)
        expected = reference_logits(model, codes, **{**inputs, "input_features": chroma})
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("melody", [False, True])
@pytest.mark.parametrize("shown", [None, (5, 2, 0)])
def test_bare_decoders(melody, shown):
    settings = {"vocab_size": V, "pad_token_id": V, "bos_token_id": V, "num_hidden_layers": 2}
    settings |= {"hidden_size": 32, "ffn_dim": 64, "num_attention_heads": 2, "num_codebooks": 3}
    torch.manual_seed(0)
    if melody:
        model = MusicgenMelodyForCausalLM(MusicgenMelodyDecoderConfig(**settings)).eval()
    else:
        model = MusicgenForCausalLM(MusicgenDecoderConfig(**settings)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    lm = TransformerLM.from_musicgen(model)
    codes = tokens(lm)
    if shown is None:
        inputs, given = {}, {}
    else:
        states = torch.randn(B, 5, 32)
        mask = torch.arange(5) < torch.tensor(shown)[:, None]
        inputs = {"encoder_hidden_states": states * mask[..., None], "encoder_attention_mask": mask.long()}
        name = lm.config.conditions.names[0]
        given = lm.config.conditions.encode(
            {name: [one[:length] for one, length in zip(states, shown, strict=True)]}
        )
    with torch.no_grad():
        found = lm.logits(codes, given)
    if melody and shown is not None:
        # The port counts the padding before a clip's first step as places; here a clip is what it is alone.
        alone = [
            {"encoder_hidden_states": one[None, :length]} if length else {}
            for one, length in zip(states, shown, strict=True)
        ]
        expected = torch.cat(
            [reference_logits(model, codes[i : i + 1], **one) for i, one in enumerate(alone)]
        )
    else:
        expected = reference_logits(model, codes, **inputs)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    back = to_musicgen(lm)
    assert type(back) is type(model)
    assert_same(back, model)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_greedy_tokens_are_those_of_transformers(pair, guidance):
    model, lm = pair
    inputs, values = described(model)
    expected = greedy_codes(model, 200, guidance, **inputs)
    found = generate(lm, 200, conditions=values, temperature=0, cfg_scale=guidance)
    assert expected.shape == (B, lm.config.num_codebooks, 200)
    assert len(expected.unique()) > 20
    assert torch.equal(found, expected)


@pytest.mark.parametrize("kind", ["mono", "stereo", "melody"])
def test_continuations_are_those_of_transformers(kind):
    model = made_musicgen(**KINDS[kind])
    lm = TransformerLM.from_musicgen(model)
    inputs, values = described(model)
    prompt = torch.randint(0, V, (B, lm.config.num_codebooks, 20))
    expected = greedy_codes(model, 60, 3.0, **inputs, decoder_input_ids=prompt.flatten(0, 1))
    found = generate(lm, 60, conditions=values, prompt=prompt, temperature=0, cfg_scale=3.0)
    assert torch.equal(expected[:, :, :20], prompt)
    assert torch.equal(found, expected)


def test_positions_are_those_of_transformers_to_the_last_bit():
    for dim in (32, 1024, 1536, 2048):
        table = MusicgenSinusoidalPositionalEmbedding.get_embedding(2048, dim)
        assert torch.equal(sinusoids(torch.arange(2048), dim), table)


# --- what surrounds it


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """A MusicGen that names its text encoder and its codec, which lie in folders, saved in a third."""
    folder = tmp_path_factory.mktemp("hub")
    t5 = save_t5(folder / "t5", dim=24)
    encodec = save_encodec(folder / "encodec")
    model = made_musicgen(text_config=T5Config.from_pretrained(t5), names=(str(t5), str(encodec)))
    model.text_encoder.load_state_dict(T5EncoderModel.from_pretrained(t5).state_dict())
    model.save_pretrained(folder / "musicgen")
    return model, folder / "musicgen"


def test_configuration(named):
    model, folder = named
    config = TransformerLM.from_musicgen(folder).config
    assert config.window_frames == 1500  # 30 s
    assert config.delays == (0, 1, 2, 3)
    assert config.dropout == model.config.decoder.dropout
    assert config.hidden_dim == 48
    stereo = TransformerLM.from_musicgen(made_musicgen(**KINDS["stereo"])).config
    assert stereo.delays == (0, 0, 1, 1, 2, 2, 3, 3)


def test_the_codec_can_be_loaded(named):
    _, folder = named
    config = TransformerLM.from_musicgen(folder).config
    info = CodecInfo.from_json(config.codec, "codec")
    codec = load_codec_from_info(info)
    info.check_matches(codec.info, "codec")
    assert (codec.info.num_codebooks, codec.info.codebook_size) == (4, V)
    assert codec.frame_rate == config.frame_rate == 50
    names = ("t5", info.id)
    stereo = TransformerLM.from_musicgen(made_musicgen(**KINDS["stereo"], names=names)).config
    codec = load_codec_from_info(CodecInfo.from_json(stereo.codec, "codec"))
    CodecInfo.from_json(stereo.codec, "codec").check_matches(load_codec(info.id, stereo=True).info, "codec")
    assert codec.decode(torch.zeros(1, 8, 4, dtype=torch.int64)).shape == (1, 2, 4 * 640)


def test_new_texts_mean_what_they_mean_to_transformers(named):
    """From words to tokens: the text encoder that the configuration names, then greedy generation."""
    model, folder = named
    lm = TransformerLM.from_musicgen(folder)
    info = FeatureInfo.from_json(lm.config.conditions["text"].feature, "text")
    feature = load_feature_from_info(info)
    texts = ["slow piano", "a loud drum and a slow bass", ""]
    found = generate(lm, 40, conditions={"text": feature.encode_text(texts)}, temperature=0, cfg_scale=3.0)
    words = feature._tokenizer(texts, padding=True, return_tensors="pt")
    words["attention_mask"][2] = 0
    inputs = {name: words[name] for name in ("input_ids", "attention_mask")}
    assert torch.equal(found, greedy_codes(model, 40, 3.0, **inputs))
    assert not torch.equal(found[0], found[1])


def test_names_that_the_source_does_not_tell(named):
    model = made_musicgen()
    config = TransformerLM.from_musicgen(model).config
    assert config.codec == {}
    assert config.conditions["text"].feature is None
    told = TransformerLM.from_musicgen(model, codec="facebook/encodec_32khz", text_encoder="t5-base").config
    assert told.codec["id"] == "facebook/encodec_32khz"
    assert told.conditions["text"].feature["encoder"] == "google-t5/t5-base"


# --- files


def assert_same(found, expected):
    """The same tensors, bit for bit."""
    found, expected = found.state_dict(), expected.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_round_trip_bit_for_bit(pair, tmp_path):
    model, lm = pair
    back = to_musicgen(lm, model.text_encoder, model.audio_encoder)
    assert type(back) is type(model)
    assert_same(back, model)
    back.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert_same(loaded, model)
    assert_same(TransformerLM.from_musicgen(tmp_path), lm)
    assert (loaded.generation_config.decoder_start_token_id, loaded.generation_config.max_length) == (V, 1500)
    ours = TransformerLM.from_musicgen(tmp_path)
    ours.save_pretrained(tmp_path / "ours")
    assert_same(TransformerLM.from_pretrained(tmp_path / "ours"), lm)
    assert TransformerLM.from_pretrained(tmp_path / "ours").config == ours.config


def test_encoders_are_loaded_by_name(named):
    model, folder = named
    lm = TransformerLM.from_musicgen(folder)
    back = to_musicgen(lm)
    encodec = load_codec(lm.config.codec["id"]).model.state_dict()
    expected = model.state_dict() | {f"audio_encoder.{name}": t for name, t in encodec.items()}
    found = back.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert TransformerLM.from_musicgen(back).config == lm.config


def rewrite(folder, target, change):
    """A copy of the model in `folder` whose tensors went through `change`; its weights are in one file."""
    target.mkdir()
    (target / "config.json").write_text((folder / "config.json").read_text())
    tensors = change(load_file(folder / "model.safetensors"))
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def test_forms_of_weights(named, tmp_path):
    model, folder = named
    expected = TransformerLM.from_musicgen(folder)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    assert_same(TransformerLM.from_musicgen(tmp_path / "sharded"), expected)

    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text((folder / "config.json").read_text())
    torch.save(model.state_dict(), pickled / "pytorch_model.bin")
    assert_same(TransformerLM.from_musicgen(pickled), expected)

    half = rewrite(folder, tmp_path / "half", lambda ts: {name: t.half() for name, t in ts.items()})
    lm = TransformerLM.from_musicgen(half)
    assert lm.head.weight.dtype == torch.float32
    torch.testing.assert_close(lm.head.weight, expected.head.weight.half().float(), rtol=0, atol=0)


def test_the_table_of_positions_in_older_files(named, tmp_path):
    _, folder = named
    key = "decoder.model.decoder.embed_positions.weights"
    table = MusicgenSinusoidalPositionalEmbedding.get_embedding(2048, 32)
    older = rewrite(folder, tmp_path / "older", lambda ts: ts | {key: table})
    assert_same(TransformerLM.from_musicgen(older), TransformerLM.from_musicgen(folder))
    other = rewrite(folder, tmp_path / "other", lambda ts: ts | {key: table.flip(1)})
    with pytest.raises(UserError, match="its table of positions does not hold MusicGen's sinusoids"):
        TransformerLM.from_musicgen(other)


HEAD = "decoder.lm_heads.1.weight"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda ts: {k: t for k, t in ts.items() if k != HEAD}, f"tensors missing: {HEAD}$"),
        (lambda ts: ts | {"decoder.extra": torch.zeros(1)}, "tensors unexpected: decoder.extra$"),
        (lambda ts: ts | {HEAD: torch.zeros(V, 8)}, "tensors of another shape: decoder.lm_heads.1.weight$"),
        (
            lambda ts: {k: t for k, t in ts.items() if "proj.bias" not in k},
            "tensors missing: enc_to_dec_proj.bias$",
        ),
    ],
)
def test_weights_that_do_not_fit(named, tmp_path, change, told):
    changed = rewrite(named[1], tmp_path / "changed", change)
    with pytest.raises(UserError, match=rf"the weights of .* do not fit its config.json; {told}"):
        TransformerLM.from_musicgen(changed)


def damaged(folder, tmp_path):
    changed = rewrite(folder, tmp_path / "damaged", lambda ts: ts)
    with (changed / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    return changed


def unsafe(folder, tmp_path):
    changed = tmp_path / "unsafe"
    changed.mkdir()
    (changed / "config.json").write_text((folder / "config.json").read_text())
    torch.save({"model": print}, changed / "pytorch_model.bin")
    return changed


def without_weights(folder, tmp_path):
    changed = rewrite(folder, tmp_path / "none", lambda ts: ts)
    (changed / "model.safetensors").unlink()
    return changed


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (damaged, r"model.safetensors is missing or damaged: download"),
        (unsafe, r"pytorch_model.bin is missing or damaged: download"),
        (without_weights, r"holds no model: model.safetensors is missing"),
        (lambda folder, tmp: folder.parent / "t5", r"is no MusicGen: its type is 't5', not 'musicgen' or"),
        (lambda folder, tmp: tmp, r"holds no model: its config.json is missing or no JSON"),
        (lambda folder, tmp: "no/musicgen", r"model no/musicgen is neither a folder nor in the Hugging Face"),
    ],
)
def test_what_is_no_musicgen(named, tmp_path, monkeypatch, make, told):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=told):
        TransformerLM.from_musicgen(make(named[1], tmp_path))


@pytest.mark.parametrize(
    ("section", "setting", "value", "told"),
    [
        ("decoder", "activation_function", "relu", "its decoder has activation_function 'relu', not 'gelu'"),
        ("decoder", "pad_token_id", 0, "its decoder has pad_token_id 0, not 64"),
        ("audio_encoder", "codebook_size", 128, "has codebooks of 128, its decoder of 64"),
        ("audio_encoder", "target_bandwidths", [0.6], "has 2 codebooks, but its decoder wants 4"),
        ("decoder", "audio_channels", 2, "has 4 codebooks, but its decoder wants 2"),
    ],
)
def test_a_musicgen_that_cannot_be_expressed(section, setting, value, told):
    model = made_musicgen()
    setattr(getattr(model.config, section), setting, value)
    with pytest.raises(UserError, match=told):
        TransformerLM.from_musicgen(model)


PITCH = Condition("pitch", "label", values=(60,))
TEXT = Condition("text", "sequence", "cross", width=24)
MORE = Condition("more", "sequence", "cross", width=4)
MELODY = Condition(
    "melody", "sequence", "prepend", width=12, length=9, attend_padding=True, repeat=True, null="first"
)
MUSICGEN = {"norm": "layernorm", "activation": "gelu", "positions": "sinusoidal", "qk_norm": False}


def config(conditions=(TEXT,), **shape):
    shape = {"dim": 16, "num_layers": 1, "num_heads": 2} | MUSICGEN | shape
    return TransformerConfig(
        num_codebooks=4, codebook_size=V, frame_rate=50.0, conditions=Conditions(conditions), **shape
    )


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"pattern": "flatten"}, "no pattern 'flatten', only 'delay'"),
        ({"delays": (0, 2, 4, 6)}, r"no delays \[0, 2, 4, 6\]"),
        ({"norm": "rmsnorm"}, "no norm 'rmsnorm', only 'layernorm'"),
        ({"activation": "swiglu"}, "no activation 'swiglu'"),
        ({"positions": "rope"}, "no positions 'rope'"),
        ({"qk_norm": True}, "no qk_norm True"),
        ({"num_kv_heads": 1}, "no num_kv_heads 1, only 2"),
        (
            {"conditions": (TEXT, Condition("pitch", "label", values=(60,)))},
            "no condition like 'pitch', a label",
        ),
        ({"conditions": (Condition("style", "sequence", width=4),)}, "'style', a sequence that is summed"),
        (
            {"conditions": (Condition("text", "sequence", "cross", width=16),)},
            "projects no sequence that has",
        ),
        (
            {"conditions": (TEXT, Condition("more", "sequence", "cross", width=4))},
            "it has one text of any length",
        ),
        ({"conditions": (MELODY,)}, "a melody model has a repeated melody, then text"),
        (
            {"conditions": (Condition("text", "sequence", "prepend", width=4),)},
            "a sequence that is prepended without a melody",
        ),
        ({}, "this model does not say what encodes 'text': give text_encoder"),
    ],
)
def test_what_musicgen_does_not_have(changed, told):
    with pytest.raises(UserError, match=told):
        to_musicgen(TransformerLM(config(**changed)))


def test_encoders_that_do_not_fit(pair):
    model, lm = pair
    other = T5EncoderModel(T5Config(vocab_size=8, d_model=10, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
    with pytest.raises(UserError, match="text_encoder has width 10, but condition 'text' of this model has"):
        to_musicgen(lm, other, model.audio_encoder)


def test_config_files_stay_readable(named):
    """What an imported model says of itself is JSON that names its codec and text encoder."""
    _, folder = named
    lm = TransformerLM.from_musicgen(folder)
    lm.save_pretrained(folder.parent / "imported")
    values = read_config(folder.parent / "imported" / "config.json")
    assert values["codec"]["id"] == str(folder.parent / "encodec")
    assert json.loads(json.dumps(values))["conditions"][0]["feature"]["encoder"] == str(folder.parent / "t5")
