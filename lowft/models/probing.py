"""The output layer set in one go, by regression on what it reads: no gradient steps, no learning rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from lowft._inference import evaluation_mode
from lowft._placement import device_of
from lowft._settings import check_real, check_whole
from lowft.errors import ConfigError, DataError, ModelError
from lowft.models.layers import within

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt
    from torch import Tensor

    from lowft.data.batching import Batch

    Array = npt.NDArray[Any]

__all__ = ["STRENGTHS", "ProbeReport", "check_strengths", "find_output_layer", "fit_outputs", "probe_head_"]

STRENGTHS = (0.1, 1.0, 10.0, 100.0)
_LENT = "lowft_"  # begins the names of modules that a strategy lends a model while it trains: no head of its own


@dataclass(frozen=True)
class ProbeReport:
    """How the output layer was found.

    Attributes:
        rows: Labelled rows that it was fitted on.
        strength: The inverse strength of regularisation that was chosen (scikit-learn's C, or 1/alpha).
        folds: Parts that the rows were cut into to choose it; 0 where they were too few.

    >>> print(ProbeReport(rows=64, strength=10.0, folds=4))
    output layer fitted on 64 rows, C = 10 chosen in 4 folds of them
    """

    rows: int
    strength: float
    folds: int

    def __str__(self) -> str:
        """Return it as a line for a history."""
        how = f"chosen in {self.folds} folds of them" if self.folds else "by default, since they are too few to choose"
        return f"output layer fitted on {self.rows:,} rows, C = {self.strength:g} {how}"


def find_output_layer(model: nn.Module) -> str:
    """Return the name of the linear layer that gives the logits.

    Raises:
        ModelError: The model has none.

    >>> find_output_layer(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)))
    '2'
    """
    body = str(getattr(model, "base_model_prefix", "")) or None
    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not (body and within(name, body)) and not name.startswith(_LENT)
    ]
    if not found:
        raise ModelError(f"{type(model).__name__} has no linear output layer (torch.nn.Linear) outside its body")
    name: str = found[-1]
    return name


def probe_head_(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    strengths: Sequence[float] = STRENGTHS,
    folds: int = 4,
    seed: int = 0,
) -> ProbeReport:
    """Set a model's output layer by regression on what that layer reads; nothing else of the model changes.

    Linear probing, the first half of LP-FT: fine-tuning that begins with a fitted head distorts what the layers below
    know less than one that begins with a random head (Kumar et al. 2022, https://arxiv.org/abs/2202.10054). Class ids
    get logistic regression, several classes a row one for each class, numbers ridge regression.

    Args:
        model: A model that ends in a linear layer on one vector a row; its dropout is off meanwhile.
        batches: Batches as the Trainer makes them, on any device; rows without a label are left out.
        strengths: Inverse strengths of regularisation to choose from, by cross-validation within these rows alone.
            They are in units of the features' mean length.
        folds: Parts to cut the rows into for that; fewer where a class has fewer rows.
        seed: Decides the parts.

    Returns:
        What was chosen; printed as a line.

    Raises:
        ConfigError: A setting out of its range.
        DataError: No labelled rows.
        ModelError: No linear output layer, or one that does not read one vector a row.

    >>> from lowft import Batch
    >>> class Model(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.head = nn.Linear(2, 2)
    ...     def forward(self, x):
    ...         return self.head(x)
    >>> model, x = Model(), torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
    >>> report = probe_head_(model, [Batch({"x": x}, torch.tensor([0, 0, 1, 1]))])
    >>> model(x).argmax(1)
    tensor([0, 0, 1, 1])
    """
    check_whole("probe_head_: folds", folds, least=2)
    values = check_strengths("probe_head_: strengths", strengths)
    name = find_output_layer(model)
    features, labels = _read(model, name, batches)
    layer: Any = model.get_submodule(name)
    weight, bias, report = fit_outputs(
        features, labels, layer.out_features, strengths=values, folds=folds, seed=seed, intercept=layer.bias is not None
    )
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        if layer.bias is not None:
            layer.bias.copy_(torch.from_numpy(bias))
    return report


def fit_outputs(
    features: Array,
    labels: Array,
    outputs: int,
    *,
    strengths: Sequence[float] = STRENGTHS,
    folds: int = 4,
    seed: int = 0,
    intercept: bool = True,
) -> tuple[Array, Array, ProbeReport]:
    """Fit a linear layer to rows.

    Args:
        features: `[rows, width]`.
        labels: Class ids, `[rows]` integers; numbers, `[rows]`; or 0 and 1, `[rows, outputs]`.
        outputs: Outputs of the layer.
        strengths: To choose from.
        folds: For the choice.
        seed: Decides the folds.
        intercept: Whether the layer has a bias.

    Returns:
        `weight: [outputs, width]`, `bias: [outputs]`, and what was chosen.
    """
    scale = float(np.linalg.norm(features, axis=1).mean()) or 1.0
    unit = features.astype(np.float64) / scale
    if labels.dtype.kind in "iu" and labels.ndim == 1:
        smallest = int(np.bincount(labels)[np.unique(labels)].min())
        parts = _folds(len(unit), min(folds, smallest), seed, labels)
        fit, error = _fit_classes, _log_loss
    elif labels.ndim == 2:
        parts = _folds(len(unit), min(folds, len(unit) // 2), seed)
        fit, error = _fit_each, _log_loss_each
    else:
        parts = _folds(len(unit), min(folds, len(unit) // 2), seed)
        fit, error = _fit_numbers, _squared_error
    strength = 1.0
    if parts:
        errors = []
        for value in strengths:
            one = []
            for train, test in parts:
                weight, bias = fit(unit[train], labels[train], outputs, value, intercept)
                one.append(error(unit[test] @ weight.T + bias, labels[test]))
            errors.append(np.mean(one))
        strength = float(strengths[int(np.argmin(errors))])
    weight, bias = fit(unit, labels, outputs, strength, intercept)
    report = ProbeReport(len(unit), strength, len(parts))
    return (weight / scale).astype(np.float32), bias.astype(np.float32), report


def check_strengths(name: str, strengths: Sequence[float]) -> tuple[float, ...]:
    """Return strengths of regularisation as numbers, or say which is none."""
    if isinstance(strengths, str) or not hasattr(strengths, "__iter__") or not tuple(strengths):
        raise ConfigError(f"{name} must be one or more numbers above 0; received {strengths!r}")
    for index, value in enumerate(strengths):
        check_real(f"{name}[{index}]", value, above=0)
    return tuple(float(value) for value in strengths)


@torch.no_grad()
def _read(model: nn.Module, name: str, batches: Iterable[Batch]) -> tuple[Array, Array]:
    """Return what the output layer reads of each labelled row, and the labels."""
    seen: list[Tensor] = []
    hook = model.get_submodule(name).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    device = device_of(model)
    features, labels = [], []
    try:
        with evaluation_mode(model):
            for batch in batches:
                if batch.labels is None or not bool(batch.labelled.any()):
                    continue
                seen.clear()
                model(**batch.to(device).inputs)
                if len(seen) != 1 or seen[0].shape[:-1] != (len(batch),):
                    shapes = ", ".join(str(list(tensor.shape)) for tensor in seen) or "nothing"
                    raise ModelError(
                        f"a probe needs an output layer that reads one vector a row; {name!r} of "
                        f"{type(model).__name__} read {shapes} of {len(batch)} rows. Give the model a pooled head "
                        f"first: lowft.PooledHead(), or lowft.pooled_head_(model)"
                    )
                known = batch.labelled.cpu()
                features.append(seen[0].float().cpu()[known].numpy())
                labels.append(batch.labels.cpu()[known].numpy())
    finally:
        hook.remove()
    if not features:
        raise DataError("a probe needs labelled rows, and there are none")
    return np.concatenate(features), np.concatenate(labels)


def _folds(rows: int, folds: int, seed: int, classes: Array | None = None) -> list[tuple[Array, Array]]:
    from sklearn.model_selection import KFold, StratifiedKFold

    if folds < 2:
        return []
    if classes is not None:
        return list(StratifiedKFold(folds, shuffle=True, random_state=seed).split(classes, classes))
    return list(KFold(folds, shuffle=True, random_state=seed).split(np.empty(rows)))


def _fit_classes(x: Array, y: Array, outputs: int, strength: float, intercept: bool) -> tuple[Array, Array]:  # noqa: FBT001
    """Return a softmax layer; a class that no row has gets the lowest logit that any row's class gets."""
    from sklearn.linear_model import LogisticRegression

    weight, bias = np.zeros((outputs, x.shape[1])), np.zeros(outputs)
    present = np.unique(y)
    absent = np.setdiff1d(np.arange(outputs), present)
    if len(present) > 1:
        fitted = LogisticRegression(C=strength, max_iter=1000, fit_intercept=intercept).fit(x, y)
        if len(present) == 2:  # one row of weights for the difference of the two
            weight[present] = np.stack([-fitted.coef_[0], fitted.coef_[0]]) / 2
            bias[present] = np.stack([-fitted.intercept_[0], fitted.intercept_[0]]) / 2
        else:
            weight[present], bias[present] = fitted.coef_, fitted.intercept_
    if len(absent) and intercept:
        bias[absent] = (x @ weight[present].T + bias[present]).min() - np.log(len(x) + 1)
    return weight, bias


def _fit_each(x: Array, y: Array, outputs: int, strength: float, intercept: bool) -> tuple[Array, Array]:  # noqa: FBT001
    """Return a sigmoid for each class; one that all rows or none have gets their smoothed share."""
    from sklearn.linear_model import LogisticRegression

    weight, bias = np.zeros((outputs, x.shape[1])), np.zeros(outputs)
    for at in range(outputs):
        own = (y[:, at] > 0.5).astype(int)
        if 0 < own.sum() < len(own):
            fitted = LogisticRegression(C=strength, max_iter=1000, fit_intercept=intercept).fit(x, own)
            weight[at], bias[at] = fitted.coef_[0], np.ravel(fitted.intercept_)[0]
        elif intercept:
            bias[at] = np.log((own.sum() + 0.5) / (len(own) - own.sum() + 0.5))
    return weight, bias


def _fit_numbers(x: Array, y: Array, outputs: int, strength: float, intercept: bool) -> tuple[Array, Array]:  # noqa: FBT001, ARG001
    from sklearn.linear_model import Ridge

    fitted = Ridge(alpha=1 / strength, fit_intercept=intercept).fit(x, np.ravel(y))
    return np.atleast_2d(fitted.coef_), np.atleast_1d(fitted.intercept_).astype(np.float64)


def _log_loss(logits: Array, labels: Array) -> float:
    highest = logits.max(1, keepdims=True)
    total = np.log(np.exp(logits - highest).sum(1)) + highest[:, 0]
    return float(np.mean(total - logits[np.arange(len(labels)), labels]))


def _log_loss_each(logits: Array, labels: Array) -> float:
    return float(np.mean(np.logaddexp(0, logits) - logits * labels))


def _squared_error(logits: Array, labels: Array) -> float:
    return float(np.mean((logits[:, 0] - np.ravel(labels)) ** 2))
