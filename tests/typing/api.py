"""Uses lowft as its users do; mypy checks this file and nobody runs it."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, assert_type

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from matplotlib.figure import Figure

import lowft

# Errors: each is what Python programmers would catch.

error: lowft.LowftError = lowft.ConfigError("a message")
conflict: ValueError = lowft.StrategyConflictError("a message")
missing: ImportError = lowft.MissingExtraError.of("matplotlib", "plot", "Report.plot")
for value_error in (lowft.DataError, lowft.LabelError, lowft.LeakageError, lowft.ModelError):
    problem: ValueError = value_error("a message")
for run_error in (lowft.TrainingError, lowft.NonFiniteError, lowft.CheckpointError):
    trouble: RuntimeError = run_error("a message")
for checkpoint_error in (lowft.CheckpointCorruptError, lowft.CheckpointMismatchError):
    damage: lowft.CheckpointError = checkpoint_error("a message")

# Data: from any table to rows, splits and labels.

rows = lowft.read_rows("reviews.csv", column_mapping={"review": "text", "stars": "label"}, on_bad_row="drop")
assert_type(rows, lowft.Rows)
assert_type(rows.texts, tuple[str, ...])
assert_type(rows.select([2, 0]).numbers, tuple[int, ...])
assert_type(rows.fingerprint(), str)
lowft.read_rows("reviews.csv", on_bad_row="ignore")  # type: ignore[arg-type]
splits = lowft.split(rows, validation=0.1, test=0.1, seed=1, on_leakage="drop")
assert_type(splits, lowft.Splits)
assert_type(splits.train, lowft.Rows)
assert_type(splits.validation, lowft.Rows | None)
few = lowft.few_shot(splits.train, 8, seed=1)
assert_type(few, lowft.Rows)
assert_type(lowft.add_templated_rows(few, templates=["It is {}"], copies=2, names={0: "bad"}), lowft.Rows)
assert_type(lowft.find_leakage(splits.train, splits.test), tuple[tuple[int, int], ...])
labels = lowft.Labels.infer(["neg", "pos"], task="single_label_classification")
assert_type(labels, lowft.Labels)
assert_type(labels.id2label, dict[int, str])
assert_type(lowft.Labels.from_json(labels.to_json()).describe(), str)
assert_type(labels.decode([1, 0]), list[Any])

# Models: which to choose, what they are made of, and what trains.

table = lowft.small_models(max_parameters=30_000_000, language="en", sort_by="parameters")
assert_type(table, lowft.ModelTable)
assert_type(table[0], lowft.ModelCard)
assert_type(table[0].bytes, int)
assert_type(table.to_frame(), pd.DataFrame)
model: torch.nn.Module = lowft.load_model(table[0].name, labels=labels, new_head=True, seed=1)
tokenizer = lowft.load_tokenizer(Path("model"))
layers = lowft.find_layers(model)
assert_type(layers, lowft.Layers)
assert_type(layers.num_blocks, int)
assert_type(layers.names_at(0), tuple[str, ...])
assert_type(lowft.layer_table(model), str)
assert_type(lowft.preview(model, top=2), str)
assert_type(lowft.freeze_(model, top=2, freeze=("*norm*",)), frozenset[str])
names = lowft.trainable_names(model, embeddings=False, biases_only=True)
assert_type(names, frozenset[str])
lowft.set_trainable_(model, names)
lowft.set_train_mode_(model, layers)
selection: lowft.Selection = {"top": 2, "train": ("*.bias",)}
lowft.freeze_(model, **selection)
lowft.freeze_(model, topp=2)  # type: ignore[call-arg]

encoder = lowft.load_model("model")
fewer, shorter, lost = lowft.prune_vocabulary(encoder, tokenizer, rows, min_count=2, keep=["film"])
pruned_model: torch.nn.Module = fewer
assert_type(lost, lowft.VocabularyReport)
assert_type(lost.lost_share, float)
pruned = lowft.prune_(model, 0.5, heads=0.25, layers=[1], batches=[{"input_ids": torch.ones(1, 2)}], tune=True)
assert_type(pruned, lowft.PruningReport)
assert_type(pruned.heads_after, Mapping[str, int])
assert_type(pruned.latency, float | None)
assert_type(lowft.count_flops(model, 128), int)
lowft.prune_(model, flops=0.5, importance="size")  # type: ignore[arg-type]
lowft.Prune(heads=0.5, scope="global", uniform=False)
lowft.Prune(latency=0.5, shape=(8, 64))

# Strategies: those that lowft ships, combined, written to JSON and back.

freeze = lowft.PartialFreeze(top=2, embeddings=True, freeze=("*LayerNorm*",))
assert_type(freeze.preview(model), str)
unfreeze = lowft.LayerwiseUnfreeze(
    (lowft.Unfreeze(top=2, learning_rate=2e-4, epochs=1), lowft.Unfreeze(top="all", layer_decay=0.9)),
    target=0.85,
    min_improvement=0.005,
)
lowft.Unfreeze(top="some")  # type: ignore[arg-type]
combined = lowft.chain(freeze, unfreeze)
assert_type(combined, lowft.Chain)
as_strategy: lowft.Strategy = combined
assert_type(combined.strategies, tuple[lowft.Strategy, ...])
assert_type(lowft.registered(), Mapping[str, type])
again: lowft.Strategy = lowft.from_dict(lowft.to_dict(unfreeze))

# Augmentation: in training, or as plain functions of text.

augmenters: list[lowft.Augmenter] = [
    lowft.SynonymReplacement({"film": ("movie",)}, share=0.2),
    lowft.SynonymReplacement(lowft.EmbeddingNeighbors(Path("model"), neighbors=3, min_similarity=0.6)),
    lowft.SynonymReplacement(lambda word: [word.upper()]),
    lowft.SynonymReplacement(pos_tagger=lambda words: [(word, "NN") for word in words]),
    lowft.ContextualReplacement("distilroberta-base", share=0.2, top=3, show_word=False),
    lowft.RandomInsertion(),
    lowft.RandomMasking(0.15, mask="<mask>"),
    lowft.RandomDeletion(0.1),
    lowft.RandomSwap(0.1),
    lowft.PunctuationInsertion(),
    lowft.BackTranslation(lowft.ApertiumTranslator("eng-spa"), lowft.Seq2SeqTranslator("opus-mt-es-en")),
]
assert_type(augmenters[0].vary("a warm film", random.Random(1)), str)
augment = lowft.Augment([*augmenters, lowft.NlpAug(object())], copies=2, mix="draw")


class Reversed:
    """A translator is anything that turns texts into as many texts."""

    def __call__(self, texts: Sequence[str]) -> list[str]:
        """Return the texts backwards."""
        return [text[::-1] for text in texts]


translator: lowft.Translator = Reversed()


# A strategy of one's own: every hook, with the types that it gets and gives.


@dataclass(frozen=True)
class EveryHook(lowft.Strategy):
    """Overrides every hook."""

    contract: ClassVar[lowft.Contract] = lowft.Contract(needs=frozenset({"stages"}), provides=frozenset({"mixing"}))

    factor: float = 0.5

    def prepare_data(self, dataset: lowft.Rows) -> lowft.Rows:
        return dataset.select(range(10))

    def prepare_model(self, model: torch.nn.Module) -> torch.nn.Module:
        return torch.nn.Sequential(model)

    def stages(self, stages: tuple[lowft.Stage, ...], model: torch.nn.Module) -> tuple[lowft.Stage, ...]:
        return tuple(replace(stage, trainable=lowft.trainable_names(model, top=1)) for stage in stages)

    def on_stage_start(self, state: lowft.State) -> None:
        assert_type(state.stage, lowft.Stage)
        state.memory_of(self.name)["started"] = state.step

    def recurring(self, dataset: lowft.Rows) -> lowft.Rows | None:
        return dataset

    def for_epoch(self, state: lowft.State) -> lowft.Strategy:
        assert_type(state.precision, str)
        return replace(self, factor=1 / (1 + state.epoch))

    def on_examples(self, examples: list[lowft.Example], rng: lowft.BatchRandom) -> list[lowft.Example]:
        assert_type(rng.for_row(examples[0].row), random.Random)
        return [*examples, replace(examples[0], text=rng.choice(examples).text)]

    def on_batch(self, batch: lowft.Batch, state: lowft.State) -> lowft.Batch:
        assert_type(len(batch), int)
        return replace(batch, inputs={name: tensor * state.step for name, tensor in batch.inputs.items()})

    def on_loss(self, loss: torch.Tensor, outputs: Any, batch: lowft.Batch, state: lowft.State) -> torch.Tensor:
        return loss * self.factor

    def before_step(self, state: lowft.State) -> None:
        for parameter in state.model.parameters():
            assert_type(parameter, torch.nn.Parameter)

    def finish_model(self, model: torch.nn.Module) -> torch.nn.Module:
        return model


@dataclass(frozen=True)
class TwoInARow(lowft.Gate):
    """A gate of one's own."""

    least: float = 0.8

    def decide(self, results: Sequence[Mapping[str, float]]) -> lowft.Verdict:
        enough = all(result["accuracy"] >= self.least for result in results[-2:])
        return lowft.Verdict(lowft.Decision.STOP if enough else lowft.Decision.CONTINUE, "the last two")


