"""Make sure that the shared library of this Python exists, which the python backend of the local Triton loads.

Pythons of uv, conda and most of pyenv include it. Debian and Ubuntu have a separate package, which is installed here if possible (root,
apt-get); otherwise a warning says what to do. Only `dreamteacher serve` needs it.
"""

import ctypes.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path


def main() -> None:
    """Check, install if possible, or print what to do."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    folders = [sysconfig.get_config_var("LIBDIR") or "", f"{sys.base_prefix}/lib"]
    if any((Path(folder) / f"libpython{version}.so.1.0").exists() for folder in folders) or ctypes.util.find_library(f"python{version}"):
        return
    package = f"libpython{version}"
    if os.geteuid() == 0 and shutil.which("apt-get"):
        for command in (["apt-get", "update"], ["apt-get", "install", "--yes", "--no-install-recommends", package]):
            if subprocess.run(command, check=False, capture_output=True).returncode != 0:
                break
        else:
            print(f"installed {package} for the local Triton")
            return
    print(f"warning: the local Triton needs {package}.so; install it (`sudo apt-get install {package}`)", file=sys.stderr)


if __name__ == "__main__":
    main()
