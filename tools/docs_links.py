"""A hook of MkDocs: links from the pages to files of the repository lead to its host.

In the repository `../flaxnets/models/vgg.py` is a file beside the page; on the site it is none.
"""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]
LINK = re.compile(r"\]\(((?:\.\./)+[^)#\s]*)")


def on_page_markdown(markdown, page, config, files):
    """Replace links that leave docs/; called by MkDocs for each page."""
    folder = (ROOT / "docs" / page.file.src_uri).parent

    def on_host(match):
        path = (folder / match[1]).resolve()
        if path.is_relative_to(ROOT / "docs"):
            return match[0]
        return f"]({config.repo_url}/blob/main/{path.relative_to(ROOT)}"

    return LINK.sub(on_host, markdown)
