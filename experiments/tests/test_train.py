"""Runs of train.py: killed and resumed, their options, names and folders, mistakes, and forks."""

import json
import math
import os
import platform
import re
import runpy
import sys
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

import data
import test_delays as oracle
import train
from delays import DelayedLinear, DelaySNN, shrinking_sigma, spike
from experiments.tests.test_data import write_shd
from test_delays import LITTLE, log_of, options_of, parsed, result_of

FOLDER = Path(__file__).resolve().parents[2]
little, asked = oracle.little, oracle.asked  # fixtures


@pytest.mark.paper
def test_the_defaults_of_ssc_are_the_papers_and_a_gpu_is_used_if_there_is_one(monkeypatch):
    want = dict(epochs=60, batch_size=128, hidden=512, layers=3, taps=31, tau=15, dropout=0.25)
    assert data.DATASETS["ssc"].splits == ("train", "valid", "test")
    for found, device in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda found=found: found)
        options = vars(parsed("--dataset", "ssc"))
        assert {key: options[key] for key in (*want, "device")} == want | {"device": device}


@pytest.mark.paper
def test_the_included_network_has_its_accuracy_anywhere(capfd, monkeypatch):
    load = Mock(wraps=data.load)
    monkeypatch.setattr(data, "load", load)
    folder = FOLDER / "experiments/included/shd-learned"
    train.main(["--eval", str(folder), "--device", "cpu"])
    printed, errors = capfd.readouterr()
    accuracy = float(re.fullmatch(r"test accuracy (\S+)% .*\n", printed)[1])
    assert accuracy == pytest.approx(93.15, rel=0, abs=0.3) and errors == ""
    assert load.call_count == 1  # train is not read


@pytest.mark.paper
def test_the_programs_of_the_readme_print_what_it_says(tmp_path, monkeypatch, capsys):
    classify, script = re.findall(r"```python\n(.*?)```", (FOLDER / "README.md").read_text(), re.S)
    monkeypatch.chdir(FOLDER)
    exec(classify, {})
    assert capsys.readouterr().out == classify.rpartition("# ")[2]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data, "DATASETS", dict(data.DATASETS))
    monkeypatch.setattr(train, "DEFAULTS", dict(train.DEFAULTS))
    command = "mine.py --dataset mine --epochs 60 --device cpu --out run"
    monkeypatch.setattr(sys, "argv", command.split())
    exec(script, {"__name__": "__main__"})
    assert capsys.readouterr().out.endswith(" (last epoch; 100.00% with the training kernels)\n")


# --------------------------------------------------------------------------------------------- runs


def test_the_program_takes_the_next_free_folder(little, tmp_path, monkeypatch, capsys):
    sizes = "--dataset little --epochs 1 --hidden 3 --layers 1 --taps 5 --tau 12 --device cpu"
    monkeypatch.setattr(sys, "argv", ["train.py", *sizes.split()])
    monkeypatch.chdir(tmp_path)
    os.makedirs("runs/little-learned-0-3")
    for folder in ("runs/little-learned-0", "runs/little-learned-0-2", "runs/little-learned-0-4"):
        runpy.run_path(str(FOLDER / "train.py"), run_name="__main__")
        printed = capsys.readouterr().out
        assert "\n54 parameters, 24 of them delays\n" in printed  # 2 (5 + 3) 3 + 2 3
        assert f"continue with --resume {folder}\n" in printed
        config = json.loads(Path(folder, "config.json").read_text())
        assert config.pop("options") == vars(train.load_run(folder)[1]) | {"out": folder}
        want = dict(network="DelaySNN", loss="cross_entropy", augment=None, before_epoch=None)
        want |= dict(samples={"train": 44, "test": 61}, torch=torch.__version__, threads=1)
        assert config == want | dict(device=platform.machine())
    assert os.listdir("runs/little-learned-0-3") == []


def quiet_loss(net, counts, membrane, labels):
    return train.cross_entropy(net, counts, membrane, labels) + sum(net.rates)


