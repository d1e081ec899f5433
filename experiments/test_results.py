"""Tables of README.md and RESULTS.md, computed again from the logs in experiments/logs."""

import os
import re

import pytest
import tables  # from this folder
import variants

HERE = os.path.dirname(os.path.abspath(__file__))
LOGS = os.path.join(HERE, "logs")


def readme_row(first_cell):
    """The cells of a row of the README's tables."""
    with open(os.path.join(os.path.dirname(HERE), "README.md")) as file:
        rows = [line.strip().strip("|").split("|") for line in file if line.startswith("|")]
    (row,) = [row for row in rows if row[0].strip().startswith(first_cell)]
    return [cell.strip() for cell in row[1:]]


def test_the_readmes_toy_row_is_that_of_the_logs():
    cells = readme_row("toy task, 20 epochs")
    for kind, cell in zip(["learned", "fixed", "none"], cells, strict=True):
        results = variants.finished(f"{LOGS}/toy-20", f"{kind}-dense", range(10))
        mean, deviation, n = re.fullmatch(r"([\d.]+) ± ([\d.]+) \(n = (\d+)\)", cell).groups()
        assert len(results) == int(n)
        want = variants.spread([result["test_accuracy"] for result in results.values()])
        exact = [float(number) for number in want.split(" ± ")]
        digits = len(mean.split(".")[1])
        assert [float(mean), float(deviation)] == pytest.approx(
            exact, rel=0, abs=0.51 * 10**-digits
        )


@pytest.mark.parametrize("name", tables.TABLES)
def test_a_table_of_results_is_that_of_the_logs(name):
    with open(os.path.join(HERE, "RESULTS.md")) as file:
        written = file.read().splitlines()
    table = tables.TABLES[name]()
    assert table[0] in written, f"RESULTS.md lacks the table {name}"
    start = written.index(table[0])
    end = next(i for i in range(start, len(written) + 1) if not "".join(written[i : i + 1]))
    assert written[start:end] == table
