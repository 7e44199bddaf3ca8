"""Write pip's configuration as build secrets: FOLDER/pip_conf, and FOLDER/pip_ca if a certificate file is set. Argument: FOLDER.

Local package folders are left out, because they do not exist in the build.
"""

import ast
import os
import subprocess
import sys
from pathlib import Path

folder = Path(sys.argv[1])
listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True).stdout
settings: dict[str, str] = {}
for line in listed.splitlines():  # such as global.timeout='60' or :env:.timeout='60'
    name, _, value = line.partition("=")
    settings.setdefault(name.rsplit(".", 1)[1], ast.literal_eval(value))
for name in {"index-url", "extra-index-url", "find-links"} & settings.keys():
    settings[name] = " ".join(place for place in settings[name].split() if place.startswith("http"))
if trusted := settings.pop("cert", None) or os.environ.get("SSL_CERT_FILE"):
    (folder / "pip_ca").write_bytes(Path(trusted).read_bytes())
    settings["cert"] = "/run/secrets/pip_ca"
(folder / "pip_conf").write_text("[global]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items() if value))
