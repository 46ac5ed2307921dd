"""The dashboard and the alert rules in `deploy/` fit what a real server tells."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT, Server
from tests.scrape import scrape
from tests.test_metrics import DOCUMENTED

DASHBOARD = ROOT / "deploy" / "grafana" / "pfms.json"
RULES = ROOT / "deploy" / "prometheus" / "alerts.yml"
CASES = RULES.with_name("alerts_test.yml")
PROMTOOL = shutil.which("promtool")
OF_PFMS = re.compile(r"\bpfms_\w+")

needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed")


def expressions_of_the_dashboard() -> list[str]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel.get("targets", ())]


def promtool(*arguments: str) -> None:
    done = subprocess.run(
        [PROMTOOL or "promtool", *arguments], cwd=RULES.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("file", [DASHBOARD, RULES, CASES], ids=lambda path: path.name)
def test_every_series_that_is_asked_for_is_in_a_scrape(server: Server, file: Path) -> None:
    server.infer(b"no volume")  # what is shown only once it has happened
    server.ended(server.submit())
    text = file.read_text()
    there = {name for name, _ in scrape(server)}

    assert set(OF_PFMS.findall(text)) - there == set()


def test_the_dashboard_shows_every_metric() -> None:
    shown = {
        name.removesuffix("_bucket")
        for text in expressions_of_the_dashboard()
        for name in OF_PFMS.findall(text)
    }

    assert shown == DOCUMENTED


def test_every_alert_has_cases_and_is_explained() -> None:
    alerts = re.findall(r"- alert: (\w+)", RULES.read_text())
    page = (ROOT / "docs" / "observing.md").read_text()

    assert re.findall(r"^\| `(Pfms\w+)` \|", page, re.MULTILINE) == alerts
    for alert in alerts:
        assert f"alertname: {alert}}}" in CASES.read_text(), "a case in which it is quiet"
        assert f'{{alertname="{alert}"}}' in CASES.read_text(), "a case in which it fires"


@needs_promtool
def test_the_rules_fire_when_they_should() -> None:
    promtool("check", "rules", RULES.name)
    promtool("test", "rules", CASES.name)


@needs_promtool
def test_promtool_finds_nothing_to_improve_in_a_scrape(server: Server) -> None:
    text = server.http.get(f"{server.url}/metrics").text
    done = subprocess.run(
        [PROMTOOL or "promtool", "check", "metrics"], input=text, capture_output=True, text=True
    )

    assert (done.returncode, done.stderr) == (0, "")


@needs_promtool
def test_promtool_reads_what_the_dashboard_asks(tmp_path: Path) -> None:
    asked = [text.replace("$__rate_interval", "5m") for text in expressions_of_the_dashboard()]
    rules = [{"record": f"panel:{n}", "expr": text} for n, text in enumerate(asked)]
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))  # JSON is YAML

    promtool("check", "rules", str(file))
