"""Both losses as functions of trainable parameters P, steps N and an option x of a mitigation.

    L_ft = [(a_ft/P)^alpha_ft + (b_ft/N)^beta_ft]^rho + s_ft + c * x
    F    = (s_f - [(a_f/P)^alpha_f + (b_f/N)^beta_f]^rho) * held(x * (N/m)^k * (P/1e6)^g)

F is forgetting above the base model's own loss. At x = 0, where held is 1, these are the shifted power laws of
Kalajdzievski (2024). The share of forgetting that is prevented grows with N, so forgetting may fall again late in a
run with a strong mitigation. The mitigation changes the fine-tuning loss in proportion to x. The forms were chosen by
errors on left-out runs (docs/laws.md).

For the share of replay, x = p and held(z) = 1 / (1 + z), the divisor of Bethune et al. (2025), arXiv:2502.06042, but
with a B that depends on N and P. For the weight of KL, x = w and held(z) = (1 + u * z) / (1 + z): a share u of the
forgetting remains at any weight. The cost of w in fine-tuning loss depends on steps: c * w + d * w * log(N).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from forgetting.analysis.laws.base import Adapted, Array, Law, Parameter, Variable, constant_outputs
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
from forgetting.store.axes import KL, REPLAY, Axis

OUTPUTS = ("finetune_loss", "forgetting")
BLOCKS = (("ft", "finetune_loss", 1.0), ("f", "forgetting", -1.0))
POWER = (0.0, 6.0)  # bounds of k
SIZE = (-3.0, 3.0)  # bounds of g
MILLION = float(np.log(1e6))
STRENGTH = (1e-6, 1e6)  # bounds of the factor on x, at the centre of the measured range
COST = "c at the centre"
PLAIN = 11
"""Number of parameters of the shifted power law, fitted or reported; those of the mitigation follow."""


def _parameters(mitigation: str, symbol: str, remains: bool) -> tuple[Parameter, ...]:
    out: list[Parameter] = []
    for short, output, _ in BLOCKS:
        out += [
            Parameter(f"a_{short}", 0.0, np.inf, (1e3, 1e6), log=True, meaning=f"scale of P in {output}"),
            Parameter(f"alpha_{short}", *EXPONENT, (0.1, 0.5), log=True, meaning=f"exponent of P in {output}"),
            Parameter(f"b_{short}", 0.0, np.inf, (1.0, 1e2), log=True, meaning=f"scale of N in {output}"),
            Parameter(f"beta_{short}", *EXPONENT, (0.1, 0.5), log=True, meaning=f"exponent of N in {output}"),
            Parameter(f"s_{short}", 0.0, np.inf, (0.0, 5.0), linear=True, meaning=f"limit of {output}, nats/token"),
        ]
    halves = f"steps at which {symbol} = 1 would halve " + ("what it can prevent" if remains else "forgetting")
    rest = Parameter("u", 0.0, 1.0, (0.0, 0.3), meaning="share of forgetting that remains at any weight")
    more = Parameter(
        "d", -np.inf, np.inf, (0.0, 0.1), linear=True, meaning=f"what {symbol} costs more when N grows by a factor of e"
    )
    cost = f"fine-tuning loss that {symbol} costs" + (" at N = 1" if remains else "") + ", nats/token"
    return (
        *out,
        Parameter("rho", *RHO, (0.7, 3.0), log=True, meaning="outer exponent"),
        Parameter("m", 0.0, np.inf, (5.0, 200.0), log=True, meaning=f"{halves}, at P = 1e6"),
        Parameter("k", *POWER, (0.5, 2.5), meaning=f"exponent with which {mitigation}'s effect grows with N"),
        Parameter("g", *SIZE, (-0.5, 0.5), meaning=f"exponent with which {mitigation}'s effect grows with P"),
        *((rest,) if remains else ()),
        Parameter("c", -np.inf, np.inf, (0.0, 1.0), linear=True, meaning=cost),
        *((more,) if remains else ()),
    )


@dataclass(frozen=True)
class _Held:
    """The part of a plain run's forgetting that is left, for z = `grown` and the share `rest` that always remains."""

    grown: Array
    rest: Array | float

    def of(self, plain: Array) -> Array:
        """The forgetting that is left, from that of the plain run."""
        return np.asarray(plain * (1 + self.rest * self.grown) / (1 + self.grown))

    def by_grown(self, plain: Array) -> Array:
        """The derivative of `of` with respect to z, times z."""
        return np.asarray(plain * (self.rest - 1) / (1 + self.grown) ** 2 * self.grown)

    def by_rest(self, plain: Array) -> Array:
        """The derivative of `of` with respect to the share that remains."""
        return np.asarray(plain * self.grown / (1 + self.grown))


