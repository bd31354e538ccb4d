"""Finished folders: written by `Trainer.export`, read by `load`."""

from __future__ import annotations

from lowft.export.folder import load

__all__ = ["load"]
