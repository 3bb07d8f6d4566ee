"""The only code that uses W&B's engine, the package ``sweeps``: reads a question on stdin and answers on stdout.

Runs in the engine's own environment (docs/decisions/0010) and imports nothing from this project.
"""

import json
import random
import sys
from typing import Any


def main() -> None:
    """Answer one question, as JSON: {"problems": [...], "parameters": {name: value} or null}."""
    json.dump(answer(json.load(sys.stdin)), sys.stdout, default=lambda number: number.item())  # numpy's


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """The parameters of trial ``trial`` of the sweep ``sweep``, or the sweep's problems; see `Sweep.suggest`."""
    import numpy as np
    import sweeps  # type: ignore[import-not-found,unused-ignore]
    from jsonschema import ValidationError  # type: ignore[import-untyped,import-not-found,unused-ignore]

    sweep, trial = question["sweep"], question["trial"]
    random.seed(f"{question['seed']}/{trial}")
    np.random.seed(random.getrandbits(32))
    try:
        if problems := sweeps.schema_violations_from_proposed_config(sweep):
            return {"problems": problems, "parameters": None}
        if sweep["method"] == "grid":
            found = sweeps.next_runs(sweep, [], validate=True, n=trial + 1)
            run = found[trial] if len(found) > trial else None
        else:
            run = sweeps.next_run(sweep, [_run(row, sweep) for row in question["history"]], validate=True)
    except (ValueError, ValidationError) as error:
        return {"problems": [str(error)], "parameters": None}
    return {"problems": [], "parameters": run and {name: entry["value"] for name, entry in run.config.items()}}


def _run(row: dict[str, Any], sweep: dict[str, Any]) -> Any:
    import sweeps

    value = row["value"]
    return sweeps.SweepRun(
        config={name: {"value": each} for name, each in row["parameters"].items()},
        state=row["state"],
        summary_metrics={} if value is None else {sweep["metric"]["name"]: value},
    )
