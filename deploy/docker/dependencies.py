"""Print the dependencies in a pyproject.toml, with those of some extras (comma-separated)."""

import sys
import tomllib
from pathlib import Path


def main(path: str, extras: str) -> None:
    """Print one requirement per line; raises `KeyError` for an extra that there is not."""
    project = tomllib.loads(Path(path).read_text(encoding="utf-8"))["project"]
    found = list(project["dependencies"])
    for extra in filter(None, extras.split(",")):
        found += project["optional-dependencies"][extra.strip()]
    sys.stdout.write("\n".join(found) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
