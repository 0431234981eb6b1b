"""The deployment's files agree with each other and with the service: names of metrics, tiers, ports, users, images."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.api.metrics import Metrics
from service.settings import Settings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
SERVICE_USER = 10001
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(
    PROMTOOL is None,
    reason="promtool is not on the PATH (Debian has it in prometheus); the smoke test runs it in its container",
)
METRIC = re.compile(r"\b(?:asfd_|process_)[a-z_]+|\basfd:[a-z_:0-9]+")


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    parsed: dict[str, Any] = load(ROOT / "docker-compose.yml")
    return parsed


@pytest.fixture(scope="module")
def rules() -> list[dict[str, Any]]:
    return [rule for group in load(DEPLOY / "prometheus/rules.yml")["groups"] for rule in group["rules"]]


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads((DEPLOY / "grafana/dashboards/asfd.json").read_text(encoding="utf-8"))
    return parsed


@pytest.fixture(scope="module")
def known_series(rules: list[dict[str, Any]]) -> set[str]:
    """Every series name that the service exports or that a recording rule makes."""
    names = {rule["record"] for rule in rules if "record" in rule}
    for family in Metrics(Settings().tiers).registry.collect():
        suffixes = {
            "counter": ["_total"],
            "histogram": ["_bucket", "_sum", "_count"],
        }.get(family.type, [""])
        names |= {family.name + suffix for suffix in suffixes}
    return names


def test_rules_use_series_that_exist(rules: list[dict[str, Any]], known_series: set[str]) -> None:
    for rule in rules:
        used = set(METRIC.findall(rule["expr"]))
        assert used - {"up"} <= known_series, rule
    assert len(rules) > 8


def test_burn_rates_look_at_windows_that_are_recorded(rules: list[dict[str, Any]], known_series: set[str]) -> None:
    burning = [rule for rule in rules if rule.get("alert", "").startswith("AsfdBurns")]
    assert len(burning) == 3
    for rule in burning:
        windows = re.findall(r"asfd:attainment:ratio_rate(\w+)", rule["expr"])
        assert len(set(windows)) == 2, rule
        factors = re.findall(r"> ([0-9.]+) \* 0\.01", rule["expr"])
        assert factors[0] == factors[1], rule


def test_every_alert_says_what_and_how_urgent(rules: list[dict[str, Any]]) -> None:
    alerts = [rule for rule in rules if "alert" in rule]
    assert alerts
    for alert in alerts:
        assert alert["annotations"]["summary"]
        assert alert["labels"]["severity"] in {"page", "ticket"}


def test_every_alert_is_unit_tested(rules: list[dict[str, Any]]) -> None:
    cases = load(DEPLOY / "prometheus/rules_test.yml")["tests"]
    checks = [check for case in cases for check in case.get("alert_rule_test", [])]
    alerts = {rule["alert"] for rule in rules if "alert" in rule}
    assert {check["alertname"] for check in checks if check["exp_alerts"]} == alerts
    assert {check["alertname"] for check in checks if not check["exp_alerts"]} == alerts


def test_rule_tests_feed_series_that_exist(known_series: set[str]) -> None:
    cases = load(DEPLOY / "prometheus/rules_test.yml")["tests"]
    fed = {series["series"].partition("{")[0] for case in cases for series in case["input_series"]}
    assert fed - {"up"} <= known_series
    asked = {
        name for case in cases for check in case.get("promql_expr_test", []) for name in METRIC.findall(check["expr"])
    }
    assert asked <= known_series


@needs_promtool
@pytest.mark.parametrize(
    "arguments",
    [("check", "config", "prometheus.yml"), ("check", "rules", "rules.yml"), ("test", "rules", "rules_test.yml")],
)
def test_promtool_accepts(arguments: tuple[str, ...]) -> None:
    promtool(*arguments)


@needs_promtool
def test_dashboard_queries_are_promql(dashboard: dict[str, Any], tmp_path: Path) -> None:
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    rules = [
        {"record": f"query:{k}", "expr": query.replace("$__rate_interval", "1m")} for k, query in enumerate(queries)
    ]
    file = tmp_path / "queries.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}), encoding="utf-8")
    assert f"{len(queries)} rules found" in promtool("check", "rules", str(file))


def promtool(*arguments: str) -> str:
    assert PROMTOOL is not None
    folder = DEPLOY / "prometheus"
    done = subprocess.run([PROMTOOL, *arguments], cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_windows_of_effective_ap_and_attainment(known_series: set[str]) -> None:
    for window in ("5m", "30m", "1h", "6h"):
        assert {f"asfd:attainment:ratio_rate{window}", f"asfd:effective_ap:rate{window}"} <= known_series


def test_dashboard_queries_use_series_that_exist(dashboard: dict[str, Any], known_series: set[str]) -> None:
    source = load(DEPLOY / "grafana/provisioning/datasources/prometheus.yml")["datasources"][0]
    (variable,) = dashboard["templating"]["list"]
    assert (variable["type"], variable["query"]) == ("datasource", source["type"])
    assert variable["current"] == {"text": source["name"], "value": source["uid"]}
    chosen = {"type": source["type"], "uid": f"${{{variable['name']}}}"}
    for panel in dashboard["panels"]:
        assert panel["targets"], panel["title"]
        for target in panel["targets"]:
            assert target["datasource"] == panel["datasource"] == chosen
            used = set(METRIC.findall(target["expr"]))
            assert used, target["expr"]
            assert used <= known_series, target["expr"]


def test_dashboard_shows_what_an_operator_asks_for(dashboard: dict[str, Any]) -> None:
    shown = " ".join(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
    for needed in (
        "asfd_requests_total",
        "asfd:attainment:ratio_rate5m",
        "asfd:attainment:ratio_rate3d",
        "asfd:effective_ap:rate5m",
        "asfd:queue_wait_seconds:p95_5m",
        "asfd:actual_over_predicted:p99_30m",
        "asfd_request_latency_seconds_bucket",
        "asfd_deadline_slack_seconds_bucket",
        "asfd_batch_size_bucket",
        "asfd_dispatch_total",
        "asfd_shed_total",
        "asfd_decision_seconds_bucket",
        "asfd_in_flight_requests",
        "by (variant)",
        "asfd_stage_seconds_bucket",
        "by (outcome)",
        "asfd_queue_length",
        "process_resident_memory_bytes",
    ):
        assert needed in shown


def test_dashboard_draws_the_objective_of_the_alerts(dashboard: dict[str, Any], rules: list[dict[str, Any]]) -> None:
    (allowed,) = {
        share for rule in rules if rule.get("alert", "").startswith("AsfdBurns")
        for share in re.findall(r"[0-9.]+ \* ([0-9.]+)", rule["expr"])
    }  # fmt: skip
    panels = {panel["title"]: panel for panel in dashboard["panels"]}
    steps = panels["Attainment by tier"]["fieldConfig"]["defaults"]["thresholds"]["steps"]
    assert steps[-1]["value"] == pytest.approx(1 - float(allowed))
    assert panels["Error budget left, last 3 days"]["targets"][0]["expr"].endswith(f"/ {allowed}")


def test_dashboard_panels_do_not_overlap(dashboard: dict[str, Any]) -> None:
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {(place["x"] + i, place["y"] + j) for i in range(place["w"]) for j in range(place["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells


def test_grafana_finds_what_compose_mounts(compose: dict[str, Any]) -> None:
    grafana = compose["services"]["grafana"]
    inside = dict(volume.split(":")[:2][::-1] for volume in grafana["volumes"])
    provider = load(DEPLOY / "grafana/provisioning/dashboards/asfd.yml")["providers"][0]
    assert ROOT / inside[provider["options"]["path"]] == DEPLOY / "grafana/dashboards"
    assert ROOT / inside["/etc/grafana/provisioning"] == DEPLOY / "grafana/provisioning"
    home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{provider['options']['path']}/asfd.json"


def test_compose_services_are_locked_down(compose: dict[str, Any]) -> None:
    assert set(compose["services"]) == {"asfd", "asfd-gpu", "asfd-engines", "prometheus", "grafana"}
    for name, service in compose["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert all(port.startswith("${BIND:-127.0.0.1}:") for port in service.get("ports", [])), name
        assert "build" in service or re.search(r":v?\d+\.\d+\.\d+$", service["image"]), f"{name}: image is not pinned"


def test_compose_passes_the_settings_of_a_deployer(compose: dict[str, Any]) -> None:
    cpu, gpu = (compose["services"][name]["environment"] for name in ("asfd", "asfd-gpu"))
    # The image says where the files lie and where it listens.
    theirs = set(Settings.model_fields) - {"repository", "cache_dir", "host", "port"}
    of_gpus = {"engine", "build_engines", "gpu_memory_limit_bytes"}
    assert set(cpu) == {"ASFD_" + name.upper() for name in theirs - of_gpus}
    assert set(gpu) == {"ASFD_" + name.upper() for name in theirs}
    # Without a value the container has the variable only where it is set outside.
    assert set(cpu.values()) == set(gpu.values()) == {None}


def test_compose_waits_longer_than_the_service_drains(compose: dict[str, Any]) -> None:
    for name in ("asfd", "asfd-gpu"):
        grace = re.fullmatch(r"\$\{STOP_GRACE_PERIOD:-(\d+)s\}", compose["services"][name]["stop_grace_period"])
        assert grace is not None
        assert int(grace[1]) > Settings().drain_seconds + 5


def test_prometheus_scrapes_the_compose_service(compose: dict[str, Any]) -> None:
    jobs = {job["job_name"]: job for job in load(DEPLOY / "prometheus/prometheus.yml")["scrape_configs"]}
    host, port = jobs["asfd"]["static_configs"][0]["targets"][0].split(":")
    assert host in compose["services"]
    assert compose["services"][host]["ports"][0].endswith(f":{port}")


def test_image_is_pinned_and_runs_as_its_own_user() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert "ARG PYTHON_IMAGE=python:3.11-slim-bookworm\n" in text
    assert f"USER {SERVICE_USER}:{SERVICE_USER}\n" in text
    assert 'ENTRYPOINT ["python", "-m", "service"]' in text


def test_kubernetes_objects() -> None:
    documents = list(yaml.safe_load_all((DEPLOY / "kubernetes/asfd.yml").read_text(encoding="utf-8")))
    objects = {document["kind"]: document for document in documents}
    assert set(objects) == {"Deployment", "Service", "PodDisruptionBudget"}
    spec = objects["Deployment"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()
    assert objects["Service"]["spec"]["selector"] == spec["selector"]["matchLabels"]
    assert pod["securityContext"]["runAsUser"] == SERVICE_USER
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert pod["terminationGracePeriodSeconds"] > Settings().drain_seconds + 5
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    fields = {"ASFD_" + name.upper() for name in Settings.model_fields}
    assert {variable["name"] for variable in container["env"]} <= fields
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["port"] == container["ports"][0]["name"]


def test_autoscaling_asks_for_recorded_series(known_series: set[str]) -> None:
    scaled = load(DEPLOY / "kubernetes/autoscaling.yml")
    assert scaled["spec"]["scaleTargetRef"]["name"] == "asfd"
    for trigger in scaled["spec"]["triggers"]:
        assert trigger["metadata"]["query"] in known_series
        assert float(trigger["metadata"]["threshold"]) > 0


def test_constraints_satisfy_the_declared_bounds() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.lower().replace("_", "-").split("==") for line in lines if line and not line.startswith("#"))
    groups = {"service": project["dependencies"], **project["optional-dependencies"]}
    for group, wanted in groups.items():
        for requirement in wanted:
            found = re.fullmatch(r"([A-Za-z0-9-]+)(?:\[[a-z,]+\])?>=([0-9.]+)(?:,<[0-9.]+)?", requirement)
            assert found, f"{group}: {requirement} declares no lower bound"
            name, bound = found[1].lower(), found[2]
            assert name in pins, f"{group}: {name} is not in constraints.txt"
            pinned = [int(part) for part in re.findall(r"\d+", pins[name])]
            assert pinned >= [int(part) for part in bound.split(".")], requirement
