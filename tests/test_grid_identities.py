"""Identities of equations, stationarity, Schrödinger's question and duality: they hold, and a damaged side is seen."""

import dataclasses

import numpy as np
import pytest
import torch
from damages import scaled

import sbridge.identities.duality as duality
import sbridge.identities.equations as equations
import sbridge.identities.schroedinger as schroedinger
import sbridge.identities.soft_ends as soft_ends
import sbridge.identities.state_costs as state_costs
import sbridge.identities.stationarity as stationarity
from sbridge.identities import Setting, identities, standard_settings
from sbridge.identities.killing import Well
from sbridge.identities.settings import PROCESSES, mixture
from sbridge.identities.tools.derivatives import Derivatives
from sbridge.identities.tools.tilts import Tilt
from sbridge.laws import Gaussian, Samples
from sbridge.pde import GridAction, GridSolution, KilledSolution
from sbridge.processes import LinearProcess, OrnsteinUhlenbeck

MODULES = (equations, stationarity, schroedinger, duality, state_costs, soft_ends)
OWN = {one.name: one for one in identities() if one.body.__module__ in [module.__name__ for module in MODULES]}
DENSE = OrnsteinUhlenbeck(
    rate=torch.tensor([[1.0, 0.3], [-0.2, 0.7]]), sigma=torch.tensor([[1.0, 0.4], [0.0, 0.6]]), mean=0.3
)


def setting(dim=1, process="OU", **options):
    reference = PROCESSES[process] if isinstance(process, str) else process
    return Setting(f"d={dim}, {process}", reference, mixture(dim), **{"samples": 500, "steps": 40, "seed": 3} | options)


SETTINGS = [
    setting(1, "OU"),
    setting(1, "VP"),
    setting(2, "VE"),
    setting(8, "VP", samples=200),
    Setting("dense", DENSE, mixture(2), samples=200, steps=40),
    Setting("points", PROCESSES["VP"], Samples(mixture(2).sample(40, torch.Generator().manual_seed(1)).float())),
    Setting(
        "gaussian", PROCESSES["OU"], Gaussian(torch.ones(1).double(), 4.0 * torch.ones(1, 1).double()), samples=200
    ),
]


def test_they_are_all_there():
    assert len(OWN) == 30
    assert {one.group for one in OWN.values()} == {"equations", "action", "Schrödinger"}


@pytest.mark.parametrize("name", OWN)
def test_they_hold(name):
    settings = [one for one in SETTINGS if OWN[name].applies(one)]
    assert settings
    if OWN[name].body.__module__ == duality.__name__:
        settings = settings[::2]  # hundreds of steps each
    for one in settings:
        for check in OWN[name](one):
            assert check.holds, check


@pytest.mark.slow
@pytest.mark.parametrize("name", OWN)
def test_they_hold_in_the_standard_settings(name):
    for one in standard_settings(seed=2, samples=1000):
        if OWN[name].applies(one):
            for check in OWN[name](one):
                assert check.holds, check


def scaled_property(owner, name, factor):
    def damage(patch):
        original = getattr(owner, name)
        get = getattr(original, "func", None) or original.fget
        patch.setattr(owner, name, property(lambda self: factor * get(self)))

    return damage


def naive_drift(patch):
    """−b for b."""
    original = LinearProcess.drift
    patch.setattr(LinearProcess, "drift", lambda self, t, x: -original(self, t, x))


def shifted_transition(patch):
    """Log transition densities that are too large by 1e-5."""
    original = LinearProcess.log_transition
    patch.setattr(LinearProcess, "log_transition", lambda *a: original(*a) + 1e-5)


def other_cost(module, name, factor):
    """A solver that is handed a multiple of the state cost."""

    def damage(patch):
        original = getattr(module, name)

        def wrong(*a, state_cost=None, **k):
            if state_cost is None:
                return original(*a, **k)
            return original(*a, state_cost=lambda t, x: factor * state_cost(t, x), **k)

        patch.setattr(module, name, wrong)

    return damage


def other_noise(name):
    """A grid solver that is handed a σ that is too large by a hundredth."""

    def damage(patch):
        original = getattr(equations, name)

        def wrong(process, *a):
            louder = OrnsteinUhlenbeck(process.rate, 1.01 * process.sigma, process.mean, process.horizon)
            return original(louder, *a)

        patch.setattr(equations, name, wrong)

    return damage


def growth_of_mass(patch):
    """Weights e^{+∫V}."""
    original = equations.feynman_kac
    patch.setattr(equations, "feynman_kac", lambda p, psi, rate: original(p, psi, lambda t, x: -rate(t, x)))


def forward_reversed(patch):
    """The reversed process is the process itself."""
    patch.setattr(equations.ReversedDrift, "transition", lambda self, s, t: self.process.transition(s, t))


