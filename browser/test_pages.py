"""The built book in a real browser: `make browser`, after `make book`. No part of `make test`.

Chromium is the one that CHROMIUM names, else the system's, else Playwright's own.
"""

import os
import re
import shutil
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlparse

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, sync_playwright
from transformers import AutoTokenizer

from dfl_utils.world import annotations

ROOT = Path(__file__).parents[1]
SITE = Path(os.environ.get("DFL_SITE") or ROOT / "_build" / "html")
PAGES = sorted(page.stem for page in SITE.glob("*.html"))
MAIN = ("index", "summary", "scoreboard", "scores", "glossary", "play", "finding_caption", "foils", "finetuning")
WIDTHS, THEMES = (390, 820, 1400), ("light", "dark")
MB = 2**20
OVERFLOW = "document.documentElement.scrollWidth - window.innerWidth"
# What can be reached of a table's last column: it lies in the page, or in a box that scrolls.
CUT = """() => [...document.querySelectorAll(".bd-content table")].filter((table) => {
    if (table.getBoundingClientRect().right <= window.innerWidth + 1) return false;
    for (let box = table.parentElement; box; box = box.parentElement)
        if (["auto", "scroll"].includes(getComputedStyle(box).overflowX)) return false;
    return true;
}).map((table) => table.caption?.textContent ?? table.textContent.slice(0, 60))"""
NO_ALT = """() => [...document.querySelectorAll("img, .plot")]
    .filter((image) => !image.alt && !image.ariaLabel).map((image) => image.outerHTML.slice(0, 80))"""

# What the page's tokenizer makes of captions.
CUTS = """(exhibit, [captions, name]) => captions.map((caption) => {
    const field = exhibit.querySelector("input");
    field.value = caption;
    field.dispatchEvent(new Event("input"));
    return [...exhibit.querySelectorAll(`.pieces-${name} code`)].map((piece) => piece.textContent);
})"""
ODD = (
    "",
    "Ünïcödé – “quoted” 100 %",
    "don't won't we're I'll",
    "日本 tram 🚋!?",
    "x" * 101,
    "ΟΔΟΣ  a\tb",
    "half-eaten #1 $5",
)


@pytest.fixture(scope="session")
def chromium():
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium, request):
    """A page of a width and a theme, which ends the test when it asks for anything off the site or reports an error."""
    width, theme = getattr(request, "param", (1400, "light"))
    look = {"viewport": {"width": width, "height": 900}, "color_scheme": theme, "reduced_motion": "reduce"}
    context = chromium.new_context(**look)
    tab, wrong = context.new_page(), []
    tab.set_default_timeout(120_000)
    tab.on("request", lambda asked: asked.url.startswith(("file:", "data:")) or wrong.append(asked.url))
    tab.on("console", lambda said: said.type == "error" and wrong.append(said.text))
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    yield tab
    context.close()
    assert wrong == []


def see(page: Page, name: str) -> None:
    page.goto((SITE / f"{name}.html").as_uri())


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("page", [(width, theme) for width in WIDTHS for theme in THEMES], indirect=True, ids=str)
def test_a_page_fits_its_window_and_every_image_is_described(page, name):
    see(page, name)
    assert page.evaluate(OVERFLOW) <= 0
    assert page.evaluate(CUT) == []
    assert page.evaluate(NO_ALT) == []


@pytest.mark.parametrize("name", MAIN)
@pytest.mark.parametrize("page", [(390, "light"), (1400, "dark")], indirect=True, ids=str)
def test_axe_finds_nothing_serious_and_text_has_contrast(page, name):
    see(page, name)
    found = Axe().run(page, options={"preload": False}).response["violations"]
    serious = [one for one in found if one["impact"] in ("serious", "critical")]
    assert [(one["id"], [node["target"] for node in one["nodes"]]) for one in serious] == []


@pytest.mark.parametrize("page", [(width, "light") for width in (390, 1400)], indirect=True, ids=str)
def test_the_scoreboard_sorts_and_filters(page):
    see(page, "scoreboard")
    board = page.locator("#claims")
    rows, n = board.locator("tbody tr:visible"), board.locator("thead th").nth(5)
    whole = rows.count()
    n.locator("button").press("Enter")
    assert n.get_attribute("aria-sort") == "ascending"
    numbers = [int(text or 0) for text in board.locator("tbody td:nth-child(6)").all_text_contents()]
    assert numbers == sorted(numbers)
    n.locator("button").press("Enter")
    assert n.get_attribute("aria-sort") == "descending"
    bar = page.locator(".board-filter").last
    bar.get_by_label("Verdict").select_option("agrees")
    agree = rows.count()
    assert 0 < agree < whole and set(board.locator("tbody tr:visible .verdict").all_text_contents()) == {"agrees"}
    bar.get_by_label("Contains").fill("no such claim")
    assert rows.count() == 0 and bar.get_by_role("status").text_content() == f"0 of {whole} lines"


