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
from experiments.tests.test_data import write_shd, write_words
from test_delays import LITTLE, log_of, options_of, parsed, result_of

FOLDER = Path(__file__).resolve().parents[2]
little, asked = oracle.little, oracle.asked  # fixtures


def test_speech_commands_from_files_to_the_last_line(tmp_path, monkeypatch, capsys):
    samples = {"train": 70, "valid": 21, "test": 35}
    write_words(tmp_path, "ssc", samples, ["c50f55b8", "1e9b215e", "0ff728b5"])
    run = tmp_path / "run"
    sizes = "--dataset ssc --hidden 24 --layers 1 --taps 5 --epochs 1 --batch-size 10 --device cpu"
    command = ["train.py", *sizes.split(), "--data-dir", str(tmp_path), "--out", str(run)]
    monkeypatch.setattr(sys, "argv", command)
    runpy.run_path(str(FOLDER / "train.py"), run_name="__main__")
    result = result_of(run)
    accuracy = f"test accuracy {result['test_accuracy']:.2%}"
    printed = capsys.readouterr().out
    assert "\n8,448 parameters, 4,200 of them delays\n" in printed  # 2 (140 + 35) 24 + 2 24
    assert f"\n{accuracy} ({result['rule']}; " in printed
    config = json.loads((run / "config.json").read_text())
    want = dict(network="DelaySNN", loss="cross_entropy", augment=None, before_epoch=None)
    want |= dict(samples=samples, torch=torch.__version__, device=platform.machine(), threads=1)
    assert config == want | {"options": vars(train.load_run(run)[1])}
    for name in ("ssc_train.h5", "run/last.pt"):  # evaluation does not read them
        (tmp_path / name).unlink()
    train.main(["--eval", str(run), "--device", "cpu"])
    assert f"{accuracy} (" in capsys.readouterr().out


@pytest.mark.paper
def test_the_included_network_has_its_accuracy_anywhere(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    folder = FOLDER / "experiments/included/shd-learned"
    train.main(["--eval", str(folder), "--device", "cpu"])
    printed, errors = capfd.readouterr()
    accuracy = float(re.fullmatch(r"test accuracy (\S+)% .*\n", printed)[1])
    assert accuracy == pytest.approx(93.15, rel=0, abs=0.3) and errors == ""


PAPER = {
    "shd": dict(epochs=150, batch_size=256, hidden=256, layers=2, taps=25, tau=10.05, dropout=0.4),
    "ssc": dict(epochs=60, batch_size=128, hidden=512, layers=3, taps=31, tau=15, dropout=0.25),
    "toy": dict(epochs=20, batch_size=50, hidden=40, layers=1, taps=33, tau=10.05, dropout=0),
}
PAPER["shd-regenerated"] = PAPER["shd"]


@pytest.mark.paper
@pytest.mark.parametrize("dataset", PAPER)
def test_defaults_are_the_papers_and_a_gpu_if_there_is_one(dataset, monkeypatch):
    options = vars(parsed("--dataset", dataset))
    want = PAPER[dataset] | dict(lr=5e-3, delay_lr=0.1, weight_decay=1e-5, delays="learned", seed=0)
    want |= dict(tau_readout=None, no_test=False, valid_speakers="", valid_share=None, out="")
    assert {key: options[key] for key in want} == want
    for found, device in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda found=found: found)
        assert parsed("--dataset", dataset).device == device
        assert parsed("--dataset", dataset, "--device", "cpu").device == "cpu"


# ------------------------------------------------------------------ runs: continued, loaded, a fork


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


def quiet_loss(net, counts, membrane, labels):
    return train.cross_entropy(net, counts, membrane, labels) + sum(net.rates)


def delayed(counts, labels, steps):
    return counts.roll(steps, 1)


def reversed_in_time(counts, labels, steps):
    return counts.flip(1)


def halve(net, optimizer, epoch, options):
    """Change the network, and the rates and sigma that are set already, from the third epoch."""
    net.layers[0].weight.data[0, 0] = epoch + 1  # `asked` reads this; training hardly changes it
    if epoch >= 2:
        net.layers[0].sigma *= 2
        optimizer.param_groups[0]["lr"] /= 2


