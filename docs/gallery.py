"""Writes the gallery: a card and a page for each script of examples/, with its picture and its source.

The alternative text of a picture is that of the page or README that shows it.
"""

import ast
import re


def alternatives(root):
    """Name of a picture -> its alternative text, wherever it is shown."""
    found = {}
    for page in [root / "README.md", *sorted((root / "docs").rglob("*.md"))]:
        for text, picture in re.findall(r"!\[([^\]]+)\]\((?:[\w./]*/)?(\w+\.png)\)", page.read_text()):
            found.setdefault(picture, " ".join(text.split()))
    return found


def page(script, alternative):
    """Title and page of a script, as MyST: its docstring, its picture, its source."""
    first, _, rest = ast.get_docstring(ast.parse(script.read_text())).partition("\n")
    title, _, subtitle = first.partition(": ")
    usage = re.search(r"(?: {4}.*\n)+", rest)[0]
    text = rest.replace(usage, f"```\n{usage}```\n" if usage else "")
    subtitle = subtitle[:1].upper() + subtitle[1:]
    return title, "\n".join(
        [
            *(f"# {title}", "", subtitle, "", re.sub(r"^    ", "", text, flags=re.MULTILINE), ""),
            *(f"```{{image}} ../{script.stem}.png", f":alt: {alternative}", "```", ""),
            *(f"```{{literalinclude}} ../../examples/{script.name}", ":language: python", "```", ""),
        ]
    )


def write(root):
    """Write docs/gallery/index.md and a page for each example."""
    texts, folder = alternatives(root), root / "docs" / "gallery"
    folder.mkdir(exist_ok=True)
    cards, names = [], []
    for script in sorted((root / "examples").glob("*.py")):
        title, text = page(script, texts[f"{script.stem}.png"])
        (folder / f"{script.stem}.md").write_text(text)
        names.append(script.stem)
        cards += [f":::{{grid-item-card}} {title}", f":link: {script.stem}", ":link-type: doc"]
        cards += [f":img-top: ../{script.stem}.png", f":img-alt: {texts[f'{script.stem}.png']}", ":::", ""]
    index = ["# Gallery", "", "Each script runs as it stands and writes its picture.", "", "::::{grid} 1 2 2 3"]
    index += [":gutter: 3", "", *cards, "::::", "", "```{toctree}", ":hidden:", "", *names, "```", ""]
    (folder / "index.md").write_text("\n".join(index))