class Mitigated(Law):
    """The law over an option, in the reported parameters; see the module's docstring."""

    outputs = OUTPUTS
    not_negative = ("finetune_loss",)

    def __init__(self, axis: Axis, symbol: str, meaning: str, source: str, *, remains: bool) -> None:
        """Create the law over an option.

        Args:
            axis: the option.
            symbol: symbol of its values in formulas.
            meaning: description of the option.
            source: citation of the law's form.
            remains: whether a share of forgetting remains at any value, and the option's cost depends on steps.
        """
        self.axis, self.remains = axis, remains
        self.name = axis.name
        self.title = f"Both losses over P, N and {axis.what}"
        more = f" + d * {symbol} * log(N)" if remains else ""
        grown = f"{symbol} * (N/m)^k * (P/1e6)^g"
        self.formula = (
            f"L_ft = [(a_ft/P)^alpha_ft + (b_ft/N)^beta_ft]^rho + s_ft + c * {symbol}{more}; "
            "forgetting = (s_f - [(a_f/P)^alpha_f + (b_f/N)^beta_f]^rho)"
        ) + (f" * (1 + u * z) / (1 + z), z = {grown}" if remains else f" / (1 + {grown})")
        self.source = source
        self.variables = (*VARIABLES, Variable(axis.column, zero=True, meaning=meaning))
        self.parameters = _parameters(axis.mitigation, symbol, remains)

    def values(self, theta: Array, x: Mapping[str, Array]) -> Array:
        """[S, 2, n]: finetune_loss, forgetting."""
        t = dict(zip(self.names, theta.T, strict=True))
        rho = t["rho"][:, None]
        tuned, forgot = (
            sum(bracket(t[f"a_{s}"], t[f"alpha_{s}"], t[f"b_{s}"], t[f"beta_{s}"], x)) ** rho for s in ("ft", "f")
        )
        held = _Held(self._grown(t, x), self._rest(t))
        finetune = tuned + t["s_ft"][:, None] + t["c"][:, None] * x[self.axis.column]
        if self.remains:
            finetune = finetune + t["d"][:, None] * x[self.axis.column] * np.log(x["step"])
        return np.stack([finetune, held.of(t["s_f"][:, None] - forgot)], axis=1)

    def _grown(self, t: Mapping[str, Array], x: Mapping[str, Array]) -> Array:
        """[S, n]: x * (N/m)^k * (P/1e6)^g."""
        longer = t["k"][:, None] * (np.log(x["step"]) - np.log(t["m"])[:, None])
        larger = t["g"][:, None] * (np.log(x["trainable_params"]) - MILLION)
        return np.asarray(x[self.axis.column] * np.exp(longer + larger))

    def _rest(self, t: Mapping[str, Array]) -> Array | float:
        return t["u"][:, None] if self.remains else 0.0

    def gradient(self, theta: Array, x: Mapping[str, Array]) -> Array:
        """[S, 2, n, K]."""
        t = dict(zip(self.names, theta.T, strict=True))
        at = {name: i for i, name in enumerate(self.names)}
        held = _Held(self._grown(t, x), self._rest(t))
        left = held.of(np.ones_like(held.grown))
        out = np.zeros((len(theta), 2, left.shape[-1], len(self.names)), dtype=np.result_type(theta, float))
        for row, (short, _, sign) in enumerate(BLOCKS):
            names = [f"{part}_{short}" for part in ("a", "alpha", "b", "beta")]
            a, alpha, b, beta = (t[name] for name in names)
            power, by = bracket_gradient(a, alpha, b, beta, t["rho"], x)
            by_output = np.ones_like(left) if sign > 0 else -left
            for name, column in zip((*names, "rho"), by, strict=True):
                out[:, row, :, at[name]] = by_output * column
            out[:, row, :, at[f"s_{short}"]] = 1.0 if sign > 0 else left
            if sign < 0:
                plain = t["s_f"][:, None] - power
                by_grown = held.by_grown(plain)
                out[:, row, :, at["m"]] = by_grown * -(t["k"] / t["m"])[:, None]
                out[:, row, :, at["k"]] = by_grown * (np.log(x["step"]) - np.log(t["m"])[:, None])
                out[:, row, :, at["g"]] = by_grown * (np.log(x["trainable_params"]) - MILLION)
                if self.remains:
                    out[:, row, :, at["u"]] = held.by_rest(plain)
        out[:, 0, :, at["c"]] = x[self.axis.column]
        if self.remains:
            out[:, 0, :, at["d"]] = x[self.axis.column] * np.log(x["step"])
        return out

    def adapt(self, x: Mapping[str, Array], y: Array) -> Adapted:
        """Centred coordinates, like those of the shifted power law."""
        del y
        return AdaptedMitigated(self, centre_of(x))

    def undetermined(self, x: Mapping[str, Array]) -> frozenset[str]:
        """All parameters if P or N has fewer than 3 different values; else the mitigation's, if its option has."""
        few = too_few(x)
        if set(few) - {self.axis.column}:
            return frozenset(self.names)
        return frozenset(self.names[PLAIN:] if few else ())

    def hints(self, x: Mapping[str, Array], y: Array) -> list[str]:
        """Warnings about constant outputs, and variables with fewer than 3 different values."""
        return constant_outputs(self.outputs, y) + [
            f"fewer than 3 different values of {name}: its effect is not identified" for name in too_few(x)
        ]


