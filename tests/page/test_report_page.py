"""The comparison page in a real browser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select

from quantyard.store.manifest import Manifest
from tests.evaluations import LARGE, SMALL
from tests.manifests import manifest_of
from tests.page.conftest import Browser
from tests.unit.test_report_page import hostile, with_gate

Page = Callable[..., Path]
A4_PX = 794
pytestmark = pytest.mark.quick


def _tasks(browser: Browser, column: int) -> list[str]:
    return [cell.split("\n")[0] for cell in browser.texts(f"#tasks-table tbody tr > :nth-child({column})")]


def _sort(browser: Browser, table: str, column: int) -> str:
    button = browser.one(f"#{table}-table .columns th:nth-child({column}) button")
    browser.run("arguments[0].click()", button)
    return str(browser.one(f"#{table}-table .columns th:nth-child({column})").get_attribute("aria-sort"))


@pytest.mark.parametrize("manifest", [manifest_of(), with_gate(manifest_of(LARGE, n_tasks=12))], ids=["small", "large"])
def test_the_page_opens_without_a_complaint_and_asks_nobody_for_anything(
    browser: Browser, page: Page, manifest: Manifest
) -> None:
    path = page(manifest)
    browser.open(path)
    _sort(browser, "files", 2)
    browser.one("#theme").click()
    assert browser.complaints() == []
    assert set(browser.requests()) - {"data:,"} == {path.as_uri()}


def test_a_request_from_within_the_page_is_refused(browser: Browser, page: Page) -> None:
    browser.open(page(manifest_of()))
    browser.driver.set_script_timeout(10)
    tried = "fetch('https://example.com/').then(() => arguments[0]('sent'), () => arguments[0]('refused'))"
    assert browser.driver.execute_async_script(tried) == "refused"
    assert any("Content Security Policy" in complaint for complaint in browser.complaints())


def test_every_column_of_the_tasks_sorts_both_ways_and_says_so(browser: Browser, page: Page) -> None:
    browser.open(page(manifest_of()))
    for column in range(1, 9):
        values = "[...document.querySelectorAll('#tasks-table tbody tr')].map(r => r.cells[arguments[0]].dataset.sort)"
        assert _sort(browser, "tasks", column) == "ascending"
        up = browser.run(values, column - 1)
        expected = sorted(up, key=float) if column in (4, 5, 6, 7, 8) else sorted(up, key=str.casefold)
        assert up == expected and len(set(up)) > 1
        assert _sort(browser, "tasks", column) == "descending"
        assert [str(x) for x in browser.run(values, column - 1)] != up
        assert len(browser.driver.find_elements("css selector", "#tasks-table [aria-sort]")) == 1


def test_what_was_not_measured_is_sorted_last_either_way(browser: Browser, page: Page) -> None:
    browser.open(page(manifest_of(LARGE)))
    for _ in range(2):
        _sort(browser, "files", 5)  # ΔPPL, which the baseline has not
        assert browser.texts("#files-table tbody th.name bdi")[-1] == "BF16"


def test_tasks_are_filtered_by_file_verdict_and_text(browser: Browser, page: Page) -> None:
    browser.open(page(manifest_of(LARGE)))
    everything = len(_tasks(browser, 1))
    assert browser.one("#count").text == f"{everything} of {everything} rows"
    Select(browser.one("#by-file")).select_by_visible_text("Q2_K")
    assert set(_tasks(browser, 1)) == {"Q2_K"}
    Select(browser.one("#by-verdict")).select_by_visible_text("worse")
    assert set(_tasks(browser, 8)) == {"worse"}
    browser.one("#by-text").send_keys("ARC_E")
    assert set(_tasks(browser, 2)) == {"arc_easy"}
    assert browser.one("#count").text == f"1 of {everything} rows"
    browser.one("#by-text").send_keys("nothing like it")
    assert browser.one("#count").text == f"None of {everything} rows matches."
    browser.one("#clear").click()
    assert len(_tasks(browser, 1)) == everything


def test_a_file_is_taken_out_everywhere_by_its_name_and_comes_back(browser: Browser, page: Page) -> None:
    browser.open(page(manifest_of(LARGE)))
    seen = "[...document.querySelectorAll('main [data-file=\"4\"]')].filter(e => e.getClientRects().length).length"
    before, line = browser.run(seen), browser.one(".wide .front").get_attribute("points")
    assert browser.texts(".chip")[4] == "Q4_K_M" and before > 20
    browser.one('.chip[data-file="4"]').click()
    assert browser.run(seen) == 0
    assert browser.one('.chip[data-file="4"]').get_attribute("aria-pressed") == "false"
    assert "Q4_K_M" not in _tasks(browser, 1)
    assert browser.one(".wide .front").get_attribute("points") != line, "the front is that of the files in sight"
    browser.one("#all-files").click()
    assert browser.run(seen) == before
    assert browser.one(".wide .front").get_attribute("points").split() == line.split()


def test_a_file_is_no_longer_hollow_once_what_beats_it_is_taken_out(browser: Browser, page: Page) -> None:
    browser.open(page(manifest_of(LARGE)))
    winner = browser.texts(".chip").index("IQ4_XS")
    hollow = "[...document.querySelectorAll('.wide .point.beaten')].map(e => e.dataset.said.split('\\n')[0])"
    assert set(browser.run(hollow)) == {"Q4_0"}
    browser.one(f'.chip[data-file="{winner}"]').click()
    assert browser.run(hollow) == []
    browser.one("#all-files").click()
    assert set(browser.run(hollow)) == {"Q4_0"}


def test_a_point_tells_its_values_on_hover(browser: Browser, page: Page) -> None:
    from selenium.webdriver import ActionChains

    browser.open(page(manifest_of()))
    point = browser.one(".wide .point")
    browser.run("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", point)
    ActionChains(browser.driver).move_to_element(point).perform()
    assert browser.one("#tip").text.startswith("Q8_0\n1.17 GB\nmean KLD 0.00120 (")


def test_the_keyboard_reaches_buttons_and_points_and_goes_on_with_arrows(browser: Browser, page: Page) -> None:
    browser.open(page(manifest_of()))
    reached: dict[str, str] = {}
    for _ in range(120):
        browser.press(Keys.TAB)
        active = browser.driver.switch_to.active_element
        name = active.get_attribute("id") or (active.get_attribute("class") or "").split(" ")[0]
        if name == "spot" and "spot" not in reached and browser.run("!!document.activeElement.closest('.tradeoff')"):
            reached["spot"] = browser.one("#tip").text
            outline = browser.run("getComputedStyle(document.activeElement.querySelector('.hit')).stroke")
            assert outline != "none"
            browser.press(Keys.ARROW_RIGHT)
            reached["next spot"] = browser.one("#tip").text
            browser.press(Keys.ESCAPE)
            assert not browser.one("#tip").is_displayed()
        if name != "spot":
            reached.setdefault(name, active.text)
    assert {"skip", "theme", "all-files", "chip", "sort", "by-file", "by-verdict", "by-text", "clear"} <= set(reached)
    assert reached["spot"].startswith("Q8_0") and reached["next spot"].startswith("Q4_K_M")


def test_enter_on_a_point_picks_its_file_out_everywhere(browser: Browser, page: Page) -> None:
    browser.open(page(manifest_of()))
    browser.run("document.querySelector('.wide .point').focus()")
    browser.press(Keys.ENTER)
    picked = browser.run("[...new Set([...document.querySelectorAll('.picked')].map(e => e.dataset.file))]")
    assert picked == ["1"] and "picking" in browser.one("body").get_attribute("class")


def test_only_the_chosen_quality_is_shown(browser: Browser, page: Page) -> None:
    browser.open(page(manifest_of()))
    assert browser.texts(".tradeoff h3") == ["Mean KL divergence, nats per token"]
    browser.one("#quality button:last-child").click()
    assert browser.texts(".tradeoff h3") == ["Change of perplexity, %"]


def _ground(browser: Browser) -> tuple[int, ...]:
    colour = browser.run("getComputedStyle(document.body).backgroundColor")
    return tuple(int(x) for x in colour.removeprefix("rgb(").removesuffix(")").split(","))


def test_the_page_is_dark_where_the_reader_is_and_the_button_turns_it(browser: Browser, page: Page) -> None:
    path = page(manifest_of())
    browser.open(path, scheme="dark")
    assert max(_ground(browser)) < 40 and browser.one("#theme").get_attribute("aria-pressed") == "true"
    browser.one("#theme").click()
    assert min(_ground(browser)) > 240 and browser.one("#theme").get_attribute("aria-pressed") == "false"
    browser.open(path, scheme="light")
    assert min(_ground(browser)) > 240, "the choice is kept in memory alone"
    browser.one("#theme").click()
    assert max(_ground(browser)) < 40
    assert browser.run("document.cookie") == ""


@pytest.mark.parametrize("width", [320, 360, 768, 1280])
def test_the_page_never_scrolls_sideways(browser: Browser, page: Page, width: int) -> None:
    for manifest in (manifest_of(LARGE, n_tasks=12), hostile()):
        browser.open(page(manifest), width=width)
        assert browser.run("innerWidth") == width
        assert browser.run("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("width", [390, 1280])
def test_the_first_screen_names_the_file_its_size_what_it_costs_and_the_command(
    browser: Browser, page: Page, width: int
) -> None:
    browser.open(page(manifest_of()), width=width)
    wanted = {
        ".take": "Take Q8_0: 1.17 GB, agrees with", ".lead": "With less memory take Q4_K_M: 848 MB",
        ".download": "Download Q8_0", ".command": "llama-server -m ",
    }  # fmt: skip
    for query, text in wanted.items():
        element = browser.one(query)
        assert text in element.text
        assert browser.run("arguments[0].getBoundingClientRect().bottom", element) < 800


def test_on_a_phone_each_row_is_a_card_with_every_value_and_its_name_in_sight(browser: Browser, page: Page) -> None:
    browser.open(page(with_gate(manifest_of(LARGE, n_tasks=12))), width=390)
    cut = """[...document.querySelectorAll('tbody td')].filter(cell => {
        const box = cell.getBoundingClientRect();
        return cell.getClientRects().length && (box.right > innerWidth || cell.scrollWidth > cell.clientWidth + 1);
    }).length"""
    assert browser.run(cut) == 0
    name = "getComputedStyle(document.querySelector('#files-table tbody td'), '::before').content"
    assert browser.run(name) == '"Size"'
    assert browser.run("document.querySelector('#files .scroll').scrollWidth") <= 390


def test_on_paper_it_is_light_whole_and_without_controls(browser: Browser, page: Page) -> None:
    browser.open(page(with_gate(manifest_of(LARGE, n_tasks=12))), width=A4_PX, scheme="dark", media="print")
    assert min(_ground(browser)) > 240
    assert browser.run("document.documentElement.scrollWidth") <= A4_PX
    tables = "[...document.querySelectorAll('table')].map(t => t.getBoundingClientRect().right)"
    assert max(browser.run(tables)) <= A4_PX
    assert len(browser.texts(".tradeoff h3")) == 2
    assert browser.texts("#legend, #filters, #theme, nav") == []
    rows = browser.run("[...document.querySelectorAll('#tasks-table tr')].at(-1).getBoundingClientRect().bottom")
    assert rows <= browser.run("document.querySelector('#tasks .scroll').getBoundingClientRect().bottom") + 1


@pytest.mark.parametrize(("width", "form", "other"), [(360, "narrow", "wide"), (1280, "wide", "narrow")])
def test_the_drawing_that_fits_is_shown_with_letters_one_can_read(
    browser: Browser, page: Page, width: int, form: str, other: str
) -> None:
    browser.open(page(manifest_of(LARGE)), width=width)
    assert browser.one(f".{form}").is_displayed() and not browser.one(f".{other}").is_displayed()
    heights = browser.run(
        "[...document.querySelectorAll('svg.plot text')].filter(t => t.getClientRects().length)"
        ".map(t => parseFloat(getComputedStyle(t).fontSize) * t.getScreenCTM().a)"
    )
    assert min(heights) >= 10.0


_OVERLAPS = """(() => {
  const found = [];
  for (const svg of document.querySelectorAll('svg.plot')) {
    if (!svg.getClientRects().length) continue;
    const room = svg.getBoundingClientRect();
    const boxes = [...svg.querySelectorAll('text')].map(t => [t.textContent, t.getBoundingClientRect()]);
    boxes.forEach(([name, a], i) => {
      if (a.left < room.left - 1 || a.right > room.right + 1) found.push(name + ' is cut');
      for (const [other, b] of boxes.slice(i + 1))
        if (Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
            && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 4) found.push(name + ' covers ' + other);
    });
  }
  return found;
})()"""


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("quants", [SMALL, LARGE], ids=["small", "large"])
def test_no_name_in_a_plot_covers_another_or_is_cut(browser: Browser, page: Page, width: int, quants: Any) -> None:
    browser.open(page(manifest_of(quants, n_tasks=12)), width=width)
    assert browser.run(_OVERLAPS) == []
    browser.one("#quality button:last-child").click()
    assert browser.run(_OVERLAPS) == []


def test_a_hostile_manifest_runs_nothing_and_changes_nothing(browser: Browser, page: Page) -> None:
    path = page(hostile())
    browser.open(path)
    assert browser.run("window.planted") is None
    assert browser.complaints() == []
    assert browser.run("[...document.scripts].length") == 1
    assert browser.run("document.querySelectorAll('img, iframe, object, link:not([rel=icon]), form').length") == 0
    assert set(browser.requests()) - {"data:,"} == {path.as_uri()}
    assert "</script><script>window.planted = 1</script>" in browser.one("h1").text


def test_the_policy_stops_a_script_that_slipped_through(browser: Browser, page: Page) -> None:
    path = page(manifest_of())
    text = path.read_text()
    slipped = "<script>window.planted = 1</script><img src=x onerror='window.planted = 2'>"
    path.write_text(text.replace("<main", f"{slipped}<main", 1))
    browser.open(path)
    assert browser.run("window.planted") is None
    assert any("script-src" in complaint for complaint in browser.complaints())


def test_without_javascript_tables_and_plots_are_there_and_no_dead_buttons(browser: Browser, page: Page) -> None:
    browser.open(page(with_gate(manifest_of())), script=False)
    for query in ("#files-table", "#tasks-table", "#budgets-table", ".tradeoff .wide", "#task-1 + svg"):
        element = browser.one(query)
        assert element.is_displayed() and element.size["height"] > 60
    assert len(browser.texts(".tradeoff h3")) == 2, "both qualities, as nothing can choose"
    assert [b for b in browser.driver.find_elements("css selector", "button, select, input") if b.is_displayed()] == []
    assert browser.one(".tradeoff .wide").get_attribute("role") == "img"
