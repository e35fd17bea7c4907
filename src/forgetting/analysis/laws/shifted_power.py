"""Both losses as shifted power laws of trainable parameters P and steps N (Kalajdzievski 2024, Eq. 5 and 6).

Gauge. With the bracket I = (a/P)^alpha + (b/N)^beta, a factor in front of I^rho can be moved into a and b. Data on one
loss therefore cannot distinguish c_ft from a and b, and data on both cannot distinguish c_fft from a_f and b_f either:
Eq. 5 and 6 determine only the limit s_fft - c_fft * s_ft. A fit therefore fixes c_ft = 1 and takes c_fft from Eq. 4,
the line through the same rows, as the paper did. The surfaces, the exponents, rho, s_ft and the limit do not depend on
either choice.

Fitted coordinates, one block per output with p = log P - mean, n = log N - mean:
    h = log( sigma * exp(-alpha p) + (1 - sigma) * exp(-beta n) ),   sigma = logistic(w)
    L = s + sign * A * exp(rho * h)
s and A are linear; at the centre of the data exp(rho * h) = 1, which keeps the columns of the Jacobian independent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from forgetting.analysis.laws.base import Adapted, Array, Law, Parameter, Variable, constant_outputs

VARIABLES = (
    Variable("trainable_params", meaning="P, trainable parameters"),
    Variable("step", meaning="N, update steps"),
)
SOURCE = "Kalajdzievski (2024), arXiv:2401.05605"
EXPONENT = (0.01, 3.0)  # bounds of alpha and beta
RHO = (0.3, 100.0)


def bracket(a: Array, alpha: Array, b: Array, beta: Array, x: Mapping[str, Array]) -> tuple[Array, Array]:
    """The two terms (a/P)^alpha and (b/N)^beta, [S, n] each, for [S] parameters."""
    # exp(alpha * (log a - log P)): a may be as small as 1e-300, so do not divide first
    with np.errstate(divide="ignore"):
        capacity = np.exp(alpha[:, None] * (np.log(a)[:, None] - np.log(x["trainable_params"])))
        duration = np.exp(beta[:, None] * (np.log(b)[:, None] - np.log(x["step"])))
    return capacity, duration


def bracket_gradient(
    a: Array, alpha: Array, b: Array, beta: Array, rho: Array, x: Mapping[str, Array]
) -> tuple[Array, list[Array]]:
    """I^rho and its derivatives with respect to a, alpha, b, beta and rho: [S, n] each."""
    capacity, duration = bracket(a, alpha, b, beta, x)
    total = capacity + duration
    power = total ** rho[:, None]
    outer = rho[:, None] * power / total
    by_a = outer * capacity * (alpha / a)[:, None]
    by_alpha = outer * capacity * (np.log(a)[:, None] - np.log(x["trainable_params"]))
    by_b = outer * duration * (beta / b)[:, None]
    by_beta = outer * duration * (np.log(b)[:, None] - np.log(x["step"]))
    return power, [by_a, by_alpha, by_b, by_beta, power * np.log(total)]


def _scale(name: str, meaning: str) -> Parameter:
    return Parameter(name, 0.0, np.inf, (1e-4, 1e4), log=True, meaning=meaning)


def _exponent(name: str, meaning: str) -> Parameter:
    return Parameter(name, *EXPONENT, (0.02, 0.5), log=True, meaning=meaning)


class ShiftedPowerSingle(Law):
    """One loss as L = s + sign * c * [(a/P)^alpha + (b/N)^beta]^rho, with the gauge c = 1."""

    def __init__(self, name: str, output: str, sign: int) -> None:
        self.name = name
        self.sign = sign
        self.outputs = (output,)
        self.not_negative = (output,) if sign > 0 else ()
        mark = "+" if sign > 0 else "-"
        self.title = f"Shifted power law of {output.replace('_', ' ')}"
        self.formula = f"{output} = s {mark} c * [(a/P)^alpha + (b/N)^beta]^rho, c = 1 (gauge)"
        self.source = f"{SOURCE}, Eq. {5 if sign > 0 else 6}, one loss alone"
        self.variables = VARIABLES
        self.parameters = (
            _scale("a", "scale of P, given the gauge"),
            _exponent("alpha", "exponent of P"),
            _scale("b", "scale of N, given the gauge"),
            _exponent("beta", "exponent of N"),
            Parameter("c", 0.0, np.inf, (1.0, 1.0), log=True, gauge=1.0, meaning="absorbed by a and b"),
            Parameter("rho", *RHO, (0.5, 20.0), log=True, meaning="outer exponent"),
            Parameter("s", 0.0, np.inf, (0.0, 5.0), linear=True, meaning="limit, nats/token"),
        )

    def values(self, theta: Array, x: Mapping[str, Array]) -> Array:
        """[S, 1, n] losses."""
        a, alpha, b, beta, c, rho, s = theta.T
        capacity, duration = bracket(a, alpha, b, beta, x)
        rise = c[:, None] * (capacity + duration) ** rho[:, None]
        return np.asarray(s[:, None] + self.sign * rise)[:, None, :]

    def gradient(self, theta: Array, x: Mapping[str, Array]) -> Array:
        """[S, 1, n, 7]."""
        a, alpha, b, beta, c, rho, _ = theta.T
        power, (by_a, by_alpha, by_b, by_beta, by_rho) = bracket_gradient(a, alpha, b, beta, rho, x)
        front = self.sign * c[:, None]
        columns = [front * by_a, front * by_alpha, front * by_b, front * by_beta]
        columns += [self.sign * power, front * by_rho, np.ones_like(power)]
        return np.stack(columns, axis=-1)[:, None]

    def undetermined(self, x: Mapping[str, Array]) -> frozenset[str]:
        """All parameters except the fixed c, if P or N has fewer than 3 different values."""
        return frozenset(self.names) - {"c"} if too_few(x) else frozenset()

    def adapt(self, x: Mapping[str, Array], y: Array) -> Adapted:
        """Centred coordinates (see the module)."""
        del y
        return AdaptedSingle(self, x)


class ShiftedPower(Law):
    """Eq. 5 and 6 fitted together; they share c_ft, rho and s_ft. Parameters are named as in the paper's Table 1."""

    name = "shifted_power"
    title = "Shifted power laws of both losses"
    formula = (
        "L_ft = c_ft * [(a_ft/P)^alpha_ft + (b_ft/N)^beta_ft]^rho + s_ft; "
        "L_f = -c_fft * (c_ft * [(a_f/P)^alpha_f + (b_f/N)^beta_f]^rho + s_ft) + s_fft"
    )
    source = f"{SOURCE}, Eq. 5 and 6"
    variables = VARIABLES
    outputs = ("finetune_loss", "forgetting_loss")
    not_negative = ("finetune_loss",)
    parameters = (
        _scale("a_f", "scale of P in L_f, given the gauge"),
        _scale("a_ft", "scale of P in L_ft, given the gauge"),
        _scale("b_f", "scale of N in L_f, given the gauge"),
        _scale("b_ft", "scale of N in L_ft, given the gauge"),
        Parameter("c_ft", 0.0, np.inf, (1.0, 1.0), log=True, gauge=1.0, meaning="gauge: absorbed by a and b"),
        Parameter("c_fft", 0.0, np.inf, (0.5, 3.0), log=True, meaning="slope of Eq. 4 on the same rows"),
        Parameter("s_ft", 0.0, np.inf, (0.0, 5.0), meaning="limit of L_ft, nats/token"),
        Parameter("s_fft", -np.inf, np.inf, (0.0, 5.0), meaning="L_f's limit + c_fft * s_ft, nats/token"),
        _exponent("alpha_f", "exponent of P in L_f"),
        _exponent("alpha_ft", "exponent of P in L_ft"),
        _exponent("beta_f", "exponent of N in L_f"),
        _exponent("beta_ft", "exponent of N in L_ft"),
        Parameter("rho", *RHO, (0.5, 20.0), log=True, meaning="outer exponent"),
    )

    def values(self, theta: Array, x: Mapping[str, Array]) -> Array:
        """[S, 2, n]: finetune_loss, forgetting_loss."""
        t = dict(zip(self.names, theta.T, strict=True))
        rho, c_ft, c_fft, s_ft = t["rho"][:, None], t["c_ft"][:, None], t["c_fft"][:, None], t["s_ft"][:, None]
        tuned = sum(bracket(t["a_ft"], t["alpha_ft"], t["b_ft"], t["beta_ft"], x)) ** rho
        forgot = sum(bracket(t["a_f"], t["alpha_f"], t["b_f"], t["beta_f"], x)) ** rho
        finetune = c_ft * tuned + s_ft
        forgetting = -c_fft * (c_ft * forgot + s_ft) + t["s_fft"][:, None]
        return np.stack([finetune, forgetting], axis=1)

    def gradient(self, theta: Array, x: Mapping[str, Array]) -> Array:
        """[S, 2, n, 13]."""
        t = dict(zip(self.names, theta.T, strict=True))
        c_ft, c_fft, s_ft = t["c_ft"][:, None], t["c_fft"][:, None], t["s_ft"][:, None]
        tuned, by_tuned = bracket_gradient(t["a_ft"], t["alpha_ft"], t["b_ft"], t["beta_ft"], t["rho"], x)
        forgot, by_forgot = bracket_gradient(t["a_f"], t["alpha_f"], t["b_f"], t["beta_f"], t["rho"], x)
        out = np.zeros((theta.shape[0], 2, tuned.shape[1], len(self.parameters)), dtype=tuned.dtype)
        at = {name: k for k, name in enumerate(self.names)}
        for name, column in zip(("a_ft", "alpha_ft", "b_ft", "beta_ft", "rho"), by_tuned, strict=True):
            out[:, 0, :, at[name]] = c_ft * column
        for name, column in zip(("a_f", "alpha_f", "b_f", "beta_f", "rho"), by_forgot, strict=True):
            out[:, 1, :, at[name]] = -c_fft * c_ft * column
        out[:, 0, :, at["c_ft"]] = tuned
        out[:, 1, :, at["c_ft"]] = -c_fft * forgot
        out[:, 1, :, at["c_fft"]] = -(c_ft * forgot + s_ft)
        out[:, 0, :, at["s_ft"]] = 1.0
        out[:, 1, :, at["s_ft"]] = -c_fft
        out[:, 1, :, at["s_fft"]] = 1.0
        return out

    def adapt(self, x: Mapping[str, Array], y: Array) -> Adapted:
        """Centred coordinates (see the module)."""
        del y
        return AdaptedJoint(self, x)

    def undetermined(self, x: Mapping[str, Array]) -> frozenset[str]:
        """If P or N has fewer than 3 different values, all but the fixed c_ft, and c_fft, which the rows determine."""
        return frozenset(self.names) - {"c_fft", "c_ft"} if too_few(x) else frozenset()

    def hints(self, x: Mapping[str, Array], y: Array) -> list[str]:
        """Warnings about constant losses, too few values of P or N, and forgetting that does not grow with learning."""
        few = too_few(x)
        out = [f"fewer than 3 different values of {name}: its exponents are not identified" for name in few]
        if flat := constant_outputs(self.outputs, y):
            return [*flat, *out]
        slope = float(falling_slope(y[:1], y[1:], np.ones_like(y[:1]))[0])
        if slope <= 0:
            out.append(
                f"forgetting does not grow as the fine-tuning loss falls (slope {-slope:.3g}): c_fft is fixed at 1"
            )
        return out


