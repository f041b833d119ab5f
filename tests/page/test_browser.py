"""The page as people use it: by mouse, keyboard and screen reader, on a desk and a phone, while servers come and go."""

from __future__ import annotations

import json
import re
import signal
import threading
from pathlib import Path

import httpx
import pytest
from PIL import Image, ImageChops
from playwright.sync_api import Route, expect

from tests.needed import needs
from tests.page.conftest import Visit, Visitor, until
from tests.picture_service import ADMIN_KEY, KEY, MODEL, SEVERAL, PictureService

pytestmark = [
    pytest.mark.services,
    needs("chromium"),
    pytest.mark.xdist_group("network"),  # Chromium gives requests up when interfaces come and go
]

expect.set_options(timeout=30_000)  # as long as the page's other waits

CIRCLE = "a large red circle in the center on a white background"
PHONE = {"viewport": {"width": 360, "height": 740}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True}
LONG = "200"
"""Steps of a request that is to be met while it is under way."""


# --- create -----------------------------------------------------------------------------------------------------------


def test_a_service_with_keys_asks_for_one(visit: Visit) -> None:
    visitor = visit(keys=False)
    page = visitor.open()
    page.wait_for_selector("dialog[open]")
    expect(page.locator("dialog")).to_contain_text("Missing API key")
    page.fill("#key-api", KEY)
    page.click("dialog button[type=submit]")
    page.wait_for_selector("#model option", state="attached")
    expect(page.locator("#model")).to_have_value(MODEL)
    page.reload()  # it lasts as long as the tab
    page.wait_for_selector("#model option", state="attached")
    assert not page.locator("dialog[open]").count()
    assert "401" in visitor.complaint()  # Chromium's own line about the first answer


def test_a_picture_with_partial_ones_and_what_the_gallery_does_with_it(visit: Visit) -> None:
    visitor = visit()
    page = visitor.open()
    page.fill("#prompt", CIRCLE)
    page.fill("#seed", "1")
    passing = (".countdown", 'li[data-partial="true"] img', ".steps progress")
    visitor.remember(*passing)
    page.click("#generate")
    page.wait_for_selector('.state[data-state="done"]')
    assert visitor.remembered() == set(passing)
    page.wait_for_selector('li[data-partial="false"] img')
    first = visitor.picture(".pictures img")
    assert first.size == (256, 256)
    red, green, blue = first.getpixel((128, 128))
    assert red > 150 > max(green, blue)

    visitor.draw("a green heart on a white background", seed="2", n="2")
    expect(page.locator(".pictures li")).to_have_count(2)
    page.evaluate("scrollTo(0, 0)")
    visitor.keep_picture("page-create")
    assert visitor.axe() == []

    page.reload()  # the gallery outlives the page
    page.wait_for_selector(".gallery li")
    expect(page.locator(".gallery li")).to_have_count(3)
    entry = page.locator(".gallery li", has_text="red circle")
    entry.locator("summary").click()
    assert re.search(r"Seed\s+1\b", entry.inner_text())
    with page.expect_download() as download:
        entry.get_by_role("link", name="Download").click()
    assert download.value.suggested_filename == "picture-1.png"
    entry.get_by_role("button", name="Use these again").click()
    expect(page.locator("#prompt")).to_have_value(CIRCLE)
    expect(page.locator("#seed")).to_have_value("1")
    page.click("#generate")
    page.wait_for_selector('.state[data-state="done"]')
    page.wait_for_selector('.pictures li[data-partial="false"] img')
    assert ImageChops.difference(first, visitor.picture(".pictures img")).getbbox() is None
    entry.first.get_by_role("button", name="Delete").click()
    until(lambda: page.locator(".gallery li").count() == 3, "one picture fewer")


def test_the_form_offers_what_the_model_can_do(visit: Visit) -> None:
    page = visit().open()
    page.wait_for_selector("#model option", state="attached")
    sizes = page.locator("#size option").evaluate_all("options => options.map((option) => option.value)")
    edges = [[int(edge) for edge in size.split("x")] for size in sizes if "x" in size]
    assert len(edges) > 5
    for width, height in edges:
        assert width % 32 == height % 32 == 0
        assert width * height <= 1_572_864
    page.fill("#prompt", CIRCLE)
    page.select_option("#size", "custom")
    page.fill("#width", "3200")
    page.fill("#height", "3200")
    page.click("#generate")
    expect(page.locator(".problem")).to_contain_text("pixels")
    page.fill("#width", "100")
    assert page.eval_on_selector("#width", "input => input.validity.stepMismatch")


