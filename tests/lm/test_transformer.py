import copy
import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from tokkata.core.errors import UserError
from tokkata.lm.conditions import HIDDEN, LabelVocabulary, drop_conditions
from tokkata.lm.transformer import KVCache, LMLoss, TransformerConfig, TransformerLM, rotary_tables, rotate

K, V = 3, 11
CODEC = {"id": "pocket", "num_codebooks": K, "codebook_size": V, "frame_rate": 50.0}
VOCABULARY = LabelVocabulary({"pitch": [60, 62, 64], "form": ["chord", "note"]})


def tiny(seed: int = 0, scale: float = 8.0, vocabulary: LabelVocabulary = VOCABULARY) -> TransformerLM:
    """A small model whose weights are large enough for every part of it to matter."""
    torch.manual_seed(seed)
    config = TransformerConfig.for_codec(CODEC, dim=16, num_layers=2, num_heads=2, vocabulary=vocabulary)
    lm = TransformerLM(config).eval()
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.mul_(scale if parameter.ndim == 2 else 1)
    return lm


def random_codes(batch_size: int = 4, num_frames: int = 7, seed: int = 1) -> Tensor:
    return torch.randint(0, V, (batch_size, K, num_frames), generator=torch.Generator().manual_seed(seed))


def shifted(lm: TransformerLM, codes: Tensor) -> tuple[Tensor, Tensor]:
    """The pattern's sequence, and the same one step late behind the step that begins it."""
    sequence = lm.pattern.apply(codes, V)
    begin = torch.full_like(sequence[:, :, :1], V)
    return sequence, torch.cat([begin, sequence[:, :, :-1]], dim=2)


LABELS = torch.tensor([[1, 1], [2, 2], [3, 1], [0, 0]])


# ------------------------------------------------------------------------------------------------ the loss


def test_the_loss_is_the_cross_entropy_of_the_logits_where_the_pattern_has_tokens() -> None:
    lm, codes = tiny(), random_codes()
    sequence, inputs = shifted(lm, codes)
    log_probabilities = lm.logits(inputs, LABELS).log_softmax(-1)  # [B, K, S, V]
    per_codebook = []
    for k in range(K):
        losses = [
            -log_probabilities[b, k, s, sequence[b, k, s]]
            for b in range(codes.shape[0])
            for s in range(sequence.shape[2])
            if sequence[b, k, s] != V
        ]
        per_codebook.append(torch.stack(losses).mean())
    loss = lm(codes, LABELS)
    assert isinstance(loss, LMLoss)
    torch.testing.assert_close(loss.per_codebook, torch.stack(per_codebook))
    torch.testing.assert_close(loss.mean, torch.stack(per_codebook).mean())
    assert loss.num_tokens == codes.numel()


def test_an_untrained_model_knows_nothing() -> None:
    torch.manual_seed(0)
    config = TransformerConfig.for_codec(CODEC | {"codebook_size": 1024}, dim=64, num_layers=3, num_heads=4)
    codes = torch.randint(0, 1024, (2, K, 20))
    assert TransformerLM(config)(codes).mean.item() == pytest.approx(math.log(1024), abs=0.01)


def test_padding_is_neither_seen_nor_counted() -> None:
    lm, codes = tiny(), random_codes(num_frames=7)
    lengths = torch.tensor([7, 5, 6, 2])
    mask = torch.arange(7) < lengths[:, None]
    padded = lm(codes, LABELS, mask)
    alone = [lm(codes[i : i + 1, :, :n], LABELS[i : i + 1]) for i, n in enumerate(lengths.tolist())]
    total = sum(loss.mean * loss.num_tokens for loss in alone)
    assert padded.num_tokens == lengths.sum() * K == sum(loss.num_tokens for loss in alone)
    torch.testing.assert_close(padded.mean, total / padded.num_tokens)

    other_padding = torch.where(mask[:, None], codes, (codes + 1) % V)
    assert torch.equal(lm(other_padding, LABELS, mask).mean, padded.mean)
    assert not torch.equal(lm(other_padding, LABELS).mean, lm(codes, LABELS).mean)


