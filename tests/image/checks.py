"""The image in a cluster's environment: any user of group 0, read-only root, no network, only /tmp and volumes writable.

Not named test_*, so that `make test` leaves it out: it needs a built image, `make test-image` makes one (scripts/test_image.sh).
"""

import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from kfp import dsl, local

from helpers import PROJECT

IMAGE = os.environ.get("DREAMTEACHER_IMAGE", "")
USER = "54321:0"
TINY = [f"teacher.{setting}" for setting in ("resolution=32", "batch_size=2", "warmup_steps=1", "checkpoint_every=2")]
pytestmark = pytest.mark.timeout(1200)


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """A project of six pictures, as a volume that any user of the cluster may write."""
    for folder in ("images/train", "masks/train"):
        (tmp_path / "pictures" / folder).mkdir(parents=True)
        for picture in sorted((PROJECT / "samples/nuclei" / folder).iterdir())[:6]:
            shutil.copy(picture, tmp_path / "pictures" / folder)
    shutil.copy(PROJECT / "samples/nuclei/classes.txt", tmp_path / "pictures")
    (tmp_path / "params.yaml").write_text("ingest: {source: pictures, short_side: 64, val_fraction: 0}\n")
    tmp_path.chmod(0o777)
    for folder in tmp_path.parents[:2]:  # pytest keeps them for itself
        folder.chmod(0o755)
    return tmp_path


