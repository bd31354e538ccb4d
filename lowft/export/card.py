"""The model card of an exported folder: what a person who finds the folder wants to know."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from lowft.models.pooling import POOLED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lowft.evaluation import EvaluationReport
    from lowft.history import History

__all__ = ["model_card"]

_TASKS = {
    "single_label_classification": "gives each text one of these classes",
    "multi_label_classification": "gives each text any number of these classes",
    "regression": "gives each text a number",
}


def model_card(settings: Mapping[str, Any], reports: Mapping[str, EvaluationReport], history: History) -> str:
    """Return a model card in Markdown, with the YAML head that model hubs read.

    Args:
        settings: What `lowft.json` holds.
        reports: Evaluations by the name of their rows.
        history: How the model was trained.
    """
    labels = settings["labels"]
    sections = [
        _head(settings),
        f"# {settings['model_class']}, fine-tuned with lowft",
        f"This model {_TASKS[labels['task']]}{_classes(labels)}.",
        f"It was fine-tuned from {_base(settings)}; texts are cut after {settings['max_length']} tokens.",
        "## Use",
        _usage(settings),
        "## Results",
        _results(reports),
        "## Training",
        _training(settings, history),
        "## Limits",
        "The figures hold for texts like those it was evaluated on. Measure it on your own before you rely on it.",
        "## Versions",
        ", ".join(f"{name} {version}" for name, version in settings["versions"].items()),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _head(settings: Mapping[str, Any]) -> str:
    base = settings["base_model"]
    lines = ["---", "library_name: transformers", "pipeline_tag: text-classification", "tags:", "- lowft"]
    if base is not None and "/" in base:
        lines.append(f"base_model: {json.dumps(base)}")
    return "\n".join([*lines, "---"])


def _classes(labels: Mapping[str, Any]) -> str:
    return "" if labels["task"] == "regression" else ": " + ", ".join(f"`{name}`" for name in labels["names"])


def _base(settings: Mapping[str, Any]) -> str:
    revision = f" at revision `{settings['revision']}`" if settings["revision"] else ""
    return f"`{settings['base_model'] or settings['model_class']}`{revision}"


def _usage(settings: Mapping[str, Any]) -> str:
    texts = '[("a text", "a second text")]' if settings["takes_pairs"] else '["a text"]'
    graph = settings["runtime"] != "safetensors"
    module = "" if settings["is_transformers"] or graph else f", model={settings['model_class']}(...)"
    lines = ["```python", "import lowft", "", f'predictor = lowft.load("this folder"{module})']
    lines += [f"predictor.predict({texts})", "```"]
    quantized = any(entry["kind"] == "quantized" for entry in settings["structure"])
    if graph:
        name = {"onnx": "ONNX Runtime", "openvino": "OpenVINO"}[settings["runtime"]]
        lines += [
            "",
            f"The folder holds a graph in {settings['weights']} for {name}, through lowft or without it.",
        ]
    elif quantized:
        lines += ["", f"Its weights are quantized ({settings['weights']}), which lowft alone reads."]
    elif any(entry["kind"] == POOLED for entry in settings["structure"]):
        lines += [
            "",
            "Its head reads pooled token states, which plain transformers cannot express: lowft alone reads it.",
        ]
    elif settings["structure"]:
        lines += ["", "Its layers differ in width, which lowft alone can rebuild."]
    elif settings["is_transformers"]:
        lines += ["", "Plain transformers reads the folder too, with `AutoModelForSequenceClassification`."]
    return "\n".join(lines)


def _results(reports: Mapping[str, EvaluationReport]) -> str:
    if not reports:
        return "It was not evaluated."
    names = list(next(iter(reports.values())).metrics)
    lines = [f"| rows | count | {' | '.join(names)} |", f"| --- | ---: |{' ---: |' * len(names)}"]
    for name, report in reports.items():
        figures = " | ".join(f"{report.metrics.get(metric, float('nan')):.4f}" for metric in names)
        lines.append(f"| {name} | {report.rows:,} | {figures} |")
    intervals = [
        "95 % interval of the accuracy on {}: {:.4f} to {:.4f}.".format(name, *report.accuracy_interval)
        for name, report in reports.items()
        if report.accuracy_interval is not None
    ]
    return "\n".join([*lines, "", *intervals])


def _training(settings: Mapping[str, Any], history: History) -> str:
    recipe = settings["recipe"]
    strategies = ", ".join(part["name"] for part in recipe["strategies"]) or "full fine-tuning"
    lines = [f"Strategies: {strategies}."]
    stages = history.filter("stage")
    if stages:
        lines += ["", "| stage | steps so far | trained parameters | seconds so far | decision |"]
        lines += ["| --- | ---: | ---: | ---: | --- |"]
        lines += [
            f"| {stage['stage_name']} | {stage['step']:,} | {stage['trainable_parameters']:,} | {stage['seconds']:.0f} "
            f"| {stage['decision']} ({stage['reason']}) |"
            for stage in stages
        ]
    lines += ["", "The whole recipe:", "", "```json", json.dumps(recipe, indent=1, sort_keys=True), "```"]
    return "\n".join(lines)