def other_data(patch):
    """The score of other data."""
    original = equations.solve_schroedinger
    law = Gaussian(torch.zeros(1).double(), torch.ones(1, 1).double())
    patch.setattr(equations, "solve_schroedinger", lambda process, a, b, grid: original(process, a, law, grid))


def half_energy(patch):
    """The running cost ¼|u|² for ½|u|²."""
    patch.setattr(GridAction, "_running_cost", lambda self, u: 0.25 * (u**2).sum(0) + self._cost)


def no_boundary_terms(patch):
    """(3.21) without ∫p_0 J_0 − ∫p_T J_T."""
    original = GridAction.adjoint_form

    def wrong(self, p, u, multiplier):
        ends = (p[0] * multiplier[0]).sum() - (p[-1] * multiplier[-1]).sum()
        return original(self, p, u, multiplier) - float(ends) * self.space.grid.volume

    patch.setattr(GridAction, "adjoint_form", wrong)


def unscaled_flow(patch):
    """b + u for b + σu in the generator."""
    original = GridAction._generator
    patch.setattr(GridAction, "_generator", lambda self, field, u: original(self, field, u / 1.5))


def weak_solution(patch):
    """The control of the solution is too small by a tenth."""
    original = stationarity.World.of.__func__

    def wrong(cls, *a):
        world = original(cls, *a)
        return dataclasses.replace(world, solution=dataclasses.replace(world.solution, u=0.9 * world.solution.u))

    patch.setattr(stationarity.World, "of", classmethod(wrong))


def undamaged(patch):
    """The damaged solutions are the solution."""
    patch.setattr(stationarity, "replace", lambda z, **changes: z)


def plain_stirling(patch):
    """log n! = n log n − n, without the root."""
    patch.setattr(torch, "lgamma", lambda n: (n - 1) * (n - 1).clamp_min(1).log() - (n - 1).clamp_min(0))


def cold_kernel(patch):
    """Particles that move half as far."""
    kernel = lambda self: torch.softmax(-torch.cdist(self.start, self.end).square(), 1).numpy()  # noqa: E731
    patch.setattr(schroedinger.Urn, "kernel", property(kernel))


def other_penalties(patch):
    """A plan at another price."""
    original = soft_ends.unbalanced
    patch.setattr(soft_ends, "unbalanced", lambda one, a, b, **k: original(one, 1.01 * a, b, **k))


def other_epsilon(name):
    def damage(patch):
        original = getattr(schroedinger, name)
        patch.setattr(schroedinger, name, lambda x, y, epsilon, **k: original(x, y, 1.5 * epsilon, **k))

    return damage


def forgotten_past(patch):
    """Bayes' formula without the marginal of the past."""

    def wrong(kernels, start):
        found = [kernel / kernel.sum(0) for kernel in kernels]
        return [kernel.T for kernel in found[::-1]]

    patch.setattr(schroedinger, "_reversed_chain", wrong)


def weak_iterates(patch):
    """Potentials of which one half-step is skipped."""
    original = schroedinger.half_steps

    def wrong(*a):
        steps = original(*a)
        next(steps), next(steps)
        return steps

    patch.setattr(schroedinger, "half_steps", wrong)


def large_dual(patch):
    original = duality._dual
    patch.setattr(duality, "_dual", lambda *a: original(*a) + 0.1)