def docker(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0 or not check, done.stdout + done.stderr
    return done


def locked_down(volume: Path, *options: str) -> list[str]:
    """Arguments of `docker run` up to the image."""
    closed = ["--network=none", "--read-only", "--tmpfs=/tmp", f"--user={USER}", "--cap-drop=ALL", "--security-opt=no-new-privileges"]
    place = [f"--volume={volume}:/project", "--workdir=/project", "--env=DREAMTEACHER_TRACKING=off", "--env=OMP_NUM_THREADS=1"]
    return ["run", *closed, *place, *options, IMAGE]


def test_without_a_command_it_says_whether_the_chain_can_run(volume):
    output = docker(*locked_down(volume, "--rm")).stdout
    assert "the chain can run here" in output
    assert "missing " not in output
    (volume / "params.yaml").write_text("ingest: {source: nowhere}\n")
    refused = docker(*locked_down(volume, "--rm"), check=False)
    assert refused.returncode == 1
    assert "nowhere does not exist here" in refused.stdout


def test_a_stage_runs_and_its_files_are_the_users(volume):
    run = [*locked_down(volume, "--rm"), "dreamteacher"]
    docker(*run, "ingest")
    docker(*run, "train-teacher", *(f"--set={setting}" for setting in [*TINY, "teacher.steps=2"]))
    assert json.loads((volume / "artifacts/teachers/own/stage.json").read_text())["metrics"]
    assert (volume / "artifacts/teachers/own/teacher.json").stat().st_uid == 54321
    assert not list(Path(volume / "artifacts").glob(".*")), "half-written folders"


def test_a_preempted_step_resumes_in_the_next_container(volume):
    """SIGTERM to process 1, as a node that is drained sends it: a checkpoint, exit code 143, and the next pod goes on."""
    docker(*locked_down(volume, "--rm"), "dreamteacher", "ingest")
    train = ["dreamteacher", "train-teacher", *(f"--set={setting}" for setting in [*TINY, "teacher.steps=60"])]
    name = docker(*locked_down(volume, "--detach", "--env=DREAMTEACHER_CHECKPOINTS=/project/checkpoints"), *train).stdout.strip()
    try:
        for _ in range(1200):
            if list(volume.glob("checkpoints/*/*/*.pt")):
                break
            time.sleep(0.1)
        docker("stop", "--time=60", name)
        assert docker("inspect", "--format={{.State.ExitCode}}", name).stdout.strip() == "143", docker("logs", name).stderr
    finally:
        docker("rm", "--force", name)
    again = docker(*locked_down(volume, "--rm", "--env=DREAMTEACHER_CHECKPOINTS=/project/checkpoints"), *train)
    assert "resumes after step" in again.stderr + again.stdout
    assert (volume / "artifacts/teachers/own/stage.json").exists()


def test_dvc_and_git_work_on_a_project_of_somebody_else(volume):
    """A clone of a repository that belongs to root, its data pulled, new data committed and pushed."""
    script = """
        set -e
        git clone --quiet /project/origin.git /tmp/clone; cd /tmp/clone
        dvc pull --quiet; test "$(cat data/a)" = pictures
        echo more > data/b; dvc commit --quiet --force data.dvc; dvc push --quiet
        git commit --quiet --all --message more; git push --quiet origin HEAD:runs/1
    """
    (volume / "work/data").mkdir(parents=True)
    (volume / "work/data/a").write_text("pictures\n")
    (volume / "remote").mkdir()
    make = """
        set -e
        git init --quiet --bare ../origin.git; git init --quiet; dvc init --quiet; dvc remote add --quiet -d here /project/remote
        dvc add --quiet data; git add .; git -c user.name=a -c user.email=a@b commit --quiet --message first
        git push --quiet ../origin.git HEAD:main
        git -C ../origin.git symbolic-ref HEAD refs/heads/main; dvc remote modify --local here url ../remote; dvc push --quiet
        chmod -R a+rwX ../remote ../origin.git
    """
    subprocess.run(["bash", "-c", make], cwd=volume / "work", check=True)
    author = [f"--env=GIT_{who}_{what}={value}" for who in ("AUTHOR", "COMMITTER") for what, value in (("NAME", "a"), ("EMAIL", "a@b"))]
    docker(*locked_down(volume, "--rm", *author), "sh", "-c", script)
    assert "data.dvc" in subprocess.check_output(["git", "-C", volume / "origin.git", "show", "--stat", "runs/1"], text=True)


@dsl.component(base_image=IMAGE or "unknown:0", install_kfp_package=False)
def ingest(source: str, data: dsl.Output[dsl.Dataset]) -> int:
    """As the project's components: the body only calls the library in the image."""
    import os
    from pathlib import Path

    from dreamteacher.settings.downstream import Ingest
    from dreamteacher.settings.schema import Params
    from dreamteacher.stages.ingest import run

    params = Params(ingest=Ingest(source=source, short_side=64, val_fraction=0))
    data.metadata["images"] = run(params, out=Path(data.path))["n_train"]
    return os.getuid()


def test_a_kfp_component_runs_without_network(volume):
    (volume / "root").mkdir()
    (volume / "root").chmod(0o777)
    runner = local.DockerRunner(
        network_disabled=True,
        read_only=True,
        tmpfs={"/tmp": ""},
        user=USER,
        environment={"DREAMTEACHER_TRACKING": "off", "OMP_NUM_THREADS": "1"},
        mounts=[{"Type": "bind", "Source": str(volume / "pictures"), "Target": "/pictures", "ReadOnly": True}],
    )
    local.init(runner=runner, pipeline_root=str(volume / "root"))
    task = ingest(source="/pictures")
    assert task.outputs["Output"] == 54321
    assert task.outputs["data"].metadata["images"] == 6
    assert (Path(task.outputs["data"].path) / "stage.json").exists()


def test_image_has_labels_and_no_secrets():
    config = json.loads(docker("inspect", IMAGE).stdout)[0]["Config"]
    labels = config["Labels"]
    assert re.fullmatch("[0-9a-f]{40}(-dirty)?", labels["org.opencontainers.image.revision"])
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert config["User"].split(":")[0].isdigit() and not config["User"].startswith("0"), "Kubernetes' runAsNonRoot wants a number"
    assert not config.get("Entrypoint"), "KFP gives a whole command line"
    shell = "command -v python3 mktemp git dvc dreamteacher; pip check; cat /etc/pip.conf; ls /run/secrets; pip show --files dreamteacher"
    output = docker("run", "--rm", "--network=none", IMAGE, "sh", "-c", shell, check=False)
    assert len(output.stdout.splitlines()[:5]) == 5 and output.stdout.startswith("/")
    assert "/etc/pip.conf: No such file" in output.stderr and "/run/secrets" in output.stderr
    assert "Editable" not in output.stdout and "stages/ingest.py" in output.stdout
