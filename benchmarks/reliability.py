"""Makes the table of docs/reliability.md: of the lines that tests/faults recorded, as `record` there writes them.

    bash scripts/test.sh --faults           # tries everything, then does the following with what was recorded
    python -m benchmarks.reliability LOG    # replaces the lines of these faults by those of LOG
    python -m benchmarks.reliability        # only the table, of the lines that there are

docs/reliability.jsonl holds every line. The page's text is written by hand, but for what stands between
`<!-- table: NAME -->` and `<!-- end -->`.
"""

import argparse
import sys
from pathlib import Path
from statistics import median

from benchmarks.harness import (
    ROOT,
    Line,
    System,
    about,
    fill,
    machines_table,
    markdown,
    read_lines,
    system_of,
    systems_of,
    write_lines,
)

PAGE, LINES = ROOT / "docs" / "reliability.md", ROOT / "docs" / "reliability.jsonl"
COMMAND = "bash scripts/test.sh --faults"
HEADINGS = ["fault", "tries", "survived", "seconds to recover or to detect: median (largest)", "machine"]


def merged(old: list[Line], new: list[Line]) -> list[Line]:
    """Return all lines, but of the old ones only those of other faults or machines, in the order of faults."""
    replaced = {(line["fault"], line["machine"]) for line in new}
    lines = [line for line in old if (line["fault"], line["machine"]) not in replaced] + new
    order = list(dict.fromkeys(line["fault"] for line in old + new))
    return sorted(lines, key=lambda line: order.index(line["fault"]))


def all_tables(lines: list[Line]) -> dict[str, str]:
    """Return every table of the page by name, as Markdown. Lines of one fault on one machine are added up."""
    systems = systems_of(lines)
    rows: dict[tuple[str, System], list[Line]] = {}
    for line in lines:
        rows.setdefault((line["fault"], system_of(line)), []).append(line)
    faults = [_row(fault, found, systems.index(system) + 1) for (fault, system), found in rows.items()]
    return {"faults": markdown(HEADINGS, faults), "machines": machines_table(systems)}


def _row(fault: str, lines: list[Line], machine: int) -> list[str]:
    tries, survived = (sum(line[key] for line in lines) for key in ("tries", "survived"))
    seconds = [value for line in lines for value in line["seconds"]]
    times = f"{median(seconds):.3g} ({max(seconds):.3g})" if seconds else ""
    return [fault, f"{tries:,}", f"{survived:,}" if survived == tries else f"**{survived:,}**", times, str(machine)]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", nargs="?", type=Path, metavar="LOG", help="what tests/faults recorded")
    arguments = parser.parse_args(argv)
    if arguments.log is not None:
        new = [about(COMMAND) | line for line in read_lines(arguments.log)]
        write_lines(LINES, merged(read_lines(LINES), new))
    PAGE.write_text(fill(PAGE.read_text(), all_tables(read_lines(LINES))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
