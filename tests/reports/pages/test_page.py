"""A page is one file that loads nothing, escapes everything and reads well in a browser."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from dacconv.reports import pages, plots
from dacconv.reports.pages import Cell, Code, Column, Fact, Group, Groups, Page, Picture, Section
from dacconv.reports.plots.style import INK, new_figure
from tests import browser

EVIL = "</code><script>window.evil = 1</script><img src=x onerror=alert(1)>"


def picture() -> Picture:
    figure, axes = new_figure()
    axes.plot([1, 2], [3, 4], color=INK)
    return Picture(plots.svg(figure), f"a line {EVIL}")


def page(name: str = "conv") -> Page:
    rows = tuple(
        pages.Row((Cell(f"{name}{n}", n), Cell(text, key)), "split", "rank 2", f"layer-{n}", str(n))
        for n, (text, key) in enumerate([("10 k", 1e4), ("?", None), ("9", 9.0)], 1)
    )
    table = pages.Table((Column("layer", number=False), Column("MACs")), rows, (("total", "?"),))
    tiles = tuple(pages.Tile(f"{name}{n}", "split", 0.5, f"layer-{n}") for n in range(1, 160))
    blocks = (
        pages.Strip(tiles, {"split": name}),
        table,
        pages.Pictures((picture(),)),
        pages.Bullets((name,)),
        Groups((Group(name, (name,)),)),
        pages.Terms(((name, name),)),
        Code(name, name),
    )
    return Page(name, name, (Fact("37 %", name, name),), (Section(name, blocks),), (name,), name)


class Outline(HTMLParser):
    """Which tags there are, and everything that could load something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]
        assert not [name for name, _ in attrs if name.startswith("on")]


def test_a_page_loads_nothing() -> None:
    text = pages.render(page())
    outline = Outline(text)
    assert not {"link", "iframe", "img", "object", "base"} & set(outline.tags)
    assert all(link.startswith("#") for link in outline.links)
    addresses = set(re.findall(r"https?://[^\s\"'<]+", text))
    assert all(address.startswith("http://www.w3.org/") for address in addresses)
    assert not re.search(r"@import|url\((?!#)", text)


def test_whatever_a_model_is_called_is_text() -> None:
    text = pages.render(page(EVIL))
    outline = Outline(text)
    assert outline.tags.count("script") == 1
    assert "img" not in outline.tags
    assert "&lt;script&gt;" in text


def test_the_same_page_gives_the_same_bytes() -> None:
    assert pages.render(page()) == pages.render(page())


def test_pictures_follow_the_page_from_light_to_dark() -> None:
    text = pages.render(page())
    assert "var(--ink)" in text[text.index("<svg") : text.index("</svg>")]
    assert INK not in text[text.index("<svg") : text.index("</svg>")]


def test_the_script_runs_and_sorts(tmp_path) -> None:
    chromium = browser.find(tmp_path)
    target = tmp_path / "page.html"
    target.write_text(pages.render(page(EVIL)), encoding="utf-8")
    dom, console = chromium.dom(target)
    assert console == []
    assert "window.evil" in dom  # as text
    head = dom[dom.index("<thead") : dom.index("</thead>")]
    assert head.count("<button") == 2
    click = """
        const heads = document.querySelectorAll("thead button");
        const keys = () => [...document.querySelectorAll("tbody tr")].map((r) => r.id).join();
        const told = [keys()];
        for (const column of [1, 1, 0, 0]) { heads[column].click(); told.push(keys()); }
        told.push(document.documentElement.scrollWidth <= innerWidth, String(window.evil));
        document.title = told.join("; ");
    """
    dom, console = chromium.dom(target, width=390, then=click)  # as narrow as it goes
    assert console == []
    title = re.search(r"<title>(.*)</title>", dom)
    assert title is not None
    one, two, three = "layer-1", "layer-2", "layer-3"
    orders = [
        (one, two, three),
        (one, three, two),  # the largest first, what is unknown last
        (three, one, two),
        (one, two, three),
        (three, two, one),
    ]
    assert title[1].split("; ") == [*map(",".join, orders), "true", "undefined"]


@pytest.mark.parametrize("dark", [False, True])
def test_light_and_dark(tmp_path, dark: bool) -> None:
    from PIL import Image

    chromium = browser.find(tmp_path)
    target = tmp_path / "page.html"
    target.write_text(pages.render(page()), encoding="utf-8")
    with Image.open(chromium.screenshot(target, width=390, dark=dark)) as image:
        grey = image.convert("L").resize((1, 1)).getpixel((0, 0))
        assert image.width == 390
    assert grey < 90 if dark else grey > 165
