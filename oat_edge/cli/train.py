"""`oat-edge train`."""

from __future__ import annotations

import dataclasses
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from oat_edge.cli.console import bar, make_console, plain_table
from oat_edge.cli.options import DataDir, Download, fraction
from oat_edge.config import TrainConfig
from oat_edge.errors import InputError
from oat_edge.operating_point import parse_list
from oat_edge.require import require

if TYPE_CHECKING:
    from oat_edge.train.loop import Trainer
    from oat_edge.train.validate import PointAccuracy

LATEST = Path("runs/latest")
LINE_EVERY_S = 60.0


def train(
    data: Annotated[
        str | None,
        typer.Option(
            help="digits, fashion-mnist, cifar10, svhn, stl10, an image folder or a .npz file.",
            metavar="NAME|PATH",
            show_default="digits",
        ),
    ] = None,
    arch: Annotated[
        str | None,
        typer.Option(help="resnet8, resnet18, resnet34, mobilenet-v2 or wrn-D-K."),
    ] = None,
    widths: Annotated[
        str | None, typer.Option(metavar="LIST", help="Width multipliers; 1.0 alone is OAT.")
    ] = None,
    lambdas: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Knots of λ. With one width, 0 alone is standard training, 1 alone PGD-AT.",
        ),
    ] = None,
    encoding: Annotated[
        str | None, typer.Option(help="Encoding of λ: random, dct, onehot or none.")
    ] = None,
    clean_share: Annotated[
        float | None,
        typer.Option(help="Share of λ=0 samples in a batch.", show_default="1/K"),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training images.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per step.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    eps: Annotated[str | None, typer.Option(help="Radius of the attack, e.g. 8/255.")] = None,
    attack_steps: Annotated[int | None, typer.Option(help="PGD steps in training.")] = None,
    attack_alpha: Annotated[
        str | None, typer.Option(help="PGD step size, e.g. 2/255. [default: the authors' rule]")
    ] = None,
    train_samples: Annotated[
        int | None, typer.Option(help="Train on a seeded subset of this size.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**63 - 1, help="Seed of everything random.")
    ] = None,
    amp: Annotated[
        str | None,
        typer.Option(
            help="Precision of attack and training passes: auto, off or bf16.",
            show_default="auto: bf16 on CUDA",
        ),
    ] = None,
    compile: Annotated[
        str | None,
        typer.Option(
            help="torch.compile for the attack: auto, off or on.", show_default="auto: on CUDA"
        ),
    ] = None,
    data_dir: DataDir = None,
    download: Download = False,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Run directory.", show_default="runs/DATA-ARCH-N; with --resume the newest"
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a run that was stopped.")
    ] = False,
) -> None:
    """Train one network with both knobs: λ (standard against robust accuracy) and width.

    Settings that are not given come from the data set's recipe. Ctrl-C saves and exits 130.
    """
    given: dict[str, Any] = {
        "data": data,
        "arch": arch,
        "widths": None if widths is None else parse_list(widths, "widths"),
        "lambdas": None if lambdas is None else parse_list(lambdas, "lambdas"),
        "encoding": encoding,
        "clean_share": clean_share,
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "eps": fraction("eps", eps),
        "attack_steps": attack_steps,
        "attack_alpha": fraction("attack_alpha", attack_alpha),
        "train_samples": train_samples,
        "seed": seed,
        "amp": amp,
        "compile": compile,
    }
    given = {name: value for name, value in given.items() if value is not None}
    console = make_console(stderr=False)
    trainer = open_trainer(
        given, out=out, resume=resume, data_dir=data_dir, download=download, device=device
    )
    run_training(trainer, console)
    console.print(f"run: {trainer.run_dir}", markup=False)
    usual = trainer.run_dir.parent == LATEST.parent
    console.print(f"next: oat-edge export{'' if usual else f' --checkpoint {trainer.run_dir}'}")


def open_trainer(
    given: dict[str, Any],
    *,
    out: Path | None,
    resume: bool = False,
    data_dir: Path | None = None,
    download: bool = False,
    device: str = "cpu",
) -> Trainer:
    """The trainer of a new run, or of the one to resume; everything is checked before it starts."""
    torch = require("torch", purpose="training")
    from oat_edge.data import load
    from oat_edge.nn.zoo import architecture
    from oat_edge.train.loop import Trainer
    from oat_edge.train.precision import resolve_amp, resolve_compile
    from oat_edge.train.recipes import recipe
    from oat_edge.train.state import TRAIN_STATE, load_state

    if device not in ("cpu", "cuda"):
        raise InputError(f"device is '{device}': expected cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device is 'cuda', but torch sees no CUDA device: use --device cpu")
    resolvers = {"amp": resolve_amp, "compile": resolve_compile}
    for name, resolve in resolvers.items():
        if name in given or not resume:  # a run that goes on keeps what it began with
            given = given | {name: resolve(given.get(name, "auto"), device)}
    if resume:
        out = out or LATEST
        _, config, _ = load_state(out / TRAIN_STATE)
        out = out.resolve()  # `latest` may be re-pointed meanwhile
        for name, value in given.items():
            if (saved := getattr(config, name)) != value:
                raise InputError(
                    f"--resume goes on with the run's own settings: {name} was {saved}, "
                    f"got {value}; leave it out"
                )
    else:
        config = dataclasses.replace(recipe(given.get("data", "digits")), **given)
    architecture(config.arch)
    dataset = load(
        config.data,
        data_dir=data_dir,
        download=download,
        train_samples=config.train_samples,
        seed=config.seed,
    )
    run_dir = out or _new_run(config)
    try:
        return Trainer(config, dataset, _short(run_dir), device=device, resume=resume)
    except InputError:
        if out is None:
            run_dir.rmdir()  # just made, nothing is in it
        raise


