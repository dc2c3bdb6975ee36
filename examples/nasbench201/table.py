"""Mean and range over the seeds of finished runs: `python examples/nasbench201/table.py FOLDER`."""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections import defaultdict
from pathlib import Path


def main() -> None:
    results: dict[tuple[str, str], list[dict[str, float]]] = defaultdict(list)
    for path in sorted(Path(sys.argv[1]).glob("*/result.json")):
        method, sampler, published = re.fullmatch(
            r"(\w+)-(\w+)-\w+(-published)?-s\d+", path.parent.name
        ).groups()
        results[sampler + (published or ""), method].append(json.loads(path.read_text()))
    if not results:
        sys.exit(f"{sys.argv[1]} has no */result.json; train.py writes them under --out")
    columns = list(dict.fromkeys(key for runs in results.values() for run in runs for key in run))
    print(f"| sampler | method | seeds | {' | '.join(columns)} |")
    print("|---" * (3 + len(columns)) + "|")
    for (sampler, method), runs in sorted(results.items()):
        cells = [spread([run[key] for run in runs if key in run]) for key in columns]
        print(f"| {sampler} | {method} | {len(runs)} | {' | '.join(cells)} |")


def spread(values: list[float]) -> str:
    if not values:
        return ""
    text = f"{statistics.mean(values):.3f}"
    if len(values) > 1 and max(values) > min(values):
        text += f" [{min(values):.3f}, {max(values):.3f}]"
    return text


if __name__ == "__main__":
    main()