def test_the_request_as_code_is_what_the_page_sends(visit: Visit, service: PictureService) -> None:
    page = visit().open()
    page.wait_for_selector("#model option", state="attached")
    page.fill("#prompt", 'it\'s a "star"')
    page.fill("#seed", "9007199254740993")  # no JavaScript number
    page.fill("#steps", "2")
    page.click("text=This request as code")
    curl, python = page.locator(".code pre").all_inner_texts()
    assert f"{service.url}/v1/images/generations" in curl
    assert '"seed": 9007199254740993' in curl
    assert "'\\''" in curl
    compile(python, "python", "exec")
    for text in (curl, python):
        assert KEY not in text
    with page.expect_request("**/v1/images/generations") as sent:
        page.click("#generate")
    assert '"seed": 9007199254740993' in sent.value.post_data
    assert sent.value.headers["authorization"] == f"Bearer {KEY}"
    page.wait_for_selector('.state[data-state="done"]')
    expect(page.locator(".pictures")).to_contain_text("9007199254740993")


def test_a_picture_says_which_words_it_was_drawn_from(visit: Visit) -> None:
    page = visit().open()
    page.wait_for_selector("#model option", state="attached")
    written = "a crimson disc <b>in</b> soft light"

    def as_with_an_enhancer(route: Route) -> None:
        answer = route.fetch()
        told = json.dumps(written)
        route.fulfill(response=answer, body=answer.text().replace('"seed":', f'"revised_prompt":{told},"seed":'))

    page.route("**/v1/images/generations", as_with_an_enhancer)
    page.fill("#prompt", CIRCLE)
    page.click("#generate")
    page.wait_for_selector('.state[data-state="done"]')
    expect(page.locator(".pictures li")).to_contain_text(f"Drawn from: {written}")
    page.reload()  # the gallery keeps them
    entry = page.locator(".gallery li", has_text=CIRCLE).first
    entry.locator("summary").click()
    expect(entry.locator("dl")).to_contain_text(written)
    page.unroute("**/v1/images/generations")
    page.fill("#prompt", "a star of its own words")
    page.click("#generate")
    page.wait_for_selector('.state[data-state="done"]')
    expect(page.locator(".pictures li")).not_to_contain_text("Drawn from")


def test_an_edit_within_a_painted_mask(visit: Visit) -> None:
    visitor = visit()
    page = visitor.open()
    visitor.draw(CIRCLE, seed="1", partials="0")
    before = visitor.picture(".pictures img")
    page.get_by_role("button", name="Edit", exact=True).click()
    page.click("#paint-mask")
    box = page.locator("#mask").bounding_box()
    page.locator("#mask").scroll_into_view_if_needed()
    box = page.locator("#mask").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.2, box["y"] + box["height"] * 0.2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + box["height"] * 0.3, steps=5)
    page.mouse.up()
    until(lambda: page.inner_text("[aria-live]") == "Mask changed", "the mask is announced")
    visitor.keep_picture("page-mask", clip=page.locator("fieldset").bounding_box())
    assert visitor.axe() == []
    with page.expect_request("**/v1/images/edits"):
        visitor.draw("a large blue circle on a white background", seed="3")
    after = visitor.picture(".pictures img")
    assert ImageChops.difference(before, after).crop((0, 150, 256, 256)).getbbox() is None, "outside the mask"
    assert ImageChops.difference(before, after).crop((40, 40, 110, 90)).getbbox() is not None, "within the mask"


def test_several_pictures_for_a_model_that_takes_them(visit: Visit, tmp_path: Path) -> None:
    files = []
    for colour in ("red", "blue"):
        files.append(tmp_path / f"{colour}.png")
        Image.new("RGB", (64, 64), colour).save(files[-1])
    visitor = visit()
    page = visitor.open()
    page.wait_for_selector("#model option", state="attached")
    page.set_input_files("#pictures", files[:1])
    expect(page.locator("#paint-mask")).to_be_visible()
    page.select_option("#model", SEVERAL)
    page.locator("#paint-mask").wait_for(state="detached")  # it edits, but within no mask
    expect(page.locator("#pictures")).to_have_js_property("multiple", True)
    page.set_input_files("#pictures", files[1:])
    until(lambda: page.locator(".uploads li").count() == 2, "both pictures")
    with page.expect_request("**/v1/images/edits"):
        visitor.draw("both", seed="1")
    assert visitor.picture(".pictures img").size == (64, 64)
    page.select_option("#model", MODEL)
    page.click("#generate")
    expect(page.locator(".problem")).to_have_text("This model takes 1 picture at most.")


