"""Losses: what training minimises, as pure functions of tensors; `lowft.loss_choice` finds the one for a task.

Every loss has one value for each row of the batch; `reduction` says what becomes of them: `"none"` returns
them (`[batch]`), `"sum"` adds them, `"mean"` divides the sum by the number of rows. Half-precision inputs are
computed in float32.

| loss | suits |
| --- | --- |
| `cross_entropy` | one class a row; label smoothing, class weights |
| `focal` | one class a row or several, where few rows are hard or classes are rare |
| `binary_cross_entropy` | any number of classes a row |
| `mean_squared_error`, `mean_absolute_error` | numbers; the second where some labels are far off |
| `kl_divergence` | a student that follows a teacher's probabilities |
| `cosine` | a student that follows a teacher's hidden states |
| `supervised_contrastive` | few labels: rows of a class move together before or while the head trains |
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lowft._loss_checks import (
    Reduction,
    check_ids,
    check_label_smoothing,
    check_range,
    check_temperature,
    logits_and_ids,
    logits_and_targets,
    matrix,
    per_class,
    predictions_and_numbers,
    reduce_rows,
    same_shape,
)
from lowft.errors import ConfigError

__all__ = [
    "Loss",
    "Reduction",
    "binary_cross_entropy",
    "cosine",
    "cross_entropy",
    "focal",
    "kl_divergence",
    "mean_absolute_error",
    "mean_squared_error",
    "supervised_contrastive",
]

Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Measure how little probability the model gives to each row's class: the loss for one class a row.

    A row costs `w[y] · Σ_c −q_c · log softmax(z)_c`, where `q` is 1 at the label `y` and 0 elsewhere, or with
    label smoothing ε: `1 − ε + ε/C` at the label and `ε/C` elsewhere (Szegedy et al. 2016, *Rethinking the
    Inception Architecture*, section 7).

    The weight is that of the row's own class, and `"mean"` divides by the number of rows. PyTorch's function
    divides by the sum of the weights instead, and spreads them over the smoothed part: its mean over a batch
    is then not the mean of its means over parts of the batch, and gradient accumulation would change the
    result.

    Args:
        logits: `[batch, classes]`.
        labels: Class ids, `[batch]`.
        label_smoothing: ε, from 0 to below 1.
        class_weights: `[classes]`; see `balanced_class_weights`.
        reduction: What becomes of the rows' losses.

    Raises:
        ConfigError: Shapes or dtypes do not fit, or a setting is out of its range.
        LabelError: A label is not the id of a class.

    >>> logits = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    >>> cross_entropy(logits, torch.tensor([0, 1]), reduction="none")
    tensor([0.1269, 0.6931])
    """
    check_label_smoothing(label_smoothing)
    logits, labels = logits_and_ids("cross_entropy", logits, labels)
    rows = F.cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction="none")
    if class_weights is not None:
        rows = rows * per_class("class_weights", class_weights, logits)[labels]
    return reduce_rows(rows, reduction)


