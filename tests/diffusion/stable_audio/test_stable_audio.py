"""Ours beside `diffusers` on the same weights, and what a user sees of broken ones.

Shapes: B batch, D latent width, T frames, L tokens of text, E width of their states.
"""

import json
from pathlib import Path

import pytest
import torch
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from safetensors.torch import load_file, save_file

from tokkata.core.blocks import prepare_blocks
from tokkata.core.conditions import hide_all, select
from tokkata.core.errors import UserError
from tokkata.core.schema import Train
from tokkata.diffusion.stable_audio.files import load_stable_audio, save_stable_audio
from tokkata.diffusion.stable_audio.network import StableAudio
from tokkata.tests.made_stable_audio import MAX_TOKENS, SHAPES, TEXT_DIM, save_stable_audio_pipeline

CLOSE = {"atol": 1e-4, "rtol": 1e-4}


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    """One folder a shape, and diffusers' parts of it."""
    made = {}
    for name, shape in SHAPES.items():
        folder = tmp_path_factory.mktemp("pipeline")
        made[name] = (folder, *save_stable_audio_pipeline(folder, **shape))
    return made


@pytest.fixture
def folder(pipelines):
    return pipelines["two heads"][0]


def some_given(network: StableAudio, lengths=(MAX_TOKENS, 2, 4), seconds=((0, 30), (1.5, 47), (400, 512))):
    generator = torch.Generator().manual_seed(4)
    return network.config.conditions.encode(
        {
            "text": [torch.randn(length, TEXT_DIM, generator=generator) for length in lengths],
            "seconds_start": [start for start, _ in seconds],
            "seconds_total": [total for _, total in seconds],
        }
    )


def theirs(transformer, projection, x, time, given, mask=None, hidden=False):
    """What `StableAudioPipeline` does with conditions, and its network."""
    text, start, total = (given[name] for name in ("text", "seconds_start", "seconds_total"))
    found = projection(text.values, start.values[:, 0], total.values[:, 0])
    states = found.text_hidden_states * text.mask[..., None]
    timings = [found.seconds_start_hidden_states, found.seconds_end_hidden_states]
    states = torch.cat([states, *timings], dim=1)
    tables = get_1d_rotary_pos_embed(
        transformer.config.attention_head_dim // 2,
        x.shape[2] + 1,
        use_real=True,
        repeat_interleave_real=False,
    )
    return transformer(
        x,
        time,
        encoder_hidden_states=torch.zeros_like(states) if hidden else states,
        global_hidden_states=torch.cat(timings, dim=2),
        rotary_embedding=tables,
        attention_mask=mask,
        return_dict=False,
    )[0]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("num_frames", [1, 7, 16])
@torch.no_grad()
def test_the_network_is_that_of_diffusers(pipelines, shape: str, num_frames: int) -> None:
    folder, transformer, projection = pipelines[shape]
    network = load_stable_audio(folder).network
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(3, network.config.in_dim, num_frames, generator=generator)
    time = torch.rand(3, generator=generator)
    given = some_given(network)
    expected = theirs(transformer, projection, x, time, given)
    assert expected.std() > 0.3
    torch.testing.assert_close(network(x, time, given), expected, **CLOSE)
    kept = network.condition(given, 3, keep_keys=True)
    torch.testing.assert_close(network.predict(x, time, kept), expected, **CLOSE)

    hidden = theirs(transformer, projection, x, time, given, hidden=True)
    torch.testing.assert_close(network(x, time, hide_all(given)), hidden, **CLOSE)
    assert (hidden - expected).abs().mean() > 0.01

    mask = torch.arange(num_frames) < torch.tensor([[num_frames], [3], [5]])
    masked = theirs(transformer, projection, x, time, given, mask=mask)
    seen = mask[:, None].expand_as(masked)
    torch.testing.assert_close(network(x, time, given, mask=mask)[seen], masked[seen], **CLOSE)


@torch.no_grad()
def test_one_clip_alone_has_what_it_has_in_a_batch(folder: Path) -> None:
    network = load_stable_audio(folder).network
    x, time, given = torch.randn(3, 4, 9), torch.rand(3), some_given(network)
    mask = torch.arange(9) < torch.tensor([[9], [4], [6]])
    whole = network(x, time, given, mask=mask)
    for i, length in enumerate((9, 4, 6)):
        row = slice(i, i + 1)
        alone = network(x[row, :, :length], time[row], select(given, row))
        torch.testing.assert_close(alone, whole[row, :, :length], **CLOSE)


