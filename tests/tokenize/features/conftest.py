"""Tiny encoders for the tests of features."""

import pytest

from tokkata.tests.made_networks import save_clap, save_t5


@pytest.fixture(scope="session")
def t5(tmp_path_factory):
    """The folder of a T5 of width 16."""
    return save_t5(tmp_path_factory.mktemp("hub") / "t5")


@pytest.fixture(scope="session")
def clap(tmp_path_factory):
    """The folder of a CLAP of width 12, for windows of 1 s at 4800 Hz."""
    return save_clap(tmp_path_factory.mktemp("hub") / "clap")
