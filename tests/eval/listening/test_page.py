"""The page in a real browser: by mouse, by keyboard on a phone's window, and with a tab closed in between."""

import re
import shutil
import sqlite3

import pytest

from tokkata.eval.listening.definition import database_path
from tokkata.eval.listening.ratings import read_ratings
from tokkata.eval.listening.stimuli import load_manifest
from tokkata.tests.eval.listening.answering import served

CHROMIUM = shutil.which("chromium")
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "is_mobile": True}

pytestmark = [
    pytest.mark.chromium,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path: apt install chromium"),
]


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    arguments = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """`open_page(address, **context)`: a page that may complain about nothing, and ask nobody else."""
    contexts, complaints, asked = [], [], set()

    def complain(text):
        if "net::ERR_FAILED" not in text:  # what a lost network makes the browser say
            complaints.append(text)

    def open_at(address, **options):
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(20000)
        page.on("pageerror", lambda error: complain(str(error)))
        page.on("console", lambda message: message.type == "error" and complain(message.text))
        page.on("request", lambda request: asked.add(re.match(r"(\w+:(//[^/]+)?)", request.url)[1]))
        page.goto(address)
        return page

    yield open_at
    for context in contexts:
        context.close()
    assert complaints == []
    assert {host for host in asked if not host.startswith(("http://127.0.0.1:", "blob:", "data:"))} == set()


def place(page):
    return page.locator("#place").text_content()


def begin(page):
    page.get_by_role("button", name="I agree: begin").click()
    page.get_by_role("button", name="I have no headphones").click()
    page.locator("#stage .hint").wait_for()


def systems_shown(test):
    """For each trial in order, the systems of its clips from left to right."""
    stimuli = load_manifest(test).stimuli
    query = (
        "SELECT position, stimulus FROM clips JOIN trials ON trials.id = trial"
        " WHERE slot >= 0 ORDER BY position, slot"
    )
    shown = {}
    for position, stimulus in sqlite3.connect(database_path(test)).execute(query):
        shown.setdefault(position, []).append(stimuli[stimulus].system)
    return list(shown.values())


def test_a_whole_test_by_mouse(open_page, make_test, tmp_path, environment):
    two = [
        {"name": "quality", "question": "How good is it?"},
        {"name": "warmth", "question": "How warm is it?", "labels": ["Ice", "Cold", "Mild", "Warm", "Hot"]},
    ]
    test = make_test(tmp_path, items_per_listener=1, repeated_items=0, anchors_hz=[], attributes=two)
    clicked = []
    with served(test, environment) as (_, address, _):
        page = open_page(address)
        begin(page)
        while page.get_by_role("heading", name="Thank you").count() == 0:
            here = place(page)
            choices = page.get_by_role("radio")
            assert choices.first.is_disabled()
            page.get_by_role("button", name="Play the clip").click()
            page.locator("#stage fieldset:not(:disabled)").first.wait_for()
            for number, group in enumerate(page.get_by_role("group").all()):
                assert page.get_by_role("button", name="Next").is_disabled()
                value = (len(clicked) + 2 * number) % 5
                group.get_by_role("radio").nth(value).check()
                clicked.append((group.locator("legend").text_content(), value + 1))
            page.get_by_role("button", name="Next").click()
            page.wait_for_function("here => document.getElementById('place').textContent !== here", arg=here)
    ratings = read_ratings(test)
    words = {"quality": "How good is it?", "warmth": "How warm is it?"}
    count = "A short check: how many tones did you hear?"
    assert [(words.get(each.attribute, count), each.value) for each in ratings] == clicked
    assert [[each.system for each in ratings if each.trial == trial] for trial in trials_of(ratings)] == [
        shown * (1 if shown == ["attention"] else 2) for shown in systems_shown(test)
    ]
    assert all(each.listened_s >= 0.95 * each.duration_s for each in ratings)


def trials_of(ratings):
    return list(dict.fromkeys(rating.trial for rating in ratings))


