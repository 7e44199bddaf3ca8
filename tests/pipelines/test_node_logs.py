"""By which error a node ended, and which lines of its log are new."""

import pytest

from dreamteacher.cluster.node_logs import Position, ending

TWO_RANKS = """[rank1]: Traceback (most recent call last):
[rank1]:   File "/x/body.py", line 9, in <module>
[rank1]:     {}["x"]
[rank1]:     ~~^^^^^
[rank1]: KeyError: 'x'

[rank1]: The above exception was the direct cause of the following exception:

[rank1]: Traceback (most recent call last):
[rank1]:   File "/x/body.py", line 11, in <module>
[rank1]:     raise RuntimeError("the cause") from error
[rank1]: RuntimeError: the cause
[rank0]: Traceback (most recent call last):
[rank0]:   File "/x/torch/distributed/distributed_c10d.py", line 4181, in all_reduce
[rank0]:     work.wait()
[rank0]: RuntimeError: [gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:23454. This is typically caused by ...
"""
TORCHRUN = """W1127 00:24:05.341000 8349 torch/distributed/elastic/multiprocessing/api.py:1028] Sending process 8752 closing signal SIGTERM
E1127 00:24:05.665000 8349 torch/distributed/elastic/multiprocessing/api.py:1002] failed (exitcode: {code}) local_rank: 1 (pid: 8753)
Traceback (most recent call last):
  File "/x/bin/torchrun", line 8, in <module>
    sys.exit(main())
             ^^^^^^
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
Failures:
[1]:
  rank      : 0 (local_rank: 0)
  exitcode  : -15 (pid: 8752)  (SIGTERM)
------------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2026-11-27_00:24:05
  host      : localhost
  rank      : 1 (local_rank: 1)
  exitcode  : {code} (pid: 8753)
"""


def test_process_that_failed_first_is_the_cause_of_torchruns_report():
    """As torch 2.15 wrote it when rank 1 raised an error, and when it was killed."""
    found = ending(TWO_RANKS + TORCHRUN.format(code=1))
    assert (found.error, found.consequence, found.final) == ("RuntimeError: the cause", False, False)
    assert found.lines == TWO_RANKS.splitlines()
    killed = ending("step 5\n" + TORCHRUN.format(code=-9))
    assert killed.error == "the process of rank 1 was killed by signal 9 (SIGKILL: most likely memory is too small)"
    assert (killed.lines, killed.consequence) == (["step 5"], False)
    assert ending(TORCHRUN.format(code=-15)).consequence


RAISED = "Traceback (most recent call last):\n  File 'x', line 1\n{}\n"


@pytest.mark.parametrize(
    ("log", "error", "consequence"),
    [
        (RAISED.format("KeyError: 'a'") + "\nDuring handling of ...\n\n" + RAISED.format("ValueError: b"), "ValueError: b", False),
        ("".join(f"[rank{i}]: {line}\n" for i in (0, 1) for line in RAISED.format(f"E: {i}").splitlines()), "E: 0", False),
        (RAISED.format("queue.Empty"), "queue.Empty", False),
        ("step 1\nerror: another of the processes that train together has ended; its own message says why\n",
         "another of the processes that train together has ended; its own message says why", True),
        (RAISED.format("torch.distributed.DistNetworkError: cannot reach the first node"),
         "torch.distributed.DistNetworkError: cannot reach the first node", True),
        ("stopped by signal 15 at step 48; run the same command again to resume\n",
         "stopped by signal 15 at step 48; run the same command again to resume", True),
        ("step 1\nstep 2\n\n", "step 2", False),
        ("", "", False),
    ],
)  # fmt: skip
def test_root_causes_are_distinguished_from_their_consequences(log: str, error: str, consequence: bool):
    found = ending(log)
    assert (found.error, found.consequence, found.final) == (error, consequence, False)


def test_lines_before_the_error_are_kept():
    found = ending("".join(f"step {i}\n" for i in range(100)) + RAISED.format("ValueError: x"))
    assert found.lines[0] == "step 73"
    assert found.lines[-1] == "ValueError: x"


def test_overlapping_parts_of_a_log_give_each_line_once():
    log = "".join(f"2026-11-27T00:00:0{i // 3}.{i // 2:09d}+01:00 line {i}\n" for i in range(12))  # two share each time
    lines = log.splitlines(keepends=True)
    position = Position()
    parts = [lines[0:3], lines[0:6], lines[2:6], lines[4:9], lines[8:12], []]
    assert [line for part in parts for line in position.new("".join(part))] == [f"line {i}" for i in range(12)]
    assert position.new("unable to retrieve container logs for containerd://1") == []
    assert position.new("2026-11-26T23:00:09Z after the hour's shift\n") == ["after the hour's shift"]
