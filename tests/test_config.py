"""Tests of the settings of a run: each bad value is refused when it is given."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lowft.config import TrainingConfig
from lowft.errors import ConfigError

FIELDS = [field.name for field in dataclasses.fields(TrainingConfig)]
OPTIONAL = {
    "class_weights", "data_seed", "device", "early_stopping_patience", "eval_steps", "greater_is_better",
    "learning_rate", "max_grad_norm", "max_length", "max_memory", "max_minutes", "max_steps", "metric_for_best_model",
    "output_dir", "progress", "save_steps", "tf32", "tokens_per_batch",
}  # fmt: skip
AT_LEAST_ONE = (
    "batch_size", "early_stopping_patience", "eval_batch_size", "eval_steps", "gradient_accumulation_steps",
    "max_length", "max_memory", "max_steps", "save_steps", "save_total_limit", "tokens_per_batch",
)  # fmt: skip
AT_LEAST_ZERO = ("data_seed", "dataloader_num_workers", "max_nonfinite_steps", "restarts", "seed")
ABOVE_ZERO = ("adam_epsilon", "epochs", "learning_rate", "max_grad_norm", "max_minutes")
FLAGS = (
    "gradient_checkpointing", "group_by_length", "load_best_model_at_end", "overwrite_output_dir", "torch_compile",
)  # fmt: skip


def made(settings: dict[str, Any]) -> TrainingConfig:
    """Return a config of settings that a type checker would refuse."""
    return TrainingConfig(**settings)


def refused(name: str, value: Any, rule: str) -> None:
    """Check that the message has the name, the rule and the value."""
    with pytest.raises(ConfigError, match=re.escape(f"TrainingConfig.{name} must be {rule}; received {value!r}")):
        made({name: value})


@pytest.mark.parametrize("name", FIELDS)
def test_no_setting_goes_unchecked(name: str) -> None:
    """A value of no sensible type is refused for every single setting, by its name."""
    with pytest.raises(ConfigError, match=rf"TrainingConfig\.{name} must be .*received"):
        made({name: object()})


@pytest.mark.parametrize("name", FIELDS)
def test_none_passes_only_where_it_means_something(name: str) -> None:
    """None stands for a documented choice, or is refused like any other value."""
    if name in OPTIONAL:
        assert getattr(made({name: None}), name) is None
    else:
        with pytest.raises(ConfigError, match=rf"TrainingConfig\.{name} must be .*received None"):
            made({name: None})


@pytest.mark.parametrize("name", [*AT_LEAST_ONE, *AT_LEAST_ZERO])
def test_counts_are_whole_numbers(name: str) -> None:
    """The least value passes; below it, fractions, texts and truth values do not."""
    least = int(name in AT_LEAST_ONE)
    assert getattr(made({name: least}), name) == least
    for bad in (least - 1, 1.0, "8", True):
        refused(name, bad, f"a whole number of at least {least}")


@pytest.mark.parametrize("name", ABOVE_ZERO)
def test_rates_are_above_zero(name: str) -> None:
    """Zero, negative, infinite and undefined numbers, texts and truth values are refused."""
    assert getattr(made({name: 1e-9}), name) == 1e-9
    for bad in (0, -1.0, math.inf, math.nan, "2", True):
        refused(name, bad, "a finite number above 0")


@pytest.mark.parametrize("name", ["adam_beta1", "adam_beta2", "label_smoothing", "warmup_ratio"])
def test_shares_lie_between_zero_and_one(name: str) -> None:
    """Zero passes, one does not."""
    assert getattr(made({name: 0}), name) == 0
    for bad in (1, 1.5, -0.1, math.nan, "0.1"):
        refused(name, bad, "a finite number at least 0 and below 1")


@pytest.mark.parametrize("name", ["weight_decay", "early_stopping_threshold"])
def test_amounts_may_be_zero(name: str) -> None:
    """Negative and infinite amounts are refused."""
    assert getattr(made({name: 0}), name) == 0
    for bad in (-0.1, math.inf, None):
        refused(name, bad, "a finite number at least 0")


@pytest.mark.parametrize(
    ("name", "value", "near"),
    [
        ("lr_scheduler_type", "cosin", "cosine"),
        ("precision", "float16", "bfloat16"),
        ("on_nonfinite", "skipp", "skip"),
        ("on_bad_row", "dropp", "drop"),
        ("optim", "adamw_8bits", "adamw_8bit"),
        ("class_weights", "balance", "balanced"),
    ],
)
def test_a_choice_names_a_near_one(name: str, value: str, near: str) -> None:
    """A misspelt choice is refused with all choices and the nearest."""
    with pytest.raises(ConfigError, match=re.escape(f"received {value!r}. Did you mean {near!r}?")):
        made({name: value})
    with pytest.raises(ConfigError, match=rf"TrainingConfig\.{name} must be one of .*; received 'zzz'$"):
        made({name: "zzz"})


@pytest.mark.parametrize("name", [*FLAGS, "greater_is_better", "progress", "tf32"])
def test_flags_are_true_or_false(name: str) -> None:
    """The text "false", which is true to Python, is refused."""
    for bad in ("false", 0, 1):
        refused(name, bad, "True or False")


@pytest.mark.parametrize("name", ["device", "metric_for_best_model", "torch_compile_backend"])
def test_names_are_texts(name: str) -> None:
    """An empty text is no name; nor is an object that prints like one."""
    for bad in ("", 3, torch.device("cpu")):
        refused(name, bad, "a text that is not empty")


def test_class_weights_become_plain_numbers() -> None:
    """Lists, arrays and tensors are taken, copied, and stored as JSON can hold them."""
    given = [1, 2.5]
    config = made({"class_weights": given})
    given.append(9)
    assert config.class_weights == (1.0, 2.5)
    for other in (np.array([1, 2.5]), torch.tensor([1, 2.5]), (1, 2.5)):
        assert made({"class_weights": other}) == config
    for index, bad in enumerate((-1, math.nan, "1", True)):
        rule = re.escape(f"class_weights[{index}] must be a finite number at least 0; received {bad!r}")
        with pytest.raises(ConfigError, match=rule):
            made({"class_weights": (1.0,) * index + (bad,)})


def test_settings_return_from_json(tmp_path: Path) -> None:
    """`to_dict` is JSON, names every setting, and makes an equal object."""
    config = TrainingConfig(class_weights=(1.0, 2.0), output_dir=tmp_path, seed=7, learning_rate=1e-4)
    values = json.loads(json.dumps(config.to_dict()))
    assert sorted(values) == sorted(FIELDS)
    again = TrainingConfig(**values)
    assert again.to_dict() == config.to_dict()
    assert dataclasses.replace(again, output_dir=tmp_path) == config


def test_identity_leaves_out_what_does_not_change_the_result() -> None:
    """Runs that differ in folders, saving or display may resume each other; in the seed they may not."""
    base = TrainingConfig()
    free = TrainingConfig(
        output_dir="x", overwrite_output_dir=True, save_steps=3, save_total_limit=9, eval_batch_size=7, progress=False
    )
    assert free.identity() == base.identity()
    changed = {
        name: value
        for name, value in {"seed": 1, "batch_size": 3, "learning_rate": 1.0, "class_weights": "balanced"}.items()
        if made({name: value}).identity() != base.identity()
    }
    assert sorted(changed) == ["batch_size", "class_weights", "learning_rate", "seed"]
