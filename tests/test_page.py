"""The page, used in a real browser as people use it: by mouse, keyboard, and on a small screen."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from pfms.storage.workspace import Workspace
from tests import tokens
from tests.browser import Tab, a_browser, a_tab
from tests.conftest import Server, nifti_bytes, seed_model, start
from tests.test_job import job
from tests.test_records import ids

VOLUME = nifti_bytes((60, 60, 40))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with a_browser() as one:
        yield one


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose models are the names of fake plugins."""
    workspace = tmp_path_factory.mktemp("page") / "workspace"
    seed_model(workspace)
    for name in ("staged", "raises"):
        seed_model(workspace, name, name.encode())
    one = start(workspace, "as_the_model_says.py", root_path="/pfms", jobs_per_device=2)
    yield one
    one.stop()


@pytest.fixture
def tab(browser: Browser, served: Server, tmp_path: Path) -> Iterator[Tab]:
    with a_tab(browser, served, tmp_path) as one:
        yield one.open()


class Row:
    """A run in the list."""

    def __init__(self, tab: Tab, name: str) -> None:
        self.link = tab.page.locator("#runs").get_by_role("link", name=name)
        self.item = tab.page.locator("#runs > li").filter(has_text=name)
        self.badge = self.item.locator(".badge")

    def press(self, word: str) -> None:
        self.item.get_by_role("button", name=word).click()


def job_of(tab: Tab) -> str:
    """The run that is shown."""
    return tab.page.url.partition("#job=")[2]


def check_accessible(page: Page) -> None:
    """No fault that axe-core calls serious or critical, in light and in dark colours."""
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        serious = [
            (fault["id"], [node["html"] for node in fault["nodes"]])
            for fault in Axe().run(page).response["violations"]
            if fault["impact"] in ("serious", "critical")
        ]
        assert serious == [], scheme


# --- runs ------------------------------------------------------------------------------------


def test_volumes_that_are_dropped_are_segmented_and_shown(tab: Tab, tmp_path: Path) -> None:
    tab.drop(first__nii__gz=VOLUME, second__nii__gz=nifti_bytes(), third__nii=nifti_bytes(seed=3))
    for name in ("first.nii.gz", "second.nii.gz", "third.nii"):
        expect(Row(tab, name).badge).to_have_text("Done")

    Row(tab, "first.nii.gz").link.click()
    expect(tab.page.locator("#run-title")).to_be_focused()
    expect(tab.page.locator("#run-summary")).to_contain_text("Done. Spleen 486 ml")
    picture = tab.page.get_by_role("img", name="outline of the spleen")
    assert picture.evaluate("(image) => image.decode().then(() => image.naturalWidth)") > 500
    expect(tab.page.locator("#facts")).to_contain_text("60 × 60 × 40 voxels of 3 × 3 × 3 mm")
    expect(tab.page.locator("#command")).to_contain_text("--mode inference --device cpu")
    tab.page.get_by_text("Log of the plugin").click()
    expect(tab.page.locator("#log")).to_contain_text("novel inference")
    expect(tab.page.locator("#runs img[src^=blob]")).to_have_count(3)
    check_accessible(tab.page)

    with tab.page.expect_download() as download:
        tab.page.get_by_role("button", name="Download the segmentation").click()
    assert download.value.suggested_filename == "first-spleen.nii.gz"
    download.value.save_as(tmp_path / "labels.nii.gz")
    expected = tab.server.http.get(f"/jobs/{job_of(tab)}/result").content
    assert (tmp_path / "labels.nii.gz").read_bytes() == expected


def test_a_run_shows_its_stages_and_can_be_cancelled(tab: Tab) -> None:
    cancel_a_run(tab)


def cancel_a_run(tab: Tab) -> None:
    tab.page.get_by_label("Model").first.select_option("staged")
    tab.drop(long__nii__gz=VOLUME)
    Row(tab, "long.nii.gz").link.click()
    summary = tab.page.locator("#run-summary")
    expect(summary).to_contain_text("Running. Reading the volume")
    (tab.server.workspace / tab.server.job(job_of(tab))["folder"] / "infer").touch()
    expect(summary).to_contain_text("Running. Network")
    expect(tab.page.get_by_role("progressbar", name="Progress of this run")).to_be_visible()
    check_accessible(tab.page)

    Row(tab, "long.nii.gz").press("Cancel")
    expect(Row(tab, "long.nii.gz").badge).to_have_text("Cancelled")
    expect(summary).to_contain_text("Cancelled")
    assert tab.server.job(job_of(tab))["state"] == "cancelled"


def test_a_failed_run_says_why_and_what_to_do(tab: Tab) -> None:
    read_an_error(tab)
    about = tab.page.get_by_role("link", name="About plugin-failed").get_attribute("href")
    assert about == f"{tab.server.url}/pfms/docs/errors#plugin-failed"


def read_an_error(tab: Tab) -> None:
    tab.page.get_by_label("Model").first.select_option("raises")
    tab.drop(bad__nii__gz=VOLUME)
    expect(Row(tab, "bad.nii.gz").badge).to_have_text("Failed")
    Row(tab, "bad.nii.gz").link.click()
    trouble = tab.page.locator("#run-trouble")
    error = tab.server.job(job_of(tab))["error"]
    for word in (error["title"], error["detail"], "What to do: ", error["remedy"]):
        expect(trouble).to_contain_text(word)
    check_accessible(tab.page)


