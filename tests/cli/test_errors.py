"""Whatever a user gets wrong is one line on standard error, an exit code, and nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


def check_refused(ended, code, *parts):
    assert ended.code == code, ended
    (line,) = ended.err.splitlines()
    assert line.startswith("error: ") and "\x1b" not in ended.err + ended.out
    assert not set("╭╮╰╯│") & set(ended.err + ended.out)
    for part in parts:
        assert part in line
    assert len(line) < 400


def here():
    return sorted(str(path) for path in Path.cwd().rglob("*"))


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ("--eps 8", "eps is 8"),
        ("--eps 8/0", "eps is '8/0'"),
        ("--eps nan", "eps is 'nan'"),
        ("--eps -1/255", "eps is -0.0039"),
        ("--eps eight", "eps is 'eight'"),
        ("--lambdas 0,1.5", "lambdas are (0.0, 1.5)"),
        ("--lambdas 0.2,1", "lambdas are (0.2, 1.0)"),
        ("--lambdas abc", "lambdas is 'abc'"),
        ("--widths 0.5", "widths are (0.5,)"),
        ("--widths 0,1", "widths are (0.0, 1.0)"),
        ("--arch nonsense", "architecture is 'nonsense'"),
        ("--arch ../../x", "architecture is '../../x'"),
        ("--arch wrn-11-1", "11"),
        ("--encoding fourier", "encoding is 'fourier'"),
        ("--heads two", "heads is 'two'"),
        ("--conditioning cnn", "conditioning is 'cnn'"),
        ("--conditioning table --lambdas 1 --widths 1", "the only λ is 1"),
        ("--lambda-sampling continuous --lambdas 0,1", "lambda_sampling is 'continuous'"),
        ("--clean-share 1", "clean_share is 1.0"),
        ("--epochs 0", "epochs is 0"),
        ("--batch-size -3", "batch_size is -3"),
        ("--batch-size 5", "a batch has 5 images"),
        ("--lr nan", "lr is nan"),
        ("--attack-steps 0", "attack_steps is 0"),
        ("--train-samples 0", "train_samples is 0"),
        ("--seed -1", "'--seed'"),
        (f"--seed {2**64}", "'--seed'"),
        ("--amp fp8", "amp is 'fp8': expected auto, off or bf16"),
        ("--compile maybe", "compile is 'maybe': expected auto, off or on"),
        ("--data nosuch", "nosuch"),
        ("--device tpu", "device is 'tpu'"),
        ("--resume", "there is nothing to resume at runs/latest"),
        ("--resume --out nowhere", "there is nothing to resume at"),
        ("--epochs many", "'--epochs'"),
        ("--nope", "--nope"),
        ("extra", "extra"),
    ],
)
def test_train_refuses(arguments, part, main):
    check_refused(main("train", *arguments.split()), 2, part)
    assert here() in ([], [str(Path.cwd() / "runs")])


@pytest.mark.parametrize("out", ["file", "file/run", "/proc/nowhere/run"])
def test_train_refuses_an_out_that_cannot_be_a_folder(out, main):
    Path("file").write_text("mine")
    ended = main("train", "--train-samples", 120, "--epochs", 1, "--out", out)
    check_refused(ended, 2, "cannot write", out.removesuffix("/run"))
    assert Path("file").read_text() == "mine"


def test_train_refuses_an_out_that_holds_a_run(main, tiny_run):
    before = {path.name: path.read_bytes() for path in tiny_run.iterdir()}
    ended = main("train", "--train-samples", 120, "--out", tiny_run)
    check_refused(ended, 2, "already holds a run: pass --resume, or another --out")
    assert {path.name: path.read_bytes() for path in tiny_run.iterdir()} == before


def test_resume_refuses_other_settings(main, tiny_run):
    ended = main("train", "--resume", "--out", tiny_run, "--lr", "0.0123")
    check_refused(ended, 2, "--resume goes on with the run's own settings: lr was", "got 0.0123")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ("--width 0.3", "width 0.3 is not there: have 0.5, 1"),
        ("--width none", "width is 'none'"),
        ("--format tflite", "format is 'tflite': expected onnx, trt, trt-rtx"),
        ("--batch 1,8,32", "--batch: of engines only, format is 'onnx': --format trt"),
        ("--opt-level 3 --refit --no-defer", "--opt-level, --refit, --no-defer: of engines only"),
        ("--format trt --batch 8,1,32", "batch is '8,1,32': expected the fewest, usual and most"),
        ("--format trt --batch 1,8", "batch is '1,8'"),
        ("--format trt --batch x", "batch is 'x': expected whole numbers such as 1,8,32"),
        ("--format trt --opt-level 9", "opt_level is 9: expected 0 to 5"),
        ("--format trt --precision int8 --target cpu", "target is 'cpu': engines take trt"),
        ("--precision int8 --target gpu", "target is 'gpu': expected cpu or trt"),
        ("--precision int8 --max-drop nan", "max_drop is nan: expected points in [0, 100]"),
        ("--precision int8 --calib-method mean", "calib_method is 'mean': expected minmax"),
        ("--max-drop 1 --sensitivity", "--max-drop, --sensitivity: of int8 only"),
        ("--precision fp64", "precision is 'fp64': expected fp32, fp16, int8"),
        ("--pin-lambda 1.5", "pin_lambda is 1.5"),
        ("--pin-lambda nan", "pin_lambda is nan"),
        ("--attack-samples -1", "attack_samples is -1"),
        ("--seed -1", "'--seed'"),
        ("--out file", "cannot write file (File exists)"),
        ("--attack-samples 0 --out file/b", "cannot write file/b (Not a directory)"),
        ("--checkpoint nowhere", "there is no checkpoint at nowhere"),
        ("--checkpoint file", "file cannot be read"),
    ],
)
def test_export_refuses(arguments, part, main, tiny_run):
    Path("file").write_text("mine")
    given = ["--checkpoint", tiny_run] if "--checkpoint" not in arguments else []
    check_refused(main("export", *given, *arguments.split()), 2, part)
    assert here() == [str(Path.cwd() / "file")] and Path("file").read_text() == "mine"


def test_export_of_engines_now_needs_what_builds_them(main, tiny_run, no_gpu):
    ended = main("export", "--checkpoint", tiny_run, "--format", "trt", "--no-defer")
    check_refused(ended, 3, "tensorrt", "oat-edge[trt]")
    assert here() == []


def test_export_without_a_run_says_how_to_make_one(main):
    check_refused(main("export"), 2, "there is no checkpoint at runs/latest", "oat-edge train")


def test_export_refuses_the_bundle_of_another_checkpoint(main, tiny_run, tmp_path):
    from oat_edge.bundle import Artifact, add_artifacts
    from oat_edge.train.checkpoint import load_checkpoint

    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "a.onnx").write_bytes(b"")
    artifact = Artifact(file="a.onnx", sha256="0" * 64, format="onnx", width=1.0)
    spec = load_checkpoint(tiny_run).spec
    add_artifacts(tmp_path / "b", [artifact], run="x", checkpoint_sha256="d" * 64, spec=spec)
    ended = main("export", "--checkpoint", tiny_run, "--out", tmp_path / "b")
    check_refused(ended, 2, "holds artifacts of checkpoint dddddddddddd…", "--replace")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ("--lambda 1.5", "lambda is 1.5"),
        ("--lambda abc", "lambda is 'abc'"),
        ("--lambda nan", "lambda is 'nan'"),
        ("--lambda -0.1", "lambda is -0.1"),
        ("--width 0.3", "width 0.3 is not there: have 0.5, 1"),
        ("--width 0.75", "width 0.75 is not there"),
        ("--batch 0", "batches are (0,)"),
        ("--batch 1.5", "batch is '1.5'"),
        ("--batch x", "batch is 'x'"),
        ("--threads 0", "'--threads'"),
        ("--device tpu", "device is 'tpu'"),
        ("--plot x.bmp", "plot is 'x.bmp'"),
        ("--seed -1", "'--seed'"),
        ("--json", "--json"),
        ("--json /dev/null", "/dev/null is a folder or a device: name a regular file"),
        ("--csv .", ". is a folder or a device"),
    ],
)
def test_bench_refuses(arguments, part, main, tiny_bundle):
    ended = main("bench", "--bundle", tiny_bundle.path, "--quick", *arguments.split())
    check_refused(ended, 2, part)
    assert here() == [] and not (tiny_bundle.path / "report.json").exists()


@pytest.mark.parametrize("device", ["cuda", "jetson"])
def test_bench_says_what_it_found_instead_of_a_device(device, main, tiny_bundle):
    ended = main("bench", "--bundle", tiny_bundle.path, "--device", device)
    check_refused(ended, 3, f"device is '{device}'", "use --device cpu")


def test_bench_asks_for_what_a_plot_needs_before_it_measures(main, tiny_bundle, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    ended = main("bench", "--bundle", tiny_bundle.path, "--quick", "--plot", "x.png")
    check_refused(ended, 3, "matplotlib is not installed", "oat-edge[report]")
    assert not (tiny_bundle.path / "report.json").exists()


@pytest.mark.parametrize("command", ["bench", "inspect"])
def test_without_a_bundle_the_line_says_how_to_make_one(command, main):
    check_refused(main(command), 2, "there is no bundle at bundles/latest", "oat-edge export")


@pytest.mark.parametrize(
    "how", ["manifest", "network", "pack", "no manifest", "no network", "folder"]
)
def test_a_damaged_bundle_is_refused_by_every_command_that_reads_it(how, main, tiny_bundle):
    folder = Path("damaged")
    shutil.copytree(tiny_bundle.path, folder)
    target = {
        "manifest": "manifest.json",
        "no manifest": "manifest.json",
        "network": "w0.50-fp32.onnx",
        "no network": "w0.50-fp32.onnx",
        "folder": "w0.50-fp32.onnx",
        "pack": "attacks-w0.50-pgd20.npz",
    }[how]
    content = bytearray((folder / target).read_bytes())
    (folder / target).unlink()
    if how == "folder":
        (folder / target).mkdir()
    elif not how.startswith("no "):
        content[len(content) // 2] ^= 1
        (folder / target).write_bytes(content)
    for command in (["inspect", folder], ["bench", "--bundle", folder, "--quick"]):
        check_refused(main(*command), 2)
    assert not (folder / "report.json").exists()


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.01, 0.5, 0.9999])
def test_a_checkpoint_with_a_flipped_bit_or_a_missing_end_is_refused(share, main, tiny_run):
    content = bytearray((tiny_run / "checkpoint.safetensors").read_bytes())
    place = int(share * len(content))
    flipped, short = Path("flipped.safetensors"), Path("short.safetensors")
    short.write_bytes(content[:place])
    content[place] ^= 4
    flipped.write_bytes(content)
    for file in (flipped, short):
        check_refused(main("inspect", file), 2, file.name)
        check_refused(main("export", "--checkpoint", file, "--attack-samples", 0), 2, file.name)


@pytest.mark.parametrize("arguments", ["nonsense", "--nope", "inspect a b", "demo --epochs x"])
def test_commands_that_do_not_exist_are_one_line_that_points_to_help(arguments, main):
    check_refused(main(*arguments.split()), 2, "--help)")