def too_few(x: Mapping[str, Array]) -> list[str]:
    """Variables with fewer than 3 different values, whose term, the limit and rho cannot be distinguished."""
    return [name for name, values in x.items() if np.unique(values).size < 3]


class Centred(Law):
    """The law of one or both losses in fitted coordinates: one block of 5 per loss, then rho, which they share."""

    name = "shifted_power_centred"
    title = formula = "shifted power law in centred coordinates"
    source = SOURCE
    variables = VARIABLES

    def __init__(self, outputs: tuple[str, ...], signs: tuple[int, ...], centre: tuple[float, float]) -> None:
        """Set the outputs, +1 or -1 for each (it falls or rises with P and N), and the means of log P and log N."""
        self.outputs = outputs
        self.signs = signs
        self.centre = centre
        block: list[Parameter] = []
        for output in outputs:
            block += [
                # the limit of a loss, or of forgetting, is not negative
                Parameter(f"limit of {output}", 0.0, np.inf, (0.0, 5.0), linear=True),
                Parameter(f"amplitude of {output}", 0.0, np.inf, (1e-2, 1.0), linear=True),
                Parameter(f"alpha of {output}", *EXPONENT, (0.02, 1.0), log=True),
                Parameter(f"beta of {output}", *EXPONENT, (0.02, 1.0), log=True),
                Parameter(f"share of P in {output} (logit)", -5.0, 5.0, (-3.0, 3.0)),
            ]
        self.parameters = (*block, Parameter("rho", *RHO, (0.5, 20.0), log=True))

    @property
    def spec(self) -> dict[str, Any]:
        """Data for JSON, from which `from_spec` rebuilds the law."""
        return {"outputs": list(self.outputs), "signs": list(self.signs), "centre": list(self.centre)}

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        """The inverse of `spec`.

        Raises:
            KeyError, TypeError, ValueError: malformed data.
        """
        first, second = (float(v) for v in spec["centre"])
        return cls(tuple(map(str, spec["outputs"])), tuple(int(v) for v in spec["signs"]), (first, second))

    def starts(self, count: int, rng: np.random.Generator) -> Array:
        """Draw alpha * rho (and beta * rho), the local slope, which data determine better than either factor."""
        theta = super().starts(count, rng)
        rho = theta[:, -1]
        for block in range(len(self.outputs)):
            for column in (5 * block + 2, 5 * block + 3):
                slope = np.exp(rng.uniform(np.log(0.05), np.log(5.0), count))
                theta[:, column] = np.clip(slope / rho, *EXPONENT)
        return theta

    def _centred(self, x: Mapping[str, Array]) -> tuple[Array, Array]:
        """p = log P - mean and n = log N - mean."""
        return np.log(x["trainable_params"]) - self.centre[0], np.log(x["step"]) - self.centre[1]

    def _terms(self, theta: Array, block: int, p: Array, n: Array) -> tuple[Array, Array]:
        """The two terms of the bracket, for one output."""
        alpha, beta, w = theta[:, 5 * block + 2, None], theta[:, 5 * block + 3, None], theta[:, 5 * block + 4, None]
        log_sigma, log_rest = -np.log(1 + np.exp(-w)), -np.log(1 + np.exp(w))
        return np.exp(log_sigma - alpha * p), np.exp(log_rest - beta * n)

    def values(self, theta: Array, x: Mapping[str, Array]) -> Array:
        """[S, O, n]."""
        out = []
        p, n = self._centred(x)
        for block, sign in enumerate(self.signs):
            limit, amplitude = theta[:, 5 * block, None], theta[:, 5 * block + 1, None]
            capacity, duration = self._terms(theta, block, p, n)
            h = np.log(capacity + duration)
            out.append(limit + sign * amplitude * np.exp(theta[:, -1, None] * h))
        return np.stack(out, axis=1)

    def gradient(self, theta: Array, x: Mapping[str, Array]) -> Array:
        """[S, O, n, K]."""
        rho = theta[:, -1, None]
        first_variable = np.asarray(x["trainable_params"])
        shape = (theta.shape[0], theta.shape[1], len(self.outputs), first_variable.shape[-1])
        # keep each derivative contiguous in memory: a fit spends most of its time here
        out = np.zeros(shape, dtype=np.result_type(theta, first_variable, float))
        p, n = self._centred(x)
        for block, sign in enumerate(self.signs):
            k = 5 * block
            capacity, duration = self._terms(theta, block, p, n)
            total = capacity + duration
            log_total = np.log(total)
            sigma = 1 / (1 + np.exp(-theta[:, k + 4, None]))
            power = np.exp(rho * log_total)
            height = (sign * theta[:, k + 1, None]) * power
            outer = height * rho
            by_capacity, by_duration = outer * (capacity / total), outer * (duration / total)
            out[:, k, block] = 1.0
            out[:, k + 1, block] = sign * power
            out[:, k + 2, block] = by_capacity * -p
            out[:, k + 3, block] = by_duration * -n
            out[:, k + 4, block] = by_capacity - outer * sigma  # the two shares add up to 1
            out[:, -1, block] = height * log_total
        return np.moveaxis(out, 1, -1)

    def scales(self, theta: Array, block: int, amplitude: Array) -> tuple[Array, Array]:
        """a and b, [S] each, after moving the amplitude into them (c_ft = 1)."""
        alpha, beta, w = theta[:, 5 * block + 2], theta[:, 5 * block + 3], theta[:, 5 * block + 4]
        inner = np.log(amplitude) / theta[:, -1]
        log_a = (inner - np.log(1 + np.exp(-w))) / alpha + self.centre[0]
        log_b = (inner - np.log(1 + np.exp(w))) / beta + self.centre[1]
        return np.exp(log_a), np.exp(log_b)

    def steps_at(self, theta: Array, params: float, output: str, level: float) -> Array:
        """Steps N at which an output crosses a level, [S], for [S, K] parameters.

        With the level's exp(h) = ((level - limit) / (sign * A))^(1 / rho), the bracket is solved for n = log N - mean:
        n = -log((exp(h) - sigma * exp(-alpha p)) / (1 - sigma)) / beta. Infinite if no number of steps reaches it.
        """
        block = self.outputs.index(output)
        k, sign = 5 * block, self.signs[block]
        limit, amplitude, alpha, beta, w = (theta[:, k + i] for i in range(5))
        p = np.log(params) - self.centre[0]
        with np.errstate(all="ignore"):
            rise = sign * (level - limit) / amplitude
            total = np.where(rise > 0, rise, np.nan) ** (1 / theta[:, -1])
            rest = (total - np.exp(-alpha * p) / (1 + np.exp(-w))) * (1 + np.exp(w))
            steps = np.exp(self.centre[1] - np.log(np.where(rest > 0, rest, np.nan)) / beta)
        return np.where(np.isfinite(steps), steps, np.inf)


