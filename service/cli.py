"""Commands: serve, detect one photo, list the models, build engines for a GPU, simulate scheduling policies.

python -m service serve
python -m service detect photo.jpg --tier interactive --out annotated.jpg
python -m service detect photo.jpg --latency-ms 200 --url http://127.0.0.1:8000
python -m service models
python -m service build-engines
python -m service simulate --profile profile.json --trace poisson:rate=20,seconds=60 --out runs/simulation
"""

from __future__ import annotations

import asyncio
import http.client
import json
import math
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Annotated, Any

import typer

from service.contract import Answer, Ask
from service.engines.base import EngineError
from service.engines.tensorrt.command import build_engines
from service.errors import AsfdError
from service.imaging.annotate import annotate
from service.imaging.decode import Limits, decode, inspect
from service.repository.store import RepositoryError, load_repository
from service.runtime import Runtime
from service.settings import InvalidSettingsError, Settings, load_settings
from service.simulation.command import simulate_command

_EXAMPLES = "\n\n\b\n".join(__doc__.split("\n\n", 1)) if __doc__ else None  # \b: keep the lines as they are

app = typer.Typer(no_args_is_help=True, add_completion=False, help=_EXAMPLES, pretty_exceptions_enable=False,
                  rich_markup_mode=None)  # fmt: skip

_TYPES = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png", ".webp": "image/webp"}

app.command(name="simulate")(simulate_command)
app.command(name="build-engines")(build_engines)


def main() -> None:
    """Entry point of the `asfd` command."""
    app()


def _fail(message: object, code: int = 2) -> typer.Exit:
    typer.echo(f"asfd: {message}", err=True)
    return typer.Exit(code)