@torch.no_grad()
def test_what_is_not_given_is_hidden_and_timed_at_zero(folder: Path) -> None:
    network = load_stable_audio(folder).network
    x, time = torch.randn(3, 4, 5), torch.rand(3)
    given = hide_all(some_given(network, seconds=((0, 0),) * 3))
    torch.testing.assert_close(network(x, time, {}), network(x, time, given), **CLOSE)


def test_every_parameter_learns_with_checkpoints_too(folder: Path) -> None:
    network, other = load_stable_audio(folder).network, load_stable_audio(folder).network
    prepare_blocks([other], Train(steps=1, activation_checkpointing=True))
    x, time = torch.randn(3, 4, 9), torch.rand(3)
    for one in (network, other):
        one(x, time, some_given(one)).square().sum().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum()] == []
    for p, q in zip(network.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_operations_are_those_that_torch_counts(folder: Path) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    network = load_stable_audio(folder).network
    given = select(some_given(network), slice(0, 1))
    with (
        FlopCounterMode(display=False) as counter,
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
    ):
        network(torch.randn(1, 4, 16), torch.rand(1), given).sum().backward()
    found = network.clip_flops(16, {"text": MAX_TOKENS})
    assert found == pytest.approx(counter.get_total_flops(), rel=0.03)


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_saved_is_what_was_loaded(pipelines, shape: str, tmp_path: Path) -> None:
    folder = pipelines[shape][0]
    loaded = load_stable_audio(folder)
    saved = tmp_path / "saved"
    save_stable_audio(loaded.network, saved, scheduler=loaded.scheduler, other_parts=folder)
    for part, before in zip(("transformer", "projection_model"), pipelines[shape][1:], strict=True):
        after = type(before).from_pretrained(saved / part)
        assert {k: v for k, v in after.config.items() if k[0] != "_"} == {
            k: v for k, v in before.config.items() if k[0] != "_"
        }
        for name, tensor in before.state_dict().items():
            assert torch.equal(after.state_dict()[name], tensor), name
    assert {path.name for path in saved.iterdir()} == {path.name for path in folder.iterdir()}
    again = load_stable_audio(saved)
    assert again.scheduler == loaded.scheduler
    x, time = torch.randn(1, again.network.config.in_dim, 5), torch.rand(1)
    assert torch.equal(again.network(x, time, {}), loaded.network(x, time, {}))


def edit(file: Path, **settings: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


@pytest.mark.parametrize(
    ("file", "settings", "told"),
    [
        ("transformer/config.json", {"_class_name": "DiTTransformer2DModel"}, "the transformer is a DiTTr"),
        ("transformer/config.json", {"global_states_input_dim": 5}, "global_states_input_dim is 5, not 32"),
        ("transformer/config.json", {"num_layers": 3}, "transformer_blocks.2.norm1.weight is missing"),
        (
            "transformer/config.json",
            {"num_layers": 1},
            "no place for transformer_blocks.1.attn1.to_k",
        ),
        ("transformer/config.json", {"out_channels": 3}, "size mismatch for mix_out.weight"),
        ("projection_model/config.json", {"min_value": 1}, "min_value is 1, not 0"),
        ("text_encoder/config.json", {"d_model": 8}, "text_encoder_dim is 16, its text encoder's width 8"),
    ],
)
def test_other_settings_are_told(tmp_path: Path, file: str, settings: dict, told: str) -> None:
    save_stable_audio_pipeline(tmp_path)
    edit(tmp_path / file, **settings)
    with pytest.raises(UserError, match=told):
        load_stable_audio(tmp_path)


def test_broken_files_are_told(tmp_path: Path) -> None:
    save_stable_audio_pipeline(tmp_path)
    weights = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    save_file(tensors | {"extra": torch.zeros(1)}, weights)
    with pytest.raises(UserError, match="no place for extra"):
        load_stable_audio(tmp_path)
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match=r"diffusion_pytorch_model.safetensors is missing or damaged"):
        load_stable_audio(tmp_path)
    (tmp_path / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(UserError, match=r"scheduler/scheduler_config.json is missing or no JSON"):
        load_stable_audio(tmp_path)
    with pytest.raises(UserError, match=r"it lacks model_index\.json"):
        save_stable_audio(None, tmp_path / "new", scheduler={}, other_parts=tmp_path / "transformer")  # type: ignore[arg-type]
