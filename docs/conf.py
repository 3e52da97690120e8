"""How Sphinx builds these pages: ``make docs``."""

import pathlib
import re

_PACKAGE = pathlib.Path(__file__).parent.parent / "storescp" / "__init__.py"

project = "storescp"
release = re.findall(r'^__version__ = "(.+)"$', _PACKAGE.read_text(), re.MULTILINE)[0]
version = release
language = "en"
html_theme = "furo"
html_title = f"storescp {release}"
html_show_copyright = False
html_copy_source = False
# Nothing is fetched from elsewhere while a page is read.
html_theme_options = {"top_of_page_buttons": []}
exclude_patterns = ["*.json"]
nitpicky = True