def test_cancelling_stops_the_work_on_the_servers(visit: Visit, service: PictureService) -> None:
    page = visit().open()
    page.wait_for_selector("#model option", state="attached")
    page.fill("#prompt", CIRCLE)
    page.fill("#steps", LONG)
    page.click("#generate")
    page.wait_for_selector(".steps progress", state="attached")
    assert not service.is_idle()
    page.click("#cancel")
    page.wait_for_selector('.state[data-state="cancelled"]')
    expect(page.locator("#generate")).to_be_visible()
    until(service.is_idle, "servers without jobs")


def test_a_refusal_is_told_in_the_gateways_words(visit: Visit) -> None:
    visitor = visit()
    page = visitor.open()
    page.wait_for_selector("#model option", state="attached")
    page.route("**/v1/images/generations", lambda route: route.continue_(post_data='{"prompt": "x", "n": 11}'))
    page.fill("#prompt", CIRCLE)
    page.click("#generate")
    page.wait_for_selector('.state[data-state="failed"]')
    expect(page.locator(".problem")).to_contain_text("at most 10")
    assert "400" in visitor.complaint()  # Chromium's own line


# --- without a mouse, without a screen, on a phone --------------------------------------------------------------------


def focus(visitor: Visitor, selector: str, most: int = 60) -> None:
    """Press Tab until it is there."""
    for _ in range(most):
        if visitor.page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
        visitor.page.keyboard.press("Tab")
    raise AssertionError(f"{selector} cannot be reached with Tab")


def test_everything_by_keyboard(visit: Visit) -> None:
    visitor = visit()
    page = visitor.open()
    page.wait_for_selector("#model option", state="attached")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    focus(visitor, "#prompt")
    page.keyboard.type(CIRCLE)
    focus(visitor, "#seed")
    page.keyboard.type("1")
    focus(visitor, "#generate")
    page.keyboard.press("Enter")
    page.wait_for_selector('.state[data-state="done"]')
    until(lambda: page.inner_text("[aria-live]") == "Done: 1 picture(s)", "the end is announced")

    page.evaluate("document.activeElement.blur()")
    focus(visitor, ".gallery button:nth-of-type(2)")
    page.keyboard.press("Enter")  # Edit, which leads to the prompt
    until(lambda: page.evaluate("document.activeElement.id") == "prompt", "focus on the prompt")
    focus(visitor, "#paint-mask")
    page.keyboard.press("Enter")
    page.wait_for_selector("#mask")
    focus(visitor, "#mask")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    until(lambda: page.inner_text("[aria-live]") == "Mask changed", "the mask is announced")

    focus(visitor, '.top a[href="#pipeline"]', most=120)
    page.keyboard.press("Enter")
    until(lambda: page.evaluate("document.activeElement.id") == "main", "focus on the view")
    page.wait_for_selector('[data-server="encoder"]')
    focus(visitor, '[data-server="encoder"] button:nth-of-type(2)')
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog[open]")
    page.keyboard.press("Escape")
    until(lambda: not page.locator("dialog[open]").count(), "the dialog is closed")


@pytest.mark.parametrize("view", ["create", "pipeline", "usage"])
def test_on_a_phone(visit: Visit, view: str) -> None:
    visitor = visit(**PHONE)
    page = visitor.open(view)
    page.wait_for_selector({"create": "#n", "pipeline": ".gantt, .servers", "usage": "table"}[view])
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert visitor.axe() == []
    visitor.keep_picture(f"page-{view}-phone")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("view", ["create", "pipeline", "usage"])
def test_axe_finds_nothing_serious(visit: Visit, view: str, scheme: str) -> None:
    visitor = visit(color_scheme=scheme)
    page = visitor.open(view)
    page.wait_for_selector({"create": "#n", "pipeline": ".servers", "usage": "table"}[view])
    assert visitor.axe() == []
    page.click(".top .tools button")
    page.wait_for_selector("dialog[open]")
    assert visitor.axe() == []


def test_the_theme_is_the_users_choice(visit: Visit) -> None:
    visitor = visit(color_scheme="light")
    page = visitor.open()
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.select_option("#theme", "dark")
    dark = page.evaluate(ground)
    assert light != dark
    page.reload()
    page.wait_for_selector("#theme")
    assert page.evaluate(ground) == dark


# --- usage ------------------------------------------------------------------------------------------------------------


