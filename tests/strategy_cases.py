"""The one table that sends every strategy, and every pair of them, through train, resume, export and reload.

A new strategy joins by one row in `STRATEGIES`; a pair is every two rows, in both orders. A pair that the
contracts refuse must be refused with a message that names both. What is for few labels joins by a row in `FEW_LABELS`,
whose pairs are `FEW_LABEL_PAIRS`: there are so many of them that only `-m exhaustive` runs them.
"""

from __future__ import annotations

import atexit
import itertools
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from lowft.attach import attach
from lowft.augment import RandomDeletion, RandomSwap, SynonymReplacement
from lowft.data.batching import Batch, BatchRandom, Example
from lowft.errors import StrategyConflictError
from lowft.stages import Stage
from lowft.state import State
from lowft.strategies import (
    Augment,
    ClassNames,
    Contrastive,
    Distill,
    LayerwiseUnfreeze,
    MaskedLanguageModeling,
    PartialFreeze,
    PooledHead,
    Probe,
    Prune,
    Quantize,
    RDrop,
    Reinitialize,
    SelfTraining,
    Unfreeze,
)
from lowft.strategy import Contract, Strategy, chain
from tests.tiny import WORDS, tiny_model, tiny_tokenizer

__all__ = [
    "ALLOWED",
    "FEW_LABELS",
    "FEW_LABEL_PAIRS",
    "REFUSED",
    "STRATEGIES",
    "AllHooks",
    "tiny_rows",
    "tiny_teacher",
]


@dataclass(frozen=True)
class AllHooks(Strategy):
    """A user's strategy that overrides every hook, draws at random, and remembers numbers and tensors."""

    contract: ClassVar[Contract] = Contract(provides=frozenset({"mixing"}))

    weight: float = 0.1

    def prepare_model(self, model: torch.nn.Module) -> torch.nn.Module:
        """Mark the model as prepared; a mark that training must not lose."""
        model.lowft_prepared = True  # type: ignore[assignment]
        return model

    def stages(self, stages: tuple[Stage, ...], model: torch.nn.Module) -> tuple[Stage, ...]:
        """Leave the stages as they are."""
        return tuple(stages)

    def on_stage_start(self, state: State) -> None:
        """Count stages."""
        memory = state.memory_of(self.name)
        memory["stages"] = memory.get("stages", 0) + 1

    def for_epoch(self, state: State) -> Strategy:
        """Go on as a copy."""
        return replace(self)

    def on_examples(self, examples: list[Example], rng: BatchRandom) -> list[Example]:
        """Add a shuffled copy of every row."""
        copies = []
        for example in examples:
            words = example.text.split()
            rng.for_row(example.row).shuffle(words)
            rng.random()
            copies.append(Example(example.row, " ".join(words), example.pair, example.label))
        return [*examples, *copies]

    def on_batch(self, batch: Batch, state: State) -> Batch:
        """Draw from torch's stream, as dropout would."""
        state.memory_of(self.name)["drawn"] = torch.rand(3)
        return batch

    def on_loss(self, loss: torch.Tensor, outputs: Any, batch: Batch, state: State) -> torch.Tensor:
        """Add a term that depends on what was drawn and on the running mean."""
        memory = state.memory_of(self.name)
        mean = memory.get("mean_loss", torch.zeros(()))
        memory["mean_loss"] = 0.9 * mean + 0.1 * loss.detach()
        extra: torch.Tensor = self.weight * memory["drawn"].mean() * (loss - mean)
        return loss + extra

    def before_step(self, state: State) -> None:
        """Shrink the gradients by a factor that depends on the step."""
        for parameter in state.model.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(1 / (1 + 0.01 * state.step))

    def finish_model(self, model: torch.nn.Module) -> torch.nn.Module:
        """Double the head's bias, so that a model that was not finished gives other logits."""
        with torch.no_grad():
            [*model.parameters()][-1].mul_(2)
        return model