def centre_of(x: Mapping[str, Array]) -> tuple[float, float]:
    """The means of log P and log N."""
    return float(np.mean(np.log(x["trainable_params"]))), float(np.mean(np.log(x["step"])))


def centred(theta: Array, centre: tuple[float, float]) -> Array:
    """[S, 11] fitted coordinates of [S, 13] parameters of `ShiftedPower`, in any gauge.

    With I the bracket at the centre: A = c_ft * I^rho (times c_fft for L_f), and sigma is the share of its first term.
    """
    t = dict(zip(ShiftedPower().names, theta.T, strict=True))
    blocks = []
    for short, slope, limit in (("ft", 1.0, t["s_ft"]), ("f", t["c_fft"], t["s_fft"] - t["c_fft"] * t["s_ft"])):
        alpha, beta = t[f"alpha_{short}"], t[f"beta_{short}"]
        with np.errstate(all="ignore"):
            first = alpha * (np.log(t[f"a_{short}"]) - centre[0])
            second = beta * (np.log(t[f"b_{short}"]) - centre[1])
            amplitude = slope * t["c_ft"] * np.exp(t["rho"] * np.logaddexp(first, second))
        blocks += [limit, amplitude, alpha, beta, first - second]
    return np.stack([*blocks, t["rho"]], axis=1)