@lowft.register
@dataclass(frozen=True)
class Ramp:
    """Settings that a strategy's settings may hold."""

    steps: int = 10


assert_type(Ramp(3).steps, int)  # registering keeps the class's type
stage = lowft.Stage("head", trainable=names, gates=(TwoInARow(), lowft.Target("loss", 0.3, greater_is_better=False)))
verdict = stage.decide([{"loss": 0.2}])
assert_type(verdict.decision, lowft.Decision)
assert_type(verdict.ends_training, bool)
gate: lowft.Gate = lowft.MinImprovement("accuracy", 0.01)


# The Trainer: settings, a run, a loop over its steps, results.


def class_means(logits: npt.NDArray[Any], truth: npt.NDArray[Any]) -> dict[str, float]:
    """A metric of one's own."""
    return {"mean": float(logits[np.arange(len(truth)), truth].mean())}


def own_loss(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """A loss of one's own."""
    return torch.nn.functional.cross_entropy(logits, truth)


config = lowft.TrainingConfig(epochs=2, learning_rate=1e-4, precision="bfloat16", class_weights="balanced")
assert_type(config.to_dict(), dict[str, Any])
lowft.TrainingConfig(precision="float16")  # type: ignore[arg-type]
lowft.TrainingConfig(2)  # type: ignore[call-arg]
lowft.Trainer(Path("model"), few)
trainer = lowft.Trainer(
    model,
    splits.train,
    splits.validation,
    strategies=[unfreeze, augment, EveryHook(0.1)],
    config=config,
    tokenizer=tokenizer,
    column_mapping={"review": "text"},
    task="single_label_classification",
    loss=own_loss,
    metrics=class_means,
)
lowft.Trainer(model, few, strategies=freeze)  # type: ignore[arg-type]
lowft.Trainer(model, few, task="ranking")  # type: ignore[arg-type]
guided = lowft.Distill((model, tokenizer), hidden=1.0, layers=[(1, 2)], relations=0.5, cache_dir=Path("answers"))
lowft.Trainer(model, few, unlabeled_dataset=["a text"], strategies=[guided])
history = trainer.fit(resume_from_checkpoint=True, strict=False)
assert_type(history, lowft.History)
for result in trainer.steps():
    assert_type(result, lowft.StepResult)
    assert_type(result.metrics, dict[str, float] | None)
    assert_type(trainer.save_checkpoint(), Path)
assert_type(trainer.model, torch.nn.Module)
assert_type(trainer.labels, lowft.Labels)
assert_type(trainer.finished, bool)
assert_type(trainer.predict(["a film"]), list[Any])
assert_type(trainer.predict_proba(["a film"]), npt.NDArray[Any])
report = trainer.evaluate(splits.test, name="test")
assert_type(report, lowft.EvaluationReport)
assert_type(report["accuracy"], float)
assert_type(report.classes, tuple[lowft.ClassScores, ...])
assert_type(report.plot(), Figure)
assert_type(trainer.export("sentiment", overwrite=True), Path)

# What remains: a predictor, a history, a comparison.

predictor = lowft.load("sentiment", device="cuda", batch_size=8)
assert_type(predictor, lowft.Predictor)
assert_type(predictor.predict([("a premise", "a hypothesis")], threshold=0.3), list[Any])
assert_type(predictor.predict_proba("reviews.csv", column_mapping={"review": "text"}), npt.NDArray[np.float32])
assert_type(predictor.predict_logits(pd.DataFrame({"text": ["a film"]})), npt.NDArray[np.float32])
assert_type(predictor.evaluate({"text": ["a film"], "label": ["pos"]}), lowft.EvaluationReport)
plan = trainer.plan(max_minutes=30, max_memory=4 * 1024**3)
assert_type(plan, lowft.Plan)
assert_type(plan.stages, tuple[lowft.PlannedStage, ...])
assert_type(plan.peak_memory_bytes, int | None)
assert_type(history.peak_memory_bytes, int | None)
lowft.Trainer(model, rows, strategies=plan.strategies, config=plan.config)
history.append("note", step=3, message="looked at it")
assert_type(history.filter("evaluate"), list[dict[str, Any]])
assert_type(lowft.History.from_json(history.to_json()).to_frame(), pd.DataFrame)
assert_type(history.plot("curves.png"), Figure)
assert_type(lowft.plot_histories({"staged": history}, x="seconds"), Figure)
comparison = lowft.Comparison()
comparison.add("staged", accuracy=report["accuracy"], accuracy_interval=report.accuracy_interval, seconds=60, note="x")
assert_type(comparison.to_frame(), pd.DataFrame)

deployed = lowft.deployment_report({"float": "exports/float", "now": predictor, "run": trainer}, rows, threads=(1, 2))
assert_type(deployed, lowft.DeploymentReport)
assert_type(deployed["float"], lowft.Deployed)
assert_type(deployed["float"].timings, tuple[lowft.Timing, ...])
assert_type(deployed["float"].size_bytes, int | None)
assert_type(deployed.verdicts(), list[str])
assert_type(deployed.plot("plot.png", batch_size=1), Figure)
assert_type(deployed.save("report.json"), Path)
assert_type(deployed.to_frame(), pd.DataFrame)

# A loop of one's own.

run = lowft.attach(model, [unfreeze], stage=lowft.Stage(learning_rate=1e-4))
assert_type(run, lowft.Attached)
optimizer = torch.optim.AdamW(run.parameter_groups(weight_decay=0.01))
for current in run:
    assert_type(current, lowft.Stage)
    batch = run.on_batch(lowft.Batch({"input_ids": torch.ones(1, 3, dtype=torch.int64)}, torch.tensor([1])))
    outputs = run.model(**batch.inputs)
    torch.autograd.backward(run.on_loss(own_loss(outputs.logits, torch.tensor([1])), outputs, batch))
    run.step(optimizer)
    run.decide({"accuracy": 0.8})
saved, tensors = run.state_dict()
assert_type(tensors, dict[str, torch.Tensor])
run.load_state_dict(saved, tensors)
finished: torch.nn.Module = run.finish()

# Few labels.

scarce: list[lowft.Strategy] = [
    lowft.ClassNames({0: "bad", 1: "good"}, templates=["It is {}"]),
    lowft.PooledHead("attention"),
    lowft.Contrastive(max_steps=8),
    lowft.Probe(fine_tune=False),
]
lowft.pooled_head_(model, "mean")
assert_type(lowft.reinitialize_(model, top=2, seed=1), tuple[str, ...])
scarce += [lowft.Reinitialize(top=2)]
suggestion = lowft.suggest_strategies("model", (["a", "b"], [0, 1]), ["c"], new_head=True)
assert_type(suggestion, lowft.Suggestion)
assert_type(suggestion.strategies, tuple[lowft.Strategy, ...])
assert_type(suggestion.reasons, tuple[str, ...])
lowft.Trainer(model, rows, strategies=suggestion.strategies)
lowft.Trainer(model, rows, strategies="auto", config=lowft.TrainingConfig(restarts=2))
lowft.Trainer(model, rows, strategies="best")  # type: ignore[arg-type]
assert_type(
    lowft.probe_head_(model, [lowft.Batch({"input_ids": torch.ones(1, 3)}, torch.tensor([1]))]), lowft.ProbeReport
)


def trained(rows: lowft.Rows, seed: int) -> lowft.Trainer:
    """Train on few labels."""
    return lowft.Trainer(model, rows, strategies=scarce, config=lowft.TrainingConfig(seed=seed))


compared = lowft.compare_few_shot((["a", "b"], [0, 1]), (["c"], [0]), {"few": trained}, k=[1], draws=2)
assert_type(compared, lowft.FewShotComparison)
assert_type(compared.difference("few", 1), tuple[float, float, float])

# Losses and metrics.

logits, truth = torch.randn(4, 2), torch.tensor([0, 1, 1, 0])
weights = lowft.balanced_class_weights([0, 1, 1], 2)
for loss in (
    lowft.cross_entropy(logits, truth, label_smoothing=0.1, class_weights=weights, reduction="none"),
    lowft.focal(logits, truth, gamma=1),
    lowft.binary_cross_entropy(logits, logits.sigmoid()),
    lowft.mean_squared_error(logits[:, 0], truth),
    lowft.mean_absolute_error(logits[:, 0], truth),
    lowft.kl_divergence(logits, logits, temperature=2),
    lowft.hidden_state_loss(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), torch.ones(2, 3)),
    lowft.relation_loss(torch.zeros(2, 3, 4), torch.zeros(2, 3, 8), torch.ones(2, 3), heads=2),
    lowft.cosine(logits, logits),
    lowft.supervised_contrastive(logits, truth),
    lowft.resolve_loss("focal", labels.task)(logits, truth),
):
    assert_type(loss, torch.Tensor)
