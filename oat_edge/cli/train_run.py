"""What `oat-edge train` does: open a run, and train it with live progress."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from oat_edge.bench.style import count
from oat_edge.cli.console import bar, make_console, plain_table, say_error, time_left
from oat_edge.config import TrainConfig
from oat_edge.errors import InputError
from oat_edge.require import require

if TYPE_CHECKING:
    from oat_edge.train.distributed import Ranks
    from oat_edge.train.loop import Trainer
    from oat_edge.train.validate import PointAccuracy

LATEST = Path("runs/latest")
LINE_EVERY_S = 60.0


def open_trainer(
    given: dict[str, Any],
    *,
    out: Path | None,
    recipe: str | None = None,
    resume: bool = False,
    data_dir: Path | None = None,
    download: bool = False,
    device: str = "cpu",
    ranks: Ranks | None = None,
) -> Trainer:
    """The trainer of a new run, or of the one to resume; everything is checked before it starts."""
    require("torch", purpose="training")
    from oat_edge.data import load
    from oat_edge.nn.zoo import architecture
    from oat_edge.train.distributed import ALONE, check_device
    from oat_edge.train.loop import Trainer
    from oat_edge.train.precision import resolve_amp, resolve_compile
    from oat_edge.train.recipes import DEFAULT, with_settings
    from oat_edge.train.recipes import recipe as settings_of
    from oat_edge.train.state import TRAIN_STATE, load_state

    check_device(device)
    ranks = ALONE if ranks is None else ranks
    resolvers = {"amp": resolve_amp, "compile": resolve_compile}
    for name, resolve in resolvers.items():
        if name in given or not resume:  # a run that goes on keeps what it began with
            given = given | {name: resolve(given.get(name, "auto"), device)}
    if resume:
        out = out or LATEST
        _, config, _ = load_state(out / TRAIN_STATE, ranks)
        out = out.resolve()  # `latest` may be re-pointed meanwhile
        if recipe is not None:
            raise InputError(
                f"--resume goes on with the run's own settings: leave --recipe {recipe} out"
            )
        for name, value in given.items():
            if (saved := getattr(config, name)) != value:
                raise InputError(
                    f"--resume goes on with the run's own settings: {name} was {saved}, "
                    f"got {value}; leave it out"
                )
    else:
        config = with_settings(settings_of(given.get("data"), recipe or DEFAULT), given)
    architecture(config.arch)
    with ranks.machine_by_machine():
        dataset = load(
            config.data,
            data_dir=data_dir,
            download=download,
            train_samples=config.train_samples,
            seed=config.seed,
        )
    run_dir = out or Path(ranks.from_first(lambda: bytes(_new_run(config))).decode())
    place = device if ranks.size == 1 else str(ranks.device)
    try:
        return Trainer(config, dataset, _short(run_dir), device=place, resume=resume, ranks=ranks)
    except InputError:
        if out is None and ranks.first:
            run_dir.rmdir()  # just made, nothing is in it
        raise


def last_words(message: str | None) -> None:
    """Before the watch of several processes ends this one, from a thread of its own."""
    make_console(stderr=False).show_cursor()  # a live bar has hidden it
    if message is not None:
        say_error(message)


def run_training(trainer: Trainer, console: Console) -> None:
    """Train with live progress, and print the validation grid of the chosen epoch."""
    config = trainer.config
    total = config.epochs * trainer.steps_per_epoch
    done = trainer.state.epoch * trainer.steps_per_epoch + trainer.state.step
    console.print(
        f"training {config.arch} on {trainer.dataset.name}: {len(trainer.dataset.train)} images, "
        f"{config.epochs} epochs, batch {trainer.batch_size}, widths {_join(config.widths)}, "
        f"λ {_join(config.lambdas)}, "
        f"ε {config.eps * 255:g}/255, {trainer.device}{_how(trainer)}",
        markup=False,
    )
    with _stop_signal() as stopped, _progress(console, total, done, trainer) as progress:
        grid = trainer.train(progress, stopped.is_set)
    best = (trainer.state.best_epoch or 0) + 1
    if trainer.state.epoch < config.epochs:
        console.print(
            f"stopped after epoch {trainer.state.epoch} of {config.epochs}: "
            f"{count(config.patience, 'validation')} without a better score",
            markup=False,
        )
    if found := trainer.overfitting:
        console.print(f"{found}; kept is the checkpoint of epoch {best}", markup=False)
    title = f"Validation, epoch {best} of {config.epochs}: standard / robust accuracy, %"
    console.print(accuracy_table(grid, title))


def _how(trainer: Trainer) -> str:
    config, size = trainer.config, trainer.ranks.size
    parts = [
        "bf16" if config.amp == "bf16" else "",
        "compiled" if config.compile == "on" else "",
        f"{size} processes" if size > 1 else "",
    ]
    return "".join(f", {part}" for part in parts if part)


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
            f"{images_per_s:.0f} img/s  {time_left(seconds)}",
            markup=False,
        )

    def on_validation(self, epoch: int, grid: list[PointAccuracy], score: float) -> None:
        self.console.print(f"  {_corner(grid)}  score {score:.4f}", markup=False)


@contextmanager
def _progress(console: Console, total: int, done: int, trainer: Trainer) -> Iterator[Any]:
    if console.quiet:
        yield None
        return
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
