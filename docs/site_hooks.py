"""What mkdocs does to pages besides its plugins (``mkdocs.yml`` names this file)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
#: Pages of the site that are files beside ``docs/``, where forges look for them.
SHOWN = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md", "security.md": "SECURITY.md"}

#: A role of Sphinx in a docstring, as it stands in the page: ``:func:`~mrecg_onnx.validate``` became ``:func:<code>~...</code>``.
_ROLE = re.compile(r":(?:func|class|meth|attr|data|exc|mod):<code>~?")
#: Examples in the help of a command, whose lines mkdocs-click runs together.
_EXAMPLES = re.compile(r"<p>[\b\s]*(mrecg-onnx [^<]+)</p>")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """A page that stands for a file beside ``docs/`` shows it, with links as they are from here."""
    file = SHOWN.get(page.file.src_uri)
    if file is None:
        return markdown
    text = (ROOT / file).read_text(encoding="utf-8").replace("](docs/", "](")
    for name, other in SHOWN.items():
        text = text.replace(f"]({other})", f"]({name})")
    return text


def on_page_content(html: str, **_: Any) -> str:
    """Docstrings name things as editors and Sphinx understand it, and help pages have examples line by line."""
    html = _EXAMPLES.sub(r'<div class="highlight"><pre><code>\1</code></pre></div>', html)
    return _ROLE.sub("<code>", html)
