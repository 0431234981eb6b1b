"""The true Python API of TensorRT, without its libraries, without a GPU.

The wheel of TensorRT's bindings is small and on PyPI, but does not import where the libraries (gigabytes) are missing.
Libraries of our own that only answer "nothing" to the nine functions that they link to are enough to import it
and to read every class, method, keyword and enum off it. They build and run nothing.

    python -m tests.engines.tensorrt.bindings        writes the surface-*.json beside this file again (needs pip, gcc)

The surfaces are committed, so that the tests run without a network; `test_surface.py` compares them with the wheels
where pip can reach those.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Bindings:
    """One wheel. libraries: those that its module links to, without `lib` and `.so`."""

    version: str
    distribution: str = "tensorrt_cu13_bindings"
    module: str = "tensorrt_bindings"
    libraries: tuple[str, ...] = ("nvinfer", "nvinfer_plugin", "nvonnxparser")


_LEAN = ("tensorrt_lean_cu13_bindings", "tensorrt_lean_bindings", ("nvinfer_lean",))

CHECKED = {
    "10.16": Bindings("10.16.1.11"),
    "11.4": Bindings("11.4.0.106"),
    "lean-10.16": Bindings("10.16.1.11", *_LEAN),
    "lean-11.4": Bindings("11.4.0.106", *_LEAN),
}
"""What the code is checked against: the last of the 10s and the newest, whole and lean (which only runs engines)."""

_ENTRY_POINTS = (
    "createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL", "createNvOnnxParser_INTERNAL", "getBuilderPluginRegistry",
    "getNvOnnxParserVersion", "getPluginRegistry", "initLibNvInferPlugins",
)  # fmt: skip


class UnreachableError(RuntimeError):
    """The wheel or the compiler is not there; the message says which."""


def surface_file(name: str) -> Path:
    """Where the surface of one of `CHECKED` is committed."""
    return Path(__file__).with_name(f"surface-{name}.json")


def folder_of(name: str) -> Path:
    """Where one of `CHECKED` is kept between runs, for this Python."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "asfd-tests" / "tensorrt"
    return cache / f"{name}-{CHECKED[name].version}-{sys.implementation.cache_tag}"


def install(name: str) -> Path:
    """The folder with the bindings in `site` and the libraries that answer nothing in `lib`, made if it is not there.

    Raises `UnreachableError`.
    """
    folder = folder_of(name)
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            made = Path(scratch) / "made"
            _install(CHECKED[name], made / "site", made / "lib")
            # As a whole, since other tests may be at it; whoever comes second finds the folder there.
            with contextlib.suppress(OSError):
                made.rename(folder)
    return folder


def _install(bindings: Bindings, site: Path, lib: Path) -> None:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise UnreachableError("no C compiler")
    lib.mkdir(parents=True)
    command = [
        sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps",
        "--timeout", "15", "--retries", "1", "--target", str(site), f"{bindings.distribution}=={bindings.version}",
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    except subprocess.TimeoutExpired:
        raise UnreachableError("pip did not answer within two minutes") from None
    if done.returncode:
        raise UnreachableError(f"pip cannot install {command[-1]}: {done.stderr.strip()[-200:]}")
    source = lib / "nothing.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in _ENTRY_POINTS))
    for name in bindings.libraries:
        file = f"lib{name}.so.{bindings.version.partition('.')[0]}"
        line = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{file}", "-o", str(lib / file), str(source)]
        subprocess.run(line, check=True, capture_output=True)


def environment(folder: Path, *more: Path) -> dict[str, str]:
    """Variables with which a Python imports the installed bindings. more: other folders that it imports from."""
    found = os.pathsep.join(str(path) for path in (folder / "site", *more))
    return {**os.environ, "PYTHONPATH": found, "LD_LIBRARY_PATH": str(folder / "lib")}


def read_surface(bindings: Bindings, folder: Path) -> dict[str, Any]:
    """The API of the installed bindings, read off them by a Python of its own (see `probe.py`)."""
    probe = Path(__file__).with_name("probe.py")
    done = subprocess.run(
        [sys.executable, str(probe), bindings.module],
        env=environment(folder),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    if done.returncode:
        raise UnreachableError(f"{bindings.module} {bindings.version} does not import: {done.stderr.strip()[-300:]}")
    surface: dict[str, Any] = json.loads(done.stdout)
    return surface


def as_text(surface: dict[str, Any]) -> str:
    """One line a class, so that a change shows in a diff."""
    rows = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in surface.items() if key != "classes"]
    classes = [f"    {json.dumps(name)}: {json.dumps(value)}" for name, value in surface["classes"].items()]
    inner = ",\n".join(classes)
    return "{\n" + ",\n".join([*rows, '  "classes": {\n' + inner + "\n  }"]) + "\n}\n"


def main() -> None:
    for name, bindings in CHECKED.items():
        text = as_text(read_surface(bindings, install(name)))
        surface_file(name).write_text(text)
        print(f"{surface_file(name).name}: {len(text) / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
