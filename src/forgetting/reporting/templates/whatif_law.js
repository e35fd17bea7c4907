"use strict";
// The joint law of a data set, with its bands, at any rank, steps and budget: what whatif.js shows.
// The formulas are those of analysis/laws/shifted_power.py and quadratic.py (the laws), fit/bootstrap.py and
// fit/result.py (bands), plan/surface.py and plan/frontier.py (budgets), on the fit's own numbers; a panel is shown
// only if it gives what `predict` and `plan` gave where the report was written.
const whatIfLaw = (() => {
  const [FINETUNE, FORGETTING] = [0, 1]; // outputs of the law
  const BLOCK = 5; // parameters of a loss: limit, amplitude, alpha, beta, share of P as a logit; rho comes last
  const NONE = [NaN, NaN];
  const TOLERANCE = 1e-6; // relative: below the last digit that is shown

  function rows(text, width) {
    const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
    const all = new Float64Array(bytes.buffer);
    return Array.from({ length: all.length / width }, (_, i) => all.subarray(i * width, (i + 1) * width));
  }

  class ShiftedPower {
    constructor({ centre, signs }) {
      [this.centre, this.signs, this.width] = [centre, signs, BLOCK * signs.length + 1];
    }

    value(t, output, P, N) {
      const k = BLOCK * output;
      const p = Math.log(P) - this.centre[0];
      const n = Math.log(N) - this.centre[1];
      const capacity = Math.exp(-Math.log(1 + Math.exp(-t[k + 4])) - t[k + 2] * p);
      const duration = Math.exp(-Math.log(1 + Math.exp(t[k + 4])) - t[k + 3] * n);
      const rho = t[this.width - 1];
      return t[k] + this.signs[output] * t[k + 1] * Math.exp(rho * Math.log(capacity + duration));
    }

    // infinite where no number of steps reaches the level
    steps(t, output, P, level) {
      const k = BLOCK * output;
      const p = Math.log(P) - this.centre[0];
      const rise = (this.signs[output] * (level - t[k])) / t[k + 1];
      const total = rise > 0 ? rise ** (1 / t[this.width - 1]) : NaN;
      const rest = (total - Math.exp(-t[k + 2] * p) / (1 + Math.exp(-t[k + 4]))) * (1 + Math.exp(t[k + 4]));
      const found = Math.exp(this.centre[1] - Math.log(rest > 0 ? rest : NaN) / t[k + 3]);
      return Number.isFinite(found) ? found : Infinity;
    }
  }

  class Quadratic {
    constructor({ outputs, axes, terms, log }) {
      [this.axes, this.terms, this.log, this.width] = [axes, terms, log, outputs.length * terms.length];
    }

    place(variable, value) {
      const [middle, half, log] = this.axes[variable];
      return ((log ? Math.log(value > 0 ? value : NaN) : value) - middle) / half;
    }

    value(t, output, P, N) {
      const places = { trainable_params: this.place("trainable_params", P), step: this.place("step", N) };
      const made = this.terms.reduce((sum, term, i) => {
        return sum + t[output * this.terms.length + i] * term.reduce((product, v) => product * places[v], 1);
      }, 0);
      return this.log ? Math.exp(made) : made;
    }

    steps(t, output, P, level, up) {
      const power = [0, 0, 0];
      const place = this.place("trainable_params", P);
      this.terms.forEach((term, i) => {
        const others = term.filter((v) => v !== "step").length;
        power[term.length - others] += t[output * this.terms.length + i] * place ** others;
      });
      const [constant, slope, bend] = power;
      const height = this.log ? Math.log(level) : level;
      const root = Math.sqrt(slope ** 2 - 4 * bend * (constant - height));
      const [middle, half, log] = this.axes.step;
      const inner = middle + (half * 2 * (height - constant)) / (slope + (up ? root : -root));
      const found = log ? Math.exp(inner) : inner;
      return Number.isFinite(found) ? found : Infinity;
    }
  }

  function quantile(sorted, share) {
    const at = (sorted.length - 1) * share;
    const i = Math.floor(at);
    const [a, b] = [sorted[i], sorted[Math.min(i + 1, sorted.length - 1)]];
    return at - i >= 0.5 ? b - (b - a) * (1 - (at - i)) : a + (b - a) * (at - i);
  }

  class JointLaw {
    constructor(data) {
      Object.assign(this, data);
      this.shifted = new ShiftedPower(data.law);
      [this.theta] = rows(data.law.theta, this.shifted.width);
      this.inside = rows(data.draws, this.shifted.width).map((t) => [this.shifted, t]);
      const others = data.rivals.flatMap((spec) => {
        const law = new Quadratic(spec);
        return rows(spec.draws, law.width).map((t) => [law, t]);
      });
      this.beyond = others.length ? [...this.inside.slice(0, data.own), ...others] : this.inside;
    }

    outside(P, N) {
      return [["trainable_params", P], ["step", N]].some(([name, value]) => {
        const [low, high] = this.range[name];
        const slack = 1e-9 * Math.max(Math.abs(low), Math.abs(high));
        return value < low - slack || value > high + slack;
      });
    }

    // the band of draws around a value, and how many gave no finite number; none where these are too many
    band(value, draws) {
      const kept = draws.filter(Number.isFinite).sort((a, b) => a - b);
      const lost = draws.length - kept.length;
      if (!kept.length || lost > this.lost * draws.length) return [...NONE, lost];
      const tail = (1 - this.confidence) / 2;
      const [low, high] = [quantile(kept, tail), quantile(kept, 1 - tail)];
      return [value + this.widen * Math.min(low - value, 0), value + this.widen * Math.max(high - value, 0), lost];
    }

    // the band of steps, in logarithms: draws that never reach the level count as longer than all others
    stepsBand(value, drawn) {
      const logs = drawn.map(Math.log).map((x) => (Number.isFinite(x) ? x : Infinity));
      const points = logs.sort((a, b) => (a < b ? -1 : Number(a > b)));
      const [known, last, centre] = [points.filter(Number.isFinite).length, points.length - 1, Math.log(value)];
      const tail = (1 - this.confidence) / 2;
      if (known <= Math.ceil(last * tail)) return NONE;
      const low = centre + this.widen * Math.min(quantile(points, tail) - centre, 0);
      if (known <= Math.ceil(last * (1 - tail))) return [Math.exp(low), Infinity];
      return [Math.exp(low), Math.exp(centre + this.widen * Math.max(quantile(points, 1 - tail) - centre, 0))];
    }

    newRun(output, value, low, high) {
      const [less, half] = this.run[output].map((scale) => scale ?? NaN);
      const [down, up] = [Math.hypot(less * (value - low), half), Math.hypot(less * (high - value), half)];
      return [Math.min(value - down, low), Math.max(value + up, high)];
    }

    // value, the band of the law's mean, that of one new run; `lost` draws
    predict(output, P, N) {
      const value = this.shifted.value(this.theta, output, P, N);
      const draws = this.outside(P, N) ? this.beyond : this.inside;
      const [low, high, lost] = this.band(value, draws.map(([law, t]) => law.value(t, output, P, N)));
      const run = this.newRun(output, value, low, high);
      const held = (end) => (end < 0 && value >= 0 ? 0 : end); // a cross-entropy is not negative
      return { ends: [value, held(low), high, held(run[0]), run[1]], lost };
    }

    // the steps at which a budget is spent, and the fine-tuning loss there
    spend(P, budget) {
      const level = budget + (this.floor ?? 0);
      const steps = this.shifted.steps(this.theta, FORGETTING, P, level);
      if (!Number.isFinite(steps)) {
        return { steps: [Infinity, ...NONE], limit: this.shifted.value(this.theta, FORGETTING, P, Infinity) };
      }
      const outside = this.outside(P, steps);
      const draws = outside ? this.beyond : this.inside;
      const up = this.law.signs[FORGETTING] < 0;
      const drawn = draws.map(([law, t]) => law.steps(t, FORGETTING, P, level, up));
      const value = this.shifted.value(this.theta, FINETUNE, P, steps);
      const losses = draws.map(([law, t], i) => law.value(t, FINETUNE, P, drawn[i]));
      const mean = this.band(value, losses).slice(0, 2);
      const run = this.newRun(FINETUNE, value, ...mean);
      return { steps: [steps, ...this.stepsBand(steps, drawn)], finetune: [value, ...mean, ...run], outside };
    }

    // whether this browser computes what Python did
    agrees() {
      const room = (b) => TOLERANCE * Math.max(Math.abs(b), TOLERANCE);
      const near = (a, b) => (b === null ? !Number.isFinite(a) : Math.abs(a - b) <= room(b));
      const same = (mine, theirs) => mine.every((value, i) => near(value, theirs[i]));
      const predicted = this.checks.every(({ trainable_params: P, step: N, extrapolated, losses }) => {
        return this.outside(P, N) === extrapolated && losses.every((ends, o) => same(this.predict(o, P, N).ends, ends));
      });
      const planned = this.spent.every((theirs) => {
        const mine = this.spend(theirs.trainable_params, this.start[2]);
        const agree = same(mine.steps, theirs.steps) && same(mine.finetune, theirs.finetune_loss);
        return mine.outside === theirs.extrapolated && agree;
      });
      return predicted && planned;
    }
  }

  return { JointLaw, FINETUNE, FORGETTING };
})();
