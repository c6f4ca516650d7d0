"""Words and their tags in columns, a blank line between sentences."""

from __future__ import annotations

from pathlib import Path

from datasets import Dataset

from ....core.errors import DataError

__all__ = ["read_conll"]


def read_conll(path: Path) -> Dataset:
    """Read a file of the CoNLL shared tasks.

    The word is the first column and the tag the last; columns are separated by blanks or tabs, and
    ``-DOCSTART-`` lines are left out.

    Args:
        path: The file, in UTF-8.

    Returns:
        A sentence a row, with the columns ``tokens`` and ``ner_tags`` (strings).

    Raises:
        DataError: If a line has one column only, or there is no sentence.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder, "a.txt")
        ...     _ = file.write_text("Ada NNP B-PER\\nwrote VBD O\\n\\nYes UH O\\n")
        ...     read_conll(file)[:]
        {'tokens': [['Ada', 'wrote'], ['Yes']], 'ner_tags': [['B-PER', 'O'], ['O']]}
    """
    sentences: list[list[tuple[str, str]]] = [[]]
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        columns = line.split()
        if not columns:
            sentences.append([])
        elif columns[0] != "-DOCSTART-":
            if len(columns) < 2:
                raise DataError(
                    f"{path}, line {number} has the single column {columns[0]!r}; expected a word "
                    "and its tag."
                )
            sentences[-1].append((columns[0], columns[-1]))
    sentences = [sentence for sentence in sentences if sentence]
    if not sentences:
        raise DataError(f"{path} has no rows.")
    return Dataset.from_dict(
        {
            "tokens": [[word for word, _ in sentence] for sentence in sentences],
            "ner_tags": [[tag for _, tag in sentence] for sentence in sentences],
        }
    )
