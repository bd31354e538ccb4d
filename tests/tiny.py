"""Tiny random models and one tokenizer, built in memory for the whole test suite: no hub, no files.

Every model is a real transformers class with a classification head, so that what a test shows holds for the
pre-trained ones too. All weights, biases and norms included, are drawn at random and large enough for the
logits to move: a test that compares logits then compares something.
"""

from __future__ import annotations

import string
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

__all__ = ["ARCHITECTURES", "VOCABULARY", "tiny_batch", "tiny_model", "tiny_tokenizer"]

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD, UNK, CLS, SEP, MASK = range(len(SPECIAL))

_TEXT = """
a about above acting action actor actress after again against all almost alone along already also although
always am amazing an and animated another any anyone anything are around art as at audience away awful bad
be beautiful because become been before begin behind being believe best better between big bit black bland
book bored boring both bright brilliant but by call can captivating care cast catch certain change character
characters charm charming child children cinema city classic clear clever clumsy cold come comedy comes
complete could crime dark day days dead deep delight delightful despite dialogue did direct director
disappointing do does done down drag drama dream dull during each easy effect effects either emotion
emotional empty end ending energy engaging enjoy enough entertaining even ever every everyone everything
excellent exciting experience eye face fact fails family fan fans fascinating fast feel feeling feels few
film films find fine first flat for force forget found free fresh friend friends from full fun funny game
gentle get gets girl give gives go goes good gorgeous great green hair half hand happy hard has hate have he
head heart held help her here high him his hollow home honest hope horror house how human humor hurt i idea
if impressive in interest interesting into is it its itself job joke jokes joy just keep kind know lack
lacks large last late laugh laughs lazy leave less let life light like lines little live long look looks
lost lot love loved lovely low made make makes man many masterpiece may me mean mess mind minutes moment
moments more most mother movie movies moving much music must my mystery name need never new next nice night
no nor not nothing now odd of off often old on once one only open or other our out over own pace part people
perfect perform performance performances picture piece place plain play played plays please plot pointless
poor powerful predictable pretty put quiet quite rather read real really red remains right romance romantic
run sad same satisfying say scene scenes score screen script season see seem seems seen sense set shallow
she short should show sick side silly simple slow small smart so some someone something sometimes soon sound
special star start still story strange strong stupid style subtle such superb sure surprise sweet take takes
tale talent tedious tell tells tender terrible terrific than that the their them then there these they thin
thing things think this those though thoughtful thrill thriller through time tired to together told too top
touching tries true truth try turn two ugly under understand unfunny until up us very view visual voice want
war warm was waste wasted watch watching way we weak well were what when where which while white who whole
why wild will with without witty woman wonderful word work works world worse worst worth would write writing
wrong year years yet you young your
"""
WORDS = tuple(_TEXT.split())

# Single letters and continuations let WordPiece spell any English word: nothing turns into [UNK].
_LETTERS = [c for c in string.ascii_lowercase + string.digits + string.punctuation if c not in WORDS]
VOCABULARY: tuple[str, ...] = (
    *SPECIAL,
    *WORDS,
    *_LETTERS,
    *(f"##{c}" for c in string.ascii_lowercase + string.digits),
    *("##ed", "##ing", "##er", "##ly"),
)

_ENCODER: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
_LENGTH = {"max_position_embeddings": 128}
# initializer_range is far above the usual 0.02: at width 32 that would leave all logits near zero.
_INIT = {"initializer_range": 0.2}

