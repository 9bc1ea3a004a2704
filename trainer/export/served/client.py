"""Asks a Triton server for predictions over HTTP, with Python's standard library alone.

python client.py --url http://localhost:8000 --model recommender --rows example.json

The file of rows holds, for each feature, a list per row: one id, the ids of a multi-hot feature or of a sequence padded
with -1 to their full width, one number, or the numbers of a sequence or a vector. What comes back are lists per row for
each task: a probability, the value of a regression, or the probabilities of classes.
"""

import argparse
import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

Rows = dict[str, list[list[float]]]


def predict(url: str, model: str, rows: Rows) -> Rows:
    """Request predictions for rows of encoded features.

    Args:
        url: base URL of the server.
        model: name of the model on the server.
        rows: by feature name, a list of values for each row.

    Returns:
        By task name, a list of values for each row.

    Raises:
        RuntimeError: if the server rejects the request; the message contains its answer.
        OSError: if the server cannot be reached.
    """
    described = _ask(f"{url}/v2/models/{model}")
    inputs = [_tensor(entry, rows[entry["name"]]) for entry in described["inputs"]]
    answer = _ask(f"{url}/v2/models/{model}/infer", {"inputs": inputs})
    return {output["name"]: _rows(output) for output in answer["outputs"]}


def _tensor(entry: dict[str, Any], values: list[list[float]]) -> dict[str, Any]:
    shape = [len(values), len(values[0])]
    return {"name": entry["name"], "datatype": entry["datatype"], "shape": shape, "data": values}


def _rows(output: dict[str, Any]) -> list[list[float]]:
    width, data = output["shape"][1], output["data"]
    return [data[start : start + width] for start in range(0, len(data), width)]


def _ask(address: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        raise RuntimeError(f"{address}: {error.read().decode()}") from error


def main() -> None:
    """Run the command line: print predictions as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://localhost:8000", help="of the server (default: %(default)s)")
    parser.add_argument("--model", default="recommender", help="its name there (default: %(default)s)")
    parser.add_argument("--rows", type=Path, required=True, help="a JSON file")
    arguments = parser.parse_args()
    print(json.dumps(predict(arguments.url, arguments.model, json.loads(arguments.rows.read_text()))))


if __name__ == "__main__":
    main()
