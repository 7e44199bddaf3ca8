import subprocess
import sys

from dreamteacher.data.quiet import quiet_c_libraries


def run(body: str) -> subprocess.CompletedProcess:
    code = f"import os, sys, warnings\nfrom dreamteacher.data.quiet import quiet_c_libraries\n{body}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_c_libraries_are_silent_and_python_is_heard():
    process = run(
        "with quiet_c_libraries():\n os.write(2, b'libtiff: noise\\n'); print('progress', file=sys.stderr); warnings.warn('careful')\n"
        "os.write(2, b'after\\n'); print('end', file=sys.stderr)"
    )
    assert process.returncode == 0
    assert "noise" not in process.stderr
    assert [word for word in ("progress", "careful", "after", "end") if word not in process.stderr] == []


def test_tracebacks_reach_the_user():
    process = run(
        "import threading\nwith quiet_c_libraries():\n"
        " thread = threading.Thread(target=lambda: 1 / 0); thread.start(); thread.join()\n raise ValueError('loud')"
    )
    assert process.returncode == 1
    assert "ZeroDivisionError" in process.stderr
    assert process.stderr.endswith("ValueError: loud\n")


def test_a_closed_or_replaced_standard_error_is_no_hindrance(capsys):
    with quiet_c_libraries():
        print("to the notebook", file=sys.stderr)
    assert capsys.readouterr().err == "to the notebook\n"
    assert run("os.close(2)\nwith quiet_c_libraries():\n print('still here')").stdout == "still here\n"
    assert run("sys.stderr = None\nwith quiet_c_libraries():\n print('still here')").stdout == "still here\n"


def test_libtiff_is_silent():
    body = (
        "import io\nimport numpy as np\nfrom PIL import Image\nfrom dreamteacher.data.decode import BadPicture, decode\n"
        "noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)\n"
        "b = io.BytesIO(); Image.fromarray(noise).save(b, 'TIFF', compression='tiff_lzw')\n"
        "data = bytearray(b.getvalue()); data[50:90] = bytes(40)\n"
        "def bad():\n try: decode(bytes(data))\n except BadPicture as error: print(error)\n"
    )
    assert "damaged picture" in run(body + "bad()").stdout
    quiet = run(body + "with quiet_c_libraries(): bad()")
    assert "damaged picture" in quiet.stdout
    assert quiet.stderr == ""