def test_every_parameter_learns() -> None:
    lm = tiny()
    lm(random_codes(), LABELS).mean.backward()
    for name, parameter in lm.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_the_loss_is_float32_under_autocast() -> None:
    lm, codes = tiny(), random_codes()
    with torch.autocast("cpu", torch.bfloat16):
        loss = lm(codes, LABELS)
    assert loss.mean.dtype == torch.float32
    assert loss.mean.item() == pytest.approx(lm(codes, LABELS).mean.item(), rel=0.05)


# ------------------------------------------------------------------------------------------- what sees what


def test_no_step_sees_a_later_one_and_all_see_the_earlier_ones() -> None:
    lm, codes = tiny(), random_codes(batch_size=1)
    _, inputs = shifted(lm, codes)
    before = lm.logits(inputs, LABELS[:1])
    for step in range(1, inputs.shape[2]):
        changed = inputs.clone()
        changed[:, :, step] = (changed[:, :, step] + 1) % V
        differs = (lm.logits(changed, LABELS[:1]) - before).abs().amax(dim=(0, 1, 3)) > 1e-6
        assert differs.tolist() == [s >= step for s in range(inputs.shape[2])]


def test_codebooks_do_not_share_embeddings() -> None:
    lm = tiny()
    inputs = torch.tensor([[[1], [2], [V]], [[2], [1], [V]], [[1], [V], [2]]])
    a, b, c = lm.logits(inputs)
    assert not torch.allclose(a, b)
    assert not torch.allclose(a, c)


def test_labels_change_the_prediction_and_hidden_ones_are_those_not_given() -> None:
    lm = tiny()
    _, inputs = shifted(lm, random_codes(batch_size=1))
    hidden = torch.zeros(1, 2, dtype=torch.int64)
    assert torch.equal(lm.logits(inputs, hidden), lm.logits(inputs, None))
    seen = [lm.logits(inputs, torch.tensor([[p, f]])) for p in range(4) for f in range(3)]
    for i, a in enumerate(seen):
        for b in seen[:i]:
            assert not torch.allclose(a, b)


def test_attention_is_the_textbook_formula() -> None:
    lm = tiny()
    attention = lm.blocks[0].attention
    x = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(0))
    rotary = rotary_tables(0, 5, 8, x.device)
    q, k, v = (part.view(5, 2, 8) for part in attention.qkv(x)[0].chunk(3, dim=-1))
    expected = torch.zeros(5, 2, 8)
    for head in range(2):
        rms = [y[:, head] / (y[:, head].square().mean(-1, keepdim=True) + 1e-6).sqrt() for y in (q, k)]
        turned_q, turned_k = (rotate(y, *rotary) for y in rms)
        for i in range(5):
            weights = (turned_k[: i + 1] @ turned_q[i] / math.sqrt(8)).softmax(0)
            expected[i, head] = weights @ v[: i + 1, head]
    torch.testing.assert_close(attention(x, rotary, None)[0], attention.out(expected.flatten(1)))


def test_rotary_products_depend_on_the_distance_alone() -> None:
    q, k = torch.randn(2, 1, 8, generator=torch.Generator().manual_seed(0))
    far = [rotate(y, *rotary_tables(s, 1, 8, y.device)) for y, s in ((q, 1007), (k, 1003))]
    near = [rotate(y, *rotary_tables(s, 1, 8, y.device)) for y, s in ((q, 4), (k, 0))]
    torch.testing.assert_close((far[0] * far[1]).sum(), (near[0] * near[1]).sum(), atol=1e-4, rtol=1e-4)
    other = rotate(q, *rotary_tables(5, 1, 8, q.device))
    assert not torch.allclose((other * near[1]).sum(), (near[0] * near[1]).sum(), atol=1e-3)
    # Position 1, slowest and fastest pair: angles 1 and 10000^(-3/4).
    cos, _ = rotary_tables(1, 1, 8, q.device)
    torch.testing.assert_close(cos[0, [0, 3]], torch.tensor([math.cos(1), math.cos(1e-3)]))


