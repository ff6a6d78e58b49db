"use strict";
// What the pages share: theme, colours, and the chart of losses.

// Eight colours for each ground, found by search: the smallest distance of any two in OKLab, as seen
// with normal sight, protanopia, deuteranopia and tritanopia, is large, and their contrast is above 3.
const COLOURS = {
  light: ["#0000dd", "#dd7700", "#550000", "#5577ff", "#bb1111", "#aa88aa", "#002266", "#775588"],
  dark: ["#ff9900", "#99ffff", "#ee1111", "#aa88ff", "#ffff66", "#338888", "#55ccbb", "#9933dd"],
};
// Of each colour, so that none has to be told by colour alone.
const DASHES = [[], [8, 3], [2, 3], [12, 3, 2, 3], [5, 5], [1, 2], [14, 4], [8, 2, 2, 2, 2, 2]];
const MARKERS = ["circle", "rect", "triangle", "rectRot", "star", "rectRounded", "cross", "dash"];
const SLOTS = COLOURS.light.length;

const $ = id => document.getElementById(id);
const integer = new Intl.NumberFormat("en-US");
const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const theme = () => document.documentElement.dataset.theme;
const colourOf = slot => COLOURS[theme()][slot];

function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children.filter(child => child !== null && child !== undefined));
  return node;
}

function startTheme(redraw) {
  const set = name => {
    document.documentElement.dataset.theme = name;
    redraw();
  };
  $("theme").addEventListener("click", () => set(theme() === "dark" ? "light" : "dark"));
  document.documentElement.dataset.theme = matchMedia("(prefers-color-scheme: dark)").matches
    ? "dark"
    : "light";
  Chart.defaults.font.family = getComputedStyle(document.body).fontFamily;
}

// --- State in the address, so that a view can be sent to somebody ---

function readState(defaults) {
  const state = {...defaults};
  for (const [key, text] of new URLSearchParams(location.hash.slice(1)))
    if (key in defaults) state[key] = text;
  return state;
}

function writeState(state, defaults) {
  const kept = Object.entries(state).filter(([key, value]) => value !== defaults[key]);
  const text = new URLSearchParams(kept).toString();
  history.replaceState(null, "", text ? "#" + text : location.pathname + location.search);
}

// --- Axes ---

function axis(title, range = {}, logarithmic = false, ticks = {}) {
  const grid = {color: css("--line")};
  const named = {display: true, text: title, color: css("--muted")};
  const shown = {
    color: css("--muted"),
    maxRotation: 0,
    autoSkipPadding: 18,
    includeBounds: false,
    ...ticks,
  };
  return {type: logarithmic ? "logarithmic" : "linear", grid, title: named, ticks: shown, ...range};
}

const charts = {};
function draw(id, datasets, scales, tooltip, zoom = {}) {
  charts[id]?.destroy();
  charts[id] = new Chart($(id), {
    type: "scatter",
    data: {datasets},
    options: {
      animation: false,
      responsive: true,
      maintainAspectRatio: false,
      interaction: {mode: "nearest", intersect: false},
      scales,
      plugins: {legend: {display: false}, tooltip: {callbacks: tooltip}, zoom},
    },
  });
}

// --- Losses ---

const LABELS = {train: "", val: "validation, "};
const CURVES = {axis: "step", seeds: "mean", smooth: "0", logx: "0", logy: "0", zoom: ""};

// An exponential mean without the pull of its start (as Adam's, Kingma and Ba 2015).
// Points are {x, y}.
function smoothed(points, weight) {
  let sum = 0,
    mass = 0;
  return points.map(point => {
    sum = weight * sum + (1 - weight) * point.y;
    mass = weight * mass + (1 - weight);
    return {x: point.x, y: sum / mass};
  });
}

// One curve of the means where all seeds log the same steps; else every seed's own.
function curvesOf(series, kind, wanted) {
  const all = series.curves
    .map(curve => ({name: `seed ${curve.seed ?? "not stated"}`, points: curve[kind]}))
    .filter(curve => curve.points.length);
  const steps = points => points.map(point => point[0]).join();
  const alike = all.length > 1 && all.every(curve => steps(curve.points) === steps(all[0].points));
  if (wanted !== "mean" || !alike) return all;
  const mean = values =>
    values.some(value => value === null) ? null : values.reduce((a, b) => a + b, 0) / values.length;
  const points = all[0].points.map((point, i) => [
    point[0],
    mean(all.map(c => c.points[i][1])),
    mean(all.map(c => c.points[i][2])),
  ]);
  return [{name: `mean of ${all.length} seeds`, points}];
}

