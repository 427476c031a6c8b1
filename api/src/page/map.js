// The block map of a device: a square for each cell, painted anew when it changed.

const LEVELS = 8;
const SIDE = 9; // pixels
const FADE = 5_000; // milliseconds that an evicted cell is shown as such

export class BlockMap {
  constructor(room, legend) {
    this.room = room;
    this.blobs = new Map();
    const kinds = [["--none", "not here"], ["--here", "here"], ["--fetch", "being fetched"], ["--read", "read (dot)"], ["--gone", "evicted just now"]];
    legend.replaceChildren(...kinds.map(([name, text]) => {
      const part = document.createElement("span");
      const mark = document.createElement("i");
      mark.style.background = `var(${name})`;
      part.append(mark, text);
      return part;
    }));
  }

  clear() {
    this.blobs.clear();
    this.room.replaceChildren();
  }

  show(map, bytes) {
    const here = new Set(map.blobs.map((blob) => blob.digest));
    for (const [digest, shown] of this.blobs) {
      if (!here.has(digest)) {
        shown.figure.remove();
        this.blobs.delete(digest);
      }
    }
    map.blobs.forEach((blob, index) => {
      const shown = this.blobs.get(blob.digest) ?? this.add(blob.digest);
      const cells = [...blob.cells].map(read);
      const now = performance.now();
      cells.forEach((cell, at) => {
        const before = shown.cells[at];
        cell.gone = cell.level ? 0 : before?.level ? now : before?.gone ?? 0;
      });
      shown.cells = cells;
      const count = (test) => cells.filter(test).length;
      const share = Math.round((100 * cells.reduce((sum, cell) => sum + cell.level, 0)) / (LEVELS * cells.length || 1));
      const words = `layer ${index + 1} of ${map.blobs.length}, ${blob.digest.slice(0, 19)}…, ${bytes(blob.size_bytes)}: about ${share} % here; of ${cells.length} cells of ${bytes(blob.cell_bytes)}, ${count((cell) => cell.filling)} being fetched, ${count((cell) => cell.read)} read`;
      shown.words.textContent = words;
      shown.canvas.setAttribute("aria-label", words);
      paint(shown);
      if (cells.some((cell) => cell.gone)) setTimeout(() => paint(shown), FADE + 50);
    });
  }

  add(digest) {
    const figure = document.createElement("div");
    figure.className = "blob";
    const words = document.createElement("p");
    const canvas = document.createElement("canvas");
    canvas.setAttribute("role", "img");
    figure.append(words, canvas);
    this.room.append(figure);
    const shown = { figure, words, canvas, cells: [] };
    this.blobs.set(digest, shown);
    return shown;
  }
}

// See BlobBlocks in openapi.json.
function read(character) {
  const code = parseInt(character, 36);
  return { level: code >> 2, filling: (code & 2) !== 0, read: (code & 1) !== 0 };
}

function paint(shown) {
  const style = getComputedStyle(document.documentElement);
  const color = Object.fromEntries(["none", "here", "fetch", "gone", "read"].map((name) => [name, style.getPropertyValue(`--${name}`)]));
  const ratio = devicePixelRatio || 1;
  const width = shown.canvas.clientWidth || shown.canvas.parentElement.clientWidth;
  const columns = Math.max(1, Math.floor(width / SIDE));
  const height = Math.ceil(shown.cells.length / columns) * SIDE;
  shown.canvas.style.height = `${height}px`;
  shown.canvas.width = width * ratio;
  shown.canvas.height = height * ratio;
  const pen = shown.canvas.getContext("2d");
  pen.scale(ratio, ratio);
  const now = performance.now();
  shown.cells.forEach((cell, at) => {
    const [x, y] = [(at % columns) * SIDE, Math.floor(at / columns) * SIDE];
    pen.fillStyle = cell.gone && now - cell.gone < FADE ? color.gone : color.none;
    pen.fillRect(x, y, SIDE - 1, SIDE - 1);
    if (cell.level) {
      pen.fillStyle = color.here;
      const full = Math.max(1, ((SIDE - 1) * cell.level) / LEVELS);
      pen.fillRect(x, y + (SIDE - 1 - full), SIDE - 1, full);
    }
    if (cell.filling) {
      pen.strokeStyle = color.fetch;
      pen.lineWidth = 2;
      pen.strokeRect(x + 1, y + 1, SIDE - 3, SIDE - 3);
    }
    if (cell.read) {
      pen.fillStyle = color.read;
      pen.fillRect(x + 3, y + 3, 2, 2);
    }
  });
}
