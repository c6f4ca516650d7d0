"""WordPiece tokenizers: trained on the spot, or made of a vocabulary file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.trainers import WordPieceTrainer
from transformers import BertTokenizer

from ....core.errors import ConfigError, DataError

__all__ = ["tokenizer_from_vocab", "train_wordpiece"]

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_INSIDE = "##"
_MOST_LETTERS = 1000  # as BERT's vocabularies: rarer letters become [UNK]


def train_wordpiece(
    texts: Iterable[str],
    vocab_size: int = 8000,
    lowercase: bool = True,
    *,
    min_frequency: int = 2,
) -> BertTokenizer:
    """Train a WordPiece vocabulary; the same texts give the same one, always.

    Args:
        texts: What to learn from.
        vocab_size: Most entries, the five special ones and single letters among them.
        lowercase: Lower-case all text and take accents off, as BERT's uncased models do.
        min_frequency: How often two pieces have to occur together to become one.

    Returns:
        BERT's tokenizer with that vocabulary. ``save_pretrained`` keeps all of it, and
        ``AutoTokenizer`` loads it.

    Raises:
        ConfigError: If ``vocab_size`` does not even hold the letters.
        DataError: If there are no words in the texts.

    Example:
        >>> texts = ["low lower lowest", "new newer newest"]
        >>> tokenizer = train_wordpiece(texts, vocab_size=40, min_frequency=1)
        >>> tokenizer.tokenize("Lowest news")
        ['lowest', 'new', '##s']

    Reference:
        Schuster and Nakajima, Japanese and Korean Voice Search, ICASSP 2012.
    """
    texts = list(texts)
    tokenizer = Tokenizer(WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    pieces = _letters(tokenizer, texts)
    if not pieces:
        raise DataError("There are no words in the texts to train a vocabulary on.")
    fixed = [*_SPECIAL, *pieces]
    if vocab_size < len(fixed):
        raise ConfigError(
            f"vocab_size={vocab_size} is too small: the special tokens and the letters of these "
            f"texts are {len(fixed)} entries already."
        )
    trainer = WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        # The trainer numbers letters in the order of a hash map that is another in every process,
        # and breaks ties by number. Given beforehand their numbers are fixed.
        special_tokens=fixed,
        limit_alphabet=0,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _bert(tokenizer.get_vocab(), lowercase)


def tokenizer_from_vocab(path: str | Path, lowercase: bool = True) -> BertTokenizer:
    """Make BERT's tokenizer of a ``vocab.txt``: an entry a line, numbered from 0.

    Args:
        path: The file, in UTF-8.
        lowercase: Whether the vocabulary is of lower-case text without accents.

    Raises:
        DataError: If the file is missing, has an entry twice, or lacks a special token.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise DataError(f"There is no vocabulary file {str(path)!r} (looked in {Path.cwd()}).")
    entries = file.read_text(encoding="utf-8").split("\n")
    if entries and not entries[-1]:
        entries.pop()
    entries = [entry.rstrip("\r") for entry in entries]
    vocabulary = {entry: number for number, entry in enumerate(entries)}
    if len(vocabulary) < len(entries):
        [(twice, _)] = Counter(entries).most_common(1)
        raise DataError(f"{file} has the entry {twice!r} more than once.")
    lacking = [token for token in _SPECIAL if token not in vocabulary]
    if lacking:
        raise DataError(
            f"{file} lacks {', '.join(lacking)}; expected a WordPiece vocabulary of BERT, an entry "
            "a line."
        )
    return _bert(vocabulary, lowercase)


def _bert(vocabulary: dict[str, int], lowercase: bool) -> BertTokenizer:
    ordered = dict(sorted(vocabulary.items(), key=lambda entry: entry[1]))
    return BertTokenizer(vocab=ordered, do_lower_case=lowercase)


def _letters(tokenizer: Tokenizer, texts: Iterable[str]) -> list[str]:
    """The common letters, sorted, and after them the same as they are inside a word."""
    words: Counter[str] = Counter()
    for text in texts:
        normal = tokenizer.normalizer.normalize_str(text)
        words.update(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal))
    letters: Counter[str] = Counter()
    for word, count in words.items():
        for letter in word:
            letters[letter] += count
    common = sorted(letters, key=lambda letter: (-letters[letter], letter))[:_MOST_LETTERS]
    inside = {letter for word in words for letter in word[1:]} & set(common)
    return [*sorted(common), *(f"{_INSIDE}{letter}" for letter in sorted(inside))]
