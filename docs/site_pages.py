"""What mkdocs adds to the files of docs/: pages from the root of the repository, and executed notebooks as pages.

No notebook is run here: `make notebooks` does that, and stores the outputs.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

DOCS = Path(__file__).parent
ROOT_PAGES = {"CHANGELOG.md": "changes.md", "CONTRIBUTING.md": "contributing.md", "SECURITY.md": "security.md"}
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the repository's root, and a page for each notebook."""
    for name, page in ROOT_PAGES.items():
        text = (DOCS.parent / name).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=from_root(text)))
    for path in sorted((DOCS / "notebooks").glob("*.ipynb")):
        content = notebook(json.loads(path.read_text(encoding="utf-8")), path.name)
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=content))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Let links to the root's pages and to notebooks go to their pages here; other files keep their text alone."""
    up = page.file.src_uri.count("/")

    def to_site(link: re.Match[str]) -> str:
        label, target, anchor = link[1], link[2], link[3] or ""
        if target.endswith(".ipynb") and not page.file.src_uri.startswith("notebooks/"):
            return f"[{label}]({target.removesuffix('.ipynb')}.md{anchor})"
        if not target.startswith("../" * (up + 1)):
            return link[0]
        site = ROOT_PAGES.get(target.removeprefix("../" * (up + 1)))
        return label if site is None else f"[{label}]({'../' * up}{site}{anchor})"

    return LINK.sub(to_site, markdown)


def from_root(text: str) -> str:
    """A page of the root, with its links as they are in docs/."""
    text = re.sub(r"\]\((?=[A-Z]+\.md)", "](../", text)
    return re.sub(r"\]\(docs/", "](", re.sub(r"\]\((?!https?:|#|docs/|\.\./)", "](../", text))


def notebook(content: dict[str, Any], name: str) -> str:
    """A notebook as Markdown: its texts, its code, and the outputs that are stored in it."""
    parts = []
    for cell in content["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif source:
            parts.append(f"```python\n{source}\n```")
        parts += [shown for output in cell.get("outputs", ()) if (shown := _shown(output))]
    parts.append(f"[Download this notebook]({name})")
    return "\n\n".join(parts) + "\n"


def _shown(output: dict[str, Any]) -> str:
    """An output: a picture, else HTML, else text."""
    data = {kind: "".join(text) for kind, text in output.get("data", {}).items()}
    if "image/png" in data:
        return f'<img alt="the figure" src="data:image/png;base64,{"".join(data["image/png"].split())}">'
    if "text/html" in data:
        html = re.sub(r"\n\s*\n", "\n", data["text/html"])  # a blank line would end the block of HTML
        return f'<div class="notebook-output">\n{html}\n</div>'
    text = "".join(output.get("text", ())) or data.get("text/plain", "")
    return f"```text\n{text.rstrip()}\n```" if text else ""