BREAKS = {
    "fokker_planck_residual": [
        naive_drift,
        scaled(Derivatives, "diffusion_term", 2.0),
        scaled(equations, "_growth", 0.0),
    ],
    "backward_kolmogorov_residual": [
        naive_drift,
        scaled(Derivatives, "diffusion_term", 0.5),
        scaled(Tilt, "log_potential", 0.9),
    ],
    "chapman_kolmogorov": [shifted_transition],
    "fokker_planck_on_a_grid_converges": [other_noise("fokker_planck")],
    "hamilton_jacobi_bellman_on_a_grid_converges": [
        other_noise("hamilton_jacobi_bellman"),
        scaled(equations, "hamilton_jacobi_bellman", 1.01),
    ],
    "killed_grid_solution_converges": [
        other_cost(equations, "backward_kolmogorov", -1.0),
        other_cost(equations, "backward_kolmogorov", 1.1),
        scaled(Well, "log_mass", 0.9),
    ],
    "feynman_kac_is_the_grid_solution": [
        growth_of_mass,
        other_cost(equations, "backward_kolmogorov", -1.0),
        other_cost(equations, "backward_kolmogorov", 0.5),
    ],
    "killed_kernel_equations": [
        scaled(Well, "rate", -1.0),
        scaled(Well, "rate", 2.0),
        scaled(Derivatives, "diffusion_term", 2.0),
    ],
    "hjb_residual": [
        naive_drift,
        scaled(equations, "_growth", -1.0),
        scaled(Well, "rate", -1.0),
        scaled(Derivatives, "diffusion_term", 2.0),
    ],
    "density_read_backwards_is_a_potential": [naive_drift, scaled(equations, "_growth", -1.0)],
    "schroedinger_system_of_reverse_diffusion": [forward_reversed, other_data],
    "doob_transition_residual": [naive_drift, scaled(Tilt, "log_potential", 0.9)],
    "action_is_stationary": [half_energy, weak_solution],
    "action_has_a_slope_elsewhere": [undamaged],
    "control_variation_is_half_the_mean_square": [half_energy, weak_solution],
    "both_forms_of_the_action_agree": [no_boundary_terms, unscaled_flow],
    "urn_probability_is_exponential_in_the_divergence": [plain_stirling],
    "most_probable_transport_is_sinkhorns": [
        cold_kernel,
        other_epsilon("EntropicProblem"),
        other_epsilon("entropic_plan"),
    ],
    "static_value_is_dynamic_value": [scaled_property(GridSolution, "energy", 2.0), other_epsilon("entropic_plan")],
    "sinkhorn_bridge_is_the_plan": [other_epsilon("entropic_plan")],
    "soft_ends_are_a_bridge_between_other_ends": [other_penalties],
    "soft_ends_of_gaussians_are_closed_form": [other_penalties],
    "bridge_to_the_own_survivors_is_the_killed_process": [scaled_property(KilledSolution, "death_probability", 1.1)],
    "path_fitting_is_sinkhorns_iteration": [forgotten_past, weak_iterates],
    "gap_of_a_control_is_a_divergence": [scaled(Tilt, "control", 0.8), scaled(Tilt, "log_potential", 1.1)],
    "duality_identity": [scaled(Tilt, "control", 0.8), large_dual],
    "dual_value_is_below_the_value": [large_dual],
    "gradient_drift_is_a_state_cost": [
        other_cost(state_costs, "solve_schroedinger", 0.9),
        scaled(state_costs, "_mean", 0.9),
    ],
    "quadratic_state_cost_is_a_linear_reference": [
        other_cost(state_costs, "solve_schroedinger", 0.9),
        scaled(state_costs, "_mean", 0.9),
    ],
    "dual_gap_is_a_divergence": [scaled(Tilt, "control", 0.8), scaled_property(GridSolution, "energy", 1.1)],
}


@pytest.mark.parametrize(
    ("name", "damage"),
    [pytest.param(n, d, id=f"{n} {i}") for n, damages in BREAKS.items() for i, d in enumerate(damages)],
)
def test_a_damaged_side_is_seen(monkeypatch, name, damage):
    damage(monkeypatch)
    stationarity._worlds.cache_clear()
    checks = OWN[name](setting(1, "OU", samples=2000, seed=5))
    stationarity._worlds.cache_clear()
    assert not all(check.holds for check in checks)


def test_every_identity_is_broken_once():
    assert BREAKS.keys() == OWN.keys()


def test_the_integers_of_largest_probability_are_those_of_enumeration(monkeypatch):
    monkeypatch.setattr(schroedinger, "_CELLS", 2)
    squares = [(k, other, m, n) for k in range(2) for other in range(2) for m in range(2) for n in range(2)]
    monkeypatch.setattr(schroedinger, "_SQUARES", [s for s in squares if s[0] < s[1] and s[2] != s[3]])
    urn = schroedinger.Urn(torch.tensor([[0.0], [1.0]]).double(), torch.tensor([[0.2], [1.5]]).double())
    tables = [np.array([[a, 40 - a], [40 - a, a]]) for a in range(41)]
    best = max(tables, key=lambda table: urn.log_probability(table.astype(float)))
    assert np.array_equal(urn.most_probable(80), best)


def test_a_tilt_is_its_gaussian_integral():
    one = setting(2, DENSE)
    tilt, x, g = Tilt.of(one), mixture(2).sample(3, torch.Generator().manual_seed(0)), torch.Generator().manual_seed(1)
    step = DENSE.transition(0.3, 1.0)
    for row, found in zip(x, tilt.log_potential(0.3, x), strict=True):
        noise = torch.randn(200_000, 2, generator=g, dtype=torch.float64)
        ends = step.mean(row[None]) + step.root(noise)
        values = tilt.log_potential(1.0, ends).exp()
        assert abs(float(values.mean()) - float(found.exp())) < 4.0 * float(values.std()) / 200_000**0.5
    t = torch.tensor([0.1, 0.3, 0.9], dtype=torch.float64)
    alone = torch.cat([tilt.log_potential(float(s), row[None]) for s, row in zip(t, x, strict=True)])
    torch.testing.assert_close(tilt.log_potential(t, x), alone)
