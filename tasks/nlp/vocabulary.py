"""Do a student and its teacher read the same words, and mean the same classes?

Both get one batch, made by one tokenizer. Nothing fails when they understand it differently: the
student is taught the answers to other questions. So it is checked before training.
"""

from __future__ import annotations

import re
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from ...core.errors import CheckpointError, ConfigError

__all__ = [
    "check_labels",
    "check_vocabulary",
    "check_vocabulary_logits",
    "load_tokenizer_of",
]

_ROLES = ("pad", "unk", "cls", "sep", "mask", "bos", "eos")
_SETTINGS = ("do_lower_case", "strip_accents", "tokenize_chinese_chars", "add_prefix_space")
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "spm.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
# These count positions from the padding id on, so that they read fewer tokens than they have
# positions, and count wrongly where the data is padded with another id.
_COUNTS_FROM_PADDING = frozenset(
    {
        "camembert",
        "data2vec-text",
        "ibert",
        "longformer",
        "luke",
        "mpnet",
        "roberta",
        "roberta-prelayernorm",
        "xlm-roberta",
        "xlm-roberta-xl",
        "xmod",
    }
)


def check_vocabulary(
    student_config: PreTrainedConfig,
    teacher_config: PreTrainedConfig,
    student_tokenizer: PreTrainedTokenizerBase | None = None,
    teacher_tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    max_length: int | None = None,
) -> None:
    """Check that a teacher reads the student's batches as the student does.

    With both tokenizers their tokens, special tokens and the way they cut text are compared (a
    teacher may have further tokens; embeddings may be padded beyond the tokens on either side).
    Without, only sizes can be: they have to agree but for padding to a multiple of 8.

    Args:
        student_config: The student's.
        teacher_config: The teacher's.
        student_tokenizer: The one that the data is made with.
        teacher_tokenizer: The one that the teacher was trained with; see
            :func:`load_tokenizer_of`.
        max_length: Length of the longest sample in tokens; by default the longest that the
            student and its tokenizer admit.

    Raises:
        ConfigError: If a token has another id in the other vocabulary or no embedding, text is
            cut otherwise, or the teacher has too few positions or token types.

    Example:
        >>> from transformers import BertConfig
        >>> check_vocabulary(BertConfig(vocab_size=30522), BertConfig(vocab_size=30528))
        >>> check_vocabulary(BertConfig(vocab_size=30522), BertConfig(vocab_size=28996))
        Traceback (most recent call last):
        taskdistill.core.errors.ConfigError: The student's vocabulary has 30522 tokens and the ...
    """
    if student_tokenizer is not None and teacher_tokenizer is not None:
        _check_tokens(student_tokenizer, teacher_tokenizer)
        _check_special_tokens(student_tokenizer, teacher_tokenizer)
        _check_cutting(student_tokenizer, teacher_tokenizer)
    else:
        _check_sizes(student_config, teacher_config)
    for side, config in (("student", student_config), ("teacher", teacher_config)):
        if student_tokenizer is not None:
            _check_ids(side, config, student_tokenizer)
    _check_positions(student_config, teacher_config, student_tokenizer, max_length)
    _check_token_types(student_config, teacher_config, student_tokenizer)


def check_vocabulary_logits(
    student_config: PreTrainedConfig, teacher_config: PreTrainedConfig
) -> None:
    """Check that logits over the vocabulary (masked language modelling) can be compared.

    Padding, which :func:`check_vocabulary` lets pass, makes them differ in size.

    Raises:
        ConfigError: If the sizes differ.

    Example:
        >>> from transformers import BertConfig
        >>> check_vocabulary_logits(BertConfig(vocab_size=30522), BertConfig(vocab_size=30528))
        Traceback (most recent call last):
        taskdistill.core.errors.ConfigError: The student's output layer has 30522 words and the ...
    """
    mine, its = student_config.vocab_size, teacher_config.vocab_size
    if mine != its:
        raise ConfigError(
            f"The student's output layer has {mine} words and the teacher's {its}: their "
            "distributions over the vocabulary cannot be compared. Make the sizes equal, "
            f"student.resize_token_embeddings({its}), or compare hidden states alone."
        )


def load_tokenizer_of(folder: str | Path) -> PreTrainedTokenizerBase | None:
    """Load the tokenizer that lies in a checkpoint's folder.

    Args:
        folder: A folder that ``save_pretrained`` or a Trainer wrote.

    Returns:
        The tokenizer, or ``None`` if the folder holds none (or is none).

    Raises:
        CheckpointError: If its files are damaged or incomplete.

    Example:
        >>> load_tokenizer_of("no/such/folder") is None
        True
    """
    folder = Path(folder).expanduser()
    found = [name for name in _TOKENIZER_FILES if (folder / name).is_file()]
    if not found:
        return None
    advice = "Save it again with tokenizer.save_pretrained, or remove these files."
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # damaged files make the parsers fail in any way there is
        raise CheckpointError(
            f"The tokenizer in {str(folder)!r} ({', '.join(found)}) cannot be read: "
            f"{type(error).__name__}: {error}. {advice}"
        ) from error
    # Of a missing vocabulary transformers makes one of the special tokens alone.
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise CheckpointError(
            f"The tokenizer in {str(folder)!r} ({', '.join(found)}) has no tokens but special "
            f"ones: its vocabulary is missing. {advice}"
        )
    return tokenizer


