"""HTML and SVG that is safe against injection: everything not created by this module is escaped as text."""

import html
import re
from collections.abc import Sequence

# Control characters that are invalid in HTML, and lone surrogates, which cannot be encoded.
_UNSHOWN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


class Markup(str):
    """A string of markup that is inserted without escaping."""


def text(value: object) -> Markup:
    """Escapes a value as text; markup is returned unchanged."""
    if isinstance(value, Markup):
        return value
    return Markup(html.escape(_UNSHOWN.sub("\ufffd", str(value))))


def element(tag: str, *children: object, **attributes: object) -> Markup:
    """Creates an element.

    Args:
        tag: name of the element.
        *children: markup, or values that are escaped as text; None is omitted.
        **attributes: attribute values, escaped as text; attributes that are None or False are omitted. A trailing
            underscore is removed, as in `class_`, and other underscores become hyphens.
    """
    words = [tag]
    for name, value in attributes.items():
        if value is not None and value is not False:
            words.append(f'{name.rstrip("_").replace("_", "-")}="{text(value)}"')
    inner = joined(*children)
    return Markup(f"<{' '.join(words)}>{inner}</{tag}>")


def breakable(name: str) -> Markup:
    """Escapes a name and allows line breaks after its underscores and slashes."""
    return Markup(re.sub("([_/])", r"\1<wbr>", text(name)))


def joined(*parts: object) -> Markup:
    """Concatenates parts, omitting None."""
    return Markup("".join(text(part) for part in parts if part is not None))


def table(head: Sequence[object], rows: Sequence[Sequence[object]], **attributes: object) -> Markup:
    """Creates a table whose first column holds row headers, and which scrolls horizontally on narrow screens."""
    lines = [element("tr", *(element("th", cell, scope="col") for cell in head))]
    body = [element("tr", element("th", row[0], scope="row"), *(_cell(cell) for cell in row[1:])) for row in rows]
    inner = element("table", element("thead", *lines), element("tbody", *body), **attributes)
    return element("div", inner, class_="scroll", tabindex="0")


def _cell(cell: object) -> Markup:
    return cell if isinstance(cell, Markup) and cell.startswith("<td") else element("td", cell)
