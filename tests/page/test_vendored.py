"""The libraries that the page brings along are those that `vendored.json` names."""

import hashlib

from tests.page.vendored import PACKAGES, VENDOR


def test_the_vendored_files_are_the_packages_own():
    expected = {
        file["name"]: file["sha256"]
        for package in PACKAGES.values()
        for file in package["files"].values()
    }
    present = {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in VENDOR.iterdir()
    }
    assert present == expected


def test_each_library_has_its_licence_beside_it():
    for package in PACKAGES.values():
        names = sorted(file["name"].partition(".")[0] for file in package["files"].values())
        assert len(names) == 2
        assert names[0] == names[1]
