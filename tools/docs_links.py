"""A hook of MkDocs that turns links to files of the repository into links to its host.

`../flaxnets/models/vgg.py` is a file in the repository, but not on the site.
"""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]
LINK = re.compile(r"\]\(((?:\.\./)+[^)#\s]*)")


def on_page_markdown(markdown, page, config, files):
    """Return the page with links that leave docs/ replaced. MkDocs calls it for each page."""
    folder = (ROOT / "docs" / page.file.src_uri).parent

    def on_host(match):
        path = (folder / match[1]).resolve()
        if path.is_relative_to(ROOT / "docs"):
            return match[0]
        return f"]({config.repo_url}/blob/main/{path.relative_to(ROOT)}"

    return LINK.sub(on_host, markdown)
