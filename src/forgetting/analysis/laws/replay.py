"""Both losses as functions of trainable parameters P, steps N and the share p of replayed text in the training windows.

    L_ft = [(a_ft/P)^alpha_ft + (b_ft/N)^beta_ft]^rho + s_ft + c * p
    F    = (s_f - [(a_f/P)^alpha_f + (b_f/N)^beta_f]^rho) / (1 + p * (N/m)^k * (P/1e6)^g)

F is forgetting above the base model's own loss. At p = 0 these are the shifted power laws of Kalajdzievski (2024). The
divisor is that of Bethune et al. (2025), arXiv:2502.06042, but its B grows with N and P: the more text was replayed so
far, and the more parameters learn it, the less is forgotten, so with enough replay a run may forget less at its end
than before. The mixture raises the fine-tuning loss in proportion to p. The form was chosen by errors on left-out runs
(docs/laws.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from forgetting.analysis.laws.base import Adapted, Array, Law, Parameter, Variable
from forgetting.analysis.laws.shifted_power import (
    EXPONENT,
    RHO,
    SOURCE,
    VARIABLES,
    Centred,
    bracket,
    bracket_gradient,
    centre_of,
    too_few,
)

SHARE = "replay_fraction"
OUTPUTS = ("finetune_loss", "forgetting")
BLOCKS = (("ft", "finetune_loss", 1.0), ("f", "forgetting", -1.0))
POWER = (0.0, 6.0)  # bounds of k
SIZE = (-3.0, 3.0)  # bounds of g
MILLION = float(np.log(1e6))
OWN = 4
"""Number of fitted coordinates in addition to those of the shifted power law; they are the last."""
STRENGTH = (1e-6, 1e6)  # bounds of the factor on p in the divisor, at the centre of the measured range


def _parameters() -> tuple[Parameter, ...]:
    out: list[Parameter] = []
    for short, output, _ in BLOCKS:
        out += [
            Parameter(f"a_{short}", 0.0, np.inf, (1e3, 1e6), log=True, meaning=f"scale of P in {output}"),
            Parameter(f"alpha_{short}", *EXPONENT, (0.1, 0.5), log=True, meaning=f"exponent of P in {output}"),
            Parameter(f"b_{short}", 0.0, np.inf, (1.0, 1e2), log=True, meaning=f"scale of N in {output}"),
            Parameter(f"beta_{short}", *EXPONENT, (0.1, 0.5), log=True, meaning=f"exponent of N in {output}"),
            Parameter(f"s_{short}", 0.0, np.inf, (0.0, 5.0), linear=True, meaning=f"limit of {output}, nats/token"),
        ]
    return (
        *out,
        Parameter("rho", *RHO, (0.7, 3.0), log=True, meaning="outer exponent"),
        Parameter(
            "m", 0.0, np.inf, (5.0, 200.0), log=True, meaning="steps at which p = 1 would halve forgetting, at P = 1e6"
        ),
        Parameter("k", *POWER, (0.5, 2.5), meaning="exponent with which replay's effect grows with N"),
        Parameter("g", *SIZE, (-0.5, 0.5), meaning="exponent with which replay's effect grows with P"),
        Parameter("c", -np.inf, np.inf, (0.0, 1.0), linear=True, meaning="fine-tuning loss that p costs, nats/token"),
    )


class ReplayShare(Law):
    """The law in the reported parameters; see the module's docstring."""

    name = "replay"
    title = "Both losses over P, N and the share of replay"
    formula = (
        "L_ft = [(a_ft/P)^alpha_ft + (b_ft/N)^beta_ft]^rho + s_ft + c * p; "
        "forgetting = (s_f - [(a_f/P)^alpha_f + (b_f/N)^beta_f]^rho) / (1 + p * (N/m)^k * (P/1e6)^g)"
    )
    source = f"{SOURCE}, Eq. 5 and 6, at p = 0; the divisor after Bethune et al. (2025), arXiv:2502.06042"
    variables = (*VARIABLES, Variable(SHARE, zero=True, meaning="p, share of the windows trained on that are replayed"))
    outputs = OUTPUTS
    not_negative = ("finetune_loss",)
    parameters = _parameters()

    def values(self, theta: Array, x: Mapping[str, Array]) -> Array:
        """[S, 2, n]: finetune_loss, forgetting."""
        t = dict(zip(self.names, theta.T, strict=True))
        rho = t["rho"][:, None]
        tuned, forgot = (
            sum(bracket(t[f"a_{s}"], t[f"alpha_{s}"], t[f"b_{s}"], t[f"beta_{s}"], x)) ** rho for s in ("ft", "f")
        )
        _, divisor = self._held_back(t, x)
        finetune = tuned + t["s_ft"][:, None] + t["c"][:, None] * x[SHARE]
        return np.stack([finetune, (t["s_f"][:, None] - forgot) / divisor], axis=1)

    @staticmethod
    def _held_back(t: Mapping[str, Array], x: Mapping[str, Array]) -> tuple[Array, Array]:
        """p * (N/m)^k * (P/1e6)^g and the divisor of forgetting, [S, n] each."""
        longer = t["k"][:, None] * (np.log(x["step"]) - np.log(t["m"])[:, None])
        grown = x[SHARE] * np.exp(longer + t["g"][:, None] * (np.log(x["trainable_params"]) - MILLION))
        return grown, 1 + grown

    def gradient(self, theta: Array, x: Mapping[str, Array]) -> Array:
        """[S, 2, n, 15]."""
        t = dict(zip(self.names, theta.T, strict=True))
        at = {name: i for i, name in enumerate(self.names)}
        grown, divisor = self._held_back(t, x)
        out = np.zeros((len(theta), 2, grown.shape[-1], len(self.names)), dtype=np.result_type(theta, float))
        for row, (short, _, sign) in enumerate(BLOCKS):
            names = [f"{part}_{short}" for part in ("a", "alpha", "b", "beta")]
            a, alpha, b, beta = (t[name] for name in names)
            power, by = bracket_gradient(a, alpha, b, beta, t["rho"], x)
            by_output = np.ones_like(divisor) if sign > 0 else -1 / divisor
            for name, column in zip((*names, "rho"), by, strict=True):
                out[:, row, :, at[name]] = by_output * column
            out[:, row, :, at[f"s_{short}"]] = 1.0 if sign > 0 else 1 / divisor
            if sign < 0:
                by_grown = -(t["s_f"][:, None] - power) / divisor**2
                out[:, row, :, at["m"]] = by_grown * grown * -(t["k"] / t["m"])[:, None]
                out[:, row, :, at["k"]] = by_grown * grown * (np.log(x["step"]) - np.log(t["m"])[:, None])
                out[:, row, :, at["g"]] = by_grown * grown * (np.log(x["trainable_params"]) - MILLION)
        out[:, 0, :, at["c"]] = x[SHARE]
        return out

    def adapt(self, x: Mapping[str, Array], y: Array) -> Adapted:
        """Centred coordinates, like those of the shifted power law."""
        del y
        return AdaptedReplay(x)

    def undetermined(self, x: Mapping[str, Array]) -> frozenset[str]:
        """All parameters if P or N has fewer than 3 different values; those of replay if the share has."""
        few = too_few(x)
        own = {"m", "k", "g", "c"}
        if set(few) - {SHARE}:
            return frozenset(self.names)
        return frozenset(own if few else ())

    def hints(self, x: Mapping[str, Array], y: Array) -> list[str]:
        """Warns about variables with too few values."""
        del y
        return [f"fewer than 3 different values of {name}: its effect is not identified" for name in too_few(x)]


