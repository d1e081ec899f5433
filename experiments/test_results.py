"""The README's table, computed again from the logs in experiments/logs."""

import os
import re

import pytest
import variants  # from this folder

HERE = os.path.dirname(os.path.abspath(__file__))
LOGS = os.path.join(HERE, "logs")


def readme_row(first_cell):
    """The cells of a row of the README's tables."""
    with open(os.path.join(os.path.dirname(HERE), "README.md")) as file:
        rows = [line.strip().strip("|").split("|") for line in file if line.startswith("|")]
    (row,) = [row for row in rows if row[0].strip().startswith(first_cell)]
    return [cell.strip() for cell in row[1:]]


@pytest.mark.parametrize(
    "first_cell, folder, kinds, seeds",
    [
        ("toy task, 20 epochs", "toy-20", ["learned", "fixed", "none"], range(10)),
        ("SHD (regenerated), 30 epochs", "shd-30", ["learned"], range(5)),
    ],
)
def test_the_readmes_table_is_that_of_the_logs(first_cell, folder, kinds, seeds):
    for kind, cell in zip(kinds, readme_row(first_cell), strict=False):
        results = variants.finished(f"{LOGS}/{folder}", f"{kind}-dense", seeds)
        mean, deviation, n = re.fullmatch(r"([\d.]+) ± ([\d.]+) \(n = (\d+)\)", cell).groups()
        assert len(results) == int(n) == len(seeds)
        want = variants.spread([result["test_accuracy"] for result in results.values()])
        exact = [float(number) for number in want.split(" ± ")]
        digits = len(mean.split(".")[1])
        assert [float(mean), float(deviation)] == pytest.approx(exact, rel=0, abs=0.51 * 10**-digits)
