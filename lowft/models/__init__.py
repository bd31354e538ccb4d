"""Models: which to choose, how they are loaded, what layers they have, and which of these train."""

from __future__ import annotations

from lowft.models.catalogue import ModelCard, ModelTable, small_models
from lowft.models.layers import Layers, find_layers, layer_table
from lowft.models.loading import load_model, load_tokenizer
from lowft.models.trainable import (
    Selection,
    freeze_,
    preview,
    set_train_mode_,
    set_trainable_,
    trainable_names,
)

__all__ = [
    "Layers",
    "ModelCard",
    "ModelTable",
    "Selection",
    "find_layers",
    "freeze_",
    "layer_table",
    "load_model",
    "load_tokenizer",
    "preview",
    "set_train_mode_",
    "set_trainable_",
    "small_models",
    "trainable_names",
]
