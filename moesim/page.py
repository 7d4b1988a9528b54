"""A page of which a part is computed: what stands between two markers is written again, the rest is left alone.

>>> print(renewed(f"# Title\\n{BEGIN}\\nold\\n{END}\\nby hand", "new"))
# Title
<!-- computed by study.py: begin -->
<BLANKLINE>
new
<BLANKLINE>
<!-- computed by study.py: end -->
by hand
"""

from __future__ import annotations

from pathlib import Path

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
