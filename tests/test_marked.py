"""Commands that write a part of a page keep the rest of it, and refuse a page without that part before they measure."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import contrast_cost
from benchmarks.marked import marks, write_part

BEGIN, END = marks("python -m command")


def test_a_part_is_replaced_and_the_rest_stays(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Grüße\n\n{BEGIN}\nold\n{END}\nrest\n", encoding="utf-8")
    write_part(page, "python -m command", "new")
    assert page.read_text(encoding="utf-8") == f"# Grüße\n\n{BEGIN}\nnew\n{END}\nrest\n"
    with pytest.raises(ValueError, match="the page has no <!-- begin: python -m other -->"):
        write_part(page, "python -m other", "new")
    assert list(tmp_path.iterdir()) == [page]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "page.md: No such file or directory; expected a page"),
        ("# Other", f"page.md: the page has no {marks(contrast_cost.COMMAND)[0]} ... "),
    ],
)
def test_a_page_without_the_part_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    content: str | None, message: str,
) -> None:  # fmt: skip
    page = tmp_path / "page.md"
    if content is not None:
        page.write_text(content)
    monkeypatch.setattr(contrast_cost, "measure", lambda *_: pytest.fail("measured before the page was checked"))
    with pytest.raises(SystemExit) as end:
        contrast_cost.main(["--page", str(page)])
    assert end.value.code == 2 and message in capsys.readouterr().err
