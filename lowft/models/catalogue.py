"""Small pre-trained models to choose from, by size, context, language and licence, without asking a hub.

Parameters are those of the body as `AutoModel` builds it: embeddings (once where they are tied), blocks, and a
pooler where the class has one; no language-modelling or classification head. The tests rebuild each body from its
configuration and count. Everything else is as the source of each card says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal, cast, get_args, overload

from lowft._tables import format_table, html_table, human_bytes, human_count
from lowft.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Kind", "ModelCard", "ModelTable", "SortBy", "small_models"]

Kind = Literal["encoder", "decoder", "encoder-decoder"]
SortBy = Literal["parameters", "bytes", "layers", "hidden", "context", "year", "name"]

_HEADERS = ("model", "kind", "parameters", "float32", "layers", "hidden", "context", "languages", "license", "year")


@dataclass(frozen=True)
class ModelCard:
    """What is known of a pre-trained model.

    Attributes:
        name: Its id on the hub, for `load_model`.
        kind: "encoder", "decoder" or "encoder-decoder".
        parameters: Parameters of the body, without any head.
        layers: Blocks; of an encoder-decoder, both sides together.
        hidden: Width of the hidden states.
        context: The most tokens its position table takes, or that it was pre-trained with where positions are
            relative.
        languages: Two-letter codes of languages it knows; a multilingual model may know more.
        license: As its card says; "unstated" where the card says nothing, "other" for terms of its own.
        year: The year of its paper or release, whichever came first.
        source: The paper or model card that describes it.
    """

    name: str
    kind: Kind
    parameters: int
    layers: int
    hidden: int
    context: int
    languages: tuple[str, ...]
    license: str
    year: int
    source: str

    @property
    def bytes(self) -> int:
        """The size of the body in float32, in `bytes`."""
        return 4 * self.parameters


class ModelTable(Sequence[ModelCard]):
    """Model cards, best first: a sequence that prints as a table.

    Args:
        cards: The cards to hold.

    >>> table = small_models(max_parameters=12_000_000)
    >>> len(table), table[0].name
    (3, 'google/bert_uncased_L-2_H-128_A-2')
    """

    def __init__(self, cards: Iterable[ModelCard]) -> None:
        self._cards = tuple(cards)

    @overload
    def __getitem__(self, index: int) -> ModelCard: ...
    @overload
    def __getitem__(self, index: slice) -> ModelTable: ...
    def __getitem__(self, index: int | slice) -> ModelCard | ModelTable:
        return ModelTable(self._cards[index]) if isinstance(index, slice) else self._cards[index]

    def __len__(self) -> int:
        return len(self._cards)

    def __repr__(self) -> str:
        return format_table(_HEADERS, self._rows(), align="llrrrrrllr")

    def _repr_html_(self) -> str:
        return html_table(_HEADERS, self._rows(), align="llrrrrrllr")

    def to_frame(self) -> pd.DataFrame:
        """Return the cards as a pandas data frame, one row each, with all attributes and `bytes`."""
        import pandas as pd

        return pd.DataFrame([asdict(card) | {"bytes": card.bytes} for card in self._cards])

    def _rows(self) -> list[tuple[str, ...]]:
        return [
            (
                card.name,
                card.kind,
                human_count(card.parameters),
                human_bytes(card.bytes),
                str(card.layers),
                str(card.hidden),
                str(card.context),
                " ".join(card.languages) if len(card.languages) <= 4 else f"{len(card.languages)} or more",
                card.license,
                str(card.year),
            )
            for card in self._cards
        ]


def small_models(
    *,
    max_parameters: int | None = None,
    max_bytes: int | None = None,
    min_context: int | None = None,
    language: str | None = None,
    license: str | None = None,  # noqa: A002 - the word that model cards use
    kind: Kind | None = None,
    sort_by: SortBy = "parameters",
) -> ModelTable:
    """List small pre-trained models that fit a budget, the smallest first.

    Args:
        max_parameters: At most so many parameters in the body.
        max_bytes: At most so many `bytes` in float32; training with AdamW takes about four times that, and the
            activations.
        min_context: Room for at least so many tokens.
        language: A two-letter code of a language the model must know: "en", "de".
        license: The licence it must have: "apache-2.0", "mit".
        kind: "encoder", "decoder" or "encoder-decoder".
        sort_by: The attribute to sort by, ascending; `parameters` breaks ties.

    Some older repositories hold pickled weights only (TinyBERT, OPT): `load_model` refuses them and says how to
    convert them.

    Raises:
        ConfigError: A limit is not a positive whole number, a word is unknown, or no model fits; the message
            then names the one that comes nearest.

    >>> small_models(max_bytes=100_000_000, kind="encoder", license="mit").to_frame()["name"].tolist()
    ['nreimers/MiniLM-L6-H384-uncased']
    """
    for setting, limit in (
        ("max_parameters", max_parameters),
        ("max_bytes", max_bytes),
        ("min_context", min_context),
    ):
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
            raise ConfigError(f"{setting} must be a positive whole number, not {limit!r}.")
    _check_word("language", language, {code for card in _CARDS for code in card.languages})
    _check_word("license", license, {card.license for card in _CARDS})
    _check_word("kind", kind, get_args(Kind))
    _check_word("sort_by", sort_by, get_args(SortBy))

    # How far a card is from each wish, 0 where it fits.
    misses: dict[str, Callable[[ModelCard], float]] = {}
    if max_parameters is not None:
        misses["parameters"] = lambda card: max(0.0, card.parameters / max_parameters - 1)
    if max_bytes is not None:
        misses["bytes"] = lambda card: max(0.0, card.bytes / max_bytes - 1)
    if min_context is not None:
        misses["context"] = lambda card: max(0.0, min_context / card.context - 1)
    if language is not None:
        misses["languages"] = lambda card: float(language not in card.languages)
    if license is not None:
        misses["license"] = lambda card: float(card.license != license)
    if kind is not None:
        misses["kind"] = lambda card: float(card.kind != kind)

    fitting = [card for card in _CARDS if not any(miss(card) for miss in misses.values())]
    if not fitting:
        nearest = min(_CARDS, key=lambda card: sum(miss(card) for miss in misses.values()))
        over = [f"{what} {getattr(nearest, what)!r}" for what, miss in misses.items() if miss(nearest)]
        raise ConfigError(
            f"No model in the catalogue fits all of this. {nearest.name} comes nearest, with {' and '.join(over)}: "
            "loosen that limit, or load any other model of the hub by its name."
        )
    return ModelTable(sorted(fitting, key=lambda card: (getattr(card, sort_by), card.parameters)))


def _check_word(setting: str, word: str | None, known: Iterable[str]) -> None:
    if word is not None and word not in known:
        raise ConfigError(f"{setting} must be one of {', '.join(sorted(known))}, not {word!r}.")


# Languages that the cards and papers name, though not always all of them.
_LANGUAGES = {
    "en": "en",
    "t5": "de en fr ro",
    "qwen": "ar de en es fr it ja ko pt ru th vi zh",
    "xnli": "ar bg de el en es fr hi ru sw th tr ur vi zh",
    "fifty": "ar bg cs da de el en es et fa fi fr he hi hu id it ja ko lt lv nl pl pt ro ru sk sl sv th tr uk ur vi zh",
    "hundred": "ar bg cs da de el en es et fa fi fr he hi hu id it ja ko lt lv nl pl pt ro ru sk sl sv sw ta te th "
    "tr uk ur vi zh",
}

# name | kind | parameters | layers | hidden | context | languages | license | year | arXiv id, or - for the card
_TABLE = """
google/bert_uncased_L-2_H-128_A-2 | encoder | 4385920 | 2 | 128 | 512 | en | apache-2.0 | 2019 | 1908.08962
google/bert_uncased_L-4_H-256_A-4 | encoder | 11170560 | 4 | 256 | 512 | en | apache-2.0 | 2019 | 1908.08962
google/bert_uncased_L-4_H-512_A-8 | encoder | 28763648 | 4 | 512 | 512 | en | apache-2.0 | 2019 | 1908.08962
google/bert_uncased_L-8_H-512_A-8 | encoder | 41373184 | 8 | 512 | 512 | en | apache-2.0 | 2019 | 1908.08962
google-bert/bert-base-uncased | encoder | 109482240 | 12 | 768 | 512 | en | apache-2.0 | 2018 | 1810.04805
albert/albert-base-v2 | encoder | 11683584 | 12 | 768 | 512 | en | apache-2.0 | 2019 | 1909.11942
google/electra-small-discriminator | encoder | 13483008 | 12 | 256 | 512 | en | apache-2.0 | 2020 | 2003.10555
google/mobilebert-uncased | encoder | 24844544 | 24 | 512 | 512 | en | apache-2.0 | 2020 | 2004.02984
huawei-noah/TinyBERT_General_4L_312D | encoder | 14350248 | 4 | 312 | 512 | en | unstated | 2019 | 1909.10351
huawei-noah/TinyBERT_General_6L_768D | encoder | 66955008 | 6 | 768 | 512 | en | unstated | 2019 | 1909.10351
distilbert/distilbert-base-uncased | encoder | 66362880 | 6 | 768 | 512 | en | apache-2.0 | 2019 | 1910.01108
distilbert/distilroberta-base | encoder | 82118400 | 6 | 768 | 512 | en | apache-2.0 | 2019 | 1910.01108
distilbert/distilbert-base-multilingual-cased | encoder | 134734080 | 6 | 768 | 512 | hundred | apache-2.0 | 2019 | -
nreimers/MiniLM-L6-H384-uncased | encoder | 22713216 | 6 | 384 | 512 | en | mit | 2020 | 2002.10957
microsoft/MiniLM-L12-H384-uncased | encoder | 33360000 | 12 | 384 | 512 | en | mit | 2020 | 2002.10957
microsoft/Multilingual-MiniLM-L12-H384 | encoder | 117653760 | 12 | 384 | 512 | xnli | mit | 2020 | 2002.10957
sentence-transformers/all-MiniLM-L6-v2 | encoder | 22713216 | 6 | 384 | 512 | en | apache-2.0 | 2021 | -
sentence-transformers/all-MiniLM-L12-v2 | encoder | 33360000 | 12 | 384 | 512 | en | apache-2.0 | 2021 | -
sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2 | encoder | 117653760 | 12 | 384 | 512 | fifty \
| apache-2.0 | 2020 | 2004.09813
intfloat/multilingual-e5-small | encoder | 117653760 | 12 | 384 | 512 | hundred | mit | 2023 | 2402.05672
BAAI/bge-small-en-v1.5 | encoder | 33360000 | 12 | 384 | 512 | en | mit | 2023 | 2309.07597
microsoft/mpnet-base | encoder | 109486464 | 12 | 768 | 512 | en | unstated | 2020 | 2004.09297
microsoft/deberta-v3-xsmall | encoder | 70682112 | 12 | 384 | 512 | en | mit | 2021 | 2111.09543
microsoft/deberta-v3-small | encoder | 141304320 | 6 | 768 | 512 | en | mit | 2021 | 2111.09543
answerdotai/ModernBERT-base | encoder | 149014272 | 22 | 768 | 8192 | en | apache-2.0 | 2024 | 2412.13663
EleutherAI/pythia-70m | decoder | 44670976 | 6 | 512 | 2048 | en | apache-2.0 | 2023 | 2304.01373
EleutherAI/pythia-160m | decoder | 123689472 | 12 | 768 | 2048 | en | apache-2.0 | 2023 | 2304.01373
distilbert/distilgpt2 | decoder | 81912576 | 6 | 768 | 1024 | en | apache-2.0 | 2019 | 1910.01108
openai-community/gpt2 | decoder | 124439808 | 12 | 768 | 1024 | en | mit | 2019 | -
facebook/opt-125m | decoder | 125239296 | 12 | 768 | 2048 | en | other | 2022 | 2205.01068
HuggingFaceTB/SmolLM2-135M | decoder | 134515008 | 30 | 576 | 8192 | en | apache-2.0 | 2024 | 2502.02737
HuggingFaceTB/SmolLM2-360M | decoder | 361821120 | 32 | 960 | 8192 | en | apache-2.0 | 2024 | 2502.02737
Qwen/Qwen2.5-0.5B | decoder | 494032768 | 24 | 896 | 32768 | qwen | apache-2.0 | 2024 | 2412.15115
google/t5-efficient-mini | encoder-decoder | 31220480 | 8 | 384 | 512 | en | apache-2.0 | 2021 | 2109.10686
google-t5/t5-small | encoder-decoder | 60506624 | 12 | 512 | 512 | t5 | apache-2.0 | 2019 | 1910.10683
google/flan-t5-small | encoder-decoder | 60511616 | 16 | 512 | 512 | t5 | apache-2.0 | 2022 | 2210.11416
"""


def _card(line: str) -> ModelCard:
    """Read one line of the table."""
    name, kind, *numbers, languages, terms, year, paper = (cell.strip() for cell in line.split("|"))
    parameters, layers, hidden, context = map(int, numbers)
    return ModelCard(
        name=name,
        kind=cast("Kind", kind),
        parameters=parameters,
        layers=layers,
        hidden=hidden,
        context=context,
        languages=tuple(_LANGUAGES[languages].split()),
        license=terms,
        year=int(year),
        source=f"https://huggingface.co/{name}" if paper == "-" else f"https://arxiv.org/abs/{paper}",
    )


_CARDS = tuple(_card(line) for line in _TABLE.strip().splitlines())
