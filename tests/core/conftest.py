"""Training in this process: on the CPU, and Accelerate forgets each test's state."""

import pytest
from accelerate.state import AcceleratorState


@pytest.fixture
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
