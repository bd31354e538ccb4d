"""Let the model say what stood behind masks, beside its task or in a stage before it."""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from lowft._inference import autocast
from lowft._settings import check_choice, check_flag, check_real, check_whole
from lowft.errors import ConfigError, StrategyConflictError
from lowft.masking import continuations, mask_tokens, masked_token_loss
from lowft.models import find_layers
from lowft.models.masked_head import check_reads_both_ways, make_masked_head
from lowft.stages import Stage, check_pace
from lowft.strategy import Contract, Strategy

if TYPE_CHECKING:
    from torch import Tensor

    from lowft.data.batching import Batch
    from lowft.state import State

__all__ = ["MaskedLanguageModeling"]

_STAGE = "masked words"
_HEAD = "lowft_masked_head"
_CONTINUES = "continues"


@dataclass(frozen=True)
class MaskedLanguageModeling(Strategy):
    """Let the model say which words stood behind masks, as it did when it was pre-trained, on your own texts.

    Beside the task, each batch goes through the model once more with words hidden, and `weight` times the loss of the
    hidden ones (`lowft.masked_token_loss`) is added. Or in a stage before the task, which learns nothing else: the
    model gets used to the language of your field first. Rows of `Trainer(unlabeled_dataset=...)` are used in both.
    It is a strategy of its own, and no setting of `RandomMasking`: it needs no copies, and may have its own stage.
    (`Augment([RandomMasking()])` beside it lets the model do its task on masked texts too.)

    The head is the checkpoint's own where it has one of BERT's, RoBERTa's or DistilBERT's form, else a new one; both
    score words by the model's input embeddings. It is gone in the end. A step takes about twice as long. Frozen layers
    are cached for the task alone: texts with words hidden pass through all of them.

    Sources: Devlin et al. 2019, BERT, section 3.1, https://arxiv.org/abs/1810.04805; further pre-training on one's own
    texts of Gururangan et al. 2020, *Don't Stop Pretraining*, https://arxiv.org/abs/2004.10964.

    Args:
        weight: Weight beside the loss on labels.
        when: "beside" the task, or in a stage "before" it.
        share: Share of each text's words to hide, at least one.
        whole_words: Whether all tokens of a word are hidden together.
        longest_span: Words are hidden in runs of neighbours whose length is drawn from 1 to this.
        epochs: Passes over all rows in the stage before.
        learning_rate: Its peak learning rate; None takes that of the run.
        max_steps: Its optimizer steps, in place of `epochs`.

    Raises:
        ConfigError: A setting outside its range; when the training begins, a tokenizer without a mask token.
        ModelError: When the Trainer is built, a model that does not read both ways.

    >>> MaskedLanguageModeling(0.2, longest_span=3).when
    'beside'
    """

    # What is quantized after it finds its head gone.
    contract: ClassVar[Contract] = Contract(
        provides=frozenset({"unlabeled", "modules"}), invalidates=frozenset({"precision"})
    )

    weight: float = 0.1
    when: Literal["beside", "before"] = "beside"
    share: float = 0.15
    whole_words: bool = True
    longest_span: int = 1
    epochs: float = 1.0
    learning_rate: float | None = None
    max_steps: int | None = None
    batch_size: ClassVar[None] = None
    layer_decay: ClassVar[None] = None

    def __post_init__(self) -> None:
        """Check every setting, and say what the strategy asks of others."""
        check_real("MaskedLanguageModeling.weight", self.weight, above=0)
        check_choice("MaskedLanguageModeling.when", self.when, ("beside", "before"))
        check_real("MaskedLanguageModeling.share", self.share, above=0, most=1)
        check_flag("MaskedLanguageModeling.whole_words", self.whole_words)
        check_whole("MaskedLanguageModeling.longest_span", self.longest_span, least=1)
        check_pace(self)
        if self.when == "before":
            facts = self.contract.provides | {"stages"}
            object.__setattr__(self, "contract", dataclasses.replace(self.contract, provides=facts))

    def prepare_model(self, model: torch.nn.Module) -> torch.nn.Module:
        """Give the model the head."""
        check_reads_both_ways(model, purpose="MaskedLanguageModeling")
        setattr(model, _HEAD, make_masked_head(model))
        return model

    def stages(self, stages: tuple[Stage, ...], model: torch.nn.Module) -> tuple[Stage, ...]:
        """Let the head train where it is used, and put the stage in front if there is to be one."""
        own = frozenset(name for name, _ in model.named_parameters() if name.startswith(f"{_HEAD}."))
        everything = frozenset(name for name, value in model.named_parameters() if value.requires_grad)
        if self.when == "beside":
            return tuple(
                stage if stage.trainable is None else dataclasses.replace(stage, trainable=stage.trainable | own)
                for stage in stages
            )
        layers = find_layers(model)
        first = everything if stages[0].trainable is None else stages[0].trainable
        below = frozenset(name for name in first if layers.depths.get(name, 0) <= layers.num_blocks) - own
        if not below:
            raise StrategyConflictError(
                "MaskedLanguageModeling(when='before') teaches the layers below the task's head, and the first stage "
                "trains none of them: let PartialFreeze or LayerwiseUnfreeze train some at first, or leave one out"
            )
        # Not that of a stage which another strategy has put in front with a pace of its own.
        like = next((stage for stage in stages if not stage.prepares), stages[0])
        front = dataclasses.replace(
            like,
            name=_STAGE,
            prepares=True,
            labeled_only=False,
            trainable=below | own,
            gates=(),
            epochs=self.epochs,
            max_steps=self.max_steps,
            learning_rate=self.learning_rate or like.learning_rate,
        )
        rest = (
            dataclasses.replace(stage, trainable=(everything if stage.trainable is None else stage.trainable) - own)
            for stage in stages
        )
        return (front, *rest)

    def on_stage_start(self, state: State) -> None:
        """Find out whether there is a mask token, and say which head is used."""
        if state.tokenizer is None:
            raise ConfigError(
                "MaskedLanguageModeling needs the tokenizer: in a loop of your own, set run.state.tokenizer before "
                "the first stage"
            )
        if state.tokenizer.mask_token_id is None:
            raise ConfigError(
                f"MaskedLanguageModeling needs a mask token, and this {type(state.tokenizer).__name__} has none: use "
                f"the model's own tokenizer, or leave the strategy out"
            )
        if state.stage_index == 0:
            head = "the checkpoint's own head" if getattr(state.model, _HEAD).own else "a new head on the embeddings"
            state.note(f"MaskedLanguageModeling: hidden words are predicted by {head}")
        elif self.when == "before" and state.stage_index == 1:
            state.forget_best()  # the task was not learnt yet

    def on_loss(self, loss: Tensor, outputs: Any, batch: Batch, state: State) -> Tensor:  # noqa: ARG002
        """Return the loss with that of hidden words, or in the stage for them that alone."""
        if self.when == "beside":
            return loss + self.weight * self._masked_loss(batch, state)
        if state.stage.name != _STAGE:
            return loss
        # What the head of the task would be best at is beside the point: the last weights count.
        state.forget_best()
        return self._masked_loss(batch, state) + 0.0 * loss

    def finish_model(self, model: torch.nn.Module) -> torch.nn.Module:
        """Take the head away."""
        delattr(model, _HEAD)
        return model

    def _masked_loss(self, batch: Batch, state: State) -> Tensor:
        model: Any = state.model
        tokenizer, head = state.tokenizer, getattr(model, _HEAD)
        ids = batch.inputs["input_ids"]
        special = torch.tensor(sorted(set(tokenizer.all_special_ids)), device=ids.device)
        maskable = ~torch.isin(ids, special)
        embeddings = model.get_input_embeddings().weight
        hidden_ids, labels = mask_tokens(
            ids,
            maskable,
            mask_id=tokenizer.mask_token_id,
            vocabulary=min(len(tokenizer), len(embeddings)),
            continues=self._continues(head, tokenizer) if self.whole_words else None,
            share=self.share,
            longest_span=self.longest_span,
            rng=random.Random(int(torch.randint(2**62, ()))),
        )
        with autocast(state.precision, ids.device):
            states = model.base_model(**(batch.inputs | {"input_ids": hidden_ids}))[0]
            scores = head(states[labels != -100], embeddings)  # of what is hidden alone: all would be ten times as many
        return masked_token_loss(scores, labels)

    @staticmethod
    def _continues(head: torch.nn.Module, tokenizer: Any) -> Tensor:
        """Return which tokens go on with a word; found out once."""
        if not hasattr(head, _CONTINUES):
            head.register_buffer(_CONTINUES, continuations(tokenizer), persistent=False)
        found: Tensor = getattr(head, _CONTINUES)
        return found.cpu()