class AdaptedSingle(Adapted):
    """`ShiftedPowerSingle` in centred coordinates."""

    notes = ("c is fixed at 1: a and b absorb it, and are meaningful only with this choice",)

    def __init__(self, law: ShiftedPowerSingle, x: Mapping[str, Array]) -> None:
        self.centred = Centred(law.outputs, (law.sign,), centre_of(x))
        super().__init__(self.centred)

    def fitted_name(self, name: str) -> str | None:
        """Exponents, rho and the limit; a and b also depend on the amplitude."""
        output = self.centred.outputs[0]
        names = {"alpha": f"alpha of {output}", "beta": f"beta of {output}", "s": f"limit of {output}", "rho": "rho"}
        return names.get(name)

    def made_of(self, name: str) -> tuple[str, ...]:
        """For a and b: the amplitude, the share of P, rho and their exponent."""
        own = self.fitted_name(name)
        return (own,) if own is not None else _scale_parts(name, self.centred.outputs[0])

    def public(self, theta: Array, y: Array, weights: Array) -> Array:
        """[S, 7]: a, alpha, b, beta, c, rho, s."""
        del y, weights
        limit, amplitude, alpha, beta, _, rho = theta.T
        with np.errstate(all="ignore"):
            a, b = self.centred.scales(theta, 0, amplitude)
        return np.stack([a, alpha, b, beta, np.ones_like(rho), rho, limit], axis=1)


