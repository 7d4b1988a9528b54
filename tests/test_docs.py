"""What the documents show, runs: every Python block of the README and the how-tos, and every link."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from moesim.cli import library

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md")), *sorted(ROOT.glob("studies/*/README.md")),
         *sorted(ROOT.glob("workloads/**/README.md"))]
BLOCKS = [pytest.param(block, id=f"{page.relative_to(ROOT)}-{i}") for page in PAGES
          for i, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL))]


@pytest.mark.parametrize("block", BLOCKS)
def test_example_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the project's folders at hand; what it writes is left elsewhere."""
    for folder in ("studies", "workloads", "hw_configs", "docs", "tests"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "example", "exec"), {"__name__": "example"})


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize(("page", "number", "kind"), [
    ("reference/models-and-machines.md", 0, "model"), ("reference/models-and-machines.md", 1, "machine"),
    ("howto/sweep.md", 0, "sweep")])
def test_yaml_that_pages_show_loads(page: str, number: int, kind: str, tmp_path: Path,
                                    monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.DOTALL)
    file = tmp_path / "shown.yaml"
    file.write_text(blocks[number], encoding="utf-8")
    assert library.load(file)[0] == kind