def tiny_teacher(arch: str = "bert", seed: int = 9) -> str:
    """Return the folder of a tiny classifier of two classes, which goes when the process ends."""
    folder = tempfile.mkdtemp(prefix="lowft-teacher-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    tiny_model(arch, seed=seed).save_pretrained(folder)
    tiny_tokenizer(arch).save_pretrained(folder)
    return folder


STRATEGIES: dict[str, Strategy] = {
    "top": PartialFreeze(top=1),
    "head": PartialFreeze(top=0),
    "embeddings frozen": PartialFreeze(embeddings=False),
    "biases": PartialFreeze(biases_only=True),
    "unfreeze": LayerwiseUnfreeze(
        (
            Unfreeze(top=0, learning_rate=5e-3, epochs=1),
            Unfreeze(top=1, batch_size=3, max_steps=4, layer_decay=0.8),
            Unfreeze(top="all", epochs=1),
        ),
        target=1.1,
    ),
    "unfreeze, roll back": LayerwiseUnfreeze(
        (Unfreeze(top=1, epochs=1), Unfreeze(top="all", epochs=1, learning_rate=0.5)), min_improvement=0.5
    ),
    "augment": Augment(
        (RandomSwap(0.3), RandomDeletion(0.3), SynonymReplacement({"film": ["movie"], "bad": ["awful"]}, share=0.3)),
        copies=2,
        probability=0.8,
        consistency=0.5,
        temperature=0.5,
        label_weight=0.5,
        annealing="log",
        drop_misread=0.6,
        bank=3,
    ),
    "distill": Distill(tiny_teacher(), alpha=(0.9, 0.3), temperature=(4.0, 1.0)),
    "distill hidden": Distill(tiny_teacher(), hidden=0.5, relations=1.0),
    "masked words": MaskedLanguageModeling(0.5),
    "prune": Prune(0.5, multiple_of=4),
    "prune heads and neurons": Prune(0.5, heads=0.5, scope="global", importance="magnitude", multiple_of=4),
    "prune at the start": Prune(0.5, importance="magnitude", when="start"),
    "quantize": Quantize("int8"),
    "quantize in a stage": Quantize("int8", when="stage", embeddings=False),
    "quantize from the start": Quantize("int4_weight_only", when="start"),
    "reinitialize": Reinitialize(),
    "every hook": AllHooks(),
}

_CONTRASTIVE = Contrastive(max_steps=3, learning_rate=5e-3, batch_size=4, stop_below=0)
FEW_LABELS: dict[str, tuple[Strategy, ...]] = {
    "class names": (ClassNames({"neg": "bad"}, copies=1),),
    "pooled head": (PooledHead("attention"),),
    "pooled head, contrastive": (PooledHead(), _CONTRASTIVE),
    "probe": (Probe(strengths=(1.0,)),),
    "R-Drop": (RDrop(),),
    "self-training": (SelfTraining(0.0, start=0),),
    "masked words before": (MaskedLanguageModeling(when="before", max_steps=2),),
}
FEW_LABEL_PAIRS: dict[str, tuple[Strategy, ...]] = {}

ALLOWED: dict[str, tuple[Strategy, ...]] = {"none": ()}
REFUSED: dict[str, tuple[Strategy, Strategy]] = {}

# Where three meet: one of each family, and stages that come before, between and after one another.
_TRIPLES = ("top", "unfreeze", "distill", "prune heads and neurons", "quantize in a stage")
_OF_LAYERS = (PartialFreeze, LayerwiseUnfreeze, Reinitialize)
_FOUR = ("unfreeze", "prune", "distill", "quantize in a stage")


def _works(strategies: Sequence[Strategy]) -> bool:
    """Say whether strategies can work together; what several say of layers is known only with the model."""
    of_layers = [part for part in strategies if isinstance(part, _OF_LAYERS)]
    try:
        chain(*strategies)
        if len(of_layers) > 1:
            attach(tiny_model("bert"), of_layers).start_stage(0)
    except StrategyConflictError:
        return False
    return True


ALLOWED |= {name: (strategy,) for name, strategy in STRATEGIES.items()}
for _names in itertools.chain(itertools.permutations(STRATEGIES, 2), itertools.permutations(_TRIPLES, 3), [_FOUR]):
    _parts = tuple(STRATEGIES[name] for name in _names)
    if _works(_parts):
        ALLOWED[" + ".join(_names)] = _parts
    elif len(_names) == 2:
        REFUSED[" + ".join(_names)] = (_parts[0], _parts[1])
ALLOWED |= FEW_LABELS
ALLOWED["class names + pooled head, contrastive + probe"] = tuple(
    part for name in ("class names", "pooled head, contrastive", "probe") for part in FEW_LABELS[name]
)
for _few, _name in itertools.product(FEW_LABELS, STRATEGIES):
    FEW_LABEL_PAIRS[f"{_few} + {_name}"] = (*FEW_LABELS[_few], STRATEGIES[_name])
    FEW_LABEL_PAIRS[f"{_name} + {_few}"] = (STRATEGIES[_name], *FEW_LABELS[_few])


def tiny_rows(count: int = 14, seed: int = 0, classes: Sequence[Any] = ("neg", "pos")) -> dict[str, list[Any]]:
    """Return rows of ragged length; the words of the classes differ, so that there is something to learn."""
    generator = torch.Generator().manual_seed(seed)
    texts, labels = [], []
    for row in range(count):
        kind = row % len(classes)
        length = int(torch.randint(2, 11, (), generator=generator))
        picks = torch.randint(0, len(WORDS) // len(classes), (length,), generator=generator)
        texts.append(" ".join(WORDS[int(pick) * len(classes) + kind] for pick in picks))
        labels.append(classes[kind])
    return {"text": texts, "label": labels}
