"""Statistics and tables of variants.py and tables.py, its runs, and full_size.py."""

import json
import math
import os
import sys
import zipfile

import h5py
import numpy as np
import pytest
import torch

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import full_size
import tables
import variants

import data
import train

# ------------------------------------------------------------------------------- the statistics


def student(t, freedom):
    """How likely Student's t is below t: its density, integrated by Simpson's rule."""
    x = np.linspace(0, t, 20001)
    scale = math.gamma((freedom + 1) / 2) / math.gamma(freedom / 2) / math.sqrt(freedom * math.pi)
    density = scale * (1 + x**2 / freedom) ** (-(freedom + 1) / 2)
    weights = np.array([1, *[4, 2] * 9999, 4, 1])
    return 0.5 + (density * weights).sum() * (x[1] - x[0]) / 3


@pytest.mark.parametrize("freedom", range(1, 10))
def test_the_values_of_t_leave_out_two_and_a_half_percent_on_each_side(freedom):
    assert student(variants.T95[freedom - 1], freedom) == pytest.approx(0.975, rel=0, abs=2e-5)


def test_an_interval_by_hand():
    # Mean 2, standard deviation 1, and 4.303 of it over the root of 3.
    assert variants.interval([0.01, 0.03, 0.02]) == "+2.00 [-0.48, +4.48]"
    assert variants.interval([-0.005, -0.015]) == "-1.00 [-7.35, +5.35]"
    assert variants.interval([0.01]) == "+1.00 (one pair)"
    assert variants.interval([]) == "-"


def test_a_spread_says_of_how_many_it_is_where_some_are_missing():
    assert variants.spread([0.5, 0.52]) == "51.00 ± 1.41"
    assert variants.spread([0.5, None, 0.52]) == "51.00 ± 1.41 (n = 2)"
    assert variants.spread([None, 0.5]) == "50.00 (n = 1)"
    assert variants.spread([0.5]) == "50.00"
    assert variants.spread([None]) == "-"


def result(test, **more):
    return dict(parameters=1234, test_accuracy=test, best_on_test=test + 0.01, seconds=90) | more


def test_a_table_pairs_a_variant_with_learned_by_seed():
    results = {
        "learned-dense": {0: result(0.9, unrounded_accuracy=0.95), 1: result(0.8), 5: result(0.1)},
        "fixed-dense": {1: result(0.6), 0: result(0.8), 7: result(0.3)},
        "none-dense": {},
    }
    learned, fixed, none = variants.table(results, "test_accuracy").splitlines()[2:]
    spread = "60.00 ± 43.59 | 61.00 ± 43.59 | 95.00 (n = 1)"
    assert learned == f"| learned, dense | 1,234 | {spread} | - | 3 | 1.5 |"
    # 10 and 20 points: 12.706 times 7.07 over the root of 2 to each side.
    difference = "-15.00 [-78.53, +48.53]"
    assert fixed == (
        f"| fixed, dense | 1,234 | 56.67 ± 25.17 | 57.67 ± 25.17 | - | {difference} | 3 | 1.5 |"
    )
    assert none.startswith("| none, dense |  | not run |") and none.endswith("| 0 |  |")


def test_held_out_seeds_are_paired_and_a_pair_of_speakers_counts_once(tmp_path, monkeypatch):
    accuracies = {  # by pair, recipe and seed
        ("1,8", "paper", 0): 0.7,
        ("1,8", "paper", 1): 0.6,
        ("1,8", "augmented", 0): 0.72,
        ("1,8", "augmented", 1): 0.66,
        ("1,8", "augmented", 2): 0.99,  # there is none of the paper's
        ("2,10", "paper", 1): 0.5,
        ("2,10", "augmented", 1): 0.48,
    }
    for (pair, recipe, seed), accuracy in accuracies.items():
        folder = tmp_path / f"shd-50-without-{pair}" / f"{recipe}-{seed}"
        folder.mkdir(parents=True)
        rows = [f"{accuracy - 0.1},0.9\n"] * 4 + [f"{accuracy},0.9\n"]
        (folder / "log.csv").write_text("valid_accuracy,train_accuracy\n" + "".join(rows))
        (folder / "result.json").write_text("{}")
    monkeypatch.setattr(tables, "LOGS", str(tmp_path))
    table = tables.held_out()[2:]
    assert [line.split(" | ")[:3] for line in table[:6]] == [
        ["| 1, 8", "0", "paper"],
        ["| 1, 8", "0", "augmented"],
        ["| 1, 8", "1", "paper"],
        ["| 1, 8", "1", "augmented"],
        ["| 2, 10", "1", "paper"],
        ["| 2, 10", "1", "augmented"],
    ]
    assert table[1].endswith("| 72.00 (64.00) | +2.00 | 90.00 |")
    assert table[3].endswith("| 66.00 (58.00) | +6.00 | 90.00 |")
    # The pairs differ by 4 and -2 points: mean 1, standard deviation 4.243, times 12.706 / 1.414.
    assert table[6] == "| mean of 2 pairs |  | augmented |  | +1.00 [-37.12, +39.12] |  |"