_CONFIGS: dict[str, dict[str, Any]] = {
    "albert": {**_ENCODER, **_LENGTH, **_INIT, "embedding_size": 16},
    "bert": {**_ENCODER, **_LENGTH, **_INIT},
    "deberta-v2": {  # as DeBERTa-v3: relative positions only, shared by all blocks
        **_ENCODER,
        **_LENGTH,
        **_INIT,
        "relative_attention": True,
        "position_buckets": 16,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
        "type_vocab_size": 0,
        "pooler_hidden_size": 32,
        "pooler_dropout": 0.1,
    },
    "distilbert": {**_LENGTH, **_INIT, "dim": 32, "n_heads": 4, "hidden_dim": 64},
    "electra": {**_ENCODER, **_LENGTH, **_INIT, "embedding_size": 16},
    "gpt2": {**_INIT, "n_embd": 32, "n_head": 4, "n_positions": 128},
    "llama": {**_ENCODER, **_LENGTH, **_INIT, "num_key_value_heads": 2},
    "modernbert": {
        **_ENCODER,
        **_LENGTH,
        **_INIT,
        "global_attn_every_n_layers": 2,
        "local_attention": 16,
        "cls_token_id": CLS,
        "sep_token_id": SEP,
    },
    "mpnet": {**_ENCODER, **_LENGTH, **_INIT},
    "roberta": {**_ENCODER, **_LENGTH, **_INIT, "type_vocab_size": 1},
    "t5": {
        "d_model": 32,
        "d_kv": 8,
        "num_heads": 4,
        "d_ff": 64,
        "relative_attention_num_buckets": 8,
        "decoder_start_token_id": PAD,
    },
}
ARCHITECTURES: tuple[str, ...] = tuple(sorted(_CONFIGS))
_DECODERS = ("gpt2", "llama")


def tiny_model(
    arch: str,
    num_labels: int = 2,
    seed: int = 0,
    problem_type: str | None = None,
    *,
    num_layers: int = 3,
    **settings: Any,
) -> PreTrainedModel:
    """Return a random classifier of the architecture `arch` in eval mode; equal seeds give equal weights.

    T5 gets `num_layers` encoder blocks and as many decoder blocks. `settings` go into its configuration.
    The global random state is left alone.
    """
    layers = {"num_layers": num_layers} if arch == "t5" else {"num_hidden_layers": num_layers}
    config = AutoConfig.for_model(
        arch,
        pad_token_id=PAD,
        bos_token_id=CLS,
        eos_token_id=SEP,
        num_labels=num_labels,
        problem_type=problem_type,
        **({"vocab_size": len(VOCABULARY)} | _CONFIGS[arch] | layers | settings),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        auto: Any = AutoModelForSequenceClassification  # untyped in transformers
        model: PreTrainedModel = auto.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:  # biases start at zero and norms at one: move both
                    parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.train(False)
    return model


def tiny_tokenizer(arch: str = "bert") -> PreTrainedTokenizerFast:
    """Return the tokenizer for `tiny_model(arch)`: one vocabulary for all, special tokens as `arch` has them.

    Encoders read `[CLS] text [SEP]`, T5 reads `text [SEP]` (its classifier looks for that end token),
    decoders read the bare text.
    """
    if arch not in ARCHITECTURES:
        message = f"no tiny tokenizer for {arch!r}; there is one for {', '.join(ARCHITECTURES)}"
        raise ValueError(message)
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(VOCABULARY)}, unk_token=SPECIAL[UNK]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    if arch not in _DECODERS:
        start = "" if arch == "t5" else "[CLS] "
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{start}$A [SEP]",
            pair=f"{start}$A $B [SEP]" if arch == "t5" else "[CLS] $A [SEP] $B [SEP]",
            special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
        )
    fast: Any = PreTrainedTokenizerFast  # untyped in transformers
    wrapped: PreTrainedTokenizerFast = fast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        bos_token="[CLS]",
        eos_token="[SEP]",
        model_max_length=120,
        model_input_names=["input_ids", "attention_mask"],
    )
    return wrapped


def tiny_batch(arch: str, rows: int = 4, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return a ragged, padded batch for `tiny_model(arch)`: tensors `[rows, length]`, labels `[rows]`."""
    generator = torch.Generator().manual_seed(seed)
    texts = [
        " ".join(WORDS[int(i)] for i in torch.randint(len(WORDS), (3 + 2 * row,), generator=generator))
        for row in range(rows)
    ]
    batch = dict(tiny_tokenizer(arch)(texts, padding=True, return_tensors="pt"))
    return batch | {"labels": torch.randint(2, (rows,), generator=generator)}
