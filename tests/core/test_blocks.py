"""Activation checkpointing and torch.compile change what a step costs, not what it computes."""

import shutil
from functools import partial

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from tokkata.core.blocks import prepare_blocks
from tokkata.core.errors import UserError
from tokkata.tests.core.toy_training import Block, BlockNet, Outcome, Toy, settings, train_toy

pytestmark = pytest.mark.usefixtures("on_the_cpu")


def trained(folder, toy, **changed):
    train_toy(folder, settings(**changed), toy)
    return Outcome(folder)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_checkpointing_is_bitwise_the_same_training_with_dropout(tmp_path, precision):
    toy = Toy(dropout=0.4)
    plain = trained(tmp_path / "plain", toy, precision=precision)
    trained(tmp_path / "checkpointed", toy, precision=precision, activation_checkpointing=True).assert_same(
        plain
    )
    other = trained(tmp_path / "other", Toy(dropout=0.0), precision=precision)
    assert plain.rows != other.rows, "there was no dropout"


def test_checkpointing_computes_the_blocks_twice_and_keeps_less(monkeypatch):
    calls = []
    forward = Block.forward
    monkeypatch.setattr(Block, "forward", lambda self, *inputs: calls.append(self) or forward(self, *inputs))
    sizes = {}

    def note(kept, tensor):
        kept.append(tensor.numel())
        return tensor

    for checkpointed in (False, True):
        net, kept = BlockNet(3), sizes.setdefault(checkpointed, [])
        prepare_blocks([net], settings(activation_checkpointing=checkpointed))
        with torch.autograd.graph.saved_tensors_hooks(partial(note, kept), lambda t: t):
            loss = net(torch.ones(50, 6)).sum()
        calls.clear()
        loss.backward()
        assert calls == ([*reversed(net.blocks)] if checkpointed else [])
    assert sum(sizes[True]) < 0.5 * sum(sizes[False])


def test_names_of_parameters_do_not_change():
    net = BlockNet()
    names = list(net.state_dict())
    prepare_blocks([net], settings(activation_checkpointing=True, compile=True))
    assert list(net.state_dict()) == names


def test_what_else_a_model_lists_is_compiled_and_not_computed_twice(monkeypatch):
    net = BlockNet(2)
    net.ending = nn.Linear(1, 1)
    net.also_compiled = [net.ending]
    forward, compiled = net.ending.forward, []
    monkeypatch.setattr(torch, "compile", lambda function: compiled.append(function.__self__) or function)
    prepare_blocks([net], settings(activation_checkpointing=True, compile=True))
    assert compiled == [*net.blocks, net.ending]
    assert net.ending.forward == forward
    assert all(block.forward != type(block).forward for block in net.blocks)


@pytest.mark.parametrize("setting", ["activation_checkpointing", "compile"])
def test_a_model_without_blocks(setting):
    with pytest.raises(UserError) as caught:
        prepare_blocks([nn.Linear(1, 1)], settings(**{setting: True}))
    assert str(caught.value) == f"train.{setting} needs a model that is made of blocks: set it to false"


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs g++ on a CPU")
def test_compiled_blocks_run_and_train_alike(tmp_path):
    """Compiled once, however many blocks there are; with accumulation, averaging and checkpointing."""
    graphs = {}
    for num_blocks in (2, 5):
        toy = Toy(num_blocks=num_blocks)
        changed = {"steps": 6, "grad_accumulation": 2, "activation_checkpointing": num_blocks == 5}
        plain = trained(tmp_path / f"plain-{num_blocks}", toy, **changed)
        torch._dynamo.reset()
        counters.clear()
        compiled = trained(tmp_path / f"compiled-{num_blocks}", toy, compile=True, **changed)
        compiled.assert_close(plain, atol=1e-5)
        assert not counters["graph_break"]
        graphs[num_blocks] = counters["stats"]["unique_graphs"]
    # One for training and one for validation, which has no gradients.
    assert graphs == {2: 2, 5: 2}
