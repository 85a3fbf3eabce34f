"""Print the lowest versions that pyproject.toml allows, one NAME==VERSION a line.

Those of CuPy are left out: it needs a GPU.
"""

import sys
import tomllib
from pathlib import Path

pyproject = Path(__file__).resolve().parent.parent / "pyproject.toml"
project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
extras = project["optional-dependencies"]
for requirement in [*project["dependencies"], *extras["report"], *extras["test"]]:
    if requirement.startswith(project["name"]):  # its own extra
        continue
    if ">=" not in requirement:
        sys.exit(f"{pyproject}: {requirement} has no lowest version")
    print(requirement.replace(">=", "=="))
