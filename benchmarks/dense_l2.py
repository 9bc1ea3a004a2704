"""main.py with L2 regularization in its exact form: through the gradients of all rows of all tables, in every step.

    python -m benchmarks.dense_l2 ARGUMENTS_OF_MAIN

main.py itself regularizes a row when it is looked up, for all steps since it was last. That takes no time, but is an
approximation (see `UpdateRule.shrunk`); benchmarks/quality.py compares the two. For a single worker.
"""

import sys
from dataclasses import replace

import main
from trainer.process.startup import import_tensorflow


def train_whole_tables() -> None:
    """Let the optimizer update embedding tables like dense weights: every row, in every step."""
    import_tensorflow()
    from trainer import build
    from trainer.optimizers.optimizer import ParameterGroup

    deep_group = build._deep_group

    def whole(*arguments: object) -> ParameterGroup:
        group = deep_group(*arguments)  # type: ignore[arg-type]
        return replace(group, weights=group.weights | group.tables, tables={})

    build._deep_group = whole


if __name__ == "__main__":
    train_whole_tables()
    sys.exit(main.main([*sys.argv[1:], "--table_exchange", "whole"]))
