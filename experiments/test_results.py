"""Tables of README.md and RESULTS.md that have logs in experiments/logs, computed again."""

import os
import re
import shutil

import pytest
import tables  # from this folder
import variants

import train

HERE = os.path.dirname(os.path.abspath(__file__))
LOGS = os.path.join(HERE, "logs")


def read(*path):
    with open(os.path.join(HERE, *path)) as file:
        return file.read()


README = read("..", "README.md")
RESULTS = read("RESULTS.md")


def readme_row(first_cell):
    """The cells of a row of the README's tables."""
    lines = README.splitlines()
    rows = [line.strip().strip("|").split("|") for line in lines if line.startswith("|")]
    (row,) = [row for row in rows if row[0].strip().startswith(first_cell)]
    return [cell.strip() for cell in row[1:]]


def agrees(text, shares):
    """Whether text, as in 98.3 ± 1.6, is the mean ± standard deviation of the shares, rounded."""
    exact = [float(number) for number in variants.spread(shares).split(" ± ")]
    for number, value in zip(text.split(" ± "), exact, strict=True):
        digits = len(number.partition(".")[2])
        assert float(number) == pytest.approx(value, rel=0, abs=0.51 * 10**-digits), text


# Rows of the README's table, and the runs behind each cell.  Where there are none, it is "not run".
ROWS = {
    "SHD (regenerated), 150 epochs": [
        "shd-150/learned-dense",
        "shd-150/fixed-dense",
        "shd-150/none-dense",
    ],
    "the same with `--recipe augmented`": ["shd-150/augmented", "no such runs", "no such runs"],
    "SHD (regenerated), 30 epochs": [
        "shd-30/learned-dense",
        "shd-30/fixed-dense",
        "shd-30/none-dense",
    ],
    "Speech Commands (subset), 60 epochs": [
        "ssc-60/learned-dense",
        "ssc-60/fixed-dense",
        "ssc-60/none-dense",
    ],
    "toy task, 20 epochs": ["toy-20/learned-dense", "toy-20/fixed-dense", "toy-20/none-dense"],
}


@pytest.mark.parametrize("first_cell", ROWS)
def test_a_row_of_the_readme_is_that_of_the_logs(first_cell):
    for kind, cell in zip(ROWS[first_cell], readme_row(first_cell), strict=True):
        results = tables.results(kind).values()
        if not results:
            assert cell == "not run"
            continue
        text, n = re.fullmatch(r"(.*) \(n = (\d+)\)", cell).groups()
        assert len(results) == int(n)
        agrees(text, [result["test_accuracy"] for result in results])


RUNS = sorted(
    f"{group}/{run}" for group in os.listdir(LOGS) for run in os.listdir(f"{LOGS}/{group}")
)


@pytest.mark.parametrize("folder", RUNS)
def test_a_log_is_of_the_run_that_its_folder_names(folder):
    """As in toy-20-ideas/axonal-3: toy task, 20 epochs, seed 3."""
    group, name = folder.split("/")
    kind, seed = name.rsplit("-", 1)
    config = variants.read_json(f"{LOGS}/{folder}", "config.json")
    dataset, epochs, *rest = group.split("-")
    found = [config["dataset"], config["epochs"], config["seed"], config["valid_speakers"]]
    assert found == [dataset, int(epochs), int(seed), rest[1] if "without" in rest else ""]
    variant = kind.removesuffix("-dense").removesuffix("-wide")
    assert config["delays"] == (variant if variant in variants.VARIANTS else "learned")
    two_threads = "threads" in rest or folder == "shd-150/fixed-dense-2"
    assert config.get("threads", 1) == (2 if two_threads else 1)
    assert config["connections"] == 0
    dropout = float(rest[1]) if "dropout" in rest else train.DEFAULTS[dataset]["dropout"]
    assert config["dropout"] == dropout
    assert config["kernel_count"] == (2 if kind == "learned-two" else 1)
    # Runs from before there was augmentation do not name it.
    assert config.get("shift", 0) == (8 if kind in ("augmented", "warped") else 0)
    assert config.get("warp", 0) == (0.15 if kind == "warped" else 0)

    log = tables.read_log(f"{LOGS}/{folder}")
    result = variants.read_json(f"{LOGS}/{folder}", "result.json")
    assert [row["epoch"] for row in log] == list(range(1, int(epochs) + 1))
    if result["rule"] == "last epoch":
        assert result["test_accuracy"] == log[-1]["test_accuracy"]
        assert result["best_on_test"] == max(row["test_accuracy"] for row in log)
    else:
        assert result["valid_accuracy"] == max(row["valid_accuracy"] for row in log)


