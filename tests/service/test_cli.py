"""The commands as a person uses them: answers, exit codes, and a sentence instead of a traceback."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from service.cli import app
from tests.service.fake_model import write_fake_repository
from tests.service.test_runtime import photo


@pytest.fixture
def picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A photo, beside a repository and an empty cache that the commands find in the environment."""
    monkeypatch.setenv("ASFD_REPOSITORY", str(write_fake_repository(tmp_path / "models")))
    monkeypatch.setenv("ASFD_CACHE_DIR", str(tmp_path / "cache"))
    path = tmp_path / "photo.jpg"
    path.write_bytes(photo())
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(result: Result) -> str:
    """The sentence on stderr of a command that failed as it should: by exit code 2, without a traceback."""
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    return result.stderr


def test_detect_prints_the_whole_answer_as_json(picture: Path) -> None:
    result = run("detect", picture, "--tier", "accurate", "--json")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert answer["image"] == {"width": 200, "height": 100}
    assert [face["score"] for face in answer["faces"]] == [0.9, 0.4]
    assert answer["faces"][0]["box"] == [12.5, 25.0, 62.5, 100.0]
    assert answer["model"] == {"variant": "d1", "input": {"height": 64, "width": 128}}
    assert answer["latency"]["budget_ms"] == 3000


def test_detect_draws_at_the_photos_own_size(picture: Path, tmp_path: Path) -> None:
    out = tmp_path / "drawn.png"
    result = run("detect", picture, "--out", out, "--variant", "d0", "--max-faces", 1)
    assert result.exit_code == 0, result.output
    assert "1 face(s) by d0 at 64x128" in result.stdout
    drawn = Image.open(io.BytesIO(out.read_bytes()))
    assert (drawn.format, drawn.size) == ("PNG", (200, 100))
    assert len(drawn.convert("RGB").getcolors(1000) or []) > 1  # the photo alone is of one colour


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--tier", "fast", "--latency-ms", "5"], "not both"),
        (["--tier", "fast"], "there is no tier 'fast'; there are realtime"),
        (["--latency-ms", "0"], "must be above 0"),
        (["--latency-ms", "nan"], "--latency-ms must be a number"),
        (["--min-score", "nan"], "--min-score must be a number"),
        (["--min-score", "0.01"], "built with 0.05"),
        (["--max-faces", "-1"], "--max-faces"),
        (["--min-face", "-1"], "--min-face"),
        (["--variant", "d9"], "there are d0, d1"),
        (["--on-infeasible", "shrug"], "degrade or reject"),
        (["--latency-ms", "0.001", "--on-infeasible", "reject"], "fastest detector is predicted"),
        (["--out", "drawn.gif"], "must end in .jpg or .png"),
        (["--out", "no/such/folder/drawn.jpg"], "there is no folder no/such/folder"),
        (["--url", "ftp://127.0.0.1"], "must begin with http"),
        (["--url", "http://not a host"], "cannot be reached"),
        (["--url", "http://127.0.0.1:notaport"], "cannot be reached"),
    ],
)
def test_bad_arguments_are_explained(picture: Path, arguments: list[str], sentence: str) -> None:
    assert sentence in refused(run("detect", picture, *arguments))


def test_bad_photos_are_explained(picture: Path, tmp_path: Path) -> None:
    assert "No such file" in refused(run("detect", tmp_path / "none.jpg"))
    assert "directory" in refused(run("detect", tmp_path))
    picture.write_bytes(b"")
    assert "empty" in refused(run("detect", picture))


def test_a_picture_that_cannot_be_written_is_explained(picture: Path, tmp_path: Path) -> None:
    (tmp_path / "taken.jpg").mkdir()
    assert "taken.jpg" in refused(run("detect", picture, "--out", tmp_path / "taken.jpg"))


class _Foreign(BaseHTTPRequestHandler):
    """A server that is not asfd."""

    answer = b"<html>hello</html>"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.answer)))
        self.end_headers()
        self.wfile.write(self.answer)

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def foreign() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), _Foreign)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("answer", [b"<html>hello</html>", b"[]", b'{"status": "ok"}', b"\xff\xfe"])
def test_a_server_that_is_not_asfd_is_explained(
    picture: Path, foreign: str, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    monkeypatch.setattr(_Foreign, "answer", answer)
    assert "not as asfd does" in refused(run("detect", picture, "--url", foreign))


def test_nobody_at_the_address_is_explained(picture: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert "cannot be reached" in refused(run("detect", picture, "--url", f"http://127.0.0.1:{port}"))


def test_serve_says_that_the_port_is_taken(picture: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        sentence = refused(run("serve", "--host", "127.0.0.1", "--port", port))
    assert f"port {port}" in sentence
    assert "Set PORT" in sentence


def test_models_lists_what_is_there_and_names_what_is_damaged(picture: Path) -> None:
    listed = run("models")
    assert listed.exit_code == 0
    assert "64: 0.300, 128: 0.600" in listed.stdout
    (picture.parent / "models" / "d1" / "d1.onnx").write_bytes(b"x")
    assert "d1.onnx: 1 bytes" in refused(run("models"))


def test_onnx_runtime_is_told_not_to_report_its_use() -> None:
    """Before it is loaded: the libraries look once, then."""
    probe = (
        "import os, sys; sys.addaudithook(lambda event, args: event == 'import' and args[0] == 'onnxruntime'"
        " and print(os.environ.get('ORT_DISABLE_TELEMETRY'))); import service.__main__"
    )
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    ended = subprocess.run(
        [sys.executable, "-c", probe],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert set(ended.stdout.split()) == {"1"}


def test_help_keeps_its_examples_on_lines_of_their_own() -> None:
    lines = [line.strip() for line in run("--help").stdout.splitlines()]
    assert "python -m service serve" in lines
    assert "python -m service detect photo.jpg --latency-ms 200 --json" in [
        line.strip() for line in run("detect", "--help").stdout.splitlines()
    ]
