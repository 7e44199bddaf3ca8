"""Requests that no client of ours would send, and the memory of the server that gets them.

    python benchmarks/hostile.py [--mutations 1000] [--rounds 5] [--out benchmarks/results/hostile]

Sends the same random mutations of good requests (HTTP as JSON and as bytes, gRPC; to NAME, NAME-backbone and NAME-pictures) in several
rounds to the tritonserver that `dreamteacher serve` starts. Counts how they were answered, and writes hostile.json and the plot memory.png.
Two minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dreamteacher.serving.triton_repository import write_repository
from dreamteacher.serving.triton_server import running_triton
from dreamteacher.settings.downstream import Publish
from serving_models import NAME, make_models, sample_pictures

sys.path.extend(str(Path(__file__).parents[1] / folder) for folder in ("tests/serving", "tests"))
from hostile_requests import Caller, good_requests, memory_of, mutated

SIZE = 64
EVERY = 25  # requests between two looks at the memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/hostile"))
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    chance, memory, counts, unclean = random.Random(0), [], Counter[str](), []
    with TemporaryDirectory(prefix="hostile-") as folder:
        os.chdir(folder)
        models = make_models(Path(folder) / "models", Publish(name=NAME))
        named = {name.replace(NAME, "cells"): path for name, path in models.items()}
        good = good_requests(sample_pictures()[0], SIZE)
        requests = [mutated(chance.choice(good), chance) for _ in range(arguments.mutations)]
        write_repository(named, Path(folder) / "local", backend="python", settings=Publish(name="cells", max_request_pixels=5_000_000))
        with running_triton(Path(folder) / "local") as triton:
            caller = Caller(triton.http_url, triton.grpc_url)
            for _ in range(arguments.rounds):
                for index, sent in enumerate(requests):
                    came = caller.send(sent)
                    counts[f"{sent.protocol} {came.status}"] += 1
                    if not came.is_clean:
                        unclean.append(f"{sent.protocol} {sent.model}: {came.status} {came.words}")
                    if index % EVERY == 0:
                        memory.append(round(memory_of(triton.process.pid) / 1e6, 1))
            answers = [caller.send(each).is_answer for each in good]
            caller.close()
            alive = triton.process.poll() is None and all(answers)
    first, last = max(memory[: len(memory) // arguments.rounds]), max(memory[-len(memory) // arguments.rounds :])
    print(f"{sum(counts.values())} requests: {dict(sorted(counts.items()))}; {len(unclean)} without words; server alive: {alive}")
    print(f"memory at most {first:.0f} MB in the first round, {last:.0f} MB in the last")
    figures = {"counts": counts, "unclean": unclean, "alive": alive, "memory_mb": memory, "every": EVERY}
    (out / "hostile.json").write_text(json.dumps(figures, indent=2) + "\n")
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes: Axes = figure.subplots()
    axes.plot([EVERY * i for i in range(len(memory))], memory)
    axes.set(xlabel="mutated requests", ylabel="memory of the server, MB", ylim=(0, 1.2 * max(memory)))
    figure.savefig(out / "memory.png")


if __name__ == "__main__":
    main()
