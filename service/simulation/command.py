"""`python -m service simulate`: compare scheduling policies on a trace, before a service runs any of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def simulate_command(
    profile: Annotated[Path, typer.Option(help="JSON of `python -m export profile`.")],
    trace: Annotated[str, typer.Option(help="poisson:..., gamma:... or diurnal:..., or a CSV file.")],
    out: Annotated[Path, typer.Option(help="Folder for simulation.md, .json and .png.")],
    policy: Annotated[str, typer.Option(help="Names with commas between, or all.")] = "all",
    decode_ms: Annotated[float, typer.Option(help="Decoding of one picture, on average.")] = 5.0,
    decode_cv: Annotated[float, typer.Option(help="Its coefficient of variation; 0: constant.")] = 0.0,
    decode_threads: Annotated[int, typer.Option(help="Pictures decoded at once.")] = 2,
    queue_limit: Annotated[int, typer.Option(help="Requests in flight; more are shed.")] = 64,
    max_batch: Annotated[
        int | None, typer.Option(help="Largest batch. [default: the largest that was measured]")
    ] = None,
    drift: Annotated[float, typer.Option(help="True run times over the profile's.")] = 1.0,
    decision_ms: Annotated[
        float | None, typer.Option(help="Charge this for a decision, not its measured time; makes runs repeatable.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of arrivals, decoding and run times.")] = 0,
    admission: Annotated[
        bool, typer.Option(help="Turn away on arrival what could not be on time, as the service does.")
    ] = True,
) -> None:
    """Play a trace of requests against each scheduling policy, on measured latencies, and write a table and a figure.

    \b
    python -m service simulate --profile profile.json --trace poisson:rate=20,seconds=60 --out runs/simulation
    python -m service simulate --profile profile.json --trace gamma:load=0.7,cv2=4,seconds=120 --out runs/bursty
    python -m service simulate --profile profile.json --trace recorded.csv --policy slack_fit,roll_out --out runs/ours

    A trace takes rate= (pictures a second) or load= (of what the engine can do; reference=VARIANT@SIDE: with that one),
    seconds=, and where wanted tiers=name:ms+..., mix=name:share+..., sizes=WIDTHxHEIGHT:share+..., late_ok=share and
    seed=; gamma: cv2=; diurnal: swing=, bursts=, burst_factor=, burst_seconds=. A CSV file has the columns arrival_s
    and budget_ms, and may have tier, width, height and late_ok.
    """
    import sys

    from service.scheduling.policies import POLICIES, make_policy
    from service.simulation.profile import capacity, read_profile
    from service.simulation.report import (
        NoMatplotlibError,
        Report,
        check_folder,
        markdown,
        mean_rate,
        write_figure,
        write_report,
    )
    from service.simulation.results import summarise
    from service.simulation.simulate import Setting, simulate
    from service.simulation.trace import load_trace, tier_budgets

    try:
        names = list(POLICIES) if policy == "all" else [name.strip() for name in policy.split(",")]
        for name in names:
            if name not in POLICIES:
                raise ValueError(f"there is no policy {name!r}; there are {', '.join(POLICIES)}, or all")
        setting = Setting(decode_ms, decode_threads, decode_cv, queue_limit, drift, decision_ms, seed, admission)
        check_folder(out)
        measured = read_profile(profile, max_batch)
        arrivals = load_trace(trace, measured, seed)
        tiers = tier_budgets(arrivals)
        sizes = [(arrival.width, arrival.height, 1.0) for arrival in arrivals]
        results = []
        with typer.progressbar(length=len(arrivals) * len(names), file=sys.stderr, label="simulating") as bar:
            for name in names:
                run = simulate(make_policy(name, tiers), arrivals, measured, setting, bar.update)
                results.append(summarise(run, arrivals, measured))
        report = Report(
            trace=trace, profile=profile.name, hardware=measured.hardware, date=measured.date, requests=len(arrivals),
            rate=mean_rate([arrival.at_s for arrival in arrivals]), capacity=capacity(measured, sizes),
            setting=setting, results=tuple(results),
        )  # fmt: skip
        paths = write_report(report, out)
        typer.echo(markdown(report))
        try:
            paths.append(write_figure(report, out))
        except NoMatplotlibError as error:
            typer.echo(f"asfd: no figure: {error}", err=True)
        typer.echo(f"asfd: wrote {', '.join(map(str, paths))}", err=True)
    except (OSError, ValueError) as error:
        typer.echo(f"asfd: {error}", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        typer.echo("asfd: stopped; nothing was written", err=True)
        raise typer.Exit(130) from None