def test_the_table_of_speech_commands_pairs_seeds_and_names_the_best_epochs(tmp_path, monkeypatch):
    accuracies = {  # by kind and seed: on test, and on validation in each epoch
        ("learned-dense", 0): (0.7, [0.6, 0.8, 0.75]),
        ("learned-dense", 1): (0.6, [0.5, 0.7, 0.7]),
        ("fixed-dense", 1): (0.5, [0.4, 0.5, 0.6]),
    }
    for (kind, seed), (test, valid) in accuracies.items():
        folder = tmp_path / f"ssc-60/{kind}-{seed}"
        folder.mkdir(parents=True)
        rows = "".join(f"{share},{10 + 10 * seed}\n" for share in valid)
        (folder / "log.csv").write_text("valid_accuracy,seconds\n" + rows)
        numbers = dict(valid_accuracy=max(valid), unrounded_accuracy=None, parameters=1234)
        (folder / "result.json").write_text(json.dumps(numbers | {"test_accuracy": test}))
        (folder / "memory.txt").write_text(f"{1000 + seed}\n")
    monkeypatch.setattr(tables, "LOGS", str(tmp_path))
    learned, two, fixed, none = tables.speech_commands()[2:]
    means = "65.00 ± 7.07 | - | 2, 2 | 75.00 ± 7.07 | 72.50 ± 3.54"
    assert learned == f"| learned | 1,234 | {means} | - | 15 | 1,001 | 2 |"
    assert two.startswith("| learned, two synapses a pair |  | not run |")
    pair = "50.00 | -10.00 (one pair) | 3 | 60.00 | 60.00"
    assert fixed == f"| fixed | 1,234 | {pair} | - | 20 | 1,001 | 1 |"
    assert none.startswith("| none |  | not run |")


# ------------------------------------------------------------------------------------ the runs


@pytest.mark.parametrize("words", ["--dataset toy", "--dataset shd --layers 1 --hidden 9"])
def test_widened_networks_have_the_parameters_of_learned_delays_or_a_few_more(words):
    def parameters(delays, hidden):
        options = [*words.split(), "--delays", delays, "--hidden", str(hidden)]
        return train.count_parameters(train.build(train.parse(options)))

    hidden = train.parse(words.split()).hidden
    wanted = parameters("learned", hidden)
    for delays in ("fixed", "none"):
        wide = variants.wide([*words.split(), "--delays", delays])
        assert parameters(delays, wide) >= wanted > parameters(delays, wide - 1)


def program(monkeypatch, capsys, *words):
    """What variants.py returns and prints."""
    monkeypatch.setattr(sys, "argv", ["variants.py", *words])
    code = variants.main()
    return code, capsys.readouterr().out


