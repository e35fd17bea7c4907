"use strict";
// What if: both losses with their bands, the cost and the budget's steps, at the rank and steps that a reader sets.
(() => {
  const { JointLaw, FINETUNE, FORGETTING } = whatIfLaw;
  const CHARTS = { "finetune-chart": FINETUNE, "forgetting-chart": FORGETTING };
  const MOST = 1e12; // of a rank, P or steps that can be asked for
  const [HEIGHT, LEFT, RIGHT, UNDER] = [250, 50, 8, 42]; // of a chart, in pixels

  // numbers as `predict` prints them: five significant digits, more where the ends of a span need them
  function digits(value, count = 5) {
    if (!Number.isFinite(value)) return "–";
    const [mantissa, power] = value.toExponential(count - 1).split("e");
    const short = (text) => (text.includes(".") ? text.replace(/\.?0+$/, "") : text);
    const plain = Number(power) >= -4 && Number(power) < count;
    const raised = `${short(mantissa)}e${power[0]}${power.slice(1).padStart(2, "0")}`;
    return (plain ? short(value.toFixed(count - 1 - Number(power))) : raised).replaceAll("-", "−");
  }

  function span(low, high) {
    if (!(Number.isFinite(low) && Number.isFinite(high))) return "–";
    let count = 5;
    while (count < 17 && low !== high && digits(low, count) === digits(high, count)) count += 1;
    return `${digits(low, count)} to ${digits(high, count)}`;
  }

  const whole = (value) => value.toLocaleString("en", { maximumFractionDigits: 0 });
  const asked = (value) => value.toLocaleString("en", { maximumFractionDigits: 6 });
  const three = (value) => Number(value.toPrecision(3)).toLocaleString("en", { maximumSignificantDigits: 3 });
  const steps = (value) => `${asked(value)} step${value === 1 ? "" : "s"}`;
  const capital = (text) => text[0].toUpperCase() + text.slice(1);

  function element(name, attributes, ...children) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }

  // round values from low to high
  function round(low, high) {
    const raw = (high - low) / 4 || 1;
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((size) => size >= raw * 0.999);
    const first = Math.ceil(low / step);
    const count = Math.max(Math.floor(high / step) - first + 1, 0);
    return Array.from({ length: count }, (_, i) => Number(((first + i) * step).toPrecision(6)));
  }

  // one loss against steps: the scales and the points of its chart
  class Curve {
    constructor(width, law, output, P, budget) {
      const less = output === FORGETTING ? (law.floor ?? 0) : 0;
      this.budget = output === FORGETTING ? budget : null;
      this.at = (n) => law.predict(output, P, n).ends.map((end) => end - less);
      [this.first, this.last] = [law.steps[0], law.steps.at(-1)];
      [this.low, this.high] = law.range.step;
      const edges = [this.low, this.high, this.low * (1 - 1e-6), this.high * (1 + 1e-6)]; // bands are others outside
      const stops = [...new Set([...law.steps, ...edges])].filter((n) => n >= this.first && n <= this.last);
      this.points = stops.sort((a, b) => a - b).map((n) => [n, ...this.at(n)]);
      const inside = ([n]) => n >= this.low && n <= this.high;
      const seen = this.points.flatMap((p) => (inside(p) ? [p[1], p[4], p[5]] : [p[1]])).filter(Number.isFinite);
      if (this.budget !== null) seen.push(this.budget);
      [this.width, this.bottom, this.top] = [width, Math.min(...seen), Math.max(...seen)];
    }

    x(n) {
      return LEFT + ((this.width - LEFT - RIGHT) * Math.log(n / this.first)) / Math.log(this.last / this.first);
    }

    y(value) {
      const height = HEIGHT - UNDER;
      const place = height - ((height - RIGHT) * (value - this.bottom)) / (this.top - this.bottom || 1);
      return Math.min(Math.max(place, -1e4), 1e4);
    }

    path(points) {
      return points.map(([n, value]) => `${this.x(n).toFixed(1)},${this.y(value).toFixed(1)}`).join(" ");
    }

    band(low, high) {
      const known = this.points.filter((p) => Number.isFinite(p[low]) && Number.isFinite(p[high]));
      const edge = (i) => known.map((p) => [p[0], p[i]]);
      return element("polygon", { class: "band", points: this.path([...edge(low), ...edge(high).reverse()]) });
    }

    // what lies within the axes, `N` being the steps that are set
    drawn(N) {
      const y2 = HEIGHT - UNDER;
      const begin = this.x(Math.max(this.low, this.first));
      const made = [
        element("rect", { class: "range", x: begin, y: 0, width: this.x(this.high) - begin, height: y2 }),
        this.band(4, 5),
        this.band(2, 3),
        element("polyline", { class: "mean", points: this.path(this.points) }),
        element("line", { class: "chosen", x1: this.x(N), x2: this.x(N), y1: 0, y2 }),
        element("circle", { class: "chosen", cx: this.x(N), cy: this.y(this.at(N)[0]), r: 4.5 }),
      ];
      if (this.budget !== null) {
        const y = this.y(this.budget);
        made.push(element("line", { class: "budget", x1: LEFT, x2: this.width, y1: y, y2: y }));
        made.push(element("text", { class: "budget", x: LEFT + 6, y: Math.max(y - 5, 12) }, "budget"));
      }
      return made;
    }

    axes() {
      const made = round(this.bottom, this.top).map((value) => {
        return element("text", { x: LEFT - 6, y: this.y(value) + 4, "text-anchor": "end" }, digits(value, 6));
      });
      const names = [1, 1e3, 1e6, 1e9].flatMap((k) => [1, 2, 5, 10, 20, 50, 100, 200, 500].map((m) => m * k));
      let free = 0;
      for (const n of names.filter((one) => one >= this.first && one <= this.last)) {
        if (this.x(n) < free || this.x(n) > this.width - 18) continue;
        free = this.x(n) + 46;
        made.push(element("text", { x: this.x(n), y: HEIGHT - UNDER + 17, "text-anchor": "middle" }, whole(n)));
      }
      const middle = (LEFT + this.width) / 2;
      made.push(element("text", { x: middle, y: HEIGHT - 6, "text-anchor": "middle" }, "update steps"));
      return made;
    }
  }

  function draw(div, law, output, P, N, budget) {
    const width = Math.max(div.clientWidth, 240);
    const curve = new Curve(width, law, output, P, budget);
    const id = `${div.id}-clip`;
    const frame = element("rect", { x: LEFT, y: 0, width: width - LEFT - RIGHT, height: HEIGHT - UNDER });
    const inner = element("g", { "clip-path": `url(#${id})` }, ...curve.drawn(N));
    const look = { width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, "aria-hidden": "true" };
    div.replaceChildren(element("svg", look, element("clipPath", { id }, frame), inner, ...curve.axes()));
  }

  // sentences about a law at one P: `size` is its rank, or P where no rank is known
  class Words {
    constructor(law) {
      this.law = law;
      this.unit = law.per_rank ?? 1;
      this.title = law.per_rank ? "Rank" : "P";
    }

    cost(P, N) {
      if (!this.law.cost) return "";
      const { tokens, seconds, flops } = this.law.cost;
      const operations = flops ? `, about ${three((N * (flops[0] + flops[1] * P)) / 1e12)} TFLOP` : "";
      const hours = seconds ? ` and ${three((N * (seconds[0] + seconds[1] * P)) / 3600)} hours of training` : "";
      return `${three(N * tokens)} tokens${operations}${hours}`;
    }

    losses(size, N, finetune, loss, above) {
      const P = size * this.unit;
      const { floor, range, cost } = this.law;
      const forgotten = floor === null ? `forgetting loss ${digits(loss)}` : `forgetting ${digits(above)}`;
      const sizes = range.trainable_params.map((end) => asked(end / this.unit)).join(" to ");
      const measured = `${this.law.per_rank ? "rank " : "P "}${sizes}, ${range.step.map(asked).join(" to ")} steps`;
      const where = this.law.outside(P, N)
        ? `Outside the measured range (${measured}): an extrapolation.`
        : "Inside the measured range.";
      const speed = cost?.seconds ? ", at the speed that this study’s runs had" : "";
      const paid = cost ? ` Cost: ${this.cost(P, N)}${speed}.` : "";
      const set = `${this.title} ${asked(size)}, ${steps(N)}`;
      return `${set}: fine-tuning loss ${digits(finetune)}, ${forgotten} nats/token. ${where}${paid}`;
    }

    budget(size, budget) {
      const P = size * this.unit;
      const { law } = this;
      const at = law.per_rank ? `rank ${asked(size)}` : `${asked(size)} trainable parameters`;
      const start = `A budget of ${digits(budget)} nats/token`;
      const found = law.spend(P, budget);
      const [value, ...ends] = found.steps;
      if (value === Infinity) {
        const limit = digits(found.limit - (law.floor ?? 0));
        return `${start} is never spent at ${at}, however long it trains: the law’s limit is ${limit}.`;
      }
      if (value < 1) return `${start} is spent at ${at} before the first step.`;
      const [low, high] = law.range.step;
      if (value < low / law.far || value > law.far * high) {
        const taken = `${start} would take ${steps(Math.round(value))} at ${at}`;
        return `${taken}, where ${asked(low)} to ${asked(high)} were measured: the law says nothing there.`;
      }
      const [from, to] = ends;
      const band = to === Infinity ? `at least ${whole(from)}` : ends.map(whole).join(" to ");
      const between = Number.isFinite(from) ? ` (${law.level} band ${band})` : "";
      const [loss, ...bands] = found.finetune;
      const named = [[`${law.level} band`, span(bands[0], bands[1])], ["of one new run", span(bands[2], bands[3])]];
      const known = named.filter(([, text]) => text !== "–").map((pair) => pair.join(" ")).join("; ");
      const paid = law.cost ? `, for ${this.cost(P, value)}` : "";
      const outside = found.outside ? " This lies outside the measured range: an extrapolation." : "";
      const spent = `${start} is spent at ${at} at step ${whole(value)}${between}`;
      return `${spent}, at a fine-tuning loss of ${digits(loss)}${known && ` (${known})`}${paid}.${outside}`;
    }

    notes(P, N, lost) {
      const { law } = this;
      const made = [];
      if (lost) {
        const of = `${lost} of ${law.inside.length} resamples gave no finite number here`;
        made.push(`${of}; the band is from the others, or left out where more than a fifth are lost.`);
      }
      if (law.spans && law.outside(P, N)) made.push(`${capital(law.spans)}.`);
      if (law.no_bands) made.push(`No bands, because this law has no intervals: ${law.no_bands}.`);
      return made.join(" ");
    }
  }

  // the panel of one data set: what is set, and what it says
  class View {
    constructor(box, law) {
      [this.box, this.law, this.words, this.frame] = [box, law, new Words(law), 0];
      const stops = law.sizes.map((P) => this.rank(P));
      this.sliders = {
        size: { slider: this.part("size-slider"), stops },
        steps: { slider: this.part("steps-slider"), stops: law.steps },
      };
      const [size, N, budget] = law.start;
      for (const [name, value] of Object.entries({ size: this.rank(size), steps: N, budget })) {
        this.part(name).value = String(value);
        this.part(name).addEventListener("input", () => {
          this.follow(name);
          this.update();
        });
        this.follow(name);
      }
      for (const [name, { slider, stops: values }] of Object.entries(this.sliders)) {
        slider.addEventListener("input", () => {
          this.part(name).value = String(values[Number(slider.value)]);
          slider.setAttribute("aria-valuetext", this.part(name).value);
          this.update();
        });
      }
      addEventListener("resize", () => this.draw());
      box.hidden = false;
      this.update();
    }

    part(name) {
      return this.box.querySelector(`[data-part="${name}"]`);
    }

    rank(P) {
      return Number((P / this.words.unit).toPrecision(12));
    }

    // a slider follows its number to the nearest stop
    follow(name) {
      if (!(name in this.sliders)) return;
      const { slider, stops } = this.sliders[name];
      const text = this.part(name).value;
      const away = stops.map((stop) => Math.abs(Math.log(stop / Number(text))));
      slider.max = String(stops.length - 1);
      if (Number(text) > 0) slider.value = String(away.indexOf(Math.min(...away)));
      slider.setAttribute("aria-valuetext", text);
    }

    // null where it is no number that can be asked for
    read(name) {
      const field = this.part(name);
      const value = field.value.trim() === "" ? NaN : Number(field.value);
      const good = name === "budget" ? value > 0 && value < Infinity : value >= 1 && value <= MOST;
      field.setAttribute("aria-invalid", String(!good));
      return good ? value : null;
    }

    // what did not change is not read out again
    say(name, text) {
      if (this.part(name).textContent !== text) this.part(name).textContent = text;
    }

    fill(lines) {
      [...this.part("table").tBodies[0].rows].forEach((row, i) => {
        row.hidden = i === 2 && this.law.floor === null;
        lines[i].forEach((text, k) => {
          row.cells[k + 1].textContent = text;
        });
      });
    }

    update() {
      const [size, N, budget] = ["size", "steps", "budget"].map((name) => this.read(name));
      const asks = (name) => `${name}: a number from 1 to ${asked(MOST)} is needed.`;
      const wrong = [...(size === null ? [asks(this.words.title)] : []), ...(N === null ? [asks("Steps")] : [])];
      const bare = budget === null ? "Budget: a number above 0 is needed." : "";
      if (wrong.length) {
        this.say("losses", wrong.join(" "));
        this.say("spent", bare);
        this.say("notes", "");
        this.fill(Array(3).fill(["–", "–", "–"]));
        for (const name of Object.keys(CHARTS)) this.part(name).replaceChildren();
        return;
      }
      const P = size * this.words.unit;
      const found = [FINETUNE, FORGETTING].map((output) => this.law.predict(output, P, N));
      const [finetune, loss] = found.map(({ ends }) => ends);
      const above = loss.map((end) => end - (this.law.floor ?? NaN));
      this.fill([finetune, loss, above].map((e) => [digits(e[0]), span(e[1], e[2]), span(e[3], e[4])]));
      this.say("losses", this.words.losses(size, N, finetune[0], loss[0], above[0]));
      this.say("spent", bare || this.words.budget(size, budget));
      this.say("notes", this.words.notes(P, N, Math.max(...found.map(({ lost }) => lost))));
      this.draw();
    }

    // once a frame, however fast a slider moves
    draw() {
      cancelAnimationFrame(this.frame);
      this.frame = requestAnimationFrame(() => {
        const [size, N, budget] = ["size", "steps", "budget"].map((name) => this.read(name));
        if (size === null || N === null) return;
        for (const [name, output] of Object.entries(CHARTS)) {
          draw(this.part(name), this.law, output, size * this.words.unit, N, budget);
        }
      });
    }
  }

  for (const block of document.querySelectorAll("script.whatif-data")) {
    const law = new JointLaw(JSON.parse(block.textContent));
    const key = `${block.dataset.panel}-whatif`;
    if (law.agrees()) new View(document.getElementById(key), law);
    else document.getElementById(`${key}-differs`).hidden = false;
  }
})();
