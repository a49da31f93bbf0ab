"""What the users of neighbouring projects ask for: each question has a page and a heading that answers it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pages import ROOT, Page

# A question, who asked it, where it is answered (page, heading, and a word without which it would be no answer), and
# the words in which it is asked, by which test_site.py searches.
ASKED = Path(__file__).with_name("questions.txt").read_text(encoding="utf-8")
ROWS = [tuple(cell.strip() for cell in line.split(" | ")) for line in ASKED.splitlines()]


@pytest.mark.parametrize(("question", "by", "page", "heading", "word", "words"), ROWS)
def test_a_question_has_an_answer(question: str, by: str, page: str, heading: str, word: str, words: str) -> None:
    """The page has the heading, and what stands below it speaks of the matter."""
    assert word.lower() in " ".join(Page(page).section(heading).lower().split())


def test_every_page_for_a_task_answers_a_question() -> None:
    """A page that was not requested would have no row: none of those with a task is without."""
    answering = {row[2] for row in ROWS}
    for page in sorted(ROOT.glob("docs/*.md")):
        if re.search("^## Testing your code$", page.read_text(encoding="utf-8"), re.MULTILINE):
            assert page.stem in answering or page.stem == "quick-start"
