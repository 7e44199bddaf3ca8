"""The stages as KFP components, one file each. A body only imports, calls `dreamteacher.stages.STAGE.run`, and logs metadata and page.

All run in the one image: its name is read from DREAMTEACHER_IMAGE when this package is imported.
"""

import os

IMAGE = os.environ.get("DREAMTEACHER_IMAGE", "dreamteacher-python:unpublished")
