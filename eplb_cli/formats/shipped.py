"""Descriptions that come with eplb: TOML files of one kind in a folder, each called what it describes.

The folder is the registry: a new layout, engine or preset is one more file. Names are told without reading
any of them, for the help of the command line.
"""

from __future__ import annotations

from pathlib import Path

from eplb_cli.values import dataclass


@dataclass(frozen=True)
class Shipped:
    """The files of one kind."""

    folder: Path

    @property
    def names(self) -> list[str]:
        """What there is, ascending."""
        return sorted(path.stem for path in self.folder.glob("*.toml"))

    def path(self, name: str) -> Path:
        """The file that describes `name`, one of the names."""
        return self.folder / f"{name}.toml"
