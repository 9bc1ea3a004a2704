"""Makes the configuration of a run from the command line, or from flags by name."""

import argparse
import os
import sys
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from dataclasses import Field, fields, replace
from functools import partial
from typing import Any, NoReturn

from data.command_line import Parser
from data.encoding.remote_dataset import pull_dataset
from data.errors import DataError
from data.storage.range_cache import CACHE_LIMIT_VARIABLE, parse_size
from data.storage.remote import is_url
from trainer.checkpoint.saved_config import saved_model_flags
from trainer.checkpoint.starting_model import check_starting_model, flags_of_run, open_starting_model
from trainer.checkpoint.store import CheckpointStore
from trainer.config import DataOptions, ModelOptions, Options, RunOptions, Section, TrainingOptions, section_flags
from trainer.default_paths import DEFAULT_PATHS, default_path, local_path, set_cache
from trainer.metrics.ranking import ranking_metric
from trainer.models import model_flags, model_options, network_class
from trainer.optimizers.rules import OPTIMIZERS
from trainer.recipe import INHERITED, RESUMED, Choice, choose
from trainer.tasks.loss_weighting import LOSS_WEIGHTINGS

DESCRIPTION = """Trains, evaluates and measures a ranking model on the dataset that a feature specification describes.
One worker: python main.py. Several: horovodrun -np N sh hvd_wrapper.sh python main.py."""

# Flags whose values are the names in a registry, besides --model.
REGISTRIES: dict[str, Collection[str]] = {"optimizer": OPTIMIZERS, "loss_weighting": LOSS_WEIGHTINGS}


def parse(argv: Sequence[str] | None, workers: int, *, reads_checkpoint: bool = True) -> Options:
    """Parse the arguments of main.py into the configuration of a run.

    Args:
        argv: arguments without the program name; None for those of the process.
        workers: number of workers.
        reads_checkpoint: whether to take the model's flags from the checkpoint, if the run restores one.

    Raises:
        DataError: a flag is unknown, a value is out of range, flags contradict each other or the checkpoint, or a
            remote dataset cannot be read.
        NoCheckpointError: there is no checkpoint to restore.
    """
    # In time for the flags whose URLs become paths in the cache.
    set_cache(sys.argv[1:] if argv is None else argv)
    given = {name: value for name, value in vars(make_parser().parse(argv)).items() if value is not None}
    if limit := os.environ.get(CACHE_LIMIT_VARIABLE):
        parse_size(limit)  # a mistake is reported whether or not the limit is needed
    if dataset := given.get("dataset_path"):
        outside = given.get("allow_outside_paths", DataOptions.allow_outside_paths)
        pull_dataset(dataset, given.get("fspec_file", DataOptions.fspec_file), allow_outside_paths=outside)
    options = make_options(given, reads_checkpoint=reads_checkpoint)
    options.run.check_workers(workers, os.environ)
    return options


def make_options(flags: Mapping[str, Any], *, reads_checkpoint: bool = True) -> Options:
    """Make the configuration of a run from flags by name, without dashes. Others have the defaults of --recipe.

    Args:
        flags: values of the types of their flags.
        reads_checkpoint: whether to take the model's flags from the checkpoint, if the run restores one.

    Raises:
        DataError: a value is out of range, or flags contradict each other or the checkpoint.
        NoCheckpointError: there is no checkpoint to restore.
    """
    given = {name: default_path(name) for name in DEFAULT_PATHS} | dict(flags)
    network_class(given.get("model", ModelOptions.model))  # an unknown model is the first thing to report
    for name, choices in ((name, _choices(name)) for name in REGISTRIES):
        if given.get(name, choices[0]) not in choices:
            raise DataError(f"--{name} {given[name]!r} is not one of {', '.join(choices)}")
    run = RunOptions(**_of(RunOptions, given))
    for name in run.ranking_metrics:
        try:
            ranking_metric(name)
        except ValueError as error:
            raise DataError(f"--ranking_metrics: {error}") from error
    if run.raw and given.get("eval_mapping") is not None:
        raise DataError("--raw files replace the mappings of the dataset: remove --eval_mapping")
    if run.warm_start is not None:
        check_starting_model(run.warm_start, given["model_dir"])
        store = CheckpointStore(given["model_dir"])
        if run.use_checkpoint and reads_checkpoint:
            store.refresh()
        run = _resumed_or_started(run, is_begun=not store.is_empty)
    if run.restores and reads_checkpoint:
        given |= saved_model_flags(given, given["model_dir"], run.which_checkpoint)
    inherited = _inherited(run, given) if reads_checkpoint else []
    given |= {choice.flag: choice.value for choice in inherited}
    chosen = choose(given) if run.trains and given.get("recipe", "auto") == "auto" else []
    given |= {choice.flag: choice.value for choice in chosen}
    chosen = [*(choice for choice in inherited if choice.value != _default(choice.flag)), *chosen]
    return Options(
        data=DataOptions(**_of(DataOptions, given)),
        model=model_options(**{name: given[name] for name in model_flags() if name in given}),
        training=TrainingOptions(**_of(TrainingOptions, given)),
        run=run,
        reasons={choice.flag: choice.reason for choice in chosen},
    )


