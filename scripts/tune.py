"""Searches flags of main.py with Optuna. `python scripts/tune.py --help` lists the arguments."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a script is run with its own folder on the path

from data.command_line import Parser, run_tool, whole_number
from data.errors import DataError
from trainer.lifecycle.run_lock import FolderInUse
from trainer.process.startup import robust_stdio
from trainer.tuning.request import check_request
from trainer.tuning.space import parse_searches
from trainer.tuning.study import PRUNERS, Tuning, import_optuna

DESCRIPTION = """\
Searches flags of main.py with Optuna; a trial is a training run. The flags of all trials follow two dashes:
  python scripts/tune.py --output tuning --trials 50 --search deep_learning_rate=log:1e-4:1e-2 \\
    --search batch_norm=choice:off,on -- --dataset_path data --num_epochs 5

A trial is worth its best epoch on the mapping 'valid' (or --eval_mapping, which may not be 'test'), in the metric that
decides which checkpoint of a run is the best. The same command resumes a study."""
SEARCH_HELP = (
    """FLAG=log:LOW:HIGH, FLAG=uniform:LOW:HIGH, FLAG=int:LOW:HIGH[:STEP] or FLAG=choice:A,B,...; once per flag"""
)


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code: 0 done, 1 trials keep failing or interrupted, 2 wrong input."""
    words = sys.argv[1:] if argv is None else argv
    split = words.index("--") if "--" in words else len(words)
    arguments = _parser().parse(words[:split])

    def job() -> int:
        import_optuna()
        request = check_request(parse_searches(arguments.search), words[split + 1 :], arguments.workers)
        tuning = Tuning(request, arguments.output, pruner=arguments.pruner, seed=arguments.seed, say=_say)
        try:
            return 0 if tuning.run(arguments.trials) else 1
        except FolderInUse as error:
            raise DataError(str(error)) from error

    return run_tool("tune.py", job)


def _say(text: str) -> None:
    print(text, flush=True)


def _parser() -> Parser:
    parser = Parser("tune.py", DESCRIPTION, argparse.RawTextHelpFormatter)
    parser.usage = "tune.py --output DIR --trials N --search FLAG=SPACE [...] -- MAIN.PY FLAG ..."
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the study and its trials")
    parser.add_argument("--trials", type=whole_number(1), required=True, help="trials in all, with those of before")
    parser.add_argument("--search", action="append", default=[], metavar="FLAG=SPACE", help=SEARCH_HELP)
    parser.add_argument("--workers", type=whole_number(1), default=1, help="workers of each trial (default: 1)")
    parser.add_argument("--pruner", choices=PRUNERS, default="median", help="ends hopeless trials (default: median)")
    parser.add_argument("--seed", type=whole_number(0), default=0, help="seed of the search (default: 0)")
    return parser


if __name__ == "__main__":
    robust_stdio()
    sys.exit(main())
