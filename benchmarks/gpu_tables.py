"""Makes the tables of docs/performance.md about a GPU from the lines of gpu.py."""

from collections.abc import Callable
from typing import Any

from benchmarks.gpu import BENCHMARK, REFERENCE, VARIANTS
from benchmarks.harness import Line, System, markdown, system_of

NOT_MEASURED = (
    "No GPU has been measured yet: `bash benchmarks/gpu.sh --output docs/gpu.jsonl`, and then\n"
    "`python -m benchmarks.performance --tables`, measure one in eight minutes and fill in this section."
)
Columns = dict[str, tuple[str, ...]]  # heading -> field, or field and key in it

# Part -> columns of its table, with a row per precision.
SPEED = {
    "training": {"from parquet, samples/s": ("samples_per_second",), "step, ms": ("step_ms",)},
    "step": {
        "step only, samples/s": ("samples_per_second",),
        "TFLOP/s": ("tflop_per_second",),
        "memory, GB/s": ("memory_gb_per_second",),
    },
    "evaluation": {"evaluation, samples/s": ("samples_per_second",)},
    "memory": {"peak, GB": ("peak_gb",), "estimate, GB": ("estimated_gb",), "peak ÷ estimate": ("peak_over_estimate",)},
}
PROFILE = {
    "profile": {
        "kernels": ("kernels",),
        "launches by the audit": ("audit", "launches"),
        "copies to the GPU": ("to_device",),
        "by the audit": ("audit", "to_device"),
        "MB to the GPU": ("to_device_mb",),
        "MB of a batch": ("counted_mb",),
        "copies to the host": ("to_host",),
        "by the audit, to the host": ("audit", "to_host"),
        "GPU busy, ms": ("busy_ms",),
        "busy share": ("busy_share",),
    },
}
LOSSES: dict[str, Columns] = {
    "losses": {
        "largest difference from the CPU": ("loss_difference",),
        "limit": ("limit",),
        "loss of the test rows": ("metrics", "loss_val"),
        "ROC AUC": ("metrics", "auc_roc"),
    }
}


def gpu_section(lines: list[Line], systems: list[System]) -> str:
    """Return the tables of all machines that were measured; one sentence if there are none.

    Args:
        lines: lines of gpu.py, and any others.
        systems: the machines in the order of their numbers on the page.
    """
    own = [line for line in lines if line["benchmark"] == BENCHMARK]
    machines = [system for system in systems if any(system_of(line) == system for line in own)]
    sections = []
    for system in machines:
        of_machine = [line for line in own if system_of(line) == system]
        sections.append(f"Machine {systems.index(system) + 1}:\n\n{_section(of_machine)}")
    return "\n\n".join(sections) or NOT_MEASURED


def _section(lines: list[Line]) -> str:
    tables = [*(_precisions(lines, parts) for parts in (SPEED, LOSSES)), _curves(lines), _precisions(lines, PROFILE)]
    return "\n\n".join([*tables, _others(lines)])


def _precisions(lines: list[Line], parts: dict[str, Columns]) -> str:
    """Format some parts of all precisions, a row per precision; what was not measured stays empty."""
    headings = [heading for columns in parts.values() for heading in columns]
    rows = []
    for variant in VARIANTS:
        measured = {line["part"]: line for line in lines if line["variant"] == variant}
        rows.append(
            [
                variant,
                *(_text(measured.get(part, {}), path) for part, columns in parts.items() for path in columns.values()),
            ]
        )
    return markdown(["precision", *headings], rows)


def _curves(lines: list[Line]) -> str:
    """Format the losses of all precisions side by side: the steps that the CPU has, and every eighth after them."""
    curves = {line["variant"]: line["losses"] for line in lines if "losses" in line}
    checked = len(curves.get(REFERENCE, []))
    longest = max(map(len, curves.values()), default=0)
    steps = [*range(1, checked + 1), *(step for step in range(checked + 1, longest + 1) if step % 8 == 0)]
    rows = [
        [str(step), *(f"{losses[step - 1]:.6f}" if step <= len(losses) else "" for losses in curves.values())]
        for step in steps
    ]
    return markdown(["step", *curves], rows)


def _others(lines: list[Line]) -> str:
    """Format how every part ended, with the figures of those that are in no other table."""
    shown = SPEED.keys() | LOSSES.keys() | PROFILE.keys()
    rows = []
    for line in lines:
        is_shown = line["variant"] in (*VARIANTS, REFERENCE) and line["part"] in shown
        figures = "" if is_shown else "; ".join(_figures(line))
        rows.append([line["variant"], line["part"], _outcome(line), f"{line['seconds']:g}", figures])
    return markdown(["what", "part", "outcome", "seconds", "figures"], rows)


def _outcome(line: Line) -> str:
    if "skipped" in line:
        return f"skipped: {line['skipped']}"
    if "error" in line:
        return f"failed: {line['error']}".replace("|", "\\|")
    return "passed" if line["passed"] else "**not passed**"


# Fields of the lines of other benchmarks and parts -> their names.
FIGURES: dict[str, Callable[[Any], str]] = {
    "growth": lambda value: f"tables x{value}",
    "what": str,
    "step_ms": lambda value: f"step {value:g} ms",
    "ms": lambda value: ", ".join(f"{name} {own:g} ms" for name, own in value.items()),
    "ratio": lambda value: f"ratio {value:g}",
    "samples_per_s": lambda value: f"{value:,} samples/s",
    "samples_per_second": lambda value: f"{value:,} samples/s",
    "rows": lambda value: f"{value:,} rows",
    "largest_difference": lambda value: f"largest difference {value:.2g}",
    "preparation_seconds": lambda value: ", ".join(f"{name} {own:g} s" for name, own in value.items()),
}


def _figures(line: Line) -> list[str]:
    """Return the figures of a part, or of each line that a benchmark has printed."""
    results: list[Line] = line.get("results", [line])
    return [", ".join(shown(own[key]) for key, shown in FIGURES.items() if key in own) for own in results]


def _text(line: Line, path: tuple[str, ...]) -> str:
    value: Any = line
    for key in path:
        value = value.get(key, {}) if isinstance(value, dict) else {}
    if value == {}:
        return ""
    return f"{value:.2g}" if path == ("loss_difference",) else f"{value:,}"
