"""How Sphinx builds the documentation: `nox -s docs`."""

from __future__ import annotations

from importlib.metadata import version as installed_version
from typing import TYPE_CHECKING

import lowft

if TYPE_CHECKING:
    from docutils.nodes import TextElement, reference
    from sphinx.addnodes import pending_xref
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

project = "lowft"
author = "the authors of lowft"
copyright = author  # noqa: A001 - Sphinx reads this name
release = version = installed_version("lowft")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build"]
templates_path = ["_templates"]
html_theme = "furo"
html_title = "lowft"

# Docstrings are written to be read in an editor: `name` there is code.
default_role = "code"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
maximum_signature_line_length = 80
napoleon_numpy_docstring = False
napoleon_use_ivar = True
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

# Other projects' inventories would have to be downloaded: names outside lowft are shown, not linked.
nitpick_ignore_regex = [("py:.*", r"(?!lowft\.).*"), ("py:.*", r"lowft\..*\._\w+")]  # and type variables

_PUBLIC_NAMES = {
    f"{value.__module__}.{name}": f"lowft.{name}"
    for name, value in vars(lowft).items()
    if name in lowft.__all__ and hasattr(value, "__module__")
}


def _link_to_public_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: TextElement
) -> reference | None:
    """Link an annotation such as `lowft.trainer.Trainer` to its entry, which is named `lowft.Trainer`."""
    target = node["reftarget"]
    domain = env.domains.python_domain
    for defined, public in _PUBLIC_NAMES.items():
        if target == defined or target.startswith(f"{defined}."):
            entry = public + target.removeprefix(defined)
            return domain.resolve_xref(env, node["refdoc"], app.builder, node["reftype"], entry, node, content)
    return None


def setup(app: Sphinx) -> None:
    """Register what this configuration adds to Sphinx."""
    app.connect("missing-reference", _link_to_public_name)
