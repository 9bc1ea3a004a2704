"""HTML and SVG that cannot be injected into: what is not made here is text, and text is escaped."""

import html
import re
from collections.abc import Sequence

# Control characters that HTML does not know, and halves of surrogate pairs, which no encoding can write.
_UNSHOWN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


class Markup(str):
    """Markup that is taken as it is."""


def text(value: object) -> Markup:
    """A value as text, every character of it without a meaning of its own."""
    if isinstance(value, Markup):
        return value
    return Markup(html.escape(_UNSHOWN.sub("\ufffd", str(value))))


def element(tag: str, *children: object, **attributes: object) -> Markup:
    """An element.

    Args:
        tag: its name.
        children: Markup, or values that become text; None is left out.
        attributes: values become text; None and False leave an attribute out. `class_` stands for class, and any other
            underscore for a hyphen.
    """
    words = [tag]
    for name, value in attributes.items():
        if value is not None and value is not False:
            words.append(f'{name.rstrip("_").replace("_", "-")}="{text(value)}"')
    inner = joined(*children)
    return Markup(f"<{' '.join(words)}>{inner}</{tag}>")


def breakable(name: str) -> Markup:
    """A name as text that may go on in the next line behind its underscores and slashes."""
    return Markup(re.sub("([_/])", r"\1<wbr>", text(name)))


def joined(*parts: object) -> Markup:
    """Parts one after the other, None left out."""
    return Markup("".join(text(part) for part in parts if part is not None))


def table(head: Sequence[object], rows: Sequence[Sequence[object]], **attributes: object) -> Markup:
    """A table whose first column names the rows; it scrolls by itself where the screen is narrow."""
    lines = [element("tr", *(element("th", cell, scope="col") for cell in head))]
    body = [element("tr", element("th", row[0], scope="row"), *(_cell(cell) for cell in row[1:])) for row in rows]
    inner = element("table", element("thead", *lines), element("tbody", *body), **attributes)
    return element("div", inner, class_="scroll", tabindex="0")


def _cell(cell: object) -> Markup:
    return cell if isinstance(cell, Markup) and cell.startswith("<td") else element("td", cell)
