"""Colours of a report, and figures as SVG that follows the reader's light or dark theme."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nas_dynamic._extras import extra

with extra("experiment"):
    import matplotlib
    from matplotlib.figure import Figure

__all__ = ["DARK", "LIGHT", "RAMP", "SERIES", "STYLE", "inline_svg", "save"]

PALETTE = {
    "paper": ("#fdfdfc", "#14181d"),
    "ink": ("#1c2530", "#e6eaee"),
    "muted": ("#5a6573", "#9aa5b1"),
    "grid": ("#e4e8ec", "#2b323a"),
    "c1": ("#2f6cb5", "#79aaf0"),
    "c2": ("#d4581f", "#f58f5c"),
    "c3": ("#2a8a66", "#5fc39c"),
    "c4": ("#8657ad", "#bd98e2"),
    "c5": ("#a87d10", "#dcb54c"),
    "c6": ("#c0437b", "#ee86b4"),
    "c7": ("#1f86a0", "#62c4dd"),
    "c8": ("#6f7680", "#a4acb6"),
    "q1": ("#e0a021", "#f4d06a"),
    "q2": ("#d96c3b", "#f29d66"),
    "q3": ("#b64379", "#e574a5"),
    "q4": ("#7a3aa3", "#ad83e8"),
    "q5": ("#32277d", "#7f90fa"),
}
"""Role → colour on a light page, and on a dark one; no two of a page are the same."""

LIGHT = {role: light for role, (light, _) in PALETTE.items()}
"""The colours that figures are drawn with."""

DARK = {role: dark for role, (_, dark) in PALETTE.items()}

SERIES = tuple(f"c{number}" for number in range(1, 9))
"""Of runs and of groups, in this order."""

RAMP = tuple(f"q{number}" for number in range(1, 6))
"""Of ordered things, small subnets first."""

STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.labelsize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "axes.edgecolor": LIGHT["muted"],
    "axes.labelcolor": LIGHT["ink"],
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LIGHT["grid"],
    "grid.linewidth": 0.8,
    "text.color": LIGHT["ink"],
    "xtick.color": LIGHT["muted"],
    "ytick.color": LIGHT["muted"],
    "xtick.labelcolor": LIGHT["ink"],
    "ytick.labelcolor": LIGHT["ink"],
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.facecolor": "none",
    "svg.fonttype": "none",
    # Names of groups may have a $.
    "text.parse_math": False,
}
"""Matplotlib's settings for all figures."""

SVG = "http://www.w3.org/2000/svg"
BACKGROUND = "background"
NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}


def save(drawn: Figure, folder: Path, name: str) -> str:
    """Write a figure as PNG and SVG, in light colours, over those that are there.

    Returns:
        The content of the SVG.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn.patch.set_gid(BACKGROUND)
    path = folder / f"{name}.svg"
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}):
        drawn.savefig(folder / f"{name}.png", dpi=200, facecolor=LIGHT["paper"])
        drawn.savefig(path, facecolor=LIGHT["paper"], metadata=NO_METADATA)
    return path.read_text(encoding="utf-8")


def inline_svg(
    svg: str, name: str, label: str, tips: Mapping[str, Sequence[str]] | None = None
) -> str:
    """Return a figure as an svg element of an HTML page, its colours CSS variables `--role`.

    Args:
        svg: what `save` returned.
        name: beginning of its ids, unique on the page.
        label: what it shows, in words, for those who do not see it.
        tips: gid of a scatter → a text for each point, shown when it is pointed at.
    """
    root = ET.fromstring(svg)
    for parent in list(root.iter()):
        for child in list(parent):
            # The page has a background and a style of its own.
            unused = child.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style")
            if unused or child.get("id") == BACKGROUND:
                parent.remove(child)
    for gid, texts in (tips or {}).items():
        points = root.findall(f".//*[@id='{gid}']//{{{SVG}}}use")
        for point, text in zip(points, texts, strict=True):
            ET.SubElement(point, f"{{{SVG}}}title").text = text
    content = "".join(ET.tostring(element, encoding="unicode") for element in root)
    content = _plain_names(content)
    content = _own_ids(content, name)
    for role, colour in LIGHT.items():
        content = content.replace(colour, f"var(--{role})")
    content = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", content)
    tag = ET.Element("svg", {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": label})
    opening = ET.tostring(tag, encoding="unicode", short_empty_elements=False)
    return opening.removesuffix("</svg>") + content + "</svg>"


def _plain_names(content: str) -> str:
    """Return SVG without namespaces: HTML knows its elements by name."""
    content = re.sub(r' xmlns(:\w+)?="[^"]*"', "", content)
    content = re.sub(r"(</?)ns\d+:", r"\1", content)
    return re.sub(r" ns\d+:href=", " href=", content)


def _own_ids(content: str, name: str) -> str:
    """Keep the ids that are referred to, beginning with the name of the figure."""
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', content))

    def renamed(match: re.Match[str]) -> str:
        return f' id="{name}-{match[1]}"' if match[1] in used else ""

    content = re.sub(r' id="([^"]*)"', renamed, content)
    return re.sub(r'(url\(#|href="#)', rf"\1{name}-", content)
