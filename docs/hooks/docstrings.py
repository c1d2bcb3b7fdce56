"""Read this package's docstrings as Markdown: roles such as ``:class:`Mask` `` become code, and tables Markdown's."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|data|attr|mod):`~?([^`]+)`")
_RULE = re.compile(r"^=+(?: +=+)+$")
_MATH = re.compile(r"^\.\. math::\n((?:    .*\n?|\n)+)", re.M)


class Docstrings(griffe.Extension):
    """Rewrite each docstring before it is parsed."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(text: str) -> str:
    """Return a docstring with Markdown in place of what Sphinx reads.

    >>> as_markdown("See :class:`~lightning_wd.Mask`, ``w``.")
    'See `lightning_wd.Mask`, `w`.'
    """
    text = _ROLE.sub(r"`\1`", text).replace("``", "`")
    text = re.sub(r"^Example:$", "Examples:", text, flags=re.M)
    text = re.sub(r"::$", ":", text, flags=re.M)
    text = _MATH.sub(lambda found: "$$\n" + re.sub(r"^    ", "", found[1], flags=re.M).strip() + "\n$$\n\n", text)
    lines: list[str] = []
    table: list[list[str]] | None = None
    edges: list[int] = []
    for line in text.splitlines():
        if _RULE.match(line.strip()):
            if table is None:
                table, edges = [], [found.start() for found in re.finditer("=+", line)]
            elif len(table) > 1:
                lines += ["", *_rows(table), ""]
                table = None
            continue
        if table is None:
            lines.append(line)
            continue
        cells = [line[a:b].strip() for a, b in zip(edges, [*edges[1:], None], strict=True)]
        if cells[0] or not table:
            table.append(cells)
        else:  # the rest of the row above
            table[-1] = [" ".join(filter(None, pair)) for pair in zip(table[-1], cells, strict=True)]
    return "\n".join(lines)


def _rows(table: list[list[str]]) -> list[str]:
    head, *body = [[re.sub(r"(?<!\\)\|", r"\\|", cell) for cell in row] for row in table]
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body)]
