"use strict";
// The page of all records: table, scores against date and bytes, losses, two records side by side.
const {records, contests} = JSON.parse($("data").textContent);
const byId = new Map(records.map(record => [record.id, record]));
const MARKS = {accepted: "circle", policy: "rectRot", rejected: "crossRot", unaudited: "triangle"};
const GROUPS = {
  accepted: "ranked",
  policy: "ranked",
  unaudited: "without an audit that counts",
  rejected: "rejected by the audit",
};
const PICKED_AT_FIRST = 3;

const DEFAULTS = {
  ...CURVES,
  board: records[0]?.board ?? "",
  status: "",
  search: "",
  sort: "bpb-asc",
  series: null,
  a: "",
  b: "",
};
const state = readState(DEFAULTS);
if (!records.some(record => record.board === state.board)) state.board = DEFAULTS.board;

const onBoard = () => records.filter(record => record.board === state.board);

// --- Picks: at most eight records, each with a colour that it keeps until it goes ---

let slots = new Array(SLOTS).fill(null);

function pickAtFirst() {
  const able = onBoard().filter(record => record.curves.length && record.status !== "rejected");
  slots = slots.map((_, i) => (i < PICKED_AT_FIRST ? (able[i]?.id ?? null) : null));
}

function readPicks() {
  if (state.series === null) return pickAtFirst();
  const known = state.series
    .split(",")
    .slice(0, SLOTS)
    .map(id => (byId.get(id)?.board === state.board ? id : null));
  slots = slots.map((_, i) => known[i] ?? null);
}

function pick(record, wanted) {
  const place = wanted ? slots.indexOf(null) : slots.indexOf(record.id);
  if (place < 0) return false;
  slots[place] = wanted ? record.id : null;
  state.series = slots.map(id => id ?? "").join(",");
  return true;
}

const pickedSeries = () =>
  slots.flatMap((id, slot) => (id === null ? [] : [{series: byId.get(id), slot}]));

// --- Table ---

function seconds(value) {
  if (value === null) return "–";
  return value >= 120 ? `${(value / 60).toFixed(1)} min` : `${value.toFixed(0)} s`;
}

const whole = value => (value === null ? "–" : integer.format(value));
const small = text => element("small", {textContent: text});

function scoreCell(record) {
  const seeds = record.n === null ? "seeds not stated" : `n = ${record.n}`;
  const spread = record.sd === null ? seeds : `± ${record.sd.toFixed(5)}, ${seeds}`;
  const alone = record.neural === null ? null : small(`model alone ${record.neural.toFixed(4)}`);
  return element(
    "div",
    {className: record.status},
    element("b", {textContent: record.bpb.toFixed(5)}),
    small(spread),
    alone,
  );
}

function auditCell(record) {
  const reasons = record.reasons.map(reason => small(reason));
  return element(
    "div",
    {},
    element("span", {className: `tag ${record.status}`, textContent: record.label}),
    ...reasons,
  );
}

function nameCell(record) {
  const link = element("a", {href: record.page, textContent: record.name});
  return element(
    "div",
    {className: record.status},
    link,
    element("small", {className: "blurb", textContent: record.blurb, title: record.blurb}),
  );
}

function pickCell(record, box) {
  const shown = slots.indexOf(record.id);
  const input = element("input", {
    type: "checkbox",
    checked: shown >= 0,
    disabled: !record.curves.length,
    title: "show its losses",
  });
  input.setAttribute("aria-label", `losses of ${record.name}`);
  input.addEventListener("change", () => {
    if (!pick(record, input.checked)) {
      input.checked = false;
      $("full").hidden = false;
      return;
    }
    $("full").hidden = true;
    changed();
  });
  return input;
}

// Unknown values come last, whichever way the column is sorted.
function sorter(value) {
  return (a, b, rowA, rowB, column, direction) => {
    const [x, y] = [value(rowA.getData()), value(rowB.getData())];
    if (x === null || y === null)
      return x === y ? 0 : (x === null ? 1 : -1) * (direction === "asc" ? 1 : -1);
    return x < y ? -1 : x > y ? 1 : 0;
  };
}

