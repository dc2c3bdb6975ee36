from __future__ import annotations

import csv
import gzip
import json

import pandas
import pytest

from nas_dynamic import SearchSpace
from nas_dynamic.analysis.architecture_table import ArchitectureTable

SPACE = SearchSpace({"layer1": ["conv3", "conv5"], "depth": [2, 3]})
ACCURACY = {("conv3", 2): 91.0, ("conv3", 3): 92.5, ("conv5", 2): 90.0, ("conv5", 3): 93.5}
ROWS = [{"layer1": op, "depth": depth, "top1": v} for (op, depth), v in ACCURACY.items()]


def written(folder, name):
    path = folder / name
    if path.suffix == ".parquet":
        pandas.DataFrame(ROWS).to_parquet(path)
        return path
    if path.suffix.startswith(".json"):
        labels = ("layer1", "depth")
        rows = [
            {"architecture": {label: row[label] for label in labels}, "top1": row["top1"]}
            for row in ROWS
        ]
        lines = [json.dumps(line) for line in ({"epochs": 3}, *rows)]  # as a journal
        path.write_text(json.dumps(rows) if name.endswith(".json") else "\n".join(lines))
        return path
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt", newline="") as file:
        writer = csv.DictWriter(file, ["layer1", "depth", "top1"])
        writer.writeheader()
        writer.writerows(ROWS)
    return path


@pytest.mark.parametrize(
    "name", ["table.csv", "table.csv.gz", "table.parquet", "table.json", "table.jsonl"]
)
def test_a_file_holds_what_the_dictionary_does(tmp_path, name):
    path = written(tmp_path, name)
    columns = ArchitectureTable.read(path, SPACE, "top1")
    parsed = ArchitectureTable.read(
        path,
        SPACE,
        "top1",
        parse=lambda row: {"depth": int(row["depth"]), "layer1": row["layer1"]},
    )
    pairs = [(dict(zip(SPACE.labels, names, strict=True)), a) for names, a in ACCURACY.items()]
    expected = ArchitectureTable(SPACE, pairs)
    for table in (columns, parsed):
        assert len(table) == 4
        for architecture in SPACE:
            assert table(architecture) == expected(architecture)
            assert table(architecture) == ACCURACY[tuple(architecture.values())]


def test_the_order_of_labels_does_not_matter():
    table = ArchitectureTable(SPACE, [({"depth": 3, "layer1": "conv5"}, 93.5)])
    assert table({"layer1": "conv5", "depth": 3}) == 93.5
    assert {"layer1": "conv3", "depth": 3} not in table
    with pytest.raises(ValueError, match="table of 1 architectures has none with"):
        table({"layer1": "conv3", "depth": 3})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([({"layer1": "conv3"}, 1.0)], "architecture chooses nothing for 'depth'"),
        ([({"layer1": "conv7", "depth": 2}, 1.0)], "'conv7' is not a candidate of 'layer1'"),
        ([({"layer1": "conv3", "depth": 2}, float("nan"))], "has the value nan"),
        (
            [({"layer1": "conv3", "depth": 2}, 1.0), ({"layer1": "conv3", "depth": 2}, 2.0)],
            r"has the values 1.0 and 2.0",
        ),
    ],
)
def test_values_that_fit_no_space_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        ArchitectureTable(SPACE, values)


def test_a_table_may_begin_with_the_mark_of_a_spreadsheet(tmp_path):
    path = written(tmp_path, "table.csv")
    path.write_text(path.read_text(), encoding="utf-8-sig")
    assert len(ArchitectureTable.read(path, SPACE, "top1")) == 4


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("conv5", "'' in column 'depth' is no candidate"),
        ("conv5,3", "'' in column 'top1' is no number"),
        ("conv5,3,", "'' in column 'top1' is no number"),
        ("conv5,3,?", r"'\?' in column 'top1' is no number"),
        ("conv5,3,nan", "has the value nan"),
        ("conv5,2,1", "has the values 90.0 and 1.0"),
    ],
)
def test_a_row_that_says_nothing_is_named(row, message, tmp_path):
    path = written(tmp_path, "table.csv")
    *lines, _ = path.read_text().splitlines()
    path.write_text("\n".join([*lines, row]))
    with pytest.raises(ValueError, match=f"table.csv, row 4 of 4: .*{message}"):
        ArchitectureTable.read(path, SPACE, "top1")


def test_files_that_are_no_table_are_refused(tmp_path):
    path = written(tmp_path, "table.csv")
    with pytest.raises(ValueError, match=r"no column \['top5'\]; the columns are"):
        ArchitectureTable.read(path, SPACE, "top5")
    with pytest.raises(ValueError, match="'2' in column 'depth' is no candidate"):
        ArchitectureTable.read(path, SPACE.restrict({"depth": [3]}), "top1")
    with pytest.raises(FileNotFoundError, match="is no file"):
        ArchitectureTable.read(tmp_path / "none.csv", SPACE, "top1")
    path = tmp_path / "table.txt"
    path.touch()
    with pytest.raises(ValueError, match=r"is a .csv, .csv.gz, .parquet, .json or"):
        ArchitectureTable.read(path, SPACE, "top1")
    path = tmp_path / "empty.csv"
    path.write_text("layer1,depth,top1\n")
    with pytest.raises(ValueError, match="has no rows"):
        ArchitectureTable.read(path, SPACE, "top1")
