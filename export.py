"""Exports a trained model for serving: SavedModel, ONNX or Triton. `python export.py --help` lists the flags."""

import sys

from data.errors import DataError
from trainer.checkpoint.store import NoCheckpointError
from trainer.export.comparison import ExportDiffers
from trainer.export.request import read_request
from trainer.lifecycle.errors import DONE, FAILURE, NO_CHECKPOINT, WRONG_INPUT
from trainer.process.startup import import_tensorflow, quick_imports, robust_stdio


def main(argv: list[str] | None = None) -> int:
    """Run the export and return an exit code of main.py; check what it can before TensorFlow is imported."""
    try:
        request = read_request(argv)
        with quick_imports():
            import_tensorflow()
        from trainer.export.run import export

        export(request)
    except DataError as error:
        return _fail(error, NO_CHECKPOINT if isinstance(error, NoCheckpointError) else WRONG_INPUT)
    except (ExportDiffers, FloatingPointError, OSError) as error:
        return _fail(error, FAILURE)
    return DONE


def _fail(error: Exception, code: int) -> int:
    print(f"export.py: error: {error}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    robust_stdio()
    sys.exit(main())