def check_labels(student_config: PreTrainedConfig, teacher_config: PreTrainedConfig) -> None:
    """Check that class i of the student is class i of the teacher.

    Names are compared without regard to case. Names that transformers gave (``LABEL_0``, ...) say
    nothing about the order, and are let pass on either side.

    Args:
        student_config: The student's.
        teacher_config: The teacher's.

    Raises:
        ConfigError: If numbers of classes, their order or names, or the kinds of problem
            (regression, one label, several labels) differ.

    Example:
        >>> from transformers import BertConfig
        >>> student = BertConfig(id2label={0: "positive", 1: "negative"})
        >>> check_labels(student, BertConfig(id2label={0: "negative", 1: "positive"}))
        Traceback (most recent call last):
        taskdistill.core.errors.ConfigError: The student's classes are in another order than ...
    """
    mine, its = student_config.num_labels, teacher_config.num_labels
    if mine != its:
        raise ConfigError(
            f"The student has {mine} labels ({_listed(student_config)}) and the teacher {its} "
            f"({_listed(teacher_config)}). Give the student num_labels={its}, or take a teacher "
            "that was trained on the same classes."
        )
    kinds = _problem(student_config), _problem(teacher_config)
    if None not in kinds and kinds[0] != kinds[1]:
        raise ConfigError(
            f"The student's problem is {kinds[0]!r} and the teacher's {kinds[1]!r}: their outputs "
            "mean different things. Set problem_type alike in both configs, or take a teacher of "
            "the student's task."
        )
    if _unnamed(student_config) or _unnamed(teacher_config):
        return
    names, others = _labels(student_config), _labels(teacher_config)
    if [name.casefold() for name in names] == [name.casefold() for name in others]:
        return
    alike = sorted(map(str.casefold, names)) == sorted(map(str.casefold, others))
    raise ConfigError(
        f"The student's classes {'are in another order' if alike else 'have other names'} than "
        f"the teacher's: {_listed(student_config)} and {_listed(teacher_config)}. Their logits "
        "are compared number by number. Give the student's config the teacher's id2label and "
        "label2id, and number the data's labels so."
    )


