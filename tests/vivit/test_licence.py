"""The licence of the weights that a model starts from is passed on where its source says it."""

from __future__ import annotations

from pathlib import Path

from tubelet.vivit.licence import licence_of


def test_a_folder_s_readme_or_licence_file_says_it(tmp_path: Path) -> None:
    assert "not stated" in licence_of(str(tmp_path))
    (tmp_path / "LICENSE").write_text("\n  Apache License\n Version 2.0\n", "utf-8")
    assert licence_of(str(tmp_path)) == "Apache License"
    (tmp_path / "weights.safetensors").touch()  # what lies beside a single file may be of anything
    assert "not stated" in licence_of(str(tmp_path / "weights.safetensors"))
    (tmp_path / "README.md").write_text("---\ntags: [x]\nlicense: cc-by-nc-4.0\n---\nText\n", "utf-8")
    assert licence_of(str(tmp_path)) == "cc-by-nc-4.0"


def test_what_cannot_be_looked_up_is_not_stated() -> None:
    assert "not stated" in licence_of("hf:nobody/nothing-of-this-name")
    assert "not stated" in licence_of("timm:no_such_model")
