// Lines over time on a canvas, drawn when something new came.

const KEPT = 600; // points: ten minutes, one a second

export class Chart {
  // `unit` follows numbers in the words for who cannot see the picture.
  constructor(canvas, unit, most) {
    this.canvas = canvas;
    this.legend = canvas.parentElement.querySelector(".legend");
    this.title = canvas.parentElement.querySelector("figcaption").textContent;
    this.unit = unit;
    this.most = most;
    this.times = [];
    this.series = new Map();
  }

  // One moment: a Map from a line's name to its value, or null where there is none.
  add(time, values) {
    for (const name of values.keys()) {
      if (!this.series.has(name)) this.series.set(name, this.times.map(() => null));
    }
    this.times.push(time);
    for (const [name, points] of this.series) points.push(values.get(name) ?? null);
    if (this.times.length > KEPT) {
      this.times.shift();
      for (const points of this.series.values()) points.shift();
    }
    this.draw();
  }

  draw() {
    const style = getComputedStyle(document.documentElement);
    const color = (index) => style.getPropertyValue(`--s${index % 5}`);
    const ratio = devicePixelRatio || 1;
    const [width, height] = [this.canvas.clientWidth, 120];
    this.canvas.width = width * ratio;
    this.canvas.height = height * ratio;
    const pen = this.canvas.getContext("2d");
    pen.scale(ratio, ratio);
    const all = [...this.series.values()].flat().filter((value) => value !== null);
    const top = this.most ?? nice(Math.max(0, ...all));
    pen.font = "11px system-ui, sans-serif";
    pen.fillStyle = style.getPropertyValue("--quiet");
    pen.strokeStyle = style.getPropertyValue("--line");
    for (const share of [0, 0.5, 1]) {
      const y = height - 6 - share * (height - 18);
      pen.beginPath();
      pen.moveTo(34, y + 0.5);
      pen.lineTo(width, y + 0.5);
      pen.stroke();
      pen.fillText(short(top * share), 0, y + 4);
    }
    let index = 0;
    for (const points of this.series.values()) {
      pen.strokeStyle = color(index++);
      pen.lineWidth = 1.5;
      pen.beginPath();
      let open = false;
      points.forEach((value, at) => {
        if (value === null) {
          open = false;
          return;
        }
        const isAlone = (points[at - 1] ?? null) === null && (points[at + 1] ?? null) === null;
        const x = 34 + ((KEPT - points.length + at) / (KEPT - 1)) * (width - 36);
        const y = height - 6 - Math.min(1, value / top) * (height - 18);
        if (open) pen.lineTo(x, y);
        else pen.moveTo(x, y);
        // A line of one point would not be seen.
        if (isAlone) pen.rect(x - 0.75, y - 0.75, 1.5, 1.5);
        open = true;
      });
      pen.stroke();
    }
    this.words(color);
  }

  words(color) {
    const now = [...this.series].map(([name, points]) => [name, points.at(-1)]);
    const said = now.map(([name, value]) => `${name} ${value === null ? "nothing" : `${short(value)} ${this.unit}`}`);
    this.canvas.setAttribute("aria-label", `${this.title}: ${said.join(", ") || "nothing yet"}`);
    const parts = now.map(([name, value], index) => {
      const part = document.createElement("span");
      const mark = document.createElement("i");
      mark.style.background = color(index);
      part.append(mark, value === null ? name : `${name} ${short(value)}`);
      return part;
    });
    this.legend.replaceChildren(...parts);
  }
}

function nice(most) {
  if (most <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(most));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= most);
}

function short(value) {
  if (value >= 100 || Number.isInteger(value)) return String(Math.round(value));
  return value.toFixed(value >= 10 ? 1 : 2);
}
