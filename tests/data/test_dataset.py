import hashlib
import pickle
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_sets import write_masks_set
from dreamteacher.data import dataset
from dreamteacher.data.dataset import ImageSet, Sample, Samples, few_labelled
from dreamteacher.data.transforms import AUGMENTATIONS, picture_crop, pretrain_crop
from dreamteacher.errors import UserError
from dreamteacher.settings.schema import Params
from dreamteacher.stages import ingest


def make(folder: Path, classes: dict[str, int]) -> Path:
    """Ingest noise pictures in class folders with `classes` pictures each; the red value of a picture encodes its class and index."""
    for c, (name, n) in enumerate(classes.items()):
        (folder / "in" / name).mkdir(parents=True)
        for i in range(n):
            values = np.random.default_rng([c, i]).integers(0, 256, (20, 24, 3), np.uint8)
            values[..., 0] = 40 * c + i
            Image.fromarray(values).save(folder / "in" / name / f"{i}.png")
    ingest.run(Params(ingest={"val_fraction": 0}), out=folder / "data", source=folder / "in")
    return folder / "data"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("classes"), {"a": 12, "b": 5, "c": 2, "unlabelled": 3})


def test_every_picture_comes_with_its_own_label(data):
    images = ImageSet(data, "train")
    assert (images.task, images.classes, len(images)) == ("classification", ["a", "b", "c"], 22)
    assert len(images.labelled()) == 19
    for i in range(len(images)):
        sample = images.read(i)
        assert sample.image.shape == (20, 24, 3)
        folder, file = sample.name.split("/")
        c, number = ["a", "b", "c", "unlabelled"].index(folder), int(file.split(".")[0])
        assert (sample.image[..., 0] == 40 * c + number).all()
        assert sample.label == (None if c == 3 else c)


def test_a_missing_set_names_the_command_that_makes_it(tmp_path):
    with pytest.raises(UserError, match="run `dreamteacher ingest` first"):
        ImageSet(tmp_path, "train")


def test_a_set_is_small_when_pickled_and_works_in_the_copy(data):
    images = ImageSet(data, "train")
    before = [images.read(i) for i in range(len(images))]
    pickled = pickle.dumps(images)
    assert len(pickled) < 10_000
    copy = pickle.loads(pickled)
    assert all(np.array_equal(copy.read(i).image, before[i].image) for i in range(len(copy)))


def test_small_sets_are_decoded_once_and_large_ones_are_not_kept(data, monkeypatch):
    images = ImageSet(data, "train")
    assert images.in_memory
    assert images.read(3) is images.read(3)
    monkeypatch.setattr(dataset, "CACHE_BYTES", 1000)
    large = ImageSet(data, "train")
    assert not large.in_memory
    assert large.read(3) is not large.read(3)
    assert np.array_equal(large.read(3).image, images.read(3).image)


def test_an_item_depends_on_index_and_seed_alone(data):
    samples = Samples(ImageSet(data, "train"), pretrain_crop(8))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = samples[4, 77]["image"]
    assert torch.equal(torch.get_rng_state(), state)  # dropout and noise elsewhere are not touched
    torch.rand(5)
    assert torch.equal(samples[4, 77]["image"], first)
    assert not torch.equal(samples[4, 78]["image"], first)
    assert not torch.equal(samples[5, 77]["image"], first)


def test_loader_workers_give_the_same_items(data):
    samples = Samples(ImageSet(data, "train"), pretrain_crop(8))
    order = [(i % len(samples), 1000 + i) for i in range(40)]
    batches = {n: [b["image"] for b in torch.utils.data.DataLoader(samples, 8, sampler=order, num_workers=n)] for n in (0, 2)}
    assert all(torch.equal(a, b) for a, b in zip(batches[0], batches[2], strict=True))


def test_labels_are_given_only_where_all_have_one(data):
    images = ImageSet(data, "train")
    assert "label" not in Samples(images, pretrain_crop(8))[0, 0]
    labelled = Samples(images, picture_crop(8, AUGMENTATIONS["natural"]), images.labelled())
    batch = next(iter(torch.utils.data.DataLoader(labelled, 19, sampler=[(i, i) for i in range(19)])))
    assert batch["image"].shape == (19, 3, 8, 8)
    assert Counter(batch["label"].tolist()) == {0: 12, 1: 5, 2: 2}
    assert batch["label"].dtype == torch.int64


@pytest.mark.parametrize(("n", "shares"), [(6, {0: 2, 1: 2, 2: 2}), (9, {0: 4, 1: 3, 2: 2}), (18, {0: 11, 1: 5, 2: 2})])
def test_few_labels_are_balanced_over_classes(data, n, shares):
    images = ImageSet(data, "train")
    drawn = few_labelled(images, n, seed=0)
    assert drawn == sorted(set(drawn))
    got = Counter(images.read(i).label for i in drawn)
    assert sum(got.values()) == n
    assert got[2] == shares[2]
    assert abs(got[0] - shares[0]) <= 1


def test_few_labels_are_fixed_by_seed_and_content(data, tmp_path):
    images = ImageSet(data, "train")
    assert few_labelled(images, 6, 0) == few_labelled(images, 6, 0)
    assert len({tuple(few_labelled(images, 6, seed)) for seed in range(5)}) > 2
    assert few_labelled(images, None, 0) == images.labelled()
    with pytest.raises(UserError, match="only 19 of 22 pictures have a label"):
        few_labelled(images, 20, 0)
    more = ImageSet(make(tmp_path, {"a": 12, "b": 5, "c": 2, "unlabelled": 30}), "train")  # other pictures around them

    def contents(images: ImageSet) -> set[str]:
        return {hashlib.sha256(images.read(i).image.tobytes()).hexdigest() for i in few_labelled(images, 6, 0)}

    assert contents(images) == contents(more)


def test_a_mask_comes_at_the_size_of_its_picture_and_at_its_own(tmp_path):
    """Ingest keeps the masks of validation pictures whole when it reduces the pictures."""
    mask = np.random.default_rng(0).integers(0, 2, (40, 60), np.uint8)
    pictures = [(np.zeros((10, 15, 3), np.uint8), mask), (np.zeros((40, 60, 3), np.uint8), mask)]
    images = ImageSet(write_masks_set(tmp_path / "data", ["a", "b"], pictures), "val")
    reduced = np.asarray(Image.fromarray(mask).resize((15, 10), Image.Resampling.NEAREST))
    for label in (images.label(0), images.read(0).label):
        assert np.array_equal(label, reduced)
    assert np.array_equal(images.full_size_label(0), mask)
    assert [images.size(i) for i in (0, 1)] == [(10, 15), (40, 60)]
    assert np.array_equal(images.label(1), mask)


def test_samples_are_plain_values():
    sample = Sample(np.zeros((2, 2, 3), np.uint8), None, "x")
    with pytest.raises(AttributeError):
        sample.label = 3


def test_opening_a_set_takes_few_bytes_a_picture(data, tmp_path):
    """A manifest row as a Python dictionary takes about 1300."""
    head, row = (data / "manifest.csv").read_text().splitlines()[:2]
    (tmp_path / "manifest.csv").write_text("\n".join([head, *[row] * 20_000]))
    (tmp_path / "dataset.json").write_bytes((data / "dataset.json").read_bytes())
    ImageSet(data, "train")  # what is imported and made once
    tracemalloc.start()
    images = Samples(ImageSet(tmp_path, "train"), pretrain_crop(8))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(images) == 20_000
    assert peak < 300 * 20_000