def delayed(counts, labels, steps):
    return counts.roll(steps, 1)


def halve(net, optimizer, epoch, options):
    """Change the network, and the rates and sigma that are set already, from the third epoch."""
    net.layers[0].weight.data[0, 0] = epoch + 1  # `asked` reads this; training hardly changes it
    if epoch >= 2:
        net.layers[0].sigma *= 2
        optimizer.param_groups[0]["lr"] /= 2


FORK = dict(loss=quiet_loss, augment=partial(delayed, steps=1), before_epoch=halve)


def test_a_run_may_end_before_any_of_its_files_has_its_name(asked, tmp_path, monkeypatch):
    rename, names, allowed = os.replace, [], math.inf

    def rename_some(source, target):
        names.append(os.path.basename(target))
        if len(names) > allowed:
            raise KeyboardInterrupt  # as a kill does, it ends the run past any handler of errors
        rename(source, target)

    def go(*words):
        options = parsed(*words)
        # In float64, rounding moves no spike.
        train.train(options, train.build(options).double(), **FORK)

    monkeypatch.setattr(os, "replace", rename_some)
    sizes = "--dataset validated --epochs 4 --hidden 4 --batch-size 22 --device cpu"
    whole = tmp_path / "whole"
    go(*sizes.split(), "--out", whole)
    assert [names.count(name) for name in ("last.pt", "log.csv", "net.pt")] == [4, 4, 2]
    for end in range(1, len(names)):  # without config.json there is no run yet
        names, allowed, cut = [], end, tmp_path / f"cut{end}"
        with pytest.raises(KeyboardInterrupt):
            go(*sizes.split(), "--out", cut)
        saved = names[:end].count("last.pt")
        names, allowed = [], math.inf
        go("--resume", cut)
        assert names.count("last.pt") == 4 - saved  # no epoch is trained again
        first, second = (torch.load(run / "last.pt")["net"] for run in (cut, whole))
        for name, value in second.items():
            oracle.close(first[name], value, rtol=0, atol=1e-9, name=name)
        for row, same in zip(log_of(cut), log_of(whole), strict=True):
            assert row["epoch"] == same["epoch"] and row["valid_accuracy"] == same["valid_accuracy"]
            assert float(row["moved_ms"]) == pytest.approx(float(same["moved_ms"]), rel=1e-9)
        result = result_of(whole) | {"seconds": sum(float(row["seconds"]) for row in log_of(cut))}
        assert result_of(cut) == result
    sigmas = [shrinking_sigma(e, 4, LITTLE["taps"]) * (1 + (e >= 2)) for e in range(4)]
    assert [float(row["sigma"]) for row in log_of(whole)] == sigmas
    assert float(log_of(whole)[2]["lr"]) == train.one_cycle(2, 4, 5e-3)[0] / 2


def test_a_saved_run_keeps_its_options_and_is_loaded_without_a_gpu(little, tmp_path, monkeypatch):
    run = tmp_path / "run"
    train.train(options_of(run, "--dataset", "little", "--seed", -1, "--valid-share", 0.2))
    (run / "result.json").unlink()  # or it could not be resumed
    config = json.loads((run / "config.json").read_text())
    del config["options"]["weight_decay"]  # as if the option were newer than the run
    (run / "config.json").write_text(json.dumps(config))
    for name in train.OPTIONS.keys() - {"data_dir", "device", "out", "resume", "eval"}:
        value = dict(dataset="toy", delays="fixed").get(name, 77)
        words = ["--" + name.replace("_", "-"), *([] if name == "no_test" else [value])]
        for saved in ("--resume", "--eval"):
            with pytest.raises(data.UserError, match=f"run used {name} .*: leave it out, or start"):
                parsed(saved, run, *words)
    again = parsed("--resume", run, "--epochs", 9, "--data-dir", "elsewhere", "--device", "auto")
    assert (again.out, again.data_dir, again.weight_decay) == (str(run), "elsewhere", 1e-5)
    with pytest.raises(data.UserError, match=f"{run} exists: continue it by --resume, or choose"):
        train.train(options_of(run, "--dataset", "little"))
    run = run.rename(tmp_path / "moved")
    assert parsed("--resume", run).out == str(run)

    load = Mock(wraps=torch.load)
    monkeypatch.setattr(torch, "load", load)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    train.main(["--eval", str(run)])
    assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32
    assert (torch.tensor([1e-30]) * 1e-10).item() == 0  # a denormal number is taken as 0
    # No code of a checkpoint runs.
    assert load.call_args.kwargs == dict(map_location="cpu", weights_only=True)


