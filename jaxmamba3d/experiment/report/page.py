"""What an HTML page is made of: text that is escaped, pictures and styles inside the one file."""

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxmamba3d.evaluation import Table
from jaxmamba3d.experiment.report.style import STYLE

MANY_COLUMNS = 12


def page(title: str, subtitle: str, sections: Sequence[str]) -> str:
    """A whole page.

    Args:
        title, subtitle: plain text.
        sections: HTML.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<header>\n<h1>{html.escape(title)}</h1>\n{paragraph(subtitle)}</header>\n"
        f"<main>\n{''.join(sections)}</main>\n</body>\n</html>\n"
    )


def section(title: str, *parts: str, badge: str = "", kind: str = "") -> str:
    """A part of the page under a heading.

    Args:
        title: plain text.
        parts: HTML.
        badge: a word beside the heading, of the style `kind`.
        kind: good | open; "" is plain.
    """
    mark = f' <span class="badge {kind}">{html.escape(badge)}</span>' if badge else ""
    return f"<section>\n<h2>{html.escape(title)}{mark}</h2>\n{''.join(parts)}</section>\n"


def heading(text: str) -> str:
    """A heading inside a section."""
    return f"<h3>{html.escape(text)}</h3>\n"


def paragraph(text: str, kind: str = "note") -> str:
    """Plain text; `note` is set back, `missing` says what is not there."""
    return f'<p class="{kind}">{html.escape(text)}</p>\n'


def tiles(values: Mapping[str, str]) -> str:
    """The few numbers that are looked for first, by their names."""
    return _pairs(values, "tiles")


def facts(values: Mapping[str, str]) -> str:
    """Names and what they are."""
    return _pairs(values, "facts")


def _pairs(values: Mapping[str, str], kind: str) -> str:
    rows = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>\n"
        for name, value in values.items()
    )
    return f'<dl class="{kind}">\n{rows}</dl>\n'


def table(content: Table) -> str:
    """A table that scrolls by itself where it is wider than the page, and is small on paper."""
    kind = "wide many" if len(content.columns) > MANY_COLUMNS else "wide"
    return f'<div class="{kind}" tabindex="0">\n{content.html()}</div>\n'


def side_by_side(parts: Mapping[str, str]) -> str:
    """Parts (HTML) under headings of their own, next to each other where there is room."""
    boxes = "".join(f"<div>\n{heading(title)}{part}</div>\n" for title, part in parts.items())
    return f'<div class="beside">\n{boxes}</div>\n'


def folded(summary: str, *parts: str) -> str:
    """Parts (HTML) that are shown when their summary is clicked, and on paper."""
    return f"<details>\n<summary>{html.escape(summary)}</summary>\n{''.join(parts)}</details>\n"


def code(text: str) -> str:
    """Text as it is, scrolling by itself."""
    return f'<pre tabindex="0">{html.escape(text)}</pre>\n'


def picture(path: Path, caption: str, kind: str = "") -> str:
    """A PNG inside the page.

    Args:
        path: the file.
        caption: plain text, which stands for it where it cannot be seen, too.
        kind: `chart` for dark lines on white, which dark mode inverts and narrow screens scroll.
    """
    data = base64.b64encode(path.read_bytes()).decode()
    text = html.escape(caption)
    image = f'<img src="data:image/png;base64,{data}" alt="{text}">'
    return (
        f'<figure class="{kind}">\n<div class="wide" tabindex="0">{image}</div>\n'
        f"<figcaption>{text}</figcaption>\n</figure>\n"
    )