def _settings(**overrides: Any) -> Settings:
    try:
        return load_settings(**{key: value for key, value in overrides.items() if value is not None})
    except InvalidSettingsError as error:
        raise _fail(error) from None


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on. [env HOST, default 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 picks a free one. [env PORT, default 8000]")] = None,
    repository: Annotated[Path | None, typer.Option(help="Model repository. [env ASFD_REPOSITORY]")] = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C; what is running then is finished first."""
    from service.api.server import serve as run

    settings = _settings(host=host, port=port, repository=repository)
    try:
        with socket.create_server(
            (settings.host, settings.port), family=socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        ):
            pass
    except OSError as error:
        where = f"{settings.host} port {settings.port}"
        raise _fail(
            f"cannot listen on {where}: {error.strerror}. Set PORT to a free port, or HOST to an own address."
        ) from None
    shown = f"[{settings.host}]" if ":" in settings.host else settings.host
    typer.echo(f"asfd: http://{shown}:{settings.port}/ (documentation at /docs)", err=True)
    raise typer.Exit(run(settings))


@app.command()
def detect(
    photo: Annotated[Path, typer.Argument(help="JPEG, PNG or WebP.")],
    tier: Annotated[str | None, typer.Option(help="A tier's name; `GET /tiers` lists them.")] = None,
    latency_ms: Annotated[float | None, typer.Option(help="A budget of your own, in milliseconds.")] = None,
    variant: Annotated[str | None, typer.Option(help="Pin a detector.")] = None,
    long_side: Annotated[int | None, typer.Option(help="Pin the input size by its long side.")] = None,
    min_score: Annotated[float | None, typer.Option(help="Drop faces below this score; 0.05 gives all.")] = None,
    max_faces: Annotated[int | None, typer.Option(min=1, help="Keep at most so many faces.")] = None,
    min_face: Annotated[float, typer.Option(min=0, help="Drop faces whose short side is below so many pixels.")] = 0.0,
    on_infeasible: Annotated[str, typer.Option(help="degrade or reject, where no detector fits.")] = "degrade",
    url: Annotated[
        str | None, typer.Option(help="Ask this server; without it the engine runs in this process.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the photo with boxes drawn (.jpg or .png).")] = None,
    repository: Annotated[Path | None, typer.Option(help="Model repository, without --url.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole answer as JSON.")] = False,
) -> None:
    """Find the faces of one photo.

    \b
    python -m service detect photo.jpg --tier interactive --out annotated.jpg
    python -m service detect photo.jpg --latency-ms 200 --json
    python -m service detect photo.jpg --url http://127.0.0.1:8000

    Exit code: 0 with an answer (also with no face, also late), 2 where there is none; the reason is on stderr.
    """
    for name, value in (("--latency-ms", latency_ms), ("--min-score", min_score), ("--min-face", min_face)):
        if value is not None and not math.isfinite(value):
            raise _fail(f"{name} must be a number, not {value:g}")
    if tier is not None and latency_ms is not None:
        raise _fail("give --tier or --latency-ms, not both")
    if on_infeasible not in ("degrade", "reject"):
        raise _fail(f"--on-infeasible is degrade or reject, not {on_infeasible!r}")
    if out is not None and out.suffix.lower() not in (".jpg", ".jpeg", ".png"):
        raise _fail(f"--out must end in .jpg or .png, not {out.suffix!r}")
    if out is not None and not out.parent.is_dir():
        raise _fail(f"--out: there is no folder {out.parent}")
    try:
        data = photo.read_bytes()
    except OSError as error:
        raise _fail(f"{photo}: {error.strerror}") from None
    if url is not None:
        query = {
            "tier": tier, "latency_ms": latency_ms, "variant": variant, "long_side": long_side, "min_score": min_score,
            "max_faces": max_faces, "min_face": min_face or None, "on_infeasible": on_infeasible,
        }  # fmt: skip
        document, picture = _ask_server(url, data, photo, query, out)
    else:
        settings = _settings(repository=repository)
        if tier is not None and tier not in settings.tiers:
            raise _fail(f"there is no tier {tier!r}; there are {', '.join(settings.tiers)}")
        budget = latency_ms if latency_ms is not None else settings.tiers[tier or settings.default_tier]
        if not 0 < budget < float("inf"):
            raise _fail(f"--latency-ms must be above 0, not {budget:g}")
        ask = Ask(
            budget_ms=budget, tier=tier, received=0.0, variant=variant,
            on_infeasible="reject" if on_infeasible == "reject" else "degrade",
            long_side=long_side, min_score=min_score, default_min_score=settings.default_min_score,
            max_faces=max_faces, min_face=min_face,
        )  # fmt: skip
        document, picture = _detect_here(settings, data, ask, out)
    if out is not None and picture is not None:
        try:
            out.write_bytes(picture)
        except OSError as error:
            raise _fail(f"{out}: {error.strerror}") from None
    _print(document, as_json, out)


def _detect_here(settings: Settings, data: bytes, ask: Ask, out: Path | None) -> tuple[dict[str, Any], bytes | None]:
    try:
        answer = asyncio.run(_run_once(settings, data, ask))
    except (AsfdError, RepositoryError, EngineError, InvalidSettingsError) as error:
        raise _fail(error) from None
    document = {
        "faces": [
            {"box": [round(v, 1) for v in box], "score": round(score, 4)}
            for box, score in zip(answer.boxes.tolist(), answer.scores.tolist(), strict=True)
        ],
        "image": {"width": answer.width, "height": answer.height},
        "model": {"variant": answer.variant, "input": {"height": answer.input_height, "width": answer.input_width}},
        "latency": {
            "budget_ms": answer.budget_ms, "decode_ms": round(answer.decode_ms, 2),
            "queue_ms": round(answer.queue_ms, 2), "infer_ms": round(answer.infer_ms, 2),
            "total_ms": round(answer.total_ms, 2),
            "predicted_ms": round(answer.predicted_ms, 2), "deadline_met": answer.deadline_met,
        },
    }  # fmt: skip
    if out is None:
        return document, None
    # Drawn on the photo at full size: the runtime decodes no more than detection needs.
    decoded = decode(data, inspect(data, Limits(settings.max_pixels)))
    picture = annotate(
        decoded.picture, answer.boxes, answer.scores, original_width=answer.width, original_height=answer.height,
        image_format="PNG" if out.suffix.lower() == ".png" else "JPEG",
    )  # fmt: skip
    return document, picture


async def _run_once(settings: Settings, data: bytes, ask: Ask) -> Answer:
    header = inspect(data, Limits(settings.max_pixels))
    runtime = Runtime(settings)
    try:
        typer.echo("asfd: loading models (the first time they are measured on this machine)", err=True)
        await runtime.start()
        # The budget is for the photo; loading models belongs to the command.
        now = Ask(**{**ask.__dict__, "received": time.monotonic()})
        return await runtime.detect(data, header, now)
    finally:
        await runtime.close()


def _ask_server(
    url: str, data: bytes, photo: Path, query: dict[str, Any], out: Path | None
) -> tuple[dict[str, Any], bytes | None]:
    given = {key: value for key, value in query.items() if value is not None}
    try:
        document = json.loads(_post(url, data, photo, given))
    except ValueError:
        document = None
    if not isinstance(document, dict) or not {"faces", "model", "latency"} <= document.keys():
        raise _fail(f"{url} answered, but not as asfd does; check the address")
    picture = None
    if out is not None:
        accept = "image/png" if out.suffix.lower() == ".png" else "image/jpeg"
        picture = _post(url, data, photo, {**given, "return": "image"}, accept)
    return document, picture


def _post(url: str, data: bytes, photo: Path, query: dict[str, Any], accept: str = "application/json") -> bytes:
    target = f"{url.rstrip('/')}/detect?{urllib.parse.urlencode(query)}"
    if not target.startswith(("http://", "https://")):
        raise _fail(f"--url must begin with http:// or https://, not {url!r}")
    headers = {"Content-Type": _TYPES.get(photo.suffix.lower(), "application/octet-stream"), "Accept": accept}
    request = urllib.request.Request(target, data=data, headers=headers, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            body: bytes = response.read()
            return body
    except urllib.error.HTTPError as error:
        try:
            reason = json.loads(error.read())["detail"]
        except (ValueError, KeyError, TypeError):
            reason = error.reason
        raise _fail(f"{url} answered {error.code}: {reason}") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise _fail(f"{url} cannot be reached: {getattr(error, 'reason', error)}") from None


def _print(document: dict[str, Any], as_json: bool, out: Path | None) -> None:
    if as_json:
        typer.echo(json.dumps(document, indent=2))
        return
    latency, model = document["latency"], document["model"]
    late = "" if latency["deadline_met"] else ", late"
    size = f"{model['input']['height']}x{model['input']['width']}"
    typer.echo(
        f"{len(document['faces'])} face(s) by {model['variant']} at {size}, "
        f"{latency['total_ms']:.0f} of {latency['budget_ms']:g} ms{late}"
    )
    for face in document["faces"]:
        x1, y1, x2, y2 = face["box"]
        typer.echo(f"  {face['score']:.3f}  x {x1:.0f}..{x2:.0f}  y {y1:.0f}..{y2:.0f}")
    if out is not None:
        typer.echo(f"drawn on {out}")


@app.command()
def models(repository: Annotated[Path | None, typer.Option(help="Model repository.")] = None) -> None:
    """List the repository's variants with their accuracy, after checking every file."""
    try:
        loaded = load_repository(_settings(repository=repository).repository)
    except RepositoryError as error:
        raise _fail(error) from None
    for variant in loaded.variants:
        rows = [row for row in variant.manifest.accuracy if row.variant == variant.name]
        scores = ", ".join(f"{row.long_side}: {row.ap50:.3f}" for row in rows) or "not measured"
        typer.echo(f"{variant.name:12} {variant.manifest.title}; AP.50 by long side: {scores}")