# -------------------------------------------------------------------------------------------- forks


class Own(DelaySNN):
    """Its neurons have a threshold to learn and hear their echo, from a layer within a layer."""

    def __init__(self, *sizes, **options):
        super().__init__(*sizes, **options)
        self.threshold = torch.nn.Parameter(torch.full((7,), 0.8))
        self.late_delay = torch.nn.Parameter(torch.ones(7))
        self.echo = torch.nn.Sequential(DelayedLinear(7, 7, 6))

    def neurons(self, i, current):
        early = spike(current - self.threshold)
        late = self.echo(early)[:, : current.shape[1]]
        return super().neurons(i, early + self.late_delay * late)


def test_every_parameter_of_a_network_is_trained_at_its_rate(little, tmp_path):
    words = "--dataset little --epochs 2 --delay-lr 5"  # which moves delays beyond their bounds
    options = options_of(tmp_path / "run", *words.split())
    net = train.build(options, Own)
    start = oracle.state_of(net)
    result = train.train(options, net)
    for name, parameter in net.named_parameters():
        moved = (parameter - start[name]).abs().max()
        low, high = (1, 50) if name.endswith("delay") else (0, 0.1)
        assert low < moved <= high, name
    for layer in (*net.layers, *net.echo):
        assert layer.sigma == shrinking_sigma(1, 2, 6) and not layer.training
        assert layer.delay.min() >= 0 and layer.delay.max() <= 5
    assert result["parameters"] == sum(parameter.numel() for parameter in net.parameters())
    net.threshold.requires_grad_(False)  # frozen, so it is not counted
    assert train.count(net.parameters()) == result["parameters"] - 7
    modes = []  # of the nested layer: True where it has the training kernel
    net.echo[0].register_forward_hook(lambda layer, *given: modes.append(layer.training))
    for rounded in (True, False):
        train.predict(net, data.load("little", "test", ""), rounded=rounded)
    assert modes == [False] * 2 + [True] * 2  # each hidden layer has an echo
    net.readout = lambda current: current[:, ::2]
    with pytest.raises(data.UserError, match=r"returned \d+ steps for \d+: expected at least as"):
        train.predict(net, data.load("little", "test", ""))


