"""What the site needs beside mkdocs.yml: the repository's layout, and the pages of the API."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from griffe import Extension, Object
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

INCLUDED = ("*.md", "LICENSE", "docs/**/*.md", "docs/site.css", "docs/images/*", "examples/**/*.*")
API = "docs/api/"

_installed = tempfile.TemporaryDirectory()


@event_priority(100)
def on_config(config: MkDocsConfig) -> None:
    """Show mkdocstrings the sources as they are installed: adapters/ is nas_dynamic.adapters."""
    root, package = Path(config.config_file_path).parent, Path(_installed.name, "nas_dynamic")
    shutil.copytree(root / "nas_dynamic", package, dirs_exist_ok=True)
    shutil.copytree(root / "adapters", package / "adapters", dirs_exist_ok=True)
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [_installed.name]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Lay the site out as the repository is: a link that works in one works in the other."""
    root = Path(config.config_file_path).parent
    for file in list(files):
        if file.src_dir == config.docs_dir:
            files.remove(file)
    for pattern in INCLUDED:
        for path in sorted(root.glob(pattern)):
            if path.suffix != ".pyc":
                uri = path.relative_to(root).as_posix()
                files.append(File(uri, str(root), config.site_dir, config.use_directory_urls))
    for uri in _pages(config.nav):
        if uri.startswith(API):
            module = uri.removeprefix(API).removesuffix(".md")
            files.append(File.generated(config, uri, content=_reference(module)))
    return files


def _pages(nav: Any) -> Iterator[str]:
    """Yield the pages of a navigation, however deep."""
    for item in nav.values() if isinstance(nav, dict) else nav:
        if isinstance(item, str):
            yield item
        else:
            yield from _pages(item)


def _reference(module: str) -> str:
    """Return the page of a module, or of a package: what it exports, else its modules."""
    init = Path(_installed.name, *module.split("."), "__init__.py")
    submodules = init.exists() and "__all__" not in init.read_text()
    return f"::: {module}\n    options: {{show_submodules: {str(submodules).lower()}}}\n"


class Examples(Extension):
    """Give griffe the name that it knows for the section `Example:` of a docstring."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Rename the section before it is parsed."""
        if obj.docstring:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
