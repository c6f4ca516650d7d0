from __future__ import annotations

import pytest

from taskdistill.core.errors import DataError
from taskdistill.tasks.nlp.data.sentences import sentences
from taskdistill.tasks.nlp.data.topics import (
    THEMES,
    topic_datasets,
    topic_documents,
    topic_passages,
)

ONE = "The first of these sentences has as many as eleven words."
TWO = "A second one has eleven words too, or maybe even more."
THREE = "And the third sentence ends what is to be one passage."
PARAGRAPH = f"{ONE} {TWO}\n{THREE}"


def texts(**topics: str) -> list[str]:
    return [passage.text for passage in topic_passages(topics)]


def test_passages_of_this_python() -> None:
    passages = topic_passages()
    assert len(passages) > 800
    lengths = [len(passage.text.split()) for passage in passages]
    assert min(lengths) >= 30
    assert max(lengths) < 30 + 60
    assert {passage.theme for passage in passages} <= {*THEMES, None}


def test_no_sentence_is_in_two_passages() -> None:
    said = [part for passage in topic_passages() for part in sentences(passage.text)]
    assert len(set(said)) == len(said)


def test_sides_are_apart_about_four_to_one_and_every_theme_is_on_both() -> None:
    sets = topic_datasets()
    train, validation = (set(sets[split]["text"]) for split in ("train", "validation"))
    assert not train & validation
    assert len(train) + len(validation) == len(sets["train"]) + len(sets["validation"])
    assert 0.15 < len(validation) / (len(train) + len(validation)) < 0.25
    for rows in sets.values():
        counts = [rows["label"][:].count(number) for number in range(len(THEMES))]
        assert min(counts) >= 10
        assert max(counts) < 0.5 * sum(counts)


def test_a_passage_is_on_the_same_side_whatever_else_there_is() -> None:
    alone = topic_passages({"for": PARAGRAPH})
    beside = topic_passages({"for": PARAGRAPH, "with": PARAGRAPH.replace("first", "other")})
    assert alone[0] in beside


def test_documents_are_chapters_of_one_side() -> None:
    documents = topic_documents()
    sets = topic_datasets()
    for split, rows in documents.items():
        lines = {line for text in rows["text"] for line in text.split("\n")}
        assert lines >= set(sets[split]["text"])
    train, validation = (
        {line for text in documents[split]["text"] for line in text.split("\n")}
        for split in ("train", "validation")
    )
    assert not train & validation


def test_prose_is_kept_and_the_rest_is_not() -> None:
    chapter = f"""The "for" statement
*******************

   for_stmt ::= "for" target_list "in" starred_list

{PARAGRAPH}

   >>> for i in range(10): print("and many more words that look like prose")

   class Foo(Bar): x = [1, 2, 3]; y = {{4: 5}}

Changed in version 3.11: Starred elements are now allowed in the expression list of it.
"""
    assert texts(**{"for": chapter}) == [f"{ONE} {TWO} {THREE}"]


def test_marks_of_typesetting_are_taken_off() -> None:
    chapter = PARAGRAPH.replace("sentences", "*sentences* [1]").replace("or maybe", "it’s")
    [text] = texts(**{"for": f"* {chapter}"})
    assert text.startswith("The first of these sentences has")
    assert "it's" in text


def test_what_the_shorter_chapter_says_the_longer_does_not_repeat() -> None:
    longer = f"{PARAGRAPH}\n\n{PARAGRAPH.replace('s', 'z')}"
    passages = topic_passages({"compound": longer, "for": PARAGRAPH})
    assert [passage.topic for passage in passages] == ["for", "compound"]
    assert passages[1].text == f"{ONE} {TWO} {THREE}".replace("s", "z")


def test_a_topic_that_is_not_in_the_table_has_no_theme() -> None:
    assert [passage.theme for passage in topic_passages({"walrus": PARAGRAPH})] == [None]


def test_no_topic_has_two_themes() -> None:
    topics = [topic for names in THEMES.values() for topic in names]
    assert len(set(topics)) == len(topics)


def test_a_theme_without_passages_is_said() -> None:
    with pytest.raises(DataError, match="no passage for train of the themes builtin_types"):
        topic_datasets({"for": PARAGRAPH})
    with pytest.raises(DataError, match="give no passages"):
        topic_documents({})