# ------------------------------------------------------------------------------------------------ the cache


@pytest.mark.parametrize("chunks", [[1] * 9, [9], [4, 1, 1, 3], [1, 8]])
def test_cached_logits_are_the_uncached_ones(chunks: list[int]) -> None:
    lm, codes = tiny(), random_codes(num_frames=7)
    _, inputs = shifted(lm, codes)
    cache = KVCache(lm.config, 4, 9)
    buffers = cache.keys.data_ptr(), cache.values.data_ptr()
    with torch.no_grad():
        expected = lm.logits(inputs, LABELS)
        parts = [lm.logits(part, LABELS, cache) for part in inputs.split(chunks, dim=2)]
    torch.testing.assert_close(torch.cat(parts, dim=2), expected, atol=1e-5, rtol=1e-5)
    assert cache.length == 9
    assert (cache.keys.data_ptr(), cache.values.data_ptr()) == buffers


def test_a_full_cache_is_an_error() -> None:
    lm = tiny()
    with pytest.raises(ValueError, match="holds 2 steps, 3 are needed"):
        lm.logits(torch.zeros(1, K, 3, dtype=torch.int64), cache=KVCache(lm.config, 1, 2))


def test_clips_may_be_longer_than_any_seen() -> None:
    lm = tiny()
    assert lm.logits(torch.zeros(1, K, 3000, dtype=torch.int64)).isfinite().all()


# -------------------------------------------------------------------------------------------------- labels


def test_conditions_are_dropped_clip_by_clip() -> None:
    labels = torch.randint(1, 5, (1000, 3), generator=torch.Generator().manual_seed(0))
    dropped = drop_conditions(labels, 0.5, torch.Generator().manual_seed(1))
    hidden = (dropped == HIDDEN).all(dim=1)
    assert 440 < hidden.sum() < 560
    assert torch.equal(dropped[~hidden], labels[~hidden])
    assert torch.equal(dropped, drop_conditions(labels, 0.5, torch.Generator().manual_seed(1)))
    assert torch.equal(drop_conditions(labels, 0.0), labels)
    assert not drop_conditions(labels, 1.0).any()


def test_labels_become_rows_of_their_tables() -> None:
    rows = [{"pitch": 62, "form": "note", "id": 1}, {"pitch": 60, "form": "chord", "id": 2}]
    vocabulary = LabelVocabulary.from_rows(["pitch", "form"], rows)
    assert vocabulary.values == {"pitch": [60, 62], "form": ["chord", "note"]}
    assert vocabulary.table_sizes == [3, 3]
    encoded = vocabulary.encode({"form": ["note", "chord", "note"], "pitch": [60, 60, 62]})
    assert encoded.dtype == torch.int64
    assert encoded.tolist() == [[1, 2], [1, 1], [2, 2]]
    assert LabelVocabulary().encode({}).shape == (0, 0)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"pich": [60], "form": ["note"]}, r"unknown label 'pich' \(did you mean 'pitch'\?\): known are"),
        ({"pitch": [61], "form": ["note"]}, "unknown value 61 for label 'pitch': known are 60, 62, 64"),
        ({"pitch": [60], "form": ["notes"]}, r"'notes' for label 'form' \(did you mean 'note'\?\)"),
        ({"pitch": [60]}, "label 'form' is missing: this model needs 'pitch', 'form'"),
        ({"pitch": [60, 60], "form": ["note"]}, "numbers differ: {'pitch': 2, 'form': 1}"),
    ],
)
def test_labels_that_the_model_does_not_know_are_named(
    labels: dict[str, list[int | str]], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        VOCABULARY.encode(labels)


def test_labels_that_the_clips_do_not_have_are_named() -> None:
    with pytest.raises(UserError, match="no label 'instrument': they have 'form', 'pitch'"):
        LabelVocabulary.from_rows(["instrument"], [{"pitch": 1, "form": "note"}])
    with pytest.raises(UserError, match="mixes numbers and text"):
        LabelVocabulary.from_rows(["pitch"], [{"pitch": 1}, {"pitch": "C4"}])
    with pytest.raises(UserError, match="'tags' has any number of tags"):
        LabelVocabulary.from_rows(["tags"], [{"tags": ("slow", "loud")}])
    with pytest.raises(UserError, match="'tempo' has fractions"):
        LabelVocabulary.from_rows(["tempo"], [{"tempo": 1}, {"tempo": 0.5}])
    with pytest.raises(UserError, match="trained without labels"):
        LabelVocabulary().encode({"pitch": [1]})


# ------------------------------------------------------------------------------------------ saving, loading


def test_a_saved_model_loads_bit_for_bit(tmp_path: Path) -> None:
    lm = tiny()
    lm.save_pretrained(tmp_path / "model")
    loaded = TransformerLM.from_pretrained(tmp_path / "model")
    assert loaded.config == lm.config
    assert loaded.config.vocabulary == VOCABULARY
    assert loaded.config.codec == CODEC
    assert not loaded.training
    _, inputs = shifted(lm, random_codes())
    assert torch.equal(loaded.logits(inputs, LABELS), lm.logits(inputs, LABELS))
    copy.deepcopy(lm).save_pretrained(tmp_path / "copy")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "copy" / name).read_bytes() == (tmp_path / "model" / name).read_bytes()