def test_usage_and_limits(visit: Visit, service: PictureService) -> None:
    answer = httpx.post(
        f"{service.url}/v1/images/generations",
        headers={"authorization": f"Bearer {KEY}"},
        json={"prompt": CIRCLE, "num_inference_steps": 1},
        timeout=120,
    )
    assert answer.status_code == 200
    visitor = visit()
    page = visitor.open("usage")
    page.wait_for_selector("table >> text=Requests per minute")
    expect(page.locator("table").first).to_contain_text("1000")

    def told() -> bool:  # a request appears within two seconds
        page.reload()
        page.wait_for_selector('h2:has-text("Used") ~ *')
        page.wait_for_timeout(300)
        return "static:pictures" in page.inner_text("main")

    until(told, "what the key used")
    visitor.keep_picture("page-usage")
    page.select_option("#whose", "all")
    page.wait_for_selector("table >> text=pictures")


# --- pipeline: last, as a server is killed ----------------------------------------------------------------------------


def test_the_pipeline_asks_for_the_admin_key(visit: Visit) -> None:
    page = visit(keys=False).open("pipeline")
    page.wait_for_selector("text=it needs the admin key")
    page.click("text=Enter the admin key")
    page.fill("#key-admin", ADMIN_KEY)
    page.click("dialog button[type=submit]")
    page.wait_for_selector('[data-server="spare"]')


def test_the_pipeline_under_load_while_a_role_moves_and_a_server_is_killed(
    visit: Visit, service: PictureService
) -> None:
    visitor = visit(viewport={"width": 1200, "height": 1400})
    page = visitor.open("pipeline")
    page.wait_for_selector('[data-server="spare"]')
    expect(page.locator(".server")).to_have_count(5)
    over = threading.Event()
    loads = [threading.Thread(target=keep_asking, args=(service, over, seed)) for seed in range(4)]
    for load in loads:
        load.start()
    try:
        page.wait_for_selector('[data-server="dit"] .job:has-text("step")')

        spare = page.locator('[data-server="spare"]')
        spare.get_by_role("button", name="Pin").click()
        page.click('dialog button:has-text("Pin")')
        spare.locator(".chip", has_text="pinned").wait_for()
        spare.get_by_role("button", name="Unpin").click()
        page.click('dialog button:has-text("Unpin")')
        spare.locator(".chip", has_text="pinned").wait_for(state="detached")

        spare.get_by_role("button", name="Roles").click()
        page.get_by_role("checkbox", name="Decoder").uncheck()
        page.get_by_role("checkbox", name="Transformer").check()
        page.click("text=Give these roles")
        spare.locator('.chip[data-role="dit"]').wait_for()
        spare.locator('.chip[data-role="decoder"]').wait_for(state="detached")
        page.wait_for_selector(".news >> text=was ordered to hold dit")
        page.wait_for_selector(".news >> text=holds dit now")
        spare.locator(".job", has_text="dit").first.wait_for()

        page.locator('[data-server="encoder"]').get_by_role("button", name="Drain").click()
        page.click('dialog button:has-text("Drain")')
        page.wait_for_selector("dialog >> text=is the last server that serves encoder")
        assert "409" in visitor.complaint()  # Chromium's own line
        page.keyboard.press("Escape")

        page.wait_for_selector('tr[data-state="done"]')
        page.locator('tr[data-state="done"] a').first.click()
        page.wait_for_selector(".gantt rect")
        page.wait_for_selector("text=/Why: [1-9]/")
        until(lambda: page.locator(".u-legend .u-series").count() >= 8, "both charts")
        assert visitor.axe() == []
        page.evaluate("scrollTo(0, 0)")
        visitor.keep_picture("page-pipeline")
        visitor.keep_picture("page-request", clip=page.locator(".life").bounding_box(), full_page=True)

        service.processes["spare"].popen.send_signal(signal.SIGKILL)
        page.wait_for_selector('.news [data-kind="lost"]:has-text("spare")')
        spare.wait_for(state="detached")
        expect(page.locator(".server")).to_have_count(4)
    finally:
        over.set()
        for load in loads:
            load.join()
    until(lambda: page.locator('tr[data-state="computing"], tr[data-state="waiting"]').count() == 0, "all is over")
    assert page.locator('tr[data-state="failed"]').count() == 0
    streams = [address for address in visitor.addresses if address.endswith("/admin/pipeline")]
    assert len(streams) == 1, "one stream, and no polling"


def keep_asking(service: PictureService, over: threading.Event, seed: int) -> None:
    with httpx.Client(base_url=service.url, headers={"authorization": f"Bearer {KEY}"}, timeout=300) as client:
        while not over.is_set():
            body = {"prompt": CIRCLE, "seed": seed}
            assert client.post("/v1/images/generations", json=body).status_code == 200
