"""Evaluation on tiny synthetic data sets with random models: tests the metrics."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import pytest
import torch
from PIL import Image

from dreamteacher.data.dataset import ImageSet
from dreamteacher.distillation import drawing
from dreamteacher.errors import UserError
from dreamteacher.report.figures import pca_colours
from dreamteacher.report.tables import write_table
from dreamteacher.settings.pretraining import Teacher
from dreamteacher.settings.schema import Params
from dreamteacher.stage import open_stage
from dreamteacher.stages import evaluate, ingest
from dreamteacher.students.backbone import create_backbone
from dreamteacher.students.regressor import FeatureRegressor, save_regressor
from dreamteacher.tasks import readout
from dreamteacher.tasks.model import TaskModel, load_task_model, normalize, save_task_model
from dreamteacher.teachers.ddpm import Generator
from dreamteacher.teachers.diffusion import decoder_taps
from dreamteacher.teachers.unet import build_unet

ARCHITECTURE, WIDTH, SIDE = "resnet10t", 16, 32
CLASSES = {"segmentation": ["background", "disc"], "classification": ["dark", "light", "striped"]}
FINETUNE = {"finetune": {"resolution": SIDE, "steps": 1}, "student": {"backbone": ARCHITECTURE, "finest_stride": 4}, "few_labels": 4}


@dataclass
class Chain:
    """The folders of a finished chain."""

    root: Path
    params: Params

    def run(self, out: str = "evaluation", **changes: object) -> dict[str, float]:
        places = {"data": self.root / "data", "teachers": self.root, "backbones": self.root, "finetuned": self.root / "finetuned"}
        return evaluate.run(
            self.params.model_copy(update=changes),
            **places,
            out=self.root / out,
            metrics=self.root / "metrics" / f"{out}.json",
            plots=self.root / "plots" / out,
        )

    def metrics(self, out: str = "evaluation") -> dict[str, dict[str, float]]:
        return json.loads((self.root / "metrics" / f"{out}.json").read_text())


def make_pictures(task: str, folder: Path, random: np.random.Generator) -> None:
    for split, count in (("train", 12), ("val", 7)):
        for number in range(count):
            height, width = [(40, 48), (32, 32), (33, 50)][number % 3]
            picture = random.integers(0, 90, (height, width, 3), dtype=np.uint8)
            if task == "segmentation":
                rows, columns = np.ogrid[:height, :width]
                disc = (rows - random.integers(height)) ** 2 + (columns - random.integers(width)) ** 2 < 120
                picture[disc] += 140
                mask = disc.astype(np.uint8)
                mask[0] = 255
                place, masks = folder / "images" / split, folder / "masks" / split
                masks.mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask).save(masks / f"{number}.png")
            else:
                kind = CLASSES[task][number % 3]
                picture += np.uint8({"dark": 0, "light": 140}.get(kind, 60))
                if kind == "striped":
                    picture[::4] = 250
                place = folder / split / kind
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(place / f"{number}.png")
    if task == "segmentation":
        (folder / "classes.txt").write_text("\n".join(CLASSES[task]) + "\n")


def finetuned(root: Path, init: str, seed: int, *, task: str, **changes: object) -> None:
    recorded = {**FINETUNE, **changes, "init": init, "seed": seed}
    with open_stage("finetune", params=recorded, inputs={"data": root / "data"}, out=root / "finetuned" / init / str(seed)) as stage:
        torch.manual_seed(hash((init == "scratch", seed)))
        save_task_model(TaskModel(create_backbone(ARCHITECTURE), task, CLASSES[task], SIDE, WIDTH), stage.tmp)
        write_table([{"step": 1, "loss": 0.5 + seed}, {"step": 2, "loss": 0.25}], stage.tmp / "curves.csv")


@pytest.fixture(scope="module", params=["segmentation", "classification"])
def chain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    task = request.param
    root = tmp_path_factory.mktemp(task)
    params = Params.model_validate(
        {"few_labels": 4, "compare": {"inits": ["scratch", "features"], "seeds": [0, 1]}, "export": {"init": "scratch"}}
        | {"teachers": {"teacher": {}}, "recipes": {"features": {"teacher": "teacher"}}}
        | {"evaluate": {"overlays": 2, "batch_size": 3, "knn_k": 3}}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr(readout, "SUPPORT_PIXELS", 200)
        patch.setattr(readout, "QUERY_PIXELS", 400)
        make_pictures(task, root / "pictures", np.random.default_rng(0))
        ingest.run(params, source=root / "pictures", out=root / "data")
        torch.manual_seed(0)
        unet = build_unet("tiny", SIDE)
        with open_stage("train-teacher", params={}, inputs={"data": root / "data"}, out=root / "teacher") as stage:
            Generator(Teacher(T_train=100)).save(unet, stage.tmp, {})
            write_table([{"step": 1, "loss": 1.0}], stage.tmp / "curves.csv")
        distill = {"distill": {"T": 5, "whitening": "layernorm"}}
        with open_stage("distill-features", params=distill, inputs={"data": root / "data"}, out=root / "features") as stage:
            taps = decoder_taps(unet)[2:]
            channels, strides = [tap.channels for tap in taps], [tap.stride for tap in taps]
            save_regressor(FeatureRegressor(create_backbone(ARCHITECTURE), channels, strides, WIDTH), stage.tmp)
            write_table([{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.9, "explained_variance": 0.1}], stage.tmp / "curves.csv")
        for init in ("scratch", "features"):
            for seed in (0, 1):
                finetuned(root, init, seed, task=task)
        chain = Chain(root, params)
        chain.returned = chain.run()  # type: ignore[attr-defined]
        yield chain


def rows_of(chain: Chain) -> list[dict[str, str]]:
    with (chain.root / "evaluation" / "per_model.csv").open() as file:
        return list(csv.DictReader(file))


def independent(chain: Chain, folder: Path) -> dict[str, float]:
    """The figures of one model, picture by picture, with numpy alone."""
    model, val = load_task_model(folder), ImageSet(chain.root / "data", "val")
    truths, answers = [], []
    for index in val.labelled():
        sample = val.read(index)
        image = sample.image
        if model.task == "classification":
            shorter = min(image.shape[:2])
            size = [round(side * SIDE / shorter) if side != shorter else SIDE for side in image.shape[1::-1]]
            image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
        down, right = (-side % 32 for side in image.shape[:2])
        padded = np.pad(image, ((0, down), (0, right), (0, 0)), mode="reflect")
        with torch.inference_mode():
            tensor = torch.from_numpy(padded.transpose(2, 0, 1).copy()).float()[None] / 255
            answer = model(normalize(tensor, model.mean, model.std))[0].argmax(0).numpy()
        if model.task == "segmentation":
            answer = answer[: image.shape[0], : image.shape[1]][sample.label != 255]
            truths.append(sample.label[sample.label != 255])
        else:
            truths.append(np.array([sample.label]))
        answers.append(np.atleast_1d(answer))
    truth, answer = np.concatenate(truths), np.concatenate(answers)
    if model.task == "classification":
        return {"top1": float((truth == answer).mean())}
    iou = [((truth == c) & (answer == c)).sum() / ((truth == c) | (answer == c)).sum() for c in range(2)]
    return {"miou": fmean(iou), "iou_background": iou[0], "iou_disc": iou[1], "accuracy": float((truth == answer).mean())}


def test_every_figure_equals_an_independent_count(chain: Chain) -> None:
    rows = rows_of(chain)
    assert [(row["init"], row["seed"]) for row in rows] == [("scratch", "0"), ("scratch", "1"), ("features", "0"), ("features", "1")]
    for row in rows:
        for name, value in independent(chain, chain.root / "finetuned" / row["init"] / row["seed"]).items():
            assert float(row[name]) == pytest.approx(value, abs=1e-6), (row["init"], row["seed"], name)


def test_mean_and_spread_are_over_the_seeds(chain: Chain) -> None:
    metrics, rows = chain.metrics(), rows_of(chain)
    assert set(metrics) == {"scratch", "features"}
    for init, figures in metrics.items():
        for name in (column for column in rows[0] if column not in ("init", "seed")):
            values = [float(row[name]) for row in rows if row["init"] == init]
            assert figures[f"{name}_mean"] == pytest.approx(fmean(values))
            assert figures[f"{name}_std"] == pytest.approx(stdev(values))
        assert figures["n_seeds"] == 2


def test_what_is_returned_is_what_is_written(chain: Chain) -> None:
    figure = "miou" if "miou_mean" in chain.metrics()["scratch"] else "top1"
    returned = chain.returned  # type: ignore[attr-defined]
    for init, figures in chain.metrics().items():
        for key in (f"{figure}_mean", f"{figure}_std", f"linear_{figure}_mean", f"knn_{figure}_mean", "n_seeds"):
            assert returned[f"{init}_{key}"] == figures[key]
    assert not any("iou_disc" in key or "accuracy" in key for key in returned)


def test_all_drawings_and_curves_are_there_inside_and_outside(chain: Chain) -> None:
    expected = {"per_model.csv", "results.png", "finetune_loss.csv", "teacher_loss/teacher.csv", "distill_quality/features.csv"}
    expected |= {"overlays/0.png", "overlays/1.png", "pca/features_0.png", "pca/features_1.png"}
    for folder in (chain.root / "evaluation", chain.root / "plots" / "evaluation"):
        assert expected <= {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    plots = chain.root / "plots" / "evaluation"
    assert (plots / "finetune_loss.csv").read_text() == "step,scratch,features\n1,1.0,1.0\n2,0.25,0.25\n"
    assert (plots / "distill_quality/features.csv").read_text() == "step,explained_variance\n2,0.1\n"


@pytest.mark.parametrize("margin", [0, 4])
def test_feature_pictures_show_the_cells_of_the_picture_alone(chain: Chain, monkeypatch: pytest.MonkeyPatch, margin: int) -> None:
    """Neither those of the padding to whole multiples nor, with distill.margin, those of the reflected surroundings."""
    shapes = []

    def watched(reference: list[np.ndarray], others: list[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        shapes.append([maps.shape[1:] for maps in (*reference, *others)])
        return pca_colours(reference, others)

    monkeypatch.setattr(drawing, "pca_colours", watched)
    monkeypatch.setattr(drawing, "read_stage", lambda _: {"params": {"distill": {"T": 5, "whitening": "layernorm", "margin": margin}}})
    val = ImageSet(chain.root / "data", "val")
    shown = [next(i for i in range(len(val)) if val.size(i) == size) for size in ((40, 48), (33, 50))]
    (recipe,) = evaluate._pretrained(chain.params, chain.root, chain.root)
    drawn = drawing.draw_features(val, shown, recipe.teacher, recipe.backbone, torch.device("cpu"))
    strides = [tap.stride for tap in decoder_taps(build_unet("tiny", SIDE))[2:]]
    assert shapes == [2 * [(-(-40 // s), 48 // s), (-(-33 // s), -(-50 // s))] for s in strides]
    for above, below in drawn:
        assert [title for title, _ in above] == ["picture", *(f"generator, stride {s}" for s in strides)]
        assert [title for title, _ in below] == ["", *(f"student, stride {s}" for s in strides)]


def test_a_second_run_gives_the_same_bytes(chain: Chain) -> None:
    chain.run("again")
    first, second = chain.root / "evaluation", chain.root / "again"
    files = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(second) for path in second.rglob("*") if path.is_file())
    assert [file for file in files if (first / file).read_bytes() != (second / file).read_bytes()] == []


def test_lost_metrics_and_plots_come_back_without_computing(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    before = chain.metrics()
    shutil.rmtree(chain.root / "metrics")
    shutil.rmtree(chain.root / "plots" / "evaluation")
    monkeypatch.setattr(evaluate, "score", None)
    assert chain.run() == chain.returned  # type: ignore[attr-defined]
    assert chain.metrics() == before
    assert (chain.root / "plots" / "evaluation" / "overlays" / "1.png").exists()


def test_a_lost_evaluation_comes_back_beside_its_metrics(chain: Chain) -> None:
    metrics = chain.root / "metrics" / "evaluation.json"
    before = metrics.read_bytes()
    shutil.rmtree(chain.root / "evaluation")
    assert chain.run() == chain.returned  # type: ignore[attr-defined]
    assert metrics.read_bytes() == before

    figures = chain.metrics()
    figures["scratch"][next(iter(figures["scratch"]))] += 0.1
    metrics.write_text(json.dumps(figures))
    shutil.rmtree(chain.root / "evaluation")
    with pytest.raises(UserError, match=r"evaluation.json holds the result of another run; name another --metrics and --plots, or give"):
        chain.run()
    assert chain.metrics() == figures
    metrics.unlink()
    assert chain.run() == chain.returned  # type: ignore[attr-defined] # what was computed is kept


def test_figures_of_another_run_are_replaced_only_with_overwrite(chain: Chain, tmp_path: Path) -> None:
    before = (chain.root / "metrics" / "evaluation.json").read_bytes()
    places = {"metrics": chain.root / "metrics" / "evaluation.json", "plots": chain.root / "plots" / "evaluation"}
    params = chain.params.model_copy(update={"compare": chain.params.compare.model_copy(update={"inits": ["scratch"]})})
    inputs = {"data": chain.root / "data", "finetuned": chain.root / "finetuned", "teachers": chain.root, "backbones": chain.root}
    with pytest.raises(UserError, match=r"evaluation.json holds the result of another run; name another --metrics and --plots, or give"):
        evaluate.run(params, **inputs, **places, out=tmp_path / "other")
    assert places["metrics"].read_bytes() == before
    assert not (tmp_path / "other").exists()
    evaluate.run(params, **inputs, out=tmp_path / "other", metrics=tmp_path / "other.json", plots=tmp_path / "plots")
    with pytest.raises(UserError, match=r"evaluation.json holds the result of another run"):
        evaluate.run(params, **inputs, **places, out=tmp_path / "other")  # it is done, and still not theirs
    assert (places["metrics"].read_bytes(), (places["plots"] / "overlays" / "1.png").exists()) == (before, True)


def test_a_missing_seed_is_named(chain: Chain) -> None:
    compare = chain.params.compare.model_copy(update={"seeds": [0, 1, 2]})
    with pytest.raises(UserError, match=r"finetuned/scratch/2 does not exist; run `dreamteacher finetune` first"):
        chain.run("other", compare=compare)


def test_models_of_another_data_set_are_said(chain: Chain, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    said = "the models were fine-tuned on another data set than "
    chain.run("same", evaluate=chain.params.evaluate.model_copy(update={"batch_size": 2}))
    assert said not in caplog.text
    settings = chain.params.model_copy(update={"ingest": chain.params.ingest.model_copy(update={"min_side": 9})})
    ingest.run(settings, source=chain.root / "pictures", out=tmp_path / "data")
    places = {"teachers": chain.root, "backbones": chain.root, "finetuned": chain.root / "finetuned"}
    outputs = {"out": tmp_path / "out", "metrics": tmp_path / "metrics.json", "plots": tmp_path / "plots"}
    evaluate.run(chain.params, data=tmp_path / "data", **places, **outputs)
    assert said in caplog.text


def test_models_of_different_budgets_are_not_compared(chain: Chain) -> None:
    task = "segmentation" if "miou_mean" in chain.metrics()["scratch"] else "classification"
    finetuned(chain.root, "scratch", 7, task=task, finetune={"resolution": SIDE, "steps": 1000})
    compare = chain.params.compare.model_copy(update={"seeds": [0, 7], "inits": ["scratch"]})
    with pytest.raises(UserError, match=r"finetuned/scratch/7 was trained with other settings or data than .*finetuned/scratch/0"):
        chain.run("other", compare=compare)
    assert not (chain.root / "other").exists()