def test_a_whole_test_by_keyboard_on_a_phone(open_page, make_test, tmp_path, environment):
    test = make_test(tmp_path, "ab", reference=None, items_per_listener=1, attention_items=0)
    pressed = []
    with served(test, environment) as (_, address, _):
        page = open_page(address, **PHONE)
        page.locator("h1").wait_for()

        def tab_to(name):
            for _ in range(40):
                page.keyboard.press("Tab")
                focused = page.evaluate("document.activeElement.textContent")
                if focused == name:
                    return page.keyboard.press("Enter")
            raise AssertionError(f"no way by keyboard to {name}")

        tab_to("I agree: begin")
        page.get_by_role("heading", name="Sound check").wait_for()
        tab_to("I have no headphones")
        for here in ("Practice", "2 of 3", "3 of 3"):
            page.get_by_text(here, exact=True).wait_for()
            assert page.evaluate("document.activeElement.textContent") == "Listen to both clips"
            page.keyboard.press("2")  # too early
            for name in ("a", "b"):
                page.keyboard.press(name)
                page.locator(".player").nth("ab".index(name)).and_(page.locator(".heard")).wait_for()
            assert page.locator(":checked:not(#shortcuts)").count() == 0
            page.keyboard.press("1")
            key = len(pressed) % 3 + 1
            page.keyboard.press(str(key))  # another thought
            page.keyboard.press("Enter")
            pressed.append(key)
        page.get_by_role("heading", name="Thank you").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    expected = []
    for key, shown in zip(pressed, systems_shown(test), strict=True):
        value = {1: 1.0, 2: 0.5, 3: 0.0}[key]
        expected.append(value if shown == ["zephyr", "quagga"] else 1.0 - value)
    ratings = read_ratings(test)
    assert [rating.value for rating in ratings] == expected
    assert {(rating.system, rating.against) for rating in ratings} == {("zephyr", "quagga")}


def test_a_tab_closed_in_the_middle_and_a_lost_network(open_page, make_test, tmp_path, environment):
    test = make_test(
        tmp_path, "mushra", items_per_listener=1, repeated_items=0, anchors_hz=[], attention_items=0
    )
    moved = []

    def answer(page):
        plays = page.get_by_role("button", name=re.compile("^Play (the reference|clip)"))
        sliders = page.get_by_role("slider")
        for number in range(plays.count()):
            assert sliders.first.is_disabled()
            page.locator(".play").nth(number).click()
            page.locator(".player").nth(number).and_(page.locator(".heard:not(.playing)")).wait_for()
        for number in range(sliders.count()):
            moved.append((17 * len(moved)) % 101)
            sliders.nth(number).fill(str(moved[-1]))
        return page.get_by_role("button", name="Next")

    with served(test, environment) as (_, address, _):
        page = open_page(address)
        begin(page)
        answer(page).click()
        page.get_by_text("2 of 2").wait_for()
        page.locator(".play").first.click()
        link = page.url
        assert "#" in link
        page.context.close()

        page = open_page(link)
        page.get_by_text("2 of 2").wait_for()
        following = answer(page)
        page.route("**/api/ratings", lambda route: route.abort(), times=1)
        following.click()
        page.get_by_text("This could not be saved.").wait_for()
        following.click()
        page.get_by_role("heading", name="Thank you").wait_for()
        assert page.locator("#notice").is_hidden()
    shown = [system for systems in systems_shown(test) for system in systems]
    ratings = read_ratings(test)
    assert [(rating.system, rating.value) for rating in ratings] == list(zip(shown, moved, strict=True))
    assert len(trials_of(ratings)) == 2


def test_a_wrong_link_and_no_invitation(browser, copy_test, tmp_path, environment):
    with served(copy_test(tmp_path), environment, "--invitations", "1") as (_, address, (link,)):
        page = browser.new_page()
        page.goto(link)
        page.get_by_role("button", name="I agree: begin").wait_for()
        for wrong in (address, f"{address}#{'a' * 22}"):
            page.goto("about:blank")
            page.goto(wrong)
            page.get_by_text("Please use the whole link that you were given.").wait_for()
        page.close()
