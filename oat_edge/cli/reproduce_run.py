"""The work of `oat-edge reproduce`: train and attack what is left, with progress."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from oat_edge.cli.console import plain_table
from oat_edge.cli.eval import show_progress
from oat_edge.cli.train_run import run_training
from oat_edge.files import check_folder, remove_temporaries, write_bytes, write_json
from oat_edge.reproduce.estimate import estimate
from oat_edge.reproduce.figure import plot_comparison
from oat_edge.reproduce.plan import Model, ReproduceConfig, plan
from oat_edge.reproduce.report import ReproduceReport, assemble
from oat_edge.reproduce.scores import Scores, check_same_settings, score_model, train_model
from oat_edge.reproduce.table import Cells, accuracies, differences, markdown, notes, title
from oat_edge.require import require

if TYPE_CHECKING:
    from oat_edge.data import Dataset
    from oat_edge.train.loop import Trainer

RESULTS, TABLE, FIGURE, RUNS = "results.json", "table.md", "figure.png", "runs"


@dataclass(kw_only=True, slots=True)
class Reproduction:
    """One comparison in one folder."""

    config: ReproduceConfig
    models: tuple[Model, ...]
    folder: Path
    console: Console
    device: str
    data_dir: Path | None
    download: bool
    _datasets: dict[tuple[int, int | None], Dataset] = field(default_factory=dict)

    @classmethod
    def open(
        cls,
        config: ReproduceConfig,
        folder: Path | None,
        *,
        data_dir: Path | None,
        download: bool,
        device: str,
        console: Console,
    ) -> Reproduction:
        """Check everything that can be checked before the work: it may take days."""
        for module in ("torch", "matplotlib", "safetensors", "scipy"):
            require(module, purpose="the comparison")
        from oat_edge.train.distributed import check_device

        check_device(device)
        from oat_edge.data import load
        from oat_edge.nn.zoo import architecture

        dataset = load(config.data, data_dir=data_dir, download=download)
        _check_attacks(config, len(dataset.class_names))
        models = plan(config, num_train=len(dataset.train))
        channels, num_classes = dataset.image_shape[0], len(dataset.class_names)
        for arch in dict.fromkeys(model.config.arch for model in models):
            architecture(arch).build(channels, num_classes)
        if folder is None:
            stem = Path(config.data).stem or "data"
            folder = Path("reproduce") / f"{stem}-{models[0].config.arch}-{config.budget}"
        check_folder(folder)
        work = cls(
            config=config, models=models, folder=folder, console=console, device=device,
            data_dir=data_dir, download=download,
        )  # fmt: skip
        for model in models:
            if (work.run_dir(model) / "train_state.pt").exists():
                check_same_settings(model, work.run_dir(model))
        return work

    def run_dir(self, model: Model) -> Path:
        """Where the network is trained."""
        return self.folder / RUNS / model.name

    def dataset(self, model: Model) -> Dataset:
        """What the network is trained on; the last one is kept."""
        from oat_edge.data import load

        key = model.config.seed, model.config.train_samples
        if key not in self._datasets:
            self._datasets.clear()
            self._datasets[key] = load(
                model.config.data,
                data_dir=self.data_dir,
                download=self.download,
                train_samples=model.config.train_samples,
                seed=model.config.seed,
            )
        return self._datasets[key]

    def scores(self, model: Model) -> Scores:
        """Train and attack one network, as far as that is not done."""
        from oat_edge.train.loop import Interrupted

        place = f"{1 + self.models.index(model)}/{len(self.models)}"
        self.console.print(f"{place}  {model.name}", style="bold", markup=False)
        dataset = self.dataset(model)

        def train(trainer: Trainer) -> None:
            run_training(trainer, self.console)

        try:
            train_model(model, dataset, self.run_dir(model), train=train, device=self.device)
        except Interrupted:
            raise Interrupted(
                f"stopped while {model.name} was trained; the same command goes on"
            ) from None
        with show_progress(self.console) as progress:
            return score_model(
                model,
                dataset,
                self.run_dir(model),
                self.config.evaluation(),
                device=self.device,
                progress=progress,
            )


def _check_attacks(config: ReproduceConfig, num_classes: int) -> None:
    """Raise before the training what the attacks would raise after it."""
    if set(config.evaluation().attacks or ()) - {"pgd20", "square"}:
        from oat_edge.attacks.autoattack import check_num_classes, implementation

        check_num_classes(num_classes)
        implementation()


def print_plan(work: Reproduction, todo: Sequence[Model]) -> None:
    """What will be trained and attacked, and how long that takes here."""
    console, config = work.console, work.config.evaluation()
    first = work.dataset(todo[0])
    console.print("measuring how long it takes", style="dim")
    runs = work.folder / RUNS
    times = estimate(todo, first, config, runs, device=work.device)
    table = plain_table(None, ["network", "widths", "λ", "epochs", "training", "attacks"])
    for model in todo:
        train = model.config
        table.add_row(
            model.name,
            ",".join(f"{width:g}" for width in train.widths),
            ",".join(f"{lam:g}" for lam in train.lambdas),
            str(train.epochs),
            duration(times[model.name].training_s),
            duration(times[model.name].attack_s),
        )
    console.print(table)
    training = duration(sum(one.training_s for one in times.values()))
    attacks = duration(sum(one.attack_s for one in times.values()))
    num = min(config.num_samples or 0, len(first.test))
    lines = [
        f"{len(first.train)} training images; {num} test images under "
        f"{', '.join(config.attacks or ())}",
        f"left on this machine: about {training} of training and at most {attacks} of attacks; "
        "what was attacked before is not done again",
        f"folder {work.folder}: stop at any time, the same command goes on",
    ]
    for line in lines:
        console.print(line, markup=False)


def write_report(work: Reproduction, scores: Sequence[Scores]) -> ReproduceReport:
    """Write what is known so far: results.json, table.md, figure.png."""
    report = assemble(work.config, work.models, scores)
    remove_temporaries(work.folder)
    write_json(work.folder / RESULTS, report.to_json())
    write_bytes(work.folder / TABLE, markdown(report).encode())
    plot_comparison(report, work.folder / FIGURE)
    return report


def print_report(report: ReproduceReport, folder: Path, console: Console) -> None:
    """The tables, what they show, and where they lie."""
    _print_cells(accuracies(report.rows), None, console)
    for text in notes(report):
        console.print(text, style="dim", markup=False)
    for comparison in report.comparisons:
        console.print()
        _print_cells(differences(comparison), title(comparison), console)
        for claim in comparison.claims:
            style = "yellow" if claim.status in ("not seen", "refuted") else None
            console.print(f"{claim.status}: {claim.text}", style=style, markup=False)
            console.print(f"  {claim.evidence}", style="dim", markup=False)
    for text in report.warnings:
        console.print(f"warning: {text}", style="yellow", markup=False)
    for name in (TABLE, FIGURE, RESULTS):
        console.print(f"{Path(name).stem}: {folder / name}", markup=False)


def _print_cells(cells: Cells, title: str | None, console: Console) -> None:
    header, *rows = cells
    table = plain_table(title, [name.replace(" ", "\n") for name in header])
    for row in rows:
        table.add_row(*row)
    console.print(table)


def duration(seconds: float) -> str:
    """Of an estimate: "40 s", "12 min", "3.5 h", "4 days"."""
    for limit, unit, name in ((100, 1, "s"), (6000, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            digits = 1 if unit == 3600 and seconds < 36_000 else 0
            return f"{seconds / unit:.{digits}f} {name}"
    return f"{seconds / 86_400:.0f} days"
