"""The commands of the documentation, run as a newcomer would type them."""

import json
import re
import shlex
import subprocess
from pathlib import Path

from tests.helpers import ROOT, environment, run_program

RUN_ALL = ROOT / "tests" / "distributed" / "programs" / "run_all.py"


def bash_blocks(page: str, heading: str) -> list[str]:
    """The bash blocks of a section of a page."""
    section = (ROOT / page).read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"```bash\n(.*?)```", section, flags=re.DOTALL)


def bash(script: str, timeout: float) -> str:
    """Runs a script in the project's folder; returns what it printed."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def bash_with_one_main(script: str, folder: Path, timeout: float) -> None:
    """Runs a script, but its calls of main.py at its end and in one process: TensorFlow is imported once."""
    calls = folder / "calls.jsonl"
    write_down = shlex.quote("import json, sys; print(json.dumps(sys.argv[2:]))")
    bash(
        f'python() {{ case $1 in main.py) command python -c {write_down} "$@" >> {shlex.quote(str(calls))};; '
        f'*) command python "$@";; esac; }}\n{script}',
        timeout,
    )
    scenarios = folder / "scenarios.json"
    scenarios.write_text(json.dumps([json.loads(line) for line in calls.read_text().splitlines()]))
    done = run_program([RUN_ALL, scenarios], timeout=timeout)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
