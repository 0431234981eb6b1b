"""What keeps the parts apart: data flows training -> export -> service, and the service knows nothing of the others."""

from __future__ import annotations

import ast
import os
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PARTS = ("service", "training", "export", "benchmarks")
MAX_LINES = 400
MAX_BYTES = 48 * 1024 * 1024

FORBIDDEN = {
    "service": {"training", "export", "benchmarks", "tests", "torch", "torchvision", "cv2", "scipy", "skimage"},
    "training": {"export", "benchmarks", "tests"},
    "export": {"benchmarks", "tests"},
    "benchmarks": {"tests"},
}

# Run in a fresh interpreter: refuse the named packages, import every module of the service, report what was touched.
PROBE = """
import importlib, logging, os, signal, sys, threading

class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ImportError("the service must not import " + name)

sys.meta_path.insert(0, Wall())
importlib.import_module("fastapi"), importlib.import_module("onnxruntime"), importlib.import_module("PIL.Image")
before = (threading.active_count(), dict(os.environ), os.getcwd(), len(logging.getLogger().handlers),
          signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))
writes = []
sys.addaudithook(lambda event, args: writes.append((event, args)) if event in ("socket.bind", "socket.connect",
    "subprocess.Popen", "os.mkdir", "os.remove", "os.rename") or (event == "open" and isinstance(args[1], str)
    and set(args[1]) & set("wax+")) else None)
for name in {modules!r}:
    importlib.import_module(name)
after = (threading.active_count(), dict(os.environ), os.getcwd(), len(logging.getLogger().handlers),
         signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))
assert before == after, (before, after)
assert not writes, writes
assert not {blocked!r} & {{name.partition(".")[0] for name in sys.modules}}
print("imported", len({modules!r}))
"""


def modules_of(part: str) -> list[str]:
    """Every module of a top-level package, by name; `__main__` runs things by design and is left out."""
    found = [part, *(m.name for m in pkgutil.walk_packages([str(ROOT / part)], part + "."))]
    return [name for name in found if not name.endswith("__main__")]


def imported_packages(source: str) -> Iterator[tuple[int, str]]:
    """(line, top-level package) of each absolute import, wherever it stands in the file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.lineno, node.module.partition(".")[0]


def tracked_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    return [ROOT / name for name in os.fsdecode(listed).split("\0") if name]


def probe(blocked: set[str], modules: list[str]) -> subprocess.CompletedProcess[str]:
    code = PROBE.format(blocked=blocked, modules=modules)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COV_")}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def test_service_imports_without_torch_and_without_side_effects() -> None:
    modules = modules_of("service")
    assert {"service.settings", "service.api", "service.repository.manifest"} <= set(modules)
    done = probe(FORBIDDEN["service"], modules)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"imported {len(modules)}\n"


def test_the_probe_notices_a_forbidden_import() -> None:
    done = probe({"json"}, ["json"])
    assert done.returncode != 0
    assert "must not import json" in done.stderr


@pytest.mark.parametrize("part", PARTS)
def test_imports_follow_the_data_flow(part: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {package}"
        for path in sorted((ROOT / part).rglob("*.py"))
        for line, package in imported_packages(path.read_text(encoding="utf-8"))
        if package in FORBIDDEN[part]
    ]
    assert not wrong, "\n".join(wrong)


def test_import_scan_sees_all_forms() -> None:
    source = "import torch.nn as nn\nif 1:\n    from export.onnx import x\nfrom . import y\nfrom .torch import z\n"
    assert list(imported_packages(source)) == [(1, "torch"), (3, "export")]


def test_python_files_stay_short() -> None:
    folders = [ROOT / name for name in (*PARTS, "tests")]
    files = [path for folder in folders for path in folder.rglob("*.py")]
    assert len(files) > 20
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert not {name: lines for name, lines in lengths.items() if lines >= MAX_LINES}


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
def test_no_large_file_is_tracked() -> None:
    files = tracked_files()
    assert ROOT / "pyproject.toml" in files
    assert not [str(path) for path in files if path.is_file() and path.stat().st_size > MAX_BYTES]
