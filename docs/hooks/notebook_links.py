"""Turn a notebook's links to Markdown files into links to their pages, which mkdocs does for Markdown only."""

from __future__ import annotations

import logging
import posixpath
import re
from typing import Any

log = logging.getLogger("mkdocs.hooks")


def on_page_content(html: str, *, page: Any, files: Any, **_: Any) -> str:
    """Rewrite the links of a notebook; one that leads nowhere is a warning, which fails the strict build."""
    if not page.file.src_uri.endswith(".ipynb"):
        return html

    def link(found: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(page.file.src_uri), found[1]))
        target = files.get_file_from_path(path)
        if target is None:
            log.warning("%s links to %s, which is not there", page.file.src_uri, found[1])
            return found[0]
        return f'href="{target.url_relative_to(page.file)}"'

    return re.sub(r'href="([^":#]+\.(?:md|ipynb))"', link, html)
