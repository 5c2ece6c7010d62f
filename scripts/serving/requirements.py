"""What a vLLM wheel and eplb need, one requirement a line, without what only images and sound need.

Usage: requirements.py WHEEL MORE...
"""

from __future__ import annotations

import re
import sys
import tomllib
import zipfile
from email.parser import BytesParser
from pathlib import Path

LEFT_OUT = {"torch", "torchaudio", "torchcodec", "torchvision"}
OF_TORCH = ("filelock", "fsspec", "jinja2", "mpmath", "networkx", "sympy", "typing-extensions")


def of_wheel(path: str) -> list[str]:
    """The requirements of a wheel that hold without an extra."""
    with zipfile.ZipFile(path) as wheel:
        (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
        found = BytesParser().parsebytes(wheel.read(name)).get_all("Requires-Dist") or []
    return [requirement for requirement in found if "extra ==" not in requirement]


def of_eplb() -> list[str]:
    """The requirements of eplb."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    return list(project["project"]["dependencies"])


def main(wheel: str, *more: str) -> None:
    """Print all of them."""
    listed = [*of_wheel(wheel), *of_eplb(), *OF_TORCH]
    kept = [each for each in listed if re.split(r"[^A-Za-z0-9_.-]", each)[0] not in LEFT_OUT]
    print("\n".join([*kept, *more]))


if __name__ == "__main__":
    main(*sys.argv[1:])
