"""The gap of the action equals the score-matching loss: five routes, for fixed perturbations and trained networks.

All quantities refer to the reversal of the noising process from ``s_min`` to ``T``. A score ``s`` is compared with the
true score ``∇log ρ_t``, which has a closed form for Gaussian mixtures and for sets of points.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sbridge.controls.base import Time
from sbridge.diffusion.conversions import Score, ScoreControl
from sbridge.diffusion.reverse import end_distribution
from sbridge.functionals import (
    PathValues,
    action_difference,
    action_gap,
    denoising_constant,
    denoising_score_matching,
    explicit_score_matching,
    implicit_constant,
    implicit_score_matching,
    streamed,
)
from sbridge.identities.base import Kind, Outcome, identity
from sbridge.identities.settings import Setting
from sbridge.identities.tools.monte_carlo import (
    Cached,
    Noised,
    chi_square_controls,
    estimate_mean,
    estimate_path_mean,
    explicit,
    matched_grid,
    noising,
    reversed_paths,
    scores_to_check,
    target_mean,
    trace_probes,
    with_exact_rows,
)
from sbridge.laws import Samples
from sbridge.measures import Direction, Estimate, PathMeasure, Paths, kernel_log_ratio, log_ratio
from sbridge.objectives import score_matching as losses
from sbridge.random import generator

action_identity = partial(identity, group="action")
_ROUNDING = 1e-9
_TILT = 0.1
"""Path KL in nats to which the error of a trained network is scaled down before its exponential is averaged."""


@action_identity(
    statement="S[p*, u] − S[p*, u*] = ½∫ g² E|s_θ − ∇log ρ|² ds",
    equation="Premkumar 2023, eq. (3.36)–(3.37)",
    kind=Kind.EQUALITY,
    left="action with J = −log ρ by automatic differentiation along noising paths",
    right="closed-form scores at random times",
)
def action_gap_is_explicit_score_matching(setting: Setting) -> Iterator[Outcome]:
    """Compares the gap of the action with explicit score matching."""
    setting = with_exact_rows(setting)
    exact, measure = Cached(setting.exact), noising(setting, 40)

    def field(t: float | Tensor, x: Tensor) -> Tensor:
        return -setting.exact.log_density(t, x)

    for note, score in scores_to_check(setting, 1.0, exact):
        u, best = (ScoreControl(setting.process, one) for one in (score, exact))

        def gap(n: int, stream: str, u: ScoreControl = u, best: ScoreControl = best) -> PathValues:
            def of(paths: Paths) -> PathValues:
                return action_difference(paths, u, best, field, start_time=setting.s_min)

            return streamed(measure, n, of, seed=setting.seed_of("action gap", stream))

        left, right = estimate_path_mean(setting, gap), explicit(setting, score, "action", note, exact=exact)
        yield Outcome.of(left.estimate, right, left.allowance, note)


@action_identity(
    statement="E log dP*/dP^θ = ½∫ g² E|s_θ − ∇log ρ|² ds",
    equation="Premkumar 2023, eq. (3.19), (3.37); Girsanov",
    kind=Kind.EQUALITY,
    left="Girsanov's log ratio with its martingale term along time-reversed noising paths, extrapolated to step 0",
    right="closed-form scores at random times",
)
def path_kl_is_explicit_score_matching(setting: Setting) -> Iterator[Outcome]:
    """Compares the path KL with explicit score matching."""
    setting = with_exact_rows(setting)
    exact, measure = Cached(setting.exact), noising(setting, 80)
    for note, score in scores_to_check(setting, exact=exact):
        u, best = (Cached(ScoreControl(setting.process, one)) for one in (score, exact))

        def kl(n: int, stream: str, u: Cached = u, best: Cached = best) -> PathValues:
            def of(paths: Paths) -> PathValues:
                with torch.no_grad():
                    levels = [reversed_paths(paths, every) for every in (1, 2, 4)]
                    one, two, four = (log_ratio(level, best, u).double() for level in levels)
                return PathValues(2.0 * one - two, 2.0 * two - four)  # the chains' error is of first order in the step

            return streamed(measure, n, of, seed=setting.seed_of("path KL", stream))

        left, right = estimate_path_mean(setting, kl), explicit(setting, score, "path KL", note, exact=exact)
        yield Outcome.of(left.estimate, right, left.allowance, note)


@action_identity(
    statement="½∫ g² E|s_θ − ∇log p(X|X₀)|² ds − C = ½∫ g² E|s_θ − ∇log ρ|² ds; C does not depend on θ",
    equation="Premkumar 2023, eq. (3.43); Vincent 2011",
    kind=Kind.EQUALITY,
    left="denoising loss minus C at random times from s_min on, with antithetic noise",
    right="closed-form scores, independent draws",
)
def denoising_is_explicit_score_matching(setting: Setting) -> Iterator[Outcome]:
    """Compares denoising score matching minus C with explicit score matching."""
    process, exact = setting.process, Cached(setting.exact)

    def excess(one: Noised, score: Score) -> Tensor:
        true = exact(one.t, one.x)
        if score is setting.network:  # its gap may be small, so C is estimated with the least noise
            constant = losses.denoising(process, one.t, true, one.noise)
        else:
            constant = losses.denoising_constant(process, one.t, one.noise, true)
        return one.weight * (losses.denoising(process, one.t, score(one.t, one.x), one.noise) - constant)

    for note, score in scores_to_check(setting, exact=exact):

        def both(one: Noised, score: Score = score) -> Tensor:
            return 0.5 * (excess(one, score) + excess(one.opposite, score))

        left = estimate_mean(setting, both, "denoising", note)
        right = explicit(setting, score, "denoising", note, exact=exact)
        constant = ", C is the loss of the true score" if score is setting.network else ""
        yield Outcome.of(left, right, note=note + constant)


@action_identity(
    statement="action gap = explicit loss = denoising loss − C = implicit loss + constant, along the same paths",
    equation="Premkumar 2023, eq. (3.36)–(3.43); Vincent 2011; Hyvärinen 2005",
    kind=Kind.EQUALITY,
    left="each functional of the paths, minus its constant",
    right="explicit score matching along the same paths",
)
def losses_agree_on_the_same_paths(setting: Setting) -> Iterator[Outcome]:
    """Compares four functionals of one set of paths: at every knot their integrands have the same mean."""
    setting = with_exact_rows(setting)
    process, exact, s_min = setting.process, setting.exact, setting.s_min
    paths = noising(setting, 40).sample(min(setting.samples, 1000), seed=setting.seed_of("the same paths"))
    for note, score in scores_to_check(setting):
        u, best = (ScoreControl(process, one) for one in (score, exact))
        routes = {
            "action gap": action_gap(paths, u, best, start_time=s_min),
            "denoising": denoising_score_matching(paths, score, s_min=s_min)
            - denoising_constant(paths, exact, s_min=s_min),
            "implicit": implicit_score_matching(paths, score, s_min=s_min)
            + implicit_constant(paths, exact, s_min=s_min),
        }
        explicit_loss = explicit_score_matching(paths, score, exact, s_min=s_min).values
        rounding = _ROUNDING * float(explicit_loss.mean())
        for route, found in routes.items():
            gap = found.values - explicit_loss
            yield Outcome.paired(gap, explicit_loss, rounding, f"{route}, {note}")


@action_identity(
    statement="½∫ g² E|∇log p(X|X₀) − ∇log ρ|² ds = C = ½∫ g² (E|∇log p(X|X₀)|² − E|∇log ρ|²) ds",
    equation="Premkumar 2023, §3.5; Vincent 2011",
    kind=Kind.EQUALITY,
    left="the denoising loss of the true score",
    right="mean squares of both scores; that of the target follows from the transition's covariance",
)
def denoising_constant_is_the_loss_of_the_true_score(setting: Setting) -> Outcome:
    """Compares C with the denoising loss of the true score."""
    process, exact = setting.process, setting.exact

    def loss(one: Noised) -> Tensor:
        return one.weight * losses.denoising(process, one.t, exact(one.t, one.x), one.noise)

    def constant(one: Noised) -> Tensor:
        return one.weight * (target_mean(setting, one) - losses.implicit_constant(process, one.t, exact(one.t, one.x)))

    controls = chi_square_controls(setting)
    left = estimate_mean(setting, loss, "loss", resolution=0.0, controls=controls)
    return Outcome.of(left, estimate_mean(setting, constant, "constant", resolution=0.0, controls=controls))


@action_identity(
    statement="J(s_θ) − J(∇log ρ) = ½∫ g² E|s_θ − ∇log ρ|² ds, where J(s) = ∫ E[½g²|s|² + ∇·(g²s)] ds",
    equation="Hyvärinen 2005; Song et al. 2021, arXiv:2101.09258",
    kind=Kind.EQUALITY,
    left="divergences by automatic differentiation at random times",
    right="closed-form scores, independent draws",
)
def implicit_is_explicit_score_matching(setting: Setting) -> Iterator[Outcome]:
    """Compares implicit and explicit score matching, which differ by a constant independent of θ."""
    setting = with_exact_rows(setting)
    process, exact = setting.process, Cached(setting.exact)
    for note, score in scores_to_check(setting, exact=exact):

        def rows(one: Noised, score: Score = score) -> Tensor:
            probes = trace_probes(setting, one)
            of_score = losses.implicit(process, one.t, one.x, score, probes)
            return one.weight * (of_score - losses.implicit(process, one.t, one.x, exact, probes))

        left = estimate_mean(setting, rows, "implicit", note)
        yield Outcome.of(left, explicit(setting, score, "implicit", note, exact=exact), note=note)


@action_identity(
    statement="−∫ E[½g²|∇log ρ|² + ∇·(g²∇log ρ)] ds = ½∫ g² E|∇log ρ|² ds",
    equation="Hyvärinen 2005",
    kind=Kind.EQUALITY,
    left="divergences by automatic differentiation at random times",
    right="closed-form scores, independent draws",
)
def implicit_constant_is_the_loss_of_the_true_score(setting: Setting) -> Outcome:
    """Computes the constant between implicit and explicit score matching by two routes."""
    process, exact = setting.process, setting.exact

    def loss(one: Noised) -> Tensor:
        return -one.weight * losses.implicit(process, one.t, one.x, exact, trace_probes(setting, one))

    def square(one: Noised) -> Tensor:
        return one.weight * losses.implicit_constant(process, one.t, exact(one.t, one.x))

    controls = chi_square_controls(setting)
    left = estimate_mean(setting, loss, "implicit loss", resolution=0.0, controls=controls)
    return Outcome.of(left, estimate_mean(setting, square, "square", resolution=0.0, controls=controls))


@action_identity(
    statement="E e^{−log dP*/dP^θ} = 1",
    equation="Girsanov",
    kind=Kind.EQUALITY,
    left="Girsanov's log ratio along simulated paths of the exact reversal; it is exact for the discrete chain",
    right="1",
)
def likelihood_ratio_has_mean_one(setting: Setting) -> Iterator[Outcome]:
    """Checks that Girsanov's exponential has mean one, at any step size."""
    setting = with_exact_rows(setting)
    process, exact = setting.process, Cached(setting.exact)
    best = Cached(ScoreControl(process, exact))
    start = end_distribution(process, setting.data)
    reversal = PathMeasure(process, best, start, Direction.BACKWARD, matched_grid(setting, 20))
    law = process.transition(0.0, setting.horizon)
    for name, score in scores_to_check(setting, 0.5, exact):
        control, note, draws = ScoreControl(process, score), name, 30
        if score is setting.network:
            # The error is largest where few paths go. With half a nat, one of 10⁵ weights can be a hundredth of the
            # sum, and the mean of the others is below one.
            share = min(1.0, math.sqrt(_TILT / explicit(setting, score, "shrunk", target=5.0).value))
            draws = 8
            note = f"{share:.2g} of the error of the trained network"
            control = ScoreControl(process, _Shrunk(exact, score, share))

        def weights(n: int, control: ScoreControl = control, note: str = note) -> Estimate:
            g, found = generator(setting.seed_of("ends", note)), []
            for part in range(-(-n // 4096)):
                first = setting.data.sample(min(4096, n - 4096 * part), g).double()
                ends = law.mean(first) + law.root(torch.randn(first.shape, generator=g, dtype=torch.float64))
                paths = reversal.simulate(ends, seed=setting.seed_of("weights", note, part))
                with torch.no_grad():
                    found.append((-log_ratio(paths, best, control)).exp())
            return Estimate.of(torch.cat(found))

        # The number is fixed: a pilot that misses the tail of the exponential would ask for too few.
        found = weights((min(draws, 12) if isinstance(setting.data, Samples) else draws) * setting.samples)
        yield Outcome(found.value, 1.0, found.standard_error, note=note)


@action_identity(
    statement="E e^{−log dF/dB} = 1 for the forward chain F and a backward chain B of other kernels",
    equation="Premkumar 2023, eq. (3.18); Radon–Nikodym",
    kind=Kind.EQUALITY,
    left="ratios of the step kernels of noising and of its reversal by the exact score, and of their starts",
    right="1",
    applies=lambda setting: setting.has_density() and setting.dim <= 2,
)
def kernel_ratio_has_mean_one(setting: Setting) -> Outcome:
    """Checks the ratio of two chains that run in opposite directions; it is exact at any step size."""
    process, start = setting.process, end_distribution(setting.process, setting.data)
    forward = noising(setting, 160)
    backward = PathMeasure(process, ScoreControl(process, setting.exact), start, Direction.BACKWARD, forward.grid)
    paths = forward.sample(setting.samples, seed=setting.seed_of("kernel ratio"))
    with torch.no_grad():
        ends = setting.exact.log_density(0.0, paths.x[0]) - start.log_density(paths.x[-1])
        found = Estimate.of((-kernel_log_ratio(paths, forward, backward).double() - ends.double()).exp())
    return Outcome(found.value, 1.0, found.standard_error)


@dataclass(frozen=True, eq=False)
class _Shrunk:
    """The score ``∇log ρ + share · (s − ∇log ρ)``."""

    exact: Score
    score: Score
    share: float

    def __call__(self, t: Time, x: Tensor) -> Tensor:
        true = self.exact(t, x)
        return true + self.share * (self.score(t, x) - true)