@pytest.mark.parametrize("page", [(360, "light"), (1400, "dark")], indirect=True, ids=str)
def test_both_telephone_games_are_played_by_keyboard(page):
    see(page, "play")
    for number in range(2):
        game = page.locator(".play-telephone").nth(number)
        choices, rounds = game.locator("input[type=radio]"), game.locator("option").count()
        for k in range(rounds):
            game.locator("select").focus()
            if k:
                page.keyboard.press("ArrowDown")
            assert game.locator(".outcome li").count() == 0
            choices.first.focus()
            page.keyboard.press("Space")
            page.keyboard.press("Enter")
            assert game.locator(".outcome li").count() == choices.count()
            assert re.match(r"You picked the (\d+\w\w )?best \w+ of \d+", game.get_by_role("status").text_content())
        assert game.locator("caption").text_content() == f"After {rounds} of {rounds}"
    assert page.evaluate(OVERFLOW) <= 0


def test_rank_and_score_follow_what_is_chosen(page):
    see(page, "play")
    exhibit = page.locator(".play-curves")
    status, before = exhibit.get_by_role("status"), exhibit.get_by_role("status").text_content()
    for name, steps in (("judge", 1), ("score", 1), ("candidates", -2)):
        exhibit.get_by_label(name).focus()
        for _ in range(abs(steps)):
            page.keyboard.press("ArrowDown" if steps > 0 else "ArrowUp")
        assert status.text_content() != before
        before = status.text_content()
    ranks = int(exhibit.get_by_label("candidates").input_value())
    assert exhibit.locator("circle").count() == ranks == exhibit.locator("details tbody tr").count() - 1


def test_a_judges_cost_is_said_where_it_is_reached(page):
    see(page, "score_dont_draw")
    front = page.locator(".play-front")
    for point in front.locator("g").all():
        point.focus()
        assert front.get_by_role("status").text_content() == point.get_attribute("aria-label")


def test_the_pages_tokenizers_cut_as_transformers_do(page):
    see(page, "tokenizer")
    exhibit = page.locator(".play-tokens")
    field = exhibit.get_by_label("Your caption")
    field.press("End")
    field.type(" x")
    folder, captions = ROOT / "data" / "mini", [one.text for one in annotations.coco_captions("train2014")[::2070]]
    for name, place in (("BLIP", "blip-base"), ("CLIP", "stable-diffusion/tokenizer")):
        tokenizer = AutoTokenizer.from_pretrained(folder / place)
        found = exhibit.evaluate(CUTS, [[*captions, *ODD], name])
        assert found == [tokenizer.tokenize(text) for text in [*captions, *ODD]]


def test_internal_links_resolve(page):
    places, links = {}, {}
    for name in PAGES:
        see(page, name)
        places[name] = set(page.evaluate("() => [...document.querySelectorAll('[id]')].map((part) => part.id)"))
        links[name] = page.evaluate("() => [...document.querySelectorAll('.bd-main a[href]')].map((link) => link.href)")
    lost = []
    for name, addresses in links.items():
        for address in addresses:
            path, place = urldefrag(address)
            if not path.startswith("file:"):
                continue
            target = Path(unquote(urlparse(path).path))
            if not target.exists() or (place and target.stem in places and unquote(place) not in places[target.stem]):
                lost.append(f"{name}: {address.rpartition('/')[2]}")
    assert lost == []


@pytest.mark.parametrize("page", [(1400, "dark")], indirect=True, ids=str)
def test_paper_is_white_and_the_dark_theme_comes_back(page):
    see(page, "cost")
    page.evaluate("window.onbeforeprint = () => (window.printed = document.documentElement.dataset.theme)")
    page.pdf()
    assert page.evaluate("[window.printed, document.documentElement.dataset.theme]") == ["light", "dark"]


def test_search_finds_a_word_of_the_text(page):
    see(page, "search")
    page.goto(f"{(SITE / 'search.html').as_uri()}?q=hippopotamus")
    page.wait_for_selector("#search-results li")


def test_the_site_is_small():
    sizes = {path: path.stat().st_size for path in SITE.rglob("*") if path.is_file()}
    assert sum(sizes.values()) <= 40 * MB


def test_every_icon_is_drawn(page):
    for name in PAGES:
        see(page, name)
        page.wait_for_function("() => !document.querySelector('i.fas, i.far, i.fab, i.fa-solid, i.fa-brands')")
        assert page.locator("svg .missing").count() == 0, name


def test_the_first_page_loads_one_megabyte_at_most(page):
    loaded = {}
    page.on("requestfinished", lambda asked: loaded.update({asked.url: None}))
    see(page, "index")
    page.wait_for_load_state("networkidle")
    files = {Path(unquote(urlparse(url).path)) for url in loaded if url.startswith("file:")}
    sizes = {path.name: path.stat().st_size for path in files}
    assert sum(sizes.values()) <= MB, sizes
