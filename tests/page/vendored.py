"""Fetches the libraries of the web page from npm: `make vendored`. The versions are pinned by hash.

`vendored.json` names each package with its version, the hash of its archive in npm's form, and the
files that are taken from it, each with its name in `app/web/vendor` and its hash.
"""

import hashlib
import json
import subprocess
import tarfile
import tempfile
from base64 import b64encode
from pathlib import Path

VENDOR = Path(__file__).parents[2] / "app" / "web" / "vendor"
PACKAGES = json.loads(Path(__file__).with_suffix(".json").read_text())


class WrongHashError(RuntimeError):
    """What npm sent is not what `vendored.json` names."""


def fetch(name: str, folder: Path) -> None:
    """Write a package's files to `app/web/vendor`. Raises WrongHashError if a hash is wrong."""
    package = PACKAGES[name]
    subprocess.run(
        ["npm", "pack", "--silent", f"{name}@{package['version']}"],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    (archive,) = folder.glob("*.tgz")
    digest = b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if f"sha512-{digest}" != package["integrity"]:
        raise WrongHashError(f"{name} {package['version']}: sha512-{digest}")
    with tarfile.open(archive) as contents:
        for path, file in package["files"].items():
            member = contents.extractfile(f"package/{path}")
            assert member is not None
            content = member.read()
            if hashlib.sha256(content).hexdigest() != file["sha256"]:
                raise WrongHashError(f"{name} {package['version']}: {path}")
            (VENDOR / file["name"]).write_bytes(content)


if __name__ == "__main__":
    for package_name in PACKAGES:
        with tempfile.TemporaryDirectory() as temporary:
            fetch(package_name, Path(temporary))
        print(f"{package_name} {PACKAGES[package_name]['version']}")
