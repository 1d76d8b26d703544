"""Nothing is published through a link; a repository whose own path is one is written to."""

import os
from pathlib import Path

import pytest

from fitserve_contract.repository import MODEL_FILE
from fitserve_exporters.errors import ExportError
from fitserve_exporters.publishing.repository_check import repository_problem
from fitserve_exporters.publishing.writing import write_version


def test_a_linked_model_folder_is_refused_in_words_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "kept" / "1").mkdir(parents=True)
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository" / "m").symlink_to("../kept")

    assert "expected the folder of model 'm' to be no symbolic link, got one to '../kept'" in repository_problem(
        tmp_path / "repository", "m"
    )
    with pytest.raises(ExportError, match=r"link 'm' leads to '\.\./kept', and nothing is written through links"):
        write_version(tmp_path / "repository", "m", {MODEL_FILE: b"x"})
    assert os.listdir(tmp_path / "kept") == ["1"]


def test_a_version_gets_no_number_that_a_link_has_and_the_path_of_the_repository_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real" / "m").mkdir(parents=True)
    (tmp_path / "real" / "m" / "4").symlink_to("gone")
    (tmp_path / "repository").symlink_to("real")

    assert repository_problem(tmp_path / "repository", "m") == ""
    assert write_version(tmp_path / "repository", "m", {MODEL_FILE: b"x"}).version == 5
    assert (tmp_path / "real" / "m" / "5" / MODEL_FILE).read_bytes() == b"x"
