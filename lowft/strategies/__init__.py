"""The strategies that lowft ships: each holds settings and calls functions that work without it."""

from __future__ import annotations

from lowft.strategies.augment import Augment
from lowft.strategies.class_names import ClassNames
from lowft.strategies.contrastive import Contrastive
from lowft.strategies.distill import Distill
from lowft.strategies.layerwise_unfreeze import LayerwiseUnfreeze, Unfreeze
from lowft.strategies.masked_language_modeling import MaskedLanguageModeling
from lowft.strategies.partial_freeze import PartialFreeze
from lowft.strategies.pooled_head import PooledHead
from lowft.strategies.probe import Probe
from lowft.strategies.prune import Prune
from lowft.strategies.quantize import Quantize
from lowft.strategies.r_drop import RDrop
from lowft.strategies.reinitialize import Reinitialize
from lowft.strategies.self_training import SelfTraining

__all__ = [
    "Augment",
    "ClassNames",
    "Contrastive",
    "Distill",
    "LayerwiseUnfreeze",
    "MaskedLanguageModeling",
    "PartialFreeze",
    "PooledHead",
    "Probe",
    "Prune",
    "Quantize",
    "RDrop",
    "Reinitialize",
    "SelfTraining",
    "Unfreeze",
]
