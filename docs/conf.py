"""The documentation's site: `python -m sphinx -W --keep-going -b html docs docs/_build/html`."""

import sys
from pathlib import Path

from flux_klein_async import __version__

sys.path.insert(0, str(Path(__file__).parent))  # where from_package.py is

project = "flux_klein_async"
author = "the authors of flux_klein_async"
copyright = "the authors of flux_klein_async"  # noqa: A001  # Sphinx's name
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "from_package"]
exclude_patterns = ["_build"]
nitpicky = True  # a reference that leads nowhere is a warning, and warnings are errors
nitpick_ignore_regex = [
    # Other people's names, and those of the standard library: their inventories would have to be fetched at each build.
    ("py:.*", r"(?!flux_klein_async\b).*"),
    # What a signature shows and nobody has to import.
    ("py:.*", r"flux_klein_async\.[\w.]*\.(_\w+|[TKV]|Writer)"),
]

myst_heading_anchors = 3
highlight_language = "text"  # what is code says in which language

default_role = "code"  # docstrings quote as Markdown does
autodoc_mock_imports = ["pyarrow", "ray"]  # an environment of their own has them
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
smartquotes_action = "D"  # dashes alone: a quoted word is an argument as it is typed
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # attributes as a list below their class, where the docstring has them
napoleon_custom_sections = [("Keys", "params_style")]
maximum_signature_line_length = 80
python_use_unqualified_type_names = True
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
pygments_dark_style = "a11y-high-contrast-dark"  # the theme's own underlines modules, and so hides underscores
html_title = f"flux_klein_async {__version__}"
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
