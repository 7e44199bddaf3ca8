import pytest
from serving_samples import make_model

from dreamteacher.serving.export import export
from dreamteacher.serving.gates import check_floor, check_latency, check_parity, check_regression


def test_the_mean_over_seeds_must_reach_the_floor():
    assert check_floor("miou", [0.6, 0.8], 0.7).passed
    assert not check_floor("miou", [0.6, 0.79], 0.7).passed


def test_a_loss_within_the_seeds_spread_is_no_regression():
    champion = [0.78, 0.80, 0.82]  # variance 0.0004
    pooled = (0.0004 * 2 / 3) ** 0.5  # two sets of three with that variance: s sqrt(1/3 + 1/3)
    for z in (0.0, 1.0, 2.0):
        limit = 0.80 - z * pooled
        for loss, passed in ((limit + 1e-4, True), (limit - 1e-4, False)):
            check = check_regression("miou", [loss - 0.02, loss, loss + 0.02], champion, z)
            assert (check.passed, check.limit) == (passed, pytest.approx(limit)), check


def test_single_seeds_allow_no_loss():
    assert check_regression("miou", [0.8], [0.8], 3.0).passed
    assert not check_regression("miou", [0.7999], [0.8], 3.0).passed
    assert check_regression("miou", [0.79], [0.78, 0.80, 0.82], 1.0).passed  # the champion's seeds tell of the spread


def test_not_a_number_never_passes():
    nan = float("nan")
    checks = [check_floor("miou", [nan], 0.0), check_regression("miou", [nan], [0.5], 9.0), check_parity(nan, 1e-4)]
    assert [check.passed for check in checks] == [False] * 3


def test_latency_is_held_against_the_budget(tmp_path):
    export(make_model("segmentation"), tmp_path / "model.onnx", ["logits"], size=32, opset=18, tolerance=1e-3, metadata={})
    assert check_latency(tmp_path / "model.onnx", 64, 60_000, runs=2).passed
    check = check_latency(tmp_path / "model.onnx", 64, 1e-6, runs=2)
    assert not check.passed and check.value > 0 and "64 x 64" in check.words
