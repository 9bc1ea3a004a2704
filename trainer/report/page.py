"""The report as a self-contained HTML page, without scripts or network access and with inline styles."""

from collections.abc import Callable
from pathlib import Path

from data.storage.files import write_whole
from trainer.logging.progress import format_count
from trainer.report import sections
from trainer.report.gate_section import gate_health
from trainer.report.markup import Markup, element, table, text
from trainer.report.outputs import TITLE
from trainer.report.runs import Run

STYLE = Path(__file__).with_name("page.css")
# A second line of defense besides escaping: browsers neither load nor run anything on this page, whatever a log holds.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"

PARTS: dict[str, Callable[[list[Run]], Markup | None]] = {
    "Learning curves": sections.learning_curves,
    "Metrics": sections.metrics,
    "Calibration": sections.calibration,
    "Throughput": sections.throughput,
    "Step breakdown": sections.step_breakdown,
    "Gates and experts": gate_health,
    "Configuration": sections.configuration,
}


def write_page(runs: list[Run], path: Path) -> None:
    """Writes the page of the given runs.

    Raises:
        OSError: if the file cannot be written.
    """
    write_whole(path, page(runs))


def page(runs: list[Run]) -> str:
    """Returns the HTML page of a single run, or of several runs side by side."""
    parts = {name: make(runs) for name, make in PARTS.items()}
    held = {name: part for name, part in parts.items() if part is not None}
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    links = [element("a", name, href=f"#{_anchor(name)}") for name in held]
    body = element(
        "body",
        element("header", element("h1", f"{TITLE}{title}"), _summary(runs), element("nav", *links)),
        element(
            "main",
            *(element("section", element("h2", name), part, id=_anchor(name)) for name, part in held.items()),
        ),
    )
    return f"<!DOCTYPE html>\n{element('html', _head(title), body, lang='en')}\n"


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")


def _head(title: str) -> Markup:
    return element(
        "head",
        Markup('<meta charset="utf-8">'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{text(POLICY)}">'),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        element("title", f"{TITLE}{title}"),
        element("style", Markup(STYLE.read_text(encoding="utf-8"))),
    )


def _summary(runs: list[Run]) -> Markup:
    """Returns a table with one line per run."""
    head = ["run", "model", "dataset", "global batch", "steps", "epochs"]
    rows = [
        [
            run.name,
            run.parameters.get("model", "\N{EN DASH}"),
            run.parameters.get("dataset_path", "\N{EN DASH}"),
            run.parameters.get("global_batch_size", "\N{EN DASH}"),
            *_progress(run),
        ]
        for run in runs
    ]
    return table(head, rows, class_="summary")


def _progress(run: Run) -> list[object]:
    """Returns the trained steps and epochs of a run, formatted."""
    last = max((*run.training, *run.evaluations), key=lambda point: point.step or 0)
    steps = format_count(last.step) if last.step else "\N{EN DASH}"
    return [steps, "\N{EN DASH}" if last.epoch is None else f"{last.epoch:.3g}"]