class CentredMitigated(Law):
    """The law over an option in fitted coordinates.

    They are those of the shifted power law, then the mitigation's strength at the centre, k, g, and c; with `remains`,
    the last is replaced by u, the cost at the centre, and d.
    """

    outputs = OUTPUTS

    def __init__(self, law: Mitigated, centre: tuple[float, float]) -> None:
        """Create the law for a centre: the means of log P and log N."""
        self.law, self.centre = law, centre
        self.name = f"{law.name}_centred"
        self.title = self.formula = f"law of {law.axis.mitigation} in centred coordinates"
        self.source, self.variables = law.source, law.variables
        self.plain = Centred(OUTPUTS, (1, -1), centre)
        self.parameters = (
            *self.plain.parameters,
            Parameter(f"strength of {law.axis.mitigation}", *STRENGTH, (0.1, 100.0), log=True),
            Parameter("k", *POWER, (0.2, 3.0)),
            *(replace(p, name=COST) if p.name == "c" and law.remains else p for p in law.parameters[PLAIN + 2 :]),
        )

    @property
    def spec(self) -> dict[str, Any]:
        """Data for JSON, from which `from_spec` rebuilds the law."""
        return {self.law.name: True, "centre": list(self.centre)}

    def starts(self, count: int, rng: np.random.Generator) -> Array:
        """Draw the coordinates of the shifted power law as `Centred` does, and the others from their regions."""
        return np.concatenate([self.plain.starts(count, rng), super().starts(count, rng)[:, PLAIN:]], axis=1)

    def _grown(self, theta: Array, x: Mapping[str, Array]) -> tuple[Array, Array, Array]:
        """z = x * strength * exp(k n + g q), n = log N - mean and q = log P - mean."""
        q, n = np.log(x["trainable_params"]) - self.centre[0], np.log(x["step"]) - self.centre[1]
        strength, k, g = (column[:, None] for column in theta[:, PLAIN : PLAIN + 3].T)
        return strength * x[self.law.axis.column] * np.exp(k * n + g * q), n, q

    def _rest(self, theta: Array) -> Array | float:
        return theta[:, PLAIN + 3, None] if self.law.remains else 0.0

    def values(self, theta: Array, x: Mapping[str, Array]) -> Array:
        """[S, 2, n]."""
        tuned, forgot = np.moveaxis(self.plain.values(theta[:, :PLAIN], x), 1, 0)
        grown, n, _ = self._grown(theta, x)
        option = x[self.law.axis.column]
        if self.law.remains:
            tuned = tuned + theta[:, -2, None] * option + theta[:, -1, None] * option * n
        else:
            tuned = tuned + theta[:, -1, None] * option
        return np.stack([tuned, _Held(grown, self._rest(theta)).of(forgot)], axis=1)

    def gradient(self, theta: Array, x: Mapping[str, Array]) -> Array:
        """[S, 2, n, K]."""
        grown, n, q = self._grown(theta, x)
        held = _Held(grown, self._rest(theta))
        inner = self.plain.gradient(theta[:, :PLAIN], x)
        out = np.zeros((*inner.shape[:-1], theta.shape[1]), dtype=inner.dtype)
        out[..., :PLAIN] = inner
        for column in range(PLAIN):
            out[:, 1, :, column] = held.of(inner[:, 1, :, column])
        plain = self.plain.values(theta[:, :PLAIN], x)[:, 1]
        by_grown = held.by_grown(plain)
        out[:, 1, :, PLAIN] = by_grown / theta[:, PLAIN, None]
        out[:, 1, :, PLAIN + 1] = by_grown * n
        out[:, 1, :, PLAIN + 2] = by_grown * q
        if self.law.remains:
            out[:, 1, :, PLAIN + 3] = held.by_rest(plain)
            out[:, 0, :, -2] = x[self.law.axis.column]
            out[:, 0, :, -1] = x[self.law.axis.column] * n
        else:
            out[:, 0, :, -1] = x[self.law.axis.column]
        return out