def _resumed_or_started(run: RunOptions, *, is_begun: bool) -> RunOptions:
    """Return the run without --warm_start if it resumes from a checkpoint of its own, else without --use_checkpoint."""
    is_named = run.checkpoint not in (None, "last", "best")
    if run.use_checkpoint and (is_named or is_begun):
        return replace(run, warm_start=None, warm_start_checkpoint=None)
    return replace(run, use_checkpoint=False, checkpoint=None)


def _inherited(run: RunOptions, given: Mapping[str, Any]) -> list[Choice]:
    """Return the settings that a run takes over from its checkpoint or its starting model, without those given.

    A run that resumes keeps those that it was started with, by flags, by the data or by a warm start.

    Raises:
        NoCheckpointError: there is no such model.
    """
    if run.warm_start is not None:
        flags, reason = open_starting_model(run.warm_start, run.warm_start_from).flags(), INHERITED
    elif run.restores and run.trains:
        flags, reason = flags_of_run(given["model_dir"], run.which_checkpoint), RESUMED
    else:
        return []
    return [Choice(name, value, reason) for name, value in flags.items() if name not in given]


def _default(name: str) -> Any:
    return (model_flags() | section_flags(TrainingOptions))[name].field.default


def _choices(name: str) -> list[str]:
    """Return the values of a flag in REGISTRIES, its default first."""
    return list(dict.fromkeys([getattr(TrainingOptions, name), *REGISTRIES[name]]))


def _of(section: type[Section], given: Mapping[str, Any]) -> dict[str, Any]:
    return {item.name: given[item.name] for item in fields(section) if item.name in given}


class _Parser(Parser):
    """A parser that raises an error instead of exiting, so that a worker can record it in its status file."""

    def error(self, message: str) -> NoReturn:
        hint = self.nearest_flag(message)
        raise DataError(f"{message}{hint} (python {self.prog} --help lists every flag)")


def make_parser() -> Parser:
    """Build the parser of main.py, with one flag per field of the sections and of the models."""
    parser = _Parser("main.py", DESCRIPTION, argparse.RawTextHelpFormatter)
    for section in (DataOptions, ModelOptions, TrainingOptions, RunOptions):
        # The first line of a section's docstring is its title in the help text.
        group = parser.add_argument_group(str(section.__doc__).splitlines()[0].rstrip("."))
        flags = model_flags() if section is ModelOptions else section_flags(section)
        for name, flag in flags.items():
            metadata = flag.field.metadata
            kind: dict[str, Any]
            kind = {"choices": _choices(name)} if name in REGISTRIES else _kind(flag.type, metadata["parse"])
            if metadata["urls"] is not None:
                kind["type"] = partial(_URLS[metadata["urls"]], kind["type"])
            if (bare := metadata["bare"]) is not None:
                kind = {"type": _on_or_off, "metavar": "on|off"} if flag.type is bool else kind
                kind |= {"nargs": "?", "const": bare}
            # Without a default here, flags that were given differ from those that were not.
            group.add_argument(f"--{name}", default=None, help=_help(flag.field), **kind)
    return parser


def _kind(hint: Any, parse: Any) -> dict[str, Any]:
    """Return the arguments of `add_argument` for a flag, by its type or by the function that parses its words."""
    if parse is not None:
        return {"nargs": "*", "action": _Parsed, "const": parse, "metavar": "N"}
    members = [member for member in typing.get_args(hint) if member is not type(None)]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return _kind(members[0], None)
    if typing.get_origin(hint) is typing.Literal:
        return {"choices": members}
    if typing.get_origin(hint) is tuple:
        metavar = "N" if members[0] is int else "NAME"
        return {"nargs": "*", "type": members[0], "action": _Parsed, "const": tuple, "metavar": metavar}
    if hint is bool:
        return {"action": "store_const", "const": True}
    return {"type": hint, "metavar": hint.__name__.upper()}


def _on_or_off(text: str) -> bool:
    if text not in ("on", "off"):
        raise argparse.ArgumentTypeError(f"expected on or off, got {text!r}")
    return text == "on"


def _mirrored(kind: type, text: str) -> Any:
    """Return the value of a flag, for which the local mirror of a URL takes its place."""
    try:
        return kind(local_path(text) if is_url(text) else text)
    except DataError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _local(kind: type, text: str) -> Any:
    if is_url(text):
        raise argparse.ArgumentTypeError(f"{text} is a URL; expected a path of this machine")
    return kind(text)


_URLS = {"mirrored": _mirrored, "rejected": _local}


class _Parsed(argparse.Action):
    """Stores the result of the function `const` of the words of a flag."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, self.const(values))


def _help(item: Field[Any]) -> str:
    text, default = item.metadata["help"], item.default
    if item.name in DEFAULT_PATHS:
        default = " or ./".join(DEFAULT_PATHS[item.name])
    elif isinstance(default, tuple):
        default = " ".join(map(str, default))
    return text if default is None or default is False or default == "" else f"{text} (default: {default})"