class CentredReplay(Law):
    """The law in fitted coordinates: those of the shifted power law, then replay's strength at the centre, k, g, c."""

    name = "replay_centred"
    title = formula = "law of replay in centred coordinates"
    source = ReplayShare.source
    variables = ReplayShare.variables
    outputs = OUTPUTS

    def __init__(self, centre: tuple[float, float]) -> None:
        """Create the law for a centre: the means of log P and log N."""
        self.centre = centre
        self.plain = Centred(OUTPUTS, (1, -1), centre)
        self.parameters = (
            *self.plain.parameters,
            Parameter("strength of replay", *STRENGTH, (0.1, 100.0), log=True),
            Parameter("k", *POWER, (0.2, 3.0)),
            Parameter("g", *SIZE, (-0.5, 0.5)),
            Parameter("c", -np.inf, np.inf, (0.0, 1.0), linear=True),
        )

    @property
    def spec(self) -> dict[str, Any]:
        """Data for JSON, from which `from_spec` rebuilds the law."""
        return {"replay": True, "centre": list(self.centre)}

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        """The inverse of `spec`.

        Raises:
            KeyError, TypeError, ValueError: malformed data.
        """
        first, second = (float(v) for v in spec["centre"])
        return cls((first, second))

    def starts(self, count: int, rng: np.random.Generator) -> Array:
        """Draw the coordinates of the shifted power law as it does, and the others from their regions."""
        return np.concatenate([self.plain.starts(count, rng), super().starts(count, rng)[:, -OWN:]], axis=1)

    def _held_back(self, theta: Array, x: Mapping[str, Array]) -> tuple[Array, Array, Array]:
        """p * strength * exp(k n + g q), then n = log N - mean and q = log P - mean."""
        q, n = np.log(x["trainable_params"]) - self.centre[0], np.log(x["step"]) - self.centre[1]
        strength, k, g, _ = (column[:, None] for column in theta[:, -OWN:].T)
        return strength * x[SHARE] * np.exp(k * n + g * q), n, q

    def values(self, theta: Array, x: Mapping[str, Array]) -> Array:
        """[S, 2, n]."""
        tuned, forgot = np.moveaxis(self.plain.values(theta[:, :-OWN], x), 1, 0)
        grown, _, _ = self._held_back(theta, x)
        return np.stack([tuned + theta[:, -1, None] * x[SHARE], forgot / (1 + grown)], axis=1)

    def gradient(self, theta: Array, x: Mapping[str, Array]) -> Array:
        """[S, 2, n, 15]."""
        grown, n, q = self._held_back(theta, x)
        inner = self.plain.gradient(theta[:, :-OWN], x)
        out = np.zeros((*inner.shape[:-1], theta.shape[1]), dtype=inner.dtype)
        out[..., :-OWN] = inner
        out[:, 1] /= (1 + grown)[..., None]
        by_grown = -self.plain.values(theta[:, :-OWN], x)[:, 1] / (1 + grown) ** 2
        out[:, 1, :, -4] = by_grown * grown / theta[:, -4, None]
        out[:, 1, :, -3] = by_grown * grown * n
        out[:, 1, :, -2] = by_grown * grown * q
        out[:, 0, :, -1] = x[SHARE]
        return out