def run_training(trainer: Trainer, console: Console) -> None:
    """Train with live progress, and print the validation grid of the chosen epoch."""
    config = trainer.config
    total = config.epochs * trainer.steps_per_epoch
    done = trainer.state.epoch * trainer.steps_per_epoch + trainer.state.step
    console.print(
        f"training {config.arch} on {trainer.dataset.name}: {len(trainer.dataset.train)} images, "
        f"{config.epochs} epochs, batch {trainer.batch_size}, widths {_join(config.widths)}, "
        f"λ {_join(config.lambdas)}, "
        f"ε {config.eps * 255:g}/255, {trainer.device}{_options(config)}",
        markup=False,
    )
    with _stop_signal() as stopped, _progress(console, total, done, trainer) as progress:
        grid = trainer.train(progress, stopped.is_set)
    best = (trainer.state.best_epoch or 0) + 1
    title = f"Validation, epoch {best} of {config.epochs}: standard / robust accuracy, %"
    console.print(accuracy_table(grid, title))


def _options(config: TrainConfig) -> str:
    return (", bf16" if config.amp == "bf16" else "") + (
        ", compiled" if config.compile == "on" else ""
    )


def accuracy_table(grid: list[PointAccuracy], title: str) -> Any:
    """One row per width, one column per λ, each cell SA / RA in percent."""
    lambdas = sorted({point.point.lam for point in grid})
    table = plain_table(title, ["width", *[f"λ={lam:g}" for lam in lambdas]])
    for width in sorted({point.point.width for point in grid}):
        row = {p.point.lam: p for p in grid if p.point.width == width}
        cells = [f"{row[lam].standard * 100:.1f} / {row[lam].robust * 100:.1f}" for lam in lambdas]
        table.add_row(f"{width:g}", *cells)
    return table


class _Bar:
    """Live bar on a terminal."""

    def __init__(self, progress: Any, task: Any, trainer: Trainer) -> None:
        self.progress, self.task, self.trainer = progress, task, trainer

    def on_step(self, epoch: int, step: int, loss: float, images_per_s: float) -> None:
        description = f"epoch {epoch + 1}/{self.trainer.config.epochs}"
        self.progress.update(
            self.task, advance=1, description=description, speed=f"{images_per_s:.0f} img/s"
        )

    def on_validation(self, epoch: int, grid: list[PointAccuracy], score: float) -> None:
        self.progress.update(self.task, accuracy=_corner(grid))


class _Lines:
    """A line per epoch where there is no terminal, and one a minute in long epochs."""

    def __init__(self, console: Console, trainer: Trainer) -> None:
        self.console, self.trainer = console, trainer
        self.last = time.monotonic()

    def on_step(self, epoch: int, step: int, loss: float, images_per_s: float) -> None:
        steps, epochs = self.trainer.steps_per_epoch, self.trainer.config.epochs
        if step + 1 < steps and time.monotonic() - self.last < LINE_EVERY_S:
            return
        self.last = time.monotonic()
        left = (epochs - epoch) * steps - step - 1
        seconds = left * self.trainer.batch_size / images_per_s
        self.console.print(
            f"epoch {epoch + 1}/{epochs}  step {step + 1}/{steps}  loss {loss:.3f}  "
            f"{images_per_s:.0f} img/s  {seconds / 60:.0f} min left",
            markup=False,
        )

    def on_validation(self, epoch: int, grid: list[PointAccuracy], score: float) -> None:
        self.console.print(f"  {_corner(grid)}  score {score:.4f}", markup=False)


@contextmanager
def _progress(console: Console, total: int, done: int, trainer: Trainer) -> Iterator[Any]:
    if not console.is_terminal:
        yield _Lines(console, trainer)
        return
    with bar(console, "{task.fields[speed]}", "{task.fields[accuracy]}") as progress:
        task = progress.add_task("epoch", total=total, completed=done, speed="", accuracy="")
        yield _Bar(progress, task, trainer)


def _corner(grid: list[PointAccuracy]) -> str:
    """The two ends of λ at the largest width: what a trainer looks at first."""
    widest = [p for p in grid if p.point.width == 1.0]
    low, high = widest[0], widest[-1]
    return (
        f"SA {low.standard * 100:.1f} at λ={low.point.lam:g}, "
        f"RA {high.robust * 100:.1f} at λ={high.point.lam:g}"
    )


@contextmanager
def _stop_signal() -> Iterator[threading.Event]:
    """Ctrl-C and SIGTERM ask training to save and stop; a second Ctrl-C stops at once."""
    stopped = threading.Event()

    def ask(number: int, frame: Any) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()

    old = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _new_run(config: TrainConfig) -> Path:
    """Make runs/DATA-ARCH-N with the smallest free N; making it is what claims it."""
    name = f"{Path(config.data).stem or 'data'}-{config.arch}"
    for number in range(1, 1_000_000):
        path = Path("runs") / f"{name}-{number}"
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        return path
    raise InputError("runs/ is full: name a directory with --out")


def _short(path: Path) -> Path:
    """Relative to the working directory where that is shorter to read."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _join(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:g}" for value in values)
