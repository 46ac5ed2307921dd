"""The page of a server, in a browser."""

from pathlib import Path

from playwright.sync_api import expect, sync_playwright

from tools.pictures.diagrams import chromium


def picture_of_a_run(url: str, volume: Path, model: str, target: Path) -> None:
    """Segment a volume on the page of a server, as a person does, and keep how that looks."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 960})
        page.goto(url)
        page.locator("#model").select_option(model)
        page.locator("#files").set_input_files(volume)
        run = page.locator("#runs > li").filter(has_text=volume.name)
        expect(run.locator(".badge")).to_have_text("Done", timeout=120_000)
        run.get_by_role("link").first.click()
        expect(page.locator("#picture img").first).to_be_visible(timeout=60_000)
        page.wait_for_load_state("networkidle")
        page.screenshot(path=target)
        browser.close()