def _check_tokens(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> None:
    mine, its = student.get_vocab(), teacher.get_vocab()
    # A token more on the teacher's side is never sent.
    differing = [
        token for token in sorted(mine, key=mine.__getitem__) if its.get(token) != mine[token]
    ]
    if differing:
        shown = ", ".join(
            f"{token!r} (student {mine[token]}, teacher {its.get(token, 'has none')})"
            for token in differing[:5]
        )
        raise ConfigError(
            f"The student's tokenizer is not the teacher's: {len(differing)} of its {len(mine)} "
            f"tokens have another id there, such as {shown}. The teacher would read other words. "
            "Make the student's data and model with the teacher's tokenizer, or take a teacher "
            "with the student's."
        )


def _check_special_tokens(
    student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase
) -> None:
    for role in _ROLES:
        mine, its = (getattr(side, f"{role}_token_id", None) for side in (student, teacher))
        if None not in (mine, its) and mine != its:
            raise ConfigError(
                f"The student's tokenizer uses {getattr(student, f'{role}_token')!r} ({mine}) as "
                f"its {role} token and the teacher's {getattr(teacher, f'{role}_token')!r} "
                f"({its}). Set {role}_token alike when you make the student's tokenizer, or use "
                "the teacher's."
            )


def _check_cutting(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> None:
    """Normalisation, cutting and added special tokens, by what they do to some text."""
    for text, pair in _probes(student):
        mine, its = (side(text, pair, verbose=False)["input_ids"] for side in (student, teacher))
        if mine == its:
            continue
        at = next((i for i, (a, b) in enumerate(zip(mine, its, strict=False)) if a != b), None)
        start = min(len(mine), len(its)) if at is None else at
        start = max(start - 1, 0)
        settings = [
            f"{name} ({student.init_kwargs.get(name)!r}, {teacher.init_kwargs.get(name)!r})"
            for name in _SETTINGS
            if student.init_kwargs.get(name) != teacher.init_kwargs.get(name)
        ]
        raise ConfigError(
            f"The student's and the teacher's tokenizers have the same tokens but cut text "
            f"differently: of {text!r} the student's makes "
            f"{student.convert_ids_to_tokens(mine[start : start + 5])} where the teacher's makes "
            f"{teacher.convert_ids_to_tokens(its[start : start + 5])}. They differ in "
            f"{' and '.join(settings) or 'how they normalise or split text'}. Use the teacher's "
            "tokenizer for the student."
        )


def _probes(tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, str | None]]:
    """Text of words that the vocabulary has: of unknown ones no difference would show."""
    bare = (token.lstrip("Ġ▁") for token in tokenizer.get_vocab())
    words = sorted(word for word in bare if word.isalpha() and len(word) > 1)
    some = words[:: max(len(words) // 24, 1)][:24]
    line = " ".join(some) or "some words"
    letters = "".join(sorted(word for word in tokenizer.get_vocab() if len(word) == 1))
    accented = line.translate(str.maketrans("aeiounc", "áéíóúñç"))
    return [
        (line, None),
        (line.upper(), None),
        (line.title(), None),
        (line.lower(), None),
        (accented, None),
        (f"Don't  stop: 3.14,\t中文 naïve CAFÉ-{some[0] if some else 'x'}!\n", None),
        (" ".join(letters[:64]) or "a", None),
        (f" {line}", some[0] if some else "a"),
    ]


def _check_sizes(student: PreTrainedConfig, teacher: PreTrainedConfig) -> None:
    mine, its = getattr(student, "vocab_size", None), getattr(teacher, "vocab_size", None)
    if mine is None or its is None or mine == its:
        return
    padded = max(mine, its) % 8 == 0 and abs(mine - its) < 128
    if not padded:
        raise ConfigError(
            f"The student's vocabulary has {mine} tokens and the teacher's {its}, which looks like "
            "two different ones. Use one tokenizer for both; if it is one, give this check both "
            "tokenizers, so that it can see that."
        )


def _check_ids(side: str, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    size = getattr(config, "vocab_size", None)
    vocabulary = tokenizer.get_vocab()
    last = max(vocabulary, key=vocabulary.__getitem__)
    if size is not None and vocabulary[last] >= size:
        raise ConfigError(
            f"The tokenizer's last token {last!r} has id {vocabulary[last]}, but the {side} embeds "
            f"{size} tokens. Use the tokenizer that the model was made for; a student can be given "
            f"more by student.resize_token_embeddings({vocabulary[last] + 1})."
        )
    pad = tokenizer.pad_token_id
    if config.model_type in _COUNTS_FROM_PADDING and None not in (pad, config.pad_token_id):
        if pad != config.pad_token_id:
            raise ConfigError(
                f"The tokenizer pads with id {pad}, but the {side}'s config says "
                f"pad_token_id={config.pad_token_id}, and a {config.model_type} counts its "
                f"positions by that. Set pad_token_id={pad} in the config before the model is "
                "made, or use the model's own tokenizer."
            )


def _readable(config: PreTrainedConfig) -> int | None:
    """How many tokens a model can read; None without a limit."""
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions <= 0:
        return None
    if not getattr(config, "position_biased_input", True):  # DeBERTa's positions are relative
        return None
    if config.model_type in _COUNTS_FROM_PADDING:
        return positions - 1 - (config.pad_token_id or 0)
    return positions


def _check_positions(
    student: PreTrainedConfig,
    teacher: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase | None,
    max_length: int | None,
) -> None:
    own, its = _readable(student), _readable(teacher)
    if max_length is not None and own is not None and max_length > own:
        raise ConfigError(
            f"max_length={max_length}, but the student reads {own} tokens "
            f"(max_position_embeddings={student.max_position_embeddings}). Set max_length={own}."
        )
    cut = None if tokenizer is None else tokenizer.model_max_length
    if cut is not None and cut > 10**12:  # of a tokenizer without a limit it is 10**30
        cut = None
    longest = min((n for n in (own, max_length, cut) if n is not None), default=None)
    if its is not None and longest is not None and its < longest:
        raise ConfigError(
            f"Samples may be {longest} tokens long, and the teacher reads {its} "
            f"(max_position_embeddings={teacher.max_position_embeddings}). Cut the data to "
            f"max_length={its}, or take a teacher of longer texts."
        )


def _check_token_types(
    student: PreTrainedConfig,
    teacher: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase | None,
) -> None:
    mine, its = (getattr(config, "type_vocab_size", None) for config in (student, teacher))
    made = tokenizer is None or "token_type_ids" in tokenizer.model_input_names
    # With none at all the teacher reads no types, and cannot stumble over them.
    if made and mine and its and its < mine:
        raise ConfigError(
            f"The student knows {mine} token types and the teacher {its}: the second segment's "
            f"type has no embedding there. Make the data without token_type_ids "
            "(tokenizer.model_input_names), or take a teacher of the student's kind."
        )


def _labels(config: PreTrainedConfig) -> list[str]:
    names = {int(index): str(name) for index, name in (config.id2label or {}).items()}
    return [names[index] for index in sorted(names)]


def _unnamed(config: PreTrainedConfig) -> bool:
    return all(re.fullmatch(r"LABEL_\d+", name) for name in _labels(config))


def _listed(config: PreTrainedConfig, limit: int = 6) -> str:
    names = _labels(config)
    more = ", ..." if len(names) > limit else ""
    return "[" + ", ".join(names[:limit]) + more + "]"


def _problem(config: PreTrainedConfig) -> str | None:
    """The kind of problem: what the config says, or what transformers would take it to be."""
    return config.problem_type or ("regression" if config.num_labels == 1 else None)