def test_a_run_is_repeated_and_removed_and_the_list_is_filtered(tab: Tab) -> None:
    tab.drop(again__nii__gz=VOLUME)
    expect(Row(tab, "again.nii.gz").badge).to_have_text("Done")
    Row(tab, "again.nii.gz").press("Rerun")
    expect(Row(tab, "again.nii.gz").badge).to_have_text(["Done", "Done"])
    expect(tab.page.locator("#facts")).to_contain_text("Rerun of")

    repeated = job_of(tab)
    shown = tab.page.locator("#runs > li:has([aria-current])")
    shown.get_by_role("button", name="Remove").click()
    check_accessible(tab.page)
    tab.page.get_by_role("dialog").get_by_role("button", name="Remove").click()
    expect(Row(tab, "again.nii.gz").link).to_have_count(1)
    expect(tab.page.locator("#run")).to_be_hidden()
    assert tab.server.http.get(f"/jobs/{repeated}").status_code == 404

    tab.page.get_by_label("State").select_option("Failed")
    expect(Row(tab, "again.nii.gz").link).to_have_count(0)
    tab.page.get_by_label("State").select_option("Done")
    expect(Row(tab, "again.nii.gz").link).to_have_count(1)
    tab.page.locator("#filter-model").select_option("staged")
    expect(tab.page.get_by_text("There is no run to show")).to_be_visible()


def test_a_long_list_is_shown_in_steps_and_only_its_beginning_is_asked_for_again(
    browser: Browser, tmp_path: Path
) -> None:
    seed_model(tmp_path / "workspace")
    one = start(tmp_path / "workspace")
    one.stop()
    place = Workspace(tmp_path / "workspace")
    for minute, job_id in enumerate(ids(70)):
        place.job(job_id).lay_out()
        old = job(id=job_id, created_at=f"2026-11-23T{minute // 60:02}:{minute % 60:02}:00.000000Z")
        place.job(job_id).record.write_text(old.moved("cancelled").model_dump_json())
    one = start(tmp_path / "workspace")
    try:
        with a_tab(browser, one, tmp_path) as tab:
            rows = tab.open().page.locator("#runs > li")
            more = tab.page.get_by_role("button", name="Show more")
            for count in (30, 60):
                expect(rows).to_have_count(count)
                more.click()
            expect(rows).to_have_count(70)
            expect(more).to_be_hidden()
            names = rows.locator("a").all_text_contents()
            tab.asked.clear()
            tab.drop(newest__nii__gz=VOLUME)
            expect(Row(tab, "newest.nii.gz").badge).to_have_text("Done")
            expect(rows).to_have_count(71)
            assert rows.locator("a").all_text_contents()[1:] == names
            lists = [url for url in tab.asked if "/jobs?" in url and "volume=" not in url]
            assert lists
            assert all(url.endswith("limit=30") for url in lists)
            rows.last.get_by_role("button", name="Remove").click()
            tab.page.get_by_role("dialog").get_by_role("button", name="Remove").click()
            expect(rows).to_have_count(70)
            assert rows.locator("a").all_text_contents()[1:] == names[:-1]
    finally:
        one.stop()


# --- what goes wrong ---------------------------------------------------------------------------


def test_a_file_that_is_refused_says_why_and_what_to_do(tab: Tab) -> None:
    tab.drop(notes__nii=b"nonsense")
    trouble = tab.page.locator("#uploads").get_by_role("alert")
    expect(trouble).to_contain_text("This is text, not a NIfTI volume")
    expect(trouble).to_contain_text("What to do: ")
    check_accessible(tab.page)
    tab.page.get_by_role("button", name="Dismiss notes.nii").click()
    expect(trouble).to_have_count(0)


def test_a_server_that_cannot_be_reached_is_said_until_it_can(
    browser: Browser, tmp_path: Path
) -> None:
    server = start(tmp_path / "workspace")
    try:
        with a_tab(browser, server, tmp_path) as tab:
            tab.open()
            expect(tab.page.get_by_text("There is no model yet")).to_be_attached()
            tab.drop(early__nii__gz=VOLUME)
            expect(tab.page.locator("#new-trouble")).to_contain_text("Add the weights of a model")
            tab.page.context.set_offline(True)
            tab.page.locator("#filter-state").select_option("Done")
            trouble = tab.page.locator("#trouble")
            expect(trouble).to_contain_text("The server cannot be reached")
            expect(trouble).to_contain_text("What to do: ")
            check_accessible(tab.page)
            tab.page.context.set_offline(False)
            expect(trouble).to_be_empty()
    finally:
        server.stop()


# --- tokens ------------------------------------------------------------------------------------