def test_saving_keeps_a_model_card(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    tiny().save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    tiny().save_pretrained(tmp_path / "new")
    assert "labels: pitch, form" in (tmp_path / "new" / "README.md").read_text()


def test_weights_load_strictly(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["blocks.0.attention.query.weight"] = weights.pop("blocks.0.attention.qkv.weight")
    weights["norm.weight"] = torch.ones(17)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(UserError) as caught:
        TransformerLM.from_pretrained(tmp_path)
    assert "missing: blocks.0.attention.qkv.weight;" in str(caught.value)
    assert "unexpected: blocks.0.attention.query.weight;" in str(caught.value)
    assert "of another shape: norm.weight" in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_folders_without_a_whole_model_are_refused(tmp_path: Path, name: str) -> None:
    tiny().save_pretrained(tmp_path)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-40])
    with pytest.raises(UserError, match=f"{name} is (not JSON|damaged)"):
        TransformerLM.from_pretrained(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=f"holds no model: {name} is missing"):
        TransformerLM.from_pretrained(tmp_path)


def test_a_path_that_does_not_exist_is_named() -> None:
    with pytest.raises(UserError, match="no model at 'runs/no/model': it is neither a folder here"):
        TransformerLM.from_pretrained("runs/no/model")
    with pytest.raises(UserError, match="no model at 'nobody/nothing'"):
        TransformerLM.from_pretrained("nobody/nothing", local_files_only=True)


def test_settings_of_something_else_are_named(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    values["hidden_size"] = values.pop("codebook_size")
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"unknown settings \['hidden_size'\].*missing.*'codebook_size'"):
        TransformerLM.from_pretrained(tmp_path)


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(UserError, match="must be a multiple of 2"):
        TransformerConfig.for_codec(CODEC, dim=18, num_layers=1, num_heads=2)
    with pytest.raises(UserError, match="codebook_size is 12 for the model but 11 for its codec"):
        TransformerConfig(num_codebooks=K, codebook_size=12, frame_rate=50.0, delays=(0, 1, 2), codec=CODEC)
    with pytest.raises(UserError, match="must be 3 numbers"):
        TransformerConfig(num_codebooks=K, codebook_size=V, frame_rate=50.0, delays=(0, 1))


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    config = TransformerConfig.for_codec(CODEC, dim=16, num_layers=1, num_heads=2, dropout=0.5)
    lm, codes = TransformerLM(config), random_codes()
    hidden = F.pad(codes, (1, 0), value=V)
    assert not torch.equal(lm.hidden_states(hidden), lm.hidden_states(hidden))
    lm.eval()
    assert torch.equal(lm.hidden_states(hidden), lm.hidden_states(hidden))
