"""What holds for every network: which frames see which, and what conditions are to it.

Shapes: B batch, D latent width, T frames.
"""

import dataclasses
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokkata.core.blocks import blocks_of, prepare_blocks
from tokkata.core.conditions import Condition, Conditions, Given, hide_all, select
from tokkata.core.errors import UserError
from tokkata.core.schema import Train
from tokkata.diffusion.networks.dit import DiT, DiTConfig
from tokkata.diffusion.networks.unet import UNet1d, UNet1dConfig
from tokkata.tests.diffusion.tiny_networks import EVERYTHING, MAX_FRAMES, NETWORKS, D, inputs, some_of, tiny

CLOSE = {"atol": 2e-5, "rtol": 1e-4}


@pytest.mark.parametrize("name", NETWORKS)
@settings(deadline=None, max_examples=8)
@given(length=st.integers(1, MAX_FRAMES), padded=st.integers(0, 9), given_too=st.booleans())
def test_a_padded_clip_has_the_prediction_that_it_has_alone(
    name: str, length: int, padded: int, given_too: bool
) -> None:
    network = tiny(name)
    x, time = inputs(min(length + padded, MAX_FRAMES))
    told = some_of(network.config.conditions) if given_too else {}
    mask = torch.ones(3, x.shape[2], dtype=torch.bool)
    mask[1, length:] = False
    with torch.no_grad():
        together = network(x, time, told, mask=mask)
        alone = network(x[1:2, :, :length], time[1:2], select(told, slice(1, 2)))
        others = network(x, time, told)
    torch.testing.assert_close(together[1:2, :, :length], alone, **CLOSE)
    torch.testing.assert_close(together[[0, 2]], others[[0, 2]], **CLOSE)


@pytest.mark.parametrize("name", NETWORKS)
def test_masked_frames_change_nothing_and_others_do(name: str) -> None:
    network = tiny(name)
    x, time = inputs(13)
    mask = (torch.arange(13) < 7).expand(3, -1)
    with torch.no_grad():
        before = network(x, time, {}, mask=mask)
        x[:, :, 7:] += 5
        torch.testing.assert_close(network(x, time, {}, mask=mask)[:, :, :7], before[:, :, :7])
        x[:, :, 2] += 1
        changed = (network(x, time, {}, mask=mask) - before).abs().amax((0, 1))
    assert (changed[:7] > 1e-4).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_a_clip_does_not_depend_on_its_batch(name: str) -> None:
    network = tiny(name)
    x, time = inputs(11)
    told = some_of(network.config.conditions)
    with torch.no_grad():
        whole = network(x, time, told)
        for i in range(3):
            row = slice(i, i + 1)
            torch.testing.assert_close(network(x[row], time[row], select(told, row)), whole[row], **CLOSE)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("condition", EVERYTHING.names)
def test_what_is_hidden_is_what_is_not_given(name: str, condition: str) -> None:
    network = tiny(name)
    if condition not in network.config.conditions.names:
        pytest.skip("prepended: a UNet has none")
    x, time = inputs(8)
    told = some_of(network.config.conditions)
    one = {condition: told[condition]}
    with torch.no_grad():
        nothing, hidden, seen = (network(x, time, given) for given in ({}, hide_all(one), one))
    torch.testing.assert_close(hidden, nothing, **CLOSE)
    is_told = told[condition].mask.any(1)
    assert ((seen - nothing).abs().amax((1, 2)) > 1e-4).tolist() == is_told.tolist()


@pytest.mark.parametrize("name", NETWORKS)
def test_keys_that_are_kept_change_nothing(name: str) -> None:
    network = tiny(name)
    x, time = inputs(9)
    told = some_of(network.config.conditions)
    with torch.no_grad():
        kept = network.condition(told, 3, keep_keys=True)
        assert len(kept.keys_values) == (1 if "unet" in name else 2)
        for step in (time, time / 2):
            assert torch.equal(network.predict(x, step, kept), network(x, step, told))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_learns(name: str) -> None:
    network = tiny(name)
    x, time = inputs(10)
    network(x, time, some_of(network.config.conditions)).square().sum().backward()
    unmoved = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert unmoved == []


@pytest.mark.parametrize("kind", [DiT, UNet1d])
def test_an_untrained_network_predicts_nothing(kind: type[DiT] | type[UNet1d]) -> None:
    shape = {"latent_dim": D, "in_dim": 2 * D + 1, "max_frames": 16}
    network = (
        DiT(DiTConfig(dim=16, **shape)) if kind is DiT else UNet1d(UNet1dConfig(channels=(8, 16), **shape))
    )
    y = network(*inputs(16, in_dim=2 * D + 1), {})
    assert y.shape == (3, D, 16)
    assert not y.any()


