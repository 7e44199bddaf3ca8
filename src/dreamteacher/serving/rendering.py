"""Output of `dreamteacher predict` for each type of answer: one Rendering per type, found by `rendering_of`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from dreamteacher.data.drawing import class_colours, draw_boxes, draw_classes, draw_depth, draw_keypoints, draw_objects
from dreamteacher.serving.answers import (
    ANSWERS,
    Answer,
    Classification,
    Depth,
    Detections,
    Features,
    Instances,
    Keypoints,
    MultiLabel,
    Raw,
    Segmentation,
)

LEAST_SCORE = 0.5  # score threshold for counting and drawing objects or keypoints; JSON lines have all
LEAST_OBJECT = 0.3  # the same for objects with keypoints, as in the evaluation

Files = dict[str, str]


def _nothing(*_: Any) -> dict[str, Any]:
    return {}


class Rendering(NamedTuple):
    """Of one kind of answer.

    words: the line of text. values: {class: its share, probability or number of objects}. facts: what else is a column of CSV. listed: what
    JSON lines hold beside facts and files. save: writes (answer, picture, place without suffix) and returns {kind of file: its name}.
    columns: of CSV, keys of `facts`. files: keys of what `save` returns.
    """

    words: Callable[[Any], str]
    values: Callable[[Any], dict[str, float]]
    listed: Callable[[Any], dict[str, Any]]
    facts: Callable[[Any], dict[str, str]] = _nothing
    save: Callable[[Any, np.ndarray, Path], Files] = _nothing
    columns: tuple[str, ...] = ()
    files: tuple[str, ...] = ()


def rendering_of(answer: type[Answer] | Answer) -> Rendering:
    """Of an answer or its type."""
    return _RENDERINGS[answer if isinstance(answer, type) else type(answer)]


def rendering_of_task(task: str) -> Rendering:
    """Of the answers of a task; one from another package is answered by `Raw`."""
    return rendering_of(ANSWERS.get(task, Raw))


def _by_class(classes: tuple[str, ...], values: np.ndarray) -> dict[str, Any]:
    return dict(zip(classes, values.tolist(), strict=True))


def _list_of(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _likeliest(answer: Classification) -> str:
    values = answer.probabilities
    return ", ".join(f"{answer.classes[i]} {values[i]:.3f}" for i in np.argsort(-values)[:3])


def _shares(answer: Segmentation) -> str:
    return ", ".join(f"{name} {share:.1%}" for name, share in zip(answer.classes, answer.shares, strict=True))


def _save_mask(answer: Segmentation, picture: np.ndarray, place: Path) -> Files:
    image = Image.fromarray(answer.mask)
    image.putpalette(class_colours(answer.classes).ravel().tolist())
    image.save(f"{place}.mask.png")
    Image.fromarray(draw_classes(picture, answer.mask, answer.classes)).save(f"{place}.overlay.png")
    return {"mask": f"{place}.mask.png", "overlay": f"{place}.overlay.png"}


def _counts(answer: Detections | Instances) -> dict[str, Any]:
    """How many objects of each class are sure enough."""
    return _by_class(answer.classes, np.bincount(answer.labels[answer.scores >= LEAST_SCORE], minlength=len(answer.classes)))


def _listed_boxes(answer: Detections) -> dict[str, Any]:
    objects = zip(answer.labels, answer.scores.tolist(), answer.boxes.tolist(), strict=True)
    rounded = ((label, round(score, 4), [round(value, 2) for value in box]) for label, score, box in objects)
    return {"detections": [{"class": answer.classes[label], "score": score, "box": box} for label, score, box in rounded]}


def _save_boxes(answer: Detections, picture: np.ndarray, place: Path) -> Files:
    sure = answer.scores >= LEAST_SCORE
    boxes, labels, scores = answer.boxes[sure], answer.labels[sure], answer.scores[sure]
    captions = [f"{answer.classes[label]} {score:.2f}" for label, score in zip(labels, scores, strict=True)]
    Image.fromarray(draw_boxes(picture, boxes, labels, captions)).save(f"{place}.overlay.png")
    return {"overlay": f"{place}.overlay.png"}


def _all_counts(answer: Instances) -> dict[str, Any]:
    return _by_class(answer.classes, np.bincount(answer.labels, minlength=len(answer.classes)))


def _listed_objects(answer: Instances) -> dict[str, Any]:
    areas = np.bincount(answer.mask.ravel(), minlength=len(answer.labels) + 1)[1:].tolist()
    objects = zip(answer.labels, answer.scores.tolist(), areas, strict=True)
    return {"instances": [{"class": answer.classes[label], "score": round(score, 4), "pixels": area} for label, score, area in objects]}


def _save_objects(answer: Instances, picture: np.ndarray, place: Path) -> Files:
    Image.fromarray(answer.mask.astype(np.uint16)).save(f"{place}.instances.png")
    Image.fromarray(draw_objects(picture, answer.mask)).save(f"{place}.overlay.png")
    return {"instances": f"{place}.instances.png", "overlay": f"{place}.overlay.png"}


def _sure_objects(answer: Keypoints) -> np.ndarray:
    return np.flatnonzero(answer.scores >= LEAST_OBJECT)


def _count_keypoints(answer: Keypoints) -> dict[str, Any]:
    """In how many of the objects that are sure enough each keypoint is."""
    return _by_class(answer.classes, (answer.seen[_sure_objects(answer)] >= LEAST_SCORE).sum(0))


def _say_keypoints(answer: Keypoints) -> str:
    of_objects = (answer.seen[_sure_objects(answer)] >= LEAST_SCORE).sum(1).tolist()
    found = f" with {', '.join(map(str, of_objects))} of {len(answer.classes)} keypoints" if of_objects else ""
    return f"{len(of_objects)} object{'' if len(of_objects) == 1 else 's'}{found}"


def _list_keypoints(answer: Keypoints) -> dict[str, Any]:
    objects = []
    for score, points, seen in zip(answer.scores.tolist(), answer.points.tolist(), answer.seen.tolist(), strict=True):
        of_points = zip(answer.classes, points, seen, strict=True)
        named = {name: {"x": round(x, 2), "y": round(y, 2), "seen": round(share, 4)} for name, (x, y), share in of_points}
        objects.append({"score": round(score, 4), "keypoints": named})
    return {"objects": objects}


def _save_keypoints(answer: Keypoints, picture: np.ndarray, place: Path) -> Files:
    points = np.concatenate([answer.points, answer.seen[:, :, None]], axis=2)[_sure_objects(answer)]
    Image.fromarray(draw_keypoints(picture, points, answer.skeleton, LEAST_SCORE)).save(f"{place}.overlay.png")
    return {"overlay": f"{place}.overlay.png"}


def _range(answer: Depth) -> dict[str, float]:
    low, middle, high = np.quantile(answer.depth, [0, 0.5, 1]).tolist()
    return {"min": round(low, 4), "median": round(middle, 4), "max": round(high, 4)}


def _save_depth(answer: Depth, picture: np.ndarray, place: Path) -> Files:
    Image.fromarray(answer.depth.astype(np.float32)).save(f"{place}.depth.tif", "TIFF")
    Image.fromarray(draw_depth(answer.depth)).save(f"{place}.overlay.png")
    return {"depth": f"{place}.depth.tif", "overlay": f"{place}.overlay.png"}


def _save_raw(answer: Raw, _: np.ndarray, place: Path) -> Files:
    arrays: dict[str, Any] = {**answer.outputs, "prepared": np.array(answer.prepared), "size": np.array(answer.size)}
    np.savez(f"{place}.outputs.npz", **arrays)
    return {"outputs": f"{place}.outputs.npz"}


def _sizes(answer: Features | Raw) -> str:
    arrays = answer.outputs if isinstance(answer, Raw) else {**answer.maps, "embedding": answer.embedding}
    return ", ".join(f"{name} {' x '.join(map(str, array.shape))}" for name, array in arrays.items())


def _save_features(answer: Features, _: np.ndarray, place: Path) -> Files:
    arrays: dict[str, Any] = {**answer.maps, "embedding": answer.embedding, "size": np.array(answer.size)}
    np.savez(f"{place}.npz", **arrays)
    return {"features": f"{place}.npz"}


_RENDERINGS: dict[type, Rendering] = {
    Classification: Rendering(
        words=_likeliest,
        values=lambda answer: _by_class(answer.classes, answer.probabilities),
        listed=lambda answer: {"probabilities": _by_class(answer.classes, answer.probabilities)},
        facts=lambda answer: {"class": answer.best},
        columns=("class",),
    ),
    Segmentation: Rendering(
        words=_shares,
        values=lambda answer: _by_class(answer.classes, answer.shares),
        listed=lambda answer: {"shares": _by_class(answer.classes, answer.shares)},
        save=_save_mask,
        files=("mask", "overlay"),
    ),
    Detections: Rendering(
        words=lambda answer: _list_of(_counts(answer)), values=_counts, listed=_listed_boxes, save=_save_boxes, files=("overlay",)
    ),
    Instances: Rendering(
        words=lambda answer: _list_of(_all_counts(answer)),
        values=_all_counts,
        listed=_listed_objects,
        save=_save_objects,
        files=("instances", "overlay"),
    ),
    Keypoints: Rendering(words=_say_keypoints, values=_count_keypoints, listed=_list_keypoints, save=_save_keypoints, files=("overlay",)),
    MultiLabel: Rendering(
        words=lambda answer: (
            ", ".join(f"{name} {answer.probabilities[answer.classes.index(name)]:.3f}" for name in answer.labels) or "none of the classes"
        ),
        values=lambda answer: _by_class(answer.classes, answer.probabilities),
        listed=lambda answer: {"labels": answer.labels, "probabilities": _by_class(answer.classes, answer.probabilities)},
        facts=lambda answer: {"labels": ";".join(answer.labels)},
        columns=("labels",),
    ),
    Depth: Rendering(
        words=lambda answer: "depth {min:g} to {max:g}, median {median:g}".format(**_range(answer)),
        values=_nothing,
        listed=lambda answer: {"range": _range(answer)},
        save=_save_depth,
        files=("depth", "overlay"),
    ),
    Raw: Rendering(words=_sizes, values=_nothing, listed=_nothing, save=_save_raw, files=("outputs",)),
    Features: Rendering(words=_sizes, values=_nothing, listed=_nothing, save=_save_features, files=("features",)),
}
