"""`oat-edge train`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oat_edge.cli.console import make_console
from oat_edge.cli.options import DataDir, Download, RecipeName, fraction
from oat_edge.cli.train_run import LATEST, last_words, open_trainer, run_training
from oat_edge.errors import InputError
from oat_edge.memory import keep_freed_memory
from oat_edge.operating_point import parse_list
from oat_edge.require import require

if TYPE_CHECKING:
    pass


def train(
    data: Annotated[
        str | None,
        typer.Option(
            help="digits, fashion-mnist, cifar10, svhn, stl10, an image folder or a .npz file.",
            metavar="NAME|PATH",
            show_default="digits",
        ),
    ] = None,
    recipe: RecipeName = None,
    arch: Annotated[
        str | None,
        typer.Option(
            help="resnet8, resnet18, resnet34, mobilenet-v2 or wrn-D-K; -s2 behind it: stem of "
            "stride 2."
        ),
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
    heads: Annotated[
        str | None,
        typer.Option(
            help="Classifiers: shared by all widths, or per-width.", show_default="shared"
        ),
    ] = None,
    conditioning: Annotated[
        str | None,
        typer.Option(
            help="How λ acts: film (two batch norms, FiLM), table (gamma and beta of every knot "
            "learnt directly) or single-bn (such tables behind one batch norm for all λ).",
            show_default="film",
        ),
    ] = None,
    lambda_sampling: Annotated[
        str | None,
        typer.Option(
            help="λ in training: at the knots, or continuous between them.", show_default="knots"
        ),
    ] = None,
    clean_share: Annotated[
        float | None,
        typer.Option(help="Share of λ=0 samples in a batch.", show_default="1/K"),
    ] = None,
    clean_images: Annotated[
        str | None,
        typer.Option(
            help="Images that train at λ=0: a share of a batch, or all of it beside a λ>0.",
            show_default="share",
        ),
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
    loss: Annotated[
        str | None, typer.Option(help="oat, or trades: TRADES with λ on its β.", show_default="oat")
    ] = None,
    trades_beta: Annotated[
        float | None, typer.Option(help="β of TRADES at λ=1.", show_default="6")
    ] = None,
    label_smoothing: Annotated[
        float | None, typer.Option(help="Share of a label spread over all classes, e.g. 0.1.")
    ] = None,
    sandwich: Annotated[
        int | None,
        typer.Option(
            help="Train the widest, the narrowest and this many random widths per step.",
            show_default="all widths",
        ),
    ] = None,
    distill: Annotated[
        bool | None,
        typer.Option("--distill", help="The widest width's outputs label the narrower ones."),
    ] = None,
    attack: Annotated[
        str | None,
        typer.Option(
            help="Attack of training: pgd, or n-fgsm in a single step.", show_default="pgd"
        ),
    ] = None,
    share_attack: Annotated[
        str | None,
        typer.Option(
            help="Attack one width for all: widest or random; off attacks each.",
            show_default="off",
        ),
    ] = None,
    awp_gamma: Annotated[
        float | None, typer.Option(help="Adversarial weight perturbation, e.g. 0.005.")
    ] = None,
    ema: Annotated[
        float | None, typer.Option(help="Average the weights with this decay, e.g. 0.999.")
    ] = None,
    swa_start: Annotated[
        float | None,
        typer.Option(help="Average the weights after this share of the epochs, e.g. 0.75."),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(help="Stop after this many validations without a better score."),
    ] = None,
    accumulate: Annotated[
        int | None,
        typer.Option(help="Pass a batch in so many parts, to save memory.", show_default="1"),
    ] = None,
    amp: Annotated[
        str | None,
        typer.Option(
            help="Precision of attack and training passes: auto, off or bf16.",
            show_default="auto: bf16 on CPUs that have it",
        ),
    ] = None,
    compile: Annotated[
        str | None,
        typer.Option(
            help="torch.compile for the attack: auto, off or on.", show_default="auto: off"
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

    Settings that are not given come from the recipe (`oat-edge recipes` lists them). Ctrl-C saves
    and exits 130. On several GPUs or machines: torchrun --nproc-per-node 8 -m oat_edge train …
    """

    def given() -> dict[str, Any]:
        return {
            "data": data,
            "arch": arch,
            "widths": None if widths is None else parse_list(widths, "widths"),
            "lambdas": None if lambdas is None else parse_list(lambdas, "lambdas"),
            "encoding": encoding,
            "heads": heads,
            "conditioning": conditioning,
            "lambda_sampling": lambda_sampling,
            "clean_share": clean_share,
            "clean_images": clean_images,
            "epochs": epochs,
            "batch_size": batch_size,
            "lr": lr,
            "eps": fraction("eps", eps),
            "attack_steps": attack_steps,
            "attack_alpha": fraction("attack_alpha", attack_alpha),
            "train_samples": train_samples,
            "seed": seed,
            "loss": loss,
            "trades_beta": trades_beta,
            "label_smoothing": label_smoothing,
            "sandwich": sandwich,
            "distill": distill,
            "attack": attack,
            "share_attack": share_attack,
            "awp_gamma": awp_gamma,
            "ema": ema,
            "swa_start": swa_start,
            "patience": patience,
            "accumulate": accumulate,
            "amp": amp,
            "compile": compile,
        }

    console = make_console(stderr=False)
    require("torch", purpose="training")
    keep_freed_memory()
    from oat_edge.train.distributed import joined

    if attack == "n-fgsm" and attack_steps not in (None, 1):
        raise InputError(
            f"attack_steps is {attack_steps} and attack 'n-fgsm', which takes one: leave one "
            "of them out"
        )
    with joined(device, last_words=last_words) as ranks:
        console.quiet = not ranks.first
        trainer = open_trainer(
            {name: value for name, value in given().items() if value is not None},
            recipe=recipe,
            out=out,
            resume=resume,
            data_dir=data_dir,
            download=download,
            device=device,
            ranks=ranks,
        )
        run_training(trainer, console)
    console.print(f"run: {trainer.run_dir}", markup=False)
    usual = trainer.run_dir.parent == LATEST.parent
    where = "" if usual else f" --checkpoint {shlex.quote(str(trainer.run_dir))}"
    console.print(f"next: oat-edge export{where}", markup=False)