const show = make => cell => make(cell.getData());
const NUMBER = {hozAlign: "right", headerHozAlign: "right"};
const COLUMNS = [
  {
    title: "",
    field: "more",
    formatter: "responsiveCollapse",
    width: 34,
    minWidth: 34,
    headerSort: false,
    responsive: 0,
  },
  {
    title: "losses",
    field: "pick",
    formatter: show(pickCell),
    width: 66,
    headerSort: false,
    hozAlign: "center",
    responsive: 1,
  },
  {title: "#", field: "rank", width: 44, headerSort: false, responsive: 5, ...NUMBER},
  {
    title: "bits per byte",
    field: "bpb",
    formatter: show(scoreCell),
    sorter: sorter(r => r.bpb),
    minWidth: 128,
    widthGrow: 1,
    responsive: 0,
    ...NUMBER,
  },
  {
    title: "record",
    field: "name",
    formatter: show(nameCell),
    sorter: sorter(r => r.name.toLowerCase()),
    minWidth: 150,
    widthGrow: 4,
    responsive: 0,
  },
  {
    title: "audit",
    field: "status",
    formatter: show(auditCell),
    sorter: sorter(r => r.label),
    minWidth: 150,
    widthGrow: 2,
    responsive: 2,
  },
  {
    title: "code + artifact, bytes",
    field: "bytes",
    formatter: show(r => whole(r.bytes)),
    sorter: sorter(r => r.bytes),
    minWidth: 120,
    responsive: 3,
    ...NUMBER,
  },
  {
    title: "training",
    field: "train",
    formatter: show(r => seconds(r.train)),
    sorter: sorter(r => r.train),
    minWidth: 95,
    responsive: 3,
    ...NUMBER,
  },
  {
    title: "scoring",
    field: "eval",
    formatter: show(r => seconds(r.eval)),
    sorter: sorter(r => r.eval),
    minWidth: 90,
    responsive: 4,
    ...NUMBER,
  },
  {
    title: "author",
    field: "author",
    formatter: show(r => r.author ?? "–"),
    sorter: sorter(r => r.author?.toLowerCase() ?? null),
    minWidth: 110,
    widthGrow: 1,
    responsive: 4,
  },
  {
    title: "date",
    field: "date",
    formatter: show(r => r.date ?? "–"),
    sorter: sorter(r => r.date),
    minWidth: 100,
    responsive: 3,
  },
];

const [sortField, sortWay] = state.sort.split("-");
const table = new Tabulator("#table", {
  data: onBoard(),
  index: "id",
  layout: "fitColumns",
  columns: COLUMNS,
  placeholder: "No record matches.",
  responsiveLayout: "collapse",
  responsiveLayoutCollapseStartOpen: false,
  groupBy: record => GROUPS[record.status],
  groupValues: [[...new Set(Object.values(GROUPS))]],
  groupHeader: (value, count) =>
    element("span", {className: count ? "" : "none", textContent: `${value} (${count})`}),
  initialSort: [
    {
      column: COLUMNS.some(column => column.field === sortField) ? sortField : "bpb",
      dir: sortWay === "desc" ? "desc" : "asc",
    },
  ],
  columnDefaults: {headerWordWrap: true, headerSortTristate: false},
});

function matches(record) {
  const words = state.search.toLowerCase().split(/\s+/).filter(Boolean);
  return (
    (!state.status || record.status === state.status) &&
    words.every(word => record.text.includes(word))
  );
}

table.on("dataSorted", sorters => {
  if (!sorters.length) return;
  state.sort = `${sorters[0].field}-${sorters[0].dir}`;
  writeState(state, DEFAULTS);
});
table.on("tableBuilt", () => {
  filterTable();
});