FORK = dict(loss=quiet_loss, augment=partial(delayed, steps=1), before_epoch=halve)


def test_a_run_may_end_before_any_of_its_files_has_its_name(asked, tmp_path, monkeypatch):
    rename, names = os.replace, []

    def rename_some(source, target):
        names.append(os.path.basename(target))
        if len(names) > allowed:
            raise KeyboardInterrupt  # as a kill does, it ends the run past any handler of errors
        rename(source, target)

    def go(*words):  # in float64, where rounding makes no spikes
        options = parsed(*words)
        train.train(options, train.build(options).double(), **FORK)

    monkeypatch.setattr(os, "replace", rename_some)
    words = "--dataset validated --epochs 4 --hidden 4 --batch-size 22 --device cpu --out".split()
    allowed = math.inf
    whole = tmp_path / "whole"
    go(*words, whole)
    assert [names.count(name) for name in ("last.pt", "log.csv", "net.pt")] == [4, 4, 2]
    for end in range(1, len(names)):  # without config.json there is no run yet
        names, allowed, cut = [], end, tmp_path / f"cut{end}"
        with pytest.raises(KeyboardInterrupt):
            go(*words, cut)
        allowed = math.inf
        go("--resume", cut)
        for name in ("last.pt", "net.pt"):
            first, second = (torch.load(run / name) for run in (cut, whole))
            assert first["sigma"] == second["sigma"]
            for key, value in second["net"].items():
                oracle.close(first["net"][key], value, rtol=0, atol=1e-9)
        rows, others = (
            [*torch.load(run / "last.pt")["rows"], result_of(run)] for run in (cut, whole)
        )
        for row, same in zip(rows, others, strict=True):
            assert row | {"seconds": 0} == pytest.approx(same | {"seconds": 0}, rel=0, abs=1e-9)
        assert [row["epoch"] for row in log_of(cut)] == list("1234")
        assert result_of(cut)["seconds"] == sum(float(row["seconds"]) for row in log_of(cut))
    sigmas = [shrinking_sigma(e, 4, LITTLE["taps"]) * (1 + (e >= 2)) for e in range(4)]
    assert [float(row["sigma"]) for row in log_of(whole)] == sigmas
    assert float(log_of(whole)[2]["lr"]) == train.one_cycle(2, 4, 5e-3)[0] / 2