measured = lowft.compute_metrics(labels.task, logits.numpy(), truth.numpy(), names=["accuracy"])
assert_type(measured, dict[str, float])
assert_type(lowft.calibration_error(truth.numpy(), logits.softmax(1).numpy(), bins=10), float)
assert_type(lowft.evaluation_report(labels.task, logits.numpy(), truth.numpy(), labels.names), lowft.EvaluationReport)

# Copies and rows without labels.

augmenting = lowft.Augment([lowft.RandomSwap()], consistency=1.0, annealing="exp", drop_misread=0.9, bank=4)
assert_type(augmenting.variants([("a film", None)]), list[tuple[tuple[str, str | None], ...]])
lowft.Augment([lowft.RandomSwap()], drop_harmful=0.1)
assert_type(lowft.EmbeddingNeighbors(model, tokenizer)("film"), tuple[str, ...])
lowft.Augment([lowft.RandomSwap()], annealing="slow")  # type: ignore[arg-type]
assert_type(lowft.consistency_loss(torch.ones(1, 2), torch.ones(1, 2), temperature=0.4), torch.Tensor)
assert_type(lowft.r_drop_loss(torch.ones(1, 2), torch.ones(1, 2)), torch.Tensor)
lowft.chain(lowft.RDrop(0.5), lowft.SelfTraining(0.95), lowft.MaskedLanguageModeling(0.1, when="before"))