function filterTable() {
  table.setFilter(matches);
  drawScores();
}

// --- Scores against date and bytes ---

const day = date => Date.parse(date) / 864e5;
const shortDate = days =>
  new Date(days * 864e5).toLocaleDateString("en-GB", {
    day: "numeric",
    month: "short",
    timeZone: "UTC",
  });

// The range of an axis with some room at both ends.
function span(values, room = 0.08) {
  if (!values.length) return {};
  const low = Math.min(...values);
  const high = Math.max(...values);
  const margin = room * (high - low) || room;
  return {min: low - margin, max: high + margin};
}

// What an audit rejected sets no axis: where it lies beyond one, it stands at its edge.
function scores(shown, place) {
  const points = shown
    .filter(record => place(record) !== null)
    .map(record => ({x: place(record), y: record.bpb, record}));
  const sound = points.filter(point => point.record.status !== "rejected");
  const setting = sound.length ? sound : points;
  const x = span(setting.map(point => point.x));
  const y = span(setting.map(point => point.y));
  const inside = (value, {min, max}) => Math.min(max, Math.max(min, value));
  const drawn = points.map(point => ({
    x: inside(point.x, x),
    y: inside(point.y, y),
    record: point.record,
    off: point.x !== inside(point.x, x) || point.y !== inside(point.y, y),
  }));
  return {drawn, sound, x, y};
}

function drawScores() {
  const shown = onBoard().filter(matches);
  const colour = ({record}) =>
    slots.includes(record.id) ? colourOf(slots.indexOf(record.id)) : css("--muted");
  const style = list => ({
    showLine: false,
    clip: false,
    pointStyle: list.map(point => MARKS[point.record.status]),
    pointRadius: 7,
    pointHoverRadius: 9,
    pointBorderWidth: 2.5,
    pointBackgroundColor: list.map(colour),
    pointBorderColor: list.map(colour),
  });
  const tooltip = {
    title: items => items[0].raw.record?.name ?? "",
    label: ({raw}) =>
      raw.record
        ? [
            `${raw.record.bpb.toFixed(5)} bits per byte${raw.off ? ", beyond the axes" : ""}`,
            `${raw.record.date ?? "no date"}, ${raw.record.label}`,
          ]
        : "",
  };
  const dated = scores(shown, record => (record.date ? day(record.date) : null));
  const best = [];
  for (const point of dated.sound
    .filter(point => point.record.status === "accepted")
    .sort((a, b) => a.x - b.x || b.y - a.y)) {
    if (best.length && point.y >= best.at(-1).y) continue;
    if (best.length) best.push({x: point.x, y: best.at(-1).y});
    best.push({x: point.x, y: point.y});
  }
  const line = {
    data: best,
    showLine: true,
    pointRadius: 0,
    pointHitRadius: 0,
    borderColor: css("--good"),
    borderWidth: 1.5,
    borderDash: [5, 4],
  };
  const days = {
    callback: value => (Number.isInteger(value) ? shortDate(value) : ""),
    stepSize: Math.max(1, Math.ceil((dated.x.max - dated.x.min) / 6) || 1),
  };
  draw(
    "by-date",
    [{data: dated.drawn, ...style(dated.drawn)}, line],
    {x: axis("date", dated.x, false, days), y: axis("bits per byte", dated.y)},
    tooltip,
  );
  const sized = scores(shown, record => (record.bytes === null ? null : record.bytes / 1e6));
  draw(
    "by-bytes",
    [{data: sized.drawn, ...style(sized.drawn)}],
    {x: axis("code + artifact, MB (1,000,000 bytes)", sized.x), y: axis("bits per byte", sized.y)},
    tooltip,
  );
}

// --- Two records side by side ---

function options(select, chosen) {
  select.replaceChildren(
    ...onBoard().map(record =>
      element("option", {
        value: record.id,
        textContent: record.name,
        selected: record.id === chosen,
      }),
    ),
  );
}