def test_runs_are_trained_once_and_a_failure_does_not_stop_the_others(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    out = str(tmp_path)
    words = ["--dataset", "toy", "--epochs", "1", "--hidden", "4", "--batch-size", "500"]
    words += ["--seeds", "3", "--density", "dense", "--out", out]
    broken = tmp_path / "toy-1" / "fixed-dense-3"
    broken.mkdir(parents=True)
    (broken / "last.pt").write_bytes(b"no checkpoint")
    code, said = program(monkeypatch, capsys, *words, "--variants", "fixed,none")
    assert code == 1
    assert said.splitlines()[-1].startswith(f"{broken} failed, exit code 1: train.py: ")
    with open(tmp_path / "toy-1" / "none-dense-3" / "result.json") as file:
        accuracy = json.load(file)["test_accuracy"]
    assert f" | {100 * accuracy:.2f} | " in said.splitlines()[-2]  # before the failure

    log = tmp_path / "toy-1" / "none-dense-3" / "log.csv"
    before = log.stat().st_mtime_ns
    code, said = program(monkeypatch, capsys, *words, "--variants", "none")
    assert code == 0 and log.stat().st_mtime_ns == before  # nothing was left to do
    table = (tmp_path / "toy-1" / "table.md").read_text()
    assert said == table
    code, said = program(monkeypatch, capsys, *words, "--variants", "none", "--table")
    assert (code, said) == (0, table)


def test_each_kind_is_what_its_name_says_and_a_run_that_was_cut_off_goes_on(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    small = ["--dataset", "toy", "--epochs", "2", "--hidden", "4", "--batch-size", "500"]
    cut = tmp_path / "toy-2" / "learned-sparse-3"

    def stop(net, row):
        raise KeyboardInterrupt

    words = [*small, "--delays", "learned", "--connections", "2", "--seed", "3", "--out", str(cut)]
    with pytest.raises(KeyboardInterrupt):
        train.train(train.parse(words), on_epoch=stop)
    first_row = (cut / "log.csv").read_text().splitlines()[1]  # its seconds are of that training

    capsys.readouterr()
    chosen = ["--variants", "learned,none-wide", "--connections", "2", "--seeds", "3"]
    code, said = program(monkeypatch, capsys, *small, *chosen, "--out", str(tmp_path))
    assert code == 0
    assert (cut / "log.csv").read_text().splitlines()[1] == first_row

    def read(kind, name):
        return json.loads((tmp_path / "toy-2" / f"{kind}-3" / name).read_text())

    kinds = ["learned-dense", "none-wide-dense", "learned-sparse", "none-wide-sparse"]
    configs = {kind: read(kind, "config.json") for kind in kinds}
    assert [config["connections"] for config in configs.values()] == [0, 0, 2, 2]
    delays = [config["delays"] for config in configs.values()]
    assert delays == ["learned", "none", "learned", "none"]
    accuracy = {kind: read(kind, "result.json")["test_accuracy"] for kind in kinds}
    rows = dict(zip(kinds, said.splitlines()[-4:], strict=True))
    for density in ("dense", "sparse"):
        learned, wide = f"learned-{density}", f"none-wide-{density}"
        assert configs[learned]["hidden"] == 4 < configs[wide]["hidden"]
        assert configs[wide]["parameters"] >= configs[learned]["parameters"]
        points = 100 * (accuracy[wide] - accuracy[learned])
        assert f"| {points:+.2f} (one pair) |" in rows[wide]
        assert "(one pair)" not in rows[learned]


def test_runs_of_other_options_are_refused(tmp_path):
    words = ["--dataset", "toy", "--epochs", "1"]
    config = vars(train.parse(words))
    del config["warp"]  # an option that was added since
    (tmp_path / "config.json").write_text(json.dumps(config))
    variants.check_same(str(tmp_path), words, train.MAY_DIFFER)
    for more, said in ((["--lr", "0.1"], "has --lr 0.005, not 0.1"), (["--warp", "0.2"], "0.0")):
        with pytest.raises(ValueError, match=f"{said}.*use another --out"):
            variants.check_same(str(tmp_path), [*words, *more], train.MAY_DIFFER)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json is broken: put a copy of it back"):
        variants.check_same(str(tmp_path), words, train.MAY_DIFFER)


# ---------------------------------------------------------------------------------- full_size.py


def small_files(folder, samples=5):
    draw = np.random.default_rng(0)
    for split in full_size.SAMPLES:
        with h5py.File(folder / f"ssc_{split}.h5", "w") as file:
            file["labels"] = np.arange(samples) * 3
            file["extra/speaker"] = np.array([b"c50f55b8", b"1e9b215e", b"0ff728b5"] * 2)[:samples]
            times = file.create_dataset(
                "spikes/times", (samples,), dtype=h5py.vlen_dtype(np.float16)
            )
            units = file.create_dataset("spikes/units", (samples,), dtype=h5py.vlen_dtype(np.int64))
            for i in range(samples):
                times[i] = np.sort(draw.uniform(0, 0.5, 20 + i))
                units[i] = draw.integers(0, 700, 20 + i)


def test_full_size_repeats_the_samples_and_leaves_only_packed_files(tmp_path, monkeypatch, capsys):
    small, full = tmp_path / "small", tmp_path / "full"
    small.mkdir(), full.mkdir()
    small_files(small)
    sizes = {"train": 13, "valid": 5, "test": 2}
    monkeypatch.setattr(full_size, "SAMPLES", sizes)
    full_size.main(str(small), str(full))
    assert sorted(os.listdir(full)) == [f"ssc_{split}.h5.zip" for split in sorted(sizes)]
    for split, samples in sizes.items():
        with zipfile.ZipFile(full / f"ssc_{split}.h5.zip") as archive:
            assert archive.namelist() == [f"ssc_{split}.h5"]
        few, many = (data.load("ssc", split, str(folder)) for folder in (small, full))
        which = np.arange(samples) % 5
        assert many.labels.tolist() == few.labels[which].tolist()
        assert many.speakers.tolist() == few.speakers[which].tolist()
        assert many.steps.tolist() == few.steps[which].tolist()
        assert dense(many).equal(dense(few)[which])


def dense(spikes):
    return data.padded(spikes, torch.arange(len(spikes.labels)), 60)


def test_full_size_leaves_the_small_files_alone(tmp_path):
    small_files(tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
    with pytest.raises(ValueError, match="holds the small files: name another folder"):
        full_size.main(str(tmp_path), os.path.join(str(tmp_path), "..", tmp_path.name))
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == before
