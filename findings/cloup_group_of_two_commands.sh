#!/usr/bin/env bash
# cloup 4.0.0 (and 3.1.0), click 8.5.1: an OptionGroup that two commands share lists the second one's options on the first one's help page.
#
# Expected: the help page of a command lists the options that it takes; a group marks options ("not a container", its docstring says).
# Seen: each command that is made writes its options into the group. The first command's page then lists --second, which it refuses,
# and leaves out --first, which it takes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for version in 3.1.0 4.0.0; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" install --quiet --disable-pip-version-check "cloup==$version" "click==8.5.1"
    "$folder/$version/bin/python" - <<'PYTHON'
from importlib.metadata import version

import cloup
from click.testing import CliRunner

group = cloup.OptionGroup("Images")


@cloup.command()
@cloup.option("--first", group=group)
def one(first: str) -> None: ...


def listed(command: cloup.Command) -> set[str]:
    page = CliRunner().invoke(command, ["--help"]).output
    return {name for name in ("--first", "--second") if name in page}


assert listed(one) == {"--first"}


@cloup.command()
@cloup.option("--second", group=group)
def two(second: str) -> None: ...


assert listed(two) == {"--second"}
assert listed(one) == {"--second"}, listed(one)
assert CliRunner().invoke(one, ["--second", "x"]).exit_code == 2
assert CliRunner().invoke(one, ["--first", "x"]).exit_code == 0
print(f"cloup {version('cloup')}: the page of a command that takes --first lists", *listed(one))
PYTHON
done
