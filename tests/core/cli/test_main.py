from __future__ import annotations

import pytest

from packforcing_core import __version__
from packforcing_core.cli.main import commands, main


@pytest.mark.parametrize("command", [(), *((name,) for name in commands())], ids=str)
def test_help_is_there_for_every_command(capsys, command):
    with pytest.raises(SystemExit) as left:
        main([*command, "--help"])
    assert left.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith(" ".join(("usage: packforcing", *command)))
    summary = commands()[command[0]].__doc__.splitlines()[0] if command else "Long videos from"
    assert summary in said


def test_the_version_is_the_packages(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"packforcing {__version__}\n"


@pytest.mark.parametrize("arguments", [(), ("dance",), ("render",), ("inspect",), ("plan", "--policy", "none")])
def test_a_command_that_is_none_is_a_usage_error(capsys, arguments):
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    assert "usage: packforcing" in capsys.readouterr().err
