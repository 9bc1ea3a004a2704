"""Runs main.py's main with several argument lists in one process, so that TensorFlow is imported once.

usage: run_all.py SCENARIOS.json     (a list of argument lists; stops at the first that fails)
"""

import json
import sys
from pathlib import Path

from main import main

for number, arguments in enumerate(json.loads(Path(sys.argv[1]).read_text())):
    code = main(arguments)
    print(f"scenario {number}: {code}", flush=True)
    if code:
        sys.exit(f"scenario {number} ended with {code}: {arguments}")