@pytest.mark.parametrize("name", NETWORKS)
def test_time_is_told(name: str) -> None:
    network = tiny(name)
    x, _ = inputs(6)
    with torch.no_grad():
        ys = [network(x, torch.full((3,), time), {}) for time in (0.0, 0.5, 0.501, 1.0)]
    for i, a in enumerate(ys):
        for b in ys[:i]:
            assert (a - b).abs().max() > 1e-4


@pytest.mark.parametrize("name", NETWORKS)
def test_checkpointed_blocks_have_the_same_gradients(name: str) -> None:
    network, checkpointed = tiny(name), tiny(name)
    prepare_blocks([checkpointed], Train(steps=1, activation_checkpointing=True))
    assert len(blocks_of(checkpointed)) > 1
    x, time = inputs(10)
    told = some_of(network.config.conditions)
    for one in (network, checkpointed):
        one(x, time, told).square().sum().backward()
    for p, q in zip(network.parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_made_again_from_its_configuration(name: str) -> None:
    network = tiny(name)
    text = json.dumps(network.config.to_dict())
    config = network.config_class.from_dict(json.loads(text))
    assert config == network.config
    again = type(network)(config)  # type: ignore[call-arg]
    again.load_state_dict(network.state_dict())
    x, time = inputs(5)
    assert torch.equal(again(x, time, {}), network(x, time, {}))
    values = {k: v for k, v in json.loads(text).items() if k != "in_dim"} | {"width": 3}
    with pytest.raises(UserError, match=r"unknown settings \['width'\], missing settings \['in_dim'\]"):
        network.config_class.from_dict(values)


def test_lengths_and_shapes_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="25 frames are more than the 24"):
        tiny()(*inputs(25), {})
    with pytest.raises(UserError, match="heads need an even width"):
        dataclasses.replace(tiny().config, dim=18)
    prepended = Conditions((Condition("form", "label", "prepend", values=("a",)),))
    with pytest.raises(UserError, match="fuse condition 'form' by sum or cross"):
        tiny("unet", conditions=prepended)


def test_patches_hold_frames_in_order_and_give_them_back() -> None:
    """With an embedding and a head that copy, and blocks and norms that do nothing, frames come back."""
    network = tiny("patches", conditions=Conditions())
    assert isinstance(network, DiT)
    x, time = inputs(11)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        size = network.config.patch_size * D  # 12 of the 16 that a token is wide
        network.embed.weight[:size, :size] = torch.eye(size)
        network.head.weight[:size, :size] = torch.eye(size)
        network.norm = torch.nn.Identity()
        assert torch.equal(network(x, time, {}), x)


@pytest.mark.parametrize("name", ["dit", "registers"])
def test_positions_do_not_depend_on_what_is_prepended_to_others(name: str) -> None:
    network = tiny(name)
    x, time = inputs(8)
    told = some_of(network.config.conditions)
    longer = dict(told)
    melody = told["melody"]
    longer["melody"] = Given(
        torch.cat([melody.values, torch.ones(3, 4, 3)], dim=1),
        torch.cat([melody.mask, torch.zeros(3, 4, dtype=torch.bool)], dim=1),
    )
    with torch.no_grad():
        torch.testing.assert_close(network(x, time, longer), network(x, time, told), **CLOSE)


@pytest.mark.parametrize("name", NETWORKS)
def test_operations_are_those_that_torch_counts(name: str) -> None:
    """Of the forward pass: a third, and for what is multiplied with data (no gradient) a half."""
    from torch.utils.flop_counter import FlopCounterMode

    network = tiny(name, conditions=Conditions())
    x, time = inputs(12, batch_size=1)
    with (
        FlopCounterMode(display=False) as counter,
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
    ):
        network(x, time, {}).sum().backward()
    assert network.clip_flops(12, {}) == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_attention_falls_back_and_is_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("dit", "unet"):
        network = tiny(name)
        x, time = inputs(5)
        expected = network(x, time, {})
        network.use_attention("xformers")
        assert network.backend == "sdpa"
        assert torch.equal(network(x, time, {}), expected)
        assert "attention: 'xformers' cannot be used on cpu" in capsys.readouterr().err


@pytest.mark.slow
def test_flex_attention_gives_the_same() -> None:
    torch._dynamo.reset()
    network = tiny()
    x, time = inputs(9)
    mask = torch.arange(9) < torch.tensor([[9], [4], [7]])
    with torch.no_grad():
        expected = network(x, time, {}, mask=mask)
        network.backend = "flex"
        found = network(x, time, {}, mask=mask)
    torch.testing.assert_close(
        found[mask[:, None].expand_as(found)], expected[mask[:, None].expand_as(found)], **CLOSE
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_run_under_autocast(name: str) -> None:
    network = tiny(name)
    x, time = inputs(9)
    told = some_of(network.config.conditions)
    with torch.no_grad():
        expected = network(x, time, told)
        with torch.autocast("cpu", torch.bfloat16):
            found = network(x, time, told)
    assert (found.float() - expected).abs().mean() < 0.05 * expected.abs().mean()
