"""A run made of what a user gives: everything checked, the model loaded, the strategies attached, nothing trained."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from lowft._choices import check_gates, check_unlabeled, choose_loss, choose_metric
from lowft._compiling import check_compilable
from lowft._optimization import default_learning_rate
from lowft._peak import check_measurable
from lowft._placement import find_placement
from lowft._preparation import name_classes_, prepare
from lowft._randomness import seeded
from lowft._recomputing import recompute_activations_
from lowft.attach import attach
from lowft.config import TrainingConfig
from lowft.errors import ConfigError
from lowft.loop import Loop
from lowft.metrics import compute_metrics
from lowft.registry import to_dict
from lowft.stages import Stage
from lowft.strategy import chain_of
from lowft.strategy_choice import read_and_suggest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy.typing as npt

    from lowft._placement import Placement
    from lowft._preparation import Parts
    from lowft.data.labels import Task
    from lowft.losses import Loss
    from lowft.strategy import Strategy

__all__ = ["Run", "build_run"]


@dataclass(frozen=True)
class Run:
    """What a Trainer drives.

    Attributes:
        config: The settings, with a learning rate.
        placement: Where it computes.
        parts: Model, tokenizer, labels and rows.
        loop: What trains.
        recipe: The strategies as JSON values.
    """

    config: TrainingConfig
    placement: Placement
    parts: Parts
    loop: Loop
    recipe: list[dict[str, Any]]


def build_run(  # noqa: PLR0913 - what a user may say
    model: Any,
    train_dataset: Any,
    eval_dataset: Any,
    unlabeled_dataset: Any,
    strategies: Sequence[Strategy] | Literal["auto"],
    config: TrainingConfig,
    *,
    tokenizer: Any,
    column_mapping: Mapping[str, str] | None,
    task: Task | None,
    loss: str | Loss | None,
    metrics: Callable[[npt.NDArray[Any], npt.NDArray[Any]], Mapping[str, float]] | None,
    new_head: bool,
    revision: str | None,
) -> Run:
    """Check everything, load what is named, and let the strategies prepare the model; arguments as of `Trainer`."""
    if not isinstance(config, TrainingConfig):
        raise ConfigError(f"config must be a lowft.TrainingConfig; received {config!r}")
    reasons: tuple[str, ...] = ()
    if strategies == "auto":
        suggestion, train_dataset, unlabeled_dataset = read_and_suggest(
            model, train_dataset, unlabeled_dataset, task=task, column_mapping=column_mapping,
            on_bad_row=config.on_bad_row, new_head=new_head, revision=revision,
        )  # fmt: skip
        strategies, reasons = suggestion.strategies, suggestion.reasons
    strategy = chain_of(strategies)
    recipe = [to_dict(part.recorded()) for part in strategy.strategies]
    if unlabeled_dataset is not None:
        check_unlabeled(strategy)
    placement = find_placement(config.device)
    if config.torch_compile:
        check_compilable(config.torch_compile_backend, placement.device)
    if config.max_memory is not None:
        check_measurable("TrainingConfig", placement.device)
    with seeded(config.seed):
        parts = prepare(
            model,
            train_dataset,
            eval_dataset,
            unlabeled_dataset,
            strategy,
            config,
            tokenizer=tokenizer,
            column_mapping=column_mapping,
            task=task,
            new_head=new_head,
            revision=revision,
        )
    loss_fn = choose_loss(loss, config, parts)
    best_metric = choose_metric(config, parts.labels.task, custom=metrics is not None)
    if config.learning_rate is None:
        config = replace(config, learning_rate=default_learning_rate(parts.model))
    name_classes_(parts.model, parts.labels)
    parts.model.to(placement.device)
    if config.gradient_checkpointing:
        recompute_activations_(parts.model)
    with seeded(config.seed):
        attached = attach(parts.model, [strategy], stage=Stage(rows=len(parts.train_rows)))
    attached.state.tokenizer = parts.tokenizer
    check_gates(attached.stages, parts, custom=metrics is not None)

    def measure(logits: npt.NDArray[Any], labels: npt.NDArray[Any]) -> dict[str, float]:
        return compute_metrics(parts.labels.task, logits, labels, extra=metrics)

    loop = Loop(
        attached,
        config,
        placement,
        train_rows=parts.train_rows,
        eval_rows=parts.eval_rows,
        loss_fn=loss_fn,
        measure=measure,
        best_metric=best_metric,
    )
    loop.opening[:0] = [f"auto: {reason}" for reason in reasons]
    return Run(config, placement, parts, loop, recipe)