def test_with_a_token_everything_works_and_the_token_stays_in_its_tab(
    browser: Browser, tmp_path: Path
) -> None:
    token = tokens.add(tmp_path / "tokens.json", "page", "infer", "models")
    for name in ("weights", "staged", "raises"):
        seed_model(tmp_path / "workspace", "demo" if name == "weights" else name, name.encode())
    server = start(
        tmp_path / "workspace", "as_the_model_says.py", tokens_file=tmp_path / "tokens.json"
    )
    try:
        with a_tab(browser, server, tmp_path) as tab:
            tab.open()
            field = tab.page.get_by_role("textbox", name="Token")
            expect(field).to_be_focused()
            expect(tab.page.locator("#desk")).to_be_hidden()
            check_accessible(tab.page)
            field.fill("wrong")
            field.press("Enter")
            expect(tab.page.locator("#sign-in-trouble")).to_contain_text("What to do: ")
            field.fill(token)
            field.press("Enter")
            expect(field).to_be_hidden()

            tab.drop(mine__nii__gz=VOLUME)
            expect(tab.page.get_by_role("img", name="outline of the spleen")).to_be_visible()
            tab.page.get_by_text("Log of the plugin").click()
            expect(tab.page.locator("#log")).to_contain_text("novel inference")
            tab.page.reload()
            expect(Row(tab, "mine.nii.gz").badge).to_have_text("Done")

            server.http.headers["Authorization"] = f"Bearer {token}"
            read_an_error(tab)
            cancel_a_run(tab)

            other = tab.page.context.new_page()
            other.goto(server.url)
            expect(other.get_by_role("textbox", name="Token")).to_be_visible()
            assert other.evaluate("Object.keys(localStorage).length + document.cookie.length") == 0
            assert not any(token in url for url in tab.asked)
            tab.page.get_by_role("button", name="Forget my token").click()
            expect(tab.page.get_by_role("textbox", name="Token")).to_be_visible()
            assert token not in tab.page.evaluate("JSON.stringify(sessionStorage)")
    finally:
        server.stop()


# --- for everyone ------------------------------------------------------------------------------


def test_by_keyboard_alone_on_a_small_screen(
    browser: Browser, served: Server, tmp_path: Path
) -> None:
    (tmp_path / "small.nii.gz").write_bytes(VOLUME)
    with a_tab(browser, served, tmp_path, viewport={"width": 360, "height": 640}) as tab:
        page = tab.open().page
        chooser = page.get_by_label("Drop CT volumes here")
        for _ in range(10):
            page.keyboard.press("Tab")
            if chooser.evaluate("(node) => node === document.activeElement"):
                break
        with page.expect_file_chooser() as chosen:
            page.keyboard.press("Space")
        chosen.value.set_files(tmp_path / "small.nii.gz")
        expect(Row(tab, "small.nii.gz").badge).to_have_text("Done")
        Row(tab, "small.nii.gz").link.focus()
        page.keyboard.press("Enter")
        expect(page.locator("#run-title")).to_be_focused()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        check_accessible(page)


def test_a_model_is_added_and_one_that_is_none_is_refused(
    browser: Browser, real_server: Server, tmp_path: Path
) -> None:
    weights = Path(__file__).parent.parent / "examples" / "demo_model.pth"
    (tmp_path / "notes.pth").write_bytes(b"nonsense")
    with a_tab(browser, real_server, tmp_path) as tab:
        page = tab.open().page
        page.get_by_text("Add a model").click()
        page.get_by_label("Weights").set_input_files(tmp_path / "notes.pth")
        page.get_by_role("button", name="Add", exact=True).click()
        expect(page.locator("#model-trouble")).to_contain_text("What to do: ")
        check_accessible(page)
        page.get_by_label("Weights").set_input_files(weights)
        page.get_by_label("Name").fill("another")
        page.get_by_role("button", name="Add", exact=True).click()
        expect(page.locator("#model-state")).to_contain_text("another is there")
        expect(page.locator("#model")).to_have_value("another")
        expect(page.locator("#model-trouble")).to_be_empty()
    assert real_server.http.delete("/spleenseg/modelpth/another").status_code == 204


# --- its files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "/", "/pfms", "/pfms/"])
def test_the_page_is_found_with_and_without_the_prefix_and_loads_nothing_else(
    served: Server, prefix: str
) -> None:
    answer = httpx.get(f"{served.url}{prefix}")
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "http" not in policy
    assert "unsafe-inline" not in policy
    again = httpx.get(f"{served.url}{prefix}", headers={"If-None-Match": answer.headers["etag"]})
    assert again.status_code == 304


def test_what_it_loads_is_kept_by_the_browser_until_it_changes(served: Server) -> None:
    text = httpx.get(f"{served.url}/").text
    place = text.partition('href="/pfms/page/')[2].partition("/")[0]
    file = httpx.get(f"{served.url}/page/{place}/main.js")
    assert (file.status_code, file.headers["content-type"]) == (
        200,
        "text/javascript; charset=utf-8",
    )
    assert "immutable" in file.headers["cache-control"]
    assert httpx.get(f"{served.url}/page/old/main.js").headers["cache-control"] == "no-cache"
    for name in ("index.html", "nothing.js", "../api/page.py", "%2e%2e/api/page.py"):
        assert httpx.get(f"{served.url}/page/{place}/{name}").status_code in (401, 404)
