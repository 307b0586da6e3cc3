"""Running commands in tests, and what a refusal looks like."""

from __future__ import annotations

from click.testing import CliRunner, Result

from onnxprune import cli


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.main, [str(a) for a in arguments], catch_exceptions=False)


def refused(*arguments: object, code: int = 1) -> str:
    """Runs a command that must fail with one line, and returns that line."""
    result = run(*arguments)
    lines = [line for line in result.stderr.splitlines() if not line.endswith("...")]
    assert result.exit_code == code, result.output
    assert len(lines) == 1 and lines[0].startswith("error: "), result.output
    assert not result.stdout
    return lines[0]
