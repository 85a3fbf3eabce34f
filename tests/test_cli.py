"""python -m rsnn_fmnist: --help, --version and --info."""

from pathlib import Path
from typing import Any

import pytest
import torch

from rsnn_fmnist import cli, config
from rsnn_fmnist.errors import UsageError


def test_info_and_version_and_help(capsys: Any) -> None:
    assert cli.main(["--info", "--data-path", "nowhere"]) == 0
    out = capsys.readouterr().out
    assert f"torch        {torch.__version__.split('+')[0]}" in out
    assert "0 of 4 files in nowhere/FashionMNIST/raw" in out
    started = [line.split()[0] for line in out.splitlines()]
    assert {"cuda", "driver", "kernels", "device"} <= set(started)
    if not torch.cuda.is_available():
        assert "\nkernels      CUDA's are not compiled: no GPU is found\n" in out
    for flag, words in (("--version", "rsnn_fmnist 0."), ("--help", "experiment:")):
        with pytest.raises(SystemExit) as caught:
            cli.main([flag])
        assert caught.value.code == 0
        assert words in capsys.readouterr().out


def test_the_home_folder_in_the_path_of_a_config(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(here))
    (here / "mine.toml").write_text("epochs = 0")
    with pytest.raises(UsageError, match="no such home folder"):
        cli.parse(["--config=~nobody-here/mine.toml"])
    assert cli.parse(["--config=~/mine.toml"]) == {"config": str(here / "mine.toml")}


def test_help_lists_every_flag(capsys: Any) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    out = capsys.readouterr().out
    assert all(config.flag(name) in out for name in config.FIELDS)
