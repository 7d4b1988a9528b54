"""A page of which a part is computed: what stands between two markers is written again, the rest is left alone.

>>> print(renewed(f"# Title\\n{BEGIN}\\nold\\n{END}\\nby hand", "new"))
# Title
<!-- computed by study.py: begin -->
<BLANKLINE>
new
<BLANKLINE>
<!-- computed by study.py: end -->
by hand
>>> print(markdown(["expert", "tokens"], [["warm", 12], ["cold", "0"]]))
| expert | tokens |
| --- | ---: |
| warm | 12 |
| cold | 0 |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- computed by study.py: begin -->", "<!-- computed by study.py: end -->"


def renewed(page: str, text: str, begin: str = BEGIN, end: str = END) -> str:
    """Return *page* with *text* between the markers. Raises ``ValueError`` if it lacks one of them."""
    before, _, rest = page.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"the markers are not there; write {begin} and {end} into the page")
    return f"{before}{begin}\n\n{text}\n\n{end}{after}"


def renew(file: Path, text: str) -> None:
    """Write *text* between the markers of the page *file*. Raises ``ValueError`` if it lacks one of them."""
    file.write_text(renewed(file.read_text(encoding="utf-8"), text), encoding="utf-8")


def publish(folder: Path, tables: dict[str, Any], draw: Callable[[dict[str, Any], Path], object],
            say: Callable[[dict[str, Any]], str]) -> None:
    """Let *draw* put the figures of *tables* into the study in *folder*; print and renew what they *say*."""
    (folder / "figures").mkdir(exist_ok=True)
    draw(tables, folder / "figures")
    text = say(tables)
    print(text)
    renew(folder / "README.md", text)


def markdown(header: Iterable[object], rows: Iterable[Iterable[object]], words: int | None = None) -> str:
    """Return a table of Markdown; all columns but the first *words* are aligned right.

    Without *words* those columns but the first are of which all cells begin with a digit or a sign, or are "nan".
    """
    head, *body = [list(map(str, cells)) for cells in (header, *rows)]
    right = [i > 0 and all(_is_number(row[i]) for row in body) if words is None else i >= words
             for i in range(len(head))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---:" if r else "---" for r in right], *body))


def _is_number(cell: str) -> bool:
    return cell[:1].isdigit() or cell[:1] in "+-" or cell == "nan"
