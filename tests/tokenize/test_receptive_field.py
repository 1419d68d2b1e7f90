"""How far a network looks, against closed forms and against what a change of its input does."""

import functools

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import DacConfig, DacModel, EncodecConfig, EncodecModel
from transformers.models.encodec.modeling_encodec import EncodecLSTM

from tokkata.tokenize.receptive_field import conv_context

DAC_STRIDES = {16000: [2, 4, 5, 8], 24000: [2, 4, 5, 8], 44100: [2, 4, 8, 8]}


def dac(strides):
    config = DacConfig(
        encoder_hidden_size=2,
        hidden_size=8,
        decoder_hidden_size=32,
        downsampling_ratios=list(strides),
        upsampling_ratios=list(strides)[::-1],
    )
    return DacModel(config).eval()


def encodec(causal):
    config = EncodecConfig(num_filters=2, hidden_size=4, upsampling_ratios=[4, 3, 2], use_causal_conv=causal)
    return EncodecModel(config).eval()


@pytest.mark.parametrize(("rate", "field"), [(44100, 7978), (24000, 5314), (16000, 5314)])
def test_dac_sees_what_its_layers_add_up_to(rate, field):
    strides = DAC_STRIDES[rate]
    hop_length = functools.reduce(int.__mul__, strides)
    # A kernel of 7 at the start; in each block kernels of 7 at dilations 1, 3 and 9, and one of twice the
    # stride; a kernel of 3 at the end.
    added, step = 6, 1
    for stride in strides:
        added += step * (6 * (1 + 3 + 9) + 2 * stride - 1)
        step *= stride
    assert added + 2 * step + 1 == field
    model = dac(tuple(strides))
    side = (field - hop_length) / 2 / hop_length
    assert conv_context(model.encoder, hop_length) == 8 >= side > 6
    assert conv_context(model.decoder, hop_length) == 10


@settings(max_examples=40, deadline=None)
@example(kernel=4, dilation=5, stride=1, share=0.0)
@given(kernel=st.integers(1, 5), dilation=st.integers(1, 5), stride=st.integers(1, 5), share=st.floats(0, 1))
def test_one_convolution(kernel, dilation, stride, share):
    span = (kernel - 1) * dilation + 1
    padding = round(share * max(0, span - 1))
    # Frame t sees span samples from t * stride - padding on; its own are stride samples from t * stride on.
    before, after = padding, span - 1 - padding - (stride - 1)
    expected = max(0, -(-before // stride), -(-after // stride))
    module = nn.Conv1d(1, 1, kernel, stride, padding, dilation)
    assert conv_context(module, stride) == expected


def test_the_longer_of_two_branches_counts():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.short = nn.Conv1d(1, 1, 3, padding=1)
            self.long = nn.Sequential(nn.Conv1d(1, 1, 5, padding=2), nn.ELU(), nn.Conv1d(1, 1, 9, padding=4))

        def forward(self, x):
            return x + self.short(x) + self.long(x)

    assert conv_context(Branches(), 1) == 6


def test_small_weights_count_as_any():
    """The field is the network's, even where its weights would let no difference through."""
    model = dac((2, 3))
    with torch.no_grad():
        shrunk = DacModel(model.config).eval()
        for parameter in shrunk.encoder.parameters():
            parameter.mul_(1e-20)
    assert conv_context(shrunk.encoder, 6) == conv_context(model.encoder, 6)


def randomised(module):
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


@pytest.mark.parametrize("part", ["encoder", "decoder"])
@pytest.mark.parametrize("strides", [(2, 3), (4, 5), (3, 2, 2)])
def test_a_change_reaches_as_far_and_no_further(strides, part):
    model = dac(strides)
    model.decoder.tanh = nn.Identity()  # it would saturate, and a change would not come out
    module = randomised(getattr(model, part)).double()
    hop_length = functools.reduce(int.__mul__, strides)
    hop_in, hop_out = (hop_length, 1) if part == "encoder" else (1, hop_length)
    channels = 1 if part == "encoder" else 8
    context = conv_context(module, hop_length)
    middle = 2 * context
    audio = torch.randn(1, channels, 4 * context * hop_in, dtype=torch.float64)
    with torch.no_grad():
        before = module(audio)
        audio[..., middle * hop_in :] += 1
        changed = (before - module(audio)).abs().amax(dim=(0, 1)) > 0
    first = int(changed.nonzero().min()) // hop_out
    assert first in (middle - context, middle - context + 1), "one side may see a frame less than the other"


@pytest.mark.parametrize("causal", [True, False])
def test_encodec_is_unbounded_but_for_its_lstm(causal):
    model = encodec(causal)
    for module in (model.encoder, model.decoder):
        with pytest.raises(ValueError, match=f"^{type(module).__name__} has no bounded context"):
            conv_context(module, 24)
        assert 3 <= conv_context(module, 24, without=(EncodecLSTM,)) <= 12
        with pytest.raises(ValueError, match="no bounded context"):
            conv_context(module, 24), "the LSTM is left out while looking only"


def test_a_norm_over_time_sees_all():
    with pytest.raises(ValueError, match=r"^Sequential has no bounded context: a frame depends on all"):
        conv_context(nn.Sequential(nn.Conv1d(1, 2, 3), nn.GroupNorm(1, 2)), 1)


def test_oobleck():
    diffusers = pytest.importorskip("diffusers")
    model = diffusers.AutoencoderOobleck(
        encoder_hidden_size=4,
        downsampling_ratios=[2, 4, 4, 8, 8],
        channel_multiples=[1, 1, 1, 1, 1],
        decoder_channels=4,
        decoder_input_channels=4,
    ).eval()
    assert (conv_context(model.encoder, 2048), conv_context(model.decoder, 2048)) == (8, 10)
