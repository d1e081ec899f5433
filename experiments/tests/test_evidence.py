"""Numbers of README and RESULTS against the rows of runs.csv."""

import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "evidence"
README, RESULTS = [(FOLDER / name).read_text() for name in ("../../README.md", "RESULTS.md")]
NUMBER = r"\[-?\d+\.\d\d, -?\d+\.\d\d\]|\d+\.\d\d"  # an interval, or a number on its own
# What no line of comparisons.csv says
EARLIER = """
rows at 1756d9e: 0.04 [-1.23, 1.14] 1.67 [-0.62, 3.96] 0.72 [-1.35, 2.79] 0.34 [-2.14, 1.45] 1.69
0.19 2.38 [0.48, 4.27] 5.56 [0.65, 10.46] 0.06 [-3.31, 3.20] 5.09 6.63 2.80 3.01 91.84 1.43
93.18 0.53
page at a21f1c8: 1.02; by best epochs: 1.18; without rows: 1.73
from 30 to 150 epochs: 6.92 [-9.39, -4.45] 0.92 [-2.27, 0.43]
gain of fixed less that of learned: 0.47 [-1.58, 0.64] 0.82 [-1.17, 2.82] 1.40 [-0.36, 3.16]
1.86 [0.48, 3.23]
found with five or ten seeds: 1.10 1.37 0.67 0.84
"""


@pytest.fixture(scope="module")
def tables():
    pytest.importorskip("pandas")
    pytest.importorskip("scipy")
    return pytest.importorskip("experiments.evidence.tables")


@pytest.fixture(scope="module")
def lines(tables):
    return tables.differences(tables.all_rows())


def table(page, heading):
    """Return the cells of each row of the table under a heading of a page."""
    section = page.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    _, *rows = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


@pytest.fixture(scope="module")
def runs(tables):
    """Return the runs of 150 epochs on SHD by what a command line adds to the defaults."""
    shd = tables.all_rows().query("data == @tables.SHD and speakers == '' and epochs == 150")
    words = shd["side"].str.replace(r"\.0\b| --dropout .*", "", regex=True)  # recipe sets those
    return dict(list(shd.groupby(words)))


def test_rows_of_the_readme_follow_from_runs(tables, runs):
    for _, parameters, accuracy, options in table(README, "Results"):
        side = re.sub(r"^python -m [\w.]*ideas |^--delays ", "", options.strip("`"))
        side = f"learned {side}".strip() if side == "" or side.startswith("--") else side
        assert accuracy == tables.spread(runs[side]["accuracy"]), options
        assert [parameters] == [f"{n:,.0f}" for n in runs[side]["parameters"].unique()], options


def test_our_accuracies_beside_published_ones_follow_from_runs(tables, runs):
    sides = {"learned, shifted samples": "shift", "learned, four more changes": "recipe"}
    ours = [row for row in table(RESULTS, "Published numbers") if row[3] == "us"]
    for kind, accuracy, rule, _ in ours:
        fraction = " --valid-share 0.2" if rule == "a fifth of train held out" else ""
        column = "best_on_test" if rule == "best epoch on test" else "accuracy"
        side = sides.get(kind, kind.partition(",")[0]) + fraction
        assert accuracy == tables.spread(runs[side][column]), (kind, rule)
    assert len(ours) > 5


def test_rows_of_differences_and_cells_of_choices_follow_from_comparisons(lines):
    differences, choices = [], {"SHD (regenerated)": [], "toy": []}
    for line in lines.to_dict("records"):
        if line["table"] == "Differences":
            epochs = f"toy, {line['epochs']}" if line["data"] == "toy" else line["epochs"]
            means = ", ".join(line[side].split()[0] for side in ("one side", "other side"))
            n = line["n"].replace(" and", ",")
            differences.append([line["name"], epochs, means, line["difference"], n])
        elif line["table"] == "Choices":
            way = "lower" if line["points"] < 0 else "higher"
            star = "*" if line["low"] > 0 or line["high"] < 0 else ""
            choices[line["data"]].append(f"{line['name']} {abs(line['points']):.2f} {way}{star}")
    assert table(RESULTS, "Differences") == differences
    for k, cells in enumerate(choices.values(), 3):
        told = "; ".join(row[k] for row in table(RESULTS, "Choices") if row[k]).split("; ")
        # runs.csv has no rows of earlier programs.
        assert sorted(cell for cell in told if "(at " not in cell) == sorted(cells)


def by_hand(tables):
    """Return what RESULTS says of runs that no line of comparisons.csv can choose."""
    rows = tables.all_rows().query("data == @tables.SHD").set_index(["speakers", "seed"])
    pairs = rows[rows["epochs"] == 40].sort_index()
    test = rows[rows["epochs"] == 150].loc[""].sort_index()
    shift, fixed, warp = [
        pairs.loc[pairs["side"] == side, "accuracy"]
        for side in ("shift", "shift --delays fixed", "warp")
    ]
    again = shift[pairs.loc[pairs["side"] == "shift", "processor"] == "AMD EPYC, family 26 model 2"]
    fixed = fixed[again.index]
    repeat = tables.difference(again, fixed, True)
    won = sum(gain > 0 for gain in repeat["gains"].values())
    yield f"{repeat['difference']}, {won} of 5 pairs, {sum(again > fixed)} of {len(again)} runs"
    yield f"warp has {tables.difference(warp, shift, True)['difference']}, "
    five = 100 * shift["0,9"]
    yield f"the best of five runs ({five.min():.2f} to {five.max():.2f})"
    learned = test[~test["options"].str.contains("fixed")]
    eight = [learned.loc[learned["variant"] == idea, "accuracy"] for idea in ("recipe", "shift")]
    yield f"have {tables.difference(*eight, False)['difference']}"
    moved, still = [test.loc[test["side"] == side, "accuracy"] for side in ("shift", "learned")]
    first, *others = 100 * (moved - still)
    yield f"seed 0 gains {first:.2f} and the others {min(others):.2f} to {max(others):.2f}"


def test_numbers_of_the_text_follow_from_rows(tables, lines):
    texts = [*lines["difference"], *lines["one side"], *lines["other side"], EARLIER]
    texts += by_hand(tables)
    assert not [sentence for sentence in by_hand(tables) if sentence not in RESULTS]
    told = RESULTS.partition("\n## Choices\n")[0]
    assert set(re.findall(NUMBER, told)) <= set(re.findall(NUMBER, " ".join(texts)))
    more = lines[lines["table"] == "more"]
    hidden = more[[words.partition(" ")[2] not in RESULTS for words in more["difference"]]]
    sure = sum((hidden["low"] > 0) | (hidden["high"] < 0))
    assert f"prints {len(hidden)} more differences; {sure} of these exclude 0" in RESULTS
    pair = tables.all_rows().query("side == 'shift' and speakers == '1,8'")
    (told,) = tables.accuracies(pair)["accuracy"]
    assert told.endswith(f"(n = {pair['seed'].nunique()})")  # another processor ran a seed again
