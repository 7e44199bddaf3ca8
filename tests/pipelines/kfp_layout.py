"""How large KFP's user interface draws each layer of a compiled package: frontend/src/lib/v2/StaticFlow.ts of 2.17, which asks dagre.

A task and each artifact that it outputs are boxes; edges come from artifacts, from parameters of other tasks, and from `dependentTasks`.
Inputs of the layer itself are not drawn. dagre puts boxes in ranks, and an edge over several ranks takes a place in each between.

Here grandalf lays them out, which comes with DVC. Of these pipelines its layers are as high as dagre 0.8.5 makes them, and up to half as
wide again, never narrower; the narrowest of a few tries is taken.
"""

from __future__ import annotations

from random import Random
from typing import Any

import networkx
from grandalf.graphs import Edge, Vertex, graph_core
from grandalf.layouts import SugiyamaLayout

WIDTH, HEIGHT, BESIDE, BELOW = 224, 48, 50, 50  # px: of a box, and between boxes
TRIES = 10


class _Box:
    w, h = WIDTH, HEIGHT


def layers(spec: dict[str, Any]) -> dict[str, tuple[int, int, int]]:
    """{name of a group, "" of the whole: (its tasks, width and height in px at zoom 1)}."""
    groups = {"": spec["root"]} | spec["components"]
    return {name: (len(group["dag"]["tasks"]), *_size(spec, group["dag"])) for name, group in groups.items() if "dag" in group}


def _size(spec: dict[str, Any], dag: dict[str, Any]) -> tuple[int, int]:
    graph = networkx.DiGraph()
    for name, task in dag["tasks"].items():
        graph.add_node(name)
        outputs = spec["components"][task["componentRef"]["name"]].get("outputDefinitions", {})
        graph.add_edges_from((name, (name, output)) for output in outputs.get("artifacts", {}))
        inputs = task.get("inputs", {})
        for source in inputs.get("artifacts", {}).values():
            if made := source.get("taskOutputArtifact"):
                graph.add_edge((made["producerTask"], made["outputArtifactKey"]), name)
        for source in inputs.get("parameters", {}).values():
            if made := source.get("taskOutputParameter"):
                graph.add_edge(made["producerTask"], name)
        graph.add_edges_from((before, name) for before in task.get("dependentTasks", []))
    parts = [graph.subgraph(nodes) for nodes in networkx.weakly_connected_components(graph)]
    height = networkx.dag_longest_path_length(graph) * (HEIGHT + BELOW) + HEIGHT
    return sum(min(_width(part, seed) for seed in range(TRIES)) for part in parts) + BESIDE * (len(parts) - 1), height


def _width(part: networkx.DiGraph, seed: int) -> int:
    """Of one connected part whose edges come in an order of that seed: grandalf's crossings, and with them its width, depend on it."""
    boxes = {node: Vertex(node) for node in sorted(part, key=str)}
    for box in boxes.values():
        box.view = _Box()
    edges = [Edge(boxes[a], boxes[b]) for a, b in sorted(part.edges, key=str)]
    Random(seed).shuffle(edges)
    layout = SugiyamaLayout(graph_core(list(boxes.values()), edges))
    layout.xspace, layout.yspace = BESIDE, BELOW
    layout.init_all()
    layout.draw(3)
    xs = [box.view.xy[0] for box in layout.g.sV]
    return round(max(xs) - min(xs)) + WIDTH
