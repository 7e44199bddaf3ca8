"""Throughput and latency of the served models beside onnxruntime in one process, the best configuration, and behaviour under overload.

    python benchmarks/serving.py [--quick] [--only compare sweep overload] [--repeats 5] [--out benchmarks/results/serving]

Serves a segmentation model of nuclei (random weights) on this machine with the tritonserver that `dreamteacher serve` starts, and asks it
through the client library, over gRPC, with the pictures of samples/nuclei. Takes about 7 minutes on two cores, with --quick one. Writes
serving.json, the plots compare.png, sweep.png and overload.png, and params.yaml with the best settings of publish.

compare: NAME, NAME-backbone and NAME-pictures with 1, 8 and 32 clients. `raw` does the same work without a server: the same file, pictures
prepared and outputs read by the same functions, as many instances and threads, as many requests under way; single pictures and batches of
what waits, of which the faster counts. Served and raw take turns, and the median of the repeats counts. By default clients and server
share the cores, so the share of raw is given by CPU time, too: of clients and server, and of the server alone beside what raw takes for the
same part of the work. With --server-cores N the server has N cores of its own and the clients the others, as where they run on other
machines; raw has the same N cores for what the server does, and the others for the rest.

sweep: instances x threads x batching at 8 clients. The best configuration is the one with the lowest p95 among those whose throughput is
within 5 % of the highest.

overload: NAME-pictures at its capacity and at four times that, by requests that do not wait for each other.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dreamteacher.data.decode import decode
from dreamteacher.serving.client import Client
from dreamteacher.serving.triton_repository import write_repository
from dreamteacher.serving.triton_server import Triton, running_triton
from dreamteacher.settings.downstream import Publish
from serving_load import Cores, Measured, Raw, closed_loop, on, open_loop, percentiles
from serving_models import NAME, make_models, sample_pictures

MODELS = (NAME, f"{NAME}-backbone", f"{NAME}-pictures")
CLIENTS = (1, 8, 32)
AT = 8  # clients at which configurations are compared
PARTS = ("compare", "sweep", "overload")
OVERLOAD = 4
TIE = 0.95


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a fraction of the time, for a look: figures scatter")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--repeats", type=int, help="default: 5, with --quick 1")
    parser.add_argument("--seconds", type=float, help="of each measurement; default: 1.5, with --quick 0.7")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, help="of compare")
    parser.add_argument("--clients", nargs="+", type=int, default=CLIENTS, help="of compare")
    parser.add_argument("--short-side", type=int, help="to which pictures are enlarged for compare, up to 256; default: as they are, 128")
    parser.add_argument("--server-cores", type=int, metavar="N", help="for the server alone; default: it shares all cores with the clients")
    parser.add_argument("--instances", type=int, default=Publish().instances)
    parser.add_argument("--threads", type=int, default=Publish().threads)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/serving"))
    arguments = parser.parse_args()
    cores = Cores.split(arguments.server_cores)
    repeats = arguments.repeats or (1 if arguments.quick else 5)
    seconds = arguments.seconds or (0.7 if arguments.quick else 1.5)
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    settings = Publish(name=NAME, instances=arguments.instances, threads=arguments.threads)
    results: dict[str, Any] = {
        "cores": len(cores.server | cores.clients),
        "server_cores": arguments.server_cores,
        "short_side": arguments.short_side,
        "settings": settings.model_dump(),
    }
    os.sched_setaffinity(0, cores.clients)
    with TemporaryDirectory(prefix="serving-") as folder:
        os.chdir(folder)  # the server's log
        models = make_models(Path(folder) / "models", settings)
        if "compare" in arguments.only:
            files = sample_pictures(arguments.short_side)
            amount = {"cores": cores, "clients": arguments.clients, "repeats": repeats, "seconds": seconds}
            with served(models, settings, cores) as triton:
                results["compare"] = {
                    name: compare(triton, name, models[name.removesuffix("-pictures")], settings, files, **amount)
                    for name in arguments.models
                }
            draw_compare(results["compare"], out / "compare.png")
        if "sweep" in arguments.only:
            results["sweep"] = sweep(models, cores, repeats=1 if arguments.quick else 2, seconds=seconds, quick=arguments.quick)
            draw_sweep(results["sweep"], out / "sweep.png")
            (out / "params.yaml").write_text(yaml.safe_dump({"publish": results["sweep"]["best"]}))
            print(f"best: {results['sweep']['best']}")
        if "overload" in arguments.only:
            results["overload"] = overload(models, settings, cores, seconds=4 if arguments.quick else 12)
            draw_overload(results["overload"], out / "overload.png")
        (out / "serving.json").write_text(json.dumps(results, indent=2) + "\n")
    print(f"written to {out}")


@contextmanager
def served(models: dict[str, Path], settings: Publish, cores: Cores, **variants: Publish) -> Iterator[Triton]:
    """A server of `models`, or of each of `variants` under its name."""
    with TemporaryDirectory(prefix="repository-") as folder, ExitStack() as stack:
        for name, each in (variants or {"": settings}).items():
            named = {f"{name or NAME}{model.removeprefix(NAME)}": path for model, path in models.items()}
            write_repository(named, Path(folder) / "local", backend="python", settings=each)
        with on(cores.server):
            triton = stack.enter_context(running_triton(Path(folder) / "local"))
        yield triton


def compare(
    triton: Triton,
    model: str,
    path: Path,
    settings: Publish,
    files: list[bytes],
    *,
    cores: Cores,
    clients: Sequence[int],
    repeats: int,
    seconds: float,
) -> dict[int, Any]:
    """{clients: figures} of a served model. path: of the ONNX file that it runs."""
    takes_files = model.endswith("-pictures")
    items: list[Any] = files if takes_files else [decode(data).image for data in files]
    found: dict[int, Any] = {}
    with ExitStack() as stack:
        client = stack.enter_context(Client(triton.grpc_url, model.removesuffix("-backbone"), protocol="grpc"))
        asks: dict[str, Callable[[Any], object]] = {"served": client.features if model.endswith("backbone") else client.predict}
        for name, batch in (("raw", 1), ("raw batched", 16)):
            with on(cores.server):
                raw = Raw(path, settings.instances, settings.threads, batch)
            stack.callback(raw.close)
            asks[name] = raw.ask
        for ask in asks.values():  # the client learns the size of answers, onnxruntime claims its memory
            closed_loop(ask, items, AT, max(1.0, seconds))

        def measure(name: str, count: int) -> Measured:
            # Of NAME-pictures the server does all the work, so raw prepares pictures on the server's cores.
            with on(cores.server if takes_files and name != "served" else cores.clients):
                return closed_loop(asks[name], items, count, seconds, triton if name == "served" else None)

        for count in clients:
            rounds = [{name: measure(name, count) for name in asks} for _ in range(repeats)]
            found[count] = summary(rounds, server_prepares=takes_files)
            print(f"{model:18s} {count:2d} clients  {in_words(found[count])}", flush=True)
    return found


def summary(rounds: list[dict[str, Measured]], *, server_prepares: bool) -> dict[str, Any]:
    """Medians over the rounds, latencies over all of them together, and served throughput as a share of that of the faster raw.

    server_prepares: the server does all that raw does, not only what the model computes.
    """
    figures: dict[str, Any] = {}
    for name in rounds[0]:
        each = [measured[name].figures() for measured in rounds]
        figures[name] = {key: median(one[key] for one in each) for key in each[0] if not key.startswith("p")}
        figures[name] |= percentiles([latency for measured in rounds for latency in measured[name].latencies])
    best = max(("raw", "raw batched"), key=lambda name: figures[name]["throughput"])
    shares = [measured["served"].throughput / measured[best].throughput for measured in rounds]
    served_cpu = figures["served"]["cpu_ms"] + figures["served"]["server_cpu_ms"]
    raw_cpu = {name: figures[name]["cpu_ms"] for name in ("raw", "raw batched")}
    of_server = {name: cpu if server_prepares else cpu - figures[name]["asking_cpu_ms"] for name, cpu in raw_cpu.items()}
    return figures | {
        "share_of_raw": {"median": round(median(shares), 3), "least": round(min(shares), 3), "most": round(max(shares), 3)},
        "share_of_raw_by_cpu_time": round(min(raw_cpu.values()) / served_cpu, 3),
        "share_of_raw_by_server_cpu_time": round(min(of_server.values()) / figures["served"]["server_cpu_ms"], 3),
        "client_share_of_cpu": round(figures["served"]["cpu_ms"] / served_cpu, 3),
    }


def in_words(figures: dict[str, Any]) -> str:
    served, share = figures["served"], figures["share_of_raw"]
    raw = max(figures["raw"]["throughput"], figures["raw batched"]["throughput"])
    raw_cpu = min(figures["raw"]["cpu_ms"], figures["raw batched"]["cpu_ms"])
    return (
        f"{served['throughput']:6.1f}/s  p50 {served['p50_ms']:6.1f}  p95 {served['p95_ms']:6.1f}  p99 {served['p99_ms']:6.1f} ms  "
        f"raw {raw:6.1f}/s  share {share['median']:.2f} ({share['least']:.2f} to {share['most']:.2f}), "
        f"by CPU time {figures['share_of_raw_by_cpu_time']:.2f}, without clients {figures['share_of_raw_by_server_cpu_time']:.2f}; "
        f"CPU time {served['server_cpu_ms']:.1f} ms server, {served['cpu_ms']:.1f} client, {raw_cpu:.1f} raw"
    )


def configurations(cores: int, *, quick: bool) -> list[dict[str, int]]:
    """As many threads as cores or twice as many, in all ways; single requests, and joined ones with and without a wait."""
    powers = [1 << i for i in range((2 * cores).bit_length())]
    splits = [(i, t) for i, t in itertools.product(powers, powers) if cores <= i * t <= 2 * cores]
    if quick:
        splits = [(i, t) for i, t in splits if i * t == cores]
    batching = [(1, 0), (16, 0), (16, 2000)] if quick else [(1, 0), (4, 0), (16, 0), (16, 2000)]
    return [
        {"instances": instances, "threads": threads, "preferred_batch_size": batch, "queue_delay_us": delay}
        for (instances, threads), (batch, delay) in itertools.product(splits, batching)
    ]


def sweep(models: dict[str, Path], cores: Cores, *, repeats: int, seconds: float, quick: bool) -> dict[str, Any]:
    """Figures of each configuration of NAME at AT clients, and the best one. One server for each split of the cores."""
    pictures = [decode(data).image for data in sample_pictures()]
    rows: list[dict[str, Any]] = []
    model = {NAME: models[NAME]}
    every = configurations(len(cores.server), quick=quick)
    for _, group in itertools.groupby(every, key=lambda each: (each["instances"], each["threads"])):
        variants = {f"{NAME}{index}": each for index, each in enumerate(group)}
        publish = {name: Publish(name=name, pictures=False, **each) for name, each in variants.items()}
        with served(model, Publish(), cores, **publish) as triton, ExitStack() as stack:
            clients = {name: stack.enter_context(Client(triton.grpc_url, name, protocol="grpc")) for name in variants}
            measured: dict[str, list[Measured]] = {name: [] for name in variants}
            for client in clients.values():
                closed_loop(client.predict, pictures, AT, min(1.0, seconds))
            for (name, client), _ in itertools.product(clients.items(), range(repeats)):
                measured[name].append(closed_loop(client.predict, pictures, AT, seconds, triton))
        for name, each in variants.items():
            latencies = [latency for one in measured[name] for latency in one.latencies]
            rows.append(each | {"throughput": round(median(one.throughput for one in measured[name]), 2)} | percentiles(latencies))
            print("sweep", rows[-1], flush=True)
    most = max(row["throughput"] for row in rows)
    best = min((row for row in rows if row["throughput"] >= TIE * most), key=lambda row: row["p95_ms"])
    return {"rows": rows, "best": {key: best[key] for key in every[0]}}


def overload(models: dict[str, Path], settings: Publish, cores: Cores, *, seconds: float) -> dict[str, Any]:
    """NAME-pictures at its capacity and at OVERLOAD times that."""
    files, model = sample_pictures(), f"{NAME}-pictures"
    with served(models, settings, cores) as triton:
        with Client(triton.grpc_url, model, protocol="grpc") as client:
            closed_loop(client.predict, files, AT, 2)
            capacity = closed_loop(client.predict, files, 32, seconds / 2).throughput
        found = {
            name: open_loop(triton, model, files, factor * capacity, seconds) for name, factor in (("capacity", 1), ("overload", OVERLOAD))
        }
    figures: dict[str, Any] = {"capacity_per_second": round(capacity, 2)} | {name: each.figures() for name, each in found.items()}
    p99 = [figures[name]["accepted_latency"]["p99_ms"] for name in found]
    figures["p99_ratio"] = round(p99[1] / p99[0], 2)
    figures["latencies"] = {
        f"{name}, {kind}": [round(1000 * value, 1) for value in getattr(each, kind)]
        for name, each in found.items()
        for kind in ("accepted", "refused")
    }
    for name in found:
        print(f"{name}: {figures[name]}", flush=True)
    print(f"p99 of accepted requests at {OVERLOAD} times the capacity of {capacity:.1f}/s: {figures['p99_ratio']} times that at capacity")
    return figures


def draw_compare(found: dict[str, Any], path: Path) -> None:
    figure = Figure(figsize=(4 * len(found), 3.4), layout="constrained")
    for axes, (model, rows) in zip(figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True):
        for shift, name in enumerate(("served", "raw", "raw batched")):
            axes.bar([i + 0.27 * shift for i in range(len(rows))], [row[name]["throughput"] for row in rows.values()], 0.25, label=name)
        axes.set_xticks([i + 0.27 for i in range(len(rows))], [f"{clients} clients" for clients in rows])
        axes.set_title(model)
        axes.set_ylabel("pictures a second")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.savefig(path)


def draw_sweep(found: dict[str, Any], path: Path) -> None:
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes: Axes = figure.subplots()
    rows = sorted(found["rows"], key=lambda row: (row["instances"], row["threads"]))
    for (instances, threads), group in itertools.groupby(rows, key=lambda row: (row["instances"], row["threads"])):
        points = list(group)
        axes.scatter([row["throughput"] for row in points], [row["p95_ms"] for row in points], label=f"{instances} x {threads}")
        for row in points:
            text = f"{row['preferred_batch_size']}, {row['queue_delay_us'] / 1000:g} ms"
            axes.annotate(text, (row["throughput"], row["p95_ms"]), fontsize=7)
    axes.set(xlabel=f"pictures a second at {AT} clients", ylabel="p95, ms", title="preferred batch and queue delay, by instances x threads")
    axes.legend()
    figure.savefig(path)


def draw_overload(found: dict[str, Any], path: Path) -> None:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes: Axes = figure.subplots()
    for name, values in found["latencies"].items():
        if values:
            axes.ecdf(values, label=f"{name} ({len(values)})")
    axes.set(xscale="log", xlabel="milliseconds until the answer", ylabel="share of the requests")
    axes.legend()
    figure.savefig(path)


if __name__ == "__main__":
    main()