class AdaptedReplay(Adapted):
    """`ReplayShare` in centred coordinates."""

    notes = ("a and b absorb the amplitudes, and are meaningful only with this choice",)

    def __init__(self, x: Mapping[str, Array]) -> None:
        self.centred = CentredReplay(centre_of(x))
        super().__init__(self.centred)

    def fitted_name(self, name: str) -> str | None:
        """Exponents, limits, rho and c; a, b and m depend on several coordinates."""
        names = {name: name for name in ("rho", "k", "g", "c")}
        for short, output, _ in BLOCKS:
            names |= {f"{letter}_{short}": f"{letter} of {output}" for letter in ("alpha", "beta")}
            names[f"s_{short}"] = f"limit of {output}"
        return names.get(name)

    def made_of(self, name: str) -> tuple[str, ...]:
        """For a and b: the amplitude, the share of P, rho and their exponent; for m: the strength, k and g."""
        own = self.fitted_name(name)
        if own is not None:
            return (own,)
        if name == "m":
            return ("strength of replay", "k", "g")
        output = "finetune_loss" if name.endswith("_ft") else "forgetting"
        exponent = "alpha" if name.startswith("a") else "beta"
        return (
            f"amplitude of {output}",
            f"{exponent} of {output}",
            f"share of P in {output} (logit)",
            "rho",
        )

    def public(self, theta: Array, y: Array, weights: Array) -> Array:
        """[S, 15] in the order of `ReplayShare`."""
        del y, weights
        columns = []
        for block in range(len(BLOCKS)):
            limit, amplitude, alpha, beta = theta[:, 5 * block : 5 * block + 4].T
            with np.errstate(all="ignore"):
                a, b = self.centred.plain.scales(theta[:, :-OWN], block, amplitude)
            columns += [a, alpha, b, beta, limit]
        strength, k, g, c = theta[:, -OWN:].T
        size, steps = self.centred.centre
        with np.errstate(all="ignore"):
            m = np.exp(steps - (np.log(strength) + g * (MILLION - size)) / k)
        return np.stack([*columns, theta[:, -OWN - 1], m, k, g, c], axis=1)
