"""What is learned of a width that was not trained: its batch norms' scale and shift.

    N batch, C channels, H/W pixels

They start between the neighbours' (`oat_edge.nn.added_width`) and take a few steps of training at
this width alone, with training's own loss and attack; so does its head, where every width has its
own. Everything else is shared with the trained widths and stays as it is.

What was found at width 0.6 between 0.5 and 0.75, in points off the line, with statistics taken anew
in every case (the first two rows from augmented images, where "between both" had SA -0.9 -1.1 -1.0
and RA -2.5 -3.1 -3.0: no choice without tuning is clearly better than the others):

Fashion-MNIST, wrn-16-1, ε 8/255         SA at λ 0.1, 0.4, 1    RA (600 images, ± 1.1)
first channels of the wider neighbour    -1.4 -1.3 -1.4         -3.5 -4.0 -3.8
of the narrower, then of the wider one   -1.0 -1.1 -1.1         -2.0 -2.3 -2.8
between both                             -0.9 -0.9 -1.0         -1.5 -2.3 -2.5
from there 30 steps at 1/5 of lr          0.0 -0.2 -0.1         -0.1 -1.0 -1.1
200 steps at training's lr (the default)  0.8  0.8  0.8          0.5  1.1  0.4 (1000, ± 0.7)

digits, resnet8, ε 64/255                SA at λ 0.1, 0.4, 1    RA (502 images, ± 1.4)
between both                             -0.1  0.4  0.7         -1.5 -4.3 -6.2
from there (mean of two seeds)
 40 steps at 1/5 of training's lr         0.0  0.4  0.7         -2.4 -6.7 -6.7
200 steps at 1/5                         -0.1  0.4  0.5         -2.0 -3.8 -4.3
200 steps at 1/2                          0.1  0.6  0.4          1.3 -2.1 -3.3
100 steps at training's lr                0.0  0.6  0.3          0.8 -2.1 -3.1
200 steps at training's lr (the default)  0.1  0.2  0.3          3.6 -0.6 -0.4
400 steps at 1/2                          0.1  0.2  0.2          3.3 -1.5 -0.3
400 steps at training's lr                0.1  0.2  0.2          5.9 -0.1  0.5
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from oat_edge.calib.bn_statistics import step_size
from oat_edge.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from oat_edge.config import TrainConfig
    from oat_edge.nn.network import OATSNetwork


def tune_affines(
    network: OATSNetwork,
    width: float,
    images: Tensor,
    labels: Tensor,
    train: TrainConfig,
    *,
    steps: int,
    lr: float,
    seed: int,
    say: Callable[[float], object] = lambda share: None,
) -> None:
    """Train weight and bias of every branch's batch norms at `width`, and its head, in place.

    images: (N, C, H, W) uint8 of the training split; labels: (N,) int64, on the network's device.
    steps: of the optimiser, on batches of training's size; lr: the first one's learning rate, from
    there a cosine to zero. train: loss and attack are the run's own.
    The running statistics are left behind the new affines: take them anew afterwards.
    """
    import torch

    from oat_edge.train.sampling import generator_for, sample_knots
    from oat_edge.train.schedule import cosine
    from oat_edge.train.step import OATSStep, StepOptions

    num_knots = len(network.knots)
    batch_size = min(train.batch_size, len(images))
    if batch_size < 2 * num_knots:
        raise InputError(
            f"there are {len(images)} images: tuning at {num_knots} lambdas needs at least "
            f"{2 * num_knots}, give more --samples or --tune-steps 0"
        )
    with _only_affines(network, width) as affines:
        optimizer = torch.optim.SGD(affines, lr=lr, momentum=train.momentum)
        step = OATSStep(
            network,
            optimizer,
            eps=train.eps,
            attack_steps=train.attack_steps,
            attack_alpha=step_size(train),
            # What concerns one width alone.
            options=StepOptions(
                all_clean=StepOptions.of(train).all_clean,
                loss=train.loss,
                trades_beta=train.trades_beta,
                label_smoothing=train.label_smoothing,
                attack=train.attack,
            ),
        )
        film = [(gamma.detach(), beta.detach()) for gamma, beta in network.film_tables()]
        per_epoch = len(images) // batch_size
        for number in range(steps):
            epoch, place = divmod(number, per_epoch)
            order = torch.randperm(len(images), generator=generator_for(seed, epoch, 0))
            generator = generator_for(seed, epoch, place + 1)
            index = order[place * batch_size : (place + 1) * batch_size].to(images.device)
            knots = sample_knots(
                batch_size, num_knots, train.drawn_clean_share, generator,
                lowest_continuous=train.lowest_continuous,
            )  # fmt: skip
            for group in optimizer.param_groups:
                group["lr"] = cosine(lr, number, steps)
            optimizer.zero_grad(set_to_none=True)
            loss = step.loss(
                images[index].float() / 255,
                labels[index],
                knots.to(images.device),
                width,
                film,
                generator,
            )
            torch.autograd.backward(loss)
            optimizer.step()
            say((number + 1) / steps)


@contextmanager
def _only_affines(network: OATSNetwork, width: float) -> Iterator[list[nn.Parameter]]:
    """The parameters to tune; no other one has gradients while this is open."""
    from oat_edge.nn.heads import WidthHeads

    index = network.width_index(width)
    affines = [
        parameter
        for _, norm in network.norms()
        for adversarial in network.branches
        for parameter in norm.branch(adversarial=adversarial, width_index=index).parameters()
    ]
    for module in network.modules():
        if isinstance(module, WidthHeads):
            affines += module.heads[index].parameters()
    wanted = {name: p.requires_grad for name, p in network.named_parameters()}
    was_training = network.training
    network.requires_grad_(False)
    for parameter in affines:
        parameter.requires_grad_(True)
    network.train()
    try:
        yield affines
    finally:
        network.train(was_training)
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(wanted[name])
            parameter.grad = None
