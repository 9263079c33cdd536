"""Hooks of mkdocs: files outside docs/ that pages link to become pages, and the Python reference
lists the public names.

A link to a file of the repository works on disk as it is written. On the site the file is a page
under source/: Markdown as it is, other text as a block of code, pictures as they are. Notebooks
keep their place.
"""

import ast
import logging
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
# Pages of the navigation that no page needs to link to.
ALWAYS = ("ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s#]+)(#[^)\s]*)?(\))")
FENCE = re.compile(r"^(```.*?^```|~~~.*?^~~~)", re.MULTILINE | re.DOTALL)
# Rooms that other rooms alone use.
INTERNAL = ("cli", "clip", "containers", "report", "statistics", "workers", "zeroshot")
PICTURES = (".png", ".svg", ".jpg", ".webp")
LANGUAGES = {
    ".py": "python",
    ".sh": "sh",
    ".sbatch": "sh",
    ".yaml": "yaml",
    ".json": "json",
    ".cff": "yaml",
    ".cfg": "ini",
}
NAMES = "<!-- public names -->"

# griffe takes a function for its own alias where a room imports it from a module of the same name,
# and reports an error.
_SAME_NAME = "Cyclic aliases detected:\n  landscape.workers.dispatch.dispatch"
logging.getLogger("mkdocs.plugins.griffe").addFilter(
    lambda record: _SAME_NAME not in record.getMessage()
)

# Paths of files of the repository by their paths on the site; and the other way.
_on_site: dict[str, str] = {}
_in_repository: dict[str, str] = {}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add a page for each room to the Python reference."""
    for section in config.nav or []:
        for entry in section.get("Reference", []) if isinstance(section, dict) else []:
            if "Python" in entry:
                entry["Python"] += [{f"landscape.{room}": f"api/{room}.md"} for room in _rooms()]
    return config


@event_priority(100)
def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add files outside docs/ that are linked to, and pages of the rooms."""
    _on_site.clear()
    _in_repository.clear()
    for room in _rooms():
        text = (
            f"# landscape.{room}\n\n::: landscape.{room}\n    options:\n      show_root_heading: "
            "false\n"
        )
        files.append(File.generated(config, f"api/{room}.md", content=text))
    waiting = [ROOT / name for name in ALWAYS]
    for file in files.documentation_pages():
        if file.abs_src_path is not None:
            _remember(f"docs/{file.src_uri}", file.src_uri)
            waiting += _targets(Path(file.abs_src_path))
    docs = ROOT / "docs"
    while waiting:
        path = waiting.pop()
        name = path.relative_to(ROOT).as_posix()
        if path.is_relative_to(docs) and not path.is_relative_to(docs / "jobs"):
            _remember(name, path.relative_to(docs).as_posix())
        elif name not in _on_site:
            files.append(_added(path, name, config))
            waiting += _targets(path)
    return files


def _added(path: Path, name: str, config: MkDocsConfig) -> File:
    """Make a page, or a file as it is, of a file of the repository."""
    if path.suffix == ".ipynb":
        # A plugin makes a page of it, which needs the file in a folder.
        _remember(name, name)
        return File(name, str(ROOT), config.site_dir, config.use_directory_urls)
    if path.suffix in PICTURES:
        _remember(name, f"source/{name}")
        return File.generated(config, f"source/{name}", abs_src_path=str(path))
    if path.suffix == ".md":
        content, place = path.read_text(encoding="utf-8"), f"source/{name}"
    else:
        language = LANGUAGES.get(path.suffix, "text")
        content, place = (
            f"# {name}\n\n````{language}\n{path.read_text(encoding='utf-8')}\n````\n",
            f"source/{name}.md",
        )
    _remember(name, place)
    return File.generated(config, place, content=f"---\nsearch:\n  exclude: true\n---\n\n{content}")


def _remember(name: str, place: str) -> None:
    _on_site[name], _in_repository[place] = place, name


def _targets(path: Path) -> Iterator[Path]:
    """Yield the files of the repository that a page links to; of a folder, its README.md."""
    if path.suffix == ".md":
        for match in LINK.finditer(FENCE.sub("", path.read_text(encoding="utf-8"))):
            if ":" not in match[2] and (target := _file(path.parent / match[2])) is not None:
                yield target


def _file(path: Path) -> Path | None:
    """Return the file that a link leads to, of a folder its README.md; None where there is none."""
    path = Path(posixpath.normpath(path.as_posix()))
    path = path / "README.md" if path.is_dir() else path
    return path if path.is_file() and path.is_relative_to(ROOT) else None


@event_priority(100)
def on_page_markdown(markdown: str, *, page: Page, **_: object) -> str:
    """Turn links into the repository into links within the site, and list the public names where
    they belong.
    """
    name = _in_repository.get(page.file.src_uri)
    if name is None:
        return markdown
    folder = (ROOT / name).parent

    def turned(match: re.Match[str]) -> str:
        target = None if ":" in match[2] else _file(folder / match[2])
        place = None if target is None else _on_site.get(target.relative_to(ROOT).as_posix())
        if place is None:
            # A folder without a page of its own is named, not linked.
            is_folder = ":" not in match[2] and (folder / match[2]).is_dir()
            return match[1][1:-2] if is_folder else match[0]
        link = posixpath.relpath(place, posixpath.dirname(page.file.src_uri) or ".")
        return f"{match[1]}{link}{match[3] or ''}{match[4]}"

    pieces = FENCE.split(markdown)
    turned_text = "".join(
        piece if number % 2 else LINK.sub(turned, piece) for number, piece in enumerate(pieces)
    )
    return turned_text.replace(NAMES, _public_names())


def on_page_content(html: str, *, page: Page, **_: object) -> str:
    """Leave out defaults that click does not have, and mark the page of commands for the style
    sheet.
    """
    if page.file.src_uri != "cli.md":
        return html
    html = re.sub(r"<code>Sentinel[^<]*(<wbr */?>)?[^<]*UNSET</code>", "", html)
    return f'<div class="cli">{html}</div>'


def _rooms() -> list[str]:
    """Return the rooms of the package that offer names to users."""
    faces = {
        ".".join(face.parent.relative_to(ROOT / "landscape").parts): face.read_text(
            encoding="utf-8"
        )
        for pattern in ("*/__init__.py", "curvature/*/__init__.py")
        for face in sorted((ROOT / "landscape").glob(pattern))
    }
    return [
        room
        for room, text in sorted(faces.items())
        if room not in INTERNAL and re.search(r"^__all__ = \[[^\]]", text, re.MULTILINE)
    ]


def _public_names() -> str:
    """Return a table of all that `import landscape` offers, with links to the pages of the
    rooms.
    """
    tree = ast.parse((ROOT / "landscape" / "__init__.py").read_text(encoding="utf-8"))
    tables = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_EXPORTS"
    ]
    exports: dict[str, str] = ast.literal_eval(tables[0])
    rows = ["| name | what it is |", "|---|---|"]
    for name, room in sorted(exports.items(), key=lambda pair: pair[0].lower()):
        summary = _summary(room, name).replace("|", "\\|")
        rows.append(f"| [`landscape.{name}`][{room}.{name}] | {summary} |")
    return "\n".join(rows)


def _summary(module: str, name: str) -> str:
    """Return the first line of the docstring of a name, wherever its module has it from."""
    path = ROOT.joinpath(*module.split("."))
    tree = ast.parse(
        (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(
            encoding="utf-8"
        )
    )
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and any(name == alias.name for alias in node.names):
            return _summary(str(node.module), name)
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name:
            return (ast.get_docstring(node) or "").partition("\n")[0]
    return ""