// Later records are drawn above earlier ones, so that their dashes let an equal curve be seen.
function lossSets(picked, state) {
  const weight = Math.min(0.95, Math.max(0, Number(state.smooth) || 0));
  const column = state.axis === "seconds" ? 1 : 0;
  const drawn = point => point[column] !== null && !(state.logx === "1" && point[column] <= 0);
  const sets = [];
  for (const {series, slot} of picked) {
    const look = {
      borderColor: colourOf(slot),
      backgroundColor: colourOf(slot),
      borderWidth: 1.7,
      borderDash: DASHES[slot],
      order: -slot,
      record: series.id,
    };
    const line = {showLine: true, pointRadius: 0};
    const mark = {showLine: false, pointRadius: 4.5, pointStyle: MARKERS[slot], borderDash: []};
    for (const [kind, more] of Object.entries({train: line, val: mark})) {
      for (const curve of curvesOf(series, kind, state.seeds)) {
        const points = curve.points.filter(drawn).map(point => ({x: point[column], y: point[2]}));
        const data = kind === "train" ? smoothed(points, weight) : points;
        const label = `${LABELS[kind]}${series.name}, ${curve.name}`;
        sets.push({...look, ...more, label, data});
      }
    }
  }
  return sets;
}

// The axis's own range: the first steps may jump far above a uniform guess and would flatten all
// that follows.
function lossRange(sets) {
  const losses = sets.flatMap(set => set.data.map(point => point.y)).sort((a, b) => a - b);
  if (!losses.length) return {};
  const low = losses[0];
  const top = losses[Math.floor(0.97 * (losses.length - 1))];
  const room = 0.04 * (top - low || 1);
  return {min: Math.max(low - room, low / 2), max: top + room};
}

// [x min, x max, y min, y max] of an address, null where it says nothing of the kind.
function zoomOf(text) {
  const numbers = text.split(",").map(Number);
  return numbers.length === 4 && numbers.every(Number.isFinite) ? numbers : null;
}

function drawLosses(picked, state, changed) {
  const sets = lossSets(picked, state);
  const zoomed = zoomOf(state.zoom);
  const x = zoomed ? {min: zoomed[0], max: zoomed[1]} : {};
  const y = zoomed ? {min: zoomed[2], max: zoomed[3]} : lossRange(sets);
  const scales = {
    x: axis(state.axis === "seconds" ? "training time, s" : "step", x, state.logx === "1"),
    y: axis("loss, nats per token", y, state.logy === "1"),
  };
  const tooltip = {
    label: item =>
      `${item.dataset.label}: ${item.parsed.y.toFixed(4)} at ${integer.format(item.parsed.x)}`,
  };
  const remember = ({chart}) => {
    const {x, y} = chart.scales;
    state.zoom = [x.min, x.max, y.min, y.max].map(value => value.toPrecision(6)).join();
    setTimeout(changed); // the chart that calls is thrown away
  };
  const zoom = {
    zoom: {drag: {enabled: true}, mode: "xy", onZoomComplete: remember},
    pan: {enabled: true, modifierKey: "shift", mode: "xy", onPanComplete: remember},
  };
  draw("curves", sets, scales, tooltip, zoom);
  $("legend").replaceChildren(...picked.map(({series, slot}) => legendEntry(series.name, slot)));
  $("reset").hidden = !zoomed;
}

function legendEntry(name, slot) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("width", "34");
  svg.setAttribute("height", "10");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
  const look = {
    x1: 0,
    x2: 34,
    y1: 5,
    y2: 5,
    stroke: colourOf(slot),
    "stroke-width": 2.5,
    "stroke-dasharray": DASHES[slot].join(" "),
  };
  for (const [key, value] of Object.entries(look)) line.setAttribute(key, value);
  svg.append(line);
  return element("li", {title: name}, svg, element("span", {textContent: name}));
}

// Ties the controls of the chart to the state; `changed` draws again and writes the address.
function startCurves(state, changed) {
  for (const key of ["axis", "seeds", "smooth"]) {
    $(key).value = state[key];
    $(key).addEventListener(key === "smooth" ? "input" : "change", event => {
      state[key] = event.target.value;
      if (key === "axis") state.zoom = "";
      changed();
    });
  }
  for (const key of ["logx", "logy"]) {
    $(key).checked = state[key] === "1";
    $(key).addEventListener("change", event => {
      state[key] = event.target.checked ? "1" : "0";
      changed();
    });
  }
  $("reset").addEventListener("click", () => {
    state.zoom = "";
    changed();
  });
}