class AdaptedJoint(Adapted):
    """`ShiftedPower` in centred coordinates; c_fft is the slope of Eq. 4 on the same rows."""

    of_outputs = True
    notes = (
        "c_ft is fixed at 1: a_f, a_ft, b_f, b_ft absorb it, and are meaningful only with this choice",
        "Eq. 5 and 6 determine c_fft and s_fft only through the limit s_fft - c_fft * s_ft; c_fft is taken from the "
        "line of Eq. 4 through the same rows, and a_f, b_f, s_fft follow",
    )

    def __init__(self, law: ShiftedPower, x: Mapping[str, Array]) -> None:
        self.centred = Centred(law.outputs, (1, -1), centre_of(x))
        super().__init__(self.centred)

    def fitted_name(self, name: str) -> str | None:
        """Exponents, rho and the limit of L_ft; the others depend on several coordinates, or on the gauge."""
        names = {"s_ft": "limit of finetune_loss", "rho": "rho"}
        for short, output in (("ft", "finetune_loss"), ("f", "forgetting_loss")):
            names |= {f"{letter}_{short}": f"{letter} of {output}" for letter in ("alpha", "beta")}
        return names.get(name)

    def made_of(self, name: str) -> tuple[str, ...]:
        """For a and b: the amplitude, the share of P, rho and their exponent; for s_fft both limits; for c_fft none."""
        own = self.fitted_name(name)
        if own is not None:
            return (own,)
        if name == "s_fft":
            return ("limit of finetune_loss", "limit of forgetting_loss")
        if name == "c_fft":
            return ()
        return _scale_parts(name, "finetune_loss" if name.endswith("_ft") else "forgetting_loss")

    def public(self, theta: Array, y: Array, weights: Array) -> Array:
        """[S, 13] in the order of `ShiftedPower.parameters`."""
        s_ft, amplitude_ft, alpha_ft, beta_ft, _, limit_f, amplitude_f, alpha_f, beta_f, _, rho = theta.T
        slope = falling_slope(y[:, 0], y[:, 1], weights)
        c_fft = np.where(slope > 0, slope, 1.0)  # a gauge choice: predictions do not depend on it
        with np.errstate(all="ignore"):
            a_ft, b_ft = self.centred.scales(theta, 0, amplitude_ft)
            a_f, b_f = self.centred.scales(theta, 1, amplitude_f / c_fft)
        s_fft = limit_f + c_fft * s_ft
        one = np.ones_like(rho)
        columns = [a_f, a_ft, b_f, b_ft, one, c_fft, s_ft, s_fft, alpha_f, alpha_ft, beta_f, beta_ft, rho]
        return np.stack(columns, axis=1)


def _scale_parts(name: str, output: str) -> tuple[str, ...]:
    """The fitted coordinates that make up a scale, a or b."""
    exponent = "alpha" if name.startswith("a") else "beta"
    return (f"amplitude of {output}", f"{exponent} of {output}", f"share of P in {output} (logit)", "rho")


def falling_slope(x: Array, y: Array, weights: Array) -> Array:
    """Minus the weighted least-squares slope of y on x, [S] for [S, n] each: the c_fft of Eq. 4."""
    if (weights == 1).all():  # the same numbers with half as many passes over the rows
        dx, dy = (z - z.sum(axis=1, keepdims=True) / z.shape[1] for z in (x, y))
        product, square = dx * dy, np.multiply(dx, dx, out=dx)
    else:
        mass = weights.sum(axis=1, keepdims=True)
        dx, dy = (z - (weights * z).sum(axis=1, keepdims=True) / mass for z in (x, y))
        product, square = weights * dx * dy, weights * dx * dx
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(-product.sum(axis=1) / square.sum(axis=1))
