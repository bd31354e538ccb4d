"""Pre-trained models and tokenizers, read safely: safetensors and JSON only, float32, no code from the folder.

transformers would load a checkpoint with weights missing, or of other shapes, and draw them at random. Here
only the head may be new, and that is said; a body that does not fit its checkpoint is an error.
"""

from __future__ import annotations

import contextlib
import difflib
import logging
import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lowft._alignment import align_
from lowft.checkpoint import load_tensors_, read_json, read_tensors
from lowft.compress.quantization import scheme_of
from lowft.compress.structure import rebuild_
from lowft.errors import CheckpointCorruptError, LabelError, ModelError
from lowft.models._quiet import quiet
from lowft.models.layers import within

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from lowft.data.labels import Labels

__all__ = ["load_model", "load_tokenizer"]

EXPORT_SETTINGS = "lowft.json"  # beside the weights, in a folder that lowft exported
WEIGHTS = "model.safetensors"
INTEGERS = "quantized.safetensors"  # a name that transformers does not look for: it would read integers as weights

_log = logging.getLogger("lowft")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_WAY_OUT = "Pass new_head=True to keep the body and train a new output layer."
_FULL = "Fine-tune the full-precision model, and quantize the result."
_VOCABULARIES = ("tokenizer.json", "*vocab*", "*.model", "*.tiktoken")


