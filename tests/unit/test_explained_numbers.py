"""Each number of the report page is explained in docs/explanation/report-page.md, in three sentences or by a link."""

from __future__ import annotations

import re

import pytest

from quantyard.metrics.behaviour_figures import BEHAVIOUR_FIGURES
from quantyard.metrics.cache_figures import CACHE_FIGURES
from quantyard.metrics.layout_figures import LAYOUT_COLUMNS
from quantyard.metrics.openvino_figures import OPENVINO_FIGURES
from quantyard.metrics.similarity_figures import SIMILARITY_FIGURES
from quantyard.paths import REPO_DIR

PAGE = (REPO_DIR / "docs" / "explanation" / "report-page.md").read_text(encoding="utf-8")
TABLES = [path for path in (REPO_DIR / "quantyard" / "report_page").glob("*.py") if path.stem != "comparison"]
OTHERS = ("File", "Task", "Metric", "Domain", "Behaviour", "Cache")  # what a row is about, not a number
COLUMNS = {
    name for path in TABLES for name in re.findall(r'PageColumn\(\s*"([^"]+)"', path.read_text(encoding="utf-8"))
}  # fmt: skip
FIGURES = {
    figure.name for figures in (BEHAVIOUR_FIGURES, CACHE_FIGURES, OPENVINO_FIGURES, SIMILARITY_FIGURES)
    for figure in figures
} | set(LAYOUT_COLUMNS[1:])  # fmt: skip


@pytest.mark.parametrize("name", sorted((COLUMNS | FIGURES) - set(OTHERS)))
def test_a_column_of_the_page_is_explained(name: str) -> None:
    said = " ".join(PAGE.lower().split())
    assert name.removesuffix(", nats").lower() in said


def test_an_explanation_has_three_sentences() -> None:
    explained = re.findall(r"^([^\n]+)\n: ((?:.+\n)(?:  .+\n)*)", PAGE, re.MULTILINE)
    assert len(explained) > 20
    for name, text in explained:
        sentences = re.split(r"(?<=[a-z0-9)`%*])[.:;] (?=[`\[A-Z*√])", " ".join(text.split()))
        assert 3 <= len(sentences) <= 5, (name, sentences)
