"""What pyproject.toml asks for, one requirement a line: an image layer that only changes when they do. Arguments: extras."""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
for requirements in [project["dependencies"], *(project["optional-dependencies"][extra] for extra in sys.argv[1:])]:
    print(*requirements, sep="\n")
