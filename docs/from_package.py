"""What the pages take from the package itself, so that they cannot say what is not so.

Two directives: `{command-help} generate` is what `flux-klein generate --help` prints, and `{drawing}
flux_klein_async.errors` the indented part of a module's docstring. Besides, signatures are shown as callers need them.
"""

import contextlib
import dataclasses
import importlib
import inspect
import io
import os
import re
from typing import Any, get_type_hints

from docutils import nodes
from pydantic import BaseModel
from sphinx.application import Sphinx
from sphinx.domains.python import PyObject
from sphinx.util.docutils import SphinxDirective
from sphinx.util.inspect import stringify_signature

from flux_klein_async.__main__ import main

_COLUMNS = "80"


class CommandHelp(SphinxDirective):
    """The help of a command of `flux-klein`; without an argument, that of the program itself."""

    optional_arguments = 1
    final_argument_whitespace = True  # "journal list"

    def run(self) -> list[nodes.Node]:
        """Call the command line in this process."""
        printed = io.StringIO()
        os.environ["COLUMNS"] = _COLUMNS  # not those of the terminal that happens to build this
        with contextlib.redirect_stdout(printed):
            code = main([*" ".join(self.arguments).split(), "--help"])
        if code:
            raise self.error(f"flux-klein {' '.join(self.arguments)} --help ended with {code}")
        text = printed.getvalue().strip()
        return [nodes.literal_block(text, text, language="text")]


class Drawing(SphinxDirective):
    """What is drawn in a module's docstring."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Take the indented lines."""
        text = inspect.getdoc(importlib.import_module(self.arguments[0])) or ""
        found = re.search(r"\n\n((?: {4}.*\n)+)", text)
        if found is None:
            raise self.error(f"nothing is indented in the docstring of {self.arguments[0]}")
        text = inspect.cleandoc("\n" + found[1])
        return [nodes.literal_block(text, text, language="text")]


def _signature(_: Sphinx, what: str, __: str, found: Any, *___: Any) -> tuple[str, str] | None:
    """Of a model, without what only pydantic reads; of what nobody calls, none."""
    if what == "exception" or getattr(found, "_is_protocol", False):
        return "", ""
    if what != "class":
        return None
    is_model = isinstance(found, type) and issubclass(found, BaseModel)
    if not is_model and not dataclasses.is_dataclass(found):
        return None
    hints = get_type_hints(found) if is_model else {}
    signature = inspect.signature(found)
    parameters = [_shown(parameter, hints) for parameter in signature.parameters.values()]
    signature = signature.replace(parameters=parameters, return_annotation=signature.empty)
    return stringify_signature(signature, unqualified_typehints=True), ""


class _Dots:
    def __repr__(self) -> str:
        return "..."


def _shown(parameter: inspect.Parameter, hints: dict[str, Any]) -> inspect.Parameter:
    default = parameter.default
    if default is not parameter.empty and "<" in repr(default):
        default = _Dots()  # what is made anew for each, and functions, have no text that is Python
    return parameter.replace(annotation=hints.get(parameter.name, parameter.annotation), default=default)


def _skip(_: Sphinx, __: str, name: str, *___: Any) -> bool | None:
    return True if name == "model_config" else None


def _link_pages(_: Sphinx, __: str, ___: str, ____: Any, _____: Any, lines: list[str]) -> None:
    """Docstrings name the pages that they stand on by their paths in the repository."""
    lines[:] = [re.sub(r"(?<!`)\bdocs/(\w+)\.md", r":doc:`docs/\1.md </\1>`", line) for line in lines]


def setup(app: Sphinx) -> dict[str, Any]:
    """Tell Sphinx."""
    app.add_directive("command-help", CommandHelp)
    app.add_directive("drawing", Drawing)
    app.connect("autodoc-process-signature", _signature)
    app.connect("autodoc-process-docstring", _link_pages)
    app.connect("autodoc-skip-member", _skip)
    for field in PyObject.doc_field_types:
        if field.name == "variable":
            field.label = "Attributes"  # "Variables" is what Sphinx calls them
    return {"parallel_read_safe": True, "parallel_write_safe": True}