// Of records that both state settings; a list of what one alone states would compare nothing.
function settingRows(a, b) {
  if (![a, b].every(record => Object.keys(record.settings).length)) return [];
  const names = [...new Set([...Object.keys(a.settings), ...Object.keys(b.settings)])];
  return names
    .filter(name => a.settings[name] !== b.settings[name])
    .map(name => [name, a.settings[name] ?? "–", b.settings[name] ?? "–"]);
}

function sideRows(a, b) {
  const row = (name, value) => [name, value(a), value(b)];
  return [
    row("bits per byte", r => r.bpb.toFixed(5)),
    row(
      "standard deviation, seeds",
      r => `${r.sd === null ? "–" : r.sd.toFixed(5)}, ${r.n ?? "not stated"}`,
    ),
    row("model alone, bits per byte", r => (r.neural === null ? "–" : r.neural.toFixed(5))),
    row("audit", r => r.label),
    row("parameters", r => whole(r.parameters)),
    row("code + artifact, bytes", r => whole(r.bytes)),
    row("training, scoring", r => `${seconds(r.train)}, ${seconds(r.eval)}`),
    row("builds on", r => r.base ?? "–"),
    ...settingRows(a, b),
  ];
}

function contestText(a, b) {
  if (a === b) return "Choose two records.";
  const contest = contests[`${a.number}|${b.number}`];
  if (contest.problem) return contest.problem;
  const answer =
    contest.answer === "cannot tell"
      ? "Whether B is better: cannot tell"
      : `B is ${contest.answer}`;
  const p = value => (value < 1e-4 ? value.toExponential(1) : value.toFixed(4));
  const test =
    contest.p === null
      ? ""
      : ` One-sided Welch: p ${p(contest.p)} of no gain, ${p(contest.p_bar)} of a gain within the bar.`;
  return `${answer}; ${contest.reason}. Gain of B: ${contest.gain.toFixed(5)} bits per byte.${test}`;
}

function drawSides() {
  const both = onBoard();
  $("sides").hidden = both.length < 2;
  if (both.length < 2) return;
  const chosen = (id, other) => both.find(record => record.id === id) ?? both[other];
  const [a, b] = [chosen(state.a, 1), chosen(state.b, 0)];
  options($("a"), a.id);
  options($("b"), b.id);
  $("answer").textContent = contestText(a, b);
  const cells = row => row.map((text, i) => element(i ? "td" : "th", {textContent: String(text)}));
  $("side-rows").replaceChildren(...sideRows(a, b).map(row => element("tr", {}, ...cells(row))));
}

// --- All of it ---

function redraw() {
  drawScores();
  drawLosses(pickedSeries(), state, changed);
  drawSides();
}

function changed() {
  writeState(state, DEFAULTS);
  redraw();
}

function chooseBoard(board) {
  Object.assign(state, {board, series: null, a: "", b: "", zoom: ""});
  readPicks();
  table.setData(onBoard());
  changed();
}

records.forEach((record, number) => {
  record.number = number;
  record.text = [
    record.name,
    record.author,
    record.github,
    record.blurb,
    record.label,
    ...record.reasons,
  ]
    .join(" ")
    .toLowerCase();
});
for (const board of new Set(records.map(record => record.board)))
  $("board").append(
    element("option", {value: board, textContent: board, selected: board === state.board}),
  );
$("status").value = state.status;
$("search").value = state.search;
$("board").addEventListener("change", event => chooseBoard(event.target.value));
$("status").addEventListener("change", event => {
  state.status = event.target.value;
  writeState(state, DEFAULTS);
  filterTable();
});
$("search").addEventListener("input", event => {
  state.search = event.target.value;
  writeState(state, DEFAULTS);
  filterTable();
});
for (const key of ["a", "b"])
  $(key).addEventListener("change", event => {
    state[key] = event.target.value;
    changed();
  });
readPicks();
startTheme(redraw);
startCurves(state, changed);
redraw();
