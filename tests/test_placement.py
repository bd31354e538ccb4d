"""Where a run computes: what Accelerate is told that lowft cannot do."""

from __future__ import annotations

import pytest

from lowft._placement import find_placement
from lowft.errors import ConfigError
from tests.runs import tiny_trainer


@pytest.mark.parametrize(
    ("variable", "method"),
    [
        ("ACCELERATE_USE_FSDP", "FSDP"),
        ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed"),
        ("ACCELERATE_USE_MEGATRON_LM", "Megatron-LM"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "a parallelism config"),
    ],
)
def test_a_divided_model_is_refused(variable: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `accelerate launch` sets for it is named, with what to do instead; when it is off, the run goes on."""
    monkeypatch.setenv(variable, "true")
    with pytest.raises(ConfigError, match=rf"processes with {method} \({variable}=true\).*torchrun.*adamw_8bit"):
        tiny_trainer()
    monkeypatch.setenv(variable, "false")
    assert find_placement("cpu").processes == 1