class AdaptedMitigated(Adapted):
    """`Mitigated` in centred coordinates."""

    notes = ("a and b absorb the amplitudes, and are meaningful only with this choice",)

    def __init__(self, law: Mitigated, centre: tuple[float, float]) -> None:
        self.own = law
        self.centred = CentredMitigated(law, centre)
        super().__init__(self.centred)

    def fitted_name(self, name: str) -> str | None:
        """Exponents, limits, rho, u, d, and c in a law without d; the others depend on several coordinates."""
        names = {name: name for name in ("rho", *self.own.names[PLAIN + 1 :])}
        if self.own.remains:
            del names["c"]
        for short, output, _ in BLOCKS:
            names |= {f"{letter}_{short}": f"{letter} of {output}" for letter in ("alpha", "beta")}
            names[f"s_{short}"] = f"limit of {output}"
        return names.get(name)

    def made_of(self, name: str) -> tuple[str, ...]:
        """For a and b: amplitude, share of P, rho and exponent; for m: strength, k, g; for c: cost at the centre, d."""
        own = self.fitted_name(name)
        if own is not None:
            return (own,)
        if name == "c":
            return (COST, "d")
        if name == "m":
            return (f"strength of {self.own.axis.mitigation}", "k", "g")
        output = "finetune_loss" if name.endswith("_ft") else "forgetting"
        exponent = "alpha" if name.startswith("a") else "beta"
        return (
            f"amplitude of {output}",
            f"{exponent} of {output}",
            f"share of P in {output} (logit)",
            "rho",
        )

    def public(self, theta: Array, y: Array, weights: Array) -> Array:
        """[S, K] in the order of the law's parameters."""
        del y, weights
        columns = []
        for block in range(len(BLOCKS)):
            limit, amplitude, alpha, beta = theta[:, 5 * block : 5 * block + 4].T
            with np.errstate(all="ignore"):
                a, b = self.centred.plain.scales(theta[:, :PLAIN], block, amplitude)
            columns += [a, alpha, b, beta, limit]
        strength, k, g, *others = theta[:, PLAIN:].T
        size, steps = self.centred.centre
        with np.errstate(all="ignore"):
            m = np.exp(steps - (np.log(strength) + g * (MILLION - size)) / k)
        if self.own.remains:  # c is at log N = 0
            rest, cost, more = others
            others = [rest, cost - more * steps, more]
        return np.stack([*columns, theta[:, PLAIN - 1], m, k, g, *others], axis=1)


REPLAYED = Mitigated(
    REPLAY,
    "p",
    "p, share of the windows trained on that are replayed",
    f"{SOURCE}, Eq. 5 and 6, at p = 0; the divisor after Bethune et al. (2025), arXiv:2502.06042",
    remains=False,
)
KL_WEIGHTED = Mitigated(
    KL, "w", "w, weight of the KL penalty", f"{SOURCE}, Eq. 5 and 6, at w = 0; the rest is from no paper", remains=True
)
MITIGATED = {law.name: law for law in (REPLAYED, KL_WEIGHTED)}


def centred_from_spec(spec: Mapping[str, Any]) -> CentredMitigated | Centred:
    """Rebuild a law in fitted coordinates from its `spec`: a law over an option, or the shifted power law.

    Raises:
        KeyError, TypeError, ValueError: malformed data.
    """
    law = next((law for name, law in MITIGATED.items() if spec.get(name)), None)
    if law is None:
        return Centred.from_spec(spec)
    first, second = (float(v) for v in spec["centre"])
    return CentredMitigated(law, (first, second))