def load_model(
    name_or_path: str | os.PathLike[str],
    *,
    labels: Labels | None = None,
    revision: str | None = None,
    new_head: bool = False,
    seed: int = 0,
) -> PreTrainedModel:
    """Load a pre-trained model with a classification head, ready to fine-tune: float32, in eval mode, on the CPU.

    A head that the checkpoint lacks is drawn from `seed`, and one line of the log says so. The global random
    state is left alone. For a model from the hub, `model.config._commit_hash` is the commit that was loaded; for a
    folder it is None.

    Args:
        name_or_path: A folder with `config.json` and safetensors, or a model's id on the hub.
        labels: What the head predicts: the number of outputs, their names and the task. By default as the
            checkpoint says, two classes if it says nothing.
        revision: A branch, tag or commit of the model on the hub.
        new_head: Draw a new output layer even if the checkpoint has one, of whatever size.
        seed: Seed of whatever weights are new.

    Raises:
        ModelError: The folder or the hub id cannot be found; the weights are pickled, damaged, quantized or want
            code of their own; the body does not fit the checkpoint; or the checkpoint's head has another task or
            number of labels.
        LabelError: The checkpoint's head names its labels otherwise.

    >>> import tempfile
    >>> from transformers import BertConfig, BertForSequenceClassification
    >>> config = BertConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     BertForSequenceClassification(config).save_pretrained(folder)
    ...     load_model(folder).classifier
    Linear(in_features=8, out_features=2, bias=True)
    """
    from transformers import AutoModelForSequenceClassification

    source, local = _find(name_or_path)
    config = _read_config(source, revision, local=local)
    if local:
        _check_weight_files(Path(source))
    if labels is not None:
        if not new_head:
            _check_head(source, config, labels)
        config.id2label, config.label2id = dict(labels.id2label), dict(labels.label2id)
        config.problem_type = labels.task
    if (
        getattr(config, "pad_token_id", None) is None
    ):  # decoders: without it a batch of several texts cannot be classified
        config.pad_token_id = load_tokenizer(source, revision=revision).pad_token_id

    auto: Any = AutoModelForSequenceClassification
    if local and (structure := _structure(Path(source))):
        return _load_compressed(Path(source), config, structure, new_head=new_head, seed=seed)
    with _reading(source, local=local), _seeded(seed):
        model, report = auto.from_pretrained(
            source,
            config=config,
            revision=revision or "main",
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            # Not to ignore them, but to name them: without this, transformers' error says only that there are some.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
        reshaped = {key: (tuple(theirs), tuple(ours)) for key, theirs, ours in report["mismatched_keys"]}
        fresh = set(report["missing_keys"]) | set(reshaped)
        _check_body(source, model, fresh)
        if reshaped and not new_head:
            listed = "; ".join(f"{key} {theirs}, not {ours}" for key, (theirs, ours) in sorted(reshaped.items()))
            raise ModelError(f"The head of {source} has other shapes than its config.json says: {listed}. {_WAY_OUT}")
        if new_head:
            fresh |= _renew_output_(model)
    if fresh:
        _log.info("%s: new weights, drawn from seed %d: %s", source, seed, ", ".join(sorted(fresh)))
    align_(model)
    loaded: PreTrainedModel = model
    return loaded


def load_tokenizer(name_or_path: str | os.PathLike[str], *, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load a tokenizer that can pad: where it has no pad token, its end token is used, and a warning says so.

    Args:
        name_or_path: A folder, or a model's id on the hub.
        revision: A branch, tag or commit on the hub.

    Raises:
        ModelError: There is no tokenizer, it wants code of its own, or it has neither a pad nor an end token.

    >>> load_tokenizer("./no-such-folder")
    Traceback (most recent call last):
    lowft.errors.ModelError: './no-such-folder' is not a folder. Check the path.
    """
    from transformers import AutoTokenizer
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    source, local = _find(name_or_path)
    auto: Any = AutoTokenizer
    with _reading(source, local=local):
        _refuse_code(source, get_tokenizer_config(source, revision=revision))
        tokenizer = auto.from_pretrained(source, revision=revision, trust_remote_code=False)
    # transformers makes up an empty vocabulary where the files are missing.
    if local and tokenizer.vocab_files_names and not _holds(Path(source), _VOCABULARIES):
        raise ModelError(
            f"{source} holds no vocabulary (tokenizer.json or the like), only {_listing(Path(source))}. "
            "Save the model's tokenizer there with tokenizer.save_pretrained(folder)."
        )
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ModelError(
                f"The tokenizer of {source} has neither a pad token nor an end token, so texts of unequal length "
                "cannot share a batch. Set tokenizer.pad_token to a token of its vocabulary and save it again."
            )
        _log.warning("%s has no pad token: its end token %r is used to pad", source, tokenizer.eos_token)
        tokenizer.pad_token = tokenizer.eos_token
    loaded: PreTrainedTokenizerBase = tokenizer
    return loaded


def _find(name_or_path: str | os.PathLike[str]) -> tuple[str, bool]:
    """Return the folder or the hub id that is meant, and whether it is a folder."""
    given = os.fspath(name_or_path)
    path = Path(given).expanduser()
    if given and path.is_dir():
        return str(path), True
    if path.is_file():
        raise ModelError(f"{given!r} is a file. Give the folder that holds it, with config.json and the weights.")
    if isinstance(name_or_path, str) and _HUB_ID.fullmatch(given) and not given.startswith("."):
        return given, False
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, n=3)
    hint = f"Did you mean {' or '.join(str(path.parent / name) for name in near)}?" if near else "Check the path."
    raise ModelError(f"{given!r} is not a folder. {hint}")


def _read_config(source: str, revision: str | None, *, local: bool) -> PreTrainedConfig:
    """Return the model's configuration, once it is known to ask for nothing that lowft refuses."""
    from transformers import AutoConfig, PreTrainedConfig

    if local and not Path(source, "config.json").is_file():
        adapter = Path(source, "adapter_config.json").is_file()
        raise ModelError(
            f"{source} is an adapter, not a model: merge it into its base model and save that."
            if adapter
            else f"{source} has no config.json, so it is no model folder; it holds {_listing(Path(source))}."
        )
    with _reading(source, local=local):
        settings, _ = PreTrainedConfig.get_config_dict(source, revision=revision)
        _refuse_code(source, settings)
        config: PreTrainedConfig = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    if "quantization_config" in settings:
        raise ModelError(f"{source} is quantized already, and quantized weights cannot be fine-tuned. {_FULL}")
    return config


def _refuse_code(source: str, settings: dict[str, Any]) -> None:
    if "auto_map" in settings:
        raise ModelError(
            f"{source} wants to run Python code of its own (auto_map names {settings['auto_map']!r}). lowft never "
            "runs code from a model folder. Choose a model whose architecture is part of transformers."
        )


def _check_weight_files(folder: Path) -> None:
    """Refuse a folder without safetensors."""
    if _holds(folder, ("*.safetensors",)):
        return
    pickled = _holds(folder, _PICKLED)
    if not pickled:
        raise ModelError(f"{folder} has no weights (model.safetensors); it holds {_listing(folder)}.")
    raise ModelError(
        f"{folder} has only pickled weights ({', '.join(pickled)}). Loading a pickle can run any code, so lowft "
        "reads safetensors alone. If you trust where it comes from, convert it once in that folder: python -c "
        '"import torch, safetensors.torch as s; '
        f"s.save_file({{k: v.clone() for k, v in torch.load({pickled[0]!r}, weights_only=True).items()}}, "
        "'model.safetensors', {'format': 'pt'})\""
    )


def _check_head(source: str, config: PreTrainedConfig, labels: Labels) -> None:
    """Refuse a trained head that was made for other labels: it would be cut, or quietly mean something else."""
    if not any(name.endswith("ForSequenceClassification") for name in config.architectures or ()):
        return
    known = {int(i): name for i, name in (config.id2label or {}).items()}
    if len(known) != labels.num_labels:
        raise ModelError(
            f"The head of {source} has {len(known)} labels ({', '.join(known.values())}), "
            f"and {labels.num_labels} are needed. {_WAY_OUT}"
        )
    if config.problem_type not in {None, labels.task}:
        raise ModelError(f"The head of {source} was trained for {config.problem_type}, not {labels.task}. {_WAY_OUT}")
    theirs, ours = _names(known), _names(labels.id2label)
    if theirs and ours and theirs != ours:
        raise LabelError(
            f"The head of {source} numbers its labels {known}, these are {labels.id2label}: its outputs "
            f"would be read wrongly. Give the labels in the order of the head. {_WAY_OUT}"
        )


def _load_compressed(
    folder: Path, config: PreTrainedConfig, structure: list[dict[str, Any]], *, new_head: bool, seed: int
) -> PreTrainedModel:
    """Make the model of the config, give it the shape it was exported in, and fill in every weight."""
    from transformers import AutoModelForSequenceClassification

    auto: Any = AutoModelForSequenceClassification
    with _reading(str(folder), local=True), _seeded(seed):
        model = auto.from_config(config, dtype=torch.float32)
        model.eval()
        rebuild_(model, structure, folder)
        if new_head and scheme_of(model) not in {None, "bfloat16"}:
            raise ModelError(f"{folder} is quantized, and integers cannot be fine-tuned. {_FULL}")
        load_tensors_(model, read_tensors(weights_of(folder)), folder)
        if new_head:
            _renew_output_(model)
    align_(model)
    loaded: PreTrainedModel = model
    return loaded


def weights_of(folder: Path) -> Path:
    """Return the file that holds the weights of an exported folder."""
    return folder / INTEGERS if (folder / INTEGERS).is_file() else folder / WEIGHTS


def _structure(folder: Path) -> list[dict[str, Any]]:
    """Return how the shape of an exported model differs from what its config says."""
    settings = folder / EXPORT_SETTINGS
    if not settings.is_file():
        return []
    found = read_json(settings)
    structure = found.get("structure") if isinstance(found, dict) else None
    if not isinstance(structure, list):
        raise CheckpointCorruptError(f"{settings}: 'structure' must be a list; the file holds {structure!r} there")
    return structure


def _names(id2label: dict[int, str]) -> list[str]:
    """Return the names of the labels in order, or none if they only number them."""
    names = [id2label[i].casefold() for i in sorted(id2label)]
    return [] if all(name in {f"label_{i}", str(i)} for i, name in enumerate(names)) else names


def _check_body(source: str, model: nn.Module, fresh: Collection[str]) -> None:
    """Refuse a model of which anything but the head, or a pooler, had to be drawn at random."""
    lost = sorted(key for key in fresh if within(key, _body(model)) and "pooler" not in key.split("."))
    if lost:
        shown = ", ".join(lost[:8]) + (f" and {len(lost) - 8} more" if len(lost) > 8 else "")
        raise ModelError(
            f"{source} lacks {len(lost)} weights of the body of {type(model).__name__}, or has them in another "
            f"shape: {shown}. Its files and its config.json belong to different models, or are incomplete."
        )


def _body(model: nn.Module) -> str:
    """Return the name of the pre-trained part of a transformers model with a head."""
    return str(getattr(model, "base_model_prefix", ""))


def _renew_output_(model: Any) -> set[str]:
    """Draw the layer anew that gives the logits, as the architecture does; return the names of its parameters."""
    linears = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and not within(n, _body(model))]
    name = linears[-1]
    layer = model.get_submodule(name)
    for parameter in layer.parameters():
        parameter._is_hf_initialized = False  # noqa: SLF001 - transformers leaves marked tensors alone
    # Some architectures initialise the layer itself, some the head around it.
    model._init_weights(layer)  # noqa: SLF001 - the only place that knows the architecture's initialisation
    model._init_weights(model.get_submodule(name.rpartition(".")[0]))  # noqa: SLF001
    return {f"{name}.{own}" for own, _ in layer.named_parameters()}


def _holds(folder: Path, patterns: Collection[str]) -> list[str]:
    return sorted({path.name for pattern in patterns for path in folder.glob(pattern)})


def _listing(folder: Path) -> str:
    names = _holds(folder, ("*",))
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "") if names else "nothing"


@contextlib.contextmanager
def _reading(source: str, *, local: bool) -> Iterator[None]:
    """Keep transformers silent, but for the progress of downloads, and word whatever error it ends in."""
    try:
        with quiet(bars=not local):
            yield
    except ModelError:
        raise
    except Exception as error:  # each class fails in its own way on files that are missing or damaged
        reason = " ".join([f"{type(error).__name__}:", *str(error).split()])
        raise ModelError(
            f"{source} cannot be loaded. {reason}"
            if local
            else f"There is no folder {source!r} here, and it cannot be had from the model hub. {reason} Check "
            "the name and the revision. Without a connection: on a machine that has one, run "
            f"`hf download {source} --local-dir FOLDER`, bring the folder here and give its path."
        ) from error


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw random numbers on the CPU from `seed`, then go on as if nothing had been drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
