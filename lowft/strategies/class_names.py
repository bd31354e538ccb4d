"""What the classes are called, among the rows to learn from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lowft._settings import check_whole
from lowft.data.templates import check_templates, templated
from lowft.errors import ConfigError
from lowft.strategy import Strategy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowft.data.rows import Rows

__all__ = ["ClassNames"]


@dataclass(frozen=True)
class ClassNames(Strategy):
    """Add training rows that say what the classes are called: "This sentence is positive", labelled "positive".

    As `lowft.add_templated_rows` does. With few labels they tell a sentence encoder along which direction the classes
    lie; put it before `Contrastive` and `Probe`. What it brings is measured in docs/few-labels.md.

    Args:
        names: What classes are called, by label, where neither the label nor the data says it in words, or says it
            badly: `{0: "negative", 1: "positive"}`. Kept as pairs.
        templates: What to say of a class; `{}` stands for its name.
        copies: How many rows each template makes for each class; more of them weigh more beside the rows of the data.

    Raises:
        ConfigError: A template without one `{}`, `copies` below 1, or names that are no mapping; when the Trainer is
            built, names of unknown classes, or a class that nothing says the name of.
        DataError: When the Trainer is built, pairs of texts, or labels that are not one class a row.

    >>> from lowft import Rows
    >>> ClassNames({0: "bad", 1: "good"}, copies=1).prepare_data(Rows(("so dull", "a joy"), labels=(0, 1))).texts
    ('so dull', 'a joy', 'This sentence is bad', 'This sentence is good')
    """

    names: Mapping[Any, str] | Sequence[tuple[Any, str]] = ()
    templates: Sequence[str] = ("This sentence is {}",)
    copies: int = 8

    def __post_init__(self) -> None:
        """Check the settings, and keep names as pairs: JSON has only text for keys."""
        check_whole("ClassNames.copies", self.copies, least=1)
        check_templates("ClassNames.templates", self.templates)
        try:
            names = dict(self.names)
        except (TypeError, ValueError):
            raise ConfigError(
                f"ClassNames.names must say by label what a class is called, as {{0: 'bad', 1: 'good'}}; "
                f"received {self.names!r}"
            ) from None
        object.__setattr__(self, "names", tuple(names.items()))
        object.__setattr__(self, "templates", tuple(self.templates))

    def prepare_data(self, dataset: Rows) -> Rows:
        """Add the rows."""
        return templated(dataset, self.templates, self.copies, dict(self.names), name="ClassNames")
