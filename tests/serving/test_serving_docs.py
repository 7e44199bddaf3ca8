"""The examples of docs/serving.md, run with other addresses and another model."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from dreamteacher import cli
from helpers import PROJECT

PAGE = (PROJECT / "docs/serving.md").read_text()


def examples(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.M | re.S)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Of a user with pictures."""
    monkeypatch.chdir(tmp_path)
    small = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8))
    for name in ("picture.jpg", "shots/1.png", "more/a/2.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        small.resize((60, 40)).save(tmp_path / name)
    return tmp_path


def here(text, triton):
    return text.replace("127.0.0.1:8000", triton.http_url).replace("127.0.0.1:8001", triton.grpc_url).replace("nuclei", "cells")


@pytest.mark.parametrize("number", range(len(examples("python"))))
def test_python_examples(triton, folder, number):
    command = [sys.executable, "-c", here(examples("python")[number], triton)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert ("(40, 60)" in done.stdout and "background" in done.stdout, "Segmentation(" in done.stdout, "(60, 40)" in done.stdout)[number]


def test_curl_examples(triton, folder):
    first, second = examples("bash")
    subprocess.run(["bash", "-ec", here(first, triton)], check=True)
    assert b"\x89PNG" in (folder / "answer.bin").read_bytes()
    done = subprocess.run(["bash", "-ec", here(second, triton)], capture_output=True, text=True, check=True)
    (output,) = json.loads(done.stdout)["outputs"]
    assert output["name"] == "shares" and sum(output["data"]) == pytest.approx(1, abs=1e-5)


def test_command_line_examples(triton, folder, capsys):
    first, second = re.findall(r"^    dreamteacher (predict .*)$", PAGE, re.M)
    assert cli.main(here(first, triton).split()) == 0
    assert (folder / "answers/picture.mask.png").exists()
    capsys.readouterr()
    arguments = here(second, triton).removesuffix(" > answers.jsonl").replace("'", "").split()
    assert cli.main(arguments) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["picture"] for row in rows] == ["shots/1.png", "more/a/2.png"]


def test_what_to_install_is_the_extra():
    import tomllib

    extra = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["client"]
    assert " ".join(f'"{each}"' for each in extra) in PAGE