def focal(
    logits: Tensor,
    labels: Tensor,
    *,
    gamma: float = 2.0,
    class_weights: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Measure the error with easy rows turned down: for rare classes, or few hard rows among many.

    With `p` the probability of the right answer, a row costs `−w[y] · (1 − p)^γ · log p` (Lin et al. 2017,
    *Focal Loss for Dense Object Detection*, equations 4 and 5; `w` is their α). γ = 0 is cross-entropy.
    Labels of the logits' own shape make it the multi-label form: `p` is then the sigmoid's, and a row costs
    the mean over classes.

    Args:
        logits: `[batch, classes]`.
        labels: Class ids, `[batch]`; or for multi-label 0 and 1, `[batch, classes]`.
        gamma: γ, from 0; how strongly easy rows are turned down.
        class_weights: `[classes]`, for one class a row only.
        reduction: What becomes of the rows' losses.

    Raises:
        ConfigError: Shapes or dtypes do not fit, or a setting is out of its range.
        LabelError: A label is not the id of a class, or a multi-label target is not 0 or 1.

    >>> logits = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    >>> focal(logits, torch.tensor([0, 1]), reduction="none")
    tensor([0.0018, 0.1733])
    """
    if not gamma >= 0:
        raise ConfigError(f"gamma must be at least 0, not {gamma!r}.")
    # log(1 − p) is computed from the logits, never as 1 − exp(log p): a sure row keeps an exact, finite
    # gradient.
    if isinstance(labels, Tensor) and labels.ndim == 2:
        if class_weights is not None:
            raise ConfigError("class_weights of focal need one label a row; these labels are multi-label.")
        logits, labels = logits_and_targets("focal", logits, labels)
        check_range(labels, (labels != 0) & (labels != 1), "A multi-label target of focal must be 0 or 1")
        signed = logits * (2 * labels - 1)
        losses = -F.logsigmoid(signed) * torch.exp(gamma * F.logsigmoid(-signed))
        return reduce_rows(losses.mean(dim=1), reduction)
    logits, labels = logits_and_ids("focal", logits, labels)
    log_p = F.log_softmax(logits, dim=1)
    index = labels[:, None]
    log_others = log_p.scatter(1, index, -torch.inf).logsumexp(dim=1)
    rows = -log_p.gather(1, index).squeeze(1) * torch.exp(gamma * log_others)
    if class_weights is not None:
        rows = rows * per_class("class_weights", class_weights, logits)[labels]
    return reduce_rows(rows, reduction)


def binary_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    pos_weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Measure each class's yes or no on its own: the loss for any number of classes a row.

    A row costs the mean over classes of `−[v_c · y_c · log σ(z_c) + (1 − y_c) · log(1 − σ(z_c))]`: the
    negative log-likelihood of independent Bernoulli variables (Bishop 2006, *Pattern Recognition and Machine
    Learning*, equation 4.90), with `v` to balance a class's few positives.

    Args:
        logits: `[batch, classes]`.
        labels: From 0 to 1, `[batch, classes]`.
        pos_weight: `v`, `[classes]`; often a class's negatives divided by its positives.
        reduction: What becomes of the rows' losses.

    Raises:
        ConfigError: Shapes or dtypes do not fit.
        LabelError: A label is below 0 or above 1.

    >>> binary_cross_entropy(torch.tensor([[2.0, -2.0]]), torch.tensor([[1, 0]]))
    tensor(0.1269)
    """
    logits, labels = logits_and_targets("binary_cross_entropy", logits, labels)
    check_range(labels, (labels < 0) | (labels > 1), "A label of binary_cross_entropy must be from 0 to 1")
    weight = None if pos_weight is None else per_class("pos_weight", pos_weight, logits)
    losses = F.binary_cross_entropy_with_logits(logits, labels, pos_weight=weight, reduction="none")
    return reduce_rows(losses.mean(dim=1), reduction)


def mean_squared_error(predictions: Tensor, labels: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """Measure the squared distance from each number: the loss for regression.

    A row costs `(z − y)²`, the mean over targets where a row has several: the negative log-likelihood under
    Gaussian noise (Bishop 2006, section 3.1.1).

    Args:
        predictions: `[batch]`, `[batch, 1]` (a head with one output) or `[batch, targets]`.
        labels: The same shape; `[batch]` and `[batch, 1]` may stand for each other.
        reduction: What becomes of the rows' losses.

    Raises:
        ConfigError: Shapes or dtypes do not fit.

    >>> mean_squared_error(torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, 4.0]))
    tensor(2.)
    """
    predictions, labels = predictions_and_numbers("mean_squared_error", predictions, labels)
    return reduce_rows((predictions - labels).square().mean(dim=1), reduction)


def mean_absolute_error(predictions: Tensor, labels: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """Measure the distance from each number: for regression where some labels are far off or wrong.

    A row costs `|z − y|`, the mean over targets where a row has several: the negative log-likelihood under
    Laplace noise. It is least at the median, which single outliers do not move (Huber 1964, *Robust
    Estimation of a Location Parameter*).

    Args:
        predictions: `[batch]`, `[batch, 1]` (a head with one output) or `[batch, targets]`.
        labels: The same shape; `[batch]` and `[batch, 1]` may stand for each other.
        reduction: What becomes of the rows' losses.

    Raises:
        ConfigError: Shapes or dtypes do not fit.

    >>> mean_absolute_error(torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, 4.0]))
    tensor(1.)
    """
    predictions, labels = predictions_and_numbers("mean_absolute_error", predictions, labels)
    return reduce_rows((predictions - labels).abs().mean(dim=1), reduction)


def kl_divergence(
    student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 2.0, reduction: Reduction = "mean"
) -> Tensor:
    """Measure how far a student's class probabilities are from a teacher's: the loss of distillation.

    A row costs `T² · Σ_c p_c · (log p_c − log q_c)` with `p = softmax(teacher / T)` and `q = softmax(student
    / T)` (Hinton et al. 2015, *Distilling the Knowledge in a Neural Network*, section 2). T² keeps the
    gradient's size when T changes, so that it can be mixed with a loss on labels. Gradients flow to both
    sides: compute the teacher's logits under `torch.no_grad()`.

    Args:
        student_logits: `[batch, classes]`.
        teacher_logits: `[batch, classes]`.
        temperature: T, above 0; a higher one shows more of how the teacher ranks the wrong classes.
        reduction: What becomes of the rows' losses.

    Raises:
        ConfigError: Shapes or dtypes do not fit, or the temperature is not positive.

    >>> kl_divergence(torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]]), temperature=1.0)
    tensor(0.3278)
    """
    check_temperature(temperature)
    student, teacher = same_shape("kl_divergence", student_logits, teacher_logits)
    log_q = F.log_softmax(student / temperature, dim=1)
    log_p = F.log_softmax(teacher / temperature, dim=1)
    rows = F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(dim=1)
    return reduce_rows(rows * temperature**2, reduction)


def cosine(states: Tensor, targets: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """Measure the angle between hidden states: for a student that follows a teacher's representation.

    A row costs `1 − s·t / (‖s‖ ‖t‖)`: 0 where they point the same way, 2 where they are opposed. Lengths do
    not count (Sanh et al. 2019, *DistilBERT*, section 2, aligns student and teacher with it).

    Args:
        states: `[batch, hidden]`.
        targets: `[batch, hidden]`.
        reduction: What becomes of the rows' losses.

    Raises:
        ConfigError: Shapes or dtypes do not fit.

    >>> cosine(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 3.0]]))
    tensor(1.)
    """
    states, targets = same_shape("cosine", states, targets)
    return reduce_rows(1 - F.cosine_similarity(states, targets, dim=1), reduction)


def supervised_contrastive(
    features: Tensor, labels: Tensor, *, temperature: float = 0.1, reduction: Reduction = "mean"
) -> Tensor:
    """Measure how well rows of one class stand together and apart from the others: for few labels.

    With unit-length features, row `i` costs `−1/|P(i)| · Σ_{p ∈ P(i)} log(s_ip / Σ_{a ≠ i} s_ia)` with `s_ij
    = exp(f_i·f_j / τ)`, where `P(i)` are the other rows of its class (Khosla et al. 2020, *Supervised
    Contrastive Learning*, equation 2, L_out). A row that is alone in its class costs 0 and is not counted by
    `"mean"`.

    Rows are compared with each other, so this loss depends on how rows are batched: unlike the others, its
    value over a batch is not made of its values over parts of the batch.

    Args:
        features: Pooled hidden states of any length, `[batch, hidden]`.
        labels: Class ids, `[batch]`.
        temperature: τ, above 0; a lower one weighs the nearest rows more.
        reduction: What becomes of the rows' losses.

    Raises:
        ConfigError: Shapes or dtypes do not fit, or the temperature is not positive.

    >>> features = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    >>> supervised_contrastive(features, torch.tensor([0, 0, 1]), temperature=1.0, reduction="none")
    tensor([0.3133, 0.3133, 0.0000])
    """
    check_temperature(temperature)
    features = matrix("supervised_contrastive", "features", features)
    check_ids("supervised_contrastive", features, labels)
    unit = F.normalize(features, dim=1)
    itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    # The lowest finite number rather than -inf, which would make a batch of one row NaN.
    scores = (unit @ unit.T / temperature).masked_fill(itself, torch.finfo(unit.dtype).min)
    positive = (labels[:, None] == labels) & ~itself
    positives = positive.sum(dim=1)
    losses = torch.where(positive, -F.log_softmax(scores, dim=1), 0)
    rows = losses.sum(dim=1) / positives.clamp(min=1)
    if reduction == "mean":
        return rows.sum() / (positives > 0).sum().clamp(min=1)
    return reduce_rows(rows, reduction)