def test_the_course_of_a_run_in_the_readme_is_that_of_the_logs():
    (sentence,) = re.findall(r"with `--epochs 30`, test accuracy is .*?\(n = \d+\)", README)
    logs = list(tables.runs("shd-30/learned-dense").values())
    assert f"(n = {len(logs)})" in sentence
    for epoch in (1, 5, 10):
        assert re.search(rf"after (epoch )?{epoch}\b", sentence)
    spreads = re.findall(r"[\d.]+ ± [\d.]+", sentence)
    for epoch, text in zip([1, 5, 10, 30], spreads, strict=True):
        agrees(text, [log[epoch - 1]["test_accuracy"] for log in logs])


def cells_of(folder, variant, columns):
    """The cells that variants.py prints of a variant, but for its name and the minutes."""
    learned = tables.results(f"{folder}/learned-dense")
    found = learned if variant == "learned" else tables.results(f"{folder}/{variant}-dense")
    return variants.row(found, learned, columns)[:-1]


SHD_ROWS = [(150, name) for name in ("learned", "fixed", "none")]
SHD_ROWS += [(30, name) for name in ("learned", "fixed", "fixed-wide", "none")]


@pytest.mark.parametrize(("epochs", "variant"), SHD_ROWS)
def test_a_variant_of_shd_in_results_is_that_of_the_logs(epochs, variant):
    cells = cells_of(f"shd-{epochs}", variant, ["test_accuracy", "best_on_test"])
    start = f"| {epochs} | {variant}, dense, seed"
    (line,) = [line for line in RESULTS.splitlines() if line.startswith(start)]
    assert line.split(" | ")[2:-1] == cells


@pytest.mark.parametrize("variant", variants.VARIANTS)
def test_a_variant_of_the_toy_task_in_results_is_that_of_the_logs(variant):
    cells = cells_of("toy-20", variant, ["test_accuracy", "unrounded_accuracy"])
    runs = tables.results(f"toy-20/{variant}-dense").values()
    shares = [100 * result["test_accuracy"] for result in runs]
    cells.insert(2, f"{min(shares):.1f}, {max(shares):.1f}")
    assert f"| {variant}, dense | {' | '.join(cells)} |" in RESULTS.splitlines()


def test_one_epoch_in_the_readme_is_that_of_the_log():
    (text,) = re.findall(r"with `--epochs 1` it is (\d+) %", README)
    agrees(text, [tables.results("shd-1/learned-dense")[0]["test_accuracy"]])


def test_the_widened_layers_in_the_readme_are_those_of_the_logs():
    pattern = r"widened to as many, fixed delays end at ([\d. ±]+) on.*?n = (\d+)\), ([\d.]+) below"
    ((text, n, below),) = re.findall(pattern, README)
    results = tables.results("shd-30/fixed-wide-dense")
    assert len(results) == int(n)
    agrees(text, [result["test_accuracy"] for result in results.values()])
    differences = tables.differences(results, tables.results("shd-30/learned-dense"))
    assert variants.interval(differences).startswith(f"+{below} [")


@pytest.mark.parametrize("name", tables.TABLES)
def test_a_table_of_results_is_that_of_the_logs(name):
    written = RESULTS.splitlines()
    table = tables.TABLES[name]()
    assert table[0] in written, f"RESULTS.md lacks the table {name}"
    start = written.index(table[0])
    end = next(i for i in range(start, len(written) + 1) if not "".join(written[i : i + 1]))
    assert written[start:end] == table


def test_a_full_run_without_its_speakers_is_named(tmp_path, monkeypatch):
    shutil.copytree(f"{LOGS}/shd-150", tmp_path / "shd-150")
    (tmp_path / "shd-150/augmented-2/speakers.json").unlink()
    monkeypatch.setattr(tables, "LOGS", str(tmp_path))
    with pytest.raises(ValueError, match="augmented-2 has no speakers.json: experiments/speakers"):
        tables.full_length()
