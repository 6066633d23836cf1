"""One rule for every verb that writes a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from secateur.core.new_folders import check_new_folder
from secateur.errors import OptionError


def test_what_is_there_is_named(tmp_path: Path) -> None:
    check_new_folder(tmp_path)
    check_new_folder(tmp_path / "new")
    file = tmp_path / "a"
    file.touch()
    with pytest.raises(
        OptionError, match="expected a new or an empty folder, found a folder that is not empty"
    ):
        check_new_folder(tmp_path)
    with pytest.raises(OptionError, match="found a file; name another one"):
        check_new_folder(file)
