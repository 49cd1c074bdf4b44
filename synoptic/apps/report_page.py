"""What a report's page is made of, and how it becomes one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from synoptic.files import write_atomically


@dataclass(frozen=True)
class Bar:
    """One bar of a chart of fractions.

    Attributes:
        label: before it.
        value: its length, in [0, 1]; None where there is none.
        tone: number of its colour.
        shown: its value in words.
        span: lower and upper end of its uncertainty.
        strong: it stands out.
    """

    label: str
    value: float | None
    tone: int
    shown: str
    span: tuple[float, float] | None = None
    strong: bool = False


@dataclass(frozen=True)
class Chart:
    """Bars of one measure; `mark` is a line across them, such as chance, with what it means."""

    title: str
    note: str
    bars: Sequence[Bar]
    mark: tuple[float, str] | None = None


@dataclass(frozen=True)
class Charts:
    kind: ClassVar[str] = "charts"
    charts: Sequence[Chart]


@dataclass(frozen=True)
class Cell:
    """A cell of a table; `note` stands after its text, small."""

    text: str
    note: str = ""
    strong: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of cells, the first of each being its title; all others are numbers."""

    kind: ClassVar[str] = "table"
    head: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """A picture as a data URI.

    Attributes:
        alt: what it shows, for those who do not see it.
        caption: below it.
        right: marks it as right or wrong.
    """

    uri: str
    alt: str
    caption: str = ""
    right: bool | None = None


@dataclass(frozen=True)
class Gallery:
    """Pictures in rows and columns; a gap stands before the columns in `apart`."""

    kind: ClassVar[str] = "gallery"
    columns: Sequence[str]
    rows: Sequence[Sequence[Picture]]
    apart: Sequence[int] = ()
    legend: Sequence[tuple[str, str]] = ()  # colour, meaning
    note: str = ""


@dataclass(frozen=True)
class Card:
    """A picture with the labels that were thought likeliest."""

    picture: Picture
    title: str
    bars: Sequence[Bar]


@dataclass(frozen=True)
class Cards:
    kind: ClassVar[str] = "cards"
    cards: Sequence[Card]
    note: str = ""


@dataclass(frozen=True)
class Curve:
    """A plot as SVG with its title."""

    title: str
    svg: str


@dataclass(frozen=True)
class Curves:
    kind: ClassVar[str] = "curves"
    curves: Sequence[Curve]


@dataclass(frozen=True)
class Code:
    kind: ClassVar[str] = "code"
    text: str


@dataclass(frozen=True)
class Facts:
    """Names and values."""

    kind: ClassVar[str] = "facts"
    facts: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Details:
    """Blocks that are folded away under a line."""

    kind: ClassVar[str] = "details"
    summary: str
    blocks: Sequence[Block]


Block = Charts | Table | Gallery | Cards | Curves | Code | Facts | Details


@dataclass(frozen=True)
class Notice:
    """What a reader must not miss, in a box above all else.

    Attributes:
        title: what it is.
        text: what it means.
        mend: what helps.
    """

    title: str
    text: str
    mend: str


@dataclass(frozen=True)
class Section:
    """A part of the page: a title, paragraphs, and what they speak of."""

    title: str
    text: Sequence[str]
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """The whole report.

    Attributes:
        over: a line above the title, that says what this is.
        title: short.
        lead: the result in a few sentences.
        sections: in order.
        foot: how the page was made.
        notices: what went wrong.
    """

    over: str
    title: str
    lead: Sequence[str]
    sections: Sequence[Section]
    foot: str = ""
    notices: Sequence[Notice] = ()


def render(page: Page) -> str:
    """The page as HTML that needs nothing beside itself.

    Texts may hold anything; they are escaped.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("synoptic.apps", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(page=page)


def write(page: Page, path: Path) -> None:
    """Writes the page, whole or not at all."""
    html = render(page)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write(html.encode()))