def test_the_same_command_takes_the_next_free_folder(little, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--dataset", "little", "--epochs", "1", "--hidden", "3", "--device", "cpu"]
    os.makedirs("runs/little-learned-0-3")
    for folder in ("runs/little-learned-0", "runs/little-learned-0-2", "runs/little-learned-0-4"):
        train.main(words)
        assert f"continue with --resume {folder}\n" in capsys.readouterr().out
        assert json.loads(Path(folder, "config.json").read_text())["options"]["out"] == folder
    assert os.listdir("runs/little-learned-0-3") == []


def test_every_parameter_of_a_network_is_trained_at_its_rate(little, tmp_path):
    words = "--dataset little --epochs 2 --delay-lr 5"  # which moves delays beyond their bounds
    options = options_of(tmp_path / "run", *words.split())
    net = train.build(options, Own)
    layers = [*net.layers, *net.echo]
    start = oracle.state_of(net)
    groups = train.make_optimizer(net, options).param_groups  # which the slow trainer checks
    names = {parameter: name for name, parameter in net.named_parameters()}
    weights, moving, others = ([names[own] for own in group["params"]] for group in groups)
    parts = [f"layers.{i}" for i in range(3)] + ["echo.0"]
    assert sorted(weights) == sorted(f"{part}.weight" for part in parts)
    assert sorted(moving) == sorted([f"{part}.delay" for part in parts] + ["late_delay"])
    assert sorted(weights + moving + others) == sorted(names.values())

    result = train.train(options, net)
    for name, parameter in net.named_parameters():
        assert not torch.equal(parameter, start[name]), name
    for layer in layers:
        assert layer.sigma == shrinking_sigma(1, 2, 6) and not layer.training
        assert layer.delay.min() >= 0 and layer.delay.max() <= 5
    assert result["parameters"] == sum(parameter.numel() for parameter in net.parameters())
    modes = []  # of the nested layer: True where it has the training kernel
    net.echo[0].register_forward_hook(lambda layer, *given: modes.append(layer.training))
    for rounded in (True, False):
        train.predict(net, data.load("little", "test", ""), rounded=rounded)
    assert modes == [False] * 2 + [True] * 2  # each hidden layer has an echo
    readout = net.readout
    net.readout = lambda current: readout(current)[:, ::2]
    with pytest.raises(data.UserError, match=r"returned \d+ steps for \d+: expected at least as"):
        train.predict(net, data.load("little", "test", ""))


def test_a_fork_has_the_command_line_and_is_not_taken_for_the_papers(little, tmp_path, monkeypatch):
    run = str(tmp_path / "run")
    monkeypatch.setitem(train.OPTIONS, "strength", (0.0, "of the penalty"))
    fork = FORK | dict(net_class=Own)
    words = ["--dataset", "little", "--device", "cpu", "--strength", "0.5", "--epochs"]
    train.main([*words, "2", "--out", run], **fork)
    with pytest.raises(SystemExit, match=f"has ended and cannot be resumed: --eval {run} prints"):
        train.main(["--resume", run], **fork)
    (tmp_path / "run/result.json").unlink()
    for option, part, other, said in (
        ("--eval", "net_class", DelaySNN, "network is Own, not DelaySNN: use the"),
        ("--resume", "net_class", DelaySNN, "network is Own, not DelaySNN: use the"),
        ("--resume", "loss", None, "loss is quiet_loss, not cross_entropy: use the"),
        ("--resume", "augment", None, "augment is delayed, not None: use the"),
        ("--resume", "augment", partial(reversed_in_time, steps=1), "delayed, not reversed_in_t"),
        ("--resume", "before_epoch", None, "before_epoch is halve, not None: use the"),
    ):
        with pytest.raises(SystemExit, match=re.escape(said)):
            train.main([option, run], **fork | {part: other})
    with pytest.raises(ValueError, match="invalid literal"):  # a mistake keeps its traceback
        train.main([*words, "1", "--out", run + "-2"], loss=lambda *given: int("of the fork"))
    with pytest.raises(SystemExit, match="the loss is not finite after epoch 1: try a lower --lr"):
        train.main(
            [*words, "1", "--out", run + "-3"], loss=lambda net, *given: sum(net.rates) + math.inf
        )

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


def test_a_saved_run_keeps_its_options_and_is_loaded_without_a_gpu(little, tmp_path, monkeypatch):
    run = tmp_path / "run"
    train.train(options_of(run, *"--dataset little --epochs 2 --valid-speakers 1,2".split()))
    (run / "result.json").unlink()  # or it could not be resumed
    config = json.loads((run / "config.json").read_text())
    del config["options"]["weight_decay"]  # as if the option were newer than the run
    (run / "config.json").write_text(json.dumps(config))
    others = (
        "--epochs 3,--seed 1,--lr 0.001,--delay-lr 0.2,--weight-decay 0,--batch-size 9,--hidden 8,"
        "--layers 1,--taps 7,--tau 16,--tau-readout 9,--dropout 0.5,--delays fixed,--no-test,"
        "--valid-speakers 1,--valid-share 0.1,--dataset toy"
    )
    for words in others.split(","):
        name = words.split()[0][2:].replace("-", "_")
        for saved in ("--resume", "--eval"):
            with pytest.raises(data.UserError, match=f"run used {name} .*: leave it out, or start"):
                parsed(saved, run, *words.split())
    again = parsed("--resume", run, "--epochs", 2, "--data-dir", "elsewhere", "--device", "auto")
    assert (again.out, again.data_dir, again.weight_decay) == (str(run), "elsewhere", 1e-5)
    with pytest.raises(data.UserError, match=f"{run} exists: continue it by --resume, or choose"):
        train.train(options_of(run, "--dataset", "little"))
    run = run.rename(tmp_path / "moved")
    assert parsed("--resume", run).out == str(run)

    load, flags = Mock(wraps=torch.load), (torch.backends.cudnn, torch.backends.cuda.matmul)
    monkeypatch.setattr(torch, "load", load)
    for words in ("--resume", "--eval"):
        for flag in flags:
            flag.allow_tf32 = True
        torch.set_flush_denormal(False)
        train.main([words, str(run)])
        assert [flag.allow_tf32 for flag in flags] == [False, False]
        assert (torch.tensor([1e-30]) * 1e-10).item() == 0  # a denormal number is taken as 0
        assert not torch.backends.cudnn.benchmark  # it would tune again for each batch's length
    safe = dict(map_location="cpu", weights_only=True)  # and no code of a checkpoint runs
    assert [call.kwargs for call in load.call_args_list] == [safe] * 3  # last.pt, net.pt twice


# ----------------------------------------------------------------------------- mistakes of the user


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    place = tmp_path_factory.mktemp("workplace")
    write_shd(place)
    (place / "text").mkdir()
    (place / "text/shd_train.h5").write_text("<html>gone</html>")
    return place


@pytest.mark.parametrize(
    "argv, sentence",
    [
        ("--epoch 1", "unrecognized arguments: --epoch 1"),  # options are not abbreviated
        ("--epochs 0", "epochs 0: expected at least 1"),
        ("--layers 0", "layers 0: expected at least 1"),
        ("--hidden 0", "hidden 0: expected at least 1"),
        ("--taps 0", "taps 0: expected at least 1"),
        ("--batch-size 0", "batch_size 0: expected at least 1"),
        ("--tau nan", "tau nan: expected at least 10"),
        ("--tau 9 --tau-readout 20", "tau 9.0: expected at least 10"),
        ("--tau-readout 9.9", "tau_readout 9.9: expected at least 10"),
        ("--dropout 1", "dropout 1.0: expected at least 0 and below 1"),
        ("--valid-share nan", "valid_share nan: expected at least 0 and below 1"),
        ("--delays learnt", "delays learnt: expected one of learned, constant-sigma, fixed, none"),
        ("--dataset shd-opened", "dataset shd-opened: expected one of shd, "),
        ("--device gpu", "device gpu: expected one of cpu, cuda"),
        ("--device cuda", "device cuda: torch finds no GPU here"),
        ("--dataset toy --no-test", "no test and no validation set: hold out samples, as by --val"),
        ("--dataset toy --valid-share 0", "--valid-share 0.0 leaves no sample on one of the sides"),
        ("--dataset toy --seed -1 --valid-share 0.9999", "0.9999 leaves no sample on one of the"),
        ("--valid-share 0.2 --valid-speakers 2", "valid_speakers and valid_share: expected one of"),
        ("--valid-speakers 2,x", "expected some, not all, of ['112', '12', '2']"),
        ("--valid-speakers 2,12,112", "expected some, not all, of ['112', '12', "),
        ("--resume text --eval text", "expected a folder, for one of --out, --resume and --eval"),
        ("--resume=", "expected a folder, for one of --out, --resume and --eval"),
        ("--resume none", "No such file or directory: 'none/config.json'"),
        ("--dataset toy --out text/shd_train.h5/x", "Not a directory: 'text/shd_train.h5/x'"),
        ("--data-dir text", "text/shd_train.h5 could not be read: Unable to"),
    ],
)
def test_a_mistake_gets_a_line_and_leaves_no_file(workplace, monkeypatch, capsys, argv, sentence):
    monkeypatch.chdir(workplace)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = set(os.listdir())
    with pytest.raises(SystemExit) as stop:
        train.main(["--device", "cpu", "--data-dir", ".", *argv.split()])
    said = stop.value.code
    if said == 2:  # argparse's
        said = f"train.py: {capsys.readouterr().err.splitlines()[-1]}"
    assert said.startswith("train.py: ") and sentence in said and "\n" not in said
    assert set(os.listdir()) == before