def test_a_fork_has_the_command_line_and_is_not_taken_for_the_papers(little, tmp_path, monkeypatch):
    run = str(tmp_path / "run")
    monkeypatch.setitem(train.OPTIONS, "strength", (0.0, "of the penalty"))
    fork, rolled = FORK | dict(net_class=Own), partial(torch.roll, dims=1)
    words = ["--dataset", "little", "--device", "cpu", "--epochs", "1", "--strength", "0.5"]
    train.main([*words, "--out", run], **fork)
    with pytest.raises(SystemExit, match=f"has ended and cannot be resumed: --eval {run} prints"):
        train.main(["--resume", run], **fork)
    (tmp_path / "run/result.json").unlink()
    for saved, part, own, said in (
        ("--eval", "net_class", DelaySNN, "network is Own, not DelaySNN: use the"),
        ("--resume", "net_class", DelaySNN, "network is Own, not DelaySNN: use the"),
        ("--resume", "loss", None, "loss is quiet_loss, not cross_entropy: use the"),
        ("--resume", "augment", rolled, "augment is delayed, not roll: use the"),
        ("--resume", "augment", torch.nn.Identity(), "augment is delayed, not Identity: use the"),
        ("--resume", "before_epoch", None, "before_epoch is halve, not None: use the"),
    ):
        with pytest.raises(SystemExit, match=said):
            train.main([saved, run], **fork | {part: own})
    with pytest.raises(ValueError, match="invalid literal"):  # a mistake keeps its traceback
        train.main([*words, "--out", run + "-2"], loss=lambda *given: int("of the fork"))
    with pytest.raises(SystemExit, match="the loss is not finite after epoch 1: try a lower --lr"):
        train.main([*words, "--out", run + "-3"], loss=lambda net, *given: net.rates[0] + math.inf)

    assert parsed("--resume", run).strength == 0.5
    monkeypatch.delitem(train.OPTIONS, "strength")
    with pytest.raises(data.UserError, match=r"run has options of another script, \['strength'\]"):
        parsed("--resume", run)
    monkeypatch.setitem(train.DEFAULTS, "little", LITTLE | {"hiden": 14})
    with pytest.raises(data.UserError, match=r"DEFAULTS has options of another .*\['hiden'\]"):
        parsed("--dataset", "little")
    monkeypatch.delitem(data.DATASETS, "little")
    with pytest.raises(data.UserError, match="run was trained on little: use the script of"):
        train.load_run(run)


# ----------------------------------------------------------------------------- mistakes of the user


COUNTS = ["epochs", "layers", "hidden", "taps", "batch-size"]


@pytest.mark.parametrize(
    "argv, sentence",
    [
        ("--epoch 1", "unrecognized arguments: --epoch 1"),  # options are not abbreviated
        *[(f"--{name} 0", r" 0 \(.*\): expected at least 1") for name in COUNTS],
        ("--tau nan", r"tau nan \(.*\): expected at least 10"),
        ("--tau-readout 9.9", r"tau_readout 9.9 \(.*\): expected at least 10"),
        ("--dropout 1", r"dropout 1.0 \(.*\): expected at least 0 and below 1"),
        ("--valid-share nan", r"valid_share nan \(.*\): expected at least 0 and below 1"),
        ("--delays learnt", "argument --delays: invalid choice: 'learnt'"),
        ("--dataset shd-opened", "argument --dataset: invalid choice: 'shd-opened'"),
        ("--device gpu", "argument --device: invalid choice: 'gpu'"),
        ("--device cuda", "device cuda: torch finds no GPU here"),
        ("--dataset toy --no-test", "no test and no validation set: hold out samples, as by --val"),
        ("--valid-share 0.2 --valid-speakers 2", "valid_speakers and valid_share: expected one of"),
        ("--valid-speakers 2,x", r"expected some, not all, of \['112', '12', '2'\]"),
        ("--valid-speakers 2,12,112", r"expected some, not all, of \['112', '12', "),
        ("--resume text --eval text", "expected a folder, for one of --out, --resume and --eval"),
        ("--resume=", "expected a folder, for one of --out, --resume and --eval"),
        ("--resume none", "No such file or directory: 'none/config.json'"),
        ("--dataset toy --out text/shd_train.h5/x", "Not a directory: 'text/shd_train.h5/x'"),
        ("--data-dir text", "text/shd_train.h5 could not be read: Unable to"),
    ],
)
def test_a_mistake_gets_a_line_and_leaves_no_file(tmp_path, monkeypatch, capsys, argv, sentence):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    write_shd(tmp_path)
    os.mkdir("text")
    Path("text/shd_train.h5").write_text("<html>gone</html>")
    before = set(os.listdir())
    with pytest.raises(SystemExit) as stop:
        train.main(["--epochs=1", "--device=cpu", "--data-dir=.", *argv.split()])
    said = stop.value.code
    if said == 2:  # argparse's
        said = f"train.py: {capsys.readouterr().err.splitlines()[-1]}"
    assert re.fullmatch(f"train.py: .*{sentence}.*", said)  # in one line
    assert set(os.listdir()) == before
